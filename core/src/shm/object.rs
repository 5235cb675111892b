//! Objects of the arena: their names, and who holds them.
//!
//! An object lives while a bit of its `holders` is set, one for each slot. Setting and clearing a bit can be done
//! twice without harm, so there is nothing to undo when a process dies between: recovery clears its bit everywhere.
//! How often a process holds an object is its own business, kept in its own memory. Only a holder may set another
//! slot's bit, so an object without bits can't come back; whoever sees the last bit go frees it, under the
//! allocator's lock.

use super::arena::{Arena, Member};
use super::blocks;
use super::layout::{OBJECT_HEADER, ObjectHeader, SLOTS};
use super::view::{Found, Shared};
use crate::sys::word::{Acquire, Relaxed, Release};
use crate::{Error, Result};
use std::collections::HashMap;

/// The name of an object: good in every process of its tree, for as long as somebody holds the object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ObjectName {
    /// Where it lies, in bytes from the arena's start.
    pub offset: u64,
    /// Its number among all objects ever made in that arena, so that a stale name is noticed.
    pub serial: u64,
}

/// How often this process holds which object, by offset.
pub(super) type References = HashMap<u64, (u64, u32)>;

/// A hold on an object, for as long as it lives. A clone is another one.
#[derive(Debug)]
pub(crate) struct Handle<T> {
    name: ObjectName,
    state: Found<T>,
}

impl<T: Shared> Handle<T> {
    /// Makes an object of `kind` with a state that is all zero, held by this process.
    pub(crate) fn new(arena: &Arena, kind: u32) -> Result<Self> {
        let (_through, mut references) = arena.inner.references();
        let name = blocks::create(&arena.inner, kind, size_of::<T>() as u64)?;
        let state = Found::new(arena, name.offset + OBJECT_HEADER)?;
        references.insert(name.offset, (name.serial, 1));
        Ok(Self { name, state })
    }

    /// Holds the object of that name, which must be of `kind`.
    ///
    /// # Errors
    /// `Closed` when the object is gone, `Malformed` when the name is of another kind or of none.
    pub(crate) fn open(arena: &Arena, kind: u32, name: ObjectName) -> Result<Self> {
        let member = &arena.inner;
        let state = Found::new(arena, name.offset.saturating_add(OBJECT_HEADER))?;
        let (_through, mut references) = member.references();
        match references.get_mut(&name.offset) {
            Some((serial, count)) if *serial == name.serial => *count += 1,
            _ => {
                hold(member, name, member.place()?)?;
                references.insert(name.offset, (name.serial, 1));
            }
        }
        drop(references);
        let handle = Self { name, state };
        if handle.header()?.kind.load(Relaxed) != kind {
            return Err(Error::Malformed {
                what: "name of an object",
                at: 0,
            });
        }
        Ok(handle)
    }

    /// The object's own state.
    #[inline]
    pub(crate) fn state(&self) -> &T {
        &self.state
    }

    /// Says that the name goes into a message: from now on the object lives without a holder too.
    pub(crate) fn escape(&self) -> Result<()> {
        self.header()?.escaped.store(1, Release);
        Ok(())
    }
}

impl<T> Handle<T> {
    pub(crate) fn name(&self) -> ObjectName {
        self.name
    }

    #[inline]
    pub(crate) fn member(&self) -> &Member {
        &self.arena().inner
    }

    #[inline]
    pub(crate) fn arena(&self) -> &Arena {
        self.state.arena()
    }

    fn header(&self) -> Result<&ObjectHeader> {
        self.member().at(self.name.offset)
    }
}

impl<T> Clone for Handle<T> {
    fn clone(&self) -> Self {
        let (_through, mut references) = self.member().references();
        if let Some((_, count)) = references.get_mut(&self.name.offset) {
            *count += 1;
        }
        Self {
            name: self.name,
            state: self.state.clone(),
        }
    }
}

impl<T> Drop for Handle<T> {
    fn drop(&mut self) {
        let (_through, mut references) = self.member().references();
        let Some((_, count)) = references.get_mut(&self.name.offset) else {
            return;
        };
        *count -= 1;
        if *count == 0 {
            references.remove(&self.name.offset);
            // Nobody could be told; what isn't given back now is when this process is gone.
            let _ = blocks::let_go(self.member(), self.name, self.member().slot());
        }
    }
}

/// Sets the bit of `slot` in the object of that name.
///
/// # Errors
/// `Closed` when the object is gone.
pub(super) fn hold(member: &Member, name: ObjectName, slot: u32) -> Result<()> {
    let (cell, bit) = place(slot)?;
    // Under the lock, so that the object can't go between the look and the bit.
    let _held = blocks::lock(member)?;
    blocks::named(member, name)?.holders[cell].set_bits(bit);
    Ok(())
}

/// Sets the bit of `slot` in every object that this process holds.
pub(super) fn hold_all(member: &Member, references: &References, slot: u32) -> Result<()> {
    let (cell, bit) = place(slot)?;
    for offset in references.keys() {
        member.at::<ObjectHeader>(*offset)?.holders[cell].set_bits(bit);
    }
    Ok(())
}

impl ObjectHeader {
    /// Clears the bit of `slot`.
    pub(super) fn forget(&self, slot: u32) -> Result<()> {
        let (cell, bit) = place(slot)?;
        if self.holders[cell].load(Relaxed) & bit != 0 {
            self.holders[cell].clear_bits(bit);
        }
        Ok(())
    }

    /// Whether the process of `slot` holds it.
    pub(super) fn is_held_by(&self, slot: u32) -> Result<bool> {
        let (cell, bit) = place(slot)?;
        Ok(self.holders[cell].load(Acquire) & bit != 0)
    }

    /// Whether any process holds it, or a message may name it.
    pub(super) fn is_wanted(&self) -> bool {
        self.escaped.load(Relaxed) != 0 || self.holders.iter().any(|cell| cell.load(Acquire) != 0)
    }
}

/// The cell and the bit of a slot among an object's holders.
pub(super) fn place(slot: u32) -> Result<(usize, u64)> {
    if slot == 0 || slot >= SLOTS {
        return Err(Error::Broken {
            what: "the number of a slot",
        });
    }
    Ok(((slot / 64) as usize, 1 << (slot % 64)))
}
