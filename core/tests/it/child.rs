//! Forked children for tests, and a watchdog.

use procession_core::Arena;
use std::time::{Duration, Instant};

/// A forked child that is killed and reaped when the test is done with it.
#[derive(Debug)]
pub(crate) struct Child(libc::pid_t);

/// Forks a child that runs `work` and exits with 0, or 101 if it panics, without running the test's own exit hooks.
pub(crate) fn fork(work: impl FnOnce()) -> Child {
    // SAFETY: the child allocates, which glibc allows after fork, and touches no lock that another thread may hold.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork");
    if pid == 0 {
        // A test that hangs is ended by this alarm, not by patience.
        // SAFETY: sets a timer.
        unsafe { libc::alarm(60) };
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        // SAFETY: ends the process.
        unsafe { libc::_exit(if result.is_ok() { 0 } else { 101 }) };
    }
    Child(pid)
}

impl Child {
    pub(crate) fn pid(&self) -> libc::pid_t {
        self.0
    }

    pub(crate) fn signal(&self, signal: i32) {
        // SAFETY: our own child, not reaped yet.
        assert_eq!(unsafe { libc::kill(self.0, signal) }, 0);
    }

    /// Waits for the end: the exit code, or minus the signal.
    pub(crate) fn wait(self) -> i32 {
        let mut status = 0;
        // SAFETY: writes one status.
        while unsafe { libc::waitpid(self.0, &raw mut status, 0) } != self.0 {}
        std::mem::forget(self);
        if libc::WIFSIGNALED(status) {
            -libc::WTERMSIG(status)
        } else {
            libc::WEXITSTATUS(status)
        }
    }

    /// Asserts that it ended well.
    pub(crate) fn join(self) {
        assert_eq!(self.wait(), 0, "a child failed");
    }

    /// Waits until a signal has stopped it; false when it ended instead.
    #[allow(dead_code, reason = "used where crash points are compiled in")]
    pub(crate) fn wait_stopped(&self) -> bool {
        let mut status = 0;
        // SAFETY: writes one status.
        let pid = unsafe { libc::waitpid(self.0, &raw mut status, libc::WUNTRACED) };
        assert_eq!(pid, self.0);
        libc::WIFSTOPPED(status)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // SAFETY: our own child, not reaped yet.
        unsafe { libc::kill(self.0, libc::SIGKILL) };
        // SAFETY: no status wanted.
        unsafe { libc::waitpid(self.0, std::ptr::null_mut(), 0) };
    }
}

/// Waits for what another process does, for as long as a loaded machine may need.
pub(crate) fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !done() {
        assert!(Instant::now() < end, "waited 30 s for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Waits until nobody but this process is left in the arena and it holds nothing: other tests' children, forked
/// meanwhile, hold what there was too, as long as they live.
pub(crate) fn until_empty(arena: &Arena) {
    until("the arena to be empty", || {
        arena.reap().unwrap();
        let census = arena.census().unwrap();
        (
            census.objects,
            census.processes,
            census.linked_bytes,
            census.owned_bytes,
        ) == (0, 1, 0, 0)
    });
}

/// A generator of test data from a seed: xorshift64*.
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % limit
    }
}
