//! A run of zeros that an object takes when what it has of its own is used up.
//!
//! The object names it before it is linked to the object: recovery links what is named, so no death leaves it to nobody.

use crate::shm::arena::Member;
use crate::shm::blocks;
use crate::shm::recovery::Gone;
use crate::shm::robust::in_passing;
use crate::sys::word::{Acquire, Cell, Relaxed};
use crate::{Error, Result};

/// Takes a run of so many bytes for the object at an offset, and names it in `more`, unless another process does.
///
/// # Errors
/// `Os` or `Exhausted` when there is no memory; `Interrupted` when the allocator's lock can't be had soon.
#[cold]
pub(super) fn add(member: &Member, object: u64, more: &Cell, bytes: u64) -> Result<()> {
    let run = blocks::take_run(member, bytes, in_passing())?.ok_or(Error::Interrupted)?;
    for at in (run..run + bytes).step_by(8) {
        member.at::<Cell>(at)?.store(0, Relaxed);
    }
    if more.replace(0, run) {
        return blocks::link(member, run, object);
    }
    blocks::free_run(member, run)
}

/// Links a run that a process has named for the object, and not linked, before it died.
pub(super) fn adopt(member: &Member, object: u64, more: &Cell, gone: Gone) -> Result<()> {
    let run = more.load(Acquire);
    if run != 0 {
        blocks::adopt(member, run, gone.slot, object)?;
    }
    Ok(())
}
