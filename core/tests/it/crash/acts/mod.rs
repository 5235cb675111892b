//! Who does what while a process is killed or stopped: the acts of the walk, in roles.

mod alone;
mod beside;
mod family;
mod sync;

use super::ledger::{On, Who};
use super::stage::{LARGE, SMALL, Stage, again};
use procession_core::{Deadline, Lock, Queue};
use std::time::Duration;

/// The part that the victim plays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Nobody else is there.
    Alone,
    /// Another process sleeps on the object, or the victim does until another wakes it.
    Sleeper,
    /// Another process works on the same objects, or is inside and keeps the victim waiting.
    Neighbour,
    /// The victim recovers one that died half way.
    Recoverer,
    /// The child of a fork, from its first instant.
    Child,
    /// The parent of a fork.
    Parent,
    /// A child by exec, which attaches.
    Attacher,
}

impl Role {
    pub(crate) const ALL: [Self; 7] = [
        Self::Alone,
        Self::Sleeper,
        Self::Neighbour,
        Self::Recoverer,
        Self::Child,
        Self::Parent,
        Self::Attacher,
    ];
}

/// What another process does meanwhile.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Companion {
    None,
    /// Sleeps in this before the victim begins.
    Sleeps(fn(&Stage)),
    /// Does this once the victim sleeps.
    Wakes(fn(&Stage)),
    /// Puts, gets, locks and makes objects all the time.
    Works,
    /// Puts and gets small messages, and nothing else.
    Races,
    /// Is stopped at its first store in that file, until the victim sleeps; in no file: stops itself.
    Stops(fn(&Stage), &'static str),
    /// The same, and is killed then; until the end it is a zombie.
    Ends(fn(&Stage), &'static str),
    /// Is stopped in the same way, until the victim asks it to go on.
    Holds(fn(&Stage), &'static str),
    /// Was killed in this, at the first passage of that site; without one: kills itself.
    Died(fn(&Stage), Option<usize>),
}

/// Something to be killed or stopped in.
#[derive(Debug, Clone)]
pub(crate) struct Act {
    pub(crate) name: String,
    pub(crate) role: Role,
    /// Done by the harness, before anybody else is there.
    pub(crate) before: fn(&mut Stage),
    pub(crate) companion: Companion,
    /// Done by the victim.
    pub(crate) run: fn(&Stage),
    /// Done by the harness when the victim has finished, or not.
    pub(crate) after: fn(&Stage, bool),
}

const V: Who = Who::Victim;
/// A recoverer's victim has another name than the dead one, who did what a victim does elsewhere.
pub(crate) const RECOVERER: Who = Who::Companion;
const C: Who = Who::Companion;
const H: Who = Who::Harness;
const NOW: fn() -> Deadline = Deadline::now;
const NEVER: Deadline = Deadline::NEVER;

fn act(
    role: Role,
    name: &str,
    before: fn(&mut Stage),
    companion: Companion,
    run: fn(&Stage),
) -> Act {
    Act {
        name: name.to_owned(),
        role,
        before,
        companion,
        run,
        after: |_, _| {},
    }
}

fn nothing(_: &mut Stage) {}

fn fill(stage: &Stage, lengths: &[usize]) {
    for length in lengths {
        stage.put(H, On::Queue, *length, NEVER);
    }
}

fn drain(stage: &Stage, who: Who, count: usize) {
    for _ in 0..count {
        stage.get(who, On::Queue, NOW());
    }
}

fn make_and_drop(stage: &Stage) {
    drop(again(|| Lock::new(&stage.arena)));
}

fn make_fill_and_drop(stage: &Stage) {
    let queue = again(|| Queue::new(&stage.arena, None));
    for length in [SMALL, LARGE] {
        again(|| queue.put(0, &[&vec![1; length]], NEVER));
    }
}

/// What every recoverer, and everybody else who comes, does with the objects.
fn use_all(stage: &Stage, who: Who) {
    stage.put(who, On::Queue, SMALL, NEVER);
    while stage.get(who, On::Queue, NOW()) {}
    stage.put(who, On::Bounded, SMALL, NOW());
    stage.get(who, On::Bounded, NOW());
    stage.pass_lock(who, Deadline::after(Duration::from_millis(200)));
    make_and_drop(stage);
}

/// A neighbour's work: for as long as the victim is at its own, and a while longer.
pub(crate) fn work(stage: &Stage) {
    let mut left = 20;
    for round in 0..2_000u32 {
        let length = if round % 7 == 0 { LARGE } else { SMALL };
        stage.put(C, On::Queue, length, NEVER);
        stage.pass_lock(C, NEVER);
        stage.get(C, On::Queue, NOW());
        if round % 4 == 0 {
            make_and_drop(stage);
        }
        left -= i32::from(stage.ledger.is_asked());
        if left == 0 {
            break;
        }
    }
}

/// Puts and gets as fast as it can, so that two who do this meet in a queue's locks.
pub(crate) fn race(stage: &Stage, is_over: impl Fn() -> bool) {
    let queue = &stage.more[0];
    while !is_over() {
        again(|| queue.put(0, &[&[7; 8]], NEVER));
        let got = again(|| queue.get(NOW()));
        assert!(got.is_none_or(|got| got.bytes == [7; 8]));
    }
}

/// Every act but the recoverers', which are made of these.
pub(crate) fn all() -> Vec<Act> {
    let alone = alone::acts();
    let mut acts = beside::neighbours(&alone);
    acts.extend(beside::behind());
    acts.extend(beside::sleepers());
    acts.extend(family::acts());
    acts.extend(sync::acts());
    acts.splice(0..0, alone);
    acts
}

/// Acts of a recoverer: one of `acts` was killed at a site, and the victim repairs and gives back what that left, in
/// both ways in which it can come to it. Without a dead one: what they pass anyhow.
pub(crate) fn recoverers(dead: Option<(&Act, usize, &str)>) -> [Act; 2] {
    let (name, before, companion) = match dead {
        None => (String::new(), nothing as fn(&mut Stage), Companion::None),
        Some((act, site, place)) => (
            format!(" one that died in {}, before {place}", act.name),
            act.before,
            Companion::Died(act.run, Some(site)),
        ),
    };
    let reap: fn(&Stage) = |s| again(|| s.arena.reap());
    let meet: fn(&Stage) = |s| {
        use_all(s, RECOVERER);
        again(|| s.queue.settle());
        again(|| s.bounded.settle());
    };
    [("recover", reap), ("meet", meet)].map(|(verb, run)| Act {
        name: format!("{verb}{name}"),
        role: Role::Recoverer,
        before,
        companion,
        run,
        after: |_, _| {},
    })
}
