//! Acts of parents and children.

use super::super::ledger::On;
use super::super::stage::{SMALL, Stage, again};
use super::{Act, C, Companion, NEVER, Role, V, act, fill, make_and_drop, nothing};
use crate::child::{Child, fork};
use procession_core::sys::crash::{self, Action, Trigger, Whose};
use procession_core::{Acquired, Arena, Lock, Place};
use std::io::{PipeWriter, Read, Write};
use std::os::fd::AsRawFd;

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
            "give a child a kept place",
            Stage::keep_place,
            |s| {
                let (kept, _) = s.place.as_ref().unwrap();
                let place = kept.place();
                let (child, begin) = adopted(s, place, || {
                    s.put(C, On::Queue, SMALL, NEVER);
                    make_and_drop(s);
                });
                go_on(begin);
                child.join();
            },
        ),
        act(
            Role::Recoverer,
            "recover one that kept a place for a child that another forked, which died",
            nothing,
            Companion::Died(keep_a_place_of_a_dead_child, None),
            |s| again(|| s.arena.reap()),
        ),
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

/// Forks a child and gives it that place, which it takes when it is told to go on; then it works. Not if its parent dies first, as
/// a fork server's.
fn adopted(stage: &Stage, place: Place, work: impl FnOnce()) -> (Child, PipeWriter) {
    let arena = &stage.arena;
    let (mut reader, writer) = std::io::pipe().unwrap();
    let adoption = arena.adoption();
    let placeless = arena.placeless();
    let ends = writer.as_raw_fd();
    let child = fork(|| {
        // SAFETY: a forked child's copy, whose owner it never drops.
        unsafe { libc::close(ends) };
        if reader.read(&mut [0]).unwrap() == 0 {
            return;
        }
        again(|| arena.take_place(place));
        work();
    });
    // What the parent passes next is always the same, if nobody is beside it.
    child.comes_to_rest();
    drop(placeless);
    again(|| arena.adopt(place, &adoption));
    (child, writer)
}

fn go_on(mut begin: PipeWriter) {
    // It may have died.
    let _ = begin.write_all(&[1]);
}

/// Keeps a place for a child that dies before its first store, and dies itself.
fn keep_a_place_of_a_dead_child(stage: &Stage) {
    let kept = again(|| stage.arena.reserve());
    crash::arm_at(Trigger::Nth(1), Action::Kill, Whose::Child);
    let (child, begin) = adopted(stage, kept.place(), || ());
    go_on(begin);
    assert_eq!(child.wait(), -libc::SIGKILL);
    // SAFETY: to this process.
    unsafe { libc::raise(libc::SIGKILL) };
}

fn attach(stage: &Stage) -> Arena {
    let (_, token) = stage.place.as_ref().unwrap();
    again(|| Arena::attach(token))
}
