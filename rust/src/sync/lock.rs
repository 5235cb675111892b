//! Locks between processes.

use super::sendable;
use crate::error::{Error, ErrorKind, Result, retry};
use crate::tree;
use procession_core::{Acquired, Deadline, Lock as Core};
use std::fmt;
use std::time::Duration;

/// A lock that processes share. Not recursive.
///
/// A clone is the same lock. It can be sent wherever values go: as an argument of a process or a task, through a
/// queue. It is gone with its last holder: a process that has it, or a value that waits in a queue and names it. Encoded
/// by hand, for what isn't a queue of ours, it lives until the tree of processes ends.
///
/// # Across processes
/// When its holder dies, the next to acquire it gets it with [`LockError::OwnerDied`], as a poisoned
/// [`Mutex`](std::sync::Mutex) has it. A holder that exits normally leaves it held, since another process may
/// [`release`](Self::release) it.
///
/// # After fork
/// The child holds the same lock object; the parent stays its owner.
///
/// # Examples
/// ```
/// # fn main() -> procession::Result<()> {
/// let lock = procession::Lock::new()?;
/// let guard = lock.acquire()?;
/// assert!(lock.try_acquire()?.is_none());
/// drop(guard);
/// assert!(lock.try_acquire()?.is_some());
/// # Ok(())
/// # }
/// ```
///
/// Python: `Lock`.
#[derive(Debug, Clone)]
pub struct Lock(pub(super) Core);

/// The lock is held until this is dropped.
#[must_use = "dropped at once, it releases the lock at once"]
#[derive(Debug)]
pub struct LockGuard<'a>(&'a Lock);

/// Why a lock wasn't acquired in the normal way.
#[derive(Debug)]
pub enum LockError<G> {
    /// The caller holds it now; its last holder died, and may have left what it guards half changed.
    OwnerDied(G),
    /// The caller doesn't hold it.
    Failed(Error),
}

impl Lock {
    /// Makes a free lock. 256 bytes of shared memory, no descriptor.
    ///
    /// # Errors
    /// `Os` or `Exhausted` when there is no memory.
    pub fn new() -> Result<Self> {
        let arena = tree::arena()?;
        retry(|| Core::new(arena))
            .map(Self)
            .map_err(|error| Error::at("make a lock", error))
    }

    /// Waits for the lock and takes it.
    ///
    /// A free one takes about 5 ns and no system call. Otherwise it sleeps in the kernel until the lock is released or
    /// its holder dies.
    ///
    /// # Errors
    /// [`LockError::OwnerDied`] with the guard when the last holder died.
    pub fn acquire(&self) -> Result<LockGuard<'_>, LockError<LockGuard<'_>>> {
        let guard = self.take(Deadline::NEVER)?;
        guard.ok_or_else(|| {
            let text = "acquire a lock: it was never released";
            LockError::Failed(Error::new(ErrorKind::WouldWait, text))
        })
    }

    /// Takes the lock if it is free; `None` if it is held.
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire).
    pub fn try_acquire(&self) -> Result<Option<LockGuard<'_>>, LockError<LockGuard<'_>>> {
        self.take(Deadline::now())
    }

    /// As [`acquire`](Self::acquire), for at most so long; `None` if it is still held then.
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire).
    pub fn acquire_timeout(
        &self,
        timeout: Duration,
    ) -> Result<Option<LockGuard<'_>>, LockError<LockGuard<'_>>> {
        self.take(Deadline::after(timeout))
    }

    #[inline]
    fn take(&self, deadline: Deadline) -> Result<Option<LockGuard<'_>>, LockError<LockGuard<'_>>> {
        match retry(|| self.0.acquire(deadline)) {
            Ok(Acquired::Clean) => Ok(Some(LockGuard(self))),
            Ok(Acquired::OwnerDied) => Err(LockError::OwnerDied(LockGuard(self))),
            Ok(Acquired::TimedOut) => Ok(None),
            Err(error) => Err(LockError::Failed(Error::at("acquire a lock", error))),
        }
    }

    /// Releases the lock, whichever process or thread holds it: for a guard that was [kept](LockGuard::keep).
    ///
    /// # Errors
    /// `Misuse` when nobody holds it.
    pub fn release(&self) -> Result<()> {
        self.0
            .release()
            .map_err(|error| Error::at("release a lock", error))
    }

    /// Whether anybody holds it, at this moment.
    ///
    /// # Errors
    /// `Poisoned` when shared memory contradicts itself.
    pub fn is_held(&self) -> Result<bool> {
        self.0
            .is_held()
            .map_err(|error| Error::at("look at a lock", error))
    }
}

impl LockGuard<'_> {
    /// Leaves the lock held: another process or thread will [`release`](Lock::release) it.
    pub fn keep(self) {
        std::mem::forget(self);
    }
}

impl Drop for LockGuard<'_> {
    #[inline]
    fn drop(&mut self) {
        // It fails if another has released the lock already, which is for the two to settle.
        let _ = self.0.0.release();
    }
}

impl<G> LockError<G> {
    /// The guard, if the lock is held now: for who can tell that what it guards is whole, or mends it.
    ///
    /// # Errors
    /// The error, if the lock isn't held.
    pub fn into_guard(self) -> Result<G> {
        match self {
            Self::OwnerDied(guard) => Ok(guard),
            Self::Failed(error) => Err(error),
        }
    }
}

impl<G> fmt::Display for LockError<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OwnerDied(_) => f.write_str("acquire a lock: its last holder died"),
            Self::Failed(error) => error.fmt(f),
        }
    }
}

impl<G: fmt::Debug> std::error::Error for LockError<G> {}

impl<G> From<LockError<G>> for Error {
    /// Releases the lock again, if it is held.
    fn from(error: LockError<G>) -> Self {
        match error {
            LockError::OwnerDied(_) => Self::new(ErrorKind::OwnerDied, error.to_string()),
            LockError::Failed(error) => error,
        }
    }
}

sendable!(Lock, Core);
