//! Semaphores: never more permits than there may be, and what the dead held comes back.

use super::{Actor, Case, Subject, again, all};
use crate::simulation::world::{Name, World};
use procession_core::{Arena, Deadline, ObjectName, PERMITS_MAX, Permit, Semaphore};
use std::collections::BTreeMap;
use std::rc::Rc;

/// What a process has, by its own account.
#[derive(Debug, Default)]
struct Mine {
    held: i64,
    /// Bare ones, where they come back.
    acquired: i64,
    doing: Option<Doing>,
    /// It is about to leave normally: what it holds stays gone, if it gets there.
    leaves: bool,
    left: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Doing {
    Acquire(Permit),
    Release(Permit),
    Keep,
}

pub(super) struct Notes {
    /// Permits at the beginning.
    first: i64,
    /// Bare permits are signals, and nobody's; else every release is by a process that holds one.
    signals: bool,
    /// Signals taken, given, and begun to be given.
    taken: i64,
    given: i64,
    giving: i64,
    by: BTreeMap<Name, Mine>,
}

impl Notes {
    /// How many permits those who live have, and signals took, is never more than there are.
    fn check(&self, world: &World) {
        let living = self.by.iter().filter(|(name, _)| !world.is_dead(**name));
        let had: i64 = living.map(|(_, mine)| mine.held + mine.acquired).sum();
        let (had, most) = (had + self.taken, self.first + self.giving);
        assert!(had <= most, "{had} permits of {most}: {:?}", self.by);
    }
}

impl Subject for Semaphore {
    type Notes = Notes;

    fn make(arena: &Arena, world: &Rc<World>) -> (Self, Notes) {
        let free = u32::try_from(1 + world.below(3)).unwrap();
        let signals = world.below(2) == 0;
        let limit = if signals { PERMITS_MAX } else { free };
        let semaphore = Self::new(arena, free, limit).unwrap();
        if signals {
            semaphore.release(Permit::Acquired).unwrap();
        }
        let notes = Notes {
            first: i64::from(free) + i64::from(signals),
            signals,
            taken: 0,
            given: 0,
            giving: 0,
            by: BTreeMap::new(),
        };
        (semaphore, notes)
    }

    fn names(&self) -> Vec<ObjectName> {
        vec![self.name()]
    }

    fn open(arena: &Arena, names: &[ObjectName]) -> Self {
        again(|| Self::open(arena, names[0])).unwrap()
    }

    fn act(&self, me: &Actor<Self>) {
        let has = me.mine(|mine| (mine.held, mine.acquired));
        let permit = [Permit::Held, Permit::Acquired][usize::from(me.below(2) == 0)];
        match me.below(8) {
            0..4 => self.take(me, permit, has == (0, 0)),
            4..7 => self.give(me, permit),
            _ if has.0 > 0 => {
                me.begin(Doing::Keep);
                again(|| self.keep()).unwrap();
                me.end_of(Doing::Keep);
            }
            _ => me.pause(),
        }
    }

    fn end(&self, me: &Actor<Self>, arena: &Arena) {
        match me.below(3) {
            0 => me.case.world.kill_me(),
            1 if me.case.notes.borrow().signals => {
                me.mine(|mine| mine.leaves = true);
                arena.leave();
                me.mine(|mine| mine.left = true);
                me.case.world.kill_me();
            }
            _ => {
                while me.mine(|mine| mine.held + mine.acquired) > 0 {
                    let held = me.mine(|mine| mine.held) > 0;
                    self.give(me, if held { Permit::Held } else { Permit::Acquired });
                }
            }
        }
    }

    fn without_reason(&self, case: &Case<Self>) -> Option<String> {
        let (free, sleepers) = (self.value().unwrap(), case.sleepers());
        (free > 0 && !sleepers.is_empty()).then(|| format!("{sleepers:?}, {free} free"))
    }

    fn wind_down(&self, case: &Case<Self>) {
        if case.notes.borrow().signals && self.value().unwrap() == 0 {
            let mut notes = case.notes.borrow_mut();
            notes.giving += 1;
            drop(notes);
            again(|| self.release(Permit::Acquired)).unwrap();
            case.notes.borrow_mut().given += 1;
        }
    }

    fn judge(&self, case: &Case<Self>) {
        let notes = case.notes.borrow();
        let free = i64::from(self.value().unwrap());
        let sure = notes.first + notes.given - notes.taken;
        let (mut least, mut most) = (sure, sure);
        for mine in notes.by.values() {
            match mine.doing {
                Some(Doing::Acquire(Permit::Acquired) | Doing::Keep) if notes.signals => least -= 1,
                Some(Doing::Release(Permit::Acquired)) if notes.signals => most += 1,
                _ => {}
            }
            if mine.leaves {
                least -= mine.held;
                most -= if mine.left { mine.held } else { 0 };
            }
        }
        assert!(
            (least..=most).contains(&free),
            "{free} permits are free, not {least} to {most}: {:?}",
            notes.by
        );
        assert_eq!(again(|| self.taken()), Ok(0));
        assert!(free == 0 || again(|| self.acquire(Permit::Held, Deadline::NEVER)).unwrap());
    }
}

trait Permits {
    fn take(&self, me: &Actor<Semaphore>, permit: Permit, may_wait: bool);
    fn give(&self, me: &Actor<Semaphore>, permit: Permit);
}

impl Permits for Semaphore {
    fn take(&self, me: &Actor<Semaphore>, permit: Permit, may_wait: bool) {
        let timeout = me.timeout(may_wait);
        me.begin(Doing::Acquire(permit));
        let taken = me
            .timed(timeout, |deadline| self.acquire(permit, deadline))
            .unwrap();
        if taken {
            me.end_of(Doing::Acquire(permit));
            me.case.notes.borrow().check(&me.case.world);
        } else {
            assert!(timeout.is_some(), "a wait without a deadline gave up");
            me.mine(|mine| mine.doing = None);
        }
    }

    /// One that this process has; a signal at any time.
    fn give(&self, me: &Actor<Semaphore>, permit: Permit) {
        let signals = me.case.notes.borrow().signals;
        let (held, acquired) = me.mine(|mine| (mine.held, mine.acquired));
        let may = match permit {
            Permit::Held => held > 0,
            Permit::Acquired => acquired > 0 || signals,
        };
        if may {
            me.begin(Doing::Release(permit));
            again(|| self.release(permit)).unwrap();
            me.end_of(Doing::Release(permit));
        }
    }
}

impl Actor<Semaphore> {
    fn mine<T>(&self, look: impl FnOnce(&mut Mine) -> T) -> T {
        let mut notes = self.case.notes.borrow_mut();
        look(notes.by.entry(self.name).or_default())
    }

    /// What is given counts as given from the beginning of that.
    fn begin(&self, doing: Doing) {
        let mut notes = self.case.notes.borrow_mut();
        let signals = notes.signals;
        let mine = notes.by.entry(self.name).or_default();
        mine.doing = Some(doing);
        match doing {
            Doing::Release(Permit::Held) => mine.held -= 1,
            Doing::Release(Permit::Acquired) if !signals => mine.acquired -= 1,
            Doing::Release(Permit::Acquired) => notes.giving += 1,
            Doing::Acquire(_) | Doing::Keep => {}
        }
    }

    fn end_of(&self, doing: Doing) {
        let mut notes = self.case.notes.borrow_mut();
        let signals = notes.signals;
        let mine = notes.by.entry(self.name).or_default();
        mine.doing = None;
        match doing {
            Doing::Acquire(Permit::Held) => mine.held += 1,
            Doing::Acquire(Permit::Acquired) if !signals => mine.acquired += 1,
            Doing::Acquire(Permit::Acquired) => notes.taken += 1,
            Doing::Release(Permit::Acquired) if signals => notes.given += 1,
            Doing::Release(_) => {}
            Doing::Keep => {
                mine.held -= 1;
                if signals {
                    // Nobody's from now on: as a signal that was taken.
                    notes.taken += 1;
                } else {
                    mine.acquired += 1;
                }
            }
        }
    }
}

#[test]
fn permits_are_never_too_many_and_come_back_from_the_dead() {
    all::<Semaphore>("semaphores");
}
