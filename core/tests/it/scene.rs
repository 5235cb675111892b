//! What the kill harnesses share: an arena with something in it, operations to die in, and the check afterwards.

use crate::child::{fork, until_empty};
use procession_core::{Acquired, Arena, Claim, Deadline, Lock, Put, Queue};

/// An arena with a queue that has messages in it, a lock and a claim.
#[derive(Debug)]
pub(crate) struct Scene {
    pub(crate) arena: Arena,
    pub(crate) queue: Queue,
    pub(crate) lock: Lock,
    pub(crate) claim: Claim,
    /// The numbers of the messages in the queue.
    messages: Vec<u64>,
}

/// What an operation may do to the queue if it dies in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    Nothing,
    /// Message [`NEW`] may be there, whole.
    Puts,
    /// The first message may be gone.
    Gets,
}

/// An operation to die in.
pub(crate) struct Operation {
    pub(crate) name: &'static str,
    pub(crate) effect: Effect,
    /// Lengths of the messages in the queue before it.
    pub(crate) lengths: &'static [usize],
    pub(crate) run: fn(&Scene),
}

/// The number of the message that an operation puts.
const NEW: u64 = 1_000;
/// The number of the message that a fresh process puts afterwards.
const LAST: u64 = 2_000;

const SMALL: usize = 40;
const LARGE: usize = 50_000;
/// Four of these fill a segment but for a little.
const QUARTER: usize = 16_000;

fn body(number: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![u8::try_from(number % 251).unwrap(); length];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes
}

fn number_of(bytes: &[u8]) -> u64 {
    let number = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    assert!(
        bytes[8..]
            .iter()
            .all(|byte| u64::from(*byte) == number % 251),
        "{number} is torn"
    );
    number
}

fn put(scene: &Scene, length: usize) {
    assert_eq!(
        scene
            .queue
            .put(0, &[&body(NEW, length)], Deadline::NEVER)
            .unwrap(),
        Put::Stored
    );
}

fn get(scene: &Scene) {
    let got = scene
        .queue
        .get(Deadline::now())
        .unwrap()
        .expect("a message");
    assert_eq!(number_of(&got.bytes), 1);
}

/// The operation that finds a dead process.
const RECOVER: &str = "recover another";

/// Every operation on shared memory that a process can die in.
pub(crate) const OPERATIONS: &[Operation] = &[
    Operation {
        name: "put, the first",
        effect: Effect::Puts,
        lengths: &[],
        run: |s| put(s, SMALL),
    },
    Operation {
        name: "put",
        effect: Effect::Puts,
        lengths: &[SMALL],
        run: |s| put(s, SMALL),
    },
    Operation {
        name: "put, large",
        effect: Effect::Puts,
        lengths: &[SMALL],
        run: |s| put(s, LARGE),
    },
    Operation {
        name: "put, into the next segment",
        effect: Effect::Puts,
        lengths: &[QUARTER, QUARTER, QUARTER, QUARTER],
        run: |s| put(s, QUARTER),
    },
    Operation {
        name: "get",
        effect: Effect::Gets,
        lengths: &[SMALL, SMALL],
        run: get,
    },
    Operation {
        name: "get, the last",
        effect: Effect::Gets,
        lengths: &[SMALL],
        run: get,
    },
    Operation {
        name: "get, large",
        effect: Effect::Gets,
        lengths: &[LARGE, SMALL],
        run: get,
    },
    Operation {
        name: "get, over a segment's end",
        effect: Effect::Gets,
        lengths: &[QUARTER, QUARTER, QUARTER, QUARTER, SMALL],
        run: |s| {
            for _ in 0..3 {
                s.queue.get(Deadline::now()).unwrap().unwrap();
            }
        },
    },
    Operation {
        name: "get, claiming",
        effect: Effect::Gets,
        lengths: &[SMALL, SMALL],
        run: |s| {
            let mut buffer = Vec::new();
            s.queue
                .get_claiming(&s.claim, &mut buffer, Deadline::now())
                .unwrap()
                .unwrap();
        },
    },
    Operation {
        name: "acquire and release",
        effect: Effect::Nothing,
        lengths: &[],
        run: |s| {
            s.lock.acquire(Deadline::NEVER).unwrap();
            s.lock.release().unwrap();
        },
    },
    Operation {
        name: "make and drop a lock",
        effect: Effect::Nothing,
        lengths: &[],
        run: |s| drop(Lock::new(&s.arena).unwrap()),
    },
    Operation {
        name: "make, fill and drop a queue",
        effect: Effect::Nothing,
        lengths: &[],
        run: |s| {
            let queue = Queue::new(&s.arena, None).unwrap();
            for length in [SMALL, LARGE] {
                queue.put(0, &[&body(1, length)], Deadline::NEVER).unwrap();
            }
        },
    },
    Operation {
        name: "grow into another window",
        effect: Effect::Nothing,
        lengths: &[],
        run: |s| {
            let queue = Queue::new(&s.arena, None).unwrap();
            queue.put(0, &[&body(1, 3 << 20)], Deadline::NEVER).unwrap();
        },
    },
    Operation {
        name: "reserve and give back",
        effect: Effect::Nothing,
        lengths: &[],
        run: |s| {
            let child = s.arena.reserve().unwrap();
            child.give(s.lock.name()).unwrap();
        },
    },
    Operation {
        name: "leave",
        effect: Effect::Nothing,
        lengths: &[],
        run: |s| s.arena.leave(),
    },
    Operation {
        name: RECOVER,
        effect: Effect::Nothing,
        lengths: &[SMALL],
        run: |s| s.arena.reap().unwrap(),
    },
];

impl Scene {
    pub(crate) fn new(operation: &Operation) -> Self {
        let arena = Arena::create().unwrap();
        let queue = Queue::new(&arena, None).unwrap();
        let mut messages = Vec::new();
        for (number, length) in (1..).zip(operation.lengths) {
            queue
                .put(0, &[&body(number, *length)], Deadline::NEVER)
                .unwrap();
            messages.push(number);
        }
        let (lock, claim) = (Lock::new(&arena).unwrap(), Claim::new(&arena).unwrap());
        let scene = Self {
            arena,
            queue,
            lock,
            claim,
            messages,
        };
        if operation.name == RECOVER {
            scene.kill_one();
        }
        scene
    }

    /// Leaves a dead process: a lock is held, and it held runs and objects of its own.
    fn kill_one(&self) {
        let victim = fork(|| {
            self.lock.acquire(Deadline::NEVER).unwrap();
            let queue = Queue::new(&self.arena, None).unwrap();
            queue.put(0, &[&body(1, LARGE)], Deadline::NEVER).unwrap();
            // SAFETY: to this process.
            unsafe { libc::raise(libc::SIGKILL) };
        });
        assert_eq!(victim.wait(), -libc::SIGKILL);
    }

    /// Two fresh processes use what is left, then everything in it is accounted for and goes away.
    pub(crate) fn check(self, operation: &Operation, when: &str) {
        let what = format!("{}, {when}", operation.name);
        fork(|| {
            assert_ne!(
                self.lock.acquire(Deadline::NEVER).unwrap(),
                Acquired::TimedOut
            );
            self.queue
                .put(0, &[&body(LAST, LARGE)], Deadline::NEVER)
                .unwrap();
            self.lock.release().unwrap();
        })
        .join();
        let seen = Queue::new(&self.arena, None).unwrap();
        fork(|| {
            loop {
                let got = self.queue.get(Deadline::NEVER).unwrap().unwrap();
                seen.put(0, &[&got.bytes], Deadline::NEVER).unwrap();
                if number_of(&got.bytes) == LAST {
                    break;
                }
            }
        })
        .join();
        let mut numbers = Vec::new();
        while let Some(got) = seen.get(Deadline::now()).unwrap() {
            numbers.push(number_of(&got.bytes));
        }
        self.arena.reap().unwrap();
        let mut allowed = vec![[&self.messages[..], &[LAST]].concat()];
        match operation.effect {
            Effect::Nothing => {}
            Effect::Puts => allowed.push([&self.messages[..], &[NEW, LAST]].concat()),
            Effect::Gets => allowed.extend(
                (1..=self.messages.len()).map(|taken| [&self.messages[taken..], &[LAST]].concat()),
            ),
        }
        assert!(allowed.contains(&numbers), "{what}: {numbers:?}");
        if operation.effect == Effect::Gets && operation.name.ends_with("claiming") {
            let taken = numbers.len() == self.messages.len();
            assert_eq!(self.claim.value().unwrap(), u64::from(taken), "{what}");
        }
        assert!(self.queue.is_empty().unwrap(), "{what}");
        let Self {
            arena,
            queue,
            lock,
            claim,
            ..
        } = self;
        drop((queue, lock, claim, seen));
        until_empty(&arena);
    }
}
