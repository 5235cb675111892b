//! What a typed message begins with: whether it names objects, and where those are.
//!
//! | offset | size | a typed message |
//! |---|---|---|
//! | 0 | 1 | 0: it names nothing, and the value follows. 1: the parcel's name is first |
//! | 1 | 16 | behind 1: offset and serial number, little-endian |
//! | 1 or 17 | | the value, postcard's format |

use crate::error::{Error, ErrorKind, Result, retry};
use crate::tree::arena;
use procession_core::{Carried, ObjectName, Parcel};

/// What a message begins with that names nothing.
pub(super) const PLAIN: &[u8] = &[0];
const WITH_PARCEL: u8 = 1;
const NAME_BYTES: usize = 17;

/// What a message names, on its way.
pub(super) fn pack(names: &Carried) -> Result<Parcel> {
    let arena = arena()?;
    retry(|| Parcel::pack(arena, names))
        .map_err(|error| Error::at("send what a message names", error))
}

/// What a message begins with that has a parcel.
pub(super) fn head(parcel: &Parcel) -> [u8; NAME_BYTES] {
    let ObjectName { offset, serial } = parcel.name();
    let mut head = [WITH_PARCEL; NAME_BYTES];
    head[1..9].copy_from_slice(&offset.to_le_bytes());
    head[9..].copy_from_slice(&serial.to_le_bytes());
    head
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
    let opened = retry(|| Parcel::open(arena, name));
    let opened = opened.map_err(|error| Error::at("receive what a message names", error))?;
    opened.ok_or_else(|| {
        let text = "receive a message: what it names was received before";
        Error::new(ErrorKind::Closed, text)
    })
}

fn malformed() -> Error {
    Error::new(
        ErrorKind::Malformed,
        "receive a message: it doesn't begin as a value's does: the other end sends bytes, or has another type",
    )
}
