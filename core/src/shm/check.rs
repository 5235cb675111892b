//! The invariants of an arena at rest, as one function: what tests ask after every death.

use super::arena::Arena;
use super::blocks;
use super::layout::{PAGE, state};
use super::pages::Kind;
use super::trace;
use crate::sys::mapping;
use crate::sys::word::{Acquire, Relaxed};
use crate::{Error, Result};
use std::collections::HashSet;

/// What an arena holds at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Census {
    /// Processes that are members.
    pub processes: u64,
    /// Objects of any kind.
    pub objects: u64,
    /// Bytes of runs that a process owns, on their way to or from an object.
    pub owned_bytes: u64,
    /// Bytes of runs that belong to objects.
    pub linked_bytes: u64,
    /// Free bytes that have memory.
    pub warm_bytes: u64,
    /// Bytes of the arena's file that have memory.
    pub allocated_bytes: u64,
}

impl Arena {
    /// Counts what the arena holds, and checks that it doesn't contradict itself: every page belongs to one run,
    /// every linked run to a living object, every object to a member or to a message that can still be got. What became
    /// garbage with a message is freed first.
    ///
    /// Takes the allocator's lock, and time in proportion to the number of runs and objects.
    ///
    /// # Errors
    /// `Broken` with what contradicts what; `Interrupted` when a signal handler ran while it waited.
    pub fn census(&self) -> Result<Census> {
        let member = &*self.inner;
        member.sound()?;
        let mut census = Census::default();
        let mut held = blocks::lock_untimed(member)?;
        if trace::is_noted(member)? {
            let swept = trace::sweep(member);
            blocks::whole(&mut held, swept)?;
        }
        let mut living = HashSet::new();
        blocks::objects(member, |offset, object| {
            living.insert(offset);
            if object.is_wanted() || object.sent.load(Acquire) != 0 {
                Ok(())
            } else {
                Err(Error::Broken {
                    what: "an object that nobody holds",
                })
            }
        })?;
        if trace::has_garbage(member)? {
            return Err(Error::Broken {
                what: "an object that nobody holds and no message names",
            });
        }
        census.objects = living.len() as u64;
        member.runs(|_, entry| {
            let bytes = entry.pages * PAGE;
            match entry.kind {
                Kind::Used => census.owned_bytes += bytes,
                Kind::Warm => census.warm_bytes += bytes,
                Kind::Linked | Kind::Leaving
                    if !living.contains(&(entry.owner * blocks::SMALLEST)) =>
                {
                    return Err(Error::Broken {
                        what: "a run whose object is gone",
                    });
                }
                Kind::Linked | Kind::Leaving => census.linked_bytes += bytes,
                Kind::Cold | Kind::Slab | Kind::Reserved => {}
            }
            Ok(None::<()>)
        })?;
        for number in 1..member.header()?.slots_used.load(Relaxed) {
            let state = member.slot_at(number)?.state.load(Relaxed);
            census.processes += u64::from(state == state::LIVE || state == state::LEFT);
        }
        census.allocated_bytes = mapping::extent(member.windows().file())?.allocated;
        Ok(census)
    }
}
