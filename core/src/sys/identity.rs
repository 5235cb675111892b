//! Who a process is beyond its pid, and whether it is gone.

use rustix::process::{Pid, PidfdFlags};
use std::fs;

/// The calling process' id.
pub(crate) fn pid() -> u32 {
    rustix::process::getpid()
        .as_raw_nonzero()
        .get()
        .cast_unsigned()
}

/// 128 random bits.
pub(crate) fn random() -> [u64; 2] {
    let mut bytes = [0; 16];
    let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
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

/// What tells a process from others of its pid, and from itself after exec.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Origin {
    /// The start in clock ticks after boot, which together with the pid names a process for ever; 0: not known.
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
    origin: Origin,
}

/// `None` when there is no such process. Source: proc_pid_stat(5).
fn stat(pid: u32) -> Option<Stat> {
    /// `PF_EXITING` of the kernel's include/linux/sched.h.
    const EXITING: u64 = 4;
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace();
    // By the manual's count these are the fields 3, 9, 22 and 28.
    let state = fields.next()?.chars().next()?;
    let flags: u64 = fields.nth(5)?.parse().ok()?;
    let started = fields.nth(12)?.parse().ok()?;
    let stack = fields.nth(5)?.parse().ok()?;
    Some(Stat {
        state,
        exits: flags & EXITING != 0,
        origin: Origin { started, stack },
    })
}

/// The calling process'; all zero where /proc isn't mounted, which matches any process of its pid.
pub(crate) fn origin() -> Origin {
    stat(pid()).map_or_else(Origin::default, |stat| stat.origin)
}

/// Whether the process `pid` of that origin is gone, so that none of its threads will run again: it exited, was killed
/// (even if nobody has waited for it yet), or was replaced by exec.
///
/// `marked` says that the kernel has marked the word of its thread `tid`. A few system calls.
pub(crate) fn is_gone(pid: u32, origin: Origin, tid: u32, marked: bool) -> bool {
    #[cfg(crash_points)]
    if super::dead::is_declared(pid) {
        return true;
    }
    let Some(raw) = Pid::from_raw(pid.cast_signed()) else {
        return true;
    };
    match rustix::process::pidfd_open(raw, PidfdFlags::empty()) {
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
            if rustix::event::poll(&mut poll, Some(&now)) == Ok(1) {
                return true;
            }
        }
        Err(_) => {}
    }
    let Some(now) = stat(pid) else {
        // It ended between the calls; or /proc isn't there, and the pid is all that can be asked.
        return rustix::process::test_kill_process(raw) == Err(rustix::io::Errno::SRCH);
    };
    let differs = |then: u64, now: u64| then != 0 && now != 0 && then != now;
    let is_another = differs(origin.started, now.origin.started);
    let was_replaced = differs(origin.stack, now.origin.stack);
    // Where the stack isn't told: its first thread lives, yet the word was marked. One that ends by itself, while others
    // run on, is marked a moment before it's a zombie.
    let lives_on = marked && tid == pid && !now.exits && !matches!(now.state, 'Z' | 'X');
    is_another || was_replaced || lives_on
}

/// Whether the thread `tid` exists. An id may have gone to another thread since: only for owners that the kernel
/// doesn't mark.
pub(crate) fn thread_exists(tid: u32) -> bool {
    Pid::from_raw(tid.cast_signed())
        .is_some_and(|raw| rustix::process::test_kill_process(raw) != Err(rustix::io::Errno::SRCH))
}
