//! Pipes inside the tree: a socket pair whose packets are the messages, or name what lies in the arena.
//!
//! ```text
//! packet of a message of at most 16 KiB      the message, its tag, then 1
//! packet of a longer one                     8 bytes offset of a run, 8 bytes length of the message in it, its tag,
//!                                            zeros by its weight, then 2
//! ```
//! So the kernel says when a message is there, when there is room, and when nobody has the other end any more, exactly and
//! whatever dies; one packet is one message, so threads and processes may share an end. A run that a packet names is linked
//! to the pipe's object, and goes with that if nobody receives it; `docs/shm.md` has the crash table.
//!
//! Beside a bare stream socket, on two processors, in µs a message: of 64 bytes 1.1 here and 1.4 there, of 64 KiB 7.7 and 17, of 1 MiB 114
//! and 240; there and back with 64 bytes 5.1 and 16. A queue of the arena takes 0.08, 6.0, 88 and 1.1. So what this is good for beside that
//! is a descriptor that says exactly what is there, the end, and whole messages, whoever shares an end or is killed.

use super::Failure;
use crate::shm::extent::Run;
use crate::shm::layout::{PAGE, index, kind};
use crate::shm::object::{Handle, ObjectName};
use crate::shm::{Arena, Extent};
use crate::sync::patience::Patience;
use crate::sys::number::Numbered;
use crate::sys::packet::{self, Sent, Took};
use crate::sys::reserve;
use crate::sys::word::{Cell, Relaxed, point};
use crate::{Deadline, Error, Result};
use std::cell::RefCell;
use std::io::IoSlice;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::AtomicBool;

/// The longest message that is sent as it is: 32 KiB take 6 µs as a packet, and 4 to 5 by name.
const INLINE_MAX: usize = 16 << 10;
/// The longest message that is put together before it is sent: of 1 KiB an eighth more go so than when the kernel does it.
const SHORT_MAX: usize = 2046;
/// The last byte of a packet that is a message.
const INLINE: u8 = 1;
/// The last byte of a packet that names one.
const EXTENT: u8 = 2;
/// Bytes of such a name: an offset, a length and the tag.
const NAME: usize = 17;
/// A packet that names so many bytes takes the room of one byte in the kernel's buffer, which is 208 KiB: so about three
/// megabytes are on their way at most, as much as both sides' caches still have. Weight is copied: of 64 KiB a sixth took
/// 11 µs a message, a twentieth 8.5, and a fortieth 11 again.
const SHARE: usize = 20;
/// Parts of one packet: what the kernel takes, `IOV_MAX`, but for one with the kind.
const PARTS_MAX: usize = 1023;
/// Room that one packet takes at most: as much as leaves none for a poll, which wants three quarters free.
const WEIGHT_MAX: usize = 64 << 10;
/// The shortest message of that weight.
const HEAVY: usize = WEIGHT_MAX * SHARE;
/// What a packet is made heavier with.
static ZEROS: [u8; 4 << 10] = [0; 4 << 10];

/// One end of a pipe whose two ends are in processes of one tree.
///
/// A message goes whole or not at all, and is received once. Of at most 16 KiB it goes through the kernel, with one call on
/// each side; of a longer one a name does, and its bytes are copied once into shared memory and once out of it.
///
/// # Across processes
/// Any number of threads and processes may share an end. The other side is told the end once the last of them has closed it,
/// or is gone, however that went. A sender that is killed has sent its message, or hasn't; a receiver that is killed may take
/// one with it. What either leaves of a long message is freed with the pipe.
///
/// # After fork
/// The child has the same end; the other side is told its end only when both are gone.
///
/// Python: `Pipe`'s `Connection`. Source: unix(7), `SOCK_SEQPACKET`.
#[derive(Debug)]
pub struct PipeEnd {
    socket: Numbered,
    /// What long messages on their way belong to; its state is a cell that nobody uses.
    pipe: Handle<Cell>,
    /// How long this process waits awake for a message here, by how that went so far.
    patience: Patience,
    /// The other side has gone with messages unread, and that wasn't told yet: it comes after what is to be received.
    reset: AtomicBool,
}

/// A message that was received, whose bytes are at the end of the caller's buffer, or in memory of their own.
#[derive(Debug)]
pub struct Landed {
    /// The sender's.
    pub tag: u8,
    /// The bytes of a message that had more than 16 KiB.
    pub extent: Option<Extent>,
}

/// Makes a pipe: two ends, each of which sends to the other and receives from it.
///
/// Two descriptors, 256 bytes of the arena, a few µs.
///
/// # Errors
/// `Os` or `Exhausted` when there is no descriptor or no memory.
///
/// Python: `Pipe`.
pub fn pipe(arena: &Arena) -> Result<(PipeEnd, PipeEnd)> {
    let (one, other) = packet::pair()?;
    let pipe: Handle<Cell> = Handle::new(arena, kind::PIPE)?;
    Ok((PipeEnd::new(one, pipe.clone()), PipeEnd::new(other, pipe)))
}

impl PipeEnd {
    fn new(socket: OwnedFd, pipe: Handle<Cell>) -> Self {
        Self {
            socket: socket.into(),
            pipe,
            patience: Patience::default(),
            reset: AtomicBool::new(false),
        }
    }

    /// An end whose socket came from another process of the tree, with the name of its pipe.
    ///
    /// # Errors
    /// `Closed` when that pipe is gone, `Malformed` when the name is not a pipe's, or the descriptor no socket of one.
    pub fn open(arena: &Arena, name: ObjectName, socket: OwnedFd) -> Result<Self> {
        if !packet::is_one(&socket)? {
            return Err(Error::Malformed {
                what: "descriptor of a pipe",
                at: 0,
            });
        }
        Ok(Self::new(socket, Handle::open(arena, kind::PIPE, name)?))
    }

    /// The pipe's name, for a process that is given this end with its socket. Both ends have the same.
    #[must_use]
    pub fn name(&self) -> ObjectName {
        self.pipe.name()
    }

    /// Its name, for bytes that go elsewhere than into a queue: from now on the pipe's 256 bytes, and what is on its way, live
    /// until the tree ends, or [`recapture`](Self::recapture).
    ///
    /// # Errors
    /// `Poisoned` when the arena contradicts itself.
    pub fn escape(&self) -> Result<ObjectName> {
        self.pipe.member().sound()?;
        self.pipe.escape()?;
        Ok(self.pipe.name())
    }

    /// Takes [`escape`](Self::escape) back, by whoever has received those bytes, or couldn't send them.
    ///
    /// # Errors
    /// `Poisoned` when the arena contradicts itself.
    pub fn recapture(&self) -> Result<()> {
        self.pipe.member().sound()?;
        self.pipe.recapture()
    }

    /// Its descriptor, as a number that the program knows; to be [left](Numbered::disown) open, too.
    #[must_use]
    pub fn descriptor(&self) -> &Numbered {
        &self.socket
    }

    /// Sends a message: `parts`, one behind the other, and a tag that the pipe carries and doesn't read. False when there was no room until the deadline, or a process is
    /// stopped that holds what a long message needs.
    ///
    /// Sleeps while about three megabytes of long messages, or some hundred short ones, wait for the other side; and who has sent
    /// more than a megabyte at once is to [wait until that is taken](Self::wait_until_taken). Of a message of at most
    /// 16 KiB the kernel copies the bytes, as it does again for the receiver; of a longer one they are copied once, here.
    ///
    /// # Errors
    /// `Os` with EPIPE when nobody has the other end any more; `Interrupted` when a signal handler ran while it slept; `Os` or
    /// `Exhausted` when there is no memory for a long one. After an error the message is not in the pipe.
    ///
    /// Python: `Connection.send_bytes`.
    pub fn send(&self, tag: u8, parts: &[&[u8]], deadline: Deadline) -> Result<bool> {
        let length = parts.iter().map(|part| part.len()).sum();
        if length > INLINE_MAX {
            let sent = self.send_extent(tag, parts, length, deadline);
            return self.pipe.member().judged(sent);
        }
        if parts.len() > PARTS_MAX {
            return self.send(tag, &[&parts.concat()], deadline);
        }
        while !self.try_send(tag, parts)? {
            if !packet::wait_writable(self.socket.as_fd(), deadline)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Waits, after a message of so many bytes was sent, until the other side has taken it, or is gone: nothing for one of up to a
    /// megabyte. So memory for what nobody receives has a limit, as the kernel's own room has. False once the deadline has passed.
    ///
    /// # Errors
    /// `Interrupted` when a signal handler ran while it slept; the message is in the pipe.
    pub fn wait_until_taken(&self, length: usize, deadline: Deadline) -> Result<bool> {
        Ok(length < HEAVY || packet::wait_writable(self.socket.as_fd(), deadline)?)
    }

    /// Sends a message of at most 16 KiB if there is room for it: never sleeps, and so may be called by a thread that holds
    /// what others wait for, such as an interpreter's lock. False says that only [`send`](Self::send) can do it.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub fn try_send(&self, tag: u8, parts: &[&[u8]]) -> Result<bool> {
        let length: usize = parts.iter().map(|part| part.len()).sum();
        if length > INLINE_MAX || parts.len() > PARTS_MAX {
            return Ok(false);
        }
        if length > SHORT_MAX {
            return self.send_at_once(&inline(parts, &[tag, INLINE]));
        }
        let (mut packet, mut end) = ([0; SHORT_MAX + 2], 0);
        for part in parts.iter().chain([&&[tag, INLINE][..]]) {
            packet[end..end + part.len()].copy_from_slice(part);
            end += part.len();
        }
        self.send_at_once(&[IoSlice::new(&packet[..end])])
    }

    /// Receives the next message, or gives `None` once the deadline has passed. One of at most 16 KiB is appended to `buffer`; a
    /// longer one is handed over where it lies.
    ///
    /// Waits awake for a moment, then sleeps until there is a message.
    ///
    /// # Errors
    /// `End` when nobody has the other end any more and all is received. `System` with `Interrupted` when a signal handler ran
    /// while it slept; with ECONNRESET, once, in place of the first `End`, when what was sent to the other side wasn't
    /// received there; with `Malformed` when what came is no message of this pipe: the next one may be.
    ///
    /// Python: `Connection.recv_bytes`.
    pub fn receive(
        &self,
        buffer: &mut Vec<u8>,
        deadline: Deadline,
    ) -> Result<Option<Landed>, Failure> {
        if let Some(landed) = self.try_receive(buffer)? {
            return Ok(Some(landed));
        }
        let (came, into) = (RefCell::new(Ok(None)), RefCell::new(&mut *buffer));
        let look = || {
            let look = self.try_receive(&mut into.borrow_mut());
            let is_over = !matches!(look, Ok(None));
            *came.borrow_mut() = look;
            Ok(is_over)
        };
        if !deadline.passed() && self.patience.offer(look)? {
            return came.into_inner();
        }
        loop {
            if !packet::wait_readable(self.socket.as_fd(), deadline)? {
                return Ok(None);
            }
            if let Some(landed) = self.try_receive(buffer)? {
                return Ok(Some(landed));
            }
        }
    }

    /// Receives the next message if there is one: never sleeps. `None` says that there is none at the moment.
    ///
    /// # Errors
    /// As [`receive`](Self::receive).
    pub fn try_receive(&self, buffer: &mut Vec<u8>) -> Result<Option<Landed>, Failure> {
        let before = buffer.len();
        // Two bytes more than a message has, for its tag and its kind.
        reserve(buffer, INLINE_MAX + 2)?;
        let took = loop {
            match packet::take(self.socket.as_fd(), buffer)? {
                // Told before what is still to be received, which a pipe's end comes after.
                Took::Reset => self.reset.store(true, Relaxed),
                took => break took,
            }
        };
        let is_whole = match took {
            Took::Packet { is_whole } => is_whole,
            Took::Nothing | Took::Reset => return Ok(None),
            Took::End if self.reset.swap(false, Relaxed) => return Err(packet::reset().into()),
            Took::End => return Err(Failure::End),
        };
        // What is cut is heavier than any message that isn't named.
        let kind = if is_whole { buffer.pop() } else { Some(EXTENT) };
        let packet = buffer.get(before..).unwrap_or_default();
        let landed = match (kind, packet.split_last()) {
            (Some(INLINE), Some((&tag, message))) => {
                let length = message.len();
                buffer.truncate(before + length);
                return Ok(Some(Landed { tag, extent: None }));
            }
            (Some(EXTENT), _) => self.named(packet),
            _ => Err(MALFORMED),
        };
        buffer.truncate(before);
        Ok(Some(self.pipe.member().judged(landed)?))
    }

    /// Waits until a message can be received, or never any more, and leaves it there; false once the deadline has passed.
    ///
    /// # Errors
    /// `Interrupted` when a signal handler ran while it slept.
    ///
    /// Python: `Connection.poll`.
    pub fn poll(&self, deadline: Deadline) -> Result<bool> {
        packet::wait_readable(self.socket.as_fd(), deadline)
    }

    /// Sends a message of more than 16 KiB.
    fn send_extent(
        &self,
        tag: u8,
        parts: &[&[u8]],
        length: usize,
        deadline: Deadline,
    ) -> Result<bool> {
        let (member, pipe) = (self.pipe.member(), self.pipe.name().offset);
        let Some(run) = Run::take(member, length as u64, deadline)? else {
            return Ok(false);
        };
        run.fill(parts)?;
        let offset = run.offset;
        let (at, size) = (offset.to_le_bytes(), (length as u64).to_le_bytes());
        let name = [&at[..], &size, &[tag]].concat();
        // Before anybody can see its name.
        run.link(pipe)?;
        // Killed here: nobody ever does, and it goes with the pipe.
        point();
        let sent = self.send_packet(&heavy(&name, length), deadline);
        if !matches!(sent, Ok(true)) {
            drop(Run::take_back(member, offset, pipe)?);
        }
        sent
    }

    /// Takes over the run that a packet names, with the message in it.
    fn named(&self, packet: &[u8]) -> Result<Landed> {
        let (member, pipe) = (self.pipe.member(), self.pipe.name().offset);
        let number = |at: usize| {
            let bytes = packet.get(at..at + 8)?;
            Some(u64::from_le_bytes(bytes.try_into().ok()?))
        };
        let (Some(offset), Some(length), Some(&tag)) = (number(0), number(8), packet.get(16))
        else {
            return Err(MALFORMED);
        };
        member.place()?;
        // Whatever the bytes are, it isn't the arena that contradicts itself.
        let run = match Run::take_back(member, offset, pipe) {
            Ok(Some(run)) if offset.is_multiple_of(PAGE) => run,
            Ok(_) | Err(Error::Broken { .. }) => return Err(MALFORMED),
            Err(error) => return Err(error),
        };
        if length > run.bytes()? {
            return Err(MALFORMED);
        }
        let extent = Some(run.into_extent(self.pipe.arena(), index(length)));
        Ok(Landed { tag, extent })
    }

    fn send_packet(&self, pieces: &[IoSlice<'_>], deadline: Deadline) -> Result<bool> {
        while !self.send_at_once(pieces)? {
            if !packet::wait_writable(self.socket.as_fd(), deadline)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn send_at_once(&self, pieces: &[IoSlice<'_>]) -> Result<bool> {
        loop {
            match packet::send_pieces(self.socket.as_fd(), pieces)? {
                Sent::All => return Ok(true),
                Sent::NoRoom => return Ok(false),
                // It concerns who receives here. Told once; then this is a pipe that nobody reads.
                Sent::Reset => self.reset.store(true, Relaxed),
            }
        }
    }
}

impl AsFd for PipeEnd {
    /// Its descriptor, which is readable when a message is there, or the end: what is read from it is this file's business.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

const MALFORMED: Error = Error::Malformed {
    what: "message of a pipe",
    at: 0,
};

/// The packet of a message that is sent as it is.
fn inline<'a>(parts: &[&'a [u8]], end: &'a [u8; 2]) -> Vec<IoSlice<'a>> {
    let parts = parts.iter().copied().filter(|part| !part.is_empty());
    parts
        .chain(std::iter::once(&end[..]))
        .map(IoSlice::new)
        .collect()
}

/// The packet that names a message of that length.
fn heavy(name: &[u8], length: usize) -> Vec<IoSlice<'_>> {
    let mut weight = (length / SHARE).min(WEIGHT_MAX) - NAME;
    let mut pieces = vec![IoSlice::new(name)];
    while weight > 0 {
        let piece = &ZEROS[..weight.min(ZEROS.len())];
        pieces.push(IoSlice::new(piece));
        weight -= piece.len();
    }
    pieces.push(IoSlice::new(&[EXTENT]));
    pieces
}
