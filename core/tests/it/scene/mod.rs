//! What the kill harnesses share: an arena with something in it, operations to die in, and the check afterwards.

mod operations;
mod pool;
mod sync;

pub(crate) use operations::{Effect, OPERATIONS, Operation};

use crate::child::{fork, until};
use operations::LARGE;
use pool::Pool;
use procession_core::shm::Snapshot;
use procession_core::{
    Acquired, Arena, Carried, ChildSlot, Claim, Deadline, Error, Lock, Memory, ObjectName, Put,
    Queue,
};
use std::time::Duration;
pub(crate) use sync::Sync;

/// An arena with a queue that has messages in it, a lock and a claim.
#[derive(Debug)]
pub(crate) struct Scene {
    pub(crate) arena: Arena,
    pub(crate) queue: Queue,
    pub(crate) lock: Lock,
    pub(crate) claim: Claim,
    /// The numbers of the messages in the queue.
    messages: Vec<u64>,
    /// Queues that only take room.
    others: Vec<Queue>,
    place: Option<Place>,
    pool: Option<Pool>,
    sync: Option<Sync>,
}

/// A place that is kept for a child.
#[derive(Debug)]
struct Place {
    slot: ChildSlot,
    /// A lock that is held for the child alone.
    held: ObjectName,
}

/// Who uses what is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Users {
    /// Fresh processes, which meet what the dead one left as it is.
    Fresh,
    /// This process, which meets it as it is.
    Here,
    /// This process, which recovers the dead first.
    HereRecovered,
}

/// What was found: the same at each instant of a recovery, and never again as before once an operation had its effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    /// The queue's messages, or the pool's tasks.
    pub(crate) numbers: Vec<u64>,
    /// Messages that were taken by a dead process and counted; tasks that were lost with it.
    pub(crate) lost: u64,
    pub(crate) claimed: u64,
    pub(crate) closed: bool,
    /// Bytes that objects have when all messages are gone: what an operation leaves behind would be seen here.
    pub(crate) linked_bytes: u64,
}

/// The number of the message that an operation puts.
const NEW: u64 = 1_000;
/// The number of the message that a fresh process puts afterwards.
const LAST: u64 = 2_000;

/// A message is put in parts of so many bytes: short enough for a copy that is made of few wide stores.
const PART: usize = 1 << 10;

/// No call takes as long on the most loaded machine, unless it waits for the dead.
fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(20))
}

/// A message: its number, then bytes that say whether it is whole.
pub(crate) fn body(number: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![u8::try_from(number % 251).unwrap(); length];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes
}

/// The number of a message, which must be whole.
pub(crate) fn number_of(bytes: &[u8]) -> u64 {
    let number = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    assert!(
        bytes[8..]
            .iter()
            .all(|byte| u64::from(*byte) == number % 251),
        "{number} is torn"
    );
    number
}

fn put_numbered(queue: &Queue, number: u64, length: usize) {
    assert_eq!(try_put_numbered(queue, number, length), Ok(Put::Stored));
}

fn try_put_numbered(queue: &Queue, number: u64, length: usize) -> Result<Put, Error> {
    let bytes = body(number, length);
    let parts: Vec<&[u8]> = bytes.chunks(PART).collect();
    queue.put(0, &parts, soon())
}

impl Scene {
    pub(crate) fn new(operation: &Operation) -> Self {
        let arena = Arena::create().unwrap();
        let queue = Queue::new(&arena, None).unwrap();
        let mut messages = Vec::new();
        for (number, length) in (1..).zip(operation.lengths) {
            put_numbered(&queue, number, *length);
            messages.push(number);
        }
        let (lock, claim) = (Lock::new(&arena).unwrap(), Claim::new(&arena).unwrap());
        let mut scene = Self {
            arena,
            queue,
            lock,
            claim,
            messages,
            others: Vec::new(),
            place: None,
            pool: None,
            sync: None,
        };
        (operation.before)(&mut scene);
        scene
    }

    /// The same in an arena of those bytes, which were this one's.
    pub(crate) fn twin(&self, snapshot: Snapshot) -> Self {
        let arena = self.arena.twin_of(snapshot).unwrap();
        let others = self.others.iter();
        let place = self.place.as_ref().map(|place| Place {
            slot: place.slot.twin(&arena),
            held: place.held,
        });
        Self {
            queue: Queue::open(&arena, self.queue.name()).unwrap(),
            lock: Lock::open(&arena, self.lock.name()).unwrap(),
            claim: Claim::open(&arena, self.claim.name()).unwrap(),
            messages: self.messages.clone(),
            others: others
                .map(|queue| Queue::open(&arena, queue.name()).unwrap())
                .collect(),
            place,
            pool: self.pool.as_ref().map(|pool| pool.twin(&arena)),
            sync: self.sync.as_ref().map(|sync| sync.twin(&arena)),
            arena,
        }
    }

    fn place(&self) -> &Place {
        self.place.as_ref().expect("a place")
    }

    fn sync(&self) -> &Sync {
        self.sync.as_ref().expect("primitives")
    }

    fn pool(&self) -> &Pool {
        self.pool.as_ref().expect("a pool")
    }

    /// Puts a message that names a lock which nobody else holds.
    fn put_lock(&self, queue: &Queue, number: u64, length: usize) {
        let lock = Lock::new(&self.arena).unwrap();
        let mut names = Carried::new();
        names.add(&self.arena, lock.name()).unwrap();
        let bytes = body(number, length);
        let parts: Vec<&[u8]> = bytes.chunks(PART).collect();
        let put = queue.put_naming(0, &parts, &names, soon());
        assert_eq!(put, Ok(Put::Stored));
    }

    /// Puts two messages, each of which names a lock of its own.
    fn name_locks(&mut self, length: usize) {
        for number in [1, 2] {
            self.put_lock(&self.queue, number, length);
            self.messages.push(number);
        }
    }

    /// Gets the first message.
    fn get_one(&mut self) {
        let got = self.queue.get(Deadline::now()).unwrap().unwrap();
        assert_eq!(number_of(&got.bytes), self.messages.remove(0));
    }

    /// Leaves a dead process: a lock is held, and it held runs and objects of its own.
    fn kill_one(&self) {
        let victim = fork(|| {
            self.lock.acquire(Deadline::NEVER).unwrap();
            put_numbered(&Queue::new(&self.arena, None).unwrap(), 1, LARGE);
            let _memory = Memory::new(&self.arena, LARGE).unwrap();
            // SAFETY: to this process.
            unsafe { libc::raise(libc::SIGKILL) };
        });
        assert_eq!(victim.wait(), -libc::SIGKILL);
    }

    /// Two fresh processes use what is left, then everything in it is accounted for and goes away.
    pub(crate) fn check(self, operation: &Operation, when: &str) {
        self.judge(operation, when, false, Users::Fresh);
    }

    /// What is left is used, then everything in it is accounted for and goes away. `done` says that the operation had
    /// returned: its effect must be there.
    pub(crate) fn judge(self, op: &Operation, when: &str, done: bool, users: Users) -> Found {
        let what = format!("{}, {when}", op.name);
        let mut counted = None;
        if users == Users::HereRecovered {
            self.arena.reap().unwrap();
            self.arena.census().unwrap();
            counted = Some(self.queue.len().unwrap());
        }
        let mut numbers = self.use_queue(op.effect, users);
        let got = numbers.len() as u64;
        assert!(
            counted.is_none_or(|counted| counted == got),
            "{what}: {got} of {counted:?}"
        );
        let mut lost = self.queue.lost().unwrap();
        if op.effect == Effect::Answers {
            let [answered, dead] = self.pool().bury(&self.arena);
            (numbers, lost) = (answered, dead.len() as u64);
        }
        self.arena.reap().unwrap();
        if users == Users::Fresh {
            // A child that it forked may live for a moment.
            let alone = || {
                self.arena.reap().unwrap();
                self.arena.census().unwrap().processes == 1
            };
            until("it to be alone", alone);
        }
        if op.effect == Effect::Submits {
            numbers = self.pool().tasks();
        }
        if let Some(sync) = &self.sync {
            sync.judge().unwrap_or_else(|why| panic!("{what}: {why}"));
        }
        drop(self.arena.reserve().unwrap());
        let left = self.arena.census().unwrap();
        assert_eq!((left.processes, left.owned_bytes), (1, 0), "{what}");
        let found = Found {
            numbers,
            lost,
            claimed: self.claim.value().unwrap(),
            closed: self.queue.is_closed().unwrap(),
            linked_bytes: left.linked_bytes,
        };
        self.allows(op.effect, &found, done)
            .unwrap_or_else(|why| panic!("{what}: {why}: {found:?}"));
        assert!(self.queue.is_empty().unwrap(), "{what}");
        let arena = self.arena.clone();
        drop(self);
        // A child that it forked, which has not come to take its place yet, holds what its parent held for a moment.
        let held = || {
            arena.reap().unwrap();
            let left = arena.census().unwrap();
            let held = (left.objects, left.linked_bytes, left.owned_bytes);
            (left.processes, held)
        };
        if users == Users::Fresh {
            until("what it held to go", || held() == (1, (0, 0, 0)));
        }
        assert_eq!(held(), (1, (0, 0, 0)), "{what}");
        found
    }

    /// One user puts under the lock, the other gets everything. Gives the messages, without the last.
    fn use_queue(&self, effect: Effect, users: Users) -> Vec<u64> {
        let by_user = |work: &dyn Fn()| match users {
            Users::Fresh => fork(work).join(),
            Users::Here | Users::HereRecovered => work(),
        };
        by_user(&|| {
            let stored = try_put_numbered(&self.queue, LAST, LARGE);
            let closed = matches!(stored, Err(Error::Closed { .. })) && effect == Effect::Closes;
            assert!(closed || stored == Ok(Put::Stored), "{stored:?}");
            let acquired = self.lock.acquire(soon()).unwrap();
            assert_ne!(acquired, Acquired::TimedOut);
            self.lock.release().unwrap();
        });
        let seen = Queue::new(&self.arena, None).unwrap();
        by_user(&|| {
            loop {
                // All of them are there, so nobody has to wait.
                let got = match self.queue.get(Deadline::now()) {
                    Err(Error::Closed { .. }) if effect == Effect::Closes => break,
                    got => got.unwrap().expect("a message"),
                };
                let number = number_of(&got.bytes);
                if number == LAST {
                    break;
                }
                put_numbered(&seen, number, 8);
            }
        });
        let mut numbers = Vec::new();
        while let Some(got) = seen.get(Deadline::now()).unwrap() {
            numbers.push(number_of(&got.bytes));
        }
        numbers
    }

    /// Whether an operation may leave that behind.
    fn allows(&self, effect: Effect, found: &Found, done: bool) -> Result<(), &'static str> {
        let before = &self.messages[..];
        let taken = (before.len() as u64).saturating_sub(found.numbers.len() as u64);
        let numbers = &found.numbers[..];
        let with_new = |before: &[u64]| numbers == [before, &[NEW]].concat();
        let right = match effect {
            Effect::Nothing | Effect::Closes => numbers == before,
            Effect::Puts => with_new(before) || !done && numbers == before,
            Effect::Gets | Effect::Claims => {
                taken <= 1 && numbers == &before[usize::from(taken > 0)..] && (!done || taken == 1)
            }
            Effect::Submits => with_new(&[1, 2]) || !done && numbers == [1, 2],
            Effect::Answers => numbers == [1] || !done && numbers.is_empty(),
        };
        let gets = matches!(effect, Effect::Gets | Effect::Claims);
        let claimed = effect == Effect::Claims && taken == 1;
        let rules = [
            (right, "not the messages that may be there"),
            (
                found.closed == (done && effect == Effect::Closes)
                    || !done && effect == Effect::Closes,
                "closed or not",
            ),
            (
                found.claimed == if claimed { before[0] } else { 0 },
                "the claim and the message don't agree",
            ),
            (
                found.lost == 0
                    || !done && gets && found.lost == taken
                    || !done && effect == Effect::Answers && numbers.is_empty(),
                "messages counted as lost",
            ),
        ];
        match rules.into_iter().find(|(holds, _)| !holds) {
            Some((_, broken)) => Err(broken),
            None => Ok(()),
        }
    }
}
