//! The names of objects in a message, which a trace can read and a getter takes up.
//!
//! ```text
//! bytes of a message with names, wherever they lie
//!   0     8    how many objects it names, n
//!   8     16n  offset and serial number of each
//!   8+16n      the message
//! ```

#[cfg(all(loom, test))]
mod orders;

use super::layout::{HEADER, QueueState, Record, SEGMENT};
use crate::shm::arena::Member;
use crate::shm::blocks;
use crate::shm::layout::{OBJECT_HEADER, PAGE, index};
use crate::shm::object::ObjectName;
use crate::sys::word::{Acquire, Cell, Relaxed};
use crate::{Error, Result};
use std::collections::HashSet;

/// Bytes of the count.
const COUNT: u64 = 8;
/// Bytes of a name.
const NAME: u64 = 16;

/// What a message that names those objects begins with.
pub(super) fn prefix(names: &[ObjectName]) -> Vec<u8> {
    let mut bytes = (names.len() as u64).to_le_bytes().to_vec();
    for name in names {
        bytes.extend(name.offset.to_le_bytes());
        bytes.extend(name.serial.to_le_bytes());
    }
    bytes
}

/// Calls `visit` with each object that the message names whose `length` bytes begin at `at`, names included; gives the
/// bytes that come before the message itself.
pub(super) fn read(
    member: &Member,
    at: u64,
    length: u64,
    visit: &mut dyn FnMut(ObjectName) -> Result<()>,
) -> Result<u64> {
    let room = length.checked_sub(COUNT).ok_or(BROKEN)?;
    let count = member.at::<Cell>(at)?.load(Relaxed);
    if count > room / NAME {
        return Err(BROKEN);
    }
    let end = COUNT + count * NAME;
    for name in (at + COUNT..at + end).step_by(index(NAME)) {
        visit(ObjectName {
            offset: member.at::<Cell>(name)?.load(Relaxed),
            serial: member.at::<Cell>(name + 8)?.load(Relaxed),
        })?;
    }
    Ok(end)
}

/// Calls `visit` with each object that unread messages of the queue name; gives the number of messages. Under the
/// allocator's lock, and none of the queue's: others may put and get meanwhile.
///
/// Where it begins there is a record, and behind each record another one, or nothing yet: they stay as they are until
/// their segment is freed, which needs the allocator's lock. Each segment and each run is visited once.
pub(super) fn visit(
    member: &Member,
    queue: u64,
    visit: &mut dyn FnMut(ObjectName) -> Result<()>,
) -> Result<u64> {
    let state: &QueueState = member.at(queue + OBJECT_HEADER)?;
    let mut visited = HashSet::new();
    let mut position = state.get.position.load(Acquire);
    // It may lie anywhere in its segment.
    let mut end = position.saturating_add(SEGMENT);
    let mut records = 0;
    loop {
        let record = Record::from_bits(member.at::<Cell>(position)?.load(Acquire))?;
        let body = position + HEADER;
        match record {
            Record::None => return Ok(records),
            Record::Jump { segment } => {
                let is_one = segment.is_multiple_of(PAGE)
                    && blocks::run_bytes(member, segment)? >= SEGMENT
                    && visited.insert(segment);
                if !is_one {
                    return Err(BROKEN);
                }
                (position, end) = (segment, segment + SEGMENT);
                continue;
            }
            Record::Inline {
                names: true,
                length,
                ..
            } => {
                read(member, body, length, visit)?;
            }
            Record::Extent { names: true, .. } => {
                let run = member.at::<Cell>(body)?.load(Relaxed);
                let length = member.at::<Cell>(body + 8)?.load(Relaxed);
                // One that isn't the queue's was taken meanwhile, by a getter that holds what the message names.
                if blocks::is_of(member, run, queue)? {
                    if length > blocks::run_bytes(member, run)? || !visited.insert(run) {
                        return Err(BROKEN);
                    }
                    read(member, run, length, visit)?;
                }
            }
            Record::Inline { .. } | Record::Extent { .. } => {}
        }
        records += 1;
        position += record.bytes();
        if position >= end {
            return Err(BROKEN);
        }
    }
}

const BROKEN: Error = Error::Broken {
    what: "the names in a message",
};
