//! The lock that its holder may take again: held by one thread of one process, and released as often as it was taken.
//!
//! The word is a [`Lock`](super::Lock)'s, with one state less: a holder that left normally can't be helped by another's
//! release, so for the next one it is as if it had died. Beside the word stand the holder's thread, and how often it
//! holds the lock. Only the holder writes them, while it holds the word, so a reader that is the holder reads its own
//! stores. `thread` is 0 whenever the word says that nobody has it, so that no thread finds its own number there from
//! an earlier time while another thread of its process has just taken the word.

use super::lock::{Acquired, DIED, WAITERS, acquire_slow, mark};
use crate::shm::Arena;
use crate::shm::arena::Member;
use crate::shm::layout::{OBJECT_HEADER, kind};
use crate::shm::object::{Handle, ObjectName};
use crate::shm::recovery::{Gone, Recovery};
use crate::shm::view::shared;
use crate::sys::robust;
use crate::sys::word::{AcqRel, Cell, Relaxed, Word};
use crate::{Deadline, Error, Result};

shared! {
    /// A recursive lock's state, on a line of its own.
    RLockState: 64 {
        /// As a lock's word, without LEFT.
        word: Word,
        /// The id of the thread that holds it; 0: none, or it has only just taken the word.
        thread: Word,
        /// How often that thread holds it.
        count: Word,
        _pad: Word,
        _unused: [Cell; 6],
    }
}

/// A lock that its holder, a thread, may take again.
///
/// # Across processes
/// A holder that ends, in whatever way, frees it for the next [`acquire`](Self::acquire), which is told: nobody but the
/// holder could release it. A *thread* that ends while it holds the lock leaves it held as long as its process lives.
///
/// # After fork
/// The child holds the same lock object; the parent's thread stays its owner.
///
/// Python: `RLock`.
#[derive(Debug, Clone)]
pub struct RLock {
    handle: Handle<RLockState>,
}

impl RLock {
    /// Makes a free lock. 256 bytes of the arena, no descriptor.
    ///
    /// # Errors
    /// `Os` or `Exhausted` when there is no memory.
    pub fn new(arena: &Arena) -> Result<Self> {
        Ok(Self {
            handle: Handle::new(arena, kind::RLOCK)?,
        })
    }

    /// Holds the lock of that name.
    ///
    /// # Errors
    /// `Closed` when it is gone, `Malformed` when the name is not a recursive lock's.
    pub fn open(arena: &Arena, name: ObjectName) -> Result<Self> {
        Ok(Self {
            handle: Handle::open(arena, kind::RLOCK, name)?,
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

    /// Takes the lock for this thread, once more if it has it.
    ///
    /// Uncontended: one compare-exchange, about 6 ns; again by its holder: two loads and a store. Otherwise it waits as
    /// [`Lock::acquire`](super::Lock::acquire) does.
    ///
    /// # Errors
    /// As [`Lock::acquire`](super::Lock::acquire); `Exhausted` after 2^32 - 1 times.
    #[inline]
    pub fn acquire(&self, deadline: Deadline) -> Result<Acquired> {
        if self.try_acquire()? {
            return Ok(Acquired::Clean);
        }
        let (member, state) = (self.handle.member(), self.handle.state());
        let acquired = acquire_slow(member, &state.word, member.owner_id()?, deadline);
        let acquired = member.judged(acquired)?;
        if acquired != Acquired::TimedOut {
            state.hold(robust::this_thread().tid(), 1);
        }
        Ok(acquired)
    }

    /// Takes the lock if it is free or this thread's: without a look at anything else. False says that only
    /// [`acquire`](Self::acquire) can tell whether it can be had.
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire).
    #[inline]
    pub fn try_acquire(&self) -> Result<bool> {
        let (me, tid) = (
            self.handle.member().owner_id()?,
            robust::this_thread().tid(),
        );
        let state = self.handle.state();
        if state.word.replace(0, me) {
            state.hold(tid, 1);
            return Ok(true);
        }
        if !state.is_held_by(me, tid) {
            return Ok(false);
        }
        let count = state.count.load(Relaxed).checked_add(1);
        let count = count.ok_or(Error::Exhausted {
            what: "times that one thread can hold a lock",
            limit: u64::from(u32::MAX),
        })?;
        state.count.store(count, Relaxed);
        Ok(true)
    }

    /// Gives the lock back once; the last time frees it, and wakes one waiter.
    ///
    /// # Errors
    /// `Misuse` when this thread doesn't hold it.
    #[inline]
    pub fn release(&self) -> Result<()> {
        let state = self.held()?;
        match state.count.load(Relaxed) {
            0 | 1 => state.free(),
            count => state.count.store(count - 1, Relaxed),
        }
        Ok(())
    }

    /// Does something while this thread has the lock, if that needs no wait; `None` if it does. For a few instructions
    /// that don't ask who has the lock: about 12 ns, and as good as nothing if this thread has it already.
    ///
    /// # Errors
    /// `Misuse` in a forked child without a place in the tree.
    #[inline]
    pub fn briefly<R>(&self, work: impl FnOnce() -> R) -> Result<Option<R>> {
        let me = self.handle.member().owner_id()?;
        let state = self.handle.state();
        if state.word.replace(0, me) {
            // Nobody is told which thread has it: as far as others see, it has only just taken the word.
            let done = work();
            state.free();
            return Ok(Some(done));
        }
        let is_mine = state.is_held_by(me, robust::this_thread().tid());
        Ok(is_mine.then(work))
    }

    /// Frees the lock however often this thread holds it, and tells how often that was: for a wait that ends with
    /// [`acquire_times`](Self::acquire_times).
    ///
    /// # Errors
    /// `Misuse` when this thread doesn't hold it.
    pub fn release_all(&self) -> Result<u32> {
        let state = self.held()?;
        let count = state.count.load(Relaxed);
        state.free();
        Ok(count)
    }

    /// Takes a lock that this thread doesn't hold so many times at once.
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire).
    pub fn acquire_times(&self, times: u32, deadline: Deadline) -> Result<Acquired> {
        let acquired = self.acquire(deadline)?;
        if acquired != Acquired::TimedOut {
            self.handle.state().count.store(times.max(1), Relaxed);
        }
        Ok(acquired)
    }

    /// How often this thread holds it; 0: not at all.
    ///
    /// # Errors
    /// `Misuse` in a forked child without a place in the tree.
    pub fn count(&self) -> Result<u32> {
        let (me, tid) = (
            self.handle.member().owner_id()?,
            robust::this_thread().tid(),
        );
        let state = self.handle.state();
        Ok(if state.is_held_by(me, tid) {
            state.count.load(Relaxed)
        } else {
            0
        })
    }

    /// Whether any thread of this process holds it, at this moment.
    ///
    /// # Errors
    /// `Misuse` in a forked child without a place in the tree.
    pub fn is_in_this_process(&self) -> Result<bool> {
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

    /// The state, if this thread holds the lock.
    #[inline]
    fn held(&self) -> Result<&RLockState> {
        let (me, tid) = (
            self.handle.member().owner_id()?,
            robust::this_thread().tid(),
        );
        let state = self.handle.state();
        if state.is_held_by(me, tid) {
            Ok(state)
        } else {
            Err(Error::Misuse {
                what: "the recursive lock is not held by this thread",
            })
        }
    }
}

impl RLockState {
    #[inline]
    fn is_held_by(&self, process: u32, thread: u32) -> bool {
        self.word.load(Relaxed) & !WAITERS == process && self.thread.load(Relaxed) == thread
    }

    /// Notes who has just taken the word.
    #[inline]
    fn hold(&self, thread: u32, count: u32) {
        self.count.store(count, Relaxed);
        self.thread.store(thread, Relaxed);
    }

    #[inline]
    fn free(&self) {
        self.thread.store(0, Relaxed);
        if self.word.swap(0, AcqRel) & WAITERS != 0 {
            self.word.wake(1);
        }
    }
}

/// Hands on a lock whose holder is gone.
pub(crate) const RECOVERY: Recovery = Recovery {
    kind: kind::RLOCK,
    repair: hand_on,
    wake,
    locks: false,
    names: None,
};

fn wake(member: &Member, offset: u64) -> Result<()> {
    let state: &RLockState = member.at(offset + OBJECT_HEADER)?;
    state.word.wake(u32::MAX);
    Ok(())
}

fn hand_on(member: &Member, offset: u64, gone: Gone) -> Result<()> {
    let state: &RLockState = member.at(offset + OBJECT_HEADER)?;
    let owner = super::lock::id(gone.slot, gone.generation);
    if state.word.load(Relaxed) & !WAITERS == owner {
        // Before the word: a thread of another process may have the same number by now.
        state.thread.store(0, Relaxed);
        mark(&state.word, gone, DIED);
    }
    Ok(())
}
