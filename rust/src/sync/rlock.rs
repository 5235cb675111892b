//! Locks that their holders may take again.

use super::{LockError, sendable};
use crate::error::{Error, ErrorKind, Result, retry};
use crate::tree;
use procession_core::{Acquired, Deadline, RLock as Core};
use std::marker::PhantomData;
use std::time::Duration;

/// A lock that processes share, and that the thread which holds it may take again.
///
/// A clone is the same lock. It can be sent wherever values go, as a [`Lock`](super::Lock) can.
///
/// # Across processes
/// However its holder's process ends, the next to acquire it gets it with [`LockError::OwnerDied`]: nobody but the holder
/// could release it.
///
/// # After fork
/// The child holds the same lock object; the parent's thread stays its owner.
///
/// # Examples
/// ```
/// # fn main() -> procession::Result<()> {
/// let lock = procession::RLock::new()?;
/// let outer = lock.acquire()?;
/// let inner = lock.acquire()?;
/// drop(outer);
/// assert!(lock.is_held()?);
/// drop(inner);
/// assert!(!lock.is_held()?);
/// # Ok(())
/// # }
/// ```
///
/// Python: `RLock`.
#[derive(Debug, Clone)]
pub struct RLock(Core);

/// This thread holds the lock once more until this is dropped.
#[must_use = "dropped at once, it releases the lock at once"]
#[derive(Debug)]
pub struct RLockGuard<'a> {
    lock: &'a RLock,
    /// A thread can't hand it to another, which couldn't release it.
    _thread: PhantomData<*const ()>,
}

impl RLock {
    /// Makes a free lock. 256 bytes of shared memory, no descriptor.
    ///
    /// # Errors
    /// `Os` or `Exhausted` when there is no memory.
    pub fn new() -> Result<Self> {
        let arena = tree::arena()?;
        let lock = retry(|| Core::new(arena));
        lock.map(Self)
            .map_err(|error| Error::at("make a recursive lock", error))
    }

    /// Waits for the lock and takes it, or takes it once more.
    ///
    /// # Errors
    /// [`LockError::OwnerDied`] with the guard when the last holder died.
    pub fn acquire(&self) -> Result<RLockGuard<'_>, LockError<RLockGuard<'_>>> {
        let guard = self.take(Deadline::NEVER)?;
        guard.ok_or_else(|| {
            let text = "acquire a recursive lock: it was never released";
            LockError::Failed(Error::new(ErrorKind::WouldWait, text))
        })
    }

    /// Takes the lock if it is free or this thread's; `None` if another holds it.
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire).
    pub fn try_acquire(&self) -> Result<Option<RLockGuard<'_>>, LockError<RLockGuard<'_>>> {
        self.take(Deadline::now())
    }

    /// As [`acquire`](Self::acquire), for at most so long; `None` if another still holds it then.
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire).
    pub fn acquire_timeout(
        &self,
        timeout: Duration,
    ) -> Result<Option<RLockGuard<'_>>, LockError<RLockGuard<'_>>> {
        self.take(Deadline::after(timeout))
    }

    /// Whether anybody holds it, at this moment.
    ///
    /// # Errors
    /// `Poisoned` when shared memory contradicts itself.
    pub fn is_held(&self) -> Result<bool> {
        let held = self.0.is_held();
        held.map_err(|error| Error::at("look at a recursive lock", error))
    }

    fn take(
        &self,
        deadline: Deadline,
    ) -> Result<Option<RLockGuard<'_>>, LockError<RLockGuard<'_>>> {
        let guard = || RLockGuard {
            lock: self,
            _thread: PhantomData,
        };
        match retry(|| self.0.acquire(deadline)) {
            Ok(Acquired::Clean) => Ok(Some(guard())),
            Ok(Acquired::OwnerDied) => Err(LockError::OwnerDied(guard())),
            Ok(Acquired::TimedOut) => Ok(None),
            Err(error) => Err(LockError::Failed(Error::at(
                "acquire a recursive lock",
                error,
            ))),
        }
    }
}

impl Drop for RLockGuard<'_> {
    fn drop(&mut self) {
        // It can't fail: this thread holds the lock.
        let _ = self.lock.0.release();
    }
}

sendable!(RLock, Core);
