//! Flags that processes wait for.

use super::sendable;
use crate::error::{Error, Result, retry};
use crate::tree;
use procession_core::{Deadline, Event as Core};
use std::time::Duration;

/// A flag that processes set, clear and wait for.
///
/// A clone is the same event. It can be sent wherever values go, as a [`Lock`](super::Lock) can.
///
/// # Across processes
/// It belongs to nobody: a process that dies, wherever, leaves it as it is.
///
/// # After fork
/// The child holds the same event.
///
/// # Examples
/// ```
/// # fn main() -> procession::Result<()> {
/// let ready = procession::Event::new()?;
/// assert!(!ready.wait_timeout(std::time::Duration::from_millis(1))?);
/// ready.set()?;
/// ready.wait()?;
/// # Ok(())
/// # }
/// ```
///
/// Python: `Event`.
#[derive(Debug, Clone)]
pub struct Event(Core);

impl Event {
    /// Makes an event that isn't set. 256 bytes of shared memory, no descriptor.
    ///
    /// # Errors
    /// `Os` or `Exhausted` when there is no memory.
    pub fn new() -> Result<Self> {
        let arena = tree::arena()?;
        let event = retry(|| Core::new(arena));
        event
            .map(Self)
            .map_err(|error| Error::at("make an event", error))
    }

    /// Whether it is set, at this moment.
    ///
    /// # Errors
    /// `Poisoned` when shared memory contradicts itself.
    pub fn is_set(&self) -> Result<bool> {
        let set = self.0.is_set();
        set.map_err(|error| Error::at("look at an event", error))
    }

    /// Sets it, and wakes all who wait.
    ///
    /// # Errors
    /// As [`is_set`](Self::is_set).
    pub fn set(&self) -> Result<()> {
        let set = self.0.set();
        set.map_err(|error| Error::at("set an event", error))
    }

    /// Clears it. Whoever was waiting when it was set goes on all the same.
    ///
    /// # Errors
    /// As [`is_set`](Self::is_set).
    pub fn clear(&self) -> Result<()> {
        let cleared = self.0.clear();
        cleared.map_err(|error| Error::at("clear an event", error))
    }

    /// Waits until it is set.
    ///
    /// # Errors
    /// As [`is_set`](Self::is_set).
    pub fn wait(&self) -> Result<()> {
        self.wait_until(Deadline::NEVER).map(|_| ())
    }

    /// As [`wait`](Self::wait), for at most so long; false if it isn't set then.
    ///
    /// # Errors
    /// As [`is_set`](Self::is_set).
    pub fn wait_timeout(&self, timeout: Duration) -> Result<bool> {
        self.wait_until(Deadline::after(timeout))
    }

    fn wait_until(&self, deadline: Deadline) -> Result<bool> {
        let count = self.0.count();
        count
            .and_then(|count| retry(|| self.0.wait(count, deadline)))
            .map_err(|error| Error::at("wait for an event", error))
    }
}

sendable!(Event, Core);
