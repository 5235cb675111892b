//! Both ends of a connection, made at once.

use super::Connection;
use super::transport::{Terms, Transport};
use crate::error::Result;
use std::convert::Infallible;

/// Both ends of a connection: what one sends the other receives.
///
/// Python: `Pipe`.
pub type Pipe<S, R = S> = (Connection<S, R>, Connection<R, S>);

/// Messages of any length: who is in the tree could take memory by easier means.
const IN_TREE: Terms = Terms {
    limit: u64::MAX,
    in_tree: true,
};

/// Makes a pipe: its first end sends `S` and receives `R`, its second one the other way round.
///
/// Two descriptors. Dropping an end is how the other learns that nothing more will come: give one end to a child and it
/// is yours no more, keep none of what is the child's.
///
/// # Errors
/// `Os` when there are no descriptors.
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
    let (one, other) = Transport::pair(IN_TREE)?;
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
