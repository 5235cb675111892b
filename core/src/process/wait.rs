//! Waiting for the first of several.

use crate::sys::descriptor::readable;
use crate::{Deadline, Result};
use std::os::fd::BorrowedFd;

/// Waits until some of the descriptors can be read from, or their other ends are gone, and gives their places in the list;
/// none once the deadline has passed. A [`Child`](super::Child)'s can be read from when it has ended. One system call.
///
/// # Errors
/// `Interrupted` when a signal handler ran; `Os` with EINVAL for more descriptors than a process may have.
///
/// Source: poll(2).
pub fn wait_for_any(descriptors: &[BorrowedFd<'_>], deadline: Deadline) -> Result<Vec<usize>> {
    readable(descriptors.iter().copied(), deadline)
}
