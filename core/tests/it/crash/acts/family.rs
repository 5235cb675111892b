//! Acts of parents and children.

use super::super::ledger::On;
use super::super::stage::{SMALL, Stage, again};
use super::{Act, C, Companion, NEVER, Role, V, act, fill, make_and_drop, nothing};
use crate::child::fork;
use procession_core::{Acquired, Arena, Lock};

/// All of them.
pub(super) fn acts() -> Vec<Act> {
    let family = |role, name, before, run| act(role, name, before, Companion::None, run);
    let enters: fn(&Stage) = |s| {
        s.put(V, On::Queue, SMALL, NEVER);
        s.pass_lock(V, NEVER);
    };
    vec![
        family(Role::Child, "be forked", nothing, enters),
        family(
            Role::Parent,
            "fork",
            |s| fill(s, &[SMALL]),
            |s| {
                let child = fork(|| {
                    s.put(C, On::Queue, SMALL, NEVER);
                    s.pass_lock(C, NEVER);
                    make_and_drop(s);
                });
                s.put(V, On::Queue, SMALL, NEVER);
                child.join();
            },
        ),
        family(Role::Attacher, "attach", Stage::keep_place, |s| {
            let joined = attach(s);
            let lock = again(|| Lock::open(&joined, s.lock.name()));
            let acquired = again(|| lock.acquire(NEVER));
            s.ledger.enter(V, acquired == Acquired::OwnerDied);
            s.leave(V);
            std::mem::forget((lock, joined));
        }),
        family(
            Role::Attacher,
            "attach and leave again",
            Stage::keep_place,
            |s| {
                drop(attach(s));
            },
        ),
    ]
}

fn attach(stage: &Stage) -> Arena {
    let (_, token) = stage.place.as_ref().unwrap();
    again(|| Arena::attach(token))
}
