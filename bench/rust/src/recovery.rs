//! How soon others go on after a process was killed: from the kill to the next user's success.

use crate::sys::*;
use std::sync::atomic::{AtomicU64, Ordering::*};
use std::time::Duration;

/// Kills of one measurement: three or five of them make several hundred.
pub const KILLS: usize = 110;
/// The kill comes at any instant of a waiter's look at the owner, which it takes every 50 ms.
const PHASE_US: u64 = 50_000;

pub struct RecoveryKind {
    pub name: &'static str,
    /// What is killed.
    pub case: &'static str,
    /// Nanoseconds from the kill to the success, for so many kills.
    pub run: fn(usize) -> Vec<u64>,
}

pub fn base() -> Vec<RecoveryKind> {
    vec![RecoveryKind {
        name: "pthread mutex, robust",
        case: HOLDER,
        run: robust_mutex,
    }]
}

pub const HOLDER: &str = "a lock's holder killed";
pub const GETTER: &str = "a getter killed in its sleep inside";
pub const PUTTER: &str = "a putter killed in its sleep inside";
pub const WORKER: &str = "a pool's worker killed at its task";

/// The median, the 99th percentile and the worst.
pub fn measure(kind: &RecoveryKind) -> Vec<f64> {
    let mut times = (kind.run)(KILLS);
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)] as f64;
    vec![at(50), at(99), at(100)]
}

/// Kills a process that sleeps in `victim` while another sleeps in `heir`, which begins once the victim sleeps; then does
/// `afterwards`. The time from the kill until `heir` has returned.
pub fn after_a_kill(kill: usize, victim: &dyn Fn(), heir: &dyn Fn(), afterwards: &dyn Fn()) -> u64 {
    let done: &'static AtomicU64 = shared();
    let first = fork_run(|| {
        victim();
        loop {
            std::thread::sleep(Duration::from_secs(60));
        }
    });
    wait_asleep(first);
    let second = fork_run(|| {
        heir();
        done.store(now_ns(), SeqCst);
    });
    wait_asleep(second);
    // In steps that don't repeat: a part of the period that has no divisor in common with it.
    std::thread::sleep(Duration::from_micros(kill as u64 * 18_719 % PHASE_US));
    let begin = now_ns();
    unsafe { libc::kill(first, libc::SIGKILL) };
    afterwards();
    wait_ok(second);
    unsafe { libc::waitpid(first, std::ptr::null_mut(), 0) };
    let end = done.load(SeqCst);
    unsafe { libc::munmap(std::ptr::from_ref(done).cast_mut().cast(), 4096) };
    end - begin
}

/// Waits until a process sleeps in the kernel; it has nothing to sleep for but what is measured.
fn wait_asleep(pid: i32) {
    let mut seen = 0;
    while seen < 3 {
        std::thread::sleep(Duration::from_micros(500));
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let state = stat.rsplit_once(") ").unwrap().1;
        assert!(!state.starts_with('Z'), "process {pid} has ended");
        seen = if state.starts_with('S') { seen + 1 } else { 0 };
    }
}

/// What the kernel and the C library allow: the kernel wakes the next one as the holder dies.
fn robust_mutex(kills: usize) -> Vec<u64> {
    let mutex: *mut libc::pthread_mutex_t = shared_pages(4096).cast();
    unsafe {
        let mut attributes: libc::pthread_mutexattr_t = std::mem::zeroed();
        libc::pthread_mutexattr_init(&mut attributes);
        libc::pthread_mutexattr_setpshared(&mut attributes, libc::PTHREAD_PROCESS_SHARED);
        libc::pthread_mutexattr_setrobust(&mut attributes, libc::PTHREAD_MUTEX_ROBUST);
        assert_eq!(libc::pthread_mutex_init(mutex, &attributes), 0);
    }
    let acquire = || assert_eq!(unsafe { libc::pthread_mutex_lock(mutex) }, 0);
    let inherit = || unsafe {
        assert_eq!(libc::pthread_mutex_lock(mutex), libc::EOWNERDEAD);
        libc::pthread_mutex_consistent(mutex);
        libc::pthread_mutex_unlock(mutex);
    };
    (0..kills)
        .map(|kill| after_a_kill(kill, &acquire, &inherit, &|| {}))
        .collect()
}
