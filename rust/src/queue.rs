//! Queues of values between processes.

mod joinable;
mod simple;

pub use joinable::JoinableQueue;
pub use simple::SimpleQueue;

use crate::codec;
use crate::error::{Error, GetError, PutError, Result, retry};
use crate::names;
use crate::tree;
use procession_core::{
    Carried, Deadline, Error as CoreError, Put, Queue as Core, Readiness, Taken,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

/// A queue of values: many producers, many consumers, first in first out.
///
/// A clone is the same queue. It can be sent wherever values go: as an argument of a process or a task, through a
/// queue. It is gone with its last holder: a process that has it, or a value that waits in a queue and names it. Encoded
/// by hand, for what isn't a queue of ours, it lives until the tree of processes ends.
///
/// A value whose `put` returned is got exactly once, whatever becomes of the process that put it. Bytes of long values
/// are best a type that serde knows as bytes: it takes a `Vec<u8>` for a list of numbers.
///
/// # Across processes
/// Any process of the tree may put and get, and none has to be alive for the others to go on. What a getter had taken
/// when it was killed is lost with it, and [counted](Self::lost).
///
/// # After fork
/// The child holds the same queue.
///
/// # Examples
/// ```
/// # fn main() -> procession::Result<()> {
/// let queue = procession::Queue::bounded(2)?;
/// queue.put(&"one".to_owned())?;
/// queue.put(&"two".to_owned())?;
/// assert!(matches!(queue.try_put(&"three".to_owned()), Err(procession::PutError::Full)));
/// queue.close()?;
/// assert_eq!((queue.get()?, queue.get()?), ("one".to_owned(), "two".to_owned()));
/// assert!(matches!(queue.get(), Err(procession::GetError::Closed)));
/// # Ok(())
/// # }
/// ```
///
/// Python: `Queue`.
pub struct Queue<T: ?Sized> {
    core: Core,
    values: PhantomData<fn(*const T) -> *const T>,
}

impl<T: ?Sized> Queue<T> {
    /// Makes an empty queue for any number of values.
    ///
    /// 1 KiB of shared memory, no descriptor; the first value takes 64 KiB more.
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
        retry(|| Core::new(arena, capacity))
            .map(Self::from_core)
            .map_err(|error| Error::at("make a queue", error))
    }

    fn from_core(core: Core) -> Self {
        Self {
            core,
            values: PhantomData,
        }
    }

    /// Closes it for every process: nothing can be put any more, and what is in it can still be got.
    ///
    /// # Errors
    /// `Poisoned` when shared memory contradicts itself.
    pub fn close(&self) -> Result<()> {
        self.core.close().map_err(looked)
    }

    /// Values that were put and not got, at this moment.
    ///
    /// # Errors
    /// `Poisoned` when shared memory contradicts itself.
    pub fn len(&self) -> Result<u64> {
        self.core.len().map_err(looked)
    }

    /// Whether no value waits, at this moment.
    ///
    /// # Errors
    /// `Poisoned` when shared memory contradicts itself.
    pub fn is_empty(&self) -> Result<bool> {
        self.core.is_empty().map_err(looked)
    }

    /// The most values that it holds; `None` for any number.
    ///
    /// # Errors
    /// `Poisoned` when shared memory contradicts itself.
    pub fn capacity(&self) -> Result<Option<u32>> {
        self.core.capacity().map_err(looked)
    }

    /// Values that were lost with a getter that had taken them when it was killed.
    ///
    /// # Errors
    /// `Poisoned` when shared memory contradicts itself.
    pub fn lost(&self) -> Result<u64> {
        self.core.lost().map_err(looked)
    }

    /// What can be waited for beside other things while this queue has no value: a descriptor of this process that can be
    /// read from as long as a value can be got, and once the queue is closed.
    ///
    /// For [`wait`](crate::wait()), and for any event loop that knows descriptors; nobody reads from it. Another process or
    /// thread may be quicker to get the value: so it is got with [`try_get`](Self::try_get). Made at the first call,
    /// with a thread for all queues of this process.
    ///
    /// # Errors
    /// `Os` when the system refuses the descriptor or the thread.
    ///
    /// # Examples
    /// ```
    /// # fn main() -> procession::Result<()> {
    /// let queues = [procession::Queue::new()?, procession::Queue::new()?];
    /// let ready = [queues[0].readable()?, queues[1].readable()?];
    /// queues[1].put(&"a value".to_owned())?;
    /// assert_eq!(procession::wait(&ready)?, [1]);
    /// assert_eq!(queues[1].get()?, "a value");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// Python: `Queue._reader.fileno()`.
    pub fn readable(&self) -> Result<Readiness> {
        self.core.readable().map_err(not_watched)
    }

    /// A descriptor of this process that can be written to as long as there is room for a value, and once the queue is
    /// closed: for an event loop that knows descriptors. [`wait`](crate::wait()) waits for what can be read from.
    ///
    /// # Errors
    /// As [`readable`](Self::readable).
    ///
    /// Python: `Queue._writer.fileno()`.
    pub fn writable(&self) -> Result<Readiness> {
        self.core.writable().map_err(not_watched)
    }

    /// Puts bytes as they are: at once if possible.
    #[inline]
    fn put_raw(
        &self,
        bytes: &[u8],
        names: &Carried,
        deadline: impl FnOnce() -> Deadline,
    ) -> Result<(), PutError> {
        if !names.is_empty() {
            return self.put_slowly(bytes, names, deadline());
        }
        match self.core.try_put(0, &[bytes]) {
            Ok(true) => Ok(()),
            Ok(false) => self.put_slowly(bytes, names, deadline()),
            Err(error) => Err(not_put(error)),
        }
    }

    #[cold]
    fn put_slowly(
        &self,
        bytes: &[u8],
        names: &Carried,
        deadline: Deadline,
    ) -> Result<(), PutError> {
        match retry(|| self.core.put_naming(0, &[bytes], names, deadline)) {
            Ok(Put::Stored) => Ok(()),
            Ok(Put::Full) => Err(PutError::Full),
            Err(error) => Err(not_put(error)),
        }
    }

    /// Appends the bytes of the next message: at once if possible. Gives the objects that it names, to be dropped once it
    /// is decoded.
    #[inline]
    fn get_raw(
        &self,
        bytes: &mut Vec<u8>,
        deadline: impl FnOnce() -> Deadline,
    ) -> Result<Carried, GetError> {
        let taken = match self.core.try_get_into(bytes) {
            Ok(Some(taken)) => taken,
            Ok(None) => self.get_slowly(bytes, deadline())?,
            Err(error) => return Err(not_got(error)),
        };
        if let Some(extent) = taken.extent {
            extent.append_to(bytes).map_err(not_got)?;
        }
        Ok(taken.carried)
    }

    #[cold]
    fn get_slowly(&self, bytes: &mut Vec<u8>, deadline: Deadline) -> Result<Taken, GetError> {
        let taken = retry(|| self.core.get_into(bytes, deadline)).map_err(not_got)?;
        taken.ok_or(GetError::Empty)
    }
}

impl<T> Queue<T> {
    /// Puts a value; waits while a bounded queue is full.
    ///
    /// The value is encoded outside every lock. One of some bytes takes well below a microsecond and no system call,
    /// unless a consumer sleeps. The queue has it when the call returns.
    ///
    /// # Errors
    /// [`PutError::Closed`]; `Failed` when the value can't be encoded or there is no memory. The queue doesn't have it
    /// then.
    #[inline]
    pub fn put(&self, value: &T) -> Result<(), PutError>
    where
        T: Serialize,
    {
        self.put_until(value, || Deadline::NEVER)
    }

    /// Puts a value if there is room.
    ///
    /// # Errors
    /// As [`put`](Self::put), and [`PutError::Full`].
    pub fn try_put(&self, value: &T) -> Result<(), PutError>
    where
        T: Serialize,
    {
        self.put_until(value, Deadline::now)
    }

    /// As [`put`](Self::put), waiting for room for at most so long.
    ///
    /// # Errors
    /// As [`put`](Self::put), and [`PutError::Full`].
    pub fn put_timeout(&self, value: &T, timeout: Duration) -> Result<(), PutError>
    where
        T: Serialize,
    {
        self.put_until(value, || Deadline::after(timeout))
    }

    #[inline]
    fn put_until(&self, value: &T, deadline: impl FnOnce() -> Deadline) -> Result<(), PutError>
    where
        T: Serialize,
    {
        codec::with_buffer(|bytes| {
            let names = names::naming(|| codec::encode(value, bytes)).map_err(PutError::Failed)?;
            self.put_raw(bytes, &names, deadline)
        })
    }

    /// Takes the next value; waits until there is one.
    ///
    /// Waits awake for some microseconds, then sleeps in the kernel. The value is decoded outside every lock.
    ///
    /// # Errors
    /// [`GetError::Closed`] once the queue is closed and empty; `Failed` when what was put isn't a `T`.
    #[inline]
    pub fn get(&self) -> Result<T, GetError>
    where
        T: DeserializeOwned,
    {
        self.get_until(|| Deadline::NEVER)
    }

    /// Takes the next value if there is one.
    ///
    /// # Errors
    /// As [`get`](Self::get), and [`GetError::Empty`].
    pub fn try_get(&self) -> Result<T, GetError>
    where
        T: DeserializeOwned,
    {
        self.get_until(Deadline::now)
    }

    /// As [`get`](Self::get), waiting for at most so long.
    ///
    /// # Errors
    /// As [`get`](Self::get), and [`GetError::Empty`].
    pub fn get_timeout(&self, timeout: Duration) -> Result<T, GetError>
    where
        T: DeserializeOwned,
    {
        self.get_until(|| Deadline::after(timeout))
    }

    #[inline]
    fn get_until(&self, deadline: impl FnOnce() -> Deadline) -> Result<T, GetError>
    where
        T: DeserializeOwned,
    {
        codec::with_buffer(|bytes| {
            // Held until they are decoded, which opens them.
            let _carried = self.get_raw(bytes, deadline)?;
            codec::decode_all(bytes).map_err(GetError::Failed)
        })
    }
}

/// A queue of bytes as they are: nothing is encoded, and a getter brings the room.
///
/// ```
/// # fn main() -> procession::Result<()> {
/// let queue = procession::Queue::<[u8]>::new()?;
/// queue.put_bytes(b"some bytes")?;
/// let mut bytes = Vec::new();
/// queue.get_bytes_into(&mut bytes)?;
/// assert_eq!(bytes, b"some bytes");
/// # Ok(())
/// # }
/// ```
impl Queue<[u8]> {
    /// Puts bytes; waits while a bounded queue is full. One copy, and no system call unless a consumer sleeps.
    ///
    /// # Errors
    /// [`PutError::Closed`]; `Failed` when there is no memory. The queue doesn't have them then.
    #[inline]
    pub fn put_bytes(&self, bytes: &[u8]) -> Result<(), PutError> {
        self.put_raw(bytes, &NONE, || Deadline::NEVER)
    }

    /// Puts bytes if there is room.
    ///
    /// # Errors
    /// As [`put_bytes`](Self::put_bytes), and [`PutError::Full`].
    pub fn try_put_bytes(&self, bytes: &[u8]) -> Result<(), PutError> {
        self.put_raw(bytes, &NONE, Deadline::now)
    }

    /// As [`put_bytes`](Self::put_bytes), waiting for room for at most so long.
    ///
    /// # Errors
    /// As [`put_bytes`](Self::put_bytes), and [`PutError::Full`].
    pub fn put_bytes_timeout(&self, bytes: &[u8], timeout: Duration) -> Result<(), PutError> {
        self.put_raw(bytes, &NONE, || Deadline::after(timeout))
    }

    /// Takes the next bytes; waits until there are some.
    ///
    /// # Errors
    /// [`GetError::Closed`] once the queue is closed and empty.
    pub fn get_bytes(&self) -> Result<Vec<u8>, GetError> {
        let mut bytes = Vec::new();
        self.get_bytes_into(&mut bytes)?;
        Ok(bytes)
    }

    /// As [`get_bytes`](Self::get_bytes), into a vector that is emptied first: none is allocated when it has the room.
    ///
    /// # Errors
    /// As [`get_bytes`](Self::get_bytes).
    #[inline]
    pub fn get_bytes_into(&self, bytes: &mut Vec<u8>) -> Result<(), GetError> {
        bytes.clear();
        self.get_raw(bytes, || Deadline::NEVER).map(drop)
    }

    /// Takes the next bytes if there are some.
    ///
    /// # Errors
    /// As [`get_bytes`](Self::get_bytes), and [`GetError::Empty`].
    pub fn try_get_bytes(&self) -> Result<Vec<u8>, GetError> {
        let mut bytes = Vec::new();
        self.get_raw(&mut bytes, Deadline::now)?;
        Ok(bytes)
    }

    /// As [`get_bytes`](Self::get_bytes), waiting for at most so long.
    ///
    /// # Errors
    /// As [`get_bytes`](Self::get_bytes), and [`GetError::Empty`].
    pub fn get_bytes_timeout(&self, timeout: Duration) -> Result<Vec<u8>, GetError> {
        let mut bytes = Vec::new();
        self.get_raw(&mut bytes, || Deadline::after(timeout))?;
        Ok(bytes)
    }
}

/// What bytes name: nothing.
static NONE: Carried = Carried::new();

fn not_put(error: CoreError) -> PutError {
    match error {
        CoreError::Closed { .. } => PutError::Closed,
        error => PutError::Failed(Error::at("put a message", error)),
    }
}

fn not_got(error: CoreError) -> GetError {
    match error {
        CoreError::Closed { .. } => GetError::Closed,
        error => GetError::Failed(Error::at("get a message", error)),
    }
}

fn not_watched(error: CoreError) -> Error {
    Error::at("watch a queue", error)
}

fn looked(error: CoreError) -> Error {
    Error::at("look at a queue", error)
}

impl<T: ?Sized> Clone for Queue<T> {
    fn clone(&self) -> Self {
        Self::from_core(self.core.clone())
    }
}

impl<T: ?Sized> fmt::Debug for Queue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue")
            .field("name", &self.core.name())
            .field("len", &self.core.len().ok())
            .finish_non_exhaustive()
    }
}

impl<T: ?Sized> Serialize for Queue<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        names::serialize(serializer, self.core.name(), || self.core.escape())
    }
}

impl<'de, T: ?Sized> Deserialize<'de> for Queue<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        names::deserialize(deserializer, Core::open).map(Self::from_core)
    }
}
