//! A queue's state, its records, and what a death leaves to repair.
//!
//! ```text
//! record   header (8 bytes): bits 0..4 kind, 4 NAMES, 8..16 tag, 16..64 length or offset
//! NONE     0: nothing is published here yet
//! INLINE   length bytes of message, padded to 8
//! EXTENT   16 bytes: offset of a run, length of the message in it
//! JUMP     none: the header names the segment in which the next record is
//! ```
//! With NAMES the bytes of an INLINE or of an EXTENT's run begin with names of objects (`names`), which the lengths count.
//!
//! A side's operation first notes where it is going, in absolute numbers, beginning with `next_position`; then it
//! does the one store that others see (the producers' is a header, the consumers' is `position`); then it brings its
//! other cells up to it. So a repair can tell an operation that happened from one that didn't, and can itself be
//! killed and done again:
//!
//! | the operation of a dead | happened when | then repair | else repair |
//! |---|---|---|---|
//! | producer | the header at `position` is not NONE, or `position == next_position` | copies the noted numbers | frees the run that it had linked |
//! | consumer | `position == next_position` | copies the noted numbers, frees the run and the segment that it left behind, counts the message as lost | takes its claim back, keeps what was on its way out |
//!
//! A run that a consumer takes out is on its way out ([`blocks::leave`]) before that store, and its own after it. So a
//! repair that finds it there may take it over, however late: nobody else can have freed it.

use super::tasks::{self, Tasks};
use super::watch;
use crate::shm::arena::Member;
use crate::shm::bell::Bell;
use crate::shm::blocks;
use crate::shm::layout::{OBJECT_HEADER, SLOTS};
use crate::shm::robust::RobustLock;
use crate::shm::view::shared;
use crate::sys::word::{Acquire, Cell, Relaxed, Release, Word};
use crate::{Error, Result};

/// Bytes of a segment of records.
pub(super) const SEGMENT: u64 = 64 << 10;
/// Longest message that lies among the records; a longer one gets a run of its own. 16 KiB;
/// less in a model, where each byte costs.
pub(super) const INLINE_MAX: u64 = if cfg!(all(loom, test)) { 24 } else { 16 << 10 };
/// Cells with a bit for each slot.
const WATCHERS: usize = (SLOTS / 64) as usize;
/// No position of an arena is as large: sums with it don't overflow.
const END: u64 = 1 << 62;
/// A side of a queue is where it can't be.
pub(super) const POSITION: Error = Error::Broken {
    what: "a position in a queue",
};
/// Of a record's kind: the message begins with names of objects.
const NAMES: u64 = 0x10;
/// Bytes of a record's header.
pub(super) const HEADER: u64 = 8;

shared! {
    /// One side's place in the chain of records.
    End: 64 {
        /// Offset of the header where the next record is, or will be.
        position: Cell,
        /// Offset of the segment that it lies in; 0 for the root.
        segment: Cell,
        /// Messages put, or got, so far.
        count: Cell,
        next_position: Cell,
        next_segment: Cell,
        next_count: Cell,
        /// A run on its way in or out; 0: none.
        run: Cell,
        /// Consumers: offset of the claim that is being made; 0: none.
        claim: Cell,
    }
}

shared! {
    /// A queue's state: each side on lines of its own.
    QueueState: 768 {
        put_lock: RobustLock,
        put: End,
        more: Bell,
        _more: [Cell; 7],
        get_lock: RobustLock,
        get: End,
        room: Bell,
        /// Messages that were lost with the getter that had taken them.
        lost: Cell,
        /// If the consumer inside dies now: what `lost` will be; 0: it takes nothing. Written by each get: on no line that
        /// producers look at.
        losing: Cell,
        _room: [Cell; 5],
        capacity: Word,
        closed: Word,
        /// The header of the first record of all, which is a JUMP.
        root: Cell,
        /// Offset of the run with what each slot owes; 0: this queue counts no tasks.
        debts: Cell,
        /// What [watchers](super::watch) wait for: bits of theirs below, and above how often one has said so.
        watched: Word,
        _pad: Word,
        _unused: [Cell; 4],
        tasks: Tasks,
        /// A bit for each slot whose process has asked for a descriptor.
        watchers: [Cell; WATCHERS],
    }
}

impl End {
    /// Whether a record can begin at `position`: in `segment`, or at the root, before the first one is there.
    #[inline]
    pub(super) fn is_in(position: u64, segment: u64) -> bool {
        segment == 0 || (segment <= position && position - segment < SEGMENT)
    }

    /// This side's position and the segment that it lies in. Under the side's lock.
    ///
    /// # Errors
    /// `Broken` when it doesn't lie there.
    #[inline]
    pub(super) fn place(&self) -> Result<(u64, u64)> {
        let (position, segment) = (self.position.load(Relaxed), self.segment.load(Relaxed));
        if Self::is_in(position, segment) && position < END {
            Ok((position, segment))
        } else {
            Err(POSITION)
        }
    }
}

impl QueueState {
    /// Where the root header lies in the state.
    pub(super) const ROOT: u64 = std::mem::offset_of!(Self, root) as u64;
    /// Where the bits of those who have asked lie in the state.
    pub(super) const WATCHERS: u64 = std::mem::offset_of!(Self, watchers) as u64;

    /// Whether another message can be put, or the queue is closed and a wait for room is over.
    #[inline]
    pub(super) fn has_room(&self) -> bool {
        let capacity = u64::from(self.capacity.load(Relaxed));
        capacity == 0
            || self
                .put
                .count
                .load(Acquire)
                .saturating_sub(self.get.count.load(Acquire))
                < capacity
            || self.closed.load(Acquire) != 0
    }
}

/// What a header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Record {
    None,
    Inline { tag: u8, names: bool, length: u64 },
    Extent { tag: u8, names: bool },
    Jump { segment: u64 },
}

impl Record {
    #[inline]
    pub(super) fn bits(self) -> u64 {
        let flag = |names| if names { NAMES } else { 0 };
        match self {
            Self::None => 0,
            Self::Inline { tag, names, length } => {
                1 | flag(names) | u64::from(tag) << 8 | length << 16
            }
            Self::Extent { tag, names } => 2 | flag(names) | u64::from(tag) << 8,
            Self::Jump { segment } => 3 | segment << 16,
        }
    }

    #[inline]
    pub(super) fn from_bits(bits: u64) -> Result<Self> {
        let [kind, tag, ..] = bits.to_le_bytes();
        let (rest, names) = (bits >> 16, u64::from(kind) & NAMES != 0);
        match kind {
            0 if bits == 0 => Ok(Self::None),
            0x01 | 0x11 if rest <= INLINE_MAX => Ok(Self::Inline {
                tag,
                names,
                length: rest,
            }),
            0x02 | 0x12 => Ok(Self::Extent { tag, names }),
            3 => Ok(Self::Jump { segment: rest }),
            _ => Err(Error::Broken {
                what: "a record of a queue",
            }),
        }
    }

    /// Bytes of the record, its header and padding included.
    #[inline]
    pub(super) fn bytes(self) -> u64 {
        match self {
            Self::None | Self::Jump { .. } => HEADER,
            Self::Inline { length, .. } => HEADER + length.next_multiple_of(8),
            Self::Extent { .. } => HEADER + 16,
        }
    }
}

/// Runs that a repair found without an owner but us: to be freed once the lock is released.
pub(super) type Loose = [Option<u64>; 2];

/// Finishes or undoes what a dead producer was doing. Under `put_lock`.
pub(super) fn repair_put(member: &Member, queue: u64, state: &QueueState) -> Result<Loose> {
    let put = &state.put;
    let (position, next) = (put.position.load(Relaxed), put.next_position.load(Relaxed));
    let published = position == next || member.at::<Cell>(position)?.load(Acquire) != 0;
    let run = put.run.load(Relaxed);
    let mut loose = [None; 2];
    if published {
        put.position.store(next, Relaxed);
        put.segment.store(put.next_segment.load(Relaxed), Relaxed);
        put.count.store(put.next_count.load(Relaxed), Release);
    } else {
        if run != 0 && blocks::unlink(member, run, queue)? {
            loose[0] = Some(run);
        }
        // A put notes it only when it enters a new segment, so the next repair would believe what this one undid.
        put.next_segment.store(put.segment.load(Relaxed), Relaxed);
    }
    put.run.store(0, Relaxed);
    Ok(loose)
}

/// Finishes or undoes what a dead consumer was doing. Under `get_lock`.
pub(super) fn repair_get(member: &Member, queue: u64, state: &QueueState) -> Result<Loose> {
    let get = &state.get;
    let taken = get.position.load(Relaxed) == get.next_position.load(Relaxed);
    let (run, claim) = (get.run.load(Relaxed), get.claim.load(Relaxed));
    let mut loose = [None; 2];
    if taken {
        let (left, segment) = (get.segment.load(Relaxed), get.next_segment.load(Relaxed));
        if left != segment {
            if left != 0 && blocks::take_over(member, left, queue)? {
                loose[0] = Some(left);
            }
            get.segment.store(segment, Relaxed);
        }
        if run != 0 && blocks::take_over(member, run, queue)? {
            loose[1] = Some(run);
        }
        get.count.store(get.next_count.load(Relaxed), Release);
        if state.debts.load(Relaxed) != 0 {
            tasks::charge(member, state)?;
        }
        let losing = state.losing.load(Relaxed);
        if losing != 0 {
            state.lost.store(losing, Relaxed);
        }
    } else {
        for run in [run, get.segment.load(Relaxed)] {
            if run != 0 {
                blocks::keep(member, run, queue)?;
            }
        }
        if claim != 0 {
            member.at::<Cell>(claim)?.store(0, Relaxed);
        }
    }
    get.claim.store(0, Relaxed);
    get.run.store(0, Relaxed);
    state.losing.store(0, Relaxed);
    Ok(loose)
}

/// Repairs the sides of the queue at `offset` whose holder died, and rings for one that died before it rang. False when
/// another process has begun a repair, and isn't through.
pub(super) fn settle(member: &Member, offset: u64) -> Result<bool> {
    let state: &QueueState = member.at(offset + OBJECT_HEADER)?;
    type Repair = fn(&Member, u64, &QueueState) -> Result<Loose>;
    let sides: [(&RobustLock, Repair); 2] =
        [(&state.put_lock, repair_put), (&state.get_lock, repair_get)];
    for (lock, repair) in sides {
        if let Some(mut held) = lock.lock_abandoned() {
            let loose = repair(member, offset, state)?;
            held.recovered = false;
            drop(held);
            free(member, loose)?;
        }
    }
    if let Some(mut held) = state.tasks.lock.lock_abandoned() {
        tasks::repair(member, state)?;
        held.recovered = false;
    }
    // Whoever sleeps for no reason looks, and sleeps again.
    state.more.ring();
    state.room.ring();
    watch::tell(member, offset, state, watch::ANY)?;
    state.tasks.wake_sleepers();
    let locks = [&state.put_lock, &state.get_lock, &state.tasks.lock];
    Ok(!locks.iter().any(|lock| lock.is_abandoned()))
}

/// Frees what a repair found, after the lock is released: internal locks don't nest.
pub(super) fn free(member: &Member, loose: Loose) -> Result<()> {
    loose
        .into_iter()
        .flatten()
        .try_for_each(|run| blocks::free_run(member, run))
}

#[cfg(test)]
mod tests {
    use super::{HEADER, INLINE_MAX, QueueState, Record, repair_put};
    use crate::shm::Arena;
    use crate::shm::layout::OBJECT_HEADER;
    use crate::sys::word::Relaxed;
    use crate::{Deadline, Queue};

    #[test]
    fn records_are_read_as_they_were_written() {
        let mut records = vec![Record::None];
        records.extend([false, true].map(|names| Record::Extent { tag: 9, names }));
        records.extend([8, 1 << 40].map(|segment| Record::Jump { segment }));
        let lengths = [0, 1, 8, INLINE_MAX];
        for names in [false, true] {
            let tag = 255;
            records.extend(lengths.map(|length| Record::Inline { tag, names, length }));
        }
        for record in records {
            assert_eq!(Record::from_bits(record.bits()), Ok(record));
            assert!(record.bytes() >= HEADER && record.bytes() % HEADER == 0);
        }
    }

    #[test]
    fn records_of_no_kind_or_too_long_are_broken() {
        for bits in [4, 255, 1 | (INLINE_MAX + 1) << 16, u64::MAX] {
            assert!(Record::from_bits(bits).is_err());
        }
    }

    #[test]
    fn an_undone_step_into_a_segment_is_forgotten() {
        let arena = Arena::create().unwrap();
        let queue = Queue::new(&arena, None).unwrap();
        queue.put(0, &[b"first"], Deadline::NEVER).unwrap();
        let (member, offset) = (&*arena.inner, queue.name().offset);
        let state: &QueueState = member.at(offset + OBJECT_HEADER).unwrap();
        let segment = state.put.segment.load(Relaxed);
        // A producer dies before it publishes the jump into a segment, and another one after a put.
        state.put.next_position.store(8 << 20, Relaxed);
        state.put.next_segment.store(8 << 20, Relaxed);
        assert_eq!(repair_put(member, offset, state).unwrap(), [None; 2]);
        queue.put(0, &[b"second"], Deadline::NEVER).unwrap();
        assert_eq!(repair_put(member, offset, state).unwrap(), [None; 2]);
        assert_eq!(state.put.segment.load(Relaxed), segment);
    }
}
