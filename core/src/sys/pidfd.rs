//! Descriptors of processes, and who is at the other end of one. Source: pidfd_open(2), poll(2), waitid(2), prctl(2), unix(7);
//! include/uapi/linux/pidfd.h.
#![allow(
    unsafe_code,
    reason = "an ioctl that rustix doesn't know: how a process ended that isn't ours; a socket option that it reads as a \
              process id that is never 0"
)]

use super::descriptor::{self, above_streams};
use super::{allow, ask, demand, failed, thread};
use crate::{Deadline, Error, Result};
use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};
use rustix::process::{
    WaitOptions, getpid, getppid, kill_process, pidfd_open, pidfd_send_signal,
    set_parent_process_death_signal, waitpid,
};
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Opens the process of that id, which must be this one, or a child of it that nobody has waited for.
pub(crate) fn open(pid: u32) -> Result<OwnedFd> {
    let pid = Pid::from_raw(pid.cast_signed()).ok_or(Error::Misuse {
        what: "a process id is a positive number",
    })?;
    let opened = demand("pidfd_open", || pidfd_open(pid, PidfdFlags::empty()))?;
    above_streams(opened)
}

/// Opens the calling process, for its children, who see by it when their parent is gone.
///
/// # Errors
/// `Os` when there is no descriptor.
pub fn own_pidfd() -> Result<OwnedFd> {
    open(std::process::id())
}

/// Opens a child that was just started, which nobody has waited for. One that can't be opened couldn't be waited for: it
/// is killed.
pub(crate) fn open_child(pid: u32) -> Result<OwnedFd> {
    const GONE: i32 = rustix::io::Errno::SRCH.raw_os_error();
    let opened = open(pid);
    match &opened {
        // This process ignores SIGCHLD: it has ended, and its id may be another's by now.
        Ok(_) | Err(Error::Os { errno: GONE, .. }) => {}
        Err(_) => end(pid),
    }
    opened
}

/// Kills the child of that id, which nobody has waited for, and waits for it.
pub(crate) fn end(pid: u32) {
    if let Some(pid) = Pid::from_raw(pid.cast_signed()) {
        // Nothing of this is refused to a parent.
        let _ = kill_process(pid, Signal::KILL);
        let wait = || waitpid(Some(pid), WaitOptions::empty());
        while matches!(wait(), Err(rustix::io::Errno::INTR)) {}
    }
}

/// Waits until the process has ended; false once the deadline has passed.
pub(crate) fn wait(pidfd: BorrowedFd<'_>, deadline: Deadline) -> Result<bool> {
    let mut poll = [PollFd::from_borrowed_fd(pidfd, PollFlags::IN)];
    descriptor::poll(&mut poll, deadline).map(|ready| ready == 1)
}

/// Opens the process of that id, if it is the parent of this one: `None` if it isn't any more, so it is gone.
pub(crate) fn open_parent(pid: u32) -> Result<Option<OwnedFd>> {
    let opened = open(pid);
    // Looked at afterwards: as long as it is our parent, its id can't have gone to another process.
    if !is_parent(pid) {
        return Ok(None);
    }
    opened.map(Some)
}

/// A descriptor that is ready for ever, as the pidfd of a process that is gone: a pipe into which nobody writes.
pub(crate) fn ended() -> Result<OwnedFd> {
    let made = demand("pipe2", || {
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
    });
    made.map(|(reader, _writer)| reader)
}

/// Whether this process is a child of that one.
fn is_parent(pid: u32) -> bool {
    getppid().map(|parent| parent.as_raw_nonzero().get()) == Some(pid.cast_signed())
}

/// Collects the status of a child that has ended: whether by a signal, and the signal or the code.
pub(crate) fn collect(pidfd: BorrowedFd<'_>) -> Result<Option<(bool, i32)>> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    let status = demand("waitid", || {
        rustix::process::waitid(WaitId::PidFd(pidfd), options)
    })?;
    Ok(status.and_then(|status| {
        let code = status.exit_status().map(|code| (false, code));
        code.or_else(|| status.terminating_signal().map(|signal| (true, signal)))
    }))
}

/// Whether a child runs: it has neither ended nor been stopped. What there is to collect stays.
pub(crate) fn runs(pidfd: BorrowedFd<'_>) -> bool {
    let ended_or_stopped = WaitIdOptions::EXITED | WaitIdOptions::STOPPED;
    let options = ended_or_stopped | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    let status = ask("waitid", || {
        rustix::process::waitid(WaitId::PidFd(pidfd), options)
    });
    matches!(status, Ok(None))
}

/// What `PIDFD_GET_INFO` tells: `struct pidfd_info` as of Linux 6.15, its first version with an exit status.
#[repr(C)]
#[derive(Default)]
struct Info {
    mask: u64,
    _unused: [u32; 13],
    exit_code: i32,
}

/// The status of a process that somebody else has waited for, as [`collect`] gives it; `None` as long as nobody has.
///
/// # Errors
/// `Os` where the system doesn't tell: before Linux 6.15.
pub(crate) fn told(pidfd: BorrowedFd<'_>) -> Result<Option<(bool, i32)>> {
    const GET_INFO: rustix::ioctl::Opcode = rustix::ioctl::opcode::read_write::<Info>(0xff, 11);
    const EXIT: u64 = 1 << 3;
    let mut info = Info {
        mask: EXIT,
        ..Info::default()
    };
    // SAFETY: pidfd-info: the number names this structure, which holds for any value of its fields.
    let request = unsafe { rustix::ioctl::Updater::<GET_INFO, Info>::new(&mut info) };
    demand("ioctl(PIDFD_GET_INFO)", || {
        // SAFETY: pidfd-info: the kernel reads and writes the one structure, whose size the number has.
        unsafe { rustix::ioctl::ioctl(pidfd, request) }
    })?;
    let signal = info.exit_code & 0x7f;
    Ok((info.mask & EXIT != 0).then_some(if signal == 0 {
        (false, info.exit_code >> 8 & 0xff)
    } else {
        (true, signal)
    }))
}

/// The process at the other end of a unix socket, as it was when it connected, or began to listen.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer {
    /// Its id here; 0: it has none in this process' namespace.
    pub(crate) pid: u32,
    user: u32,
}

impl Peer {
    /// Whether it is this process' user's, or the administrator's.
    pub(crate) fn is_own(self) -> bool {
        self.user == 0 || self.user == rustix::process::geteuid().as_raw()
    }
}

/// Who is at the other end of a unix socket; `None` where the system doesn't tell.
pub(crate) fn peer(socket: BorrowedFd<'_>) -> Option<Peer> {
    let mut told = libc::ucred {
        pid: 0,
        uid: u32::MAX,
        gid: u32::MAX,
    };
    let mut length = libc::socklen_t::try_from(size_of::<libc::ucred>()).ok()?;
    allow("getsockopt").ok()?;
    // SAFETY: peer-credentials: the kernel writes at most so many bytes to the one structure, which holds for any value.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut told).cast(),
            &raw mut length,
        )
    };
    (result == 0).then_some(Peer {
        pid: told.pid.cast_unsigned(),
        user: told.uid,
    })
}

/// Sends a signal, by its number; nothing happens if the process has ended.
pub(crate) fn signal(pidfd: BorrowedFd<'_>, signal: i32) -> Result<()> {
    let signal = Signal::from_named_raw(signal).ok_or(Error::Misuse {
        what: "no signal has that number",
    })?;
    match ask("pidfd_send_signal", || pidfd_send_signal(pidfd, signal)) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(errno) => Err(failed("pidfd_send_signal", errno)),
    }
}

/// Whether the calling thread is the first one of this process, which ends with it.
#[must_use]
pub fn is_main_thread() -> bool {
    rustix::thread::gettid() == getpid()
}

/// Has this process killed when its parent, the process `parent`, is gone, however that goes.
///
/// `by_main_thread` says that the thread that started this process is its parent's first one, which ends with the
/// process: then the kernel sends the signal (`PR_SET_PDEATHSIG`, which counts from the end of the thread). Else a
/// thread of this process waits for the parent's pidfd. Neither is inherited by children.
///
/// # Errors
/// `Os` when the system refuses a descriptor or the thread.
pub fn die_with_parent(parent: u32, by_main_thread: bool) -> Result<()> {
    if by_main_thread {
        demand("prctl", || {
            set_parent_process_death_signal(Some(Signal::KILL))
        })?;
        // It may have gone before the kernel was told.
        if !is_parent(parent) {
            die();
        }
        return Ok(());
    }
    let Some(pidfd) = open_parent(parent)? else {
        die();
        return Ok(());
    };
    die_with(pidfd)
}

/// Has this process killed when the process of `pidfd` is gone, which need not be its parent: a thread waits for that.
/// Children don't inherit it.
///
/// # Errors
/// `Os` when the system refuses the thread.
pub fn die_with(pidfd: OwnedFd) -> Result<()> {
    let watch = move || {
        while !has_ended(pidfd.as_fd()) {}
        die();
    };
    thread::spawn("parent-watch", watch).map(drop)
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
