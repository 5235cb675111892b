//! Plain memory: bytes of the user's, in pages of their own, that mean nothing to the engine.
//!
//! An object and one run that is linked to it. The run's offset stands in the object before the run is linked, so
//! that whoever destroys the object finds the run without a search. Others may write these bytes at any time, so all
//! access through here is atomic, word by word; what an order of words means is for the user's locks to say.

use super::arena::{Arena, Member};
use super::blocks;
use super::bytes::Bytes;
use super::layout::{OBJECT_HEADER, PAGE, WINDOWS, index, kind, table_pages, window_bytes};
use super::object::{Handle, ObjectName};
use super::robust::turn;
use super::view::{Span, shared};
use crate::sys::mapping;
use crate::sys::word::{Acquire, Cell, Relaxed, Release};
use crate::{Error, Result};

shared! {
    /// A memory's state.
    MemoryState: 16 {
        /// Offset of its run.
        run: Cell,
        /// Bytes of it that were asked for.
        length: Cell,
    }
}

/// Bytes that processes share, in pages that hold nothing else.
///
/// # Across processes
/// Any process that holds it may read and write any byte at any time. The memory is had when it is made: nobody is
/// ended by a signal for want of it later. It goes with its last holder, however that ends.
///
/// # After fork
/// The child holds the same bytes.
///
/// Python: what `Value`, `Array` and `heap.Arena` are made of.
#[derive(Debug, Clone)]
pub struct Memory {
    handle: Handle<MemoryState>,
    bytes: Bytes,
}

impl Memory {
    /// Makes `length` bytes, all zero. Whole pages, at least one, and 256 bytes of the arena; no descriptor.
    ///
    /// # Errors
    /// `Os` or `Exhausted` when there is no memory; `Interrupted` when another process is stopped in the midst of the
    /// same: call again.
    pub fn new(arena: &Arena, length: usize) -> Result<Self> {
        check_length(length as u64)?;
        let member = &*arena.inner;
        let run = member.judged(blocks::take_run(member, length as u64, turn()))?;
        let run = run.ok_or(Error::Interrupted)?;
        let made = member.judged(Self::fill(arena, run, length));
        if made.is_err() {
            // Not ours any more if it was linked before what failed.
            let _ = blocks::free_run(member, run);
        }
        made
    }

    /// Makes the object of a run that this process has just taken.
    fn fill(arena: &Arena, run: u64, length: usize) -> Result<Self> {
        let member = &*arena.inner;
        let bytes = Bytes::new(Span::new(arena, run, length)?);
        // Freed pages keep what was in them.
        member.windows().clear(run, length)?;
        let handle: Handle<MemoryState> = Handle::new(arena, kind::MEMORY)?;
        let state = handle.state();
        state.length.store(length as u64, Relaxed);
        state.run.store(run, Release);
        blocks::link(member, run, handle.name().offset)?;
        Ok(Self { handle, bytes })
    }

    /// Holds the memory of that name.
    ///
    /// # Errors
    /// `Closed` when it is gone, `Malformed` when the name is not a memory's.
    pub fn open(arena: &Arena, name: ObjectName) -> Result<Self> {
        let handle = Handle::open(arena, kind::MEMORY, name)?;
        arena.inner.judged(Self::find(arena, handle))
    }

    /// Finds the run of an object.
    fn find(arena: &Arena, handle: Handle<MemoryState>) -> Result<Self> {
        let (member, name) = (&*arena.inner, handle.name());
        let state = handle.state();
        let (run, length) = (state.run.load(Acquire), state.length.load(Relaxed));
        if !blocks::is_linked(member, run, name.offset) || length > blocks::run_bytes(member, run)?
        {
            return Err(Error::Broken {
                what: "the run of a memory",
            });
        }
        let bytes = Bytes::new(Span::new(arena, run, index(length))?);
        Ok(Self { handle, bytes })
    }

    /// Its name, for a process that is given a hold on it.
    #[must_use]
    pub fn name(&self) -> ObjectName {
        self.handle.name()
    }

    /// Its name, for bytes that go elsewhere than into a queue: from now on the memory lives until the tree ends.
    ///
    /// # Errors
    /// `Poisoned` when the arena contradicts itself.
    pub fn escape(&self) -> Result<ObjectName> {
        self.handle.escape()?;
        Ok(self.handle.name())
    }

    /// Its bytes.
    #[inline]
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }
}

/// Refuses what can't be had before the arena grows for it: each window costs memory for its table.
fn check_length(length: u64) -> Result<()> {
    let largest = window_bytes(WINDOWS - 1) - table_pages(WINDOWS - 1) * PAGE;
    let limit = largest.min(mapping::machine_bytes());
    if length > limit {
        return Err(Error::Exhausted {
            what: "bytes of shared memory",
            limit,
        });
    }
    Ok(())
}

/// The run of the memory at `offset`; 0 if it was never given one.
pub(super) fn run_of(member: &Member, offset: u64) -> Result<u64> {
    let state: &MemoryState = member.at(offset + OBJECT_HEADER)?;
    Ok(state.run.load(Acquire))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_zero_whatever_its_pages_held_and_goes_with_its_last_holder() {
        let arena = Arena::create().unwrap();
        let first = arena.census().unwrap();
        for length in [1, 4096, 5000, 3 << 20] {
            let memory = Memory::new(&arena, length).unwrap();
            memory.bytes().write(length - 1, &[1]).unwrap();
            let (run, other) = (memory.bytes().base(), memory.clone());
            drop(memory);
            assert_eq!(other.bytes().u8_at(length - 1).unwrap().load(Relaxed), 1);
            let opened = Memory::open(&arena, other.name()).unwrap();
            assert_eq!((opened.bytes().base(), opened.bytes().len()), (run, length));
            drop((opened, other));
            let mut bytes = vec![1; length];
            let again = Memory::new(&arena, length).unwrap();
            again.bytes().read(0, &mut bytes).unwrap();
            assert!(bytes.iter().all(|byte| *byte == 0));
        }
        let last = arena.census().unwrap();
        assert_eq!((last.objects, last.linked_bytes), (first.objects, 0));
        assert_eq!(last.owned_bytes, first.owned_bytes);
    }

    #[test]
    fn what_the_machine_has_not_is_refused_before_the_arena_grows() {
        let arena = Arena::create().unwrap();
        let before = arena.census().unwrap();
        for length in [1 << 50, usize::MAX] {
            let refused = Memory::new(&arena, length);
            assert!(matches!(refused, Err(Error::Exhausted { .. })));
        }
        assert_eq!(arena.census().unwrap(), before);
    }

    #[test]
    fn a_name_of_something_else_is_refused() {
        let arena = Arena::create().unwrap();
        let lock = crate::Lock::new(&arena).unwrap();
        let refused = Memory::open(&arena, lock.name());
        assert!(matches!(refused, Err(Error::Malformed { .. })));
        let memory = Memory::new(&arena, 8).unwrap();
        let name = memory.name();
        assert!(crate::Lock::open(&arena, name).is_err());
        drop(memory);
        assert!(Memory::open(&arena, name).is_err());
    }
}
