//! What the processes of a storm do until they are killed.

use super::again;
use super::ledger::{BOUNDED, LOCKS, Ledger, MAKERS, Producer, QUEUES, UNCLAIMED};
use crate::child::Random;
use procession_core::{Acquired, Arena, Claim, Deadline, Error, Lock, Put, Queue};
use std::collections::{HashMap, VecDeque};
use std::panic::Location;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

/// The objects that are there all the time.
pub(crate) struct World {
    pub(crate) arena: Arena,
    pub(crate) queues: [Queue; QUEUES],
    pub(crate) locks: [Lock; LOCKS],
    /// One for each getter.
    pub(crate) claims: [Claim; QUEUES],
    pub(crate) ledger: &'static Ledger,
}

/// Messages that a queue without a bound holds before makers do something else.
const BACKLOG: u64 = 200;
/// Messages that the bounded queue holds.
const CAPACITY: u32 = 5;
/// Objects that a maker keeps at a time.
const KEPT: usize = 6;
/// The number of messages that nobody counts: of queues that come and go.
const UNCOUNTED: u64 = u64::MAX;

impl World {
    pub(crate) fn new(ledger: &'static Ledger) -> Self {
        let arena = Arena::create().unwrap();
        let queue = |index| Queue::new(&arena, (index == BOUNDED).then_some(CAPACITY)).unwrap();
        Self {
            queues: std::array::from_fn(queue),
            locks: std::array::from_fn(|_| Lock::new(&arena).unwrap()),
            claims: std::array::from_fn(|_| Claim::new(&arena).unwrap()),
            arena,
            ledger,
        }
    }

    /// Objects in it when nobody makes any.
    pub(crate) const OBJECTS: u64 = (QUEUES + LOCKS + QUEUES) as u64;

    /// What the process of a seat does: it returns when the storm has ended.
    pub(crate) fn work(&self, seat: usize, seed: u64) {
        let random = Random::new(seed);
        match seat.checked_sub(MAKERS) {
            Some(queue) => Getter {
                world: self,
                seat,
                own: queue,
                random,
                last: HashMap::new(),
            }
            .work(),
            None => Maker::new(self, Some(seat), random).work(),
        }
    }

    #[track_caller]
    fn at(&self, seat: Option<usize>) {
        if let Some(seat) = seat {
            let record = &self.ledger.seats[seat];
            record.line.store(Location::caller().line(), SeqCst);
            record.steps.fetch_add(1, SeqCst);
        }
    }
}

/// A message that can be told from every other, at every word.
pub(crate) fn message(number: u64, length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length + 8);
    bytes.extend(number.to_le_bytes());
    bytes.extend((length as u64).to_le_bytes());
    while bytes.len() < length {
        bytes.extend(word(number, bytes.len()).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// The number of a message, which must be whole.
pub(crate) fn number_of(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let number = u64::from_le_bytes(words[0]);
    assert_eq!(
        u64::from_le_bytes(words[1]),
        bytes.len() as u64,
        "message {number} is cut"
    );
    for (index, found) in words.iter().enumerate().skip(2) {
        assert_eq!(
            u64::from_le_bytes(*found),
            word(number, index * 8),
            "message {number} is torn at {index}"
        );
    }
    let end = word(number, bytes.len() - rest.len()).to_le_bytes();
    assert_eq!(
        rest,
        &end[..rest.len()],
        "message {number} is torn at its end"
    );
    number
}

fn word(number: u64, at: usize) -> u64 {
    number.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ at as u64
}

/// Lengths among which all ways of a message are: within a segment, over its end, in a run, in another window.
pub(crate) fn length(random: &mut Random) -> usize {
    let (least, range) = match random.below(400) {
        0..320 => (16, 300),
        320..350 => (1000, 15_000),
        350..380 => (15_900, 600),
        380..399 => (17_000, 180_000),
        _ => (1_000_000, 2_000_000),
    };
    least + usize::try_from(random.below(range)).unwrap()
}

/// How long somebody waits.
fn patience(random: &mut Random) -> Deadline {
    match random.below(8) {
        0..4 => Deadline::NEVER,
        4..6 => Deadline::now(),
        _ => Deadline::after(Duration::from_micros(random.below(5000))),
    }
}

/// Puts, locks, makes, opens, recovers and forks.
struct Maker<'a> {
    world: &'a World,
    /// None: it is the child of one that has a seat.
    seat: Option<usize>,
    random: Random,
    producer: Option<Producer>,
    /// Children that weren't waited for.
    children: Vec<libc::pid_t>,
    /// What it made and keeps for a while.
    kept: VecDeque<Kept>,
}

/// An object that others may find.
enum Kept {
    Lock(#[expect(dead_code, reason = "held")] Lock),
    Queue(#[expect(dead_code, reason = "held")] Queue),
}

impl<'a> Maker<'a> {
    fn new(world: &'a World, seat: Option<usize>, random: Random) -> Self {
        Self {
            world,
            seat,
            random,
            producer: None,
            children: Vec::new(),
            kept: VecDeque::new(),
        }
    }

    fn work(&mut self) {
        let ledger = self.world.ledger;
        while !ledger.ended.load(SeqCst) {
            if ledger.paused.load(SeqCst) {
                self.rest();
            } else {
                self.do_something();
            }
        }
        self.wait_for_children();
    }

    /// Until the storm goes on. Its messages begin anew then.
    fn rest(&mut self) {
        let ledger = self.world.ledger;
        self.producer = None;
        self.kept.clear();
        self.wait_for_children();
        let resting = self.seat.map(|seat| &ledger.seats[seat].resting);
        resting.inspect(|resting| resting.store(true, SeqCst));
        while ledger.paused.load(SeqCst) && !ledger.ended.load(SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
        resting.inspect(|resting| resting.store(false, SeqCst));
    }

    fn do_something(&mut self) {
        match self.random.below(100) {
            0..70 => self.put(),
            70..74 => self.lock(),
            74..84 => self.make(),
            84..94 => self.open(),
            94..96 => {
                self.world.at(self.seat);
                again(|| self.world.arena.reap());
            }
            96..99 => {
                self.world.at(self.seat);
                let queue = self.queue().1;
                again(|| queue.settle());
            }
            _ if self.seat.is_some() => self.fork(),
            _ => {}
        }
    }

    fn queue(&mut self) -> (usize, &Queue) {
        let index = usize::try_from(self.random.below(QUEUES as u64)).unwrap();
        (index, &self.world.queues[index])
    }

    fn put(&mut self) {
        let (index, _) = self.queue();
        let (ledger, queue) = (self.world.ledger, &self.world.queues[index]);
        if queue.len().unwrap() > BACKLOG {
            return std::thread::yield_now();
        }
        if self.producer.is_none() {
            self.producer = ledger.become_producer();
        }
        let Some(number) = self.producer.as_mut().and_then(Producer::number) else {
            self.producer = None;
            return;
        };
        let body = message(number, length(&mut self.random));
        let (left, right) = body.split_at(body.len() / 3);
        let deadline = patience(&mut self.random);
        ledger.begin(number, index);
        self.world.at(self.seat);
        let stored = match self.random.below(3) {
            0 if again(|| queue.try_put(1, &[left, right])) => true,
            _ => again(|| queue.put(1, &[left, right], deadline)) == Put::Stored,
        };
        if stored {
            ledger.stored(number);
        } else {
            ledger.refused(number);
        }
    }

    fn lock(&mut self) {
        let index = usize::try_from(self.random.below(LOCKS as u64)).unwrap();
        let (ledger, lock) = (self.world.ledger, &self.world.locks[index]);
        self.world.at(self.seat);
        let deadline = patience(&mut self.random);
        let acquired = match self.random.below(4) {
            0 if lock.try_acquire().unwrap() => Acquired::Clean,
            _ => again(|| lock.acquire(deadline)),
        };
        if acquired == Acquired::TimedOut {
            return;
        }
        let bereaved = acquired == Acquired::OwnerDied;
        ledger.tally.locked.fetch_add(1, SeqCst);
        ledger.tally.inherited.fetch_add(bereaved.into(), SeqCst);
        ledger.locks[index].enter(bereaved);
        match self.random.below(32) {
            0 => std::thread::sleep(Duration::from_micros(self.random.below(2000))),
            1 => self.put(),
            2 => self.make(),
            _ => std::thread::yield_now(),
        }
        ledger.locks[index].leave();
        lock.release().unwrap();
    }

    /// Makes something, uses it, and lets others see its name until it has made some more.
    fn make(&mut self) {
        let (arena, ledger) = (&self.world.arena, self.world.ledger);
        ledger.tally.objects.fetch_add(1, SeqCst);
        self.world.at(self.seat);
        match self.random.below(4) {
            0 => {
                let (place, name) = (again(|| arena.reserve()), self.queue().1.name());
                again(|| place.give(name));
            }
            1 => {
                let lock = again(|| Lock::new(arena));
                ledger.show_name(self.random.below(64), lock.name());
                lock_briefly(&lock);
                self.kept.push_back(Kept::Lock(lock));
            }
            kind => {
                let capacity = (kind == 2).then_some(2);
                let queue = again(|| Queue::new(arena, capacity));
                ledger.show_name(self.random.below(64), queue.name());
                self.use_up(&queue);
                self.kept.push_back(Kept::Queue(queue));
            }
        }
        if self.kept.len() > KEPT {
            self.kept.pop_front();
        }
    }

    /// Puts into a queue of its own, or of another's, and gets some of it.
    fn use_up(&mut self, queue: &Queue) {
        let claim = (self.random.below(4) == 0).then(|| again(|| Claim::new(&self.world.arena)));
        for _ in 0..self.random.below(6) {
            let body = message(UNCOUNTED, length(&mut self.random).min(100_000));
            again(|| queue.put(1, &[&body], Deadline::now()));
        }
        for _ in 0..self.random.below(4) {
            let mut buffer = Vec::new();
            let taken = match &claim {
                Some(claim) => again(|| queue.get_claiming(claim, &mut buffer, Deadline::now())),
                None => again(|| queue.get_into(&mut buffer, Deadline::now())),
            };
            let Some(taken) = taken else { break };
            if let Some(extent) = taken.extent {
                extent.append_to(&mut buffer).unwrap();
            }
            assert_eq!(number_of(&buffer), UNCOUNTED);
        }
    }

    /// Uses what another process made, if it is there still.
    fn open(&mut self) {
        let arena = &self.world.arena;
        let name = self.world.ledger.seen_name(self.random.below(64));
        self.world.at(self.seat);
        let gone = |error: Error| {
            assert!(
                matches!(
                    error,
                    Error::Closed { .. } | Error::Malformed { .. } | Error::Interrupted
                ),
                "{error:?}"
            )
        };
        if self.random.below(2) == 0 {
            match Queue::open(arena, name) {
                Ok(queue) => self.use_up(&queue),
                Err(error) => return gone(error),
            }
        } else {
            match Lock::open(arena, name) {
                Ok(lock) => lock_briefly(&lock),
                Err(error) => return gone(error),
            }
        }
        self.world.ledger.tally.opened.fetch_add(1, SeqCst);
    }

    /// Has a child that does the same for a moment, then leaves, ends without a word, or dies at some instant.
    fn fork(&mut self) {
        self.world.at(self.seat);
        self.world.ledger.tally.forks.fetch_add(1, SeqCst);
        let (end, seed, things) = (
            self.random.below(3),
            self.random.below(u64::MAX),
            self.random.below(30),
        );
        let micros = 50 + self.random.below(6000);
        // SAFETY: as in `child::fork`.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0);
        if pid == 0 {
            // Whatever it waits for: nothing would continue or kill it.
            die_after(if end == 0 { micros } else { 5_000_000 });
            super::end_with(|| {
                let random = Random::new(seed);
                let mut child = Maker::new(self.world, None, random);
                (0..things).for_each(|_| child.do_something());
                if end == 1 {
                    self.world.arena.leave();
                }
            });
        }
        self.children.push(pid);
        if self.random.below(2) == 0 {
            self.wait_for_children();
        }
    }

    fn wait_for_children(&mut self) {
        self.world.at(self.seat);
        for pid in self.children.drain(..) {
            let mut status = 0;
            // SAFETY: writes one status.
            assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
            super::assert_ended(status, "a child of a maker");
        }
    }
}

/// Not waiting for ever: another process may hold it, and be stopped.
fn lock_briefly(lock: &Lock) {
    let deadline = Deadline::after(Duration::from_millis(2));
    if again(|| lock.acquire(deadline)) != Acquired::TimedOut {
        lock.release().unwrap();
    }
}

/// The kernel ends this process at about that time, wherever it is then.
fn die_after(micros: u64) {
    let micros = i64::try_from(micros).unwrap();
    let never = libc::timeval {
        tv_sec: 0,
        tv_usec: 0,
    };
    let timer = libc::itimerval {
        it_interval: never,
        it_value: libc::timeval {
            tv_sec: micros / 1_000_000,
            tv_usec: micros % 1_000_000,
        },
    };
    // SAFETY: reads one structure.
    let set = unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const timer, std::ptr::null_mut()) };
    assert_eq!(set, 0);
}

/// Gets, from its own queue most of the time.
struct Getter<'a> {
    world: &'a World,
    seat: usize,
    own: usize,
    random: Random,
    /// The last number of each producer, by queue.
    last: HashMap<(usize, u64), u64>,
}

impl Getter<'_> {
    fn work(&mut self) {
        loop {
            let is_own = self.random.below(8) != 0;
            let (queue, deadline) = if is_own {
                (self.own, patience(&mut self.random))
            } else {
                (
                    usize::try_from(self.random.below(QUEUES as u64)).unwrap(),
                    Deadline::now(),
                )
            };
            let record = &self.world.ledger.seats[self.seat];
            record
                .getting
                .store(u32::try_from(queue).unwrap() + 1, SeqCst);
            self.world.at(Some(self.seat));
            let more = self.get(queue, deadline);
            record.getting.store(0, SeqCst);
            // From here on, what it took is in the ledger.
            self.world.claims[self.own].clear().unwrap();
            if !more && is_own {
                return;
            }
        }
    }

    /// Gets one message, if there is one; false when the queue is closed.
    fn get(&mut self, index: usize, deadline: Deadline) -> bool {
        let (queue, claim) = (&self.world.queues[index], &self.world.claims[self.own]);
        let mut buffer = Vec::new();
        let got = match self.random.below(4) {
            _ if index != UNCLAIMED => queue.get_claiming(claim, &mut buffer, deadline),
            0 => queue.try_get_into(&mut buffer),
            _ => queue.get_into(&mut buffer, deadline),
        };
        let taken = match got {
            Ok(Some(taken)) => taken,
            Ok(None) | Err(Error::Interrupted) => return true,
            Err(Error::Closed { .. }) => return false,
            Err(error) => panic!("queue {index}: {error:?}"),
        };
        if let Some(extent) = taken.extent {
            extent.append_to(&mut buffer).unwrap();
        }
        assert_eq!(taken.tag, 1);
        let number = number_of(&buffer);
        self.world.ledger.got(number, index);
        let last = self.last.insert((index, Producer::of(number)), number);
        assert!(
            last.is_none_or(|last| last < number),
            "queue {index}: {number} after {last:?}"
        );
        true
    }
}
