//! Queues that know which of their values aren't finished.

use super::{Queue, looked};
use crate::error::{Error, Result, TaskError, retry};
use crate::names;
use crate::tree;
use procession_core::{Deadline, Queue as Core};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::ops::Deref;
use std::time::Duration;

/// A [`Queue`] that counts what isn't finished: a value is, once somebody has got it and called
/// [`task_done`](Self::task_done), and [`join`](Self::join) waits until all are.
///
/// Everything that a queue can do it can do, too.
///
/// # Across processes
/// The values that a process had got and wasn't done with when it died count as done, and `join` tells of them. One that
/// left normally, by the return of its `main`, keeps them unfinished, until another process says that they are done.
/// `task_done` may be called by any process: a value that the caller has got is done then, if there is one; else one of the
/// process that has most. A value that its getter handed on to another process is still the getter's.
///
/// # After fork
/// The child holds the same queue, and has got nothing of it.
///
/// # Examples
/// ```
/// # fn main() -> procession::Result<()> {
/// let queue = procession::JoinableQueue::new()?;
/// queue.put(&"a task".to_owned())?;
/// assert_eq!(queue.get()?, "a task");
/// assert_eq!(queue.unfinished()?, 1);
/// queue.task_done()?;
/// queue.join()?;
/// assert!(queue.task_done().is_err(), "there is nothing to be done");
/// # Ok(())
/// # }
/// ```
///
/// Python: `JoinableQueue`.
pub struct JoinableQueue<T: ?Sized> {
    queue: Queue<T>,
}

impl<T: ?Sized> JoinableQueue<T> {
    /// Makes an empty queue for any number of values.
    ///
    /// As [`Queue::new`], and 16 KiB of shared memory more.
    ///
    /// # Errors
    /// `Os` or `Exhausted` when there is no memory.
    pub fn new() -> Result<Self> {
        Self::make(None)
    }

    /// Makes an empty queue for at most `capacity` values: `put` waits while it is full.
    ///
    /// # Errors
    /// As [`new`](Self::new); `Misuse` for a capacity of 0.
    pub fn bounded(capacity: u32) -> Result<Self> {
        Self::make(Some(capacity))
    }

    fn make(capacity: Option<u32>) -> Result<Self> {
        let arena = tree::arena()?;
        retry(|| Core::joinable(arena, capacity))
            .map(Self::from_core)
            .map_err(|error| Error::at("make a queue", error))
    }

    fn from_core(core: Core) -> Self {
        let queue = Queue::from_core(core);
        Self { queue }
    }

    /// Says that what was to be done with a value is done. Some tens of nanoseconds, and no system call unless it was the
    /// last and somebody waits for that.
    ///
    /// # Errors
    /// `Misuse` when it is called more often than values were put.
    pub fn task_done(&self) -> Result<()> {
        retry(|| self.queue.core.task_done())
            .map_err(|error| Error::at("be done with a task", error))
    }

    /// Waits until all values are done that have been put so far: at once, or later with others.
    ///
    /// # Errors
    /// [`TaskError::Lost`] when they are, but some only since the process died that had got them: they are told of once.
    pub fn join(&self) -> Result<(), TaskError> {
        self.join_until(Deadline::NEVER)
    }

    /// As [`join`](Self::join), for at most so long.
    ///
    /// # Errors
    /// As [`join`](Self::join), and [`TaskError::Unfinished`].
    pub fn join_timeout(&self, timeout: Duration) -> Result<(), TaskError> {
        self.join_until(Deadline::after(timeout))
    }

    fn join_until(&self, deadline: Deadline) -> Result<(), TaskError> {
        match retry(|| self.queue.core.join(deadline)) {
            Ok(Some(0)) => Ok(()),
            Ok(Some(lost)) => Err(TaskError::Lost(lost)),
            Ok(None) => Err(TaskError::Unfinished),
            Err(error) => Err(TaskError::Failed(Error::at("join a queue", error))),
        }
    }

    /// Values that were put and aren't done, at this moment.
    ///
    /// # Errors
    /// `Poisoned` when shared memory contradicts itself.
    pub fn unfinished(&self) -> Result<u64> {
        self.queue.core.unfinished().map_err(looked)
    }
}

impl<T: ?Sized> Deref for JoinableQueue<T> {
    type Target = Queue<T>;

    fn deref(&self) -> &Queue<T> {
        &self.queue
    }
}

impl<T: ?Sized> Clone for JoinableQueue<T> {
    fn clone(&self) -> Self {
        let queue = self.queue.clone();
        Self { queue }
    }
}

impl<T: ?Sized> fmt::Debug for JoinableQueue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinableQueue")
            .field("name", &self.queue.core.name())
            .field("unfinished", &self.unfinished().ok())
            .finish_non_exhaustive()
    }
}

impl<T: ?Sized> Serialize for JoinableQueue<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.queue.serialize(serializer)
    }
}

impl<'de, T: ?Sized> Deserialize<'de> for JoinableQueue<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        names::deserialize(deserializer, Core::open_joinable).map(Self::from_core)
    }
}
