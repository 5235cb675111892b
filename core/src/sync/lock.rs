//! The lock that users see: held by a process, released by any, and never held by the dead.
//!
//! ```text
//! word               meaning                                   who may leave this state, to where
//! 0                  free                                      any: CAS to its owner id
//! id                 held by the process of that id            any process: swap to 0; recovery: to DIED or LEFT
//! DIED               its holder died                           any: CAS to its owner id, and is told so
//! LEFT               its holder left normally, holding it      any process: swap to 0
//! each | WAITERS     and somebody may sleep                    as above; whoever frees it wakes one
//! ```
//! An owner id is the number of the process' slot, and 20 bits of the slot's generation. A waiter looks at the owner
//! every 50 ms, and recovers it if it is gone. Source: Drepper, "Futexes Are Tricky"; `sys::robust` for the bits.

use crate::shm::Arena;
use crate::shm::arena::Member;
use crate::shm::layout::{OBJECT_HEADER, SLOTS, kind};
use crate::shm::object::{Handle, ObjectName};
use crate::shm::recovery::{self, Gone, Recovery};
use crate::shm::robust::LOOK_AGAIN;
use crate::shm::view::shared;
use crate::sys::clock;
use crate::sys::word::{AcqRel, Cell, Relaxed, Wake, Word};
use crate::{Deadline, Error, Result};

pub(super) const WAITERS: u32 = 1 << 31;
const GENERATION_BITS: u32 = 20;
/// Owner ids have a slot other than 0 in the bits below this many.
const SLOT_BITS: u32 = SLOTS.ilog2();
pub(super) const DIED: u32 = 1 << SLOT_BITS;
const LEFT: u32 = 2 << SLOT_BITS;

/// Pauses before the first yield: a short critical section of a holder that runs on another processor.
const PAUSES: u32 = 64;
/// Times that the processor is offered to others before the sleep.
const YIELDS: u32 = 10;

shared! {
    /// A lock's state, on a line of its own.
    LockState: 64 {
        word: Word,
        _pad: Word,
        _unused: [Cell; 7],
    }
}

/// What a wait for a [`Lock`] ended with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acquired {
    /// The caller holds the lock.
    Clean,
    /// The caller holds the lock, whose last holder died: what it guards may be half changed.
    OwnerDied,
    /// The deadline passed first.
    TimedOut,
}

/// A lock that processes share. Not recursive; any process or thread may release it.
///
/// # Across processes
/// A holder that dies frees it for the next [`acquire`](Self::acquire), which is told. One that leaves normally
/// leaves it held, since another may release it.
///
/// # After fork
/// The child holds the same lock object; the parent stays its owner.
///
/// Python: `Lock`.
#[derive(Debug, Clone)]
pub struct Lock {
    handle: Handle<LockState>,
}

impl Lock {
    /// Makes a free lock. 256 bytes of the arena, no descriptor.
    ///
    /// # Errors
    /// `Os` or `Exhausted` when there is no memory; `Interrupted` when a signal handler ran while it waited.
    pub fn new(arena: &Arena) -> Result<Self> {
        Ok(Self {
            handle: Handle::new(arena, kind::LOCK)?,
        })
    }

    /// Holds the lock of that name.
    ///
    /// # Errors
    /// `Closed` when it is gone, `Malformed` when the name is not a lock's; `Interrupted` when a signal handler ran while
    /// it waited.
    pub fn open(arena: &Arena, name: ObjectName) -> Result<Self> {
        Ok(Self {
            handle: Handle::open(arena, kind::LOCK, name)?,
        })
    }

    /// Its name, for a process that is given a hold on it.
    #[must_use]
    pub fn name(&self) -> ObjectName {
        self.handle.name()
    }

    /// Its name, for bytes that go elsewhere than into a queue: from now on the lock lives until the tree ends.
    ///
    /// # Errors
    /// `Poisoned` when the arena contradicts itself.
    pub fn escape(&self) -> Result<ObjectName> {
        self.handle.escape()?;
        Ok(self.handle.name())
    }

    /// Takes the lock for this process.
    ///
    /// Uncontended: one compare-exchange, about 5 ns. Otherwise a few pauses and yields, then sleep in the kernel
    /// until it is released, its holder dies, or the deadline passes.
    ///
    /// # Errors
    /// `Interrupted` when a signal handler ran while it slept; call again with the same deadline. `Misuse` in a forked
    /// child for which the tree had no place.
    #[inline]
    pub fn acquire(&self, deadline: Deadline) -> Result<Acquired> {
        let member = self.handle.member();
        let word = &self.handle.state().word;
        let me = member.owner_id()?;
        if word.replace(0, me) {
            return Ok(Acquired::Clean);
        }
        member.judged(acquire_slow(member, word, me, deadline))
    }

    /// Takes the lock if it is free: one compare-exchange, and no look at anything else. False says that only
    /// [`acquire`](Self::acquire) can tell whether it can be had.
    ///
    /// # Errors
    /// `Poisoned` when the arena contradicts itself.
    #[inline]
    pub fn try_acquire(&self) -> Result<bool> {
        let me = self.handle.member().owner_id()?;
        Ok(self.handle.state().word.replace(0, me))
    }

    /// Does something while this process has the lock, if that needs no wait; `None` if it does. For a few instructions.
    ///
    /// # Errors
    /// `Misuse` in a forked child without a place in the tree.
    #[inline]
    pub fn briefly<R>(&self, work: impl FnOnce() -> R) -> Result<Option<R>> {
        if !self.try_acquire()? {
            return Ok(None);
        }
        let done = work();
        // Another may have released it meanwhile, which is for the two to settle.
        let _ = self.release();
        Ok(Some(done))
    }

    /// Releases the lock, whoever holds it, and wakes one waiter. An exchange, and a system call if one sleeps.
    ///
    /// # Errors
    /// `Misuse` when nobody holds it, or in a forked child without a place in the tree.
    #[inline]
    pub fn release(&self) -> Result<()> {
        self.handle.member().place()?;
        let word = &self.handle.state().word;
        let before = word.swap(0, AcqRel);
        if before & WAITERS != 0 {
            word.wake(1);
        }
        if before & !WAITERS == 0 {
            return Err(Error::Misuse {
                what: "the lock is not held",
            });
        }
        Ok(())
    }

    /// Whether this process holds it, at this moment.
    ///
    /// # Errors
    /// `Misuse` in a forked child without a place in the tree.
    pub fn is_mine(&self) -> Result<bool> {
        let me = self.handle.member().owner_id()?;
        Ok(self.handle.state().word.load(Relaxed) & !WAITERS == me)
    }

    /// Whether anybody holds it, at this moment.
    ///
    /// # Errors
    /// `Poisoned` when the arena contradicts itself.
    pub fn is_held(&self) -> Result<bool> {
        self.handle.member().sound()?;
        let value = self.handle.state().word.load(Relaxed) & !WAITERS;
        Ok(value != 0 && value != DIED)
    }
}

/// Takes the lock of a word that wasn't free at the first look.
#[cold]
pub(super) fn acquire_slow(
    member: &Member,
    word: &Word,
    me: u32,
    deadline: Deadline,
) -> Result<Acquired> {
    let mut waits = 0;
    let limit = if clock::several_processors() {
        PAUSES + YIELDS
    } else {
        0
    };
    let mut waiters = 0;
    loop {
        let value = word.load(Relaxed);
        let owner = value & !WAITERS;
        if owner == 0 || owner == DIED {
            // Who has slept here can't know whether others still do.
            if word.replace(value, me | value & WAITERS | waiters) {
                return Ok(if owner == DIED {
                    Acquired::OwnerDied
                } else {
                    Acquired::Clean
                });
            }
            continue;
        }
        member.sound()?;
        if deadline.passed() {
            return Ok(Acquired::TimedOut);
        }
        if waits < limit {
            waits += 1;
            if waits <= PAUSES {
                std::hint::spin_loop()
            } else {
                clock::yield_now()
            }
            continue;
        }
        if value & WAITERS == 0 && !word.replace(value, value | WAITERS) {
            continue;
        }
        match word.sleep_while(value | WAITERS, deadline.at_most(LOOK_AGAIN)) {
            Wake::Interrupted => return Err(Error::Interrupted),
            Wake::TimedOut => look_at_owner(member, word, owner)?,
            Wake::Look => {}
        }
        waiters = WAITERS;
    }
}

/// Recovers the owner if it is gone, which marks the word.
fn look_at_owner(member: &Member, word: &Word, owner: u32) -> Result<()> {
    let slot = owner & (SLOTS - 1);
    if slot == 0 {
        return Ok(());
    }
    let current = id(slot, member.slot_at(slot)?.generation.load(Relaxed));
    if owner == current && !recovery::is_gone(member, slot)? {
        return Ok(());
    }
    if owner == current {
        // While a process is stopped that holds a lock of the arena's own, the wait just goes on.
        return recovery::recover(member, slot, Deadline::after(LOOK_AGAIN)).map(drop);
    }
    // Its slot has another process by now: it can't be, since recovery marks locks first; unless bits were flipped.
    let value = word.load(Relaxed);
    if value & !WAITERS == owner {
        word.replace(value, DIED | value & WAITERS);
    }
    Ok(())
}

/// What the process of a slot writes into the words that say whose something is.
pub(super) fn id(slot: u32, generation: u32) -> u32 {
    slot | (generation & ((1 << GENERATION_BITS) - 1)) << SLOT_BITS
}

impl Member {
    /// What this process writes into the locks that it holds.
    #[inline]
    pub(super) fn owner_id(&self) -> Result<u32> {
        let slot = self.place()?;
        Ok(id(slot, self.generation()))
    }
}

/// Marks a lock that a process held which is gone, and wakes a waiter.
pub(crate) const RECOVERY: Recovery = Recovery {
    kind: kind::LOCK,
    repair: bereave,
    wake,
    locks: false,
    names: None,
};

fn wake(member: &Member, offset: u64) -> Result<()> {
    member
        .at::<LockState>(offset + OBJECT_HEADER)?
        .word
        .wake(u32::MAX);
    Ok(())
}

fn bereave(member: &Member, offset: u64, gone: Gone) -> Result<()> {
    let word = &member.at::<LockState>(offset + OBJECT_HEADER)?.word;
    mark(word, gone, if gone.left { LEFT } else { DIED });
    Ok(())
}

/// Marks a word that holds a process' id which is gone, and wakes a waiter.
pub(super) fn mark(word: &Word, gone: Gone, mark: u32) {
    let owner = id(gone.slot, gone.generation);
    loop {
        let value = word.load(Relaxed);
        if value & !WAITERS != owner {
            return;
        }
        if word.replace(value, mark | value & WAITERS) {
            if value & WAITERS != 0 {
                word.wake(1);
            }
            return;
        }
    }
}
