//! What a get gives: bytes in the caller's memory, or a run of the arena that is the caller's now.

use crate::shm::{Carried, Extent};

/// A message that was got.
#[derive(Debug)]
pub struct Message {
    /// The byte that it was put with.
    pub tag: u8,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// The objects that it names, held until it is dropped: whoever wants one opens it before.
    pub carried: Carried,
}

/// What a message got into a buffer left there.
#[derive(Debug)]
pub struct Taken {
    /// The byte that it was put with.
    pub tag: u8,
    /// The message's bytes, if it was too long for the buffer: more than 16 KiB. Else they are in the buffer.
    pub extent: Option<Extent>,
    /// The objects that it names, held until this is dropped: whoever wants one opens it before.
    pub carried: Carried,
}
