//! Memory that unrelated programs find by a name.

use super::raw::Atomic;
use crate::error::{Error, Result, retry};
use procession_core::NamedMemory;

/// Memory with a name: made, or attached to if there is some.
///
/// A clone is the same memory. It isn't sent anywhere: its name is, and the receiver opens it.
///
/// # Across processes
/// Any process of this user finds it by its name, in Rust or in Python, until somebody calls [`unlink`](Self::unlink);
/// the memory goes with the last who has it open. The death of a process doesn't take the name away. One that cuts it
/// short ends others with SIGBUS where they touch what is gone; nothing here does that.
///
/// # Examples
/// ```
/// # fn main() -> procession::Result<()> {
/// let block = procession::SharedMemory::create(1000)?;
/// block.write(990, b"the end");
/// let same = procession::SharedMemory::open(block.name())?;
/// let mut bytes = [0; 7];
/// same.read(990, &mut bytes);
/// assert_eq!(&bytes, b"the end");
/// block.unlink()?;
/// assert!(procession::SharedMemory::open(block.name()).is_err());
/// # Ok(())
/// # }
/// ```
///
/// Python: `shared_memory.SharedMemory`.
#[derive(Debug, Clone)]
pub struct SharedMemory(NamedMemory);

impl SharedMemory {
    /// Makes so many bytes, all zero, with a name that nobody has.
    ///
    /// # Errors
    /// `Misuse` for none, `Os` when there is no memory.
    pub fn create(length: usize) -> Result<Self> {
        Self::make(None, length)
    }

    /// As [`create`](Self::create), with a name of the caller's, without a slash.
    ///
    /// # Errors
    /// As [`create`](Self::create); `Os` when the name is taken.
    pub fn create_named(name: &str, length: usize) -> Result<Self> {
        Self::make(Some(name), length)
    }

    fn make(name: Option<&str>, length: usize) -> Result<Self> {
        let made = retry(|| NamedMemory::create(name, length));
        made.map(Self)
            .map_err(|error| Error::at("make named memory", error))
    }

    /// Attaches to the memory of that name.
    ///
    /// # Errors
    /// `Os` when there is none.
    pub fn open(name: &str) -> Result<Self> {
        let opened = retry(|| NamedMemory::open(name));
        opened
            .map(Self)
            .map_err(|error| Error::at("open named memory", error))
    }

    /// Takes the name away: once, for all processes.
    ///
    /// # Errors
    /// `Os` when that was done before.
    pub fn unlink(&self) -> Result<()> {
        let done = retry(|| self.0.unlink());
        done.map_err(|error| Error::at("unlink named memory", error))
    }

    /// The name by which another process opens it.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0.name()
    }

    /// How many bytes it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.bytes().len()
    }

    /// Whether it has none: never.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.bytes().is_empty()
    }

    /// Copies bytes out, from `start` on.
    ///
    /// # Panics
    /// When they end behind its end.
    pub fn read(&self, start: usize, bytes: &mut [u8]) {
        let read = self.0.bytes().read(start, bytes);
        assert!(read.is_ok(), "{start} and more bytes of {}", self.len());
    }

    /// Copies bytes in, from `start` on.
    ///
    /// # Panics
    /// When they end behind its end.
    pub fn write(&self, start: usize, bytes: &[u8]) {
        let written = self.0.bytes().write(start, bytes);
        assert!(written.is_ok(), "{start} and more bytes of {}", self.len());
    }

    /// The number at byte `start`, as the standard library's atomic; `None` when it isn't aligned there, or behind the
    /// end.
    #[must_use]
    pub fn atomic<T: Atomic>(&self, start: usize) -> Option<&T::Atom> {
        T::atom(self.0.bytes(), start)
    }
}
