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

/// What `/proc/PID/stat` tells: the state of the first thread, and the start in clock ticks after boot, which
/// together with the pid names a process for ever. `None` when there is no such process. Source: proc(5).
fn stat(pid: u32) -> Option<(char, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

/// When the calling process started; 0 where /proc isn't mounted, which matches any process of its pid.
pub(crate) fn started() -> u64 {
    stat(pid()).map_or(0, |(_, start)| start)
}

/// Whether the process `pid` that started at `start` is gone, so that none of its threads will run again: it exited,
/// was killed (even if nobody has waited for it yet), or `marked` and replaced by exec.
///
/// `marked` says that the kernel has marked the word of its first thread, `tid`. A few system calls.
pub(crate) fn is_gone(pid: u32, start: u64, tid: u32, marked: bool) -> bool {
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
    match stat(pid) {
        // It ended between the calls; or /proc isn't there, and the pid is all that can be asked.
        None => rustix::process::test_kill_process(raw) == Err(rustix::io::Errno::SRCH),
        Some((state, now)) => {
            // Another process by now, or the same one after exec: its first thread lives, yet the word was marked.
            (start != 0 && now != start) || (marked && tid == pid && !matches!(state, 'Z' | 'X'))
        }
    }
}

/// Whether the thread `tid` exists. An id may have gone to another thread since: only for owners that the kernel
/// doesn't mark.
pub(crate) fn thread_exists(tid: u32) -> bool {
    Pid::from_raw(tid.cast_signed())
        .is_some_and(|raw| rustix::process::test_kill_process(raw) != Err(rustix::io::Errno::SRCH))
}
