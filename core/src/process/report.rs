//! How a child ended that is a fork server's.

use super::ExitStatus;
use super::protocol::{REPLY, Reply};
use crate::sys::packet::{self, Arrived};
use crate::sys::{identity, pidfd};
use crate::{Deadline, Error, Result};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

/// What nobody knows how it ended is given, as CPython's fork server has it.
const UNKNOWN: ExitStatus = ExitStatus::Code(255);
/// How long the status of a child that has ended may come after its end, once, for who doesn't wait: the server needs a
/// moment to collect it.
const MOMENT: Duration = Duration::from_millis(50);
/// How often a wait for the server's word asks the kernel, for the case that none will come: a process that another thread
/// forked in the middle of a start may have a copy of the server's end.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How long whoever inherits a dead server's child is given to wait for it: some do it once a second.
const INHERITED: Duration = Duration::from_secs(3);
/// How often it is asked for meanwhile.
const PAUSE: Duration = Duration::from_millis(2);

/// The socket by which the server will tell how a child ended.
#[derive(Debug)]
pub(super) struct Report {
    reply: OwnedFd,
    /// The process that asked for the child, which alone is told.
    asker: u32,
    /// Somebody has waited for the moment in vain.
    is_late: AtomicBool,
    /// Set once the server is gone: until when whoever inherited the child may wait for it.
    inherited: OnceLock<Deadline>,
}

impl Report {
    pub(super) fn new(reply: OwnedFd) -> Self {
        Self {
            reply,
            asker: identity::pid(),
            is_late: AtomicBool::new(false),
            inherited: OnceLock::new(),
        }
    }

    /// Whether this process is told.
    ///
    /// # Errors
    /// As waitid(2) has it for somebody else's child.
    pub(super) fn check(&self) -> Result<()> {
        /// `ECHILD`.
        const NO_CHILD: i32 = 10;
        if self.asker == identity::pid() {
            return Ok(());
        }
        Err(Error::Os {
            call: "waitid",
            errno: NO_CHILD,
        })
    }

    /// Waits for word of a child that has ended, as long as is good before [`take`](Self::take) looks: whether it has come.
    pub(super) fn wait(&self, deadline: Deadline) -> Result<bool> {
        if self.inherited.get().is_some() {
            std::thread::sleep(deadline.remaining().unwrap_or(PAUSE).min(PAUSE));
            return Ok(true);
        }
        let is_short = deadline.remaining().is_some_and(|left| left < MOMENT);
        let until = if is_short && !self.is_late.load(Relaxed) {
            Deadline::after(MOMENT)
        } else {
            deadline.at_most(LOOK_AGAIN)
        };
        let is_there = packet::wait_readable(self.reply.as_fd(), until)?;
        if !is_there {
            self.is_late.store(true, Relaxed);
        }
        Ok(is_there)
    }

    /// The word, if it has come; if the server is gone, or told somebody else, what the system knows.
    pub(super) fn take(&self, pidfd: BorrowedFd<'_>, told: bool) -> Result<Option<ExitStatus>> {
        if !told {
            return Ok(pidfd::told(pidfd).ok().flatten().map(status));
        }
        match packet::receive(&self.reply, REPLY)? {
            Arrived::Packet { bytes, .. } => match Reply::of(&bytes) {
                Some(Reply::Ended(status)) => Ok(Some(status)),
                _ => Ok(self.without_server(pidfd)),
            },
            Arrived::End => Ok(self.without_server(pidfd)),
            Arrived::Nothing => Ok(None),
        }
    }

    /// What is known without the server's word; `None` as long as somebody may still come to know it.
    fn without_server(&self, pidfd: BorrowedFd<'_>) -> Option<ExitStatus> {
        let inherited = self
            .inherited
            .get_or_init(|| Deadline::after(INHERITED))
            .passed();
        found(pidfd).or(inherited.then_some(UNKNOWN))
    }
}

/// How a process ended whose parent doesn't tell: it is ours by now, or somebody else has waited for it, and the kernel keeps
/// what that one was told for as long as there is a pidfd (Linux 6.15). `None`: nobody has waited for it yet.
fn found(pidfd: BorrowedFd<'_>) -> Option<ExitStatus> {
    if let Ok(Some(ours)) = pidfd::collect(pidfd) {
        return Some(status(ours));
    }
    match pidfd::told(pidfd) {
        Ok(told) => told.map(status),
        Err(_) => Some(UNKNOWN),
    }
}

/// How a child of this process ended; `None` while it runs. Where somebody else has waited for it, or the kernel does so by
/// itself because SIGCHLD is ignored, the kernel tells (Linux 6.15), a moment later than that it has ended.
///
/// # Errors
/// ECHILD where it doesn't tell.
pub(super) fn collect(pidfd: BorrowedFd<'_>) -> Result<Option<ExitStatus>> {
    let not_ours = match pidfd::collect(pidfd) {
        Ok(collected) => return Ok(collected.map(status)),
        Err(error) => error,
    };
    let until = Deadline::after(MOMENT);
    loop {
        match pidfd::told(pidfd) {
            Ok(Some(told)) => return Ok(Some(status(told))),
            Ok(None) if !until.passed() => std::thread::sleep(PAUSE),
            _ => return Err(not_ours),
        }
    }
}

/// How a process ended that somebody has waited for already.
pub(super) fn afterwards(pidfd: BorrowedFd<'_>) -> ExitStatus {
    found(pidfd).unwrap_or(UNKNOWN)
}

/// As the system has it: whether by a signal, and the signal or the code.
pub(super) fn status((by_signal, number): (bool, i32)) -> ExitStatus {
    if by_signal {
        ExitStatus::Signal(number)
    } else {
        ExitStatus::Code(number)
    }
}
