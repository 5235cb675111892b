//! Sleeping on a word in a model.
//!
//! The kernel compares the word and queues the sleeper under a lock that a wake takes, too. Here both are one step, since
//! loom changes threads only at its own operations: the compare is one on the word, which loom orders against every other
//! access of it, and so is the first step of a wake. A sleep with a timeout ends when a process has died, once for each
//! death: time passes when nothing else would go on. A disturbed one ends at once, as a scene has it.

use super::super::word::Wake;
use super::World;
use loom::thread::{Thread, park};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

/// How long a sleep with a timeout is taken to last: the engine's usual one.
const TIMEOUT: Duration = Duration::from_millis(50);

struct Sleeper {
    address: usize,
    is_timed: bool,
    thread: Thread,
    /// How the sleep ended.
    ended: Rc<Cell<Option<Wake>>>,
}

/// Who sleeps in one execution, first come first.
#[derive(Default)]
pub(super) struct Futexes {
    sleepers: RefCell<Vec<Sleeper>>,
    /// Sleeps so far.
    count: Cell<u64>,
    /// Which of them ends at once, and how.
    pub(super) disturbed: Cell<Option<(u64, Wake)>>,
    /// The disturbed one was reached.
    pub(super) was_disturbed: Cell<bool>,
}

impl Futexes {
    /// Ends the sleeps that `choose` chooses.
    fn end(&self, how: Wake, mut choose: impl FnMut(&Sleeper) -> bool) {
        let mut sleepers = self.sleepers.borrow_mut();
        for sleeper in sleepers.extract_if(.., |sleeper| choose(sleeper)) {
            sleeper.ended.set(Some(how));
            sleeper.thread.unpark();
        }
    }

    /// How a sleep ends that doesn't begin.
    fn disturbance(&self) -> Option<Wake> {
        self.count.set(self.count.get() + 1);
        let (which, how) = self.disturbed.get()?;
        let now = which == self.count.get();
        self.was_disturbed.set(self.was_disturbed.get() || now);
        now.then_some(how)
    }
}

impl World {
    /// Sleeps while the word at `address` is `value`.
    pub(super) fn sleep_on(&self, address: usize, value: u32, is_timed: bool) -> Wake {
        assert!(self.memory.is_shared(), "one thread alone sleeps for ever");
        match self.futexes.disturbance() {
            Some(Wake::TimedOut) if is_timed => {
                self.pass(TIMEOUT);
                return Wake::TimedOut;
            }
            None | Some(Wake::TimedOut) => {}
            Some(how) => return how,
        }
        if self.memory.newest(address) != value {
            return Wake::Look;
        }
        if is_timed && self.current().hears_of_death(self) {
            self.pass(TIMEOUT);
            return Wake::TimedOut;
        }
        let ended = Rc::new(Cell::new(None));
        self.futexes.sleepers.borrow_mut().push(Sleeper {
            address,
            is_timed,
            thread: loom::thread::current(),
            ended: ended.clone(),
        });
        loop {
            park();
            if let Some(how) = ended.get() {
                return how;
            }
        }
    }

    /// Wakes who sleeps at an address, at most `count`, first come first.
    pub(super) fn wake_at(&self, address: usize, count: u32) -> usize {
        let mut left = count;
        self.futexes.end(Wake::Look, |sleeper| {
            let is_chosen = sleeper.address == address && left > 0;
            left -= u32::from(is_chosen);
            is_chosen
        });
        (count - left) as usize
    }

    /// Lets time pass for all who sleep with a timeout.
    pub(super) fn end_timeouts(&self) {
        self.pass(TIMEOUT);
        self.futexes.end(Wake::TimedOut, |sleeper| sleeper.is_timed);
    }
}
