//! A process that we started.

use super::ExitStatus;
use super::report::{self, Report};
use crate::sys::pidfd;
use crate::{Deadline, Result};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

/// A process that this process has started, running or ended.
///
/// Dropping it neither ends nor waits for it: it runs on, and once it ends, what is left of it in the kernel stays until
/// this process ends too. So whoever drops one waits for it first, or keeps it somewhere.
///
/// # After fork
/// It is the parent's child: the forked process can signal it, and can't learn its status.
#[derive(Debug)]
pub struct Child {
    pid: u32,
    pidfd: OwnedFd,
    status: Mutex<Option<ExitStatus>>,
    /// Who tells its status, if it isn't the kernel's to tell us: it is a fork server's child.
    report: Option<Report>,
}

impl Child {
    /// The child of that id, which this process has just forked.
    ///
    /// # Errors
    /// `Os` when the system gives no descriptor for it. Then the child is killed: nobody would ever wait for it.
    pub fn of(pid: u32) -> Result<Self> {
        let opened = pidfd::open(pid).inspect_err(|_| pidfd::end(pid));
        Ok(Self::new(pid, opened?))
    }

    pub(super) fn new(pid: u32, pidfd: OwnedFd) -> Self {
        Self {
            pid,
            pidfd,
            status: Mutex::new(None),
            report: None,
        }
    }

    pub(super) fn served(pid: u32, pidfd: OwnedFd, report: Option<Report>) -> Self {
        Self {
            report,
            ..Self::new(pid, pidfd)
        }
    }

    /// Its process id: its own until its status was collected.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Waits until it has ended, and says how; `None` once the deadline has passed. Any number of threads may wait.
    ///
    /// One system call while it runs, two when it has ended, none after that.
    ///
    /// A fork server's child is known to have ended from its first instant, and how, once the server has collected it: the
    /// first call after its end may wait up to 50 ms beyond its deadline for that. If the server is dead, the kernel tells
    /// (Linux 6.15); if that doesn't, or nobody waits for the child within three seconds, the code is 255.
    ///
    /// # Errors
    /// `Interrupted` when a signal handler ran; `Os` with ECHILD when somebody else has waited for it, or this
    /// process ignores SIGCHLD, and the kernel doesn't tell: it has ended then, and nobody knows how. Linux 6.15 tells, as late as
    /// 50 ms after the end.
    pub fn wait(&self, deadline: Deadline) -> Result<Option<ExitStatus>> {
        if let Some(status) = *self.status() {
            return Ok(Some(status));
        }
        if let Some(report) = &self.report {
            report.check()?;
        }
        if !pidfd::wait(self.pidfd.as_fd(), deadline)? {
            return Ok(None);
        }
        loop {
            let told = match &self.report {
                Some(report) => report.wait(deadline)?,
                None => true,
            };
            let mut status = self.status();
            if status.is_none() {
                *status = match &self.report {
                    Some(report) => report.take(self.pidfd.as_fd(), told)?,
                    None => report::collect(self.pidfd.as_fd())?,
                };
            }
            if status.is_some() || self.report.is_none() || deadline.passed() {
                return Ok(*status);
            }
        }
    }

    /// Waits until it has ended, however that went and whoever has waited for it; false once the deadline has passed.
    ///
    /// # Errors
    /// `Interrupted` when a signal handler ran.
    pub fn wait_for_end(&self, deadline: Deadline) -> Result<bool> {
        Ok(self.status().is_some() || pidfd::wait(self.pidfd.as_fd(), deadline)?)
    }

    /// Whether it is a fork server's: the server waits for it, and nothing of it is left in the system for this process.
    #[must_use]
    pub fn is_served(&self) -> bool {
        self.report.is_some()
    }

    /// Sends it a signal, by its number. Nothing happens if it has ended.
    ///
    /// # Errors
    /// `Misuse` for a number that isn't a signal's, `Os` when the system forbids it.
    pub fn signal(&self, signal: i32) -> Result<()> {
        // Under the lock, so that no other thread collects its status meanwhile and its id goes on to another.
        let status = self.status();
        if status.is_some() {
            return Ok(());
        }
        pidfd::signal(self.pidfd.as_fd(), signal)
    }

    fn status(&self) -> std::sync::MutexGuard<'_, Option<ExitStatus>> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsFd for Child {
    /// Its pidfd, which becomes readable when it ends.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}
