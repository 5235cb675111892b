//! Both ends of a connection, made at once.

use super::Connection;
use super::transport::Transport;
use crate::error::Result;
use std::convert::Infallible;

/// Both ends of a connection: what one sends the other receives.
///
/// Python: `Pipe`.
pub type Pipe<S, R = S> = (Connection<S, R>, Connection<R, S>);

/// Makes a pipe: its first end sends `S` and receives `R`, its second one the other way round.
///
/// Two descriptors, 256 bytes of shared memory. A message of at most 16 KiB goes through the kernel, with one system call on each side;
/// a longer one lies in shared memory meanwhile, about three megabytes at a time. Dropping an end is how the other learns that nothing more will come: give one end to a child and it
/// is yours no more, keep none of what is the child's.
///
/// # Errors
/// `Os` or `Exhausted` when there are no descriptors or no memory.
///
/// # Examples
/// ```
/// # fn main() -> procession::Result<()> {
/// let (left, right) = procession::pipe::<u32, String>()?;
/// left.send(&7)?;
/// right.send(&format!("{} it was", right.recv()?))?;
/// assert_eq!(left.recv()?, "7 it was");
/// drop(left);
/// assert!(matches!(right.recv(), Err(procession::RecvError::Closed)));
/// # Ok(())
/// # }
/// ```
///
/// Python: `Pipe()`.
pub fn pipe<S: ?Sized, R: ?Sized>() -> Result<Pipe<S, R>> {
    let (one, other) = Transport::pipe()?;
    Ok((Connection::of(one), Connection::of(other)))
}

/// Makes a pipe that goes one way: its first end receives, its second one sends.
///
/// What only receives has nothing to send: the call doesn't compile.
///
/// ```compile_fail,E0277
/// let (receiver, sender) = procession::one_way_pipe::<u32>().unwrap();
/// sender.recv().unwrap();
/// ```
///
/// # Errors
/// As [`pipe`](pipe()).
///
/// # Examples
/// ```
/// # fn main() -> procession::Result<()> {
/// let (receiver, sender) = procession::one_way_pipe::<[u8]>()?;
/// sender.send_bytes(b"one way")?;
/// assert_eq!(receiver.recv_bytes()?, b"one way");
/// # Ok(())
/// # }
/// ```
///
/// Python: `Pipe(duplex=False)`.
pub fn one_way_pipe<T: ?Sized>() -> Result<(Connection<Infallible, T>, Connection<T, Infallible>)> {
    pipe()
}
