//! Every operation on shared memory that a process can die in.

use super::pool::Pool;
use super::sync::Sync;
use super::{NEW, Place, Scene, body, number_of, put_numbered};
use crate::child::fork;
use procession_core::{Acquired, Arena, Carried, Deadline, Lock, Memory, Queue};
use std::os::fd::{AsFd, IntoRawFd};

/// What an operation may do if it dies in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    Nothing,
    /// Message [`NEW`] may be there, whole.
    Puts,
    /// The first message may be gone.
    Gets,
    /// As `Gets`, and the claim says which.
    Claims,
    /// The queue may be closed.
    Closes,
    /// The pool may have another task.
    Submits,
    /// The first task may be answered.
    Answers,
}

/// An operation to die in.
pub(crate) struct Operation {
    pub(crate) name: &'static str,
    pub(crate) effect: Effect,
    /// Lengths of the messages in the queue before it.
    pub(crate) lengths: &'static [usize],
    /// What else happens before it.
    pub(crate) before: fn(&mut Scene),
    pub(crate) run: fn(&Scene),
}

/// What most operations have in common.
const PLAIN: Operation = Operation {
    name: "",
    effect: Effect::Nothing,
    lengths: &[],
    before: |_| {},
    run: |_| {},
};

const SMALL: usize = 40;
/// Too long to lie among the records, and no longer than that, since every store of it is a state of its own.
pub(super) const LARGE: usize = 17_000;
/// Four of these fill a segment but for a little.
const QUARTER: usize = 16_000;
const PAGE: usize = 4096;
/// What the scene's objects and a segment leave free in the first window, where a segment fits.
const FREE: usize = 160 * PAGE;
/// Bytes of the first window.
const WINDOW: u64 = 1 << 20;

fn with_sync(scene: &mut Scene) {
    scene.sync = Some(Sync::new(&scene.arena));
}

pub(crate) const OPERATIONS: &[Operation] = &[
    Operation {
        name: "put, the first",
        effect: Effect::Puts,
        run: |s| put_numbered(&s.queue, NEW, SMALL),
        ..PLAIN
    },
    Operation {
        name: "put",
        effect: Effect::Puts,
        lengths: &[SMALL],
        run: |s| put_numbered(&s.queue, NEW, SMALL),
        ..PLAIN
    },
    Operation {
        name: "try to put",
        effect: Effect::Puts,
        lengths: &[SMALL],
        run: |s| assert!(s.queue.try_put(0, &[&body(NEW, SMALL)]).unwrap()),
        ..PLAIN
    },
    Operation {
        name: "put, large",
        effect: Effect::Puts,
        lengths: &[SMALL],
        run: |s| put_numbered(&s.queue, NEW, LARGE),
        ..PLAIN
    },
    Operation {
        name: "put, into the next segment",
        effect: Effect::Puts,
        lengths: &[QUARTER; 4],
        run: |s| put_numbered(&s.queue, NEW, QUARTER),
        ..PLAIN
    },
    Operation {
        name: "get",
        effect: Effect::Gets,
        lengths: &[SMALL, SMALL],
        run: get,
        ..PLAIN
    },
    Operation {
        name: "get, the last",
        effect: Effect::Gets,
        lengths: &[SMALL],
        run: get,
        ..PLAIN
    },
    Operation {
        name: "get, large",
        effect: Effect::Gets,
        lengths: &[LARGE, SMALL],
        run: get,
        ..PLAIN
    },
    Operation {
        name: "get, over a segment's end",
        effect: Effect::Gets,
        lengths: &[QUARTER, QUARTER, QUARTER, QUARTER, SMALL],
        before: |s| (0..4).for_each(|_| s.get_one()),
        run: get,
    },
    Operation {
        name: "get, claiming",
        effect: Effect::Claims,
        lengths: &[SMALL, SMALL],
        run: |s| get_claiming(s, SMALL),
        ..PLAIN
    },
    Operation {
        name: "get, claiming a large one",
        effect: Effect::Claims,
        lengths: &[LARGE, SMALL],
        run: |s| get_claiming(s, 0),
        ..PLAIN
    },
    Operation {
        name: "put, naming",
        effect: Effect::Puts,
        lengths: &[SMALL],
        run: |s| s.put_lock(&s.queue, NEW, SMALL),
        ..PLAIN
    },
    Operation {
        name: "put, naming in a large one",
        effect: Effect::Puts,
        lengths: &[SMALL],
        run: |s| s.put_lock(&s.queue, NEW, LARGE),
        ..PLAIN
    },
    Operation {
        name: "get, naming",
        effect: Effect::Gets,
        before: |s| s.name_locks(SMALL),
        run: get_naming,
        ..PLAIN
    },
    Operation {
        name: "get, naming in a large one",
        effect: Effect::Gets,
        before: |s| s.name_locks(LARGE),
        run: get_naming,
        ..PLAIN
    },
    Operation {
        name: "let go of the last, traced",
        before: |s| {
            let other = Queue::new(&s.arena, None).unwrap();
            s.put_lock(&other, 1, SMALL);
            s.put_lock(&other, 2, SMALL);
            s.others.push(other);
        },
        run: |s| {
            drop(s.others[0].get(Deadline::now()).unwrap().unwrap());
            s.arena.reap().unwrap();
        },
        ..PLAIN
    },
    Operation {
        name: "drop a queue that is in itself, traced",
        run: |s| {
            let queue = Queue::new(&s.arena, None).unwrap();
            let mut names = Carried::new();
            names.add(&s.arena, queue.name()).unwrap();
            s.put_lock(&queue, 1, SMALL);
            queue
                .put_naming(0, &[b"itself"], &names, Deadline::NEVER)
                .unwrap();
            drop((names, queue));
            s.arena.reap().unwrap();
        },
        ..PLAIN
    },
    Operation {
        name: "close",
        effect: Effect::Closes,
        lengths: &[SMALL],
        run: |s| s.queue.close().unwrap(),
        ..PLAIN
    },
    Operation {
        name: "take a recursive lock twice",
        before: with_sync,
        run: |s| s.sync().lock_twice(),
        ..PLAIN
    },
    Operation {
        name: "free a recursive lock for a wait",
        before: with_sync,
        run: |s| s.sync().unlock_for_a_wait(),
        ..PLAIN
    },
    Operation {
        name: "have a recursive lock briefly",
        before: with_sync,
        run: |s| s.sync().lock_briefly(),
        ..PLAIN
    },
    Operation {
        name: "take permits, and give them",
        before: with_sync,
        run: |s| s.sync().take_permits(),
        ..PLAIN
    },
    Operation {
        name: "answer a signal",
        before: with_sync,
        run: |s| s.sync().signal(),
        ..PLAIN
    },
    Operation {
        name: "wait and notify",
        before: with_sync,
        run: |s| s.sync().wait_and_notify(),
        ..PLAIN
    },
    Operation {
        name: "set and clear an event",
        before: with_sync,
        run: |s| s.sync().set_and_clear(),
        ..PLAIN
    },
    Operation {
        name: "pass a barrier",
        before: with_sync,
        run: |s| s.sync().pass(),
        ..PLAIN
    },
    Operation {
        name: "give a barrier up",
        before: with_sync,
        run: |s| s.sync().give_up(),
        ..PLAIN
    },
    Operation {
        name: "do a task",
        before: with_sync,
        run: |s| s.sync().do_task(),
        ..PLAIN
    },
    Operation {
        name: "join, when all tasks are done",
        before: |s| {
            with_sync(s);
            fork(|| s.sync().get_task()).join();
            s.arena.reap().unwrap();
            s.sync().do_tasks();
        },
        run: |s| assert_eq!(s.sync().join_tasks(), 1),
        ..PLAIN
    },
    Operation {
        name: "recover one that had tasks to do",
        before: |s| {
            with_sync(s);
            fork(|| (0..2).for_each(|_| s.sync().get_task())).join();
        },
        run: |s| s.arena.reap().unwrap(),
        ..PLAIN
    },
    Operation {
        name: "acquire and release",
        run: |s| {
            assert_eq!(s.lock.acquire(Deadline::NEVER).unwrap(), Acquired::Clean);
            s.lock.release().unwrap();
        },
        ..PLAIN
    },
    Operation {
        name: "acquire what a dead process held",
        before: |s| s.kill_one(),
        run: |s| {
            let acquired = s.lock.acquire(Deadline::NEVER).unwrap();
            assert_eq!(acquired, Acquired::OwnerDied);
            s.lock.release().unwrap();
        },
        ..PLAIN
    },
    Operation {
        name: "make and drop a lock",
        run: |s| drop(Lock::new(&s.arena).unwrap()),
        ..PLAIN
    },
    Operation {
        name: "make and drop a queue in a slab of its own",
        // With the scene's own, 63 queues fill a slab.
        before: |s| {
            s.others = (1..63)
                .map(|_| Queue::new(&s.arena, None).unwrap())
                .collect()
        },
        run: |s| drop(Queue::new(&s.arena, None).unwrap()),
        ..PLAIN
    },
    Operation {
        name: "make, fill and drop a queue",
        run: |s| {
            let queue = Queue::new(&s.arena, None).unwrap();
            for length in [SMALL, LARGE] {
                put_numbered(&queue, 1, length);
            }
        },
        ..PLAIN
    },
    Operation {
        name: "make, fill and drop a memory",
        run: |s| {
            let memory = Memory::new(&s.arena, SMALL).unwrap();
            memory.bytes().write(0, &[1; SMALL]).unwrap();
        },
        ..PLAIN
    },
    Operation {
        name: "open and drop",
        before: keep_place,
        run: |s| drop(Lock::open(&s.arena, s.place().held).unwrap()),
        ..PLAIN
    },
    Operation {
        name: "fill a queue where free runs must be joined",
        before: |s| {
            let other = Queue::new(&s.arena, None).unwrap();
            // The first one lies before the segment, the others side by side behind it.
            (0..5).for_each(|_| put_numbered(&other, 1, LARGE));
            fill(s, &other, 5 * LARGE.next_multiple_of(PAGE));
            (0..5).for_each(|_| drop(other.get(Deadline::now()).unwrap().unwrap()));
            s.others.push(other);
        },
        run: |s| {
            put_numbered(&Queue::new(&s.arena, None).unwrap(), 1, SMALL);
            assert!(length(&s.arena) <= WINDOW, "FREE is too small");
        },
        ..PLAIN
    },
    Operation {
        name: "grow into another window",
        before: |s| {
            let other = Queue::new(&s.arena, None).unwrap();
            fill(s, &other, 0);
            s.others.push(other);
        },
        run: |s| {
            put_numbered(&Queue::new(&s.arena, None).unwrap(), 1, SMALL);
            assert!(length(&s.arena) > WINDOW, "FREE is too small");
        },
        ..PLAIN
    },
    Operation {
        name: "reserve and give back",
        run: |s| {
            let child = s.arena.reserve().unwrap();
            child.give(s.lock.name()).unwrap();
        },
        ..PLAIN
    },
    Operation {
        name: "join",
        before: keep_place,
        run: |s| std::mem::forget(join(s)),
        ..PLAIN
    },
    Operation {
        name: "join, and drop the membership",
        before: keep_place,
        run: |s| drop(join(s)),
        ..PLAIN
    },
    Operation {
        name: "fork",
        run: |_| {
            fork(|| ()).wait();
        },
        ..PLAIN
    },
    Operation {
        name: "leave",
        run: |s| s.arena.leave(),
        ..PLAIN
    },
    Operation {
        name: "submit a task",
        effect: Effect::Submits,
        before: |s| s.pool = Some(Pool::new(&s.arena)),
        run: |s| s.pool().submit(NEW),
        ..PLAIN
    },
    Operation {
        name: "take a task and answer it",
        effect: Effect::Answers,
        before: |s| s.pool = Some(Pool::new(&s.arena)),
        run: |s| s.pool().answer(),
        ..PLAIN
    },
    Operation {
        name: "recover one that was killed",
        lengths: &[SMALL],
        before: |s| s.kill_one(),
        run: |s| s.arena.reap().unwrap(),
        ..PLAIN
    },
    Operation {
        name: "recover one that left",
        before: |s| {
            let leave = || {
                put_numbered(&Queue::new(&s.arena, None).unwrap(), 1, LARGE);
                s.arena.leave();
            };
            fork(leave).join();
        },
        run: |s| s.arena.reap().unwrap(),
        ..PLAIN
    },
];

fn get(scene: &Scene) {
    let got = scene.queue.get(Deadline::now()).unwrap().unwrap();
    // The rest of it is looked at where that isn't stepped.
    assert_eq!(number_of(&got.bytes[..8]), scene.messages[0]);
}

fn get_naming(scene: &Scene) {
    let got = scene.queue.get(Deadline::now()).unwrap().unwrap();
    assert_eq!(number_of(&got.bytes[..8]), scene.messages[0]);
    assert_eq!(got.carried.names().len(), 1);
}

fn get_claiming(scene: &Scene, bytes: usize) {
    let mut buffer = Vec::new();
    let taken = scene
        .queue
        .get_claiming(&scene.claim, &mut buffer, Deadline::now());
    drop(taken.unwrap().unwrap());
    assert_eq!(buffer.len(), bytes);
}

/// Takes what is free in the first window, but for some bytes that another message has.
fn fill(scene: &Scene, queue: &Queue, but: usize) {
    let filler = body(1, FREE - but);
    queue.put(0, &[&filler], Deadline::NEVER).unwrap();
    assert!(length(&scene.arena) <= WINDOW, "FREE is too large");
}

/// The length of the arena's file.
fn length(arena: &Arena) -> u64 {
    let file = arena.descriptor().as_fd().try_clone_to_owned().unwrap();
    std::fs::File::from(file).metadata().unwrap().len()
}

/// Keeps a place for a child that is to attach, with a lock that only the child holds.
fn keep_place(scene: &mut Scene) {
    let slot = scene.arena.reserve().unwrap();
    let lock = Lock::new(&scene.arena).unwrap();
    slot.give(lock.name()).unwrap();
    let held = lock.name();
    scene.place = Some(Place { slot, held });
}

/// As the child for which the place is kept: joins, by a descriptor of its own.
fn join(scene: &Scene) -> Arena {
    let file = scene.arena.descriptor().try_clone_to_owned().unwrap();
    let token = scene.place().slot.token(file.into_raw_fd());
    Arena::attach(&token).unwrap()
}
