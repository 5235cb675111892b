//! Waiting until another process says that something has changed.
//!
//! Each waiter has an entry of its own (`sync::waiters`), so a notification is for one certain waiter, who has waited
//! longest of the living. The condition has no lock: its caller holds one, of any kind, around what it does with it.

use super::event::LOOK;
use super::patience::Patience;
use super::waiters::{Entry, Outcome, Waiter, Waiters, low};
use crate::shm::Arena;
use crate::shm::arena::Member;
use crate::shm::layout::{OBJECT_HEADER, kind};
use crate::shm::object::{Handle, ObjectName};
use crate::shm::recovery::{Gone, Recovery};
use crate::shm::view::shared;
use crate::sys::word::{Cell, Relaxed, Word};
use crate::{Deadline, Error, Result};
use std::cmp::Reverse;

/// Waiters for whom there is room in the object itself.
const INSIDE: usize = 48;

shared! {
    /// A condition's state.
    ConditionState: 832 {
        /// Waiters that ever were.
        tickets: Cell,
        /// Offset of the run with more entries; 0: none.
        more: Cell,
        /// Entries ever used are below this number.
        used: Word,
        _pad: Word,
        _unused: [Cell; 5],
        waiters: [Waiter; INSIDE],
    }
}

/// A place where processes wait for each other's word.
///
/// The caller holds a lock, always the same one, around [`enlist`](Self::enlist) and [`notify`](Self::notify); between
/// enlisting and waiting it frees the lock, so that no notification can be missed.
///
/// # Across processes
/// A waiter that dies isn't counted, nor woken in place of a living one. A notifier that dies in the middle has woken
/// some.
///
/// # After fork
/// The child holds the same condition; it doesn't wait where its parent's threads do.
///
/// Python: what `Condition` is made of, beside its lock.
#[derive(Debug)]
pub struct Condition {
    handle: Handle<ConditionState>,
    patience: Patience,
}

/// One who waits, until this is dropped.
#[derive(Debug)]
pub struct Waiting<'a> {
    condition: &'a Condition,
    waiter: &'a Waiter,
    entry: Entry,
}

impl Clone for Condition {
    fn clone(&self) -> Self {
        Self {
            handle: self.handle.clone(),
            patience: Patience::default(),
        }
    }
}

impl Condition {
    /// Makes a condition on which nobody waits. 1 KiB of the arena, no descriptor.
    ///
    /// # Errors
    /// `Os` or `Exhausted` when there is no memory.
    pub fn new(arena: &Arena) -> Result<Self> {
        Ok(Self {
            handle: Handle::new(arena, kind::CONDITION)?,
            patience: Patience::default(),
        })
    }

    /// Holds the condition of that name.
    ///
    /// # Errors
    /// `Closed` when it is gone, `Malformed` when the name is not a condition's.
    pub fn open(arena: &Arena, name: ObjectName) -> Result<Self> {
        Ok(Self {
            handle: Handle::open(arena, kind::CONDITION, name)?,
            patience: Patience::default(),
        })
    }

    /// Its name, for a process that is given a hold on it.
    #[must_use]
    pub fn name(&self) -> ObjectName {
        self.handle.name()
    }

    /// Its name, for bytes that go elsewhere than into a queue: from now on the condition lives until the tree ends.
    ///
    /// # Errors
    /// `Poisoned` when the arena contradicts itself.
    pub fn escape(&self) -> Result<ObjectName> {
        self.handle.escape()?;
        Ok(self.handle.name())
    }

    /// Counts this thread among those who wait. Under the caller's lock. Takes no time, but for the 49th of those who
    /// wait at once: `None` once the deadline has passed while a stopped process keeps it from memory for more.
    ///
    /// # Errors
    /// `Exhausted` when 4144 wait already, `Os` when there is no memory for more; `Interrupted` when that can't be had
    /// soon: call again; `Misuse` in a forked child without a place in the tree.
    pub fn enlist(&self, deadline: Deadline) -> Result<Option<Waiting<'_>>> {
        let state = self.handle.state();
        let me = self.handle.member().owner_id()?;
        let ticket = low(state.tickets.add(1));
        let waiters = waiters(self.handle.member(), self.name().offset, state);
        let (waiter, entry) = match waiters.enlist(me, ticket) {
            Err(Error::Interrupted) if deadline.passed() => return Ok(None),
            enlisted => enlisted?,
        };
        Ok(Some(Waiting {
            condition: self,
            waiter,
            entry,
        }))
    }

    /// Wakes at most `count` of those who wait, in the order in which they came, and tells how many. Under the caller's
    /// lock. Never sleeps.
    ///
    /// # Errors
    /// `Misuse` in a forked child without a place in the tree; `Poisoned` when the arena contradicts itself.
    pub fn notify(&self, count: usize) -> Result<usize> {
        let member = self.handle.member();
        member.place()?;
        let state = self.handle.state();
        let waiters = waiters(member, self.name().offset, state);
        let mut waiting = waiters.iter()?;
        waiting.retain(|(_, entry)| entry.waits());
        // Tickets go round: how long ago each was given out tells the order.
        let now = low(state.tickets.load(Relaxed));
        waiting.sort_by_key(|(_, entry)| Reverse(now.wrapping_sub(entry.ticket())));
        let mut woken = 0;
        for (waiter, entry) in waiting {
            if woken == count {
                break;
            }
            if waiters.lives(entry)? && waiter.tell(entry, Outcome::Woken) {
                woken += 1;
            }
        }
        Ok(woken)
    }

    /// Those who wait, at this moment.
    ///
    /// # Errors
    /// `Poisoned` when the arena contradicts itself.
    pub fn waiting(&self) -> Result<usize> {
        self.handle.member().sound()?;
        let waiters = waiters(
            self.handle.member(),
            self.name().offset,
            self.handle.state(),
        );
        let mut waiting = 0;
        for (_, entry) in waiters.iter()? {
            waiting += usize::from(entry.waits() && waiters.lives(entry)?);
        }
        Ok(waiting)
    }
}

impl Waiting<'_> {
    /// Waits until it is notified; false once the deadline has passed.
    ///
    /// # Errors
    /// `Interrupted` when a signal handler ran while it slept: call again with the same deadline.
    pub fn wait(&self, deadline: Deadline) -> Result<bool> {
        let over = || self.waiter.look().told().is_some();
        let (member, patience) = (self.condition.handle.member(), &self.condition.patience);
        self.waiter
            .wait(member, patience, deadline, LOOK, over, || Ok(()))
    }

    /// Waits no longer; whether it was notified by then.
    #[must_use]
    pub fn leave(self) -> bool {
        let told = self.end();
        std::mem::forget(self);
        told
    }

    fn end(&self) -> bool {
        let told = self.waiter.withdraw().is_some();
        if told {
            self.waiter.free(self.entry);
        }
        told
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.end();
    }
}

fn waiters<'a>(member: &'a Member, object: u64, state: &'a ConditionState) -> Waiters<'a> {
    Waiters {
        member,
        object,
        inside: &state.waiters,
        more: &state.more,
        used: &state.used,
    }
}

/// Forgets those who waited in a process that is gone.
pub(crate) const RECOVERY: Recovery = Recovery {
    kind: kind::CONDITION,
    repair: forget,
    wake,
    locks: false,
    names: None,
};

fn wake(member: &Member, offset: u64) -> Result<()> {
    let state: &ConditionState = member.at(offset + OBJECT_HEADER)?;
    waiters(member, offset, state).wake()
}

fn forget(member: &Member, offset: u64, gone: Gone) -> Result<()> {
    let state: &ConditionState = member.at(offset + OBJECT_HEADER)?;
    waiters(member, offset, state).forget(gone)
}
