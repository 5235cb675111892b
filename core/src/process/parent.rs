//! The process that started this one.

use crate::sys::pidfd;
use crate::{Deadline, Result};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// The process that started this one, alive or gone.
///
/// # After fork
/// It is the parent's parent.
#[derive(Debug)]
pub struct Parent {
    pid: u32,
    sentinel: OwnedFd,
}

impl Parent {
    /// The process of that id, which has started this one.
    ///
    /// # Errors
    /// `Os` when there is no descriptor.
    pub fn new(pid: u32) -> Result<Self> {
        let opened = pidfd::open_parent(pid)?;
        let sentinel = opened.map_or_else(pidfd::ended, Ok)?;
        Ok(Self { pid, sentinel })
    }

    /// The process of that id and that pidfd, which had this one started by another.
    #[must_use]
    pub fn of(pid: u32, sentinel: OwnedFd) -> Self {
        Self { pid, sentinel }
    }

    /// Its process id: its own as long as it is alive.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits until it is gone; false once the deadline has passed. One system call.
    ///
    /// # Errors
    /// `Interrupted` when a signal handler ran.
    pub fn wait(&self, deadline: Deadline) -> Result<bool> {
        pidfd::wait(self.sentinel.as_fd(), deadline)
    }
}

impl AsFd for Parent {
    /// Becomes readable when it is gone.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.sentinel.as_fd()
    }
}
