//! Forked children for tests, and a watchdog.

use procession_core::Arena;
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
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
        let seconds = u32::try_from(2 * patience().as_secs()).unwrap_or(u32::MAX);
        // SAFETY: sets a timer.
        unsafe { libc::alarm(seconds) };
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        // SAFETY: ends the process.
        unsafe { libc::_exit(if result.is_ok() { 0 } else { 101 }) };
    }
    Child(pid)
}

impl Child {
    pub(crate) fn pid(&self) -> u32 {
        self.0.cast_unsigned()
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
    pub(crate) fn wait_stopped(&self) -> bool {
        let mut status = 0;
        // SAFETY: writes one status.
        let pid = unsafe { libc::waitpid(self.0, &raw mut status, libc::WUNTRACED) };
        assert_eq!(pid, self.0);
        libc::WIFSTOPPED(status)
    }
}

/// What a child did last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg(crash_points)]
pub(crate) enum Change {
    /// Nothing since the last look.
    Nothing,
    Stopped,
    /// It ended: the exit code, or minus the signal.
    Ended(i32),
}

#[cfg(crash_points)]
impl Child {
    /// What it did since the last look, or, if `patiently`, what it does next. After its end it must be forgotten.
    pub(crate) fn look(&self, patiently: bool) -> Change {
        let mut status = 0;
        let options = libc::WUNTRACED | if patiently { 0 } else { libc::WNOHANG };
        // SAFETY: writes one status.
        let pid = unsafe { libc::waitpid(self.0, &raw mut status, options) };
        if pid == 0 {
            Change::Nothing
        } else if libc::WIFSTOPPED(status) {
            Change::Stopped
        } else if libc::WIFSIGNALED(status) {
            Change::Ended(-libc::WTERMSIG(status))
        } else {
            Change::Ended(libc::WEXITSTATUS(status))
        }
    }

    /// Whether its first thread sleeps in the kernel, or did a moment ago.
    pub(crate) fn sleeps(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0)).unwrap_or_default();
        is_asleep(&stat)
    }

    /// Waits until it sleeps, or was stopped or killed before it could.
    pub(crate) fn comes_to_rest(&self) {
        until("a child to come to rest", || {
            let stat =
                std::fs::read_to_string(format!("/proc/{}/stat", self.0)).unwrap_or_default();
            let state = stat.rsplit_once(") ").map(|(_, rest)| rest.as_bytes()[0]);
            matches!(state, Some(b'S' | b'T' | b'Z'))
        });
    }

    /// Lets go of one that has ended and was waited for.
    pub(crate) fn forget(self) {
        std::mem::forget(self);
    }
}

/// Whether a line of a `stat` in `/proc` tells of a thread that sleeps in the kernel. Source: proc_pid_stat(5).
#[cfg(crash_points)]
pub(crate) fn is_asleep(stat: &str) -> bool {
    stat.rsplit_once(") ")
        .is_some_and(|(_, rest)| rest.starts_with('S'))
}

impl Drop for Child {
    fn drop(&mut self) {
        // SAFETY: our own child, not reaped yet.
        unsafe { libc::kill(self.0, libc::SIGKILL) };
        // SAFETY: no status wanted.
        unsafe { libc::waitpid(self.0, std::ptr::null_mut(), 0) };
    }
}

/// Whether a child of this process is left that nobody has waited for.
pub(crate) fn has_children() -> bool {
    // SAFETY: waits for nobody, and wants no status.
    unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) >= 0 }
}

/// Longer than any test takes on a loaded machine.
const WATCHDOG: Duration = Duration::from_secs(600);

/// When the test that runs now began.
static BEGAN: Mutex<Option<Instant>> = Mutex::new(None);

/// A test that has the program for itself.
#[derive(Debug)]
pub(crate) struct Alone(#[expect(dead_code, reason = "held")] MutexGuard<'static, ()>);

impl Drop for Alone {
    fn drop(&mut self) {
        *BEGAN.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Keeps other tests of this program away: a forked child holds whatever the whole process holds, so tests that ask
/// who holds what, or stop a child, would see each other's. A test that hangs shows its stacks and ends the program.
pub(crate) fn alone() -> Alone {
    static ALONE: Mutex<()> = Mutex::new(());
    static WATCH: Once = Once::new();
    WATCH.call_once(|| drop(std::thread::spawn(watch)));
    let guard = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    *BEGAN.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    Alone(guard)
}

fn watch() {
    loop {
        std::thread::sleep(Duration::from_secs(1));
        let began = *BEGAN.lock().unwrap_or_else(PoisonError::into_inner);
        if began.is_some_and(|began| began.elapsed() > WATCHDOG) {
            println!("a test hangs for {WATCHDOG:?}");
            show_stacks(std::process::id().cast_signed());
            std::process::abort();
        }
    }
}

/// Where each thread of a process is: by the debugger, if there is one, else by what the kernel tells.
pub(crate) fn show_stacks(pid: libc::pid_t) {
    let shown = std::process::Command::new("gdb")
        .args([
            "-batch",
            "-ex",
            "thread apply all bt 16",
            "-p",
            &pid.to_string(),
        ])
        .status();
    if shown.is_ok_and(|status| status.success()) {
        return;
    }
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
    {
        let Ok(task) = task else { continue };
        for file in ["comm", "wchan", "syscall"] {
            let text = std::fs::read_to_string(task.path().join(file));
            println!("{file}: {}", text.unwrap_or_default().trim());
        }
    }
}

/// As long as anything may take on a loaded machine, before it counts as hanging: 30 seconds, or as many as the variable
/// `PATIENCE` says, for who expects a test to fail.
fn patience() -> Duration {
    let seconds = std::env::var("PATIENCE").ok();
    Duration::from_secs(
        seconds
            .and_then(|seconds| seconds.parse().ok())
            .unwrap_or(30),
    )
}

/// Waits for what another process does.
pub(crate) fn until(what: &str, mut done: impl FnMut() -> bool) {
    let patience = patience();
    let end = Instant::now() + patience;
    while !done() {
        assert!(Instant::now() < end, "waited {patience:?} for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Waits until nobody but this process is left in the arena and it holds nothing.
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

    /// From the seed in the variable SEED, or the usual one; it is printed, for whoever wants the same again.
    pub(crate) fn seeded(usual: u64) -> Self {
        let seed = std::env::var("SEED").map_or(usual, |seed| seed.parse().unwrap());
        println!("SEED={seed}");
        Self::new(seed)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) % limit
    }
}
