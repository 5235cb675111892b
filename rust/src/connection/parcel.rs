//! Objects that go through a pipe, whose bytes nobody can look into.
//!
//! What a message names is put into a queue of its own, the parcel, and the pipe carries the parcel's name: the queue's one
//! message holds the objects, as any message in a queue does, until whoever receives the name has got it. A parcel that
//! nobody ever receives lives until the tree ends.
//!
//! | offset | size | a typed message |
//! |---|---|---|
//! | 0 | 1 | 0: it names nothing, and the value follows. 1: the parcel's name is first |
//! | 1 | 16 | behind 1: offset and serial number, little-endian |
//! | 1 or 17 | | the value, postcard's format |

use crate::error::{Error, ErrorKind, Result, retry};
use crate::tree::arena;
use procession_core::{Carried, Deadline, Error as Core, ObjectName, Queue};

/// What a message begins with that names nothing.
pub(super) const PLAIN: &[u8] = &[0];
const WITH_PARCEL: u8 = 1;
const NAME_BYTES: usize = 17;

/// What a message names, on its way.
#[derive(Debug)]
pub(super) struct Parcel(Queue);

impl Parcel {
    pub(super) fn pack(names: &Carried) -> Result<Self> {
        let arena = arena()?;
        let packed = retry(|| {
            let queue = Queue::new(arena, None)?;
            queue.put_naming(0, &[], names, Deadline::NEVER)?;
            queue.escape()?;
            Ok(Self(queue))
        });
        packed.map_err(|error| Error::at("send what a message names", error))
    }

    /// What a message begins with that has it.
    pub(super) fn head(&self) -> [u8; NAME_BYTES] {
        let ObjectName { offset, serial } = self.0.name();
        let mut head = [WITH_PARCEL; NAME_BYTES];
        head[1..9].copy_from_slice(&offset.to_le_bytes());
        head[9..].copy_from_slice(&serial.to_le_bytes());
        head
    }

    /// The message wasn't sent: nobody has the name.
    pub(super) fn unsent(self) {
        // If it can't be told, the parcel lives on.
        let _ = self.0.recapture();
    }
}

/// What a message names, which is held until that is dropped; and its value's bytes.
pub(super) fn open(message: &[u8], in_tree: bool) -> Result<(Carried, &[u8])> {
    match message.split_first() {
        Some((0, value)) => Ok((Carried::new(), value)),
        Some((&WITH_PARCEL, rest)) if in_tree => {
            let numbers = rest.split_first_chunk().and_then(|(offset, rest)| {
                let (serial, value) = rest.split_first_chunk()?;
                Some((offset, serial, value))
            });
            let (offset, serial, value) = numbers.ok_or_else(malformed)?;
            let (offset, serial) = (u64::from_le_bytes(*offset), u64::from_le_bytes(*serial));
            unpack(ObjectName { offset, serial }).map(|names| (names, value))
        }
        _ => Err(malformed()),
    }
}

fn unpack(name: ObjectName) -> Result<Carried> {
    let arena = arena()?;
    let message = retry(|| {
        let queue = Queue::open(arena, name)?;
        let message = queue.get(Deadline::now())?;
        queue.recapture()?;
        Ok(message)
    });
    match message {
        Ok(Some(message)) => Ok(message.carried),
        Ok(None) | Err(Core::Closed { .. }) => Err(Error::new(
            ErrorKind::Closed,
            "receive a message: what it names was received before",
        )),
        Err(error) => Err(Error::at("receive what a message names", error)),
    }
}

fn malformed() -> Error {
    Error::new(
        ErrorKind::Malformed,
        "receive a message: it doesn't begin as a value's does: the other end sends bytes, or has another type",
    )
}
