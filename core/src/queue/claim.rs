//! A note, outside the taker, of what was taken: a pool's way to know which task died with a worker.

use crate::Result;
use crate::shm::Arena;
use crate::shm::layout::{OBJECT_HEADER, kind};
use crate::shm::object::{Handle, ObjectName};
use crate::shm::view::shared;
use crate::sys::word::{Acquire, Cell, Release};

shared! {
    /// A claim's state.
    ClaimState: 8 {
        value: Cell,
    }
}

/// A cell that says which message its owner has taken, by the message's first eight bytes; 0: none.
///
/// # Across processes
/// It is set by [`Queue::get_claiming`](super::Queue::get_claiming) together with taking the message: a taker killed
/// at any instant has either both or neither, once [`Queue::settle`](super::Queue::settle) has been called.
#[derive(Debug, Clone)]
pub struct Claim {
    handle: Handle<ClaimState>,
}

impl Claim {
    /// Makes an empty claim. 256 bytes of the arena.
    ///
    /// # Errors
    /// `Os` or `Exhausted` when there is no memory.
    pub fn new(arena: &Arena) -> Result<Self> {
        Ok(Self {
            handle: Handle::new(arena, kind::CLAIM)?,
        })
    }

    /// Holds the claim of that name.
    ///
    /// # Errors
    /// `Closed` when it is gone, `Malformed` when the name is not a claim's.
    pub fn open(arena: &Arena, name: ObjectName) -> Result<Self> {
        Ok(Self {
            handle: Handle::open(arena, kind::CLAIM, name)?,
        })
    }

    /// Its name, for a process that is given a hold on it.
    #[must_use]
    pub fn name(&self) -> ObjectName {
        self.handle.name()
    }

    /// What was claimed last and not cleared since; 0: nothing.
    ///
    /// # Errors
    /// `Poisoned` when the arena contradicts itself.
    pub fn value(&self) -> Result<u64> {
        self.handle.member().sound()?;
        Ok(self.handle.state().value.load(Acquire))
    }

    /// Says that nothing is claimed.
    ///
    /// # Errors
    /// `Poisoned` when the arena contradicts itself.
    pub fn clear(&self) -> Result<()> {
        self.handle.member().sound()?;
        self.handle.state().value.store(0, Release);
        Ok(())
    }

    /// Where the cell lies.
    pub(super) fn offset(&self) -> u64 {
        self.handle.name().offset + OBJECT_HEADER
    }
}
