//! Recursive locks: one process has it, as often as it took it; the next one after a death is told.

use super::{Actor, Case, Subject, again, all};
use crate::simulation::oracle::Oracle;
use crate::simulation::world::{Name, World};
use procession_core::{Acquired, Arena, ObjectName, RLock};
use std::collections::BTreeMap;
use std::rc::Rc;

pub(super) struct Notes {
    oracle: Oracle,
    /// How often each process has it.
    times: BTreeMap<Name, u32>,
}

impl Subject for RLock {
    type Notes = Notes;

    fn make(arena: &Arena, world: &Rc<World>) -> (Self, Notes) {
        let oracle = Oracle::new(world);
        oracle.new_lock();
        let times = BTreeMap::new();
        (Self::new(arena).unwrap(), Notes { oracle, times })
    }

    fn names(&self) -> Vec<ObjectName> {
        vec![self.name()]
    }

    fn open(arena: &Arena, names: &[ObjectName]) -> Self {
        again(|| Self::open(arena, names[0])).unwrap()
    }

    fn act(&self, me: &Actor<Self>) {
        let times = me.times();
        assert_eq!(self.count(), Ok(times));
        match me.below(8) {
            0..3 if times > 0 => {
                assert_eq!(
                    self.acquire(procession_core::Deadline::now()),
                    Ok(Acquired::Clean)
                );
                me.set_times(times + 1);
            }
            0..3 => take(self, me, 1),
            3..5 if times > 0 => give(self, me),
            5 if times > 0 => {
                me.oracle().releases(0, me.name);
                me.set_times(0);
                assert_eq!(self.release_all(), Ok(times));
                me.oracle().released(0, me.name);
                take(self, me, times);
            }
            6 => briefly(self, me),
            _ => me.pause(),
        }
    }

    fn end(&self, me: &Actor<Self>, arena: &Arena) {
        match me.below(3) {
            // As one that leaves normally, with the lock: the next one is told all the same.
            0 => {
                arena.leave();
                me.case.world.kill_me();
            }
            1 => me.case.world.kill_me(),
            _ => (0..me.times()).for_each(|_| give(self, me)),
        }
    }

    fn without_reason(&self, case: &Case<Self>) -> Option<String> {
        let sleepers = case.sleepers();
        let is_free = !self.is_held().unwrap();
        (is_free && !sleepers.is_empty()).then(|| format!("{sleepers:?}"))
    }

    /// Whoever has it gives it back, or dies.
    fn wind_down(&self, _: &Case<Self>) {}

    fn judge(&self, case: &Case<Self>) {
        let oracle = case.notes.borrow().oracle.clone();
        oracle.acquires(0, 0);
        let acquired = again(|| self.acquire(procession_core::Deadline::NEVER)).unwrap();
        oracle.acquired(0, 0, acquired == Acquired::OwnerDied);
        assert_eq!(self.count(), Ok(1));
        self.release().unwrap();
    }
}

fn take(lock: &RLock, me: &Actor<RLock>, times: u32) {
    let timeout = me.timeout(true);
    me.oracle().acquires(0, me.name);
    let acquired = me.timed(timeout, |deadline| {
        if times == 1 {
            lock.acquire(deadline)
        } else {
            lock.acquire_times(times, deadline)
        }
    });
    let acquired = acquired.unwrap();
    if acquired == Acquired::TimedOut {
        assert!(timeout.is_some(), "a wait without a deadline gave up");
        me.oracle().gave_up(0, me.name);
    } else {
        me.oracle()
            .acquired(0, me.name, acquired == Acquired::OwnerDied);
        me.set_times(times);
    }
}

/// Gives it back once.
fn give(lock: &RLock, me: &Actor<RLock>) {
    let times = me.times();
    me.set_times(times - 1);
    if times > 1 {
        return lock.release().unwrap();
    }
    me.oracle().releases(0, me.name);
    lock.release().unwrap();
    me.oracle().released(0, me.name);
}

fn briefly(lock: &RLock, me: &Actor<RLock>) {
    if me.times() > 0 {
        assert_eq!(lock.briefly(|| ()), Ok(Some(())));
        return;
    }
    let oracle = me.oracle();
    oracle.acquires(0, me.name);
    let inside = || {
        oracle.acquired(0, me.name, false);
        me.pause();
        oracle.releases(0, me.name);
    };
    match lock.briefly(inside).unwrap() {
        Some(()) => oracle.released(0, me.name),
        None => oracle.gave_up(0, me.name),
    }
}

impl Actor<RLock> {
    fn oracle(&self) -> Oracle {
        self.case.notes.borrow().oracle.clone()
    }

    fn times(&self) -> u32 {
        let notes = self.case.notes.borrow();
        notes.times.get(&self.name).copied().unwrap_or(0)
    }

    fn set_times(&self, times: u32) {
        let mut notes = self.case.notes.borrow_mut();
        notes.times.insert(self.name, times);
    }
}

#[test]
fn a_recursive_lock_excludes_and_counts() {
    all::<RLock>("recursive locks");
}
