//! Starting a program, and what runs when this one ends.
//!
//! posix_spawn(3), not fork(2): the C library starts the child on the parent's memory (CLONE_VM and CLONE_VFORK) and
//! execs at once, so a start costs the same whatever the parent has in memory. std's `Command` does so too, but only
//! without a `pre_exec`, and without one it can't hand over a descriptor that is closed on exec. Here the child gets
//! exactly the chosen descriptors, and no thread of this process that execs meanwhile gets any of them.
#![allow(
    unsafe_code,
    reason = "posix_spawn, its attributes and atexit are the C library's; takes over inherited descriptors"
)]

use super::descriptor::{FIRST_DESCRIPTOR, copy_above_streams};
use super::{allow, demand, failed, pidfd};
use crate::{Error, Result};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::FdFlags;
use std::ffi::{CStr, CString, c_char, c_int};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::ptr;

/// What is started, and what it finds when it begins.
#[derive(Debug)]
pub(crate) struct Plan<'a> {
    pub(crate) path: &'a CStr,
    pub(crate) arguments: &'a [CString],
    pub(crate) environment: &'a [CString],
    /// What takes the places of this process' standard input, output and error.
    pub(crate) streams: [Option<BorrowedFd<'a>>; 3],
    pub(crate) directory: Option<BorrowedFd<'a>>,
    /// What it has from number 3 on; it has no other.
    pub(crate) descriptors: &'a [BorrowedFd<'a>],
}

/// Starts a program. Signals are as std's `Command` leaves them: none blocked, SIGPIPE at its default.
///
/// Gives the process' id and a pidfd. Takes as long as the exec, about 1 ms.
///
/// # Errors
/// `Os` when the program can't be started, as "posix_spawn"; or there are no descriptors, no memory or no processes.
pub(crate) fn start(plan: &Plan<'_>) -> Result<(u32, OwnedFd)> {
    // Above the numbers that they will have, so that no copy overwrites one that is still to be copied.
    let above = (FIRST_DESCRIPTOR..)
        .nth(plan.descriptors.len())
        .unwrap_or(RawFd::MAX);
    let mut actions = Actions::new(above)?;
    if let Some(directory) = plan.directory {
        actions.enter(directory)?;
    }
    for (target, source) in (0..).zip(plan.streams) {
        if let Some(source) = source {
            actions.copy(source, target)?;
        }
    }
    for (target, source) in (FIRST_DESCRIPTOR..).zip(plan.descriptors) {
        actions.copy(*source, target)?;
    }
    actions.close_from(above)?;
    let attributes = Attributes::new()?;
    let (arguments, environment) = (pointers(plan.arguments), pointers(plan.environment));
    // A child without a pidfd couldn't be waited for. So one is opened first, which tells whether that is allowed, and
    // keeps a descriptor for the child's.
    let mine = pidfd::own_pidfd()?;
    allow("posix_spawn").map_err(|errno| failed("posix_spawn", errno))?;
    let mut pid: libc::pid_t = 0;
    // SAFETY: strings-end: both tables end with a null and their strings outlive the call; `actions` and `attributes`
    // are initialised.
    let result = unsafe {
        libc::posix_spawn(
            &raw mut pid,
            plan.path.as_ptr(),
            actions.list.as_ptr(),
            attributes.0.as_ptr(),
            arguments.as_ptr(),
            environment.as_ptr(),
        )
    };
    check("posix_spawn", result)?;
    drop((mine, actions));
    // Another thread may be quicker and take the descriptor: then the child is ended.
    let pid = pid.cast_unsigned();
    pidfd::open_child(pid).map(|pidfd| (pid, pidfd))
}

/// Runs `hook` when this process ends by exit(3) or by returning from `main`; forked children inherit it.
///
/// # Errors
/// `Exhausted` when the C library has no memory for it.
pub fn at_exit(hook: extern "C" fn()) -> Result<()> {
    // SAFETY: handlers-are-static: a function, not a closure, so it lives as long as the process.
    match unsafe { libc::atexit(hook) } {
        0 => Ok(()),
        _ => Err(Error::Exhausted {
            what: "exit hooks",
            limit: 0,
        }),
    }
}

/// A copy of the descriptor of that number, for a face whose language knows descriptors as numbers: closed on exec, and none
/// of the standard streams.
///
/// # Errors
/// `Os` when it isn't open, or there is no room for one more.
pub fn copy_of(number: RawFd) -> Result<OwnedFd> {
    if number < 0 {
        let errno = rustix::io::Errno::BADF;
        return Err(failed("fcntl(F_DUPFD_CLOEXEC)", errno));
    }
    // SAFETY: descriptor-lent: borrowed for this one call, which fails cleanly for a number that isn't open.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    copy_above_streams(borrowed)
}

/// Whether the descriptor of that number is open, and the null device's: what a program has closed without knowing whose it
/// was may be another file by now. One system call.
#[must_use]
pub fn is_null_device(number: RawFd) -> bool {
    if number < 0 {
        return false;
    }
    // SAFETY: descriptor-lent: borrowed for this one call, which fails cleanly for a number that isn't open.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    rustix::fs::fstat(borrowed).is_ok_and(|status| {
        FileType::from_raw_mode(status.st_mode) == FileType::CharacterDevice
            && status.st_rdev == rustix::fs::makedev(1, 3)
    })
}

/// Opens a directory that a process may have as its current one.
pub(crate) fn directory(path: &Path) -> Result<OwnedFd> {
    // Its own entry `.` opens only for who may enter it; an empty path names nothing.
    let inside = path.join(if path.as_os_str().is_empty() { "" } else { "." });
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    demand("open", || rustix::fs::open(inside, flags, Mode::empty()))
}

/// Takes over a descriptor that a parent [passed](crate::Spec::pass) to this program, under the number that it has here.
///
/// # Errors
/// `Malformed` when no descriptor has that number that came by exec: one that was opened here is closed on exec, and so is
/// one that was taken over.
pub fn inherited(number: RawFd) -> Result<OwnedFd> {
    const WHAT: Error = Error::Malformed {
        what: "number of an inherited descriptor",
        at: 0,
    };
    if number < FIRST_DESCRIPTOR {
        return Err(WHAT);
    }
    // SAFETY: descriptor-inherited: borrowed for this call, whose use of it fails cleanly for a number that isn't open.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    let flags = rustix::io::fcntl_getfd(borrowed).map_err(|_| WHAT)?;
    if flags.contains(FdFlags::CLOEXEC) {
        return Err(WHAT);
    }
    demand("fcntl(F_SETFD)", || {
        rustix::io::fcntl_setfd(borrowed, flags | FdFlags::CLOEXEC)
    })?;
    // SAFETY: descriptor-inherited: it is open, and nobody in this program has opened it or taken it over.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

fn check(call: &'static str, result: c_int) -> Result<()> {
    match result {
        0 => Ok(()),
        errno => Err(Error::Os { call, errno }),
    }
}

/// A table as exec wants it: ended by a null.
fn pointers(strings: &[CString]) -> Vec<*mut c_char> {
    let each = strings.iter().map(|string| string.as_ptr().cast_mut());
    each.chain([ptr::null_mut()]).collect()
}

/// What happens to descriptors in the child, in order; and the copies that it works with.
struct Actions {
    list: MaybeUninit<libc::posix_spawn_file_actions_t>,
    sources: Vec<OwnedFd>,
    /// The least number that a copy may have.
    above: RawFd,
}

impl Actions {
    fn new(above: RawFd) -> Result<Self> {
        let mut list = MaybeUninit::uninit();
        // SAFETY: initialises the value that it is given.
        let result = unsafe { libc::posix_spawn_file_actions_init(list.as_mut_ptr()) };
        check("posix_spawn_file_actions_init", result)?;
        Ok(Self {
            list,
            sources: Vec::new(),
            above,
        })
    }

    /// A copy of a descriptor that lives as long as this does.
    fn keep(&mut self, source: BorrowedFd<'_>) -> Result<RawFd> {
        let copy = demand("fcntl(F_DUPFD_CLOEXEC)", || {
            rustix::io::fcntl_dupfd_cloexec(source, self.above)
        })?;
        let number = copy.as_raw_fd();
        self.sources.push(copy);
        Ok(number)
    }

    fn copy(&mut self, source: BorrowedFd<'_>, target: RawFd) -> Result<()> {
        let source = self.keep(source)?;
        let list = self.list.as_mut_ptr();
        // SAFETY: spawn-initialised: by `new`.
        let result = unsafe { libc::posix_spawn_file_actions_adddup2(list, source, target) };
        check("posix_spawn_file_actions_adddup2", result)
    }

    /// Makes a directory the current one.
    fn enter(&mut self, directory: BorrowedFd<'_>) -> Result<()> {
        let directory = self.keep(directory)?;
        let list = self.list.as_mut_ptr();
        // SAFETY: spawn-initialised: by `new`.
        let result = unsafe { libc::posix_spawn_file_actions_addfchdir_np(list, directory) };
        check("posix_spawn_file_actions_addfchdir_np", result)
    }

    /// Needs glibc 2.34.
    fn close_from(&mut self, first: RawFd) -> Result<()> {
        let list = self.list.as_mut_ptr();
        // SAFETY: spawn-initialised: by `new`.
        let result = unsafe { libc::posix_spawn_file_actions_addclosefrom_np(list, first) };
        check("posix_spawn_file_actions_addclosefrom_np", result)
    }
}

impl Drop for Actions {
    fn drop(&mut self) {
        // SAFETY: spawn-initialised: by `new`, and not used after this.
        unsafe { libc::posix_spawn_file_actions_destroy(self.list.as_mut_ptr()) };
    }
}

/// The child's signals: none blocked, SIGPIPE at its default, which Rust's runtime had changed.
struct Attributes(MaybeUninit<libc::posix_spawnattr_t>);

impl Attributes {
    fn new() -> Result<Self> {
        let mut attributes = MaybeUninit::uninit();
        // SAFETY: initialises the value that it is given.
        let result = unsafe { libc::posix_spawnattr_init(attributes.as_mut_ptr()) };
        check("posix_spawnattr_init", result)?;
        let mut this = Self(attributes);
        let none = signals(&[]);
        let pipe = signals(&[libc::SIGPIPE]);
        let attributes = this.0.as_mut_ptr();
        // SAFETY: spawn-initialised: above.
        let result = unsafe { libc::posix_spawnattr_setsigmask(attributes, none.as_ptr()) };
        check("posix_spawnattr_setsigmask", result)?;
        // SAFETY: spawn-initialised: above.
        let result = unsafe { libc::posix_spawnattr_setsigdefault(attributes, pipe.as_ptr()) };
        check("posix_spawnattr_setsigdefault", result)?;
        #[expect(
            clippy::cast_possible_truncation,
            reason = "two low bits of a short that the C library declares as an int"
        )]
        let flags = (libc::POSIX_SPAWN_SETSIGMASK | libc::POSIX_SPAWN_SETSIGDEF) as libc::c_short;
        // SAFETY: spawn-initialised: above.
        let result = unsafe { libc::posix_spawnattr_setflags(attributes, flags) };
        check("posix_spawnattr_setflags", result)?;
        Ok(this)
    }
}

impl Drop for Attributes {
    fn drop(&mut self) {
        // SAFETY: spawn-initialised: by `new`, and not used after this.
        unsafe { libc::posix_spawnattr_destroy(self.0.as_mut_ptr()) };
    }
}

/// A set of these signals.
pub(super) fn signals(members: &[c_int]) -> MaybeUninit<libc::sigset_t> {
    let mut set = MaybeUninit::uninit();
    // SAFETY: initialises the value that it is given.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    for signal in members {
        // SAFETY: the set was initialised above, and the number is a signal's.
        unsafe { libc::sigaddset(set.as_mut_ptr(), *signal) };
    }
    set
}
