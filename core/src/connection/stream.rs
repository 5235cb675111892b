//! One message to or from a descriptor.

use super::Failure;
use crate::sync::patience::Patience;
use crate::sys::descriptor::readable;
use crate::sys::stream;
use crate::wire::{Decoder, Header};
use crate::{Deadline, Error};
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;

/// Sends one message, whose body is these pieces one after the other; false once the deadline has passed.
///
/// One `writev`, if the stream takes all of it. `sent` is how many bytes of the frame have gone, nought at first: after `false` or an
/// interruption the call is made again with it, and with the same pieces. As long as it is neither nought nor all of it, no
/// other message may be sent.
///
/// # Errors
/// `System`: `Os`, and `Interrupted` when a signal handler may have run.
///
/// Python: `Connection.send_bytes`.
pub fn send(
    to: BorrowedFd<'_>,
    pieces: &[&[u8]],
    sent: &mut u64,
    deadline: Deadline,
) -> Result<bool, Failure> {
    let length: u64 = pieces.iter().map(|piece| piece.len() as u64).sum();
    let header = Header::of(length);
    let frame = header.bytes().len() as u64 + length;
    while *sent < frame {
        let rest = rest(header.bytes(), pieces, *sent);
        match stream::write(to, &rest, deadline)? {
            Some(bytes) => *sent += bytes as u64,
            None => return Ok(false),
        }
        // Without a deadline a stream takes all, unless a signal comes when it has taken some: that counts as an answer, and nobody would
        // run the signal's handler before the peer reads on.
        if *sent < frame && deadline == Deadline::NEVER {
            return Err(Error::Interrupted.into());
        }
    }
    Ok(true)
}

/// What is left of the frame after so many bytes.
fn rest<'a>(header: &'a [u8], pieces: &[&'a [u8]], mut gone: u64) -> Vec<IoSlice<'a>> {
    let all = std::iter::once(header).chain(pieces.iter().copied());
    all.filter_map(|piece| {
        let skipped = usize::try_from(gone).map_or(piece.len(), |gone| gone.min(piece.len()));
        gone -= skipped as u64;
        let left = &piece[skipped..];
        (!left.is_empty()).then(|| IoSlice::new(left))
    })
    .collect()
}

/// Receives one message, within the decoder's limit; `None` once the deadline has passed.
///
/// Two calls of the system for a message of up to a mebibyte, whose bytes go where they stay. What has arrived of a message that isn't whole
/// is in the decoder, which belongs to this stream alone.
///
/// # Errors
/// `End` between two messages; `Frame`; `System` with `Interrupted` when a signal handler ran.
///
/// Python: `Connection.recv_bytes`.
pub fn receive(
    from: BorrowedFd<'_>,
    decoder: &mut Decoder,
    deadline: Deadline,
) -> Result<Option<Vec<u8>>, Failure> {
    while let Some(wanted) = decoder.wanted()? {
        match stream::append(from, wanted.into, wanted.most, deadline)? {
            Some(0) => return Err(end(decoder)),
            Some(_) => {}
            None => return Ok(None),
        }
    }
    Ok(decoder.frame())
}

/// Receives as much of a message as says how long it is; `None` once the deadline has passed.
///
/// For a caller that has a place for the body: it takes what the decoder has got of it ([`Decoder::take_body`]), the rest with
/// [`receive_body`], and then [passes](Decoder::pass) to the next message, or gives the decoder back what has arrived.
///
/// # Errors
/// As [`receive`].
pub fn receive_length(
    from: BorrowedFd<'_>,
    decoder: &mut Decoder,
    deadline: Deadline,
) -> Result<Option<u64>, Failure> {
    loop {
        if let Some(length) = decoder.length() {
            return Ok(Some(length));
        }
        // Its header: a body is wanted only once the length is known.
        let Some(wanted) = decoder.wanted()? else {
            return Ok(None);
        };
        match stream::append(from, wanted.into, wanted.most, deadline)? {
            Some(0) => return Err(end(decoder)),
            Some(_) => {}
            None => return Ok(None),
        }
    }
}

/// Receives the next bytes of a body, at most as many as there is room for: none at the end of the stream, `None` once the deadline
/// has passed.
///
/// # Errors
/// `Os`, `Interrupted`.
pub fn receive_body(
    from: BorrowedFd<'_>,
    room: &mut [MaybeUninit<u8>],
    deadline: Deadline,
) -> crate::Result<Option<usize>> {
    stream::fill_room(from, room, deadline)
}

/// Waits until something can be received, or will be said at once; false once the deadline has passed.
///
/// # Errors
/// `Os`, `Interrupted`.
///
/// Python: `Connection.poll`.
pub fn can_receive(from: BorrowedFd<'_>, deadline: Deadline) -> crate::Result<bool> {
    readable([from], deadline).map(|ready| !ready.is_empty())
}

/// As [`can_receive`], awake for a moment first: where what is waited for is an answer, which often comes sooner than a process that
/// sleeps is woken.
///
/// `patience` is the stream's own, since it learns from how that went.
///
/// # Errors
/// As [`can_receive`].
pub fn can_receive_soon(
    from: BorrowedFd<'_>,
    patience: &Patience,
    deadline: Deadline,
) -> crate::Result<bool> {
    let look = || can_receive(from, Deadline::now());
    Ok((!deadline.passed() && patience.offer(look)?) || can_receive(from, deadline)?)
}

/// Whether a stream is a socket. Only of those calls with a deadline never wait longer than that, whoever else uses it.
#[must_use]
pub fn is_socket(stream: BorrowedFd<'_>) -> bool {
    stream::is_socket(stream)
}

/// Where a message went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Received {
    /// Into the buffer: so many bytes at its beginning.
    Into(usize),
    /// The buffer was too short. This is the whole message.
    TooLong(Vec<u8>),
}

/// Receives one message into a buffer, straight from the stream; `None` once the deadline has passed. The buffer's bytes may have
/// changed by then, and none is lost: the decoder has them.
///
/// # Errors
/// As [`receive`].
///
/// Python: `Connection.recv_bytes_into`; `TooLong` is `BufferTooShort`.
pub fn receive_into(
    from: BorrowedFd<'_>,
    decoder: &mut Decoder,
    buffer: &mut [u8],
    deadline: Deadline,
) -> Result<Option<Received>, Failure> {
    if receive_length(from, decoder, deadline)?.is_none() {
        return Ok(None);
    }
    let Some(mut filling) = decoder.fill(buffer) else {
        return Ok(receive(from, decoder, deadline)?.map(Received::TooLong));
    };
    loop {
        if let Some(length) = filling.whole() {
            return Ok(Some(Received::Into(length)));
        }
        match stream::fill(from, filling.room(), deadline)? {
            Some(0) => break,
            Some(bytes) => filling.filled(bytes),
            None => return Ok(None),
        }
    }
    drop(filling);
    Err(end(decoder))
}

/// What the end of the stream means at this moment.
pub(super) fn end(decoder: &Decoder) -> Failure {
    decoder.end().err().map_or(Failure::End, Failure::Frame)
}
