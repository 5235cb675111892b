//! Who a process is beyond its pid, and whether it is gone.

use super::{allow, ask, demand, failed};
use crate::{Error, Result};
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions};
use std::fs;
use std::hint::black_box;
use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The calling process' id.
pub(crate) fn pid() -> u32 {
    #[cfg(simulated)]
    if let Some(system) = super::simulation::system() {
        return system.pid();
    }
    rustix::process::getpid()
        .as_raw_nonzero()
        .get()
        .cast_unsigned()
}

/// 128 random bits.
pub(crate) fn random() -> [u64; 2] {
    let mut bytes = [0; 16];
    let flags = rustix::rand::GetRandomFlags::empty();
    let filled = ask("getrandom", || rustix::rand::getrandom(&mut bytes, flags));
    if filled != Ok(bytes.len()) {
        // No entropy yet, or none allowed: the id guards against mistakes, not against attacks.
        bytes = (std::time::UNIX_EPOCH
            .elapsed()
            .map_or(1, |time| time.as_nanos())
            ^ u128::from(pid()))
        .to_le_bytes();
    }
    let (low, high) = bytes.split_at(8);
    [low, high].map(|half| {
        half.iter()
            .rev()
            .fold(0, |sum, byte| sum << 8 | u64::from(*byte))
    })
}

/// Random bytes that nobody can guess: not more than 256.
///
/// # Errors
/// `Os` when the system has none, or refuses them.
pub(crate) fn secret<const BYTES: usize>() -> Result<[u8; BYTES]> {
    let mut bytes = [0; BYTES];
    let flags = rustix::rand::GetRandomFlags::empty();
    // So few come whole, once there are any.
    demand("getrandom", || rustix::rand::getrandom(&mut bytes, flags))?;
    Ok(bytes)
}

/// Whether somebody knows a secret: it takes as long whatever the bytes are.
pub(crate) fn is_same<const BYTES: usize>(secret: &[u8; BYTES], other: &[u8; BYTES]) -> bool {
    let mut differs = 0;
    for (mine, other) in secret.iter().zip(other) {
        differs = black_box(differs | (mine ^ other));
    }
    differs == 0
}

/// What tells a process from others of its pid, and from itself after exec.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Origin {
    /// The start in clock ticks after boot, which together with the pid names a process for ever; or [`NUMBERED`] and the
    /// kernel's number of it; 0: not known.
    pub(crate) started: u64,
    /// Where the first thread's stack begins, which exec chooses anew; 0: not known.
    pub(crate) stack: u64,
}

/// What `/proc/PID/stat` tells.
struct Stat {
    /// The state of the first thread.
    state: char,
    /// The first thread is on its way out.
    exits: bool,
    /// Threads that have not ended, and the first one, which stays until the process is waited for.
    threads: u64,
    origin: Origin,
}

/// `None` when there is no such process. Source: proc_pid_stat(5).
fn stat(pid: u32) -> Option<Stat> {
    /// `PF_EXITING` of the kernel's include/linux/sched.h.
    const EXITING: u64 = 4;
    allow("open").ok()?;
    // In one piece, which every fork pays for: longer than 52 numbers and a name of 64 bytes can be.
    let mut bytes = [0; 2048];
    let mut file = fs::File::open(format!("/proc/{pid}/stat")).ok()?;
    let length = loop {
        match file.read(&mut bytes) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            read => break read.ok()?,
        }
    };
    let text = String::from_utf8_lossy(&bytes[..length]);
    let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace();
    // By the manual's count these are the fields 3, 9, 20, 22 and 28.
    let state = fields.next()?.chars().next()?;
    let flags: u64 = fields.nth(5)?.parse().ok()?;
    let threads = fields.nth(10)?.parse().ok()?;
    let started = fields.nth(1)?.parse().ok()?;
    let stack = fields.nth(5)?.parse().ok()?;
    Some(Stat {
        state,
        exits: flags & EXITING != 0,
        threads,
        origin: Origin { started, stack },
    })
}

/// In [`Origin::started`]: the other bits are the process' number.
const NUMBERED: u64 = 1 << 63;

/// The calling process'; all zero where nothing tells, which matches any process of its pid.
///
/// The first look at a process' own folder in /proc takes 40 µs, and as much again when it ends: so this asks for the
/// kernel's number of it, which takes three, and the C library for the stack.
pub(crate) fn origin() -> Origin {
    #[cfg(simulated)]
    if let Some(system) = super::simulation::system() {
        let started = system.started();
        return Origin { started, stack: 0 };
    }
    let opened = ask("pidfd_open", || {
        rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty())
    });
    let number = opened.ok().and_then(numbered);
    // A forked child has its parent's, and need not ask the loader.
    let known = match STACK.load(Relaxed) {
        0 => super::image::first_stack(),
        stack => stack,
    };
    let origin = match number {
        Some(started) if known != 0 => Origin {
            started,
            stack: known,
        },
        _ => stat(pid()).map_or_else(Origin::default, |stat| stat.origin),
    };
    STACK.store(origin.stack, Relaxed);
    origin
}

/// Where the stack of this process' first thread begins, which fork keeps and exec forgets; 0: not known yet.
static STACK: AtomicU64 = AtomicU64::new(0);

/// The number that a process has in the kernel, for ever its own, with [`NUMBERED`]; `None` before Linux 6.9.
fn numbered(pidfd: impl AsFd) -> Option<u64> {
    /// `PID_FS_MAGIC` of the kernel's include/uapi/linux/magic.h: before, all pidfds have the same inode.
    const PIDFS: u64 = 0x5049_4446;
    let system = ask("fstatfs", || rustix::fs::fstatfs(&pidfd)).ok()?;
    let status = ask("fstat", || rustix::fs::fstat(&pidfd)).ok()?;
    (system.f_type.cast_unsigned() == PIDFS).then_some(status.st_ino | NUMBERED)
}

/// Whether the process `pid` of that origin is gone, so that none of its threads will run again: it exited, was killed
/// (even if nobody has waited for it yet), or was replaced by exec.
///
/// `marked` is the thread whose word the kernel has marked, if it has. A few system calls.
pub(crate) fn is_gone(pid: u32, origin: Origin, marked: Option<MarkedThread<'_>>) -> bool {
    #[cfg(simulated)]
    if let Some(system) = super::simulation::system() {
        return system.is_gone(pid, origin.started);
    }
    #[cfg(crash_points)]
    if super::dead::is_declared(pid) {
        return true;
    }
    let Some(raw) = process(pid) else {
        return true;
    };
    let is_numbered = origin.started & NUMBERED != 0;
    match ask("pidfd_open", || {
        rustix::process::pidfd_open(raw, PidfdFlags::empty())
    }) {
        Err(rustix::io::Errno::SRCH) => return true,
        Ok(descriptor) => {
            let mut poll = [rustix::event::PollFd::new(
                &descriptor,
                rustix::event::PollFlags::IN,
            )];
            let now = rustix::fs::Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            };
            if ask("poll", || rustix::event::poll(&mut poll, Some(&now))) == Ok(1) {
                return true;
            }
            if is_numbered && numbered(&descriptor).is_some_and(|number| number != origin.started) {
                return true;
            }
        }
        Err(_) => {}
    }
    let Some(now) = stat(pid) else {
        // It ended between the calls; or /proc isn't there, or no descriptor, and the pid is all that can be asked.
        return !exists(pid);
    };
    let differs = |then: u64, now: u64| then != 0 && now != 0 && then != now;
    let is_another = !is_numbered && differs(origin.started, now.origin.started);
    let was_replaced = differs(origin.stack, now.origin.stack);
    // Where no pidfd is to be had: all threads have ended, and nobody has waited for it yet.
    let has_ended = matches!(now.state, 'Z' | 'X') && now.threads <= 1;
    if is_another || was_replaced || has_ended {
        return true;
    }
    // Where the stack isn't told, or exec chose the same: a first thread that ends by itself, while others run on, is
    // marked a moment before it's a zombie, and has no memory to be asked about then.
    let first_lives = !now.exits && !matches!(now.state, 'Z' | 'X');
    marked.is_some_and(|marked| {
        first_lives && (marked.tid == pid || maps(pid, marked.file) == Some(false))
    })
}

/// A thread whose word the kernel has marked, in a file that its process had mapped.
#[derive(Debug, Clone, Copy)]
pub(crate) struct MarkedThread<'a> {
    pub(crate) tid: u32,
    pub(crate) file: BorrowedFd<'a>,
}

/// Whether a process has a file mapped; `None` where it may not be looked into. Source: proc_pid_maps(5).
fn maps(pid: u32, file: BorrowedFd<'_>) -> Option<bool> {
    let stat = ask("fstat", || rustix::fs::fstat(file)).ok()?;
    let (major, minor) = (
        rustix::fs::major(stat.st_dev),
        rustix::fs::minor(stat.st_dev),
    );
    let (device, inode) = (format!("{major:02x}:{minor:02x}"), stat.st_ino.to_string());
    allow("open").ok()?;
    let text = fs::read(format!("/proc/{pid}/maps")).ok()?;
    let text = String::from_utf8_lossy(&text);
    let is_it = |line: &str| {
        let mut fields = line.split_ascii_whitespace().skip(3);
        fields.next() == Some(&device) && fields.next() == Some(&inode)
    };
    (!text.is_empty()).then(|| text.lines().any(is_it))
}

/// Whether the thread `tid` exists, and has not ended. An id may have gone to another thread since: only for owners
/// that the kernel doesn't mark.
pub(crate) fn thread_exists(tid: u32) -> bool {
    #[cfg(simulated)]
    if let Some(system) = super::simulation::system() {
        return system.thread_exists(tid);
    }
    match stat(tid) {
        // A process that nobody has waited for keeps the id of its first thread.
        Some(now) => !matches!(now.state, 'Z' | 'X'),
        None => exists(tid),
    }
}

/// Whether the thread `tid` is stopped, so that it does nothing until somebody has it go on; false where /proc isn't mounted.
pub(crate) fn is_stopped(tid: u32) -> bool {
    #[cfg(simulated)]
    if let Some(system) = super::simulation::system() {
        return system.is_stopped(tid);
    }
    // By a signal, or by who traces it.
    stat(tid).is_some_and(|now| matches!(now.state, 'T' | 't'))
}

/// Whether a process or a thread has that id, as far as can be told without a descriptor: one that has ended has it
/// until it is waited for, which only its parent can tell.
fn exists(id: u32) -> bool {
    let Some(raw) = process(id) else {
        return false;
    };
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    let ended = ask("waitid", || {
        rustix::process::waitid(WaitId::Pid(raw), options)
    });
    let asked = ask("kill", || rustix::process::test_kill_process(raw));
    !matches!(ended, Ok(Some(_))) && asked != Err(rustix::io::Errno::SRCH)
}

/// Threads of this process that will run again, beside the calling one; a first thread that sleeps in futex(2) isn't
/// counted if `parked_first`. One that is on its way out isn't either: a thread that was joined is there for a moment.
///
/// # Errors
/// `Os` where /proc isn't mounted.
pub(crate) fn other_threads(parked_first: bool) -> Result<usize> {
    const LIST: &str = "/proc/self/task";
    // A folder has a link for itself, one for its name, and here one for each thread.
    if demand("stat of /proc/self/task", || rustix::fs::stat(LIST))?.st_nlink == 3 {
        return Ok(0);
    }
    allow("open").map_err(|errno| failed("open", errno))?;
    let listed = fs::read_dir(LIST).map_err(|error| Error::Os {
        call: "open",
        errno: error.raw_os_error().unwrap_or_default(),
    })?;
    let me = rustix::thread::gettid().as_raw_nonzero().get();
    let threads = listed.flatten().filter_map(|task| {
        let tid: u32 = task.file_name().to_str()?.parse().ok()?;
        let counts = tid != me.cast_unsigned()
            && stat(tid).is_some_and(|it| !it.exits)
            && !(parked_first && tid == pid() && is_parked(tid));
        counts.then_some(tid)
    });
    Ok(threads.count())
}

/// Whether a thread of this process sleeps in futex(2), so that it holds nothing of std's but what it waits for.
/// Source: proc_pid_syscall(5).
fn is_parked(tid: u32) -> bool {
    let call = fs::read_to_string(format!("/proc/self/task/{tid}/syscall")).unwrap_or_default();
    let number = call.split(' ').next().and_then(|word| word.parse().ok());
    number == Some(libc::SYS_futex)
}

/// The id of a process as the system wants it; `None` for a number that can't be one.
fn process(pid: u32) -> Option<Pid> {
    Pid::from_raw(i32::try_from(pid).ok()?)
}

#[cfg(test)]
mod tests {
    use super::{Origin, is_gone, is_stopped, maps, origin, pid, process, stat, thread_exists};
    use crate::sys::image::first_stack;
    use crate::sys::mapping::{self, Mapping};
    use rustix::process::{Signal, kill_process};
    use std::os::fd::AsFd;
    use std::process::{Command, Stdio};

    /// A program that ends when its standard input does.
    fn another() -> std::process::Child {
        let mut command = Command::new("cat");
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        command.spawn().unwrap()
    }

    #[test]
    fn a_program_that_came_by_exec_has_not_the_arena_mapped() {
        let file = mapping::create().unwrap();
        let mapped = Mapping::new(&file, 0, 4096).unwrap();
        // Back from spawn it has exec'ed.
        let mut other = another();
        assert_eq!(maps(pid(), file.as_fd()), Some(true));
        assert_eq!(maps(other.id(), file.as_fd()), Some(false));
        drop(mapped);
        assert_eq!(maps(pid(), file.as_fd()), Some(false));
        drop(other.stdin.take());
        other.wait().unwrap();
        assert_eq!(maps(other.id(), file.as_fd()), None);
    }

    #[test]
    fn a_process_that_got_anothers_id_is_told_from_it() {
        let told = stat(pid()).unwrap().origin;
        assert!([0, told.stack].contains(&first_stack()));
        for mine in [origin(), told] {
            let started = mine.started ^ 1;
            assert!(!is_gone(pid(), mine, None));
            assert!(is_gone(pid(), Origin { started, ..mine }, None));
        }
    }

    #[test]
    fn the_thread_of_a_zombie_has_ended() {
        let mut other = another();
        assert!(thread_exists(other.id()) && thread_exists(pid()));
        drop(other.stdin.take());
        // A zombie until it is waited for.
        while thread_exists(other.id()) {
            std::thread::yield_now();
        }
        other.wait().unwrap();
    }

    #[test]
    fn a_stopped_thread_is_known_until_it_goes_on() {
        let mut other = another();
        let signal = |signal| kill_process(process(other.id()).unwrap(), signal).unwrap();
        assert!(!is_stopped(other.id()) && !is_stopped(pid()));
        for _ in 0..3 {
            signal(Signal::STOP);
            while !is_stopped(other.id()) {
                std::thread::yield_now();
            }
            signal(Signal::CONT);
            while is_stopped(other.id()) {
                std::thread::yield_now();
            }
        }
        drop(other.stdin.take());
        other.wait().unwrap();
    }
}
