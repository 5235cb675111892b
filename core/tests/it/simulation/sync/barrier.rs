//! Barriers: each round lets exactly its parties through, and a death of one who waits breaks it.

use super::{Actor, Case, Subject, again, all, is_closed};
use crate::simulation::world::{Name, World};
use procession_core::{Arena, Barrier, ObjectName, Party, Passed};
use std::rc::Rc;

/// A process that comes to the barrier, or did.
#[derive(Debug)]
struct Visit {
    by: Name,
    /// When it was counted.
    come: Option<u64>,
    /// It was the last of its round, and is ending that.
    ends: bool,
    through: Option<bool>,
}

#[derive(Default)]
pub(super) struct Notes {
    parties: u32,
    visits: Vec<Visit>,
    /// Rounds that were ended, by those who say so.
    rounds: usize,
    /// When something was last done by which a round may end or the barrier break; while that goes on, the latest time.
    changed: u64,
    changing: u32,
}

impl Subject for Barrier {
    type Notes = Notes;

    fn make(arena: &Arena, world: &Rc<World>) -> (Self, Notes) {
        let parties = u32::try_from(1 + world.below(4)).unwrap();
        let notes = Notes {
            parties,
            ..Notes::default()
        };
        (Self::new(arena, parties).unwrap(), notes)
    }

    fn names(&self) -> Vec<ObjectName> {
        vec![self.name()]
    }

    fn open(arena: &Arena, names: &[ObjectName]) -> Self {
        again(|| Self::open(arena, names[0])).unwrap()
    }

    fn act(&self, me: &Actor<Self>) {
        match me.below(32) {
            0..26 => visit(self, me),
            26 => changes(&me.case, || self.abort().unwrap()),
            27 => changes(&me.case, || self.reset().unwrap()),
            _ => me.pause(),
        }
    }

    fn end(&self, me: &Actor<Self>, _: &Arena) {
        if me.below(2) == 0 {
            me.case.world.kill_me();
        }
    }

    fn without_reason(&self, case: &Case<Self>) -> Option<String> {
        let sleepers = case.sleepers();
        if sleepers.is_empty() {
            return None;
        }
        let (waiting, broken) = (self.waiting().unwrap(), self.is_broken().unwrap());
        let notes = case.notes.borrow();
        let world = &case.world;
        // It had come to the round of those who sleep now, and died there.
        let is_missed = |visit: &&Visit| {
            let came = visit.come.is_some_and(|come| come > notes.changed);
            came && visit.through.is_none() && world.is_dead(visit.by)
        };
        let missed = notes.visits.iter().find(is_missed);
        let fits = !broken
            && waiting as usize == sleepers.len()
            && waiting < notes.parties
            && (missed.is_none() || notes.changing > 0);
        (!fits).then(|| {
            format!("{sleepers:?}: {waiting} wait, broken {broken}, one has died: {missed:?}")
        })
    }

    fn wind_down(&self, case: &Case<Self>) {
        changes(case, || self.abort().unwrap());
    }

    fn judge(&self, case: &Case<Self>) {
        assert_eq!(self.waiting(), Ok(0));
        let notes = case.notes.borrow();
        let count = |is: &dyn Fn(&Visit) -> bool| notes.visits.iter().filter(|it| is(it)).count();
        let through = count(&|visit| visit.through == Some(true));
        let dead = count(&|visit| visit.through.is_none());
        let unsaid = count(&|visit| visit.through.is_none() && visit.ends);
        let parties = notes.parties as usize;
        assert!(
            through <= parties * (notes.rounds + unsaid)
                && parties * notes.rounds <= through + dead,
            "{through} went through, in {} rounds of {parties}, and {unsaid} perhaps, with {dead} dead: {:?}",
            notes.rounds,
            notes.visits
        );
    }
}

/// Does something by which rounds may end.
fn changes<T>(case: &Case<Barrier>, work: impl FnOnce() -> T) -> T {
    case.notes.borrow_mut().changing += 1;
    let done = work();
    let mut notes = case.notes.borrow_mut();
    notes.changing -= 1;
    notes.changed = case.world.now();
    done
}

fn visit(barrier: &Barrier, me: &Actor<Barrier>) {
    let notes = || me.case.notes.borrow_mut();
    let mine = notes().visits.len();
    notes().visits.push(Visit {
        by: me.name,
        come: None,
        ends: false,
        through: None,
    });
    let timeout = me.timeout(true);
    // Whoever acts ends, or dies: nobody waits for long here.
    let come = me.timed(timeout.map(|_| 400), |deadline| barrier.come(deadline));
    if is_closed(&come) {
        notes().visits[mine].through = Some(false);
        if me.below(2) == 0 {
            changes(&me.case, || barrier.reset().unwrap());
        }
        return;
    }
    let through = match come.unwrap() {
        None => {
            assert!(timeout.is_some(), "a wait without a deadline gave up");
            false
        }
        Some(party) => {
            notes().visits[mine].come = Some(me.case.world.now());
            pass(me, party, mine, timeout)
        }
    };
    notes().visits[mine].through = Some(through);
}

/// Whether it got through.
fn pass(me: &Actor<Barrier>, party: Party<'_>, mine: usize, timeout: Option<u64>) -> bool {
    let notes = || me.case.notes.borrow_mut();
    let parties = notes().parties;
    assert_eq!(party.acts(), party.index() + 1 == parties, "{party:?}");
    if party.acts() {
        if me.below(4) == 0 {
            me.pause();
        }
        notes().visits[mine].ends = true;
        let ended = changes(&me.case, || party.end().unwrap());
        notes().rounds += usize::from(ended);
        return ended;
    }
    let passed = me.timed(timeout, |deadline| party.wait(deadline)).unwrap();
    let passed = passed.unwrap_or_else(|| {
        assert!(timeout.is_some(), "a wait without a deadline gave up");
        changes(&me.case, || party.give_up().unwrap())
    });
    passed == Passed::Through
}

#[test]
fn a_barrier_lets_all_of_a_round_through_or_breaks() {
    all::<Barrier>("barriers");
}
