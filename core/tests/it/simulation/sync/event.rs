//! Events: a set wakes all who wait, and is seen by whoever comes until it is cleared.

use super::{Actor, Case, Subject, again, all};
use crate::simulation::world::{Name, World};
use procession_core::{Arena, Event, ObjectName};
use std::collections::BTreeMap;
use std::rc::Rc;

/// A set or a clear, and when.
#[derive(Debug, Clone, Copy)]
struct Change {
    sets: bool,
    begin: u64,
    /// Not there when it was killed on the way.
    end: Option<u64>,
}

impl Change {
    fn is_before(&self, time: u64) -> bool {
        self.end.is_some_and(|end| end < time)
    }

    /// Whether it may have happened at some time of those.
    fn may_touch(&self, begin: u64, end: u64) -> bool {
        self.begin <= end && !self.is_before(begin)
    }
}

#[derive(Default)]
pub(super) struct Notes {
    changes: Vec<Change>,
    /// What each process that waits was told that it was set.
    counts: BTreeMap<Name, u32>,
}

impl Notes {
    fn of(&self, sets: bool) -> impl Iterator<Item = &Change> {
        self.changes.iter().filter(move |it| it.sets == sets)
    }

    /// Whether it may have been set at some time of those.
    fn may_be_set(&self, begin: u64, end: u64) -> bool {
        self.of(true).any(|set| {
            let over = |clear: &Change| set.is_before(clear.begin) && clear.is_before(begin);
            set.begin <= end && !self.of(false).any(over)
        })
    }

    /// Whether it was set in between, and not cleared around that: then whoever waited all the time was woken.
    fn was_set_within(&self, begin: u64, end: u64) -> bool {
        let mut sets = self.of(true);
        let within = |set: &Change| set.begin > begin && set.is_before(end);
        sets.any(|set| {
            let mut clears = self.of(false);
            within(set) && !clears.any(|clear| clear.may_touch(begin, set.end.unwrap_or(end)))
        })
    }

    /// What it is after all, if that can be told.
    fn last(&self) -> Option<bool> {
        let is_last = |change: &Change| {
            let after = |other: &Change| other.is_before(change.begin);
            change.end.is_some() && self.of(!change.sets).all(after)
        };
        let mut last = self.changes.iter().filter(|change| is_last(change));
        last.next().map(|change| change.sets)
    }
}

impl Subject for Event {
    type Notes = Notes;

    fn make(arena: &Arena, _: &Rc<World>) -> (Self, Notes) {
        (Self::new(arena).unwrap(), Notes::default())
    }

    fn names(&self) -> Vec<ObjectName> {
        vec![self.name()]
    }

    fn open(arena: &Arena, names: &[ObjectName]) -> Self {
        again(|| Self::open(arena, names[0])).unwrap()
    }

    fn act(&self, me: &Actor<Self>) {
        match me.below(8) {
            0..2 => change(self, &me.case, true),
            2..4 => change(self, &me.case, false),
            4..7 => wait(self, me),
            _ => me.pause(),
        }
    }

    fn end(&self, me: &Actor<Self>, _: &Arena) {
        if me.below(2) == 0 {
            me.case.world.kill_me();
        }
    }

    fn without_reason(&self, case: &Case<Self>) -> Option<String> {
        let (is_set, count) = (self.is_set().unwrap(), self.count().unwrap());
        let notes = case.notes.borrow();
        let mut sleepers = case.sleepers();
        sleepers.retain(|name| is_set || notes.counts[name] != count);
        (!sleepers.is_empty()).then(|| format!("{sleepers:?}, set {is_set}, {count} times"))
    }

    fn wind_down(&self, case: &Case<Self>) {
        change(self, case, true);
    }

    fn judge(&self, case: &Case<Self>) {
        let notes = case.notes.borrow();
        if let Some(is_set) = notes.last() {
            assert_eq!(self.is_set(), Ok(is_set), "{:?}", notes.changes);
        }
    }
}

fn change(event: &Event, case: &Case<Event>, sets: bool) {
    let at = {
        let changes = &mut case.notes.borrow_mut().changes;
        changes.push(Change {
            sets,
            begin: case.world.now(),
            end: None,
        });
        changes.len() - 1
    };
    if sets { event.set() } else { event.clear() }.unwrap();
    case.notes.borrow_mut().changes[at].end = Some(case.world.now());
}

fn wait(event: &Event, me: &Actor<Event>) {
    let world = &me.case.world;
    let (begin, kept, timeout) = (world.now(), world.kept(), me.timeout(true));
    let count = event.count().unwrap();
    me.case.notes.borrow_mut().counts.insert(me.name, count);
    let asked = world.now();
    let was_set = me
        .timed(timeout, |deadline| event.wait(count, deadline))
        .unwrap();
    let (end, notes) = (world.now(), me.case.notes.borrow());
    if was_set {
        assert!(notes.may_be_set(begin, end), "{:?}", notes.changes);
        return;
    }
    let timeout = timeout.expect("a wait without a deadline gave up");
    // One that was kept from running may have looked for the last time long before its deadline.
    let over = asked + timeout * super::MILLISECOND;
    if world.kept() == kept {
        assert!(!notes.was_set_within(asked, over), "{:?}", notes.changes);
    }
}

#[test]
fn an_event_that_is_set_wakes_all() {
    all::<Event>("events");
}
