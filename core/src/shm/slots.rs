//! Places in the tree: claimed by a parent, taken over by its child.

use super::arena::{Arena, Member};
use super::layout::{SLOTS, SLOTS_START, Slot, state};
use super::object::{self, ObjectName};
use super::recovery;
use super::robust::{LOOK_AGAIN, turn};
use crate::sys::fork::Sign;
use crate::sys::identity::{self, Origin};
use crate::sys::robust::Thread;
use crate::sys::word::{Relaxed, Release};
use crate::{Deadline, Error, Result};
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
        let id = self.arena.inner.header().map_or([0, 0], |header| {
            [header.id[0].load(Relaxed), header.id[1].load(Relaxed)]
        });
        format!(
            "{descriptor}:{}:{}:{:x}:{:x}",
            self.slot, self.generation, id[0], id[1]
        )
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
