//! Crash points: a process that ends itself, or stops, before a chosen store to shared memory.
//!
//! Compiled in by `--cfg crash_points` only. A harness arms a store, by its number, its source line or its file;
//! [`noted`] tells which source lines were passed, and how often. All of it is this thread's own, so other threads of
//! a test don't disturb the count; it is inherited by a forked child, whose first stores come before any code of the
//! harness can run there.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::panic::Location;

/// What happens at an armed store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The process is killed with SIGKILL before it stores.
    Kill,
    /// The process stops with SIGSTOP before it stores, and goes on once somebody continues it.
    Stop,
}

/// Which store is armed, counted from one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trigger {
    /// The n-th of all.
    Nth(u64),
    /// The n-th at a site.
    Site(Site, u64),
    /// The first in a file, by its path below `core/src`.
    File(&'static str),
}

/// A call that stores to shared memory: file, as the compiler names it, and line.
pub type Site = (&'static str, u32);

/// Whose stores count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// The calling process'.
    Own,
    /// Those of the children that it forks from now on.
    Child,
}

/// What is watched for.
#[derive(Debug, Clone, Copy)]
struct Watch {
    by: rustix::process::Pid,
    whose: Whose,
    /// `None` only notes.
    armed: Option<(Trigger, Action)>,
    /// Stores that the trigger counts, passed so far.
    passed: u64,
}

thread_local! {
    static WATCH: Cell<Option<Watch>> = const { Cell::new(None) };
    static NOTED: RefCell<BTreeMap<Site, u64>> = const { RefCell::new(BTreeMap::new()) };
}

/// Arms the `n`-th store of this thread from now, counted from one.
pub fn arm(n: u64, action: Action) {
    arm_at(Trigger::Nth(n), action, Whose::Own);
}

/// Arms a store of this thread, or of the thread that it becomes in a forked child.
pub fn arm_at(trigger: Trigger, action: Action, whose: Whose) {
    watch(whose, Some((trigger, action)));
}

/// Disarms, and tells how many stores of those that the trigger counts this thread passed since it was armed.
pub fn disarm() -> u64 {
    WATCH.take().map_or(0, |watch| watch.passed)
}

/// Notes the sites that this thread passes from now on.
pub fn note(whose: Whose) {
    watch(whose, None);
}

/// The sites passed since [`note`], and how often each was. Ends the noting.
pub fn noted() -> BTreeMap<Site, u64> {
    WATCH.set(None);
    NOTED.take()
}

fn watch(whose: Whose, armed: Option<(Trigger, Action)>) {
    NOTED.take();
    WATCH.set(Some(Watch {
        by: rustix::process::getpid(),
        whose,
        armed,
        passed: 0,
    }));
}

pub(crate) fn point(site: &'static Location<'static>) {
    super::simulation::step(site);
    let Some(mut watch) = WATCH.get() else {
        return;
    };
    let own = rustix::process::getpid() == watch.by;
    if own != (watch.whose == Whose::Own) {
        return;
    }
    let place = (site.file(), site.line());
    let Some((trigger, action)) = watch.armed else {
        NOTED.with_borrow_mut(|noted| *noted.entry(place).or_default() += 1);
        return;
    };
    let (counts, n) = match trigger {
        Trigger::Nth(n) => (true, n),
        Trigger::Site(wanted, n) => (wanted == place, n),
        Trigger::File(name) => (place.0.ends_with(name), 1),
    };
    if counts {
        watch.passed += 1;
        WATCH.set(Some(watch));
        if watch.passed == n {
            take(action);
        }
    }
}

fn take(action: Action) {
    let signal = match action {
        Action::Kill => rustix::process::Signal::KILL,
        Action::Stop => rustix::process::Signal::STOP,
    };
    // To the thread's own process: with SIGKILL this call doesn't return.
    let _ = rustix::process::kill_process(rustix::process::getpid(), signal);
}
