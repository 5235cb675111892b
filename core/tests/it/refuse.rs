//! Every system call of every operation, refused once with each error that it may give.

mod shared;

use crate::child::{alone, fork, has_children};
use procession_core::sys::{crash, refuse};
use procession_core::{Acquired, Arena, Claim, Deadline, Error, Lock, Put, Queue, Result, Spec};
use shared::Shared;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};

/// What a system that has too little, or forbids too much, answers.
const ERRORS: [i32; 5] = [
    libc::ENOMEM,
    libc::ENOSPC,
    libc::EMFILE,
    libc::EPERM,
    libc::ENOSYS,
];

const SMALL: usize = 40;
const LARGE: usize = 50_000;
/// Five of these don't fit into one segment.
const QUARTER: usize = 16_000;

/// A member of the arena, with what it has opened.
struct Member {
    arena: Arena,
    queue: Queue,
    lock: Lock,
    claim: Claim,
    shared: Shared,
    /// Messages that it has put, less those that it has got.
    put: std::cell::Cell<i64>,
}

impl Member {
    fn put(&self, length: usize) -> Result<()> {
        let stored = self.queue.put(7, &[&vec![7; length]], Deadline::NEVER)?;
        assert_eq!(stored, Put::Stored);
        self.put.set(self.put.get() + 1);
        Ok(())
    }

    fn get(&self) -> Result<()> {
        let mut bytes = Vec::new();
        let taken = self.queue.get_into(&mut bytes, Deadline::now())?;
        self.put.set(self.put.get() - 1);
        if let Some(extent) = taken.expect("a message").extent {
            extent.append_to(&mut bytes)?;
        }
        assert!(bytes.iter().all(|byte| *byte == 7));
        Ok(())
    }
}

struct Operation {
    name: &'static str,
    /// Lengths of the messages in the queue before it.
    lengths: &'static [usize],
    run: fn(&Member) -> Result<()>,
}

/// The operation that finds a dead process.
const RECOVER: &str = "recover another";

/// All of them.
fn operations() -> impl Iterator<Item = &'static Operation> {
    OPERATIONS.iter().chain(shared::OPERATIONS)
}

const OPERATIONS: &[Operation] = &[
    Operation {
        name: "put, the first",
        lengths: &[],
        run: |m| m.put(SMALL),
    },
    Operation {
        name: "put, large",
        lengths: &[SMALL],
        run: |m| m.put(LARGE),
    },
    Operation {
        name: "put, into the next segment",
        lengths: &[],
        run: |m| (0..5).try_for_each(|_| m.put(QUARTER)),
    },
    Operation {
        name: "get",
        lengths: &[SMALL, SMALL],
        run: Member::get,
    },
    Operation {
        name: "get, large",
        lengths: &[LARGE, LARGE, LARGE],
        run: Member::get,
    },
    Operation {
        name: "get, over a segment's end",
        lengths: &[QUARTER; 12],
        run: |m| (0..5).try_for_each(|_| m.get()),
    },
    Operation {
        name: "get, claiming",
        lengths: &[LARGE, SMALL, SMALL],
        run: |m| {
            let mut bytes = Vec::new();
            let taken = m
                .queue
                .get_claiming(&m.claim, &mut bytes, Deadline::now())?;
            m.put.set(m.put.get() - 1);
            taken.map(drop).expect("a message");
            Ok(())
        },
    },
    Operation {
        name: "acquire and release",
        lengths: &[],
        run: |m| {
            m.lock.acquire(Deadline::NEVER)?;
            m.lock.release()
        },
    },
    Operation {
        name: "open",
        lengths: &[],
        run: |m| {
            Queue::open(&m.arena, m.queue.name())?;
            Lock::open(&m.arena, m.lock.name()).map(drop)
        },
    },
    Operation {
        name: "make and drop a lock",
        lengths: &[],
        run: |m| Lock::new(&m.arena).map(drop),
    },
    Operation {
        name: "make, fill and drop queues",
        lengths: &[],
        run: |m| {
            for _ in 0..2 {
                let queue = Queue::new(&m.arena, None)?;
                for length in [SMALL, LARGE, 3 << 20] {
                    queue.put(7, &[&vec![7; length]], Deadline::NEVER)?;
                }
            }
            Ok(())
        },
    },
    Operation {
        name: "make more than a window of locks",
        lengths: &[],
        run: |m| {
            let locks = (0..4000).map(|_| Lock::new(&m.arena));
            locks.collect::<Result<Vec<_>>>().map(drop)
        },
    },
    Operation {
        name: "reserve and give",
        lengths: &[],
        run: |m| m.arena.reserve()?.give(m.lock.name()),
    },
    Operation {
        name: "create an arena",
        lengths: &[],
        run: |_| {
            let arena = Arena::create()?;
            Queue::new(&arena, None)?.put(0, &[b"first"], Deadline::NEVER)?;
            Ok(())
        },
    },
    Operation {
        name: "join",
        lengths: &[],
        run: |m| {
            let slot = m.arena.reserve()?;
            let copy = m.arena.descriptor().try_clone_to_owned().unwrap();
            let number = copy.into_raw_fd();
            let joined = Arena::attach(&slot.token(number));
            // SAFETY: asks whether the number made above is open.
            if joined.is_err() && unsafe { libc::fcntl(number, libc::F_GETFD) } >= 0 {
                // It wasn't known for the arena's.
                // SAFETY: made above, and open still, so nobody has taken it over.
                drop(unsafe { OwnedFd::from_raw_fd(number) });
            }
            joined.map(drop)
        },
    },
    Operation {
        name: "start a program and wait",
        lengths: &[],
        run: |m| {
            let mut spec = Spec::new("/bin/sh").argument("sh");
            spec.pass(m.arena.descriptor())?;
            let child = spec.argument("-c").argument("exec sleep 60").start()?;
            // Whatever is refused, it ends.
            let pid = libc::pid_t::try_from(child.pid()).unwrap();
            let signalled = child.signal(libc::SIGTERM);
            if signalled.is_err() {
                // SAFETY: our own child, which nobody has waited for.
                unsafe { libc::kill(pid, libc::SIGKILL) };
            }
            let waited = child.wait(Deadline::NEVER);
            if waited.is_err() {
                // SAFETY: our own child, which nobody has waited for; no status wanted.
                unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
            }
            signalled.and(waited.map(drop))
        },
    },
    Operation {
        name: RECOVER,
        lengths: &[SMALL],
        run: |m| m.arena.reap(),
    },
];

/// A founder that has everything mapped, and a newcomer in whose place the operations run: it maps each window at the
/// first touch, in the midst of things.
struct Scene {
    founder: Member,
    newcomer: Option<Member>,
    /// Keeps the first windows full, so that messages lie in another one than what they are put into.
    _filling: Queue,
}

impl Scene {
    fn new(operation: &Operation) -> Self {
        let scene = Self::with(operation.lengths);
        if operation.name == RECOVER {
            scene.founder.kill_one();
        }
        scene
    }

    /// One with messages of these lengths in the queue.
    fn with(lengths: &[usize]) -> Self {
        let arena = Arena::create().unwrap();
        let filling = Queue::new(&arena, None).unwrap();
        let fill = |bytes: usize| {
            let runs = bytes.div_ceil(64 << 10);
            (0..runs).try_for_each(|_| {
                let put = filling.put(0, &[&vec![0; 64 << 10]], Deadline::NEVER);
                put.map(drop)
            })
        };
        fill(1 << 20).unwrap();
        let founder = Member {
            queue: Queue::new(&arena, None).unwrap(),
            lock: Lock::new(&arena).unwrap(),
            claim: Claim::new(&arena).unwrap(),
            shared: Shared::new(&arena).unwrap(),
            arena,
            put: Default::default(),
        };
        fill(1 << 20).unwrap();
        for length in lengths {
            founder.put(*length).unwrap();
        }
        let place = founder.arena.reserve().unwrap();
        let copy = founder.arena.descriptor().try_clone_to_owned().unwrap();
        let arena = Arena::attach(&place.token(copy.into_raw_fd())).unwrap();
        let newcomer = Member {
            queue: Queue::open(&arena, founder.queue.name()).unwrap(),
            lock: Lock::open(&arena, founder.lock.name()).unwrap(),
            claim: Claim::new(&arena).unwrap(),
            shared: founder.shared.open(&arena).unwrap(),
            arena,
            put: Default::default(),
        };
        Self {
            founder,
            newcomer: Some(newcomer),
            _filling: filling,
        }
    }

    /// Everything that was put and not got is there, whole; it is all accounted for, and goes away.
    fn check(mut self, what: &str) {
        let newcomer = self.newcomer.take().unwrap();
        let expected = self.founder.put.get() + newcomer.put.get();
        let length = i64::try_from(self.founder.queue.len().unwrap()).unwrap();
        assert_eq!(length, expected, "{what}");
        self.founder
            .arena
            .census()
            .unwrap_or_else(|error| panic!("{what}: {error}"));
        drop(newcomer);
        self.founder.shared.check_unbroken(what);
        self.check_whole(what);
    }

    /// What is there is whole, whatever it is; it is all accounted for, and goes away.
    fn check_whole(mut self, what: &str) {
        drop(self.newcomer.take());
        let Member { queue, lock, .. } = &self.founder;
        assert_eq!(
            queue.put(9, &[b"the last"], Deadline::NEVER),
            Ok(Put::Stored)
        );
        loop {
            let got = queue.get(Deadline::now()).unwrap();
            let got = got.unwrap_or_else(|| panic!("{what}: the last message is lost"));
            if got.tag == 9 {
                break;
            }
            assert!(got.bytes.iter().all(|byte| *byte == 7), "{what}");
        }
        assert!(queue.is_empty().unwrap(), "{what}");
        assert_ne!(lock.acquire(Deadline::NEVER).unwrap(), Acquired::TimedOut);
        lock.release().unwrap();
        self.founder.shared.check(what);
        let arena = self.founder.arena.clone();
        drop(self);
        arena.reap().unwrap();
        let left = arena.census().unwrap();
        let bytes = (left.owned_bytes, left.linked_bytes);
        assert_eq!((left.objects, bytes), (0, (0, 0)), "{what}");
    }
}

impl Member {
    /// Leaves a dead process: a lock is held, and it held runs and objects of its own.
    fn kill_one(&self) {
        let victim = fork(|| {
            self.lock.acquire(Deadline::NEVER).unwrap();
            self.shared.hold();
            let queue = Queue::new(&self.arena, None).unwrap();
            queue.put(0, &[&[7; LARGE]], Deadline::NEVER).unwrap();
            // SAFETY: to this process.
            unsafe { libc::raise(libc::SIGKILL) };
        });
        assert_eq!(victim.wait(), -libc::SIGKILL);
    }
}

/// The numbers of this process' descriptors.
fn descriptors() -> Vec<String> {
    let listed = std::fs::read_dir("/proc/self/fd").unwrap();
    let mut names: Vec<_> = listed
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// An error says which call was refused, and how.
fn names(error: &Error, call: &'static str, errno: i32) -> bool {
    // A descriptor that doesn't tell its seals isn't known for an arena's.
    let unknown = call == "fcntl(F_GET_SEALS)" && matches!(error, Error::Malformed { .. });
    unknown || *error == Error::Os { call, errno }
}

#[test]
fn any_call_may_be_refused_once() {
    let _alone = alone();
    let (mut refused, mut failed) = (0, 0);
    for operation in operations() {
        if std::env::var("OPERATION").is_ok_and(|wanted| !operation.name.contains(&wanted)) {
            continue;
        }
        let (mut calls, mut errors) = (Vec::new(), 0);
        for errno in ERRORS {
            for n in 1.. {
                let scene = Scene::new(operation);
                let newcomer = scene.newcomer.as_ref().unwrap();
                let before = descriptors();
                refuse::arm(n, errno);
                let result = (operation.run)(newcomer);
                let passed = refuse::disarm();
                let Some(call) = passed.get(usize::try_from(n - 1).unwrap()) else {
                    result.unwrap_or_else(|error| panic!("{}: {error}", operation.name));
                    calls = passed;
                    break;
                };
                let what = format!("{}, {call} refused, the call {n}: {errno}", operation.name);
                if let Err(error) = &result {
                    assert!(names(error, call, errno), "{what}: {error}");
                    errors += 1;
                }
                assert_eq!(before, descriptors(), "{what}");
                assert!(!has_children(), "{what}");
                // The same once more, now that there is enough of everything.
                (operation.run)(newcomer).unwrap_or_else(|error| panic!("{what}: {error}"));
                scene.check(&what);
                refused += 1;
            }
        }
        println!("{}: {errors} errors; {}", operation.name, calls.join(" "));
        failed += errors;
    }
    println!("{refused} calls refused, {failed} errors");
}

/// Operations to die in, each with the one that finds the dead first.
const DEATHS: &[(&str, &str)] = &[
    ("put, the first", "put, the first"),
    ("put, large", "get, large"),
    ("put, large", "put, large"),
    ("put, into the next segment", "put, into the next segment"),
    ("get, large", "get, large"),
    ("get, over a segment's end", "get, over a segment's end"),
    ("get, claiming", RECOVER),
    ("make, fill and drop queues", "make and drop a lock"),
    ("make more than a window of locks", "put, large"),
    ("make one of each primitive", RECOVER),
    ("make and drop a memory", RECOVER),
    ("wait with many", "wait with many"),
    ("take a permit in a late place", RECOVER),
];

/// The stores that are worth a death each: the first ones all, and some of those that are made again and again.
fn stores() -> impl Iterator<Item = u64> {
    (1..60).chain((60..300).step_by(11))
}

fn named(name: &str) -> &'static Operation {
    operations()
        .find(|operation| operation.name == name)
        .expect("an operation of that name")
}

/// How a death and what followed ended.
struct Outcome {
    /// The victim did all that it had to do.
    survived: bool,
    /// The call was refused; else there weren't so many.
    refused: bool,
}

/// A process dies before its store `store`, and whoever finds it is refused its call `n`, and then no more.
fn die_and_find(dies: &Operation, finds: &Operation, store: u64, n: u64) -> Outcome {
    // It has all that both need.
    let scene = Scene::with(&[dies.lengths, finds.lengths].concat());
    let victim = fork(|| {
        crash::arm(store, crash::Action::Kill);
        (dies.run)(&scene.founder).unwrap();
        crash::disarm();
    });
    let survived = victim.wait() == 0;
    let newcomer = scene.newcomer.as_ref().unwrap();
    refuse::arm(n, libc::ENOMEM);
    let result = (finds.run)(newcomer);
    let passed = refuse::disarm();
    let call = passed.get(usize::try_from(n - 1).unwrap());
    let what = format!(
        "{}, killed before store {store}; {}, {call:?} refused, the call {n}",
        dies.name, finds.name
    );
    match (call, result) {
        (_, Ok(())) => {}
        (Some(call), Err(error)) if names(&error, call, libc::ENOMEM) => {
            (finds.run)(newcomer).unwrap_or_else(|error| panic!("{what}: {error}"));
        }
        (_, Err(error)) => panic!("{what}: {error}"),
    }
    let arena = &scene.founder.arena;
    arena.reap().unwrap();
    if let Err(error) = arena.census() {
        panic!("{what}: {error}");
    }
    let refused = call.is_some();
    scene.check_whole(&what);
    Outcome { survived, refused }
}

/// A repair that lacks memory is left to the next one, which finds everything that it needs to know.
#[test]
fn any_call_of_a_repair_may_be_refused() {
    let _alone = alone();
    let (mut deaths, mut refused) = (0, 0);
    for (dies, finds) in DEATHS {
        let (dies, finds) = (named(dies), named(finds));
        for store in stores() {
            let mut n = 1;
            let last = loop {
                let outcome = die_and_find(dies, finds, store, n);
                if !outcome.refused {
                    break outcome;
                }
                (n, refused) = (n + 1, refused + 1);
            };
            if last.survived {
                break;
            }
            deaths += 1;
        }
    }
    println!("{deaths} deaths, {refused} calls of repairs refused");
}
