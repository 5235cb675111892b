//! Waiting until another process says that something has changed.

use super::{Lock, LockError, LockGuard};
use crate::error::{Error, Result, retry};
use crate::names;
use crate::tree;
use procession_core::{Condition as Core, Deadline};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::time::{Duration, Instant};

/// A lock, and a place where its holders wait for each other's word.
///
/// A clone is the same condition. It can be sent wherever values go, as a [`Lock`] can.
///
/// # Across processes
/// A waiter that dies isn't counted, nor woken in place of a living one. The lock goes on as a [`Lock`] does.
///
/// # After fork
/// The child holds the same condition; it doesn't wait where its parent's threads do.
///
/// # Examples
/// ```
/// # fn main() -> procession::Result<()> {
/// let condition = procession::Condition::new()?;
/// let (ready, mut seen) = (std::sync::atomic::AtomicBool::new(false), false);
/// std::thread::scope(|scope| {
///     scope.spawn(|| {
///         let guard = condition.acquire().unwrap();
///         ready.store(true, std::sync::atomic::Ordering::Relaxed);
///         guard.notify_all().unwrap();
///     });
///     let mut guard = condition.acquire().unwrap();
///     guard.wait_for(|| ready.load(std::sync::atomic::Ordering::Relaxed)).unwrap();
///     seen = true;
/// });
/// assert!(seen);
/// # Ok(())
/// # }
/// ```
///
/// Python: `Condition`.
#[derive(Debug, Clone)]
pub struct Condition {
    lock: Lock,
    core: Core,
}

/// The condition's lock is held until this is dropped, but for the time of a wait.
#[must_use = "dropped at once, it releases the lock at once"]
#[derive(Debug)]
pub struct ConditionGuard<'a> {
    condition: &'a Condition,
    /// Gone only if the lock couldn't be taken again after a wait.
    held: Option<LockGuard<'a>>,
}

impl Condition {
    /// Makes a condition with a lock of its own. 1.25 KiB of shared memory, no descriptor.
    ///
    /// # Errors
    /// `Os` or `Exhausted` when there is no memory.
    pub fn new() -> Result<Self> {
        Self::with_lock(Lock::new()?)
    }

    /// Makes a condition that uses a lock which is there already; several may.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_lock(lock: Lock) -> Result<Self> {
        let arena = tree::arena()?;
        let core = retry(|| Core::new(arena));
        let core = core.map_err(|error| Error::at("make a condition", error))?;
        Ok(Self { lock, core })
    }

    /// Waits for the lock and takes it.
    ///
    /// # Errors
    /// As [`Lock::acquire`].
    pub fn acquire(&self) -> Result<ConditionGuard<'_>, LockError<ConditionGuard<'_>>> {
        let guard = |held| ConditionGuard {
            condition: self,
            held: Some(held),
        };
        match self.lock.acquire() {
            Ok(held) => Ok(guard(held)),
            Err(LockError::OwnerDied(held)) => Err(LockError::OwnerDied(guard(held))),
            Err(LockError::Failed(error)) => Err(LockError::Failed(error)),
        }
    }
}

impl ConditionGuard<'_> {
    /// Releases the lock, waits until it is notified, and takes the lock again.
    ///
    /// # Errors
    /// `OwnerDied` when a process has died with the lock meanwhile; the guard holds it, as after an `Ok`.
    pub fn wait(&mut self) -> Result<()> {
        self.wait_until(Deadline::NEVER).map(|_| ())
    }

    /// As [`wait`](Self::wait), for at most so long; false if it wasn't notified by then.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    pub fn wait_timeout(&mut self, timeout: Duration) -> Result<bool> {
        self.wait_until(Deadline::after(timeout))
    }

    /// Waits until a predicate, asked under the lock, is true.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    pub fn wait_for(&mut self, mut predicate: impl FnMut() -> bool) -> Result<()> {
        while !predicate() {
            self.wait()?;
        }
        Ok(())
    }

    /// As [`wait_for`](Self::wait_for), for at most so long; what the predicate said last.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    pub fn wait_for_timeout(
        &mut self,
        timeout: Duration,
        mut predicate: impl FnMut() -> bool,
    ) -> Result<bool> {
        let end = Instant::now().checked_add(timeout);
        loop {
            if predicate() {
                return Ok(true);
            }
            let left = end.map(|end| end.saturating_duration_since(Instant::now()));
            match left {
                Some(Duration::ZERO) => return Ok(false),
                Some(left) => drop(self.wait_timeout(left)?),
                None => self.wait()?,
            }
        }
    }

    /// Wakes at most so many of those who wait, in the order in which they came, and tells how many.
    ///
    /// # Errors
    /// `Poisoned` when shared memory contradicts itself.
    pub fn notify(&self, count: usize) -> Result<usize> {
        let woken = self.condition.core.notify(count);
        woken.map_err(|error| Error::at("notify a condition", error))
    }

    /// Wakes all who wait, and tells how many.
    ///
    /// # Errors
    /// As [`notify`](Self::notify).
    pub fn notify_all(&self) -> Result<usize> {
        self.notify(usize::MAX)
    }

    fn wait_until(&mut self, deadline: Deadline) -> Result<bool> {
        let at = |error| Error::at("wait for a condition", error);
        let Some(waiting) = retry(|| self.condition.core.enlist(deadline)).map_err(at)? else {
            return Ok(false);
        };
        self.held = None;
        let waited = retry(|| waiting.wait(deadline));
        let notified = waiting.leave();
        let (held, died) = match self.condition.lock.acquire() {
            Ok(held) => (held, None),
            Err(LockError::OwnerDied(held)) => {
                let text = "wait for a condition: the last holder of its lock died";
                (held, Some(Error::new(crate::ErrorKind::OwnerDied, text)))
            }
            Err(LockError::Failed(error)) => return Err(error),
        };
        self.held = Some(held);
        waited.map_err(at)?;
        died.map_or(Ok(notified), Err)
    }
}

impl Serialize for Condition {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        /// The condition alone, as its name.
        struct Name<'a>(&'a Core);
        impl Serialize for Name<'_> {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                names::serialize(serializer, self.0.name(), || self.0.escape())
            }
        }
        (&self.lock, Name(&self.core)).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Condition {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        /// The condition alone, opened by its name.
        struct Opened(Core);
        impl<'de> Deserialize<'de> for Opened {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                names::deserialize(deserializer, Core::open).map(Self)
            }
        }
        let (lock, Opened(core)) = Deserialize::deserialize(deserializer)?;
        Ok(Self { lock, core })
    }
}
