//! Acts of a process that nobody is beside.

use super::super::ledger::On;
use super::super::stage::{LARGE, QUARTER, SMALL, again};
use super::{
    Act, Companion, H, NEVER, NOW, Role, Stage, V, act, drain, fill, make_and_drop,
    make_fill_and_drop, nothing,
};
use crate::watch::until_watchers_sleep;
use procession_core::{Arena, Carried, Error, Lock, Memory, Queue};

/// All of them.
pub(super) fn acts() -> Vec<Act> {
    [puts(), gets(), naming(), locks(), objects(), ends()].concat()
}

fn alone(name: &str, before: fn(&mut Stage), run: fn(&Stage)) -> Act {
    act(Role::Alone, name, before, Companion::None, run)
}

/// On each way that a put may go.
fn puts() -> Vec<Act> {
    vec![
        alone("put, the first", nothing, |s| {
            s.put(V, On::Queue, SMALL, NEVER);
        }),
        alone(
            "put",
            |s| fill(s, &[SMALL]),
            |s| {
                s.put(V, On::Queue, SMALL, NEVER);
            },
        ),
        alone(
            "put, at once",
            |s| fill(s, &[SMALL]),
            |s| {
                s.try_put(V, On::Queue);
            },
        ),
        alone("put, bounded", nothing, |s| {
            s.put(V, On::Bounded, SMALL, NOW());
        }),
        alone(
            "put, large",
            |s| fill(s, &[SMALL]),
            |s| {
                s.put(V, On::Queue, LARGE, NEVER);
            },
        ),
        alone(
            "put, where one was freed",
            |s| {
                fill(s, &[LARGE]);
                drain(s, H, 1);
            },
            |s| {
                s.put(V, On::Queue, LARGE, NEVER);
            },
        ),
        alone(
            "put, beyond what is warm",
            |s| fill(s, &[SMALL]),
            |s| {
                for _ in 0..2 {
                    s.put(V, On::Queue, 3 * LARGE, NEVER);
                }
            },
        ),
        alone(
            "put, where two were freed",
            |s| {
                fill(s, &[LARGE; 16]);
                drain(s, H, 4);
            },
            |s| {
                s.put(V, On::Queue, 2 * LARGE, NEVER);
            },
        ),
        alone(
            "put, into the next segment",
            |s| fill(s, &[QUARTER; 4]),
            |s| {
                s.put(V, On::Queue, QUARTER, NEVER);
            },
        ),
        alone("put, into the next window", nothing, |s| {
            s.put(V, On::Queue, 3 << 20, NEVER);
        }),
    ]
}

/// On each way that a get may go.
fn gets() -> Vec<Act> {
    vec![
        alone("get", |s| fill(s, &[SMALL; 2]), |s| drain(s, V, 1)),
        alone("get, the last", |s| fill(s, &[SMALL]), |s| drain(s, V, 1)),
        alone(
            "get, at once",
            |s| fill(s, &[SMALL, LARGE]),
            |s| {
                s.try_get(V, On::Queue);
                s.try_get(V, On::Queue);
            },
        ),
        alone(
            "get, bounded",
            |s| {
                s.put(H, On::Bounded, SMALL, NOW());
            },
            |s| {
                s.get(V, On::Bounded, NOW());
            },
        ),
        alone(
            "get, large",
            |s| fill(s, &[LARGE, SMALL]),
            |s| drain(s, V, 1),
        ),
        alone(
            "get, over a segment's end",
            |s| fill(s, &[QUARTER; 5]),
            |s| drain(s, V, 5),
        ),
        alone(
            "get, larger than is kept warm",
            |s| fill(s, &[65 << 20]),
            |s| drain(s, V, 1),
        ),
        alone(
            "get, claiming",
            |s| fill(s, &[SMALL; 2]),
            |s| {
                s.get_claiming(V, NOW());
            },
        ),
        alone(
            "get, claiming, large",
            |s| fill(s, &[LARGE, SMALL]),
            |s| {
                s.get_claiming(V, NOW());
                s.claim.clear().unwrap();
            },
        ),
    ]
}

/// With messages that name objects.
fn naming() -> Vec<Act> {
    vec![
        alone(
            "put, naming",
            |s| fill(s, &[SMALL]),
            |s| {
                s.put_naming(V, On::Queue, SMALL);
            },
        ),
        alone("put, naming, large", nothing, |s| {
            s.put_naming(V, On::Queue, LARGE);
        }),
        alone(
            "get, naming",
            |s| fill_naming(s, &[SMALL, LARGE]),
            |s| drain(s, V, 2),
        ),
        alone(
            "get at once, naming",
            |s| fill_naming(s, &[SMALL]),
            |s| {
                s.try_get(V, On::Queue);
            },
        ),
        alone(
            "get, claiming, naming",
            |s| fill_naming(s, &[SMALL]),
            |s| {
                s.get_claiming(V, NOW());
            },
        ),
        alone("make a queue that is in itself and drop it", nothing, |s| {
            let queue = again(|| Queue::new(&s.arena, None));
            put_into_itself(s, &queue);
        }),
        alone("drop a queue in which objects are", nothing, |s| {
            let [queue, inner] = [(); 2].map(|()| again(|| Queue::new(&s.arena, None)));
            put_into_itself(s, &inner);
            let mut names = Carried::new();
            names.add(&s.arena, inner.name()).unwrap();
            drop(inner);
            again(|| queue.put_naming(0, &[b"inner"], &names, NEVER));
        }),
    ]
}

fn fill_naming(stage: &Stage, lengths: &[usize]) {
    for length in lengths {
        stage.put_naming(H, On::Queue, *length);
    }
}

fn put_into_itself(stage: &Stage, queue: &Queue) {
    let mut names = Carried::new();
    names.add(&stage.arena, queue.name()).unwrap();
    again(|| queue.put_naming(0, &[b"itself"], &names, NEVER));
}

/// With the lock.
fn locks() -> Vec<Act> {
    vec![
        alone("acquire and release", nothing, |s| {
            s.pass_lock(V, NEVER);
        }),
        alone("acquire at once", nothing, |s| {
            if s.lock.try_acquire().unwrap() {
                s.ledger.enter(V, false);
                s.leave(V);
            }
        }),
        alone("put and get in the lock", nothing, |s| {
            s.enter(V, NEVER);
            s.put(V, On::Queue, SMALL, NEVER);
            drain(s, V, 1);
            s.leave(V);
        }),
    ]
}

/// That make, name and drop objects and places.
fn objects() -> Vec<Act> {
    vec![
        alone("make and drop a lock", nothing, make_and_drop),
        alone("make, fill and drop a queue", nothing, make_fill_and_drop),
        alone("make, fill and drop a memory", nothing, |s| {
            let memory = again(|| Memory::new(&s.arena, LARGE));
            memory.bytes().write(0, &[1; SMALL]).unwrap();
        }),
        alone(
            "make a queue where no slab has room",
            |s| {
                let queues = (0..63).map(|_| Queue::new(&s.arena, None).unwrap());
                let queues: Vec<_> = queues.collect();
                s.more.extend(queues);
            },
            make_fill_and_drop,
        ),
        alone("watch a queue", nothing, |s| {
            let lamps = [again(|| s.queue.readable()), again(|| s.bounded.writable())];
            until_watchers_sleep();
            for on in [On::Queue, On::Bounded] {
                s.put(V, on, SMALL, NOW());
                until_watchers_sleep();
                s.get(V, on, NOW());
                until_watchers_sleep();
            }
            s.try_put(V, On::Queue);
            drop(lamps);
        }),
        alone("watch a queue and drop it", nothing, |s| {
            let queue = again(|| Queue::new(&s.arena, None));
            drop(again(|| queue.readable()));
        }),
        alone("make an arena and leave it", nothing, |_| {
            let arena = Arena::create().unwrap();
            let lock = Lock::new(&arena).unwrap();
            drop((lock, arena));
        }),
        alone("poison an arena", nothing, |_| {
            // One of its own: in the stage's, no call would do anything afterwards.
            let arena = Arena::create().unwrap();
            let queue = Queue::new(&arena, None).unwrap();
            crate::queue::spoil(&arena, &queue);
            let got = queue.get(NOW());
            assert!(matches!(got, Err(Error::Poisoned { .. })), "{got:?}");
        }),
        alone("keep a place and give it back", nothing, |s| {
            let place = again(|| s.arena.reserve());
            again(|| place.give(s.lock.name()));
        }),
        alone("keep a place and die", nothing, |s| {
            std::mem::forget(again(|| s.arena.reserve()));
        }),
        alone(
            "let a name escape",
            |s| s.escapes = 1,
            |s| {
                again(|| Lock::new(&s.arena)).escape().unwrap();
            },
        ),
        alone(
            "let a name escape, and take it back",
            |s| s.escapes = 1,
            |s| {
                let queue = again(|| Queue::new(&s.arena, None));
                queue.escape().unwrap();
                queue.recapture().unwrap();
            },
        ),
    ]
}

/// That end something.
fn ends() -> Vec<Act> {
    let mut acts = vec![
        alone("close", |s| fill(s, &[SMALL]), |s| s.queue.close().unwrap()),
        alone("leave", nothing, |s| s.arena.leave()),
    ];
    acts.push(Act {
        after: |s, finished| {
            if finished {
                s.arena.reap().unwrap();
                assert!(s.lock.is_held().unwrap(), "its holder left it held");
                s.leave(V);
            }
        },
        ..alone("leave, holding the lock", nothing, |s| {
            s.enter(V, NEVER);
            s.arena.leave();
        })
    });
    acts
}
