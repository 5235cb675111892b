//! What a get gives: bytes in the caller's memory, or a run of the arena that is the caller's now.

use crate::Result;
use crate::shm::blocks;
use crate::shm::{Arena, Carried};
use std::mem::MaybeUninit;

/// A message that was got.
#[derive(Debug)]
pub struct Message {
    /// The byte that it was put with.
    pub tag: u8,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// The objects that it names, held until it is dropped: whoever wants one opens it before.
    pub carried: Carried,
}

/// What a message got into a buffer left there.
#[derive(Debug)]
pub struct Taken {
    /// The byte that it was put with.
    pub tag: u8,
    /// The message's bytes, if it was too long for the buffer: more than 16 KiB. Else they are in the buffer.
    pub extent: Option<Extent>,
    /// The objects that it names, held until this is dropped: whoever wants one opens it before.
    pub carried: Carried,
}

/// Bytes in shared memory that belong to this process, until it is dropped.
///
/// # Across processes
/// Nobody else refers to them. They are given back when this process dies.
///
/// # After fork
/// They stay the parent's: the child's copy may be read as long as the parent keeps its own, and frees nothing.
#[derive(Debug)]
pub struct Extent {
    pub(super) arena: Arena,
    /// The run.
    pub(super) offset: u64,
    /// Where the message begins in it: behind names, if it has some.
    pub(super) start: u64,
    pub(super) length: usize,
}

impl Extent {
    /// Its length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether it has no bytes: so has a message that names a thousand objects and says nothing else.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Copies its first bytes into `to`, as many as fit.
    ///
    /// # Errors
    /// `Os` when its window can't be mapped.
    pub fn copy_to(&self, to: &mut [u8]) -> Result<()> {
        let length = to.len().min(self.length);
        self.arena
            .inner
            .windows()
            .read(self.start, &mut to[..length])
    }

    /// Copies its bytes from `at` on, as many as fit, and says how many that were.
    ///
    /// # Errors
    /// `Os` when its window can't be mapped.
    pub fn copy_from(&self, at: usize, to: &mut [u8]) -> Result<usize> {
        let length = to.len().min(self.length.saturating_sub(at));
        self.arena
            .inner
            .windows()
            .read(self.start + at as u64, &mut to[..length])?;
        Ok(length)
    }

    /// Copies its bytes from `at` on, as many as fit, into memory that needn't be filled first, and gives those.
    ///
    /// # Errors
    /// `Os` when its window can't be mapped.
    pub fn fill<'a>(&self, at: usize, to: &'a mut [MaybeUninit<u8>]) -> Result<&'a [u8]> {
        let length = to.len().min(self.length.saturating_sub(at));
        let windows = self.arena.inner.windows();
        windows.fill(self.start + at as u64, &mut to[..length])
    }

    /// Appends its bytes to a vector.
    ///
    /// # Errors
    /// `Os` when its window can't be mapped.
    pub fn append_to(&self, to: &mut Vec<u8>) -> Result<()> {
        self.arena
            .inner
            .windows()
            .append(self.start, self.length, to)
    }
}

impl Drop for Extent {
    fn drop(&mut self) {
        // What can't be given back now is when this process is gone.
        let _ = blocks::free_run(&self.arena.inner, self.offset);
    }
}
