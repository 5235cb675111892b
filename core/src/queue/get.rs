//! The consumers' side.

use super::layout::{self, End, HEADER, POSITION, QueueState, Record, repair_get};
use super::message::{Message, Taken};
use super::{Claim, Queue, names, tasks};
use crate::shm::bell::Rung;
use crate::shm::blocks;
use crate::shm::layout::index;
use crate::shm::robust::{Held, Limit};
use crate::shm::{Carried, Extent};
use crate::sys::word::{Acquire, Cell, Relaxed, Release};
use crate::{Deadline, Error, Result};

/// What a look at the consumers' position found.
enum Found {
    /// A message, taken.
    Taken(Taken),
    /// Nothing yet.
    Nothing,
    /// A segment was left behind; it is this process' now, to be freed without the lock.
    Left(u64),
    /// The root was left behind; look again.
    Again,
    /// The producers' position must be brought up to date first, without the lock: the consumers are at this one.
    Unsettled(u64),
}

impl Queue {
    /// Takes the next message, or gives `None` once the deadline has passed.
    ///
    /// Copies the bytes once. Waits awake for a moment, then sleeps until there is a message. With a deadline that has passed it
    /// sleeps only, for 50 ms at most, for another process that is just taking a message; not for one that is stopped there.
    ///
    /// # Errors
    /// `Closed` when the queue was closed and is empty, `Interrupted` when a signal handler ran while it slept; `Os` when
    /// there is no memory for the copy of a message of more than 16 KiB, which is lost then. [`get_into`](Self::get_into)
    /// hands such a message over without a copy.
    pub fn get(&self, deadline: Deadline) -> Result<Option<Message>> {
        let mut bytes = Vec::new();
        let Some(taken) = self.get_into(&mut bytes, deadline)? else {
            return Ok(None);
        };
        if let Some(extent) = taken.extent {
            self.handle.member().judged(extent.append_to(&mut bytes))?;
        }
        Ok(Some(Message {
            tag: taken.tag,
            bytes,
            carried: taken.carried,
        }))
    }

    /// As [`get`](Self::get), appending the bytes of a message of at most 16 KiB to `buffer`; a longer one is handed
    /// over where it lies.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn get_into(&self, buffer: &mut Vec<u8>, deadline: Deadline) -> Result<Option<Taken>> {
        let got = self.get_with(buffer, None, deadline);
        self.handle.member().judged(got)
    }

    /// As [`get_into`](Self::get_into), and notes the first eight bytes of the message, as a little-endian number,
    /// in `claim`, together with taking it.
    ///
    /// # Errors
    /// As [`get`](Self::get), and `Malformed` for a message of fewer bytes, which stays in the queue.
    pub fn get_claiming(
        &self,
        claim: &Claim,
        buffer: &mut Vec<u8>,
        deadline: Deadline,
    ) -> Result<Option<Taken>> {
        let got = self.get_with(buffer, Some(claim), deadline);
        self.handle.member().judged(got)
    }

    /// Takes the next message if there is one and nobody else is at it: never sleeps, yields or pauses, unless the message
    /// names objects and another thread of this process is just opening or dropping one. `None` says that only
    /// [`get_into`](Self::get_into) can tell whether there is one.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn try_get_into(&self, buffer: &mut Vec<u8>) -> Result<Option<Taken>> {
        let got = self.get_at_once(buffer);
        self.handle.member().judged(got)
    }

    /// Waits until a message can be got, and leaves it there; false once the deadline has passed.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn poll(&self, deadline: Deadline) -> Result<bool> {
        let there = self.poll_until(deadline);
        self.handle.member().judged(there)
    }

    fn poll_until(&self, deadline: Deadline) -> Result<bool> {
        let state = self.entered()?;
        let limit = Limit::of_call(deadline);
        let mut unsettled = 0;
        loop {
            if state.put.count.load(Acquire) > state.get.count.load(Acquire) {
                return Ok(true);
            }
            if deadline != Deadline::NEVER && deadline.passed() {
                return Ok(false);
            }
            let Some(held) = self.lock_get(state, limit)? else {
                return Ok(false);
            };
            self.handle.member().sound()?;
            let (position, left) = state.get.place()?;
            let header: &Cell = self.handle.member().at(position)?;
            let found = match Record::from_bits(header.load(Acquire))? {
                Record::None => Found::Nothing,
                Record::Jump { segment } => self.cross(state, position, left, segment)?,
                Record::Inline { .. } | Record::Extent { .. } => return Ok(true),
            };
            if !self.go_on(state, held, &found, &mut unsettled, deadline, limit)? {
                return Ok(false);
            }
        }
    }

    fn get_at_once(&self, buffer: &mut Vec<u8>) -> Result<Option<Taken>> {
        let state = self.entered()?;
        loop {
            // Dropped after the lock is released, since that takes another one.
            let mut carried = Carried::default();
            let Some(held) = state.get_lock.try_lock() else {
                return Ok(None);
            };
            match self.look(state, buffer, None, &mut carried)? {
                Found::Taken(taken) => {
                    self.leave(state, held);
                    return Ok(Some(taken));
                }
                Found::Left(segment) => {
                    drop(held);
                    blocks::free_run(self.handle.member(), segment)?;
                }
                Found::Again => {}
                Found::Nothing | Found::Unsettled(_) => return Ok(None),
            }
        }
    }

    /// Ends a get that took a message, and tells a producer that waits for room.
    #[inline]
    fn leave(&self, state: &QueueState, held: Held<'_>) {
        // Behind all that repair would do. Not behind the lock's release: there it would take an exchange, half of
        // what the lock costs, since the next one inside may have noted its own.
        state.losing.store(0, Release);
        drop(held);
        self.ring_room(state);
    }

    fn get_with(
        &self,
        buffer: &mut Vec<u8>,
        claim: Option<&Claim>,
        deadline: Deadline,
    ) -> Result<Option<Taken>> {
        let state = self.entered()?;
        let member = self.handle.member();
        let limit = Limit::of_call(deadline);
        let mut unsettled = 0;
        // A put that returned has counted its message. Who doesn't wait must not wait for one who sleeps here either.
        if deadline != Deadline::NEVER
            && state.put.count.load(Acquire) <= state.get.count.load(Acquire)
            && state.closed.load(Acquire) == 0
            && deadline.passed()
        {
            return Ok(None);
        }
        loop {
            // Dropped after the lock is released, since that takes another one.
            let mut carried = Carried::default();
            let Some(held) = self.lock_get(state, limit)? else {
                return Ok(None);
            };
            member.sound()?;
            match self.look(state, buffer, claim, &mut carried)? {
                Found::Taken(taken) => {
                    self.leave(state, held);
                    return Ok(Some(taken));
                }
                found => {
                    if !self.go_on(state, held, &found, &mut unsettled, deadline, limit)? {
                        return Ok(None);
                    }
                }
            }
        }
    }

    /// What has to be done before the next look, when one has found no message; false once the deadline has
    /// passed, or the limit of locks is reached.
    fn go_on(
        &self,
        state: &QueueState,
        held: Held<'_>,
        found: &Found,
        unsettled: &mut u64,
        deadline: Deadline,
        limit: Limit,
    ) -> Result<bool> {
        match *found {
            Found::Left(segment) => {
                drop(held);
                blocks::free_run(self.handle.member(), segment)?;
            }
            // Whoever published the jump there has let go of the lock since.
            Found::Unsettled(at) if at == *unsettled => return Err(POSITION),
            Found::Unsettled(at) => {
                *unsettled = at;
                drop(held);
                return self.settle_put(state, limit);
            }
            Found::Nothing => return self.wait_for_more(state, deadline),
            Found::Again | Found::Taken(_) => {}
        }
        Ok(true)
    }

    /// Takes what is at the consumers' position, if anything is. Under the get lock.
    ///
    /// Into both its callers: handing over what was found, through memory, takes a twentieth of a get from Python.
    #[inline(always)]
    fn look(
        &self,
        state: &QueueState,
        buffer: &mut Vec<u8>,
        claim: Option<&Claim>,
        carried: &mut Carried,
    ) -> Result<Found> {
        let (member, get) = (self.handle.member(), &state.get);
        let (position, left) = get.place()?;
        let record = Record::from_bits(member.at::<Cell>(position)?.load(Acquire))?;
        let body = position + HEADER;
        let (tag, names, run, length) = match record {
            Record::None => return Ok(Found::Nothing),
            Record::Jump { segment } => return self.cross(state, position, left, segment),
            Record::Inline { tag, names, length } => (tag, names, 0, length),
            Record::Extent { tag, names } => {
                let (run, length) = self.described(body)?;
                (tag, names, run, length)
            }
        };
        let (mut start, mut length) = (if run == 0 { body } else { run }, length);
        if names {
            let before = self.take_up(start, length, carried)?;
            (start, length) = (start + before, length - before);
        }
        let bytes = index(length);
        if run == 0 {
            member.windows().append(start, bytes, buffer)?;
        }
        let count = get.count.load(Relaxed).wrapping_add(1);
        let next = position + record.bytes();
        get.next_position.store(next, Relaxed);
        get.next_count.store(count, Relaxed);
        let counts = state.debts.load(Relaxed) != 0;
        if counts {
            tasks::note_taker(member, state)?;
        }
        if let Some(claim) = claim {
            self.note(state, claim, start, length)?;
        }
        if run != 0 {
            get.run.store(run, Relaxed);
            self.leaves(run)?;
        }
        let losing = state.lost.load(Relaxed).wrapping_add(1);
        state.losing.store(losing, Relaxed);
        get.position.store(next, Release);
        get.count.store(count, Release);
        if counts {
            tasks::charge(member, state)?;
        }
        if claim.is_some() {
            get.claim.store(0, Relaxed);
        }
        let mut extent = None;
        if run != 0 {
            self.takes_over(run)?;
            get.run.store(0, Relaxed);
            extent = Some(Extent::new(self.handle.arena(), run, start, bytes));
        }
        let carried = std::mem::take(carried);
        let taken = Taken {
            tag,
            extent,
            carried,
        };
        Ok(Found::Taken(taken))
    }

    /// The run of a long message, and its length there.
    #[inline]
    fn described(&self, body: u64) -> Result<(u64, u64)> {
        let member = self.handle.member();
        let run = member.at::<Cell>(body)?.load(Relaxed);
        let length = member.at::<Cell>(body + 8)?.load(Relaxed);
        if length > blocks::run_bytes(member, run)? {
            return Err(Error::Broken {
                what: "the length of a message",
            });
        }
        Ok((run, length))
    }

    /// Holds what a message names, before it is taken; gives the bytes that come before the message itself.
    #[cold]
    fn take_up(&self, at: u64, length: u64, carried: &mut Carried) -> Result<u64> {
        let arena = self.handle.arena();
        let mut hold = |name| carried.take_up(arena, name);
        names::read(self.handle.member(), at, length, &mut hold)
    }

    /// Says that a run of the queue is on its way out.
    fn leaves(&self, run: u64) -> Result<()> {
        if blocks::leave(self.handle.member(), run, self.handle.name().offset)? {
            Ok(())
        } else {
            Err(Error::Broken {
                what: "the owner of a run",
            })
        }
    }

    /// Makes a run of the queue that is on its way out this process'.
    fn takes_over(&self, run: u64) -> Result<()> {
        if blocks::take_over(self.handle.member(), run, self.handle.name().offset)? {
            Ok(())
        } else {
            Err(Error::Broken {
                what: "the owner of a run",
            })
        }
    }

    /// Notes the first eight bytes of a message in a claim, to be taken back by repair if the message isn't taken.
    fn note(&self, state: &QueueState, claim: &Claim, at: u64, length: u64) -> Result<()> {
        let member = self.handle.member();
        let mut id = [0; 8];
        if length < id.len() as u64 {
            return Err(Error::Malformed {
                what: "message without a number to claim",
                at: length,
            });
        }
        member.windows().read(at, &mut id)?;
        state.get.claim.store(claim.offset(), Relaxed);
        member
            .at::<Cell>(claim.offset())?
            .store(u64::from_le_bytes(id), Release);
        Ok(())
    }

    /// Goes on to the next segment, and leaves the present one behind.
    #[cold]
    fn cross(&self, state: &QueueState, position: u64, left: u64, segment: u64) -> Result<Found> {
        let get = &state.get;
        let producers = state.put.position.load(Acquire);
        if position == left {
            // Whoever enters a segment puts a message there: two jumps in a row would be a way round and round.
            return Err(POSITION);
        }
        if left != 0 && End::is_in(producers, left) {
            // The producer that published the jump hasn't moved on yet, or died. It, or its repair, still reads there.
            return Ok(Found::Unsettled(position));
        }
        get.next_position.store(segment, Relaxed);
        get.next_segment.store(segment, Relaxed);
        get.next_count.store(get.count.load(Relaxed), Relaxed);
        if state.debts.load(Relaxed) != 0 {
            // Nobody takes a message with that.
            state.tasks.taker.store(0, Relaxed);
        }
        if left != 0 {
            self.leaves(left)?;
        }
        get.position.store(segment, Release);
        if left != 0 {
            self.takes_over(left)?;
        }
        get.segment.store(segment, Relaxed);
        Ok(if left != 0 {
            Found::Left(left)
        } else {
            Found::Again
        })
    }

    /// The get lock, with everything repaired; `None` once the limit is reached.
    #[inline]
    fn lock_get<'a>(&'a self, state: &'a QueueState, limit: Limit) -> Result<Option<Held<'a>>> {
        loop {
            let Some(mut held) = state.get_lock.lock(limit)? else {
                return Ok(None);
            };
            if !held.recovered {
                return Ok(Some(held));
            }
            let (member, queue) = (self.handle.member(), self.handle.name().offset);
            let loose = repair_get(member, queue, state)?;
            held.recovered = false;
            drop(held);
            // The dead consumer may have made room, and not rung.
            self.ring_room(state);
            layout::free(member, loose)?;
        }
    }

    /// Waits, with the get lock held, until there is something to look at; false once the deadline has passed.
    fn wait_for_more(&self, state: &QueueState, deadline: Deadline) -> Result<bool> {
        let header: &Cell = self.handle.member().at(state.get.position.load(Relaxed))?;
        let ready = || Ok(header.load(Acquire) != 0);
        if ready()? {
            return Ok(true);
        }
        if state.closed.load(Acquire) != 0 && !ready()? {
            return Err(Error::Closed { what: "queue" });
        }
        if deadline.passed() {
            return Ok(false);
        }
        if self.patience.wait(ready)? {
            return Ok(true);
        }
        let ready = || {
            // Whoever poisons the arena rings after that.
            self.handle.member().sound()?;
            Ok(ready()? || state.closed.load(Acquire) != 0)
        };
        Ok(state.more.sleep_unless(ready, deadline)? == Rung::Look || ready()?)
    }
}
