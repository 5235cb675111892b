//! A process of a simulation: a random program over locks, queues, claims, objects of its own and children.

use super::oracle::{Fate, Oracle};
use super::world::{Name, World};
use procession_core::{
    Acquired, Arena, Carried, ChildSlot, Claim, Deadline, Error, Lock, ObjectName, Put, Queue,
    Result,
};
use std::cell::RefCell;
use std::os::fd::{IntoRawFd, OwnedFd};
use std::rc::Rc;
use std::time::Duration;

const MILLISECOND: u64 = 1_000_000;
/// Past its deadline by more than this, a call is late.
pub(crate) const GRACE: u64 = 100 * MILLISECOND;
/// The longest message that lies among a queue's records.
const INLINE_MAX: u64 = 16 << 10;
/// Processes of a case, the auditor included.
pub(crate) const PROCESSES_MAX: usize = 14;

/// What every process of a case can know without shared memory.
#[derive(Clone)]
pub(crate) struct Common {
    pub(crate) world: Rc<World>,
    pub(crate) oracle: Oracle,
    /// The objects that the auditor made, and each process holds.
    pub(crate) queues: Vec<ObjectName>,
    pub(crate) locks: Vec<ObjectName>,
    /// Names of objects that may be gone by now, with their accounts.
    pub(crate) board: Rc<RefCell<Vec<(ObjectName, usize)>>>,
    /// Processes, what each one's claim is, and what it waits for without a deadline.
    pub(crate) staff: Rc<RefCell<Vec<Member>>>,
    /// Steps of a program.
    pub(crate) length: u64,
    /// Of 32 steps those that aren't of any kind, but only put and get; such programs mostly wait without a deadline.
    pub(crate) talks: u64,
    /// Nobody is killed, all give everything back, and nobody recovers: no ring makes up for one that was missed.
    pub(crate) is_peaceful: bool,
}

/// A process, as the auditor sees it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Member {
    pub(crate) name: Name,
    pub(crate) claim: ObjectName,
    pub(crate) waits: Option<Waits>,
}

/// What a process waits for without a deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waits {
    Message(usize),
    Room(usize),
    Lock(usize),
}

/// A running process.
struct Actor {
    common: Common,
    name: Name,
    arena: Arena,
    queues: Vec<Queue>,
    locks: Vec<Lock>,
    claim: Claim,
    /// Places of children that may not have come yet.
    places: Vec<ChildSlot>,
    /// Queues of its own, or that it was sent, with their accounts.
    own: RefCell<Vec<(Queue, usize)>>,
    /// The lock that it has.
    held: Option<usize>,
}

/// Makes a call again after each interruption, as every face does.
pub(crate) fn again<T>(mut call: impl FnMut() -> Result<T>) -> Result<T> {
    loop {
        match call() {
            Err(Error::Interrupted) => {}
            other => return other,
        }
    }
}

pub(crate) fn body(number: u64, length: u64) -> Vec<u8> {
    let fill = u8::try_from(number % 251).unwrap();
    let mut bytes = vec![fill; usize::try_from(length.max(8)).unwrap()];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes
}

pub(crate) fn number_of(bytes: &[u8]) -> u64 {
    let number = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    let whole = (bytes[8..].iter()).all(|byte| u64::from(*byte) == number % 251);
    assert!(whole, "message {number} is torn");
    number
}

/// Starts a child of the process that runs now, from a place that it keeps.
fn start_child(common: &Common, arena: &Arena) -> Result<Option<ChildSlot>> {
    if common.staff.borrow().len() >= PROCESSES_MAX {
        return Ok(None);
    }
    let place = again(|| arena.reserve())?;
    let claim = again(|| Claim::new(arena))?;
    for name in common.queues.iter().chain(&common.locks) {
        again(|| place.give(*name))?;
    }
    again(|| place.give(claim.name()))?;
    let file = arena.descriptor().try_clone_to_owned().unwrap();
    enlist(common, &place, file, claim.name());
    Ok(Some(place))
}

/// Starts a process on a place.
pub(crate) fn enlist(common: &Common, place: &ChildSlot, file: OwnedFd, claim: ObjectName) {
    // The number isn't known before the child takes it over, so that a child that dies before leaks none.
    let token = place.token(0);
    let rest = token.split_once(':').unwrap().1.to_owned();
    let child = common.clone();
    let name = common.world.start(true, move |name| {
        let token = format!("{}:{rest}", file.into_raw_fd());
        match again(|| Arena::attach(&token)) {
            Ok(arena) => Actor::run(child, name, arena, claim),
            Err(error) => panic!("attach: {error:?}"),
        }
    });
    let member = Member {
        name,
        claim,
        waits: None,
    };
    common.staff.borrow_mut().push(member);
}

impl Actor {
    fn run(common: Common, name: Name, arena: Arena, claim: ObjectName) {
        let queues = common.queues.iter();
        let queues: Result<Vec<_>> = queues
            .map(|queue| again(|| Queue::open(&arena, *queue)))
            .collect();
        let locks = common.locks.iter();
        let locks: Result<Vec<_>> = locks
            .map(|lock| again(|| Lock::open(&arena, *lock)))
            .collect();
        let claim = again(|| Claim::open(&arena, claim));
        let (queues, locks, claim) = match (queues, locks, claim) {
            (Ok(queues), Ok(locks), Ok(claim)) => (queues, locks, claim),
            // Its parent died before it came, or gave up on it: it has a place of its own, and what was held for it is gone.
            (Err(Error::Closed { .. }), ..)
            | (_, Err(Error::Closed { .. }), _)
            | (.., Err(Error::Closed { .. })) => return,
            (queues, locks, claim) => panic!("open: {queues:?} {locks:?} {claim:?}"),
        };
        let mut actor = Self {
            queues,
            locks,
            claim,
            common,
            name,
            arena,
            places: Vec::new(),
            own: RefCell::default(),
            held: None,
        };
        let steps = 1 + actor.below(actor.common.length);
        for _ in 0..steps {
            actor.act();
        }
        actor.leave();
    }

    fn below(&self, limit: u64) -> u64 {
        self.common.world.below(limit)
    }

    fn pick(&self, length: usize) -> usize {
        usize::try_from(self.below(length as u64)).unwrap()
    }

    fn act(&mut self) {
        if self.below(32) < self.common.talks {
            return if self.below(2) == 0 {
                self.put_one();
            } else {
                self.get_one();
            };
        }
        match self.below(32) {
            0..10 => self.put_one(),
            10..20 => self.get_one(),
            20..25 => self.lock(),
            25 => self.make(),
            26 => drop(self.own.get_mut().pop()),
            27 => self.visit(),
            28 => match start_child(&self.common, &self.arena) {
                Ok(place) => self.places.extend(place),
                Err(error) => panic!("start of a child: {error:?}"),
            },
            29 if self.common.is_peaceful => {}
            29 => again(|| self.arena.reap()).unwrap(),
            30 => drop(self.places.pop()),
            _ => self.common.world.pause(self.below(30 * MILLISECOND)),
        }
    }

    /// A timeout in milliseconds, or none.
    fn timeout(&self) -> Option<u64> {
        let may_wait = self.held.is_none();
        if may_wait && self.below(40) < self.common.talks {
            return None;
        }
        match self.below(4) {
            0 => Some(0),
            1 if may_wait => None,
            2 => Some(self.below(20)),
            _ => Some(self.below(400)),
        }
    }

    /// Makes a call that waits, and sees that it ends in time.
    fn timed<T>(
        &self,
        timeout: Option<u64>,
        waits: Waits,
        mut call: impl FnMut(Deadline) -> Result<T>,
    ) -> Result<T> {
        let world = &self.common.world;
        let (begin, kept) = (world.now(), world.kept());
        let deadline = timeout.map_or(Deadline::NEVER, |timeout| {
            Deadline::after(Duration::from_millis(timeout))
        });
        if timeout.is_none() {
            self.note_wait(Some(waits));
        }
        let result = again(|| call(deadline));
        self.note_wait(None);
        if let Some(timeout) = timeout {
            let took = (world.now() - begin).saturating_sub(world.kept() - kept);
            assert!(
                took <= timeout * MILLISECOND + GRACE,
                "{}: {waits:?} with a timeout of {timeout} ms took {took} ns",
                self.name
            );
        }
        result
    }

    fn note_wait(&self, waits: Option<Waits>) {
        let mut staff = self.common.staff.borrow_mut();
        let mine = staff.iter_mut().find(|member| member.name == self.name);
        mine.unwrap().waits = waits;
    }

    fn length(&self) -> u64 {
        match self.below(24) {
            0 => INLINE_MAX - self.below(2000),
            1 => INLINE_MAX + 1 + self.below(60_000),
            2 => 60_000 + self.below(40_000),
            _ => 8 + self.below(200),
        }
    }

    fn put_one(&self) {
        let queue = self.pick(self.queues.len());
        let (length, timeout) = (self.length(), self.timeout());
        self.put(&self.queues[queue], queue, length, timeout);
    }

    fn put(&self, queue: &Queue, account: usize, length: u64, timeout: Option<u64>) {
        let names = self.names();
        self.put_naming(queue, account, length, &names, timeout);
    }

    fn put_naming(
        &self,
        queue: &Queue,
        account: usize,
        length: u64,
        names: &Carried,
        timeout: Option<u64>,
    ) {
        let oracle = &self.common.oracle;
        let number = oracle.puts(account, self.name);
        let bytes = body(number, length);
        let parts: [&[u8]; 2] = [&bytes[..8], &bytes[8..]];
        if names.is_empty() && self.below(4) == 0 {
            match queue.try_put(0, &parts) {
                Ok(true) => return oracle.has_put(account, number, Fate::Stored),
                Ok(false) => {}
                Err(Error::Closed { .. }) => {
                    return oracle.has_put(account, number, Fate::Refused);
                }
                Err(error) => panic!("try_put: {error:?}"),
            }
        }
        let put = self.timed(timeout, Waits::Room(account), |deadline| {
            queue.put_naming(0, &parts, names, deadline)
        });
        let fate = match put {
            Ok(Put::Stored) => Fate::Stored,
            Ok(Put::Full) => {
                assert!(timeout.is_some(), "a put without a deadline gave up");
                Fate::Refused
            }
            Err(Error::Closed { .. }) => Fate::Refused,
            Err(error) => panic!("put: {error:?}"),
        };
        oracle.has_put(account, number, fate);
    }

    /// What a message is to name: nothing, or objects that others have, or that nobody will have but the message.
    fn names(&self) -> Carried {
        let mut names = Carried::new();
        if self.below(6) > 0 {
            return names;
        }
        for _ in 0..=self.below(2) {
            let mut add = |name| names.add(&self.arena, name).unwrap();
            match self.below(4) {
                0 => add(self.queues[self.pick(self.queues.len())].name()),
                1 => (self.own.borrow().last().map(|(queue, _)| queue.name()))
                    .into_iter()
                    .for_each(add),
                2 => add(self.new_queue().name()),
                _ => add(self.new_lock().name()),
            }
        }
        names
    }

    fn new_lock(&self) -> Lock {
        again(|| Lock::new(&self.arena)).unwrap()
    }

    /// A queue in which there is a lock, and perhaps the queue itself.
    fn new_queue(&self) -> Queue {
        let account = self.common.oracle.new_queue(false);
        let queue = again(|| Queue::new(&self.arena, None)).unwrap();
        self.common.board.borrow_mut().push((queue.name(), account));
        let mut names = Carried::new();
        let lock = self.new_lock();
        names.add(&self.arena, lock.name()).unwrap();
        if self.below(2) == 0 {
            names.add(&self.arena, queue.name()).unwrap();
        }
        self.put_naming(&queue, account, self.length(), &names, Some(0));
        queue
    }

    /// Whatever a message names that was got is there, and may be passed on, or kept.
    fn open(&self, carried: &Carried) {
        for name in carried.names() {
            if self.common.queues.contains(name) {
                continue;
            }
            let board = self.common.board.borrow();
            let account = board.iter().find(|(known, _)| known == name);
            let account = account.map(|(_, account)| *account);
            drop(board);
            let Some(account) = account else {
                let lock = again(|| Lock::open(&self.arena, *name)).expect("a lock in a message");
                let acquired = again(|| lock.acquire(Deadline::NEVER)).unwrap();
                assert_ne!(acquired, Acquired::TimedOut);
                lock.release().unwrap();
                continue;
            };
            let queue = again(|| Queue::open(&self.arena, *name)).expect("a queue in a message");
            if self.below(2) == 0 {
                self.own.borrow_mut().push((queue, account));
            }
        }
        if !carried.is_empty() && self.below(3) == 0 {
            let queue = self.pick(self.queues.len());
            self.put_naming(&self.queues[queue], queue, 8, carried, Some(0));
        }
    }

    fn get_one(&self) {
        let queue = self.pick(self.queues.len());
        let timeout = self.timeout();
        self.get(&self.queues[queue], queue, timeout);
    }

    fn get(&self, queue: &Queue, account: usize, timeout: Option<u64>) {
        let oracle = &self.common.oracle;
        let way = self.below(4);
        let get = oracle.gets(account, self.name, way == 0);
        let mut buffer = Vec::new();
        if way == 1 {
            match queue.try_get_into(&mut buffer) {
                Ok(None) => {}
                Ok(Some(taken)) => {
                    if let Some(extent) = taken.extent {
                        extent.append_to(&mut buffer).unwrap();
                    }
                    oracle.has_got(account, get, Some(number_of(&buffer)));
                    return self.open(&taken.carried);
                }
                Err(Error::Closed { .. }) => return oracle.has_got(account, get, None),
                Err(error) => panic!("try_get: {error:?}"),
            }
        }
        let got = self.timed(timeout, Waits::Message(account), |deadline| {
            if way == 0 {
                queue.get_claiming(&self.claim, &mut buffer, deadline)
            } else {
                queue.get_into(&mut buffer, deadline)
            }
        });
        match got {
            Ok(Some(taken)) => {
                // It is this process' from here on; its bytes may still be in the arena.
                if let Some(extent) = taken.extent {
                    extent.append_to(&mut buffer).unwrap();
                }
                let number = number_of(&buffer);
                oracle.has_got(account, get, Some(number));
                if way == 0 {
                    assert_eq!(self.claim.value(), Ok(number));
                }
                self.open(&taken.carried);
            }
            Ok(None) => {
                assert!(timeout.is_some(), "a get without a deadline gave up");
                oracle.has_got(account, get, None);
            }
            Err(Error::Closed { .. }) => oracle.has_got(account, get, None),
            Err(error) => panic!("get: {error:?}"),
        }
    }

    /// Takes a lock, does something, and releases it.
    fn lock(&mut self) {
        if let Some(held) = self.held.take() {
            return self.release(held);
        }
        let lock = self.pick(self.locks.len());
        let timeout = self.timeout();
        let oracle = self.common.oracle.clone();
        oracle.acquires(lock, self.name);
        let acquired = self.timed(timeout, Waits::Lock(lock), |deadline| {
            self.locks[lock].acquire(deadline)
        });
        match acquired.unwrap() {
            Acquired::TimedOut => {
                assert!(timeout.is_some(), "a wait without a deadline gave up");
                oracle.gave_up(lock, self.name);
                if oracle.takes_over_left(lock, self.name) {
                    self.locks[lock].release().unwrap();
                    oracle.released(lock, self.name);
                }
            }
            acquired => {
                oracle.acquired(lock, self.name, acquired == Acquired::OwnerDied);
                self.held = Some(lock);
                match self.below(3) {
                    0 => self.common.world.pause(self.below(5 * MILLISECOND)),
                    1 => return,
                    _ => {}
                }
                self.held = None;
                self.release(lock);
            }
        }
    }

    fn release(&self, lock: usize) {
        self.common.oracle.releases(lock, self.name);
        self.locks[lock].release().unwrap();
        self.common.oracle.released(lock, self.name);
    }

    /// Makes an object of its own, and uses it.
    fn make(&mut self) {
        if self.below(2) == 0 {
            let lock = again(|| Lock::new(&self.arena)).unwrap();
            assert_eq!(lock.acquire(Deadline::NEVER).unwrap(), Acquired::Clean);
            lock.release().unwrap();
            return;
        }
        let account = self.common.oracle.new_queue(false);
        let queue = again(|| Queue::new(&self.arena, None)).unwrap();
        self.put(&queue, account, self.length(), Some(0));
        self.common.board.borrow_mut().push((queue.name(), account));
        self.own.get_mut().push((queue, account));
    }

    /// Uses an object of another's, whose name it has heard.
    fn visit(&mut self) {
        let count = self.common.board.borrow().len();
        if count == 0 {
            return;
        }
        let (name, account) = self.common.board.borrow()[self.pick(count)];
        match again(|| Queue::open(&self.arena, name)) {
            Ok(queue) => {
                self.put(&queue, account, self.length(), Some(0));
                self.get(&queue, account, Some(0));
                if self.below(2) == 0 {
                    self.own.get_mut().push((queue, account));
                }
            }
            // Its place may be another object's by now, or part of one.
            Err(Error::Closed { .. } | Error::Malformed { .. }) => {}
            Err(error) => panic!("open: {error:?}"),
        }
    }

    fn leave(mut self) {
        if let Some(held) = self.held.take() {
            if self.below(2) == 0 {
                self.release(held);
            } else {
                self.common.oracle.leaves(held, self.name);
                self.arena.leave();
                self.common.oracle.has_left(held);
            }
        }
        match self.below(3) {
            // Everything is given back.
            _ if self.common.is_peaceful => {}
            0 => {}
            // As a process that ends: its memory goes, and nothing is given back by itself.
            1 => {
                self.arena.leave();
                self.common.world.kill_me();
            }
            // As one that is killed before it could leave.
            _ => self.common.world.kill_me(),
        }
    }
}
