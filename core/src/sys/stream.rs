//! Streams: reading and writing what a socket, a pipe or a terminal has or takes at this moment. Source: read(2), writev(2), sendmsg(2),
//! poll(2).

use super::{ask, descriptor, failed};
use crate::{Deadline, Result};
use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{SendAncillaryBuffer, SendFlags};
use std::io::IoSlice;
use std::os::fd::BorrowedFd;

/// What a pipe that is ready takes without waiting: `PIPE_BUF` of pipe(7).
const PIPE_BYTES: usize = 4096;
/// Pieces of one call: `IOV_MAX`.
const PIECES_MAX: usize = 1024;

/// Appends at most so many bytes, and says how many: none at the end of the stream, and `None` when the deadline passed first.
///
/// The buffer must have that much spare capacity; bytes go there straight, without being zeroed first. One call where there is no
/// deadline.
pub(crate) fn append(
    from: BorrowedFd<'_>,
    into: &mut Vec<u8>,
    most: usize,
    deadline: Deadline,
) -> Result<Option<usize>> {
    let before = into.len();
    if into.capacity() - before == most {
        return when(from, PollFlags::IN, deadline, || {
            ask("read", || rustix::io::read(from, spare_capacity(into)))
        });
    }
    // More capacity than is wanted: what comes behind isn't ours to take.
    into.resize(before + most, 0);
    let filled = fill(from, &mut into[before..], deadline);
    into.truncate(before + filled.as_ref().map_or(0, |filled| filled.unwrap_or(0)));
    filled
}

/// Reads into a buffer, as [`append`] does.
pub(crate) fn fill(
    from: BorrowedFd<'_>,
    into: &mut [u8],
    deadline: Deadline,
) -> Result<Option<usize>> {
    when(from, PollFlags::IN, deadline, || {
        ask("read", || rustix::io::read(from, &mut *into))
    })
}

/// Writes as much of the pieces as the stream takes, with one call, and says how many bytes that were; `None` when the deadline
/// passed first.
pub(crate) fn write(
    to: BorrowedFd<'_>,
    pieces: &[IoSlice<'_>],
    deadline: Deadline,
) -> Result<Option<usize>> {
    let pieces = &pieces[..pieces.len().min(PIECES_MAX)];
    when(to, PollFlags::OUT, deadline, || {
        if deadline == Deadline::NEVER {
            return ask("writev", || rustix::io::writev(to, pieces));
        }
        // A socket that is ready takes some of it; so that it doesn't wait for the rest, it is told not to.
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let mut nothing = SendAncillaryBuffer::default();
        match ask("sendmsg", || {
            rustix::net::sendmsg(to, pieces, &mut nothing, flags)
        }) {
            Err(Errno::NOTSOCK) => {
                let piece = pieces.iter().find(|piece| !piece.is_empty());
                let piece = piece.map_or(&[][..], |piece| piece);
                let some = &piece[..piece.len().min(PIPE_BYTES)];
                ask("write", || rustix::io::write(to, some))
            }
            sent => sent,
        }
    })
}

/// Makes a call once the descriptor is ready for it, and again when it wasn't after all: somebody else was faster. Where there
/// is no deadline the call itself waits, unless the descriptor was made not to.
fn when(
    descriptor: BorrowedFd<'_>,
    what: PollFlags,
    deadline: Deadline,
    mut call: impl FnMut() -> rustix::io::Result<usize>,
) -> Result<Option<usize>> {
    let mut is_ready = deadline == Deadline::NEVER;
    loop {
        if !is_ready && !ready(descriptor, what, deadline)? {
            return Ok(None);
        }
        match call() {
            Err(Errno::AGAIN) => is_ready = false,
            result => {
                return result
                    .map(Some)
                    .map_err(|errno| failed("read or write", errno));
            }
        }
    }
}

/// Waits until the descriptor is ready, or will say at once why not; false once the deadline has passed.
fn ready(descriptor: BorrowedFd<'_>, what: PollFlags, deadline: Deadline) -> Result<bool> {
    let mut poll = [PollFd::from_borrowed_fd(descriptor, what)];
    descriptor::poll(&mut poll, deadline).map(|ready| ready == 1)
}
