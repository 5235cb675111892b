//! Waiting for the first of several.

use crate::error::{Error, Result, retry};
use procession_core::Deadline;
use procession_core::process::wait_for_any;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

/// Waits until some of the objects are ready, and gives their places in the list: processes that have ended, this
/// process' [parent](crate::ParentProcess) when it is gone, and pipes, sockets and the like that can be read from or
/// whose other ends are gone. With no objects it gives none, at once.
///
/// Places, not the objects, so that the list can be changed with what came out: objects of one type by reference, or of
/// several as `&dyn AsFd`. Sleeps in the kernel, in one system call, whatever signals arrive.
///
/// # Errors
/// `Os` for more objects than this process may have descriptors.
///
/// # Examples
/// ```standalone_crate
/// # fn main() -> procession::Result<()> {
/// procession::init();
/// let spawn = |number: u64| procession::Process::spawn(|number: u64| number * 2, number);
/// let mut children = (0..4).map(spawn).collect::<procession::Result<Vec<_>>>()?;
/// while !children.is_empty() {
///     for place in procession::wait(&children)?.into_iter().rev() {
///         println!("{}", children.swap_remove(place).join()?);
///     }
/// }
/// # Ok(())
/// # }
/// ```
///
/// Python: `connection.wait`.
pub fn wait<'a, T>(objects: impl IntoIterator<Item = &'a T>) -> Result<Vec<usize>>
where
    T: AsFd + ?Sized + 'a,
{
    until(objects, Deadline::NEVER)
}

/// As [`wait`](wait()), for at most so long: no places once the timeout has passed.
///
/// # Errors
/// As [`wait`](wait()).
pub fn wait_timeout<'a, T>(
    objects: impl IntoIterator<Item = &'a T>,
    timeout: Duration,
) -> Result<Vec<usize>>
where
    T: AsFd + ?Sized + 'a,
{
    until(objects, Deadline::after(timeout))
}

fn until<'a, T>(objects: impl IntoIterator<Item = &'a T>, deadline: Deadline) -> Result<Vec<usize>>
where
    T: AsFd + ?Sized + 'a,
{
    let descriptors: Vec<BorrowedFd<'_>> = objects.into_iter().map(AsFd::as_fd).collect();
    if descriptors.is_empty() {
        return Ok(Vec::new());
    }
    retry(|| wait_for_any(&descriptors, deadline))
        .map_err(|error| Error::at("wait for several objects", error))
}
