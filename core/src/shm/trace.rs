//! Objects that nobody holds and that messages may name: which of them a message does name, and the end of the others.
//!
//! An object whose name was never sent goes with its last bit. One that was sent is *loose* without a bit: it lives on as
//! long as an unread message names it that can still be got, which is one in an object that is wanted, or that is itself
//! named by such a message. That is asked now and then, by a walk from what is wanted, under the allocator's lock.
//!
//! Others put and get meanwhile, and the walk takes none of their locks. It frees nothing that can be reached, because
//!
//! - *bits only come*: a bit is cleared under the allocator's lock only;
//! - *taken after held*: a getter sets its bit in what a message names before it moves past the message;
//! - *put while held*: a putter has a bit in what its message names, from before the message can be seen until after;
//! - *memory stays*: what was a message when the walk began is read as it was, since memory is freed under that lock too.
//!
//! After the walk each candidate that wasn't reached is looked at again, and one with a bit by now is walked from as well,
//! until a look at all of them finds no bit. Say that one of those left, X, is used after this look at it, and is the
//! first one of which that is true. Whoever set a bit in it got it from a message M in an object Q that it held. Q isn't
//! among those left, or it had been used before X; so Q was walked. If M was there then, X was reached. If M was taken
//! by then, X had a bit before the walk of Q ended (*taken after held*), and so at the last look (*bits only come*). If M
//! was put later, its putter's bit in X is older than M: from before the last look, which then saw it, or from after
//! it, so that X was used before by that putter. Each contradicts what was said.

use super::arena::Member;
use super::blocks;
use super::layout::ObjectHeader;
use super::object::ObjectName;
use crate::sys::word::{Acquire, Relaxed};
use crate::{Error, Result};
use std::collections::BTreeMap;

/// A page of what has become loose since the last trace pays for looks at so many things: garbage is a sixteenth of what
/// lives at most, and letting go of an object costs sixteen looks.
const SHARE: u64 = 16;
/// What is given back of a process counts as so many pages: starting and ending it took longer than the looks.
const PROCESS: u64 = 256;
/// More than any limit: the next one traces.
const SOON: u64 = u64::MAX >> 1;

/// What a trace found.
#[derive(Debug, Default)]
struct Traced {
    /// Offsets of objects that nobody can come to.
    garbage: Vec<u64>,
    /// Objects, runs and messages that it looked at.
    looks: u64,
}

/// Notes that the object at `offset` may have become garbage. Under the allocator's lock.
pub(super) fn note(member: &Member, offset: u64) -> Result<()> {
    let mut pages = 1;
    blocks::runs_of(member, offset, |_, more| {
        pages += more;
        Ok(())
    })?;
    add(member, pages)
}

/// Notes what may become garbage with the object at `offset`: all that unread messages in it name. Under the allocator's
/// lock.
pub(super) fn note_named(member: &Member, offset: u64) -> Result<()> {
    if !member.at::<ObjectHeader>(offset)?.carries() {
        return Ok(());
    }
    walk(
        member,
        offset,
        &mut |name| match blocks::named(member, name) {
            Ok(object) if object.is_wanted() => Ok(()),
            Ok(_) => note(member, name.offset),
            Err(Error::Closed { .. } | Error::Malformed { .. }) => Ok(()),
            Err(error) => Err(error),
        },
    )?;
    Ok(())
}

fn add(member: &Member, pages: u64) -> Result<()> {
    let loose = &member.header()?.loose;
    loose.store(loose.load(Relaxed).saturating_add(pages), Relaxed);
    Ok(())
}

/// Has the next one trace who may: a note may have been lost. Under the allocator's lock.
pub(super) fn note_lost(member: &Member) -> Result<()> {
    member.header()?.loose.store(SOON, Relaxed);
    Ok(())
}

/// Whether any object may have become garbage since the last trace.
pub(super) fn is_noted(member: &Member) -> Result<bool> {
    Ok(member.header()?.loose.load(Relaxed) != 0)
}

/// Frees garbage if there may be so much of it that a trace is worth its time. Under the allocator's lock.
pub(super) fn sweep_when_due(member: &Member) -> Result<()> {
    let header = member.header()?;
    if header.loose.load(Relaxed) < header.loose_limit.load(Relaxed).max(1) {
        return Ok(());
    }
    sweep(member)
}

/// As [`sweep_when_due`], by who gives back what a process held.
pub(super) fn sweep_after_a_process(member: &Member) -> Result<()> {
    if is_noted(member)? {
        add(member, PROCESS)?;
    }
    sweep_when_due(member)
}

/// Frees what nobody can come to any more. Under the allocator's lock.
pub(super) fn sweep(member: &Member) -> Result<()> {
    let traced = trace(member)?;
    for offset in traced.garbage {
        // All that its messages name, and nothing else does, is garbage as well.
        blocks::destroy(member, offset)?;
    }
    let header = member.header()?;
    header.loose_limit.store(traced.looks / SHARE, Relaxed);
    header.loose.store(0, Relaxed);
    Ok(())
}

/// Whether there is an object that nobody can come to. Under the allocator's lock.
pub(super) fn has_garbage(member: &Member) -> Result<bool> {
    Ok(!trace(member)?.garbage.is_empty())
}

fn trace(member: &Member) -> Result<Traced> {
    let mut looks = 0;
    // Offset and serial number of what wasn't reached so far. In an order, so that a simulation can be replayed.
    let mut candidates = BTreeMap::new();
    let mut carriers = Vec::new();
    let runs = blocks::objects(member, |offset, object| {
        looks += 1;
        if object.is_wanted() {
            carriers.extend(object.carries().then_some(offset));
        } else if object.sent.load(Acquire) != 0 {
            candidates.insert(offset, object.serial.load(Relaxed));
        }
        Ok(())
    })?;
    looks += runs;
    while !candidates.is_empty() {
        while let Some(carrier) = carriers.pop() {
            looks += walk(member, carrier, &mut |name| {
                if candidates.get(&name.offset) == Some(&name.serial) {
                    reach(member, name.offset, &mut candidates, &mut carriers)?;
                }
                Ok(())
            })?;
        }
        let mut held = Vec::new();
        for offset in candidates.keys() {
            if member.at::<ObjectHeader>(*offset)?.is_wanted() {
                held.push(*offset);
            }
        }
        if held.is_empty() {
            break;
        }
        for offset in held {
            reach(member, offset, &mut candidates, &mut carriers)?;
        }
    }
    let garbage = candidates.into_keys().collect();
    Ok(Traced { garbage, looks })
}

/// Somebody can come to the candidate at `offset`, and so to what it carries.
fn reach(
    member: &Member,
    offset: u64,
    candidates: &mut BTreeMap<u64, u64>,
    carriers: &mut Vec<u64>,
) -> Result<()> {
    candidates.remove(&offset);
    let object: &ObjectHeader = member.at(offset)?;
    carriers.extend(object.carries().then_some(offset));
    Ok(())
}

/// Calls `visit` with each object that unread messages in `carrier` name; gives the number of messages.
fn walk(
    member: &Member,
    carrier: u64,
    visit: &mut dyn FnMut(ObjectName) -> Result<()>,
) -> Result<u64> {
    let kind = member.at::<ObjectHeader>(carrier)?.kind.load(Relaxed);
    let mut recoveries = member.recoveries().iter();
    let recovery = recoveries.find(|recovery| recovery.kind == kind);
    match recovery.and_then(|recovery| recovery.names) {
        Some(names) => names(member, carrier, visit),
        None => Ok(0),
    }
}

impl ObjectHeader {
    /// Whether messages in it may name objects.
    fn carries(&self) -> bool {
        self.carries.load(Acquire) != 0
    }
}
