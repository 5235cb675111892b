//! Acts with somebody else beside the victim.

use super::super::ledger::{On, Who};
use super::super::stage::{LARGE, QUARTER, SMALL, Stage, again};
use super::{
    Act, C, Companion, H, NEVER, NOW, Role, V, act, drain, fill, make_and_drop, make_fill_and_drop,
    nothing, race,
};
use procession_core::sys::crash::{self, Action, Trigger, Whose};
use procession_core::{Deadline, Error, Lock, Queue};
use std::time::{Duration, Instant};

const IN_GET: Companion = Companion::Sleeps(|s| {
    s.get(C, On::Queue, NEVER);
});
const IN_PUT: Companion = Companion::Sleeps(|s| {
    s.put(C, On::Bounded, SMALL, NEVER);
});

const BY_MESSAGE: Companion = Companion::Sleeps(|s| {
    let lamp = again(|| s.queue.readable());
    crate::watch::await_lamp(&lamp, libc::POLLIN);
    // Somebody else may have been quicker.
    s.get(C, On::Queue, NOW());
});
const BY_ROOM: Companion = Companion::Sleeps(|s| {
    let lamp = again(|| s.bounded.writable());
    // The room may be taken again before it comes to look: by those who use everything once the victim has ended.
    while !crate::watch::is_lit(&lamp, libc::POLLOUT, 10) && !s.ledger.is_asked() {}
    s.put(C, On::Bounded, SMALL, NOW());
});

/// A sleeper is beside the victim, or it sleeps itself.
pub(super) fn sleepers() -> Vec<Act> {
    [for_sleepers(), beside_sleepers(), sleeping()].concat()
}

/// The bounded queue is full.
fn full(stage: &mut Stage) {
    stage.put(H, On::Bounded, SMALL, NOW());
}

/// The harness has the lock.
fn held(stage: &mut Stage) {
    stage.enter(H, NOW());
}

fn release(stage: &Stage) {
    stage.leave(H);
}

/// Acts that a sleeper waits for.
fn for_sleepers() -> Vec<Act> {
    let with = |name, before, companion, run| act(Role::Sleeper, name, before, companion, run);
    vec![
        with("put, for a sleeper", nothing, IN_GET, |s| {
            s.put(V, On::Queue, SMALL, NEVER);
        }),
        with(
            "put at once, for a sleeper",
            |s| {
                fill(s, &[SMALL]);
                drain(s, H, 1);
            },
            IN_GET,
            |s| {
                s.try_put(V, On::Queue);
            },
        ),
        with("put, large, for a sleeper", nothing, IN_GET, |s| {
            s.put(V, On::Queue, LARGE, NEVER);
        }),
        with(
            "put, into the next segment, for a sleeper",
            at_the_end_of_a_segment,
            IN_GET,
            |s| {
                s.put(V, On::Queue, QUARTER, NEVER);
            },
        ),
        with("put, for one that watches", nothing, BY_MESSAGE, |s| {
            s.put(V, On::Queue, SMALL, NEVER);
        }),
        with("get, for one that watches", full, BY_ROOM, |s| {
            s.get(V, On::Bounded, NOW());
        }),
        with("close, on one that watches", nothing, BY_MESSAGE, |s| {
            s.queue.close().unwrap()
        }),
        with("close, on a sleeper", nothing, IN_GET, |s| {
            s.queue.close().unwrap()
        }),
        with("close, on a sleeper that puts", full, IN_PUT, |s| {
            s.bounded.close().unwrap()
        }),
        with("get, for a sleeper that puts", full, IN_PUT, |s| {
            s.get(V, On::Bounded, NOW());
        }),
        with("get at once, for a sleeper that puts", full, IN_PUT, |s| {
            s.try_get(V, On::Bounded);
        }),
        Act {
            after: |s, finished| {
                if !finished {
                    s.lock.release().unwrap();
                }
            },
            ..with(
                "release, for a sleeper",
                held,
                Companion::Sleeps(|s| {
                    s.pass_lock(C, NEVER);
                }),
                release,
            )
        },
    ]
}

/// Acts that a sleeper doesn't mind.
fn beside_sleepers() -> Vec<Act> {
    let with = |name, run| act(Role::Sleeper, name, nothing, IN_GET, run);
    vec![
        with(
            "make, fill and drop a queue, beside a sleeper",
            make_fill_and_drop,
        ),
        with("keep a place and give it back, beside a sleeper", |s| {
            let place = again(|| s.arena.reserve());
            again(|| place.give(s.lock.name()));
        }),
    ]
}

/// Acts of a victim that sleeps itself.
fn sleeping() -> Vec<Act> {
    let with = |name, before, companion, run| act(Role::Sleeper, name, before, companion, run);
    vec![
        with(
            "get, sleeping",
            nothing,
            Companion::Wakes(|s| {
                s.put(C, On::Queue, SMALL, NEVER);
            }),
            |s| {
                s.get(V, On::Queue, NEVER);
            },
        ),
        with(
            "get, claiming, sleeping",
            nothing,
            Companion::Wakes(|s| {
                s.put(C, On::Queue, LARGE, NEVER);
            }),
            |s| {
                s.get_claiming(V, NEVER);
            },
        ),
        with(
            "put, sleeping",
            full,
            Companion::Wakes(|s| {
                s.get(C, On::Bounded, NOW());
            }),
            |s| {
                s.put(V, On::Bounded, SMALL, NEVER);
            },
        ),
        with("acquire, sleeping", held, Companion::Wakes(release), |s| {
            s.pass_lock(V, NEVER);
        }),
    ]
}

/// Messages up to a segment's end, all got again.
fn at_the_end_of_a_segment(stage: &mut Stage) {
    fill(stage, &[QUARTER; 4]);
    drain(stage, H, 4);
}

/// The same acts as alone, while a neighbour works on the same objects; those that only the harness' own arena sees
/// would see no neighbour.
pub(super) fn neighbours(alone: &[Act]) -> Vec<Act> {
    const THESE: [&str; 16] = [
        "put",
        "put, at once",
        "put, large",
        "put, into the next segment",
        "get",
        "get, at once",
        "get, large",
        "get, claiming",
        "get, over a segment's end",
        "put, naming",
        "get, naming",
        "acquire and release",
        "put and get in the lock",
        "make, fill and drop a queue",
        "keep a place and give it back",
        "close",
    ];
    let chosen = alone.iter().filter(|act| THESE.contains(&&*act.name));
    let mut acts: Vec<Act> = chosen
        .map(|act| Act {
            name: format!("{}, beside a neighbour", act.name),
            role: Role::Neighbour,
            companion: Companion::Works,
            ..act.clone()
        })
        .collect();
    acts.push(act(
        Role::Neighbour,
        "put and get, racing",
        |s| {
            s.more.push(Queue::new(&s.arena, None).unwrap());
        },
        Companion::Races,
        |s| {
            // Long enough to meet at every store even where both are seldom awake at once.
            let begin = Instant::now();
            race(s, || begin.elapsed() > Duration::from_millis(200));
        },
    ));
    acts
}

/// Acts that wait for a lock whose holder is stopped, and goes on or dies once they sleep; or died, or is asked to go on.
pub(super) fn behind() -> Vec<Act> {
    let behind = |name, before, companion, run| act(Role::Neighbour, name, before, companion, run);
    let mut acts = behind_each();
    let unlisted = Companion::Died(put_in_an_unlisted_thread, None);
    let holds = Companion::Holds(make_and_drop, "shm/blocks.rs");
    let large: fn(&mut Stage) = |s| fill(s, &[LARGE]);
    acts.extend([
        behind(
            "put, behind one that died unmarked",
            nothing,
            unlisted,
            |s| put(s, V),
        ),
        behind("get, large, and free it later", large, holds, |s| {
            drain(s, V, 1);
            s.ledger.ask();
            make_and_drop(s);
        }),
        behind(
            "clone a lock in two threads",
            nothing,
            holds,
            clone_in_two_threads,
        ),
    ]);
    acts
}

/// One that is inside: what both do, what was there before, what the companion does, in which file it stops.
type Inside = (
    &'static str,
    fn(&mut Stage),
    fn(&Stage),
    &'static str,
    fn(&Stage),
);

fn behind_each() -> Vec<Act> {
    let three: fn(&mut Stage) = |s| fill(s, &[SMALL; 3]);
    let insides: [Inside; 5] = [
        ("put", nothing, |s| put(s, C), "queue/put.rs", |s| put(s, V)),
        (
            "get",
            three,
            |s| get_in_time(s, C),
            "queue/get.rs",
            |s| get_in_time(s, V),
        ),
        (
            "make a lock",
            nothing,
            make_and_drop,
            "shm/blocks.rs",
            make_and_drop,
        ),
        (
            "keep a place",
            nothing,
            keep_and_drop,
            "shm/slots.rs",
            keep_and_drop,
        ),
        ("acquire", nothing, stop_in_the_lock, "", |s| {
            s.pass_lock(V, NEVER);
        }),
    ];
    let mut acts = Vec::new();
    for (name, before, inside, file, run) in insides {
        let stops = Companion::Stops(inside, file);
        let ends = Companion::Ends(inside, file);
        for (companion, how) in [(stops, "is stopped"), (ends, "dies")] {
            let name = format!("{name}, behind one that {how}");
            acts.push(act(Role::Neighbour, &name, before, companion, run));
        }
    }
    acts
}

fn put(stage: &Stage, who: Who) {
    stage.put(who, On::Queue, SMALL, NEVER);
}

/// Waits for a lock rather than say that there is nothing now.
fn get_in_time(stage: &Stage, who: Who) {
    stage.get(who, On::Queue, Deadline::after(Duration::from_secs(20)));
}

fn keep_and_drop(stage: &Stage) {
    drop(again(|| stage.arena.reserve()));
}

fn stop_in_the_lock(stage: &Stage) {
    stage.enter(C, NEVER);
    // SAFETY: to this process.
    unsafe { libc::raise(libc::SIGSTOP) };
    stage.leave(C);
}

fn clone_in_two_threads(stage: &Stage) {
    std::thread::scope(|scope| {
        scope.spawn(|| open_a_stale_name(stage));
        // Awake, until that one waits for the allocator, with the gate of this process closed.
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_millis(3) {
            std::hint::spin_loop();
        }
        drop(stage.lock.clone());
        stage.ledger.ask();
    });
}

/// Dies inside a put of a thread without a list of what the kernel is to mark at its death, as a sandbox may leave it.
fn put_in_an_unlisted_thread(stage: &Stage) {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // SAFETY: of this thread, which has no robust mutex; the engine hasn't asked for the list here yet.
            unsafe { libc::syscall(libc::SYS_set_robust_list, std::ptr::null::<u8>(), 24) };
            crash::arm_at(Trigger::File("queue/put.rs"), Action::Kill, Whose::Own);
            stage.put(C, On::Queue, SMALL, NEVER);
        });
    });
}

fn open_a_stale_name(stage: &Stage) {
    let mut name = stage.lock.name();
    name.serial += 1_000;
    loop {
        match Lock::open(&stage.arena, name) {
            Err(Error::Interrupted) => {}
            other => break assert!(matches!(other, Err(Error::Closed { .. })), "{other:?}"),
        }
    }
}
