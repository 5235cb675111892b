//! Another system below the engine: a harness' own, in which processes, clock and futexes are simulated.
//!
//! Compiled in by `--cfg crash_points` and by `--cfg loom` only. A thread that has [entered](enter) a [`System`] asks that one instead of
//! Linux for what depends on time, on other processes or on chance; all other threads see Linux. Memory stays real.

use std::cell::RefCell;
use std::panic::Location;
use std::rc::Rc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

/// What the engine asks its system for, beside memory.
pub trait System {
    /// Before each load of shared memory, each store to it, and each call of the system that others can notice.
    fn step(&self, site: &'static Location<'static>);
    /// Offers the processor to others.
    fn offer(&self);
    /// Whether another process can run while the calling one does.
    fn several_processors(&self) -> bool;
    /// Sleeps on a word while it is `value`; 0, or the errno that futex(2) gives.
    fn sleep(&self, word: &AtomicU32, value: u32, timeout: Option<Duration>) -> i32;
    /// Wakes at most `count` sleepers of a word, and tells how many.
    fn wake(&self, word: &AtomicU32, count: u32) -> usize;
    /// The calling process' id, which is also its only thread's.
    fn pid(&self) -> u32;
    /// When the calling process started; never 0.
    fn started(&self) -> u64;
    /// The address of the calling thread's robust list, whose layout is the kernel's; 0: none.
    fn robust_list(&self) -> usize;
    /// Whether a process that started at that time is gone, as far as others can see.
    fn is_gone(&self, pid: u32, started: u64) -> bool;
    /// Whether there is a thread of that id.
    fn thread_exists(&self, tid: u32) -> bool;
    /// Whether the thread of that id is stopped.
    fn is_stopped(&self, tid: u32) -> bool;
    /// The calling process has mapped the arena's file from `offset` on.
    fn mapped(&self, address: usize, bytes: usize, offset: u64);
    /// A mapping is gone.
    fn unmapped(&self, address: usize);
}

thread_local! {
    static SYSTEM: RefCell<Option<Rc<dyn System>>> = const { RefCell::new(None) };
}

/// The calling thread's system, until this is dropped.
#[derive(Debug)]
pub struct Entered(());

/// Has the calling thread see `system` from now on.
#[must_use]
pub fn enter(system: Rc<dyn System>) -> Entered {
    SYSTEM.set(Some(system));
    Entered(())
}

impl Drop for Entered {
    fn drop(&mut self) {
        SYSTEM.set(None);
        super::robust::forget_links();
        crate::deadline::pretend(None);
    }
}

/// The system that the calling thread has entered. Not borrowed, since a step may go on in another process.
pub(crate) fn system() -> Option<Rc<dyn System>> {
    SYSTEM.with_borrow(Clone::clone)
}

/// A step of the calling thread, if it is simulated.
pub(crate) fn step(site: &'static Location<'static>) {
    if let Some(system) = system() {
        system.step(site);
    }
}
