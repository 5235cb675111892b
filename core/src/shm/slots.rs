//! Places in the tree: claimed by a parent, taken over by its child.

use super::arena::{Arena, Member};
use super::layout::{SLOTS, SLOTS_START, Slot, signed, state};
use super::object::{self, ObjectName};
use super::recovery;
use super::robust::{LOOK_AGAIN, turn};
use crate::sys::fork::Sign;
use crate::sys::identity::{self, Origin};
use crate::sys::robust::Thread;
use crate::sys::word::{Acquire, Relaxed, Release};
use crate::{Deadline, Error, Result};
use std::fmt;
use std::os::fd::RawFd;

/// A place in the tree that is kept for a child which is about to be started by exec.
///
/// Objects given to it are held for the child from now on, so the parent may drop its own before the child has seen
/// them. Dropping it gives the place back, unless the child has attached by then.
#[derive(Debug)]
pub struct ChildSlot {
    arena: Arena,
    slot: u32,
    generation: u32,
}

/// Which place it is that a [`ChildSlot`] keeps, in which arena. No secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
    /// The arena's.
    pub(crate) id: [u64; 2],
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [low, high] = self.id;
        write!(f, "{}:{}:{low:x}:{high:x}", self.slot, self.generation)
    }
}

impl Place {
    /// The place of which that was printed.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut fields = text.split(':');
        let mut field = || fields.next();
        let (slot, generation) = (field()?.parse().ok()?, field()?.parse().ok()?);
        let mut id = [0; 2];
        for half in &mut id {
            *half = u64::from_str_radix(field()?, 16).ok()?;
        }
        let place = Self {
            slot,
            generation,
            id,
        };
        (1..SLOTS).contains(&slot).then_some(place)
    }
}

impl Arena {
    /// Keeps a place for a child that is about to be started by exec.
    ///
    /// # Errors
    /// `Exhausted` when the tree has 1023 processes already; `Interrupted` when a signal handler ran while it waited.
    pub fn reserve(&self) -> Result<ChildSlot> {
        let member = &*self.inner;
        let claimed = claim(member, member.place()?, None, turn());
        let (slot, generation) = member.judged(claimed)?;
        Ok(ChildSlot {
            arena: self.clone(),
            slot,
            generation,
        })
    }
}

impl ChildSlot {
    /// The same place in a twin of its arena, for a parent that would give it back there.
    #[cfg(crash_points)]
    #[must_use]
    pub fn twin(&self, twin: &Arena) -> Self {
        Self {
            arena: twin.clone(),
            slot: self.slot,
            generation: self.generation,
        }
    }

    /// What the child attaches with: `descriptor:slot:generation:id:id`. `descriptor` is the number that the arena's
    /// memfd has in the child. No secret: whoever has the descriptor has the arena.
    #[must_use]
    pub fn token(&self, descriptor: RawFd) -> String {
        format!("{descriptor}:{}", self.place())
    }

    /// The place, for another process of the tree that forks the child: see [`Arena::adopt`].
    #[must_use]
    pub fn place(&self) -> Place {
        Place {
            slot: self.slot,
            generation: self.generation,
            id: self.arena.inner.id().unwrap_or_default(),
        }
    }

    /// Holds an object for the child.
    ///
    /// # Errors
    /// `Closed` when nobody holds the object any more; `Interrupted` when a signal handler ran while it waited.
    pub fn give(&self, name: ObjectName) -> Result<()> {
        let member = &*self.arena.inner;
        member.sound()?;
        let held = member.judged(object::hold(member, name, self.slot, turn()))?;
        held.then_some(()).ok_or(Error::Interrupted)
    }
}

impl Drop for ChildSlot {
    fn drop(&mut self) {
        // A place that can't be given back now is given back when this process is gone.
        let member = &*self.arena.inner;
        let _ = member.judged(give_back(member, self.slot, self.generation));
    }
}

impl Slot {
    /// Says that the calling process has it, or keeps it.
    pub(super) fn be(&self, origin: Origin) {
        self.pid.store(identity::pid(), Relaxed);
        self.started.store(origin.started, Relaxed);
        self.stack.store(origin.stack, Relaxed);
    }

    /// Has its process live as long as the thread does, which is the calling one.
    pub(super) fn live_by(&self, thread: Thread) {
        self.thread.store(thread.tid(), Relaxed);
        self.life.word.store(thread.tid(), Relaxed);
        thread.link(&self.life);
    }

    /// The process that has it, or keeps it.
    pub(super) fn process(&self) -> (u32, Origin) {
        let origin = Origin {
            started: self.started.load(Relaxed),
            stack: self.stack.load(Relaxed),
        };
        (self.pid.load(Relaxed), origin)
    }
}

/// Claims a slot, `RESERVED` for a child of the process in slot `parent`; with 0, for this process itself. Gives its
/// number and generation. A child that is forked will have the sign.
///
/// # Errors
/// `Exhausted` when all slots are taken; `Interrupted` when the deadline has passed, or a signal handler ran.
pub(super) fn claim(
    member: &Member,
    parent: u32,
    sign: Option<&Sign>,
    deadline: Deadline,
) -> Result<(u32, u32)> {
    for attempt in 0..2 {
        if let Some(slot) = claim_free(member, parent, sign, deadline)? {
            return Ok(slot);
        }
        if attempt == 0 {
            recovery::reap(member)?;
        }
    }
    Err(Error::Exhausted {
        what: "places for processes in one tree",
        limit: u64::from(SLOTS) - 1,
    })
}

fn claim_free(
    member: &Member,
    parent: u32,
    sign: Option<&Sign>,
    deadline: Deadline,
) -> Result<Option<(u32, u32)>> {
    let header = member.header()?;
    let _held = member.registry(deadline)?.ok_or(Error::Interrupted)?;
    for number in 1..SLOTS {
        let slot = member.slot_at(number)?;
        if slot.state.load(Relaxed) != state::FREE {
            continue;
        }
        slot.life.clear();
        let origin = if parent == 0 {
            identity::origin()
        } else {
            Origin::default()
        };
        slot.be(origin);
        slot.parent
            .store(if parent == 0 { number } else { parent }, Relaxed);
        // Before the state: nobody may look for a sign that isn't there yet.
        let signed = sign.is_some_and(|sign| sign.set(place(number)));
        slot.signed.store(signed.into(), Relaxed);
        let generation = slot.generation.load(Relaxed).wrapping_add(1);
        slot.generation.store(generation, Relaxed);
        if header.slots_used.load(Relaxed) <= number {
            header.slots_used.store(number + 1, Relaxed);
        }
        slot.state.store(state::RESERVED, Release);
        return Ok(Some((number, generation)));
    }
    Ok(None)
}

/// Has a child that this process has forked take a slot that another one keeps for it.
///
/// From now on the sign counts, as long as somebody has it; without it the slot is the keeper's as before. So a child that
/// is gone leaves it as it was, and a keeper that dies takes nothing from a child that is there.
///
/// # Errors
/// `Misuse` when the slot isn't kept any more; `Interrupted` when the deadline has passed, or a signal handler ran.
pub(super) fn adopt(
    member: &Member,
    (number, generation): (u32, u32),
    sign: Option<&Sign>,
    deadline: Deadline,
) -> Result<()> {
    let slot = member.slot_at(number)?;
    // Under the lock, so that its keeper isn't recovered meanwhile, and the slot with it.
    let _held = member.registry(deadline)?.ok_or(Error::Interrupted)?;
    if slot.state.load(Acquire) != state::RESERVED || slot.generation.load(Relaxed) != generation {
        return Err(Error::Misuse {
            what: "the place kept for a child is gone",
        });
    }
    // Without a sign it stays the keeper's alone: if that dies before the child has settled, the place is gone.
    if sign.is_some_and(|sign| sign.set(place(number))) {
        slot.signed.store(signed::ADOPTED, Relaxed);
    }
    Ok(())
}

/// The byte of the arena's file at which a slot's child sets its sign.
pub(super) fn place(number: u32) -> u64 {
    SLOTS_START + u64::from(number) * size_of::<Slot>() as u64
}

/// Gives back a slot that this process reserved and whose child never came; nothing for a forked child's copy.
pub(super) fn give_back(member: &Member, number: u32, generation: u32) -> Result<()> {
    let slot = member.slot_at(number)?;
    let parent = slot.parent.load(Relaxed);
    if slot.generation.load(Relaxed) == generation
        && (parent == member.slot() || parent == number)
        && slot.state.replace(state::RESERVED, state::DEAD)
    {
        // While another process is stopped in the middle of the same: whoever comes next does it.
        recovery::recover(member, number, Deadline::after(LOOK_AGAIN))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::Arena;
    use super::*;

    #[test]
    fn a_place_that_went_to_another_is_not_taken_over() {
        let arena = Arena::found(&[]).unwrap();
        let member = &*arena.inner;
        let never = Deadline::NEVER;
        let (slot, generation) = claim(member, member.slot(), None, never).unwrap();
        // Its parent dies, and the slot is kept for another one's child before the first child comes.
        give_back(member, slot, generation).unwrap();
        let next = claim(member, member.slot(), None, never).unwrap();
        assert_eq!(next.0, slot);
        assert!(member.settle_in(slot, generation, never).is_err());
        let state = member.slot_at(slot).unwrap().state.load(Relaxed);
        assert_eq!(state, state::RESERVED);
    }
}
