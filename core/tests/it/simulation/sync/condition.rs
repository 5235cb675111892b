//! Conditions: a notification wakes as many as it says, of the living, those who have waited longest.

use super::{Actor, Case, Subject, again, all};
use crate::simulation::world::{Name, World};
use procession_core::{Acquired, Arena, Condition, Deadline, Lock, ObjectName};
use std::rc::Rc;

/// A condition, and the lock around what is done with it.
struct Conditions {
    condition: Condition,
    lock: Lock,
}

/// One who waits, or did.
#[derive(Debug)]
struct Waiter {
    by: Name,
    /// It has its entry.
    enlisted: bool,
    /// It may have given its entry back.
    leaves: bool,
    /// What it was told in the end.
    told: Option<bool>,
    /// A notification may have been for it.
    maybe: bool,
}

#[derive(Default)]
pub(super) struct Notes {
    /// In the order of the lock.
    waiters: Vec<Waiter>,
    /// Waiters that notifiers say they woke.
    woken: usize,
    /// The same, at most, of those notifiers who were killed before they could say it.
    unsaid: usize,
}

impl Notes {
    fn told(&self) -> usize {
        let told = self.waiters.iter().filter(|one| one.told == Some(true));
        told.count()
    }

    /// A notification says that it woke so many.
    fn check(&mut self, world: &World, [count, possible, open, unsaid]: [usize; 4], woken: usize) {
        self.unsaid -= unsaid;
        self.woken += woken;
        let stays = |one: &&Waiter| one.enlisted && !one.leaves && !world.is_dead(one.by);
        let staying = self.waiters.iter().filter(stays).count();
        let sure = staying.saturating_sub(open);
        assert!(
            (count.min(sure)..=count.min(possible)).contains(&woken),
            "{woken} of {count}, where {sure} to {possible} wait: {:?}",
            self.waiters
        );
    }
}

impl Subject for Conditions {
    type Notes = Notes;

    fn make(arena: &Arena, _: &Rc<World>) -> (Self, Notes) {
        let conditions = Self {
            condition: Condition::new(arena).unwrap(),
            lock: Lock::new(arena).unwrap(),
        };
        (conditions, Notes::default())
    }

    fn names(&self) -> Vec<ObjectName> {
        vec![self.condition.name(), self.lock.name()]
    }

    fn open(arena: &Arena, names: &[ObjectName]) -> Self {
        Self {
            condition: again(|| Condition::open(arena, names[0])).unwrap(),
            lock: again(|| Lock::open(arena, names[1])).unwrap(),
        }
    }

    fn act(&self, me: &Actor<Self>) {
        match me.below(8) {
            0..3 => self.wait(me),
            3..6 => {
                let count = [1, 1, 2, 3, usize::MAX][usize::try_from(me.below(5)).unwrap()];
                self.notify(&me.case, count);
            }
            _ => me.pause(),
        }
    }

    fn end(&self, me: &Actor<Self>, _: &Arena) {
        if me.below(2) == 0 {
            me.case.world.kill_me();
        }
    }

    fn without_reason(&self, case: &Case<Self>) -> Option<String> {
        let (waiting, sleepers) = (self.condition.waiting().unwrap(), case.sleepers());
        if waiting != sleepers.len() {
            return Some(format!("{sleepers:?}, of whom {waiting} weren't notified"));
        }
        // Nobody who came later was notified before one of them.
        let notes = case.notes.borrow();
        let is_asleep = |one: &Waiter| sleepers.contains(&one.by) && one.told.is_none();
        let first = notes.waiters.iter().position(is_asleep)?;
        let mut later = notes.waiters[first..].iter();
        let unfair = later.any(|one| one.told == Some(true));
        unfair.then(|| format!("{sleepers:?}, before whom others were: {:?}", notes.waiters))
    }

    fn wind_down(&self, case: &Case<Self>) {
        self.notify(case, usize::MAX);
    }

    fn judge(&self, case: &Case<Self>) {
        assert_eq!(self.condition.waiting(), Ok(0));
        let notes = case.notes.borrow();
        let (woken, told) = (notes.woken, notes.told());
        let dead = notes.waiters.iter();
        let dead = dead.filter(|one| one.told.is_none() && one.maybe).count();
        assert!(
            told <= woken + notes.unsaid && woken <= told + dead,
            "{woken} were woken, and {} perhaps; {told} were, and {dead} dead perhaps",
            notes.unsaid
        );
    }
}

impl Conditions {
    /// Takes the lock, whose last holder may have died.
    fn enter(&self) {
        let acquired = again(|| self.lock.acquire(Deadline::NEVER)).unwrap();
        assert_ne!(acquired, Acquired::TimedOut);
    }

    fn wait(&self, me: &Actor<Self>) {
        let timeout = me.timeout(true);
        let notes = || me.case.notes.borrow_mut();
        self.enter();
        let mine = notes().waiters.len();
        notes().waiters.push(Waiter {
            by: me.name,
            enlisted: false,
            leaves: false,
            told: None,
            maybe: false,
        });
        let waiting = again(|| self.condition.enlist(Deadline::NEVER)).unwrap();
        let waiting = waiting.expect("a place among those who wait");
        notes().waiters[mine].enlisted = true;
        self.lock.release().unwrap();
        let woken = me
            .timed(timeout, |deadline| waiting.wait(deadline))
            .unwrap();
        assert!(
            woken || timeout.is_some(),
            "a wait without a deadline gave up"
        );
        notes().waiters[mine].leaves = true;
        let told = waiting.leave();
        assert!(told || !woken, "{} was notified, and wasn't", me.name);
        notes().waiters[mine].told = Some(told);
    }

    fn notify(&self, case: &Case<Self>, count: usize) {
        self.enter();
        let world = &case.world;
        // Those who may still wait; and how many were notified that haven't said so, at most.
        let (possible, open, unsaid) = {
            let notes = &mut *case.notes.borrow_mut();
            let mut possible = 0;
            for one in &mut notes.waiters {
                if one.told.is_none() && !world.is_seen_dead(one.by) {
                    one.maybe = true;
                    possible += 1;
                }
            }
            let unsaid = count.min(possible);
            let open = (notes.woken + notes.unsaid).saturating_sub(notes.told());
            notes.unsaid += unsaid;
            (possible, open, unsaid)
        };
        let woken = again(|| self.condition.notify(count)).unwrap();
        case.notes
            .borrow_mut()
            .check(world, [count, possible, open, unsaid], woken);
        self.lock.release().unwrap();
    }
}

#[test]
fn a_notification_wakes_those_who_live_in_the_order_in_which_they_came() {
    all::<Conditions>("conditions");
}
