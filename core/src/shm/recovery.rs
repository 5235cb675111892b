//! Giving back what a process held that is gone.
//!
//! Begun by whoever notices, under the registry's lock; each step can be done twice, and the slot is free only after
//! the last one, so a recovery that is itself killed is done again by the next one. The order matters:
//!
//! 1. The state says `DEAD` (or stays `LEFT`): nobody adopts a reserved slot any more.
//! 2. User locks that it held are marked, and a waiter is woken.
//! 3. Internal locks of the objects that it held are taken and repaired if it died with them, so that nothing half
//!    done still points to what the later steps free.
//! 4. Its runs are freed and its bits cleared; objects that nobody holds now go.
//! 5. The slot is free.

use super::arena::Member;
use super::blocks;
use super::layout::{signed, state};
use super::object::ObjectName;
use super::robust::LOOK_AGAIN;
use super::slots;
use crate::sys::identity::MarkedThread;
use crate::sys::robust::OWNER_DIED;
use crate::sys::word::{Acquire, Relaxed, Release};
use crate::sys::{fork, identity};
use crate::{Deadline, Error, Result};
use std::os::fd::AsFd;

/// The process that is being recovered.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Gone {
    /// Its slot.
    pub(crate) slot: u32,
    /// The slot's generation then.
    pub(crate) generation: u32,
    /// It left normally: what it held stays held.
    pub(crate) left: bool,
}

/// What recovery does to each object of a kind. The layers above give these to the arena, since they know the
/// objects and recovery lies below them.
#[derive(Debug)]
pub(crate) struct Recovery {
    /// One of [`layout::kind`](super::layout::kind).
    pub(crate) kind: u32,
    /// Repairs what the process left half done in the object at that offset. Safe to do twice. With `locks` it may be
    /// `Interrupted`, when a process is stopped in the middle of what must come first: then it is done again later.
    pub(crate) repair: fn(&Member, u64, Gone) -> Result<()>,
    /// Wakes whoever sleeps on it, for good.
    pub(crate) wake: fn(&Member, u64) -> Result<()>,
    /// It takes locks: it is called without the allocator's, so only for objects that the process held, since others
    /// may go meanwhile.
    pub(crate) locks: bool,
    /// Calls the visitor with each object that unread messages in the object at that offset name, and gives the number
    /// of messages; `None`: there are never any in it. Under the allocator's lock, so that no run is freed meanwhile.
    pub(crate) names: Option<Names>,
}

/// What [`Recovery::names`] does.
pub(crate) type Names = fn(&Member, u64, &mut dyn FnMut(ObjectName) -> Result<()>) -> Result<u64>;

/// Recovers every slot whose process is gone, as far as nobody is stopped in the middle of the same.
pub(crate) fn reap(member: &Member) -> Result<()> {
    for number in 1..member.header()?.slots_used.load(Acquire) {
        if number != member.slot()
            && is_gone(member, number)?
            && !recover(member, number, Deadline::after(LOOK_AGAIN))?
        {
            break;
        }
    }
    Ok(())
}

/// Whether the process of a slot is gone; if none has taken it over yet, whether none will.
///
/// Two loads as long as the kernel has not marked the slot's life word.
pub(crate) fn is_gone(member: &Member, number: u32) -> Result<bool> {
    let slot = member.slot_at(number)?;
    match slot.state.load(Acquire) {
        state::FREE => Ok(false),
        state::DEAD => Ok(true),
        state::RESERVED => {
            let parent = slot.parent.load(Relaxed);
            if parent == number {
                // Claimed by a process for itself: it takes it over in a moment.
                let (pid, origin) = slot.process();
                return Ok(identity::is_gone(pid, origin, None));
            }
            let on = slot.signed.load(Relaxed);
            if on != signed::NOT {
                // The child lives or doesn't, whatever its parent does. It may have settled since the look.
                let has_sign = fork::has_sign(member.windows().file(), slots::place(number));
                let waits = !has_sign && slot.state.load(Acquire) == state::RESERVED;
                if on == signed::FORKED || !waits {
                    return Ok(waits);
                }
            }
            // A parent has a place of its own; without it, it's gone. No reservation is asked for its own parent, so
            // flipped bits make no circle.
            let lives = [state::LIVE, state::LEFT];
            let keeper = member.slot_at(parent)?;
            if !lives.contains(&keeper.state.load(Acquire)) || is_gone(member, parent)? {
                return Ok(true);
            }
            // The child says who it is before it takes the slot over.
            let (pid, origin) = slot.process();
            Ok(pid != keeper.pid.load(Relaxed) && identity::is_gone(pid, origin, None))
        }
        _ => {
            let thread = slot.thread.load(Relaxed);
            let word = slot.life.word.load(Acquire);
            let marked = word & OWNER_DIED != 0;
            // Without a list the word tells nothing, and the system is asked each time.
            let listed = slot.life.is_linked();
            let (pid, origin) = slot.process();
            let file = member.windows().file().as_fd();
            let marked = marked.then_some(MarkedThread { tid: thread, file });
            Ok((marked.is_some() || !listed) && identity::is_gone(pid, origin, marked))
        }
    }
}

/// Gives back what the process of a slot held, if it is gone, and frees the slot.
///
/// False when the deadline has passed first: a process that holds a lock of the arena's own is stopped. Then the slot
/// isn't free, and the next one goes on.
pub(crate) fn recover(member: &Member, number: u32, deadline: Deadline) -> Result<bool> {
    let header = member.header()?;
    let Some(_held) = member.registry(deadline)? else {
        return Ok(false);
    };
    // Another process may have recovered the slot since the caller looked, and a third one may live in it by now.
    if !is_gone(member, number)? {
        return Ok(true);
    }
    let slot = member.slot_at(number)?;
    let before = slot.state.load(Acquire);
    if before != state::LEFT {
        slot.state.store(state::DEAD, Release);
    }
    let gone = Gone {
        slot: number,
        generation: slot.generation.load(Relaxed),
        left: before == state::LEFT,
    };
    let mut held = Vec::new();
    {
        let Some(_allocator) = blocks::lock(member, deadline)? else {
            return Ok(false);
        };
        blocks::objects(member, |offset, object| {
            let kind = object.kind.load(Relaxed);
            let mut recoveries = member.recoveries().iter();
            match recoveries.find(|recovery| recovery.kind == kind) {
                Some(recovery) if !recovery.locks => (recovery.repair)(member, offset, gone)?,
                Some(recovery) if object.is_held_by(number)? => held.push((offset, recovery)),
                _ => {}
            }
            Ok(())
        })?;
    }
    for (offset, recovery) in held {
        match (recovery.repair)(member, offset, gone) {
            Err(Error::Interrupted) => return Ok(false),
            repaired => repaired?,
        }
    }
    for child in 1..header.slots_used.load(Acquire) {
        let slot = member.slot_at(child)?;
        let kept = child != number && slot.parent.load(Relaxed) == number;
        if !kept || slot.state.load(Relaxed) != state::RESERVED {
            continue;
        }
        match slot.signed.load(Relaxed) {
            // Nobody can start it any more.
            signed::NOT => {
                slot.state.replace(state::RESERVED, state::DEAD);
            }
            // It is there already, or isn't; nobody keeps its place for it any more.
            signed::ADOPTED => slot.signed.store(signed::FORKED, Relaxed),
            _ => {}
        }
    }
    if !blocks::give_back(member, number, deadline)? {
        return Ok(false);
    }
    // The life word stays marked until the slot is claimed again: a LEFT one would else look alive before it is FREE.
    slot.state.store(state::FREE, Release);
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::super::{Arena, object, slots};
    use super::*;

    #[test]
    fn a_slot_that_lives_again_is_left_alone() {
        let arena = Arena::found(&[]).unwrap();
        let member = &*arena.inner;
        // As one does who found the slot's last process gone, and then waited for another to recover it.
        assert!(recover(member, member.slot(), Deadline::NEVER).unwrap());
        let slot = member.slot_at(member.slot()).unwrap();
        assert_eq!(slot.state.load(Relaxed), state::LIVE);
    }

    #[test]
    fn places_that_name_each_other_as_parents_end_the_question() {
        let arena = Arena::found(&[]).unwrap();
        let member = &*arena.inner;
        for (number, parent) in [(5, 6), (6, 5)] {
            let slot = member.slot_at(number).unwrap();
            slot.parent.store(parent, Relaxed);
            slot.state.store(state::RESERVED, Relaxed);
        }
        assert!(is_gone(member, 5).unwrap());
    }

    #[test]
    fn locks_are_taken_only_in_what_the_dead_held() {
        static TOUCHED: std::sync::Mutex<Vec<u64>> = std::sync::Mutex::new(Vec::new());
        static RECOVERIES: [Recovery; 1] = [Recovery {
            kind: 77,
            repair: |_, offset, _| {
                TOUCHED.lock().unwrap().push(offset);
                Ok(())
            },
            wake: |_, _| Ok(()),
            locks: true,
            names: None,
        }];
        let arena = Arena::found(&RECOVERIES).unwrap();
        let member = &*arena.inner;
        let [held, _other] = [(); 2].map(|()| blocks::create(member, 77, 8).unwrap());
        let never = Deadline::NEVER;
        let (slot, generation) = slots::claim(member, member.slot(), None, never).unwrap();
        assert!(object::hold(member, held, slot, never).unwrap());
        slots::give_back(member, slot, generation).unwrap();
        assert_eq!(*TOUCHED.lock().unwrap(), [held.offset]);
    }
}
