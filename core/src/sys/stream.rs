//! Streams: reading and writing what a socket, a pipe or a terminal has or takes at this moment. Source: read(2), writev(2), sendmsg(2),
//! poll(2).

use super::descriptor;
use super::{ask, failed};
use crate::{Deadline, Result};
use rustix::buffer::{Buffer, spare_capacity};
use rustix::event::{PollFd, PollFlags};
use rustix::io::{Errno, ReadWriteFlags};
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags};
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;

/// What a pipe that is ready takes without waiting: `PIPE_BUF` of pipe(7).
const PIPE_BYTES: usize = 4096;
/// Pieces of one call: `IOV_MAX`.
const PIECES_MAX: usize = 1024;

/// Whether it is a socket: the one kind of stream on which a single call can be told not to wait.
pub(crate) fn is_socket(stream: BorrowedFd<'_>) -> bool {
    rustix::net::sockopt::socket_type(stream).is_ok()
}

/// Appends at most so many bytes, and says how many: none at the end of the stream, and `None` when the deadline passed first.
///
/// The buffer must have that much spare capacity; bytes go there straight, without being zeroed first. One call where there is no
/// deadline, and where a socket has something to read.
pub(crate) fn append(
    from: BorrowedFd<'_>,
    into: &mut Vec<u8>,
    most: usize,
    deadline: Deadline,
) -> Result<Option<usize>> {
    let before = into.len();
    if into.capacity() - before == most {
        return when(from, PollFlags::IN, deadline, |how| {
            read(from, spare_capacity(into), how)
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
    when(from, PollFlags::IN, deadline, |how| {
        read(from, &mut *into, how)
    })
}

/// As [`fill`], with room that nobody has zeroed.
pub(crate) fn fill_room(
    from: BorrowedFd<'_>,
    into: &mut [MaybeUninit<u8>],
    deadline: Deadline,
) -> Result<Option<usize>> {
    when(from, PollFlags::IN, deadline, |how| {
        read(from, &mut *into, how).map(|(filled, _)| filled.len())
    })
}

fn read<B: Buffer<u8>>(from: BorrowedFd<'_>, into: B, how: How) -> rustix::io::Result<B::Output> {
    match how {
        How::SocketNow => ask("recv", || {
            rustix::net::recv(from, into, RecvFlags::DONTWAIT).map(|(read, _)| read)
        }),
        // A pipe can't be told not to wait by a call that fills memory which nobody has zeroed.
        How::FileNow => Err(Errno::OPNOTSUPP),
        How::Patient | How::Ready => ask("read", || rustix::io::read(from, into)),
    }
}

/// Writes as much of the pieces as the stream takes, with one call, and says how many bytes that were; `None` when the deadline
/// passed first.
pub(crate) fn write(
    to: BorrowedFd<'_>,
    pieces: &[IoSlice<'_>],
    deadline: Deadline,
) -> Result<Option<usize>> {
    let pieces = &pieces[..pieces.len().min(PIECES_MAX)];
    when(to, PollFlags::OUT, deadline, |how| match how {
        How::Patient => ask("writev", || rustix::io::writev(to, pieces)),
        How::SocketNow => ask("sendmsg", || {
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            let mut nothing = SendAncillaryBuffer::default();
            rustix::net::sendmsg(to, pieces, &mut nothing, flags)
        }),
        How::FileNow => ask("pwritev2", || {
            rustix::io::pwritev2(to, pieces, u64::MAX, ReadWriteFlags::NOWAIT)
        }),
        How::Ready => ask("write", || {
            let piece = pieces.iter().find(|piece| !piece.is_empty());
            let piece = piece.map_or(&[][..], |piece| piece);
            rustix::io::write(to, &piece[..piece.len().min(PIPE_BYTES)])
        }),
    })
}

/// How a call is to be made.
#[derive(Debug, Clone, Copy)]
enum How {
    /// It waits as long as it takes, unless the descriptor was made not to.
    Patient,
    /// It doesn't wait; of a socket that can be asked.
    SocketNow,
    /// It doesn't wait; a pipe can be told that since Linux 6.4, by writev's kin.
    FileNow,
    /// The descriptor was ready just now, and can't be asked. It may wait if somebody else was faster.
    Ready,
}

/// Makes a call as soon as it gives something; `None` when the deadline passed first. What can be asked is asked before it is waited for.
fn when(
    descriptor: BorrowedFd<'_>,
    what: PollFlags,
    deadline: Deadline,
    mut call: impl FnMut(How) -> rustix::io::Result<usize>,
) -> Result<Option<usize>> {
    let mut how = match deadline {
        Deadline::NEVER => How::Patient,
        _ => How::SocketNow,
    };
    let mut was_ready = false;
    loop {
        // What can't be asked is waited for first.
        if was_ready || !matches!(how, How::Ready) {
            match call(how) {
                Err(Errno::NOTSOCK) => {
                    how = How::FileNow;
                    continue;
                }
                Err(Errno::OPNOTSUPP | Errno::NOSYS) if matches!(how, How::FileNow) => {
                    how = How::Ready;
                }
                Err(Errno::AGAIN) => {}
                called => {
                    let called = called.map(Some);
                    return called.map_err(|errno| failed("read or write", errno));
                }
            }
        }
        let is_over = matches!(how, How::SocketNow | How::FileNow) && deadline.passed();
        if is_over || !ready(descriptor, what, deadline)? {
            return Ok(None);
        }
        was_ready = true;
    }
}

/// Waits until the descriptor is ready, or will say at once why not; false once the deadline has passed.
fn ready(descriptor: BorrowedFd<'_>, what: PollFlags, deadline: Deadline) -> Result<bool> {
    let mut poll = [PollFd::from_borrowed_fd(descriptor, what)];
    descriptor::poll(&mut poll, deadline).map(|ready| ready == 1)
}
