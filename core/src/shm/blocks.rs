//! Objects and runs: the upper half of the allocator, and the only door to it.
//!
//! Objects lie in slabs: aligned runs of 64 KiB, cut into blocks of one size class, with a bit for each block in the
//! first one. The bit is the truth: making an object ends with setting it, freeing one with clearing it. Runs of an
//! object are found by their entries, which name it, so freeing an object can be begun again after a death at any
//! store. Every function here takes the allocator's lock, and whoever takes it after a death repairs first.

use super::arena::Member;
use super::layout::{
    CLASSES, Header, OBJECT_HEADER, ObjectHeader, PAGE, SLAB_PAGES, index, kind, window_bytes,
    window_start,
};
use super::memory;
use super::object::{ObjectName, References};
use super::pages::{self, Entry, Kind};
use super::robust::{Held, Limit, in_passing, turn};
use super::trace;
use super::view::shared;
use crate::sys::word::{Acquire, Cell, Relaxed, Release};
use crate::{Deadline, Error, Result};

/// Bytes of the smallest block.
pub(super) const SMALLEST: u64 = 256;
const SLAB_BYTES: u64 = SLAB_PAGES * PAGE;
const MAP_CELLS: usize = 4;
const _: () = assert!(MAP_CELLS as u64 * 64 * SMALLEST == SLAB_BYTES);

shared! {
    /// The first block of a slab: which of its blocks are objects, itself not counted.
    Slab: 32 {
        taken: [Cell; MAP_CELLS],
    }
}

/// The allocator's lock, with everything repaired that its last holder left half done, and given back what this
/// process couldn't earlier; `None` once the limit is reached.
pub(super) fn lock(member: &Member, limit: impl Into<Limit>) -> Result<Option<Held<'_>>> {
    let Some(mut held) = lock_repaired(member, limit.into())? else {
        return Ok(None);
    };
    if member.owes()
        && let Some((_through, mut references)) = member.try_references()
    {
        let paid = pay(member, &mut references);
        whole(&mut held, paid)?;
    }
    Ok(Some(held))
}

/// As [`lock`], for a call without a timeout.
pub(super) fn lock_untimed(member: &Member) -> Result<Held<'_>> {
    lock(member, turn())?.ok_or(Error::Interrupted)
}

fn lock_repaired(member: &Member, limit: Limit) -> Result<Option<Held<'_>>> {
    let header = member.header()?;
    let Some(mut held) = header.allocator.lock(limit)? else {
        return Ok(None);
    };
    if held.recovered {
        pages::normalize(member)?;
        let destroying = header.destroying.load(Relaxed);
        if destroying != 0 {
            finish(member, destroying)?;
        }
        trace::note_lost(member)?;
        held.recovered = false;
    }
    Ok(Some(held))
}

/// What failed half way is for the next holder to repair.
pub(super) fn whole<T>(held: &mut Held<'_>, done: Result<T>) -> Result<T> {
    held.recovered = done.is_err();
    done
}

/// Gives back what this process no longer refers to: now, if the allocator's lock can be had soon, else later.
pub(super) fn give_back_mine(member: &Member, references: &mut References) -> Result<()> {
    // Who has waited in vain before doesn't again: a process that drops a thousand objects is not to wait for each.
    let patience = if member.owes() {
        Deadline::now().into()
    } else {
        in_passing()
    };
    match lock_repaired(member, patience) {
        Ok(Some(mut held)) => {
            let paid = pay(member, references);
            whole(&mut held, paid)
        }
        Ok(None) | Err(Error::Interrupted) => {
            member.owe(true);
            Ok(())
        }
        Err(error) => Err(error),
    }
}

/// Gives back all that this process owes. Under the allocator's lock.
fn pay(member: &Member, references: &mut References) -> Result<()> {
    while let Some(run) = references.runs.last() {
        free_mine(member, *run)?;
        references.runs.pop();
    }
    while let Some(name) = references.dropped.last().copied() {
        // It may have been opened again meanwhile.
        if references.objects.get(&name.offset) == Some(&(name.serial, 0)) {
            match let_go(member, name) {
                // A forked child may refer to what is gone.
                Ok(()) | Err(Error::Closed { .. } | Error::Malformed { .. }) => {}
                Err(error) => return Err(error),
            }
            references.objects.remove(&name.offset);
        }
        references.dropped.pop();
    }
    member.owe(false);
    Ok(())
}

/// Bytes of the blocks of a class, as an entry has it.
fn block_bytes(class: u64) -> u64 {
    SMALLEST << class.min(CLASSES as u64 - 1)
}

fn class_of(bytes: u64) -> Result<usize> {
    (0..CLASSES)
        .find(|class| SMALLEST << class >= bytes)
        .ok_or(Error::TooLong {
            length: bytes,
            limit: SMALLEST << (CLASSES - 1),
        })
}

/// Makes an object of `kind` with `bytes` of state, all zero, held by this process.
pub(super) fn create(member: &Member, kind: u32, bytes: u64) -> Result<ObjectName> {
    let class = class_of(OBJECT_HEADER + bytes)?;
    let (cell, bit) = super::object::place(member.place()?)?;
    let _held = lock_untimed(member)?;
    let header = member.header()?;
    let (slab, block) = room(member, header, class)?;
    let offset = slab + block * (SMALLEST << class);
    let serial = header.serial.load(Relaxed).wrapping_add(1);
    header.serial.store(serial, Relaxed);
    let object: &ObjectHeader = member.at(offset)?;
    object.kind.store(kind, Relaxed);
    object.escaped.store(0, Relaxed);
    object.runs.store(0, Relaxed);
    object.sent.store(0, Relaxed);
    object.carries.store(0, Relaxed);
    object.serial.store(serial, Relaxed);
    for cell in &object.holders {
        cell.store(0, Relaxed);
    }
    object.holders[cell].store(bit, Relaxed);
    for at in (offset + OBJECT_HEADER..offset + (SMALLEST << class)).step_by(8) {
        member.at::<Cell>(at)?.store(0, Relaxed);
    }
    let map: &Slab = member.at(slab)?;
    map.taken[index(block / 64)].set_bits(1 << (block % 64));
    header.slab_hints[class].store(slab, Relaxed);
    Ok(ObjectName { offset, serial })
}

/// A slab of the class with a free block, and that block's number.
fn room(member: &Member, header: &Header, class: usize) -> Result<(u64, u64)> {
    let hint = header.slab_hints[class].load(Relaxed);
    let slab = member.run_at(hint / PAGE);
    if hint != 0
        && slab.is_some_and(|entry| entry.kind == Kind::Slab && entry.owner == class as u64)
        && let Some(block) = free_block(member, hint, class)?
    {
        return Ok((hint, block));
    }
    let found = member.runs(|page, entry| {
        if entry.kind != Kind::Slab || entry.owner != class as u64 {
            return Ok(None);
        }
        Ok(free_block(member, page * PAGE, class)?.map(|block| (page * PAGE, block)))
    })?;
    if let Some(place) = found {
        return Ok(place);
    }
    let page = pages::take(member, SLAB_PAGES, SLAB_PAGES, member.slot())?;
    let slab: &Slab = member.at(page * PAGE)?;
    for cell in &slab.taken {
        cell.store(0, Relaxed);
    }
    let entry = Entry {
        kind: Kind::Slab,
        pages: SLAB_PAGES,
        owner: class as u64,
    };
    member.entry(page)?.store(entry.bits(), Release);
    Ok((page * PAGE, 1))
}

fn free_block(member: &Member, slab: u64, class: usize) -> Result<Option<u64>> {
    let map: &Slab = member.at(slab)?;
    let blocks = SLAB_BYTES / (SMALLEST << class);
    for (index, cell) in (0..).zip(&map.taken) {
        // The first block of all is the map itself.
        let taken = cell.load(Relaxed) | u64::from(index == 0);
        let block = index * 64 + u64::from(taken.trailing_ones());
        if taken != u64::MAX && block < blocks {
            return Ok(Some(block));
        }
    }
    Ok(None)
}

/// The object of that name.
///
/// # Errors
/// `Closed` when it is gone, `Malformed` when no object ever had that name.
pub(super) fn named(member: &Member, name: ObjectName) -> Result<&ObjectHeader> {
    let slab = name.offset - name.offset % SLAB_BYTES;
    let entry = member
        .run_at(slab / PAGE)
        .filter(|entry| entry.kind == Kind::Slab);
    let Some(entry) = entry else {
        return Err(Error::Closed { what: "object" });
    };
    let bytes = block_bytes(entry.owner);
    let block = name.offset % SLAB_BYTES / bytes;
    if !name.offset.is_multiple_of(bytes) || block == 0 {
        return Err(Error::Malformed {
            what: "name of an object",
            at: 0,
        });
    }
    let map: &Slab = member.at(slab)?;
    let taken = map.taken[index(block / 64)].load(Relaxed) >> (block % 64) & 1 == 1;
    let object: &ObjectHeader = member.at(name.offset)?;
    if !taken || object.serial.load(Relaxed) != name.serial {
        return Err(Error::Closed { what: "object" });
    }
    Ok(object)
}

/// Clears this process' bit in the object of that name, and frees the object if that was the last one and no message can
/// name it. Under the allocator's lock.
pub(super) fn let_go(member: &Member, name: ObjectName) -> Result<()> {
    if member.slot() == 0 {
        // A forked child without a place: it holds nothing.
        return Ok(());
    }
    let object = named(member, name)?;
    object.forget(member.slot())?;
    if object.is_wanted() {
        return Ok(());
    }
    if object.sent.load(Acquire) != 0 {
        trace::note(member, name.offset)?;
    } else {
        end(member, name.offset)?;
    }
    trace::sweep_when_due(member)
}

/// Frees an object that nobody holds and no message names, and notes what its own messages name. Under the allocator's
/// lock.
fn end(member: &Member, offset: u64) -> Result<()> {
    trace::note_named(member, offset)?;
    destroy(member, offset)
}

/// Frees an object with its runs. Under the allocator's lock.
pub(super) fn destroy(member: &Member, offset: u64) -> Result<()> {
    member.header()?.destroying.store(offset, Release);
    finish(member, offset)
}

/// Frees what is left of the object that is being destroyed.
fn finish(member: &Member, offset: u64) -> Result<()> {
    runs_of(member, offset, |page, _| pages::free(member, page))?;
    let slab = offset - offset % SLAB_BYTES;
    let entry = member.run(slab / PAGE)?;
    if entry.kind != Kind::Slab {
        return Err(Error::Broken {
            what: "the offset of an object",
        });
    }
    let block = offset % SLAB_BYTES / block_bytes(entry.owner);
    let map: &Slab = member.at(slab)?;
    map.taken[index(block / 64)].clear_bits(1 << (block % 64));
    let header = member.header()?;
    header.destroying.store(0, Release);
    let empty = map.taken.iter().all(|cell| cell.load(Relaxed) == 0);
    let class = index(entry.owner).min(CLASSES - 1);
    if empty && header.slab_hints[class].load(Relaxed) != slab {
        // The next one of this class finds another slab, or makes one.
        pages::free(member, slab / PAGE)?;
    }
    Ok(())
}

/// Calls `visit` with the first page of each run of the object at `offset`, and how many pages it has. Under the
/// allocator's lock.
pub(super) fn runs_of(
    member: &Member,
    offset: u64,
    mut visit: impl FnMut(u64, u64) -> Result<()>,
) -> Result<()> {
    let object: &ObjectHeader = member.at(offset)?;
    if object.kind.load(Relaxed) == kind::MEMORY {
        // It has one run and knows it, since a program may have thousands of these.
        let run = memory::run_of(member, offset)?;
        if is_linked(member, run, offset) {
            visit(run / PAGE, member.run(run / PAGE)?.pages)?;
        }
    } else if object.runs.load(Acquire) != 0 {
        member.runs(|page, entry| {
            if entry.is_of(offset) {
                visit(page, entry.pages)?;
            }
            Ok(None::<()>)
        })?;
    }
    Ok(())
}

/// Takes a run of whole pages for `bytes`, owned by this process until it is linked to an object; `None` once the
/// limit is reached.
pub(crate) fn take_run(
    member: &Member,
    bytes: u64,
    limit: impl Into<Limit>,
) -> Result<Option<u64>> {
    let place = member.place()?;
    let Some(_held) = lock(member, limit)? else {
        return Ok(None);
    };
    let pages = bytes.div_ceil(PAGE).max(1);
    Ok(Some(pages::take(member, pages, 1, place)? * PAGE))
}

/// Frees a run of this process, now or, if the allocator's lock can't be had, with the next that is taken or freed.
pub(crate) fn free_run(member: &Member, offset: u64) -> Result<()> {
    if !member.owes() {
        match lock_repaired(member, in_passing()) {
            Ok(Some(_held)) => return free_mine(member, offset),
            Ok(None) | Err(Error::Interrupted) => {}
            Err(error) => return Err(error),
        }
    }
    let (_through, mut references) = member.references();
    references.runs.push(offset);
    give_back_mine(member, &mut references)
}

/// Frees a run if this process owns it: the child of a fork has a copy of whatever refers to its parent's. Under the
/// allocator's lock.
fn free_mine(member: &Member, offset: u64) -> Result<()> {
    let entry = member.run(offset / PAGE)?;
    if entry == Entry::used(entry.pages, member.slot()) {
        pages::free(member, offset / PAGE)?;
    }
    Ok(())
}

/// Hands a run of this process over to an object. One compare-exchange, under a lock of the object's.
pub(crate) fn link(member: &Member, run: u64, object: u64) -> Result<()> {
    if adopt(member, run, member.slot(), object)? {
        Ok(())
    } else {
        Err(Error::Broken {
            what: "the owner of a run",
        })
    }
}

/// Hands a run of the process in `slot` over to an object; false when it isn't that process'.
pub(crate) fn adopt(member: &Member, run: u64, slot: u32, object: u64) -> Result<bool> {
    let runs = &member.at::<ObjectHeader>(object)?.runs;
    if runs.load(Relaxed) == 0 {
        // Before the run: whoever frees the object must look for it.
        runs.store(1, Release);
    }
    let theirs = |pages| Entry::used(pages, slot);
    change(member, run, theirs, |pages| Entry::linked(pages, object))
}

/// Takes back a run that was handed over to an object and never seen there; false when it isn't the object's. Under the
/// lock of the object's under which runs are handed over to it: a run that was freed since can't have come back.
pub(crate) fn unlink(member: &Member, run: u64, object: u64) -> Result<bool> {
    let mine = |pages| Entry::used(pages, member.slot());
    change(member, run, |pages| Entry::linked(pages, object), mine)
}

/// Says that a run of an object is on its way out; false when it isn't the object's. Under the lock of the object's under
/// which runs are taken out of it: what is on its way out is the same run until that lock's holder, or the one who
/// repairs after it, has taken it over or kept it, whoever else dies and is recovered meanwhile.
pub(crate) fn leave(member: &Member, run: u64, object: u64) -> Result<bool> {
    let leaving = |pages| Entry::leaving(pages, object);
    change(member, run, |pages| Entry::linked(pages, object), leaving)
}

/// Undoes [`leave`]; false when the run isn't on its way out. Under the same lock.
pub(crate) fn keep(member: &Member, run: u64, object: u64) -> Result<bool> {
    let linked = |pages| Entry::linked(pages, object);
    change(member, run, |pages| Entry::leaving(pages, object), linked)
}

/// Takes over a run that is on its way out; false when it isn't. Under the same lock.
pub(crate) fn take_over(member: &Member, run: u64, object: u64) -> Result<bool> {
    let mine = |pages| Entry::used(pages, member.slot());
    change(member, run, |pages| Entry::leaving(pages, object), mine)
}

/// Changes the entry of a run; false when it isn't what it should be. One compare-exchange.
fn change(
    member: &Member,
    run: u64,
    from: impl Fn(u64) -> Entry,
    to: impl Fn(u64) -> Entry,
) -> Result<bool> {
    let entry = member.entry(run / PAGE)?;
    let Some(Entry { pages, .. }) = Entry::from_bits(entry.load(Relaxed)) else {
        return Ok(false);
    };
    Ok(entry.replace(from(pages).bits(), to(pages).bits()))
}

/// Whether a run begins at `run` that is linked to the object at `object`.
pub(super) fn is_linked(member: &Member, run: u64, object: u64) -> bool {
    let entry = member.run(run / PAGE);
    entry.is_ok_and(|entry| entry == Entry::linked(entry.pages, object))
}

/// Whether the run is an object's, be it on its way out.
pub(crate) fn is_of(member: &Member, run: u64, object: u64) -> Result<bool> {
    let entry = Entry::from_bits(member.entry(run / PAGE)?.load(Acquire));
    Ok(run.is_multiple_of(PAGE) && entry.is_some_and(|entry| entry.is_of(object)))
}

/// Bytes of the run that begins at `offset`.
pub(crate) fn run_bytes(member: &Member, offset: u64) -> Result<u64> {
    Ok(member.run(offset / PAGE)?.pages * PAGE)
}

/// Calls `visit` with the offset of each object, and gives the number of runs that it came by. Under the allocator's
/// lock, so `visit` must not take it again.
pub(super) fn objects(
    member: &Member,
    mut visit: impl FnMut(u64, &ObjectHeader) -> Result<()>,
) -> Result<u64> {
    let mut runs = 0;
    member.runs(|page, entry| {
        runs += 1;
        if entry.kind != Kind::Slab {
            return Ok(None::<()>);
        }
        slab_objects(member, page * PAGE, entry, &mut visit)?;
        Ok(None)
    })?;
    Ok(runs)
}

/// Calls `visit` with the offset of each object that can be found in an arena that contradicts itself: looks wherever a
/// slab may begin, and no further than the file goes, whatever the tables say of the rest.
pub(super) fn find_objects(member: &Member, mut visit: impl FnMut(u64, &ObjectHeader)) {
    for window in 0..member.windows().existing().unwrap_or(0) {
        let start = window_start(window);
        for slab in (start..start + window_bytes(window)).step_by(index(SLAB_BYTES)) {
            let entry = member.run_at(slab / PAGE);
            if let Some(entry) = entry.filter(|entry| entry.kind == Kind::Slab) {
                // A slab lies in one window, and what is found in it too.
                let _ = slab_objects(member, slab, entry, |offset, object| {
                    visit(offset, object);
                    Ok(())
                });
            }
        }
    }
}

fn slab_objects(
    member: &Member,
    slab: u64,
    entry: Entry,
    mut visit: impl FnMut(u64, &ObjectHeader) -> Result<()>,
) -> Result<()> {
    let map: &Slab = member.at(slab)?;
    let bytes = block_bytes(entry.owner);
    for block in 1..SLAB_BYTES / bytes {
        if map.taken[index(block / 64)].load(Relaxed) >> (block % 64) & 1 == 1 {
            let offset = slab + block * bytes;
            visit(offset, member.at(offset)?)?;
        }
    }
    Ok(())
}

/// Frees what no living process holds any more, of a process that is gone: its runs, and its bit in every object.
/// False when the deadline has passed first.
pub(super) fn give_back(member: &Member, slot: u32, deadline: Deadline) -> Result<bool> {
    let Some(mut held) = lock(member, deadline)? else {
        return Ok(false);
    };
    let given = give_back_inside(member, slot);
    whole(&mut held, given)?;
    Ok(true)
}

fn give_back_inside(member: &Member, slot: u32) -> Result<()> {
    let mut orphans = Vec::new();
    objects(member, |offset, object| {
        let held = object.forget(slot)?;
        if object.is_wanted() {
            return Ok(());
        }
        if object.sent.load(Acquire) == 0 {
            // Whoever held it: one who died letting go of it may have cleared the last bit and freed nothing.
            orphans.push(offset);
        } else if held {
            trace::note(member, offset)?;
        }
        Ok(())
    })?;
    orphans
        .into_iter()
        .try_for_each(|offset| end(member, offset))?;
    trace::sweep_after_a_process(member)?;
    member.runs(|page, entry| {
        if entry == Entry::used(entry.pages, slot) {
            pages::free(member, page)?;
        }
        Ok(None::<()>)
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shm::Arena;
    use crate::{Lock, Put, Queue};
    use std::time::Duration;

    #[test]
    fn nobody_waits_for_who_is_stopped_in_the_allocator() {
        let arena = Arena::create().unwrap();
        let before = arena.census().unwrap();
        let queue = Queue::new(&arena, None).unwrap();
        let large = [7; 50_000];
        queue.put(1, &[&large], Deadline::NEVER).unwrap();
        let (lock, other) = (Lock::new(&arena).unwrap(), Lock::new(&arena).unwrap());
        let name = other.name();
        // As good as another process that is stopped: it doesn't go on before the calls below have returned.
        let held = lock_untimed(&arena.inner).unwrap();
        std::thread::scope(|scope| {
            let calls = scope.spawn(|| {
                let timeout = Deadline::after(Duration::from_millis(30));
                assert_eq!(queue.put(2, &[&large], timeout), Ok(Put::Full));
                let got = queue.get_into(&mut Vec::new(), timeout).unwrap().unwrap();
                assert_eq!((got.tag, got.extent.as_ref().unwrap().len()), (1, 50_000));
                drop((got, lock, other));
                arena.reap().unwrap();
                assert_eq!(Lock::new(&arena).unwrap_err(), Error::Interrupted);
                // Not gone yet, so it can be held again.
                Lock::open(&arena, name).unwrap()
            });
            let other = calls.join().unwrap();
            drop(held);
            assert!(arena.inner.owes());
            let after = arena.census().unwrap();
            assert_eq!((after.objects, after.owned_bytes), (2, 0));
            assert!(!arena.inner.owes() && !other.is_held().unwrap());
        });
        drop(queue);
        assert_eq!(arena.census().unwrap().objects, before.objects);
    }
}
