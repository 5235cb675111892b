//! What a case is played on: an arena with an object of each kind, what is done to it, and what must hold afterwards.

use super::ledger::{Ledger, Note, On, Who};
use crate::child::until;
use crate::scene::{Sync, body, number_of};
use procession_core::{
    Acquired, Arena, Carried, ChildSlot, Claim, Deadline, Error, Lock, Put, Queue, Result, Taken,
};
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

pub(crate) const SMALL: usize = 40;
pub(crate) const LARGE: usize = 50_000;
/// Four of these fill a segment but for a little.
pub(crate) const QUARTER: usize = 16_000;

thread_local! {
    /// When the engine's last call of this thread returned: what the harness does with its result takes time, too.
    pub(crate) static RETURNED: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// A call of the engine, made again as a face does whenever it ends so that signal handlers can run.
pub(crate) fn again<T>(mut call: impl FnMut() -> Result<T>) -> T {
    loop {
        let result = call();
        RETURNED.set(Some(Instant::now()));
        match result {
            Err(Error::Interrupted) => {}
            result => return result.unwrap(),
        }
    }
}

fn closed_is_none<T>(result: Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Error::Closed { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// An arena and what is in it.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) ledger: &'static Ledger,
    pub(crate) queue: Queue,
    /// Has room for one message.
    pub(crate) bounded: Queue,
    pub(crate) lock: Lock,
    pub(crate) claim: Claim,
    /// Objects that no act touches.
    pub(crate) other: Queue,
    pub(crate) other_lock: Lock,
    /// A place for a child by exec, and the token to attach with.
    pub(crate) place: Option<(ChildSlot, String)>,
    /// What an act wants to be there, and nobody uses.
    pub(crate) more: Vec<Queue>,
    /// One of each primitive, if an act wants them.
    pub(crate) sync: Option<Sync>,
    /// Objects that an act may leave for as long as the tree lives.
    pub(crate) escapes: u64,
    pub(crate) arena: Arena,
}

impl Stage {
    pub(crate) fn new(ledger: &'static Ledger) -> Self {
        ledger.clear();
        let arena = Arena::create().unwrap();
        Self {
            ledger,
            queue: Queue::new(&arena, None).unwrap(),
            bounded: Queue::new(&arena, Some(1)).unwrap(),
            lock: Lock::new(&arena).unwrap(),
            claim: Claim::new(&arena).unwrap(),
            other: Queue::new(&arena, None).unwrap(),
            other_lock: Lock::new(&arena).unwrap(),
            place: None,
            more: Vec::new(),
            sync: None,
            escapes: 0,
            arena,
        }
    }

    pub(crate) fn sync(&self) -> &Sync {
        self.sync.as_ref().expect("primitives")
    }

    fn on(&self, on: On) -> &Queue {
        match on {
            On::Queue => &self.queue,
            On::Bounded => &self.bounded,
            On::Other => &self.other,
        }
    }

    /// Puts a message and notes that it is there; false when it was full, or closed, at the deadline.
    pub(crate) fn put(&self, who: Who, on: On, length: usize, deadline: Deadline) -> bool {
        let number = self.ledger.next_number(who);
        let bytes = body(number, length);
        let queue = self.on(on);
        let put = again(|| closed_is_none(queue.put(0, &[&bytes], deadline)));
        self.noted_put(who, on, number, put == Some(Put::Stored))
    }

    /// Puts a message that names a lock, which nobody else holds, and the queue itself.
    pub(crate) fn put_naming(&self, who: Who, on: On, length: usize) -> bool {
        let number = self.ledger.next_number(who);
        let bytes = body(number, length);
        let queue = self.on(on);
        let lock = again(|| Lock::new(&self.arena));
        let mut names = Carried::new();
        for name in [lock.name(), queue.name()] {
            names.add(&self.arena, name).unwrap();
        }
        drop(lock);
        let put = || queue.put_naming(0, &[&bytes], &names, Deadline::NEVER);
        let put = again(|| closed_is_none(put()));
        self.noted_put(who, on, number, put == Some(Put::Stored))
    }

    pub(crate) fn try_put(&self, who: Who, on: On) -> bool {
        let number = self.ledger.next_number(who);
        let put = self.on(on).try_put(0, &[&body(number, SMALL)]);
        let put = closed_is_none(put).unwrap();
        self.noted_put(who, on, number, put == Some(true))
    }

    fn noted_put(&self, who: Who, on: On, number: u64, put: bool) -> bool {
        if put {
            self.ledger.note(who, on, false, number);
        }
        put
    }

    /// Gets a message and notes it; false when there was none, or none will come.
    pub(crate) fn get(&self, who: Who, on: On, deadline: Deadline) -> bool {
        let queue = self.on(on);
        self.noted_get(who, on, |bytes| queue.get_into(bytes, deadline))
    }

    pub(crate) fn try_get(&self, who: Who, on: On) -> bool {
        let queue = self.on(on);
        self.noted_get(who, on, |bytes| queue.try_get_into(bytes))
    }

    pub(crate) fn get_claiming(&self, who: Who, deadline: Deadline) -> bool {
        self.noted_get(who, On::Queue, |bytes| {
            self.queue.get_claiming(&self.claim, bytes, deadline)
        })
    }

    fn noted_get(
        &self,
        who: Who,
        on: On,
        get: impl Fn(&mut Vec<u8>) -> Result<Option<Taken>>,
    ) -> bool {
        self.ledger.set_getting(who, true);
        let mut bytes = Vec::new();
        let taken = again(|| closed_is_none(get(&mut bytes))).flatten();
        let is_taken = taken.is_some();
        if let Some(taken) = taken {
            let extent = taken.extent.as_ref();
            extent
                .map_or(Ok(()), |it| it.append_to(&mut bytes))
                .unwrap();
            self.ledger.note(who, on, true, number_of(&bytes));
            match taken.carried.names() {
                [] => {}
                [lock, queue] => {
                    drop(again(|| Lock::open(&self.arena, *lock)));
                    drop(again(|| Queue::open(&self.arena, *queue)));
                }
                some => panic!("what a message names is gone, but for {some:?}"),
            }
        }
        self.ledger.set_getting(who, false);
        is_taken
    }

    /// Takes the lock and notes that it is inside; false at the deadline.
    pub(crate) fn enter(&self, who: Who, deadline: Deadline) -> bool {
        let acquired = again(|| self.lock.acquire(deadline));
        if acquired != Acquired::TimedOut {
            self.ledger.enter(who, acquired == Acquired::OwnerDied);
        }
        acquired != Acquired::TimedOut
    }

    pub(crate) fn leave(&self, who: Who) {
        self.ledger.leave(who);
        self.lock.release().unwrap();
    }

    /// Enters and leaves the lock; false at the deadline.
    pub(crate) fn pass_lock(&self, who: Who, deadline: Deadline) -> bool {
        let entered = self.enter(who, deadline);
        if entered {
            self.leave(who);
        }
        entered
    }

    /// Keeps a place for a child by exec, which is given all objects.
    pub(crate) fn keep_place(&mut self) {
        let place = self.arena.reserve().unwrap();
        for name in [self.queue.name(), self.lock.name(), self.claim.name()] {
            place.give(name).unwrap();
        }
        let file = self.arena.descriptor().try_clone_to_owned().unwrap();
        let token = place.token(std::os::fd::IntoRawFd::into_raw_fd(file));
        self.place = Some((place, token));
    }

    /// What the first of two fresh processes does with every object.
    pub(crate) fn use_first(&self) {
        let soon = || Deadline::after(Duration::from_secs(20));
        assert!(self.pass_lock(Who::First, soon()), "the lock is lost");
        let before = self
            .ledger
            .bereaved
            .load(std::sync::atomic::Ordering::SeqCst);
        assert!(self.pass_lock(Who::First, soon()));
        let after = self
            .ledger
            .bereaved
            .load(std::sync::atomic::Ordering::SeqCst);
        assert_eq!(before, after, "a death was told twice");
        for on in [On::Queue, On::Other] {
            let closed = self.on(on).is_closed().unwrap();
            assert!(
                self.put(Who::First, on, LARGE, soon()) || closed,
                "{on:?} is lost"
            );
        }
        // Another one may wait for room, too: whoever gets it, there is some in the end.
        let end = soon();
        while !self.put(Who::First, On::Bounded, LARGE, Deadline::now())
            && !self.bounded.is_closed().unwrap()
        {
            assert!(!end.passed(), "no room in a queue that is emptied");
            self.get(Who::First, On::Bounded, Deadline::now());
        }
    }

    /// What the second one does.
    pub(crate) fn use_second(&self) {
        let soon = || Deadline::after(Duration::from_secs(20));
        assert!(self.pass_lock(Who::Second, soon()), "the lock is lost");
        let made = Lock::new(&self.arena).unwrap();
        assert_eq!(made.acquire(soon()).unwrap(), Acquired::Clean);
        drop(made);
        for on in [On::Queue, On::Bounded, On::Other] {
            while self.get(Who::Second, on, Deadline::now()) {}
            assert!(
                self.on(on).is_empty().unwrap(),
                "{on:?} counts what isn't there"
            );
        }
        drop(self.arena.reserve().unwrap());
    }

    /// What all notes say together: each message that was put was got once, whole and in order, or was lost with one
    /// that was killed inside a get, and then is counted, as far as `counts` says.
    pub(crate) fn account(&self, counts: bool) {
        if let Some(sync) = &self.sync {
            again(|| self.arena.reap());
            sync.judge().unwrap_or_else(|why| panic!("{why}"));
        }
        let notes = self.ledger.notes();
        let dying = self.ledger.getting();
        let mut missing = 0;
        for on in [On::Queue, On::Bounded, On::Other] {
            let here: Vec<Note> = notes
                .iter()
                .copied()
                .filter(|note| note.on == on as usize)
                .collect();
            let got: Vec<u64> = here
                .iter()
                .filter(|it| it.got)
                .map(|it| it.number)
                .collect();
            let once: BTreeSet<u64> = got.iter().copied().collect();
            assert_eq!(once.len(), got.len(), "{on:?}: got twice: {got:x?}");
            for number in &got {
                assert!(
                    self.ledger.was_begun(*number),
                    "{on:?}: nobody put {number:x}"
                );
            }
            let lost = here
                .iter()
                .filter(|it| !it.got && !once.contains(&it.number))
                .count() as u64;
            let counted = self.on(on).lost().unwrap();
            assert!(counted <= dying, "{on:?}: {counted} counted as lost");
            // An unacknowledged one may be lost as well, if it is counted.
            assert!(lost <= dying, "{on:?}: {lost} lost; put and got: {here:x?}");
            assert!(
                !counts || lost == counted,
                "{on:?}: {lost} lost, {counted} counted"
            );
            missing += lost;
            let mut last = BTreeMap::new();
            // The prober's threads are several producers and consumers, whom their notes don't tell apart.
            let prober = Who::Prober as u64;
            let tells = |it: &&Note| it.got && it.by as u64 != prober && it.number >> 32 != prober;
            for note in here.iter().filter(tells) {
                let before = last.insert((note.by, note.number >> 32), note.number);
                assert!(before < Some(note.number), "{on:?}: out of order: {got:x?}");
            }
        }
        assert!(missing <= dying, "{missing} messages lost");
        let claimed = self.claim.value().unwrap();
        for note in notes
            .iter()
            .filter(|note| note.got && note.number == claimed)
        {
            assert!(
                note.by < Who::Prober as usize,
                "got, and claimed by the dead: {claimed:x}"
            );
        }
    }

    /// Drops everything and waits until the arena is empty again.
    pub(crate) fn clear_away(self) {
        let Self {
            arena,
            queue,
            bounded,
            lock,
            claim,
            other,
            other_lock,
            place,
            more,
            sync,
            escapes,
            ..
        } = self;
        if let Some((place, token)) = place {
            // The copy of the arena's descriptor that the token names is the child's; this one is the harness'.
            let descriptor = token.split(':').next().unwrap().parse().unwrap();
            // SAFETY: made for the token, and taken over by nobody in this process.
            drop(unsafe {
                <std::os::fd::OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(descriptor)
            });
            drop(place);
        }
        drop((queue, bounded, lock, claim, other, other_lock, more, sync));
        until("the arena to be empty", || {
            arena.reap().unwrap();
            let census = arena.census().unwrap();
            let runs = census.linked_bytes + census.owned_bytes;
            census.objects <= escapes && runs == 0 && slots_in_use(&arena) == 1
        });
    }
}

/// Slots of the arena that aren't free, by the layout that docs/shm.md draws.
fn slots_in_use(arena: &Arena) -> usize {
    const SLOTS: usize = 1024;
    const SLOT: usize = 128;
    const STATE: usize = 40;
    let mut bytes = vec![0; SLOTS * SLOT];
    let file = std::fs::File::from(arena.descriptor().try_clone_to_owned().unwrap());
    file.read_exact_at(&mut bytes, 4096).unwrap();
    let states = bytes.chunks(SLOT).map(|slot| &slot[STATE..STATE + 4]);
    states.filter(|state| **state != [0; 4]).count()
}
