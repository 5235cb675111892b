//! Places where a number of processes wait for each other.

use super::sendable;
use crate::error::{Error, Result, retry};
use crate::tree;
use procession_core::{Barrier as Core, Deadline, Error as CoreError, Passed};
use std::fmt;
use std::time::Duration;

/// A place where a number of processes and threads wait until all of them are there, again and again.
///
/// A clone is the same barrier. It can be sent wherever values go, as a [`Lock`](super::Lock) can.
///
/// # Across processes
/// It breaks when one who waits ends, or one who was in the last completed round dies: whoever waits, or comes, gets
/// [`BarrierError::Broken`], until it is [reset](Self::reset). One that exits normally after a round may be replaced by
/// another.
///
/// # After fork
/// The child holds the same barrier.
///
/// # Examples
/// ```
/// # fn main() -> procession::Result<()> {
/// let barrier = procession::Barrier::new(2)?;
/// std::thread::scope(|scope| {
///     scope.spawn(|| barrier.wait().unwrap());
///     barrier.wait().unwrap();
/// });
/// # Ok(())
/// # }
/// ```
///
/// Python: `Barrier`.
#[derive(Debug, Clone)]
pub struct Barrier(Core);

/// Why a wait at a barrier didn't end well.
#[derive(Debug, Clone)]
pub enum BarrierError {
    /// The barrier is broken, or was reset: not all will come.
    Broken,
    /// Not all came within the timeout, which has broken the barrier.
    TimedOut,
    /// Anything else.
    Failed(Error),
}

impl Barrier {
    /// Makes a barrier for so many parties. 1 KiB of shared memory, no descriptor.
    ///
    /// # Errors
    /// `Misuse` for none, or more than 2048; `Os` or `Exhausted` when there is no memory.
    pub fn new(parties: u32) -> Result<Self> {
        let arena = tree::arena()?;
        let barrier = retry(|| Core::new(arena, parties));
        barrier
            .map(Self)
            .map_err(|error| Error::at("make a barrier", error))
    }

    /// Waits until all are there. How many had come before this one: the last has the highest number.
    ///
    /// # Errors
    /// [`BarrierError::Broken`] when they won't come.
    pub fn wait(&self) -> Result<u32, BarrierError> {
        self.pass(Deadline::NEVER, || ())
    }

    /// As [`wait`](Self::wait), for at most so long.
    ///
    /// # Errors
    /// As [`wait`](Self::wait); [`BarrierError::TimedOut`] breaks the barrier for all.
    pub fn wait_timeout(&self, timeout: Duration) -> Result<u32, BarrierError> {
        self.pass(Deadline::after(timeout), || ())
    }

    /// As [`wait`](Self::wait); the last one to come does something before all go on. If that panics, the barrier breaks.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    pub fn wait_acting(&self, action: impl FnOnce()) -> Result<u32, BarrierError> {
        self.pass(Deadline::NEVER, action)
    }

    /// As [`wait_timeout`](Self::wait_timeout) and [`wait_acting`](Self::wait_acting).
    ///
    /// # Errors
    /// As [`wait_timeout`](Self::wait_timeout).
    pub fn wait_acting_timeout(
        &self,
        timeout: Duration,
        action: impl FnOnce(),
    ) -> Result<u32, BarrierError> {
        self.pass(Deadline::after(timeout), action)
    }

    fn pass(&self, deadline: Deadline, action: impl FnOnce()) -> Result<u32, BarrierError> {
        let at = |error| match error {
            CoreError::Closed { .. } => BarrierError::Broken,
            error => BarrierError::Failed(Error::at("wait at a barrier", error)),
        };
        let Some(party) = retry(|| self.0.come(deadline)).map_err(at)? else {
            self.abort().map_err(BarrierError::Failed)?;
            return Err(BarrierError::TimedOut);
        };
        let index = party.index();
        let (passed, in_time) = if party.acts() {
            action();
            let ended = party.end().map_err(at)?;
            (
                if ended {
                    Passed::Through
                } else {
                    Passed::Broken
                },
                true,
            )
        } else {
            match retry(|| party.wait(deadline)).map_err(at)? {
                Some(passed) => (passed, true),
                None => (party.give_up().map_err(at)?, false),
            }
        };
        match passed {
            Passed::Through => Ok(index),
            Passed::Broken if in_time => Err(BarrierError::Broken),
            Passed::Broken => Err(BarrierError::TimedOut),
        }
    }

    /// Breaks it: all who wait, and all who come, are told.
    ///
    /// # Errors
    /// `Poisoned` when shared memory contradicts itself.
    pub fn abort(&self) -> Result<()> {
        let aborted = self.0.abort();
        aborted.map_err(|error| Error::at("abort a barrier", error))
    }

    /// Makes it whole and empty: those who wait are told that it is broken.
    ///
    /// # Errors
    /// As [`abort`](Self::abort).
    pub fn reset(&self) -> Result<()> {
        let reset = self.0.reset();
        reset.map_err(|error| Error::at("reset a barrier", error))
    }

    /// How many wait for each other.
    ///
    /// # Errors
    /// As [`abort`](Self::abort).
    pub fn parties(&self) -> Result<u32> {
        self.look(Core::parties)
    }

    /// How many wait now.
    ///
    /// # Errors
    /// As [`abort`](Self::abort).
    pub fn waiting(&self) -> Result<u32> {
        self.look(Core::waiting)
    }

    /// Whether it is broken.
    ///
    /// # Errors
    /// As [`abort`](Self::abort).
    pub fn is_broken(&self) -> Result<bool> {
        self.look(Core::is_broken)
    }

    fn look<T>(&self, look: impl Fn(&Core) -> procession_core::Result<T>) -> Result<T> {
        look(&self.0).map_err(|error| Error::at("look at a barrier", error))
    }
}

impl fmt::Display for BarrierError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broken => f.write_str("wait at a barrier: it is broken"),
            Self::TimedOut => f.write_str("wait at a barrier: not all came in time"),
            Self::Failed(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for BarrierError {}

impl From<BarrierError> for Error {
    fn from(error: BarrierError) -> Self {
        match error {
            BarrierError::Broken => Self::new(crate::ErrorKind::BarrierBroken, error.to_string()),
            BarrierError::TimedOut => Self::new(crate::ErrorKind::WouldWait, error.to_string()),
            BarrierError::Failed(error) => error,
        }
    }
}

sendable!(Barrier, Core);
