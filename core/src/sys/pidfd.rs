//! Descriptors of processes. Source: pidfd_open(2), poll(2), prctl(2).

use super::failed;
use crate::{Error, Result};
use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, PidfdFlags, Signal};
use rustix::process::{getpid, getppid, kill_process, pidfd_open, set_parent_process_death_signal};
use std::os::fd::{AsFd, BorrowedFd};

/// The stack of the thread that waits for the parent's end: it makes two system calls.
const WATCHER_STACK: usize = 64 << 10;

/// Has this process killed when its parent, the process `parent`, is gone, however that goes.
///
/// `by_main_thread` says that the thread that started this process is its parent's first one, which ends with the
/// process: then the kernel sends the signal (`PR_SET_PDEATHSIG`, which counts from the end of the thread). Else a
/// thread of this process waits for the parent's pidfd. Neither is inherited by children.
///
/// # Errors
/// `Os` when the system refuses a descriptor or the thread.
pub fn die_with_parent(parent: u32, by_main_thread: bool) -> Result<()> {
    let is_parent =
        || getppid().map(|pid| pid.as_raw_nonzero().get()) == Some(parent.cast_signed());
    if by_main_thread {
        set_parent_process_death_signal(Some(Signal::KILL))
            .map_err(|errno| failed("prctl", errno))?;
        // It may have gone before the kernel was told.
        if !is_parent() {
            die();
        }
        return Ok(());
    }
    let pid = Pid::from_raw(parent.cast_signed()).ok_or(Error::Misuse {
        what: "a parent's process id is a positive number",
    })?;
    let opened = pidfd_open(pid, PidfdFlags::empty());
    // Looked at afterwards: as long as it is our parent, its id can't have gone to another process.
    if !is_parent() {
        die();
    }
    let pidfd = opened.map_err(|errno| failed("pidfd_open", errno))?;
    std::thread::Builder::new()
        .name("parent-watch".into())
        .stack_size(WATCHER_STACK)
        .spawn(move || {
            while !has_ended(pidfd.as_fd()) {}
            die();
        })
        .map(drop)
        .map_err(|error| Error::Os {
            call: "pthread_create",
            errno: error.raw_os_error().unwrap_or_default(),
        })
}

/// Waits for the end of a process; false when a signal came first.
fn has_ended(pidfd: BorrowedFd<'_>) -> bool {
    let mut poll = [PollFd::from_borrowed_fd(pidfd, PollFlags::IN)];
    rustix::event::poll(&mut poll, None) == Ok(1)
}

fn die() {
    // Nobody forbids a process to kill itself.
    let _ = kill_process(getpid(), Signal::KILL);
}
