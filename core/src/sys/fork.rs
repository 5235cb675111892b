//! What runs around every fork(2) of this process that goes through the C library.
#![allow(
    unsafe_code,
    reason = "fork, its handlers and the errno that they find, a forked child's environment, locks of open files"
)]

use super::{allow, demand, failed, launch};
use crate::Result;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr;
use std::sync::Arc;

/// Forks this process, which has no thread but the calling one that matters; gives the child's id, and `None` in the
/// child. Handlers of pthread_atfork(3) run.
///
/// # Errors
/// `Os` when there are no processes or no memory.
pub(crate) fn fork() -> Result<Option<u32>> {
    allow("fork").map_err(|errno| failed("fork", errno))?;
    // SAFETY: alone: no other thread can be at anything that the child would find half done.
    match unsafe { libc::fork() } {
        0 => Ok(None),
        pid if pid > 0 => Ok(Some(pid.cast_unsigned())),
        _ => {
            let errno = std::io::Error::last_os_error().raw_os_error();
            Err(failed("fork", Errno::from_raw_os_error(errno.unwrap_or(0))))
        }
    }
}

/// Ends this process at once, without the exit hooks that it has from its parent.
pub(crate) fn end(code: i32) -> ! {
    // SAFETY: ends the process.
    unsafe { libc::_exit(code) }
}

/// Forgets all variables of the environment, in a process with a single thread.
pub(crate) fn clear_environment() {
    // SAFETY: alone: nobody reads the environment meanwhile.
    unsafe { libc::clearenv() };
}

/// Sets a variable of the environment, or removes it, in a process with a single thread. The name has no `=` and no
/// zero bytes, the value no zero bytes.
pub(crate) fn set_variable(name: &OsStr, value: Option<&OsString>) {
    match value {
        // SAFETY: alone: nobody reads the environment meanwhile.
        Some(value) => unsafe { std::env::set_var(name, value) },
        // SAFETY: as above.
        None => unsafe { std::env::remove_var(name) },
    }
}

/// The signals that the calling thread blocked before it held back more: [one](hold_interrupts), or all.
#[derive(Debug)]
pub(crate) struct Interrupts(libc::sigset_t);

/// Has the calling thread, the only one, hold back SIGINT, which the terminal sends to all processes of a job: a fork server
/// must survive what its children are to die of. A forked child holds back its own, until it [meets](Interrupts::meet) them.
pub(crate) fn hold_interrupts() -> Interrupts {
    let mut before = MaybeUninit::uninit();
    let held = launch::signals(&[libc::SIGINT]);
    // SAFETY: changes the thread's mask, and writes the one that it had, which can't fail for these arguments.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, held.as_ptr(), before.as_mut_ptr()) };
    // SAFETY: written above.
    Interrupts(unsafe { before.assume_init() })
}

/// Has the calling thread hold back every signal, and so each thread that it starts meanwhile, for good.
pub(crate) fn hold_signals() -> Interrupts {
    let (mut before, mut all) = (MaybeUninit::uninit(), MaybeUninit::uninit());
    // SAFETY: initialises the value that it is given.
    unsafe { libc::sigfillset(all.as_mut_ptr()) };
    // SAFETY: changes the thread's mask, and writes the one that it had, which can't fail for these arguments.
    unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, all.as_ptr(), before.as_mut_ptr()) };
    // SAFETY: written above.
    Interrupts(unsafe { before.assume_init() })
}

impl Interrupts {
    /// Meets what came meanwhile, and what is to come, as before.
    pub(crate) fn meet(&self) {
        // SAFETY: sets the thread's mask, to one that it had.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, ptr::null_mut()) };
    }
}

/// Makes an open directory the current one.
pub(crate) fn set_directory(directory: BorrowedFd<'_>) -> Result<()> {
    demand("fchdir", || rustix::process::fchdir(directory))
}

/// Has a descriptor take the place of standard input, output or error: 0, 1 or 2.
pub(crate) fn set_stream(number: usize, source: BorrowedFd<'_>) -> Result<()> {
    demand("dup2", || match number {
        0 => rustix::stdio::dup2_stdin(source),
        1 => rustix::stdio::dup2_stdout(source),
        _ => rustix::stdio::dup2_stderr(source),
    })
}

/// Registers the three handlers for the rest of the process' life. Source: pthread_atfork(3).
pub(crate) fn around(prepare: extern "C" fn(), parent: extern "C" fn(), child: extern "C" fn()) {
    // SAFETY: handlers-are-static: functions, not closures, so they live as long as the process. It fails only
    // without memory for three pointers; then a fork behaves as one of a process that never joined.
    let _ = unsafe { libc::pthread_atfork(Some(prepare), Some(parent), Some(child)) };
}

/// Forgets the last error, so that [`fork_failed`] can tell in the parent's handler.
pub(crate) fn forget_error() {
    // SAFETY: errno-is-the-thread's: the address is this thread's own.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: errno-is-the-thread's.
    unsafe { errno.write(0) };
}

/// Closes, in the child, a descriptor of which threads of the parent had holds: they aren't there to let go of theirs.
pub(crate) fn close_in_child(descriptor: Arc<OwnedFd>) {
    let number = descriptor.as_raw_fd();
    std::mem::forget(descriptor);
    // SAFETY: forked-alone: this hold is forgotten, and nobody runs in the child who has another one.
    unsafe { libc::close(number) };
}

/// Whether the fork that the parent's handler runs for has failed: the C library runs it then too, and says why only
/// in errno. A child of a fork wrongly taken for failed finds its slot gone and joins anew.
pub(crate) fn fork_failed() -> bool {
    // SAFETY: errno-is-the-thread's.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: errno-is-the-thread's.
    let error = unsafe { errno.read() };
    // EPERM is a filter's.
    matches!(
        error,
        libc::EAGAIN | libc::ENOMEM | libc::ENOSYS | libc::EPERM
    )
}

/// A lock of one byte of a file, held by every process that has inherited it and neither closed it nor ended.
///
/// So a parent that lets go of it after a fork leaves a sign that its child is there, from the child's first instant
/// on, whatever becomes of either; and any process that has the file can look for it. One descriptor, as long as it
/// is held. Source: fcntl(2), "Open file description locks".
#[derive(Debug)]
pub(crate) struct Sign(OwnedFd);

impl Sign {
    /// Opens `file` again, for a sign that isn't set yet.
    ///
    /// # Errors
    /// `Os` where /proc isn't mounted, or no descriptor is left.
    pub(crate) fn new(file: impl AsFd) -> Result<Self> {
        let path = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        demand("open", || rustix::fs::open(path, flags, Mode::empty())).map(Self)
    }

    /// Sets it at a byte; false when the system doesn't.
    pub(crate) fn set(&self, at: u64) -> bool {
        lock_byte(self.0.as_fd(), libc::F_OFD_SETLK, at).is_some()
    }
}

/// Whether a process holds a sign at a byte of the file.
pub(crate) fn has_sign(file: impl AsFd, at: u64) -> bool {
    lock_byte(file.as_fd(), libc::F_OFD_GETLK, at)
        .is_none_or(|found| i32::from(found.l_type) != libc::F_UNLCK)
}

/// Calls fcntl with a lock for writing of one byte; what it left there, or `None` when it failed.
fn lock_byte(file: BorrowedFd<'_>, command: i32, at: u64) -> Option<libc::flock> {
    #[allow(
        clippy::cast_possible_truncation,
        reason = "the constants are small numbers, declared as longer ones than the fields"
    )]
    let mut lock = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: at.cast_signed(),
        l_len: 1,
        l_pid: 0,
    };
    allow("fcntl").ok()?;
    // SAFETY: the kernel reads and writes the one structure that it is given, for the length of the call.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), command, &raw mut lock) };
    (result == 0).then_some(lock)
}
