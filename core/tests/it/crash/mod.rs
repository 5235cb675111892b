//! Every store of every operation: killed before it, and stopped before it.

mod acts;
mod case;
mod companion;
pub(crate) mod ledger;
mod sites;
mod stage;
mod walk;
pub(crate) mod workers;

pub(crate) use stage::again;

use crate::child::{Change, alone, fork};
use crate::scene::{OPERATIONS, Scene};
use crate::watch::await_lamp;
use procession_core::sys::crash::{self, Action, Trigger, Whose};
use procession_core::{Arena, Deadline, Error, Put, Queue};
use std::time::Duration;

/// No operation makes more stores than this.
const STORES_MAX: u64 = 5_000;

#[test]
fn a_kill_before_any_store_is_survived() {
    let _alone = alone();
    let mut total = 0;
    for operation in OPERATIONS {
        let mut killed = 0;
        if std::env::var("OPERATION").is_ok_and(|wanted| !operation.name.contains(&wanted)) {
            continue;
        }
        let first = std::env::var("STORE")
            .ok()
            .and_then(|n| n.parse().ok())
            .unwrap_or(1);
        for n in first..STORES_MAX {
            let scene = Scene::new(operation);
            let child = fork(|| {
                crash::arm(n, Action::Kill);
                (operation.run)(&scene);
                crash::disarm();
            });
            let status = child.wait();
            scene.check(operation, &format!("killed before store {n}"));
            if status == 0 {
                break;
            }
            assert_eq!(status, -libc::SIGKILL, "{}, store {n}", operation.name);
            killed += 1;
        }
        println!("{}: {killed} stores, each killed once", operation.name);
        assert!(killed > 0, "{} stores nothing", operation.name);
        total += killed;
    }
    println!("{total} kills in {} operations", OPERATIONS.len());
}

/// What is done by one process, and waited for by another in its sleep.
struct Awaited {
    capacity: Option<u32>,
    done: fn(&Queue),
    /// Sleeps until it was done.
    sleeper: fn(&Queue),
    /// Whether it was done, at the latest when the dead were recovered.
    was_done: fn(&Queue) -> bool,
    /// Whether the sleeper must hear of it even if nobody recovers the dead.
    alone: bool,
}

const AWAITED: [Awaited; 5] = [
    Awaited {
        capacity: Some(1),
        done: |queue| drop(queue.get(Deadline::NEVER)),
        sleeper: |queue| {
            let put = queue.put(0, &[b"second"], Deadline::NEVER).unwrap();
            assert_eq!(put, Put::Stored);
        },
        was_done: |queue| queue.get(Deadline::now()).unwrap().is_none(),
        alone: true,
    },
    Awaited {
        capacity: None,
        done: |queue| drop(queue.put(0, &[b"first"], Deadline::NEVER)),
        sleeper: |queue| drop(queue.get(Deadline::NEVER).unwrap().unwrap()),
        was_done: |queue| queue.get(Deadline::now()).unwrap().is_some(),
        alone: false,
    },
    Awaited {
        capacity: None,
        done: |queue| queue.close().unwrap(),
        sleeper: |queue| {
            let got = queue.get(Deadline::NEVER);
            assert!(matches!(got, Err(Error::Closed { .. })));
        },
        was_done: |queue| queue.is_closed().unwrap(),
        alone: false,
    },
    Awaited {
        capacity: Some(1),
        done: |queue| drop(queue.get(Deadline::NEVER)),
        sleeper: |queue| await_lamp(&queue.writable().unwrap(), libc::POLLOUT),
        was_done: |queue| queue.get(Deadline::now()).unwrap().is_none(),
        alone: false,
    },
    Awaited {
        capacity: None,
        done: |queue| drop(queue.put(0, &[b"first"], Deadline::NEVER)),
        sleeper: |queue| await_lamp(&queue.readable().unwrap(), libc::POLLIN),
        was_done: |queue| queue.get(Deadline::now()).unwrap().is_some(),
        alone: false,
    },
];

impl Awaited {
    /// Does it in a process that is killed before its store `n`; true when it ended before that.
    fn kill(&self, arena: &Arena, queue: &Queue, n: u64) -> bool {
        let victim = fork(|| {
            crash::arm(n, Action::Kill);
            (self.done)(queue);
            crash::disarm();
        });
        let ended = victim.wait() == 0;
        if !self.alone {
            arena.reap().unwrap();
        }
        ended
    }

    fn queue(&self, arena: &Arena) -> Queue {
        let queue = Queue::new(arena, self.capacity).unwrap();
        if self.capacity.is_some() {
            queue.put(0, &[b"first"], Deadline::NEVER).unwrap();
        }
        queue
    }
}

#[test]
fn a_sleeper_hears_of_what_the_dead_did() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    for awaited in &AWAITED {
        for n in 1.. {
            let queue = awaited.queue(&arena);
            awaited.kill(&arena, &queue, n);
            if !(awaited.was_done)(&queue) {
                continue;
            }
            let queue = awaited.queue(&arena);
            let sleeper = fork(|| (awaited.sleeper)(&queue));
            // No way to see it sleep; one that doesn't yet has it easier.
            std::thread::sleep(Duration::from_millis(5));
            let ended = awaited.kill(&arena, &queue, n);
            sleeper.join();
            if ended {
                break;
            }
        }
    }
}

/// Stores of an attach before the one that says who it is, that one included: the lock and its links.
const ANONYMOUS: usize = 4;

#[test]
fn a_child_that_dies_while_it_takes_its_place_leaves_none() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let count = |arena: &Arena| {
        let held: Vec<_> = std::iter::from_fn(|| arena.reserve().ok()).collect();
        held.len()
    };
    let free = count(&arena);
    for n in 1.. {
        // Copied, so that it can be attached to once more.
        let file = arena.descriptor().try_clone_to_owned().unwrap();
        let place = arena.reserve().unwrap();
        let token = place.token(std::os::fd::IntoRawFd::into_raw_fd(file));
        // Its place is the child's from now on, whatever becomes of it.
        std::mem::forget(place);
        let child = fork(|| {
            crash::arm(n, Action::Kill);
            std::mem::forget(Arena::attach(&token).unwrap());
            crash::disarm();
        });
        let ended = child.wait() == 0;
        arena.reap().unwrap();
        // Whoever keeps a place gives it back for a child that dies before it says who it is: here nobody does.
        assert!(count(&arena) + ANONYMOUS >= free, "before store {n}");
        if ended {
            break;
        }
    }
}

#[test]
fn an_arena_is_poisoned_whatever_becomes_of_who_says_so() {
    let _alone = alone();
    let stores = sites::all().into_iter();
    let stores: Vec<_> = stores
        .filter(|store| store.site.0.ends_with("shm/poison.rs"))
        .collect();
    assert!(!stores.is_empty());
    for (store, action) in stores
        .iter()
        .flat_map(|store| [(store, Action::Kill), (store, Action::Stop)])
    {
        let arena = Arena::create().unwrap();
        let [queue, other] = [(); 2].map(|()| Queue::new(&arena, None).unwrap());
        crate::queue::spoil(&arena, &queue);
        let is_poisoned = |got| matches!(got, Err(Error::Poisoned { .. }));
        let poisoner = fork(|| {
            crash::arm_at(Trigger::Site(store.site, 1), action, Whose::Own);
            assert!(is_poisoned(queue.get(Deadline::now()).map(drop)));
        });
        let change = poisoner.look(true);
        // Whoever comes to the same place says it as well; then everybody hears of it.
        let timeout = || Deadline::after(Duration::from_millis(60));
        assert!(is_poisoned(queue.get(timeout()).map(drop)), "{store:?}");
        assert!(is_poisoned(other.put(0, &[b"more"], timeout()).map(drop)));
        assert!(is_poisoned(other.get(timeout()).map(drop)));
        match action {
            Action::Kill => {
                assert_eq!(change, Change::Ended(-libc::SIGKILL), "{store:?}");
                poisoner.forget();
            }
            Action::Stop => {
                assert_eq!(change, Change::Stopped, "{store:?}");
                poisoner.signal(libc::SIGCONT);
                poisoner.join();
            }
        }
    }
}
