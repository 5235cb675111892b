//! Large messages: bytes in whole pages of the arena that belong to one process at a time.

use super::arena::{Arena, Member};
use super::blocks;
use super::robust::Limit;
use super::view::Windows;
use crate::Result;
use std::mem::MaybeUninit;
use std::sync::Arc;

/// A run that this process owns, to be filled and handed over: freed when it is dropped.
#[derive(Debug)]
pub(crate) struct Run<'a> {
    member: &'a Member,
    pub(crate) offset: u64,
}

impl<'a> Run<'a> {
    /// A new run; `None` once the limit is reached.
    pub(crate) fn take(
        member: &'a Member,
        bytes: u64,
        limit: impl Into<Limit>,
    ) -> Result<Option<Self>> {
        let taken = blocks::take_run(member, bytes, limit)?;
        Ok(taken.map(|offset| Self { member, offset }))
    }

    /// Takes back a run that was handed over to an object; `None` when it isn't the object's. As [`blocks::unlink`].
    pub(crate) fn take_back(member: &'a Member, offset: u64, object: u64) -> Result<Option<Self>> {
        let is_ours = blocks::unlink(member, offset, object)?;
        Ok(is_ours.then_some(Self { member, offset }))
    }

    /// Writes the parts into it, one behind the other.
    pub(crate) fn fill(&self, parts: &[&[u8]]) -> Result<()> {
        let mut at = self.offset;
        for part in parts {
            self.member.windows().write(at, part)?;
            at += part.len() as u64;
        }
        Ok(())
    }

    /// Gives it to an object. Under the lock of the object's, if it has one for that.
    pub(crate) fn link(self, object: u64) -> Result<()> {
        blocks::link(self.member, self.offset, object)?;
        std::mem::forget(self);
        Ok(())
    }

    /// Bytes that it has room for.
    pub(crate) fn bytes(&self) -> Result<u64> {
        blocks::run_bytes(self.member, self.offset)
    }

    /// What it holds, `length` bytes of a message, for whoever got that.
    pub(crate) fn into_extent(self, arena: &Arena, length: usize) -> Extent {
        let offset = self.offset;
        std::mem::forget(self);
        Extent::new(arena, offset, offset, length)
    }
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        // What can't be given back now is when this process is gone.
        let _ = blocks::free_run(self.member, self.offset);
    }
}

/// Bytes in shared memory that belong to this process, until the last clone is dropped.
///
/// # Across processes
/// Nobody else refers to them. They are given back when this process dies.
///
/// # After fork
/// They stay the parent's: the child's copy may be read as long as the parent keeps its own, and frees nothing.
#[derive(Debug, Clone)]
pub struct Extent(Arc<OwnRun>);

/// A run of this process, freed when it is dropped, and where the message is in it.
#[derive(Debug)]
struct OwnRun {
    arena: Arena,
    offset: u64,
    /// Behind names, if it has some.
    start: u64,
    length: usize,
}

impl Extent {
    /// The run at `offset`, which is this process', and in it the message from `start` on.
    pub(crate) fn new(arena: &Arena, offset: u64, start: u64, length: usize) -> Self {
        Self(Arc::new(OwnRun {
            arena: arena.clone(),
            offset,
            start,
            length,
        }))
    }

    fn windows(&self) -> &Windows {
        self.0.arena.inner.windows()
    }

    /// Its length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.length
    }

    /// Whether it has no bytes: so has a message that names a thousand objects and says nothing else.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.length == 0
    }

    /// Copies its first bytes into `to`, as many as fit.
    ///
    /// # Errors
    /// `Os` when its window can't be mapped.
    pub fn copy_to(&self, to: &mut [u8]) -> Result<()> {
        let length = to.len().min(self.0.length);
        self.windows().read(self.0.start, &mut to[..length])
    }

    /// Copies its bytes from `at` on, as many as fit, and says how many that were.
    ///
    /// # Errors
    /// `Os` when its window can't be mapped.
    pub fn copy_from(&self, at: usize, to: &mut [u8]) -> Result<usize> {
        let length = to.len().min(self.0.length.saturating_sub(at));
        self.windows()
            .read(self.0.start + at as u64, &mut to[..length])?;
        Ok(length)
    }

    /// Copies its bytes from `at` on, as many as fit, into memory that needn't be filled first, and gives those.
    ///
    /// # Errors
    /// `Os` when its window can't be mapped.
    pub fn fill<'a>(&self, at: usize, to: &'a mut [MaybeUninit<u8>]) -> Result<&'a [u8]> {
        let length = to.len().min(self.0.length.saturating_sub(at));
        self.windows()
            .fill(self.0.start + at as u64, &mut to[..length])
    }

    /// Appends its bytes to a vector.
    ///
    /// # Errors
    /// `Os` when its window can't be mapped.
    pub fn append_to(&self, to: &mut Vec<u8>) -> Result<()> {
        self.windows().append(self.0.start, self.0.length, to)
    }
}

impl Drop for OwnRun {
    fn drop(&mut self) {
        // What can't be given back now is when this process is gone.
        let _ = blocks::free_run(&self.arena.inner, self.offset);
    }
}
