//! A queue of byte records in the arena: many producers, many consumers, first in first out.
//!
//! Linked segments of records under two robust locks, one a side; a record is published by the one store of its
//! header, and taken by the one store of the consumers' position. [`put`] and [`get`] are the two sides, [`watch`] how
//! a descriptor tells of them, [`tasks`] who waits for whom to be done with what was got, [`names`] what a message says of the objects that it names, [`parcel`] how they go in other bytes than a queue's, [`layout`] what lies where and
//! what a death leaves to repair. `docs/shm.md` has the crash table.

mod claim;
mod get;
mod layout;
mod message;
mod names;
#[cfg(all(loom, test))]
mod orders;
mod pace;
mod parcel;
mod put;
mod tasks;
mod watch;

pub use claim::Claim;
pub use message::{Message, Taken};
pub use parcel::Parcel;
pub use put::Put;
pub use watch::Readiness;

use crate::shm::Arena;
use crate::shm::arena::Member;
use crate::shm::layout::{OBJECT_HEADER, kind};
use crate::shm::object::{Handle, ObjectName};
use crate::shm::recovery::{Gone, Recovery};
use crate::sync::patience::Patience;
use crate::sys::word::{Acquire, Relaxed, Release};
use crate::{Error, Result};
use layout::QueueState;
use pace::Pace;

/// A queue of messages, each some bytes and a tag of one byte that the queue carries and doesn't read.
///
/// A message whose [`put`](Self::put) returned is got exactly once, in the order of the puts, whatever happens to the
/// processes around it; one that was taken by a getter which is killed before its `get` returns is lost with it
/// and counted. A put that was interrupted by a kill is got once, whole, or never.
///
/// # Across processes
/// Any number of processes and threads may put and get. None has to be alive for the others to go on; a process that
/// is *stopped* inside a call keeps its place, and calls with a timeout of others keep theirs.
///
/// # After fork
/// The child holds the same queue.
///
/// Python: `Queue`. Source: `docs/shm.md`; the two locks are Michael and Scott's, "Simple, Fast, and Practical
/// Non-Blocking and Blocking Concurrent Queue Algorithms".
#[derive(Debug)]
pub struct Queue {
    handle: Handle<QueueState>,
    /// How long this process waits awake for a message here, by how that went so far.
    patience: Patience,
    /// How long this process waits awake for the consumers before it puts one more large message.
    pace: Pace,
}

impl Queue {
    /// Makes an empty queue, for at most `capacity` messages, or any number.
    ///
    /// 1 KiB of the arena, and no descriptor; the first message takes 64 KiB more.
    ///
    /// # Errors
    /// `Os` or `Exhausted` when there is no memory; `Misuse` for a capacity of none.
    pub fn new(arena: &Arena, capacity: Option<u32>) -> Result<Self> {
        if capacity == Some(0) {
            return Err(Error::Misuse {
                what: "a queue needs room for one message at least",
            });
        }
        let handle = Handle::new(arena, kind::QUEUE)?;
        let root = handle.name().offset + OBJECT_HEADER + QueueState::ROOT;
        let state: &QueueState = handle.state();
        for end in [&state.put, &state.get] {
            end.next_position.store(root, Relaxed);
            end.position.store(root, Relaxed);
        }
        state.capacity.store(capacity.unwrap_or(0), Release);
        Ok(Self {
            handle,
            patience: Patience::default(),
            pace: Pace::default(),
        })
    }

    /// Holds the queue of that name.
    ///
    /// # Errors
    /// `Closed` when it is gone, `Malformed` when the name is not a queue's.
    pub fn open(arena: &Arena, name: ObjectName) -> Result<Self> {
        let handle = Handle::open(arena, kind::QUEUE, name)?;
        Ok(Self {
            handle,
            patience: Patience::default(),
            pace: Pace::default(),
        })
    }

    /// Its name, for a process that is given a hold on it.
    #[must_use]
    pub fn name(&self) -> ObjectName {
        self.handle.name()
    }

    /// Its name, for bytes that go elsewhere than into a queue: from now on the queue lives until the tree ends, or
    /// [`recapture`](Self::recapture).
    ///
    /// # Errors
    /// `Poisoned` when the arena contradicts itself.
    pub fn escape(&self) -> Result<ObjectName> {
        self.handle.escape()?;
        Ok(self.handle.name())
    }

    /// Takes [`escape`](Self::escape) back, by whoever has received those bytes, or couldn't send them: from now on the
    /// queue goes with its last holder again.
    ///
    /// # Errors
    /// `Poisoned` when the arena contradicts itself.
    pub fn recapture(&self) -> Result<()> {
        self.handle.member().sound()?;
        self.handle.recapture()
    }

    /// Messages that were put and not got, at this moment.
    ///
    /// # Errors
    /// `Poisoned` when the arena contradicts itself.
    pub fn len(&self) -> Result<u64> {
        let state = self.seen()?;
        let got = state.get.count.load(Acquire);
        Ok(state.put.count.load(Acquire).saturating_sub(got))
    }

    /// Whether no message waits, at this moment.
    ///
    /// # Errors
    /// `Poisoned` when the arena contradicts itself.
    pub fn is_empty(&self) -> Result<bool> {
        Ok(self.len()? == 0)
    }

    /// The most messages that it holds; `None` for any number.
    ///
    /// # Errors
    /// `Poisoned` when the arena contradicts itself.
    pub fn capacity(&self) -> Result<Option<u32>> {
        let capacity = self.seen()?.capacity.load(Relaxed);
        Ok((capacity != 0).then_some(capacity))
    }

    /// Messages that were lost with a getter that had taken them.
    ///
    /// # Errors
    /// `Poisoned` when the arena contradicts itself.
    pub fn lost(&self) -> Result<u64> {
        Ok(self.seen()?.lost.load(Relaxed))
    }

    /// Closes it for every process: nothing can be put any more, and what is in it can still be got.
    ///
    /// # Errors
    /// `Poisoned` when the arena contradicts itself.
    pub fn close(&self) -> Result<()> {
        let state = self.entered()?;
        state.closed.store(1, Release);
        state.more.ring_for_all();
        state.room.ring_for_all();
        let member = self.handle.member();
        let offset = self.handle.name().offset;
        member.judged(watch::tell(member, offset, state, watch::ANY))
    }

    /// Whether it was closed.
    ///
    /// # Errors
    /// `Poisoned` when the arena contradicts itself.
    pub fn is_closed(&self) -> Result<bool> {
        Ok(self.seen()?.closed.load(Acquire) != 0)
    }

    /// Repairs now what a dead process left half done, rather than at the next put or get. False when another process
    /// is at it already, or stopped in the middle: then ask again later. Never waits.
    ///
    /// # Errors
    /// `Poisoned` when the arena contradicts itself.
    pub fn settle(&self) -> Result<bool> {
        let member = self.handle.member();
        member.sound()?;
        member.judged(layout::settle(member, self.handle.name().offset))
    }

    /// The state, for who puts something in or takes something out.
    ///
    /// # Errors
    /// `Misuse` in a forked child for which the tree had no place.
    #[inline]
    fn entered(&self) -> Result<&QueueState> {
        self.handle.member().place()?;
        Ok(self.state())
    }

    /// The state, for a look.
    #[inline]
    fn seen(&self) -> Result<&QueueState> {
        self.handle.member().sound()?;
        Ok(self.state())
    }

    #[inline]
    fn state(&self) -> &QueueState {
        self.handle.state()
    }
}

impl Clone for Queue {
    fn clone(&self) -> Self {
        Self {
            handle: self.handle.clone(),
            patience: Patience::default(),
            pace: Pace::default(),
        }
    }
}

/// Repairs a queue whose lock a process held that is gone.
pub(crate) const RECOVERY: Recovery = Recovery {
    kind: kind::QUEUE,
    repair: repair_after,
    wake,
    locks: true,
    names: Some(names::visit),
};

fn wake(member: &Member, offset: u64) -> Result<()> {
    let state: &QueueState = member.at(offset + OBJECT_HEADER)?;
    state.more.ring_for_all();
    state.room.ring_for_all();
    watch::wake(member, state)?;
    state.tasks.wake();
    Ok(())
}

fn repair_after(member: &Member, offset: u64, gone: Gone) -> Result<()> {
    // One that another process has begun doesn't hinder: what it may still take over isn't the dead one's.
    layout::settle(member, offset)?;
    watch::forget(member, offset, gone)?;
    tasks::give_back(member, offset, gone)
}
