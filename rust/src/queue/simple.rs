//! Queues with nothing to choose.

use super::Queue;
use crate::error::{GetError, PutError, Result};
use procession_core::Readiness;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fmt;

/// A queue without a bound and without timeouts: a [`Queue`] for those who want no more than `put` and `get`.
///
/// `put` never waits for room, and `get` waits until there is a value, or the queue is closed. What holds for a queue's
/// values and processes holds for these.
///
/// # Across processes, after fork
/// As [`Queue`].
///
/// # Examples
/// ```
/// # fn main() -> procession::Result<()> {
/// let queue = procession::SimpleQueue::new()?;
/// queue.put(&("one".to_owned(), 1))?;
/// assert!(!queue.is_empty()?);
/// queue.close()?;
/// assert_eq!(queue.get()?, ("one".to_owned(), 1));
/// assert!(matches!(queue.get(), Err(procession::GetError::Closed)));
/// # Ok(())
/// # }
/// ```
///
/// Python: `SimpleQueue`.
#[derive(Serialize, Deserialize)]
#[serde(transparent, bound = "")]
pub struct SimpleQueue<T: ?Sized> {
    queue: Queue<T>,
}

impl<T: ?Sized> SimpleQueue<T> {
    /// Makes an empty queue.
    ///
    /// 1 KiB of shared memory, no descriptor; the first value takes 64 KiB more.
    ///
    /// # Errors
    /// `Os` or `Exhausted` when there is no memory.
    pub fn new() -> Result<Self> {
        let queue = Queue::new()?;
        Ok(Self { queue })
    }

    /// Closes it for every process: nothing can be put any more, and what is in it can still be got.
    ///
    /// # Errors
    /// `Poisoned` when shared memory contradicts itself.
    pub fn close(&self) -> Result<()> {
        self.queue.close()
    }

    /// Whether no value waits, at this moment.
    ///
    /// # Errors
    /// `Poisoned` when shared memory contradicts itself.
    pub fn is_empty(&self) -> Result<bool> {
        self.queue.is_empty()
    }

    /// What can be waited for beside other things while this queue has no value.
    ///
    /// # Errors
    /// As [`Queue::readable`].
    pub fn readable(&self) -> Result<Readiness> {
        self.queue.readable()
    }
}

impl<T> SimpleQueue<T> {
    /// Puts a value. The queue has it when the call returns.
    ///
    /// # Errors
    /// As [`Queue::put`].
    #[inline]
    pub fn put(&self, value: &T) -> Result<(), PutError>
    where
        T: Serialize,
    {
        self.queue.put(value)
    }

    /// Takes the next value; waits until there is one.
    ///
    /// # Errors
    /// As [`Queue::get`].
    #[inline]
    pub fn get(&self) -> Result<T, GetError>
    where
        T: DeserializeOwned,
    {
        self.queue.get()
    }
}

/// A queue of bytes as they are.
impl SimpleQueue<[u8]> {
    /// Puts bytes. One copy, and no system call unless a consumer sleeps.
    ///
    /// # Errors
    /// As [`Queue::put_bytes`].
    #[inline]
    pub fn put_bytes(&self, bytes: &[u8]) -> Result<(), PutError> {
        self.queue.put_bytes(bytes)
    }

    /// Takes the next bytes; waits until there are some.
    ///
    /// # Errors
    /// As [`Queue::get_bytes`].
    pub fn get_bytes(&self) -> Result<Vec<u8>, GetError> {
        self.queue.get_bytes()
    }

    /// As [`get_bytes`](Self::get_bytes), into a vector that is emptied first.
    ///
    /// # Errors
    /// As [`get_bytes`](Self::get_bytes).
    #[inline]
    pub fn get_bytes_into(&self, bytes: &mut Vec<u8>) -> Result<(), GetError> {
        self.queue.get_bytes_into(bytes)
    }
}

impl<T: ?Sized> Clone for SimpleQueue<T> {
    fn clone(&self) -> Self {
        let queue = self.queue.clone();
        Self { queue }
    }
}

impl<T: ?Sized> fmt::Debug for SimpleQueue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SimpleQueue").field(&self.queue).finish()
    }
}
