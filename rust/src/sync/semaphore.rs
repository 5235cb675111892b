//! Permits that processes take and give back.

use super::sendable;
use crate::error::{Error, ErrorKind, Result, retry};
use crate::tree;
use procession_core::{Deadline, PERMITS_MAX, Permit, Semaphore as Core};
use serde::{Deserialize, Serialize};
use std::ops::Deref;
use std::time::Duration;

/// Permits that processes and threads take, and give back. Any may give one.
///
/// A clone is the same semaphore. It can be sent wherever values go, as a [`Lock`](super::Lock) can.
///
/// # Across processes
/// A permit that a process has by a guard comes back when it dies. One whose guard was [kept](SemaphoreGuard::keep) may be
/// a signal for another process to answer: it comes back as long as every release so far came from a process that had a
/// permit. A process that exits normally keeps what it has.
///
/// # After fork
/// The child holds the same semaphore, and none of its parent's permits.
///
/// # Examples
/// ```
/// # fn main() -> procession::Result<()> {
/// let rooms = procession::Semaphore::new(2)?;
/// let first = rooms.acquire()?;
/// let second = rooms.acquire()?;
/// assert!(rooms.try_acquire()?.is_none());
/// drop(first);
/// assert_eq!(rooms.value()?, 1);
/// # drop(second);
/// # Ok(())
/// # }
/// ```
///
/// Python: `Semaphore`.
#[derive(Debug, Clone)]
pub struct Semaphore(Core);

/// A [`Semaphore`] that never has more permits than at first: giving one too many is an error.
///
/// # Examples
/// ```
/// # fn main() -> procession::Result<()> {
/// let rooms = procession::BoundedSemaphore::new(1)?;
/// drop(rooms.acquire()?);
/// assert!(rooms.release().is_err());
/// # Ok(())
/// # }
/// ```
///
/// Python: `BoundedSemaphore`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BoundedSemaphore(Semaphore);

/// A permit is held until this is dropped.
#[must_use = "dropped at once, it gives the permit back at once"]
#[derive(Debug)]
pub struct SemaphoreGuard<'a>(&'a Semaphore);

impl Semaphore {
    /// Makes a semaphore with so many permits. 1 KiB of shared memory, no descriptor.
    ///
    /// # Errors
    /// `Misuse` for more than 2^31 - 1 permits; `Os` or `Exhausted` when there is no memory.
    pub fn new(permits: u32) -> Result<Self> {
        Self::with_limit(permits, PERMITS_MAX)
    }

    fn with_limit(permits: u32, limit: u32) -> Result<Self> {
        let arena = tree::arena()?;
        let semaphore = retry(|| Core::new(arena, permits, limit));
        semaphore
            .map(Self)
            .map_err(|error| Error::at("make a semaphore", error))
    }

    /// Waits for a permit and takes it.
    ///
    /// # Errors
    /// `Poisoned` when shared memory contradicts itself.
    pub fn acquire(&self) -> Result<SemaphoreGuard<'_>> {
        let guard = self.take(Deadline::NEVER)?;
        guard.ok_or_else(|| {
            let text = "acquire a semaphore: it was never released";
            Error::new(ErrorKind::WouldWait, text)
        })
    }

    /// Takes a permit if one is free.
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire).
    pub fn try_acquire(&self) -> Result<Option<SemaphoreGuard<'_>>> {
        self.take(Deadline::now())
    }

    /// As [`acquire`](Self::acquire), for at most so long; `None` if none is free then.
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire).
    pub fn acquire_timeout(&self, timeout: Duration) -> Result<Option<SemaphoreGuard<'_>>> {
        self.take(Deadline::after(timeout))
    }

    fn take(&self, deadline: Deadline) -> Result<Option<SemaphoreGuard<'_>>> {
        let taken = retry(|| self.0.acquire(Permit::Held, deadline))
            .map_err(|error| Error::at("acquire a semaphore", error))?;
        Ok(taken.then(|| SemaphoreGuard(self)))
    }

    /// Gives a permit: one whose guard was [kept](SemaphoreGuard::keep), here or in another process, or a new one. Wakes
    /// one who waits.
    ///
    /// # Errors
    /// `Misuse` when there are as many as there can be.
    pub fn release(&self) -> Result<()> {
        retry(|| self.0.release(Permit::Acquired))
            .map_err(|error| Error::at("release a semaphore", error))
    }

    /// Permits that are free, at this moment.
    ///
    /// # Errors
    /// `Poisoned` when shared memory contradicts itself.
    pub fn value(&self) -> Result<u32> {
        let value = self.0.value();
        value.map_err(|error| Error::at("look at a semaphore", error))
    }
}

impl BoundedSemaphore {
    /// Makes a semaphore with so many permits, and never more.
    ///
    /// # Errors
    /// As [`Semaphore::new`].
    pub fn new(permits: u32) -> Result<Self> {
        Semaphore::with_limit(permits, permits).map(Self)
    }
}

impl Deref for BoundedSemaphore {
    type Target = Semaphore;

    fn deref(&self) -> &Semaphore {
        &self.0
    }
}

impl SemaphoreGuard<'_> {
    /// Keeps the permit: another process or thread will [`release`](Semaphore::release) one.
    pub fn keep(self) {
        // If it fails, the permit comes back with this process; nobody could be told.
        let _ = retry(|| self.0.0.keep());
        std::mem::forget(self);
    }
}

impl Drop for SemaphoreGuard<'_> {
    fn drop(&mut self) {
        // It fails if another gave one too many meanwhile, which is for the two to settle.
        let _ = retry(|| self.0.0.release(Permit::Held));
    }
}

sendable!(Semaphore, Core);
