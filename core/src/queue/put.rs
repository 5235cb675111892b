//! The producers' side.

use super::layout::{self, HEADER, INLINE_MAX, QueueState, Record, SEGMENT};
use super::{Queue, layout::repair_put, names};
use crate::shm::Carried;
use crate::shm::bell::Rung;
use crate::shm::extent::Run;
use crate::shm::robust::{Held, LOOK_AGAIN, Limit};
use crate::sys::clock;
use crate::sys::word::{Acquire, Cell, Relaxed, Release};
use crate::{Deadline, Error, Result};

/// With more messages than this waiting, each new segment offers the processor to the consumers.
const BACKLOG: u64 = 8192;

/// How a put ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// The queue has the message, whatever happens to the caller from now on.
    Stored,
    /// There was no room until the deadline, or a process is stopped that holds what a put needs: then a call that doesn't wait
    /// says so at once.
    Full,
}

/// What a wait for room found.
enum Room {
    Some,
    None,
    /// A consumer died inside: what it left must be repaired first, without the lock.
    Unsettled,
}

impl Queue {
    /// Puts a message: `parts`, one behind the other, with `tag`.
    ///
    /// Copies the bytes once. An uncontended put of a small message takes about 20 ns and no system call; one of more
    /// than 16 KiB takes pages of its own, and if a megabyte waits already and the consumers are at work, up to 250 µs awake
    /// to let them catch up. Sleeps only while a bounded queue is full, or another process is inside.
    ///
    /// # Errors
    /// `Closed` when the queue was closed, `Interrupted` when a signal handler ran while it slept, `Os` or
    /// `Exhausted` when there is no memory for it. After an error the message is not in the queue.
    pub fn put(&self, tag: u8, parts: &[&[u8]], deadline: Deadline) -> Result<Put> {
        let put = self.put_parts(tag, false, parts, deadline);
        self.handle.member().judged(put)
    }

    /// As [`put`](Self::put), a message that names objects: they live as long as it can be got, and whoever gets it
    /// holds them. 16 bytes more for each.
    ///
    /// # Errors
    /// As [`put`](Self::put); `Misuse` for objects of another arena.
    pub fn put_naming(
        &self,
        tag: u8,
        parts: &[&[u8]],
        names: &Carried,
        deadline: Deadline,
    ) -> Result<Put> {
        if names.is_empty() {
            return self.put(tag, parts, deadline);
        }
        self.entered()?;
        let member = self.handle.member();
        member.judged(names.send(&self.handle))?;
        let prefix = names::prefix(names.names());
        let mut all = Vec::with_capacity(1 + parts.len());
        all.push(&prefix[..]);
        all.extend(parts);
        let put = member.judged(self.put_parts(tag, true, &all, deadline));
        if matches!(put, Ok(Put::Stored)) {
            names.delivered();
        }
        put
    }

    #[inline]
    fn put_parts(&self, tag: u8, names: bool, parts: &[&[u8]], deadline: Deadline) -> Result<Put> {
        let length = parts.iter().map(|part| part.len() as u64).sum();
        if length <= INLINE_MAX {
            let record = Record::Inline { tag, names, length };
            return self.put_record(record, parts, None, deadline);
        }
        let member = self.handle.member();
        self.pace.keep(self.entered()?, length);
        let Some(run) = Run::take(member, length, Limit::of_call(deadline))? else {
            return Ok(Put::Full);
        };
        run.fill(parts)?;
        let description = [run.offset.to_le_bytes(), length.to_le_bytes()];
        let parts: [&[u8]; 2] = [&description[0], &description[1]];
        self.put_record(Record::Extent { tag, names }, &parts, Some(run), deadline)
    }

    /// Puts a message of at most 16 KiB if nobody else is at it: never sleeps, and so may be called by a thread that holds
    /// what others wait for, such as an interpreter's lock. False says that only [`put`](Self::put) can do it.
    ///
    /// # Errors
    /// As [`put`](Self::put).
    #[inline]
    pub fn try_put(&self, tag: u8, parts: &[&[u8]]) -> Result<bool> {
        let length = parts.iter().map(|part| part.len() as u64).sum();
        let names = false;
        let (state, record) = (self.entered()?, Record::Inline { tag, names, length });
        if length > INLINE_MAX {
            return Ok(false);
        }
        let put = self.put_at_once(state, record, parts);
        self.handle.member().judged(put)
    }

    #[inline]
    fn put_at_once(&self, state: &QueueState, record: Record, parts: &[&[u8]]) -> Result<bool> {
        loop {
            let Some(held) = state.put_lock.try_lock() else {
                return Ok(false);
            };
            if !state.has_room() || state.closed.load(Acquire) != 0 {
                return Ok(false);
            }
            let (position, segment) = state.put.place()?;
            if fits(position, segment, record) {
                self.publish(state, position, record, parts, None)?;
                drop(held);
                self.ring_more(state);
                return Ok(true);
            }
            // Not handed to `put`, which is called without the interpreter's lock: whoever lets go of that for a
            // microsecond, every hundred, wakes the threads that wait for it, each time too late to have it.
            drop(held);
            if !self.grow_at_once(state, record)? {
                return Ok(false);
            }
        }
    }

    /// Lets the chain go on in a new segment, unless it has been let meanwhile; false if somebody else is at it.
    #[cold]
    fn grow_at_once(&self, state: &QueueState, record: Record) -> Result<bool> {
        let Some(run) = Run::take(self.handle.member(), SEGMENT, Deadline::now())? else {
            return Ok(false);
        };
        let Some(_held) = state.put_lock.try_lock() else {
            return Ok(false);
        };
        let (position, segment) = state.put.place()?;
        if !fits(position, segment, record) {
            self.link_segment(state, position, run)?;
        }
        Ok(true)
    }

    fn put_record(
        &self,
        record: Record,
        parts: &[&[u8]],
        mut run: Option<Run<'_>>,
        deadline: Deadline,
    ) -> Result<Put> {
        let state = self.entered()?;
        let limit = Limit::of_call(deadline);
        let mut spare: Option<Run<'_>> = None;
        // Who doesn't wait must not wait for one who sleeps for room either.
        if deadline != Deadline::NEVER && !state.has_room() && deadline.passed() {
            return Ok(Put::Full);
        }
        loop {
            let Some(held) = self.lock_put(state, limit)? else {
                return Ok(Put::Full);
            };
            match self.wait_for_room(state, deadline)? {
                Room::Some => {}
                Room::None => return Ok(Put::Full),
                Room::Unsettled => {
                    drop(held);
                    self.settle()?;
                    continue;
                }
            }
            let (position, segment) = state.put.place()?;
            if !fits(position, segment, record) {
                if let Some(next) = spare.take() {
                    self.link_segment(state, position, next)?;
                } else {
                    drop(held);
                    spare = Run::take(self.handle.member(), SEGMENT, limit)?;
                    if spare.is_none() {
                        return Ok(Put::Full);
                    }
                }
                continue;
            }
            self.publish(state, position, record, parts, run.take())?;
            drop(held);
            self.ring_more(state);
            return Ok(Put::Stored);
        }
    }

    /// Writes a record behind the last one and makes it visible.
    #[inline]
    fn publish(
        &self,
        state: &QueueState,
        position: u64,
        record: Record,
        parts: &[&[u8]],
        run: Option<Run<'_>>,
    ) -> Result<()> {
        let (member, put) = (self.handle.member(), &state.put);
        let (next, count) = (
            position + record.bytes(),
            put.count.load(Relaxed).wrapping_add(1),
        );
        member.at::<Cell>(next)?.store(0, Relaxed);
        let mut at = position + HEADER;
        for part in parts {
            member.windows().write(at, part)?;
            at += part.len() as u64;
        }
        let header: &Cell = member.at(position)?;
        put.next_position.store(next, Relaxed);
        put.next_count.store(count, Relaxed);
        let carries = run.is_some();
        if let Some(run) = run {
            put.run.store(run.offset, Relaxed);
            run.link(self.handle.name().offset)?;
        }
        header.store(record.bits(), Release);
        put.position.store(next, Relaxed);
        put.count.store(count, Release);
        if carries {
            put.run.store(0, Relaxed);
        }
        Ok(())
    }

    /// Lets the chain go on in a new segment.
    #[cold]
    fn link_segment(&self, state: &QueueState, position: u64, run: Run<'_>) -> Result<()> {
        let (member, put, segment) = (self.handle.member(), &state.put, run.offset);
        member.at::<Cell>(segment)?.store(0, Relaxed);
        let header: &Cell = member.at(position)?;
        put.next_position.store(segment, Relaxed);
        put.next_segment.store(segment, Relaxed);
        put.next_count.store(put.count.load(Relaxed), Relaxed);
        put.run.store(segment, Relaxed);
        run.link(self.handle.name().offset)?;
        header.store(Record::Jump { segment }.bits(), Release);
        put.position.store(segment, Release);
        put.segment.store(segment, Relaxed);
        put.run.store(0, Relaxed);
        if put
            .count
            .load(Relaxed)
            .saturating_sub(state.get.count.load(Relaxed))
            > BACKLOG
        {
            // Never blocks; it keeps the bytes in flight few, and so in the processor's cache.
            clock::yield_now();
        }
        Ok(())
    }

    /// The put lock, with everything repaired; `None` once the limit is reached.
    #[inline]
    fn lock_put<'a>(&'a self, state: &'a QueueState, limit: Limit) -> Result<Option<Held<'a>>> {
        loop {
            let Some(mut held) = state.put_lock.lock(limit)? else {
                return Ok(None);
            };
            if !held.recovered {
                return Ok(Some(held));
            }
            let (member, queue) = (self.handle.member(), self.handle.name().offset);
            let loose = repair_put(member, queue, state)?;
            held.recovered = false;
            drop(held);
            // The dead producer may have published, and not rung.
            self.ring_more(state);
            layout::free(member, loose)?;
        }
    }

    /// Waits, with the put lock held, until a bounded queue has room or the deadline has passed.
    ///
    /// A consumer may die after it has made room and before it rings, so the sleeper looks itself now and then.
    #[inline]
    fn wait_for_room(&self, state: &QueueState, deadline: Deadline) -> Result<Room> {
        let ready = || Ok(state.has_room());
        loop {
            self.handle.member().sound()?;
            if state.closed.load(Acquire) != 0 {
                return Err(Error::Closed { what: "queue" });
            }
            if state.has_room() {
                return Ok(Room::Some);
            }
            if deadline.passed() {
                return Ok(Room::None);
            }
            if !self.patience.wait(ready)? {
                let look = deadline.at_most(LOOK_AGAIN);
                if state.room.sleep_unless(ready, look)? == Rung::TimedOut
                    && state.get_lock.is_abandoned()
                {
                    return Ok(Room::Unsettled);
                }
            }
        }
    }

    /// Lets a producer that stands between two stores finish, or repairs what a dead one left: on return the
    /// producers' position is up to date.
    pub(super) fn settle_put(&self, state: &QueueState, limit: Limit) -> Result<bool> {
        Ok(self.lock_put(state, limit)?.is_some())
    }
}

/// Whether a segment, the present one, has room for a record and, behind it, for the next one's header.
#[inline]
fn fits(position: u64, segment: u64, record: Record) -> bool {
    segment != 0 && position + record.bytes() + HEADER <= segment + SEGMENT
}
