//! Objects of the arena: their names, and who holds them.
//!
//! An object lives while a bit of its `holders` is set, one for each slot. Setting and clearing a bit can be done
//! twice without harm, so there is nothing to undo when a process dies between: recovery clears its bit everywhere.
//! How often a process holds an object is its own business, kept in its own memory. Only a holder may set another
//! slot's bit, so an object without bits can't come back; whoever sees the last bit go frees it, under the
//! allocator's lock. One whose name was sent in a message can: `trace` tells when it can't any more.

use super::arena::{Arena, Member};
use super::blocks;
use super::layout::{OBJECT_HEADER, ObjectHeader, SLOTS};
use super::robust::{Limit, in_passing};
use super::view::{Found, Shared};
use crate::sys::word::{Acquire, Cell, Relaxed, Release};
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

/// What this process refers to.
#[derive(Debug, Default)]
pub(super) struct References {
    /// How often it holds which object: by offset, serial number and count.
    pub(super) objects: HashMap<u64, (u64, u32)>,
    /// Objects whose count became 0, to be let go of unless they are opened again before.
    pub(super) dropped: Vec<ObjectName>,
    /// Runs that it owns and no longer wants.
    pub(super) runs: Vec<u64>,
}

impl References {
    /// One hold more on an object; false when this process doesn't hold it.
    fn hold_again(&mut self, name: ObjectName) -> bool {
        let held = self.objects.get_mut(&name.offset);
        let Some((_, count)) = held.filter(|(serial, _)| *serial == name.serial) else {
            return false;
        };
        *count += 1;
        true
    }

    /// One hold less on an object; true when that was the last.
    fn drop_one(&mut self, name: ObjectName) -> bool {
        let Some((_, count)) = self.objects.get_mut(&name.offset) else {
            return false;
        };
        *count = count.saturating_sub(1);
        if *count > 0 {
            return false;
        }
        self.dropped.push(name);
        true
    }
}

/// A hold on an object, for as long as it lives. A clone is another one.
#[derive(Debug)]
pub(crate) struct Handle<T> {
    name: ObjectName,
    state: Found<T>,
}

impl<T: Shared> Handle<T> {
    /// Makes an object of `kind` with a state that is all zero, held by this process.
    pub(crate) fn new(arena: &Arena, kind: u32) -> Result<Self> {
        let member = &arena.inner;
        let name = member.judged(blocks::create(member, kind, size_of::<T>() as u64))?;
        let first = (name.serial, 1);
        member.references().1.objects.insert(name.offset, first);
        let found = Found::new(arena, name.offset + OBJECT_HEADER);
        let state = found.inspect_err(|_| let_go(member, name))?;
        Ok(Self { name, state })
    }

    /// Holds the object of that name, which must be of `kind`.
    ///
    /// # Errors
    /// `Closed` when the object is gone, `Malformed` when the name is of another kind or of none.
    pub(crate) fn open(arena: &Arena, kind: u32, name: ObjectName) -> Result<Self> {
        let member = &arena.inner;
        member.sound()?;
        let state = Found::new(arena, name.offset.saturating_add(OBJECT_HEADER));
        // The name is the caller's: where it leads to nothing, it isn't the arena that contradicts itself.
        let state = state.map_err(|error| match error {
            Error::Broken { .. } => Error::Malformed {
                what: "name of an object",
                at: 0,
            },
            error => error,
        })?;
        while !member.judged(count_one(member, name))? {
            // Waits without the gate, which others pass to drop what they have.
            drop(blocks::lock_untimed(member)?);
        }
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

    /// Says that the name goes where it can't be traced: from now on the object lives without a holder too.
    pub(crate) fn escape(&self) -> Result<()> {
        self.header()?.escaped.store(1, Release);
        Ok(())
    }

    /// Takes that back: the name came back from there, and nobody else has it.
    pub(crate) fn recapture(&self) -> Result<()> {
        self.header()?.escaped.store(0, Release);
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

    pub(super) fn header(&self) -> Result<&ObjectHeader> {
        self.member().at(self.name.offset)
    }
}

impl<T> Clone for Handle<T> {
    fn clone(&self) -> Self {
        let (_through, mut references) = self.member().references();
        if let Some((_, count)) = references.objects.get_mut(&self.name.offset) {
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
        let_go(self.member(), self.name);
    }
}

/// One hold more on the object of that name; false when the allocator's lock can't be had at the moment.
fn count_one(member: &Member, name: ObjectName) -> Result<bool> {
    let (_through, mut references) = member.references();
    if references.hold_again(name) {
        return Ok(true);
    }
    let held = hold(member, name, member.place()?, in_passing())?;
    if held {
        let first = (name.serial, 1);
        references.objects.insert(name.offset, first);
    }
    Ok(held)
}

/// One hold more on an object that this process holds; false when it doesn't.
pub(super) fn hold_again(member: &Member, name: ObjectName) -> bool {
    member.references().1.hold_again(name)
}

/// One hold more on an object that a message names which nobody else can take meanwhile, so that it can't go; false when
/// it is gone already.
pub(super) fn hold_named(member: &Member, name: ObjectName) -> Result<bool> {
    let (_through, mut references) = member.references();
    if references.hold_again(name) {
        return Ok(true);
    }
    let (cell, bit) = place(member.place()?)?;
    match blocks::named(member, name) {
        Ok(object) => object.holders[cell].set_bits(bit),
        Err(Error::Closed { .. } | Error::Malformed { .. }) => return Ok(false),
        Err(error) => return Err(error),
    };
    let first = (name.serial, 1);
    references.objects.insert(name.offset, first);
    Ok(true)
}

/// One hold less on an object of this process'.
pub(super) fn let_go(member: &Member, name: ObjectName) {
    let (_through, mut references) = member.references();
    if references.drop_one(name) {
        let noted = member.lamps_inside().forget(name.offset);
        if let Some(noted) = noted {
            let _ = member.judged(has_no_lamps(member, noted));
        }
        // Nobody could be told; what isn't given back now is when this process is gone.
        let _ = member.judged(blocks::give_back_mine(member, &mut references));
    }
}

/// Has nobody ring for this process any more, and its watcher look whether there are other lamps.
fn has_no_lamps(member: &Member, noted: u64) -> Result<()> {
    let (_, bit) = place(member.slot())?;
    member.at::<Cell>(noted)?.clear_bits(bit);
    member.watcher()?.ring();
    Ok(())
}

/// Sets the bit of `slot` in the object of that name; false when the limit is reached first.
///
/// # Errors
/// `Closed` when the object is gone.
pub(super) fn hold(
    member: &Member,
    name: ObjectName,
    slot: u32,
    limit: impl Into<Limit>,
) -> Result<bool> {
    let (cell, bit) = place(slot)?;
    // Under the lock, so that the object can't go between the look and the bit.
    let Some(_held) = blocks::lock(member, limit)? else {
        return Ok(false);
    };
    blocks::named(member, name)?.holders[cell].set_bits(bit);
    Ok(true)
}

/// Sets the bit of `slot` in every object that this process holds.
pub(super) fn hold_all(member: &Member, references: &References, slot: u32) -> Result<()> {
    let (cell, bit) = place(slot)?;
    for offset in references.objects.keys() {
        member.at::<ObjectHeader>(*offset)?.holders[cell].set_bits(bit);
    }
    Ok(())
}

impl ObjectHeader {
    /// Clears the bit of `slot`; false when it isn't set. Under the allocator's lock.
    pub(super) fn forget(&self, slot: u32) -> Result<bool> {
        let (cell, bit) = place(slot)?;
        let held = self.holders[cell].load(Relaxed) & bit != 0;
        if held {
            self.holders[cell].clear_bits(bit);
        }
        Ok(held)
    }

    /// Whether the process of `slot` holds it.
    pub(super) fn is_held_by(&self, slot: u32) -> Result<bool> {
        let (cell, bit) = place(slot)?;
        Ok(self.holders[cell].load(Acquire) & bit != 0)
    }

    /// Whether any process holds it, or its name went where it can't be traced.
    pub(super) fn is_wanted(&self) -> bool {
        self.escaped.load(Relaxed) != 0 || self.holders.iter().any(|cell| cell.load(Acquire) != 0)
    }
}

/// The cell and the bit of a slot among an object's holders.
pub(crate) fn place(slot: u32) -> Result<(usize, u64)> {
    if slot == 0 || slot >= SLOTS {
        return Err(Error::Broken {
            what: "the number of a slot",
        });
    }
    Ok(((slot / 64) as usize, 1 << (slot % 64)))
}
