//! Crash points: a process that ends itself, or stops, before a chosen store to shared memory.
//!
//! Compiled in by `--cfg crash_points` only. A harness arms the n-th store from now; [`sites`] tells which source
//! lines a run of stores passed. Both are this thread's own, so other threads of a test don't disturb the count.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::panic::Location;

/// What happens at an armed store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The process is killed with SIGKILL before it stores.
    Kill,
    /// The process stops with SIGSTOP before it stores, and goes on once somebody continues it.
    Stop,
}

thread_local! {
    static ARMED: Cell<Option<(u64, Action)>> = const { Cell::new(None) };
    static PASSED: Cell<u64> = const { Cell::new(0) };
    static SITES: RefCell<BTreeSet<(&'static str, u32)>> = const { RefCell::new(BTreeSet::new()) };
    static NOTING: Cell<bool> = const { Cell::new(false) };
}

/// Arms the `n`-th store of this thread from now, counted from one.
pub fn arm(n: u64, action: Action) {
    PASSED.set(0);
    ARMED.set(Some((n, action)));
}

/// Disarms, and tells how many stores this thread passed since it was armed.
pub fn disarm() -> u64 {
    ARMED.set(None);
    PASSED.get()
}

/// The source lines of the stores that `work` passes in this thread.
pub fn sites(work: impl FnOnce()) -> BTreeSet<(&'static str, u32)> {
    NOTING.set(true);
    work();
    NOTING.set(false);
    SITES.take()
}

pub(crate) fn point(site: &'static Location<'static>) {
    PASSED.set(PASSED.get() + 1);
    if NOTING.get() {
        SITES.with_borrow_mut(|sites| sites.insert((site.file(), site.line())));
    }
    if let Some((n, action)) = ARMED.get()
        && PASSED.get() == n
    {
        let signal = match action {
            Action::Kill => rustix::process::Signal::KILL,
            Action::Stop => rustix::process::Signal::STOP,
        };
        // To the thread's own process: with SIGKILL this call doesn't return.
        let _ = rustix::process::kill_process(rustix::process::getpid(), signal);
    }
}
