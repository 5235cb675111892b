//! Sockets without a name that carry whole packets, with descriptors. Source: unix(7), cmsg(3), epoll(7).

use super::descriptor::{self, above_streams};
use super::{ask, demand, failed};
use crate::{Deadline, Error, Result};
use rustix::buffer::spare_capacity;
use rustix::cmsg_space;
use rustix::event::{PollFd, PollFlags, epoll};
use rustix::io::{Errno, IoSlice, IoSliceMut};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, Shutdown, SocketType, recv, recvmsg, sendmsg, shutdown,
    sockopt::socket_type,
};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// Descriptors that the kernel lets go with one packet: `SCM_MAX_FD` of include/net/scm.h.
pub(crate) const DESCRIPTORS_MAX: usize = 253;

/// What came of a look for a packet.
#[derive(Debug)]
pub(crate) enum Arrived {
    /// A packet's bytes, up to the length asked for, and its descriptors; `cut`: something of it didn't fit.
    Packet {
        bytes: Vec<u8>,
        descriptors: Vec<OwnedFd>,
        cut: bool,
    },
    /// None at the moment.
    Nothing,
    /// None any more: all other ends are closed.
    End,
}

/// What came of an attempt to send pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sent {
    All,
    /// There is no room at the moment.
    NoRoom,
    /// The other end is closed, and hasn't received all that was sent to it. Told once.
    Reset,
}

/// What came of an attempt to take a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Took {
    /// One; `is_whole`: all of it is in the buffer.
    Packet { is_whole: bool },
    /// There is none at the moment.
    Nothing,
    /// There is none any more: all other ends are closed.
    End,
    /// The other end is closed, and hasn't received all that was sent to it. Told once, and before what is still there.
    Reset,
}

/// Two ends, each closed on exec. What is sent to an end stays whole, and in order.
pub(crate) fn pair() -> Result<(OwnedFd, OwnedFd)> {
    descriptor::socket_pair(SocketType::SEQPACKET)
}

/// Sends a packet without waiting; false when there is no room at the moment.
///
/// # Errors
/// `Os` with EPIPE or ECONNRESET when the other end is closed, and whatever sendmsg(2) says.
pub(crate) fn send(
    socket: impl AsFd,
    bytes: &[u8],
    descriptors: &[BorrowedFd<'_>],
) -> Result<bool> {
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(failed("sendmsg", Errno::INVAL));
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    let sent = ask("sendmsg", || {
        sendmsg(&socket, &[IoSlice::new(bytes)], &mut control, flags)
    });
    match sent {
        Ok(_) => Ok(true),
        Err(Errno::AGAIN) => Ok(false),
        Err(errno) => Err(failed("sendmsg", errno)),
    }
}

/// Sends the pieces as one packet without waiting, as many as the kernel takes at once: 1024.
///
/// # Errors
/// `Os` with EPIPE when the other end is closed.
pub(crate) fn send_pieces(socket: BorrowedFd<'_>, pieces: &[IoSlice<'_>]) -> Result<Sent> {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    let mut nothing = SendAncillaryBuffer::default();
    // In one piece it is a call that has less to look at: a tenth of the price of a short packet.
    let (name, sent) = match pieces {
        [piece] => (
            "send",
            ask("send", || rustix::net::send(socket, piece, flags)),
        ),
        _ => {
            let call = || sendmsg(socket, pieces, &mut nothing, flags);
            ("sendmsg", ask("sendmsg", call))
        }
    };
    match sent {
        Ok(_) => Ok(Sent::All),
        Err(Errno::AGAIN) => Ok(Sent::NoRoom),
        Err(Errno::CONNRESET) => Ok(Sent::Reset),
        Err(errno) => Err(failed(name, errno)),
    }
}

/// Appends the next packet, as much of it as there is spare capacity for, without waiting.
pub(crate) fn take(socket: BorrowedFd<'_>, into: &mut Vec<u8>) -> Result<Took> {
    let flags = RecvFlags::TRUNC | RecvFlags::DONTWAIT;
    match ask("recv", || recv(socket, spare_capacity(into), flags)) {
        // Nobody sends empty ones but who takes the socket for something else.
        Ok((_, 0)) if hung_up(socket) => Ok(Took::End),
        Ok((_, 0)) => Ok(Took::Nothing),
        Ok((read, length)) => Ok(Took::Packet {
            is_whole: read == length,
        }),
        Err(Errno::AGAIN) => Ok(Took::Nothing),
        Err(Errno::CONNRESET) => Ok(Took::Reset),
        Err(errno) => Err(failed("recv", errno)),
    }
}

/// The error that says so, for whoever is to hear it later.
pub(crate) fn reset() -> Error {
    failed("recv", Errno::CONNRESET)
}

/// Whether a descriptor is such a socket.
pub(crate) fn is_one(socket: impl AsFd) -> Result<bool> {
    match ask("getsockopt", || socket_type(&socket)) {
        Ok(kind) => Ok(kind == SocketType::SEQPACKET),
        Err(Errno::NOTSOCK) => Ok(false),
        Err(errno) => Err(failed("getsockopt", errno)),
    }
}

/// Whether an error of [`send`] says that the other end is closed.
pub(crate) fn is_closed(error: &Error) -> bool {
    let closed = [Errno::PIPE, Errno::CONNRESET].map(Errno::raw_os_error);
    matches!(error, Error::Os { errno, .. } if closed.contains(errno))
}

/// Takes the next packet, at most `length` bytes of it, without waiting. Its descriptors are closed on exec.
pub(crate) fn receive(socket: impl AsFd, length: usize) -> Result<Arrived> {
    /// Not worth a system call to know how much of it is needed.
    const SHORT: usize = 256;
    // Packets are short: room for the longest would be pages that whoever forks has to copy afterwards, each time.
    let next = (length > SHORT).then(|| next_length(&socket)).flatten();
    let room = next.map_or(length, |next| next.clamp(1, length));
    take_up(socket, room, RecvFlags::DONTWAIT)
}

/// As [`receive`], but waits, without end, until there is one, or none any more.
///
/// # Errors
/// `Interrupted` when a signal handler ran.
pub(crate) fn receive_next(socket: impl AsFd, length: usize) -> Result<Arrived> {
    take_up(socket, length, RecvFlags::empty())
}

/// Has nothing more come: what did can still be received, and who sends sees this end closed.
pub(crate) fn end_receiving(socket: impl AsFd) -> Result<()> {
    demand("shutdown", || shutdown(&socket, Shutdown::Read))
}

fn take_up(socket: impl AsFd, room: usize, flags: RecvFlags) -> Result<Arrived> {
    let mut bytes = vec![0; room];
    let mut space = [MaybeUninit::uninit(); cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = ask("recvmsg", || {
        let into = &mut [IoSliceMut::new(&mut bytes)];
        recvmsg(&socket, into, &mut control, flags | RecvFlags::CMSG_CLOEXEC)
    });
    let message = match received {
        Ok(message) => message,
        Err(Errno::AGAIN) => return Ok(Arrived::Nothing),
        Err(Errno::CONNRESET) => return Ok(Arrived::End),
        Err(errno) => return Err(failed("recvmsg", errno)),
    };
    let mut descriptors = Vec::new();
    for part in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = part {
            for descriptor in rights {
                descriptors.push(above_streams(descriptor)?);
            }
        }
    }
    if message.bytes == 0 {
        // An empty packet, or none any more.
        return Ok(if hung_up(socket) {
            Arrived::End
        } else {
            Arrived::Nothing
        });
    }
    bytes.truncate(message.bytes);
    let cut = message
        .flags
        .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC);
    Ok(Arrived::Packet {
        bytes,
        descriptors,
        cut,
    })
}

/// The bytes of the next packet, if the system tells.
fn next_length(socket: impl AsFd) -> Option<usize> {
    let flags = RecvFlags::PEEK | RecvFlags::TRUNC | RecvFlags::DONTWAIT;
    let told = recv(socket, &mut [0u8][..], flags);
    told.ok().map(|(_read, length)| length)
}

/// Whether all other ends are closed, or send nothing more.
pub(crate) fn hung_up(socket: impl AsFd) -> bool {
    let mut poll = [PollFd::new(&socket, PollFlags::RDHUP)];
    let now = rustix::fs::Timespec::default();
    let ready = rustix::event::poll(&mut poll, Some(&now));
    ready.is_ok_and(|count| count > 0)
        && poll[0]
            .revents()
            .intersects(PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL)
}

/// Waits until there is a packet, or all other ends are closed; false once the deadline has passed.
pub(crate) fn wait_readable(socket: BorrowedFd<'_>, deadline: Deadline) -> Result<bool> {
    wait_for(
        &mut [PollFd::from_borrowed_fd(socket, PollFlags::IN)],
        deadline,
    )
}

/// As [`wait_readable`], or until all ends of another socket's other side are closed.
pub(crate) fn wait_readable_or_hung_up(
    socket: BorrowedFd<'_>,
    other: BorrowedFd<'_>,
    deadline: Deadline,
) -> Result<bool> {
    let other = PollFd::from_borrowed_fd(other, PollFlags::empty());
    let socket = PollFd::from_borrowed_fd(socket, PollFlags::IN);
    wait_for(&mut [socket, other], deadline)
}

/// Waits until there is room for a packet, or all other ends are closed; false once the deadline has passed.
pub(crate) fn wait_writable(socket: BorrowedFd<'_>, deadline: Deadline) -> Result<bool> {
    wait_for(
        &mut [PollFd::from_borrowed_fd(socket, PollFlags::OUT)],
        deadline,
    )
}

fn wait_for(poll: &mut [PollFd<'_>], deadline: Deadline) -> Result<bool> {
    descriptor::poll(poll, deadline).map(|ready| ready > 0)
}

/// Any number of descriptors of which some may become ready, each under a number of the caller's.
#[derive(Debug)]
pub(crate) struct Ready(OwnedFd);

impl Ready {
    pub(crate) fn new() -> Result<Self> {
        let flags = epoll::CreateFlags::CLOEXEC;
        demand("epoll_create1", || epoll::create(flags)).map(Self)
    }

    /// Looks at a descriptor, too, which must be taken out before it is closed if a forked child has a copy.
    pub(crate) fn add(&self, descriptor: impl AsFd, number: u64) -> Result<()> {
        let data = epoll::EventData::new_u64(number);
        demand("epoll_ctl", || {
            epoll::add(&self.0, &descriptor, data, epoll::EventFlags::IN)
        })
    }

    pub(crate) fn remove(&self, descriptor: impl AsFd) {
        // It was added, so this isn't refused.
        let _ = epoll::delete(&self.0, &descriptor);
    }

    /// Waits until some are ready; their numbers.
    pub(crate) fn wait(&self) -> Result<Vec<u64>> {
        /// At once; those beyond come at the next call.
        const BATCH: usize = 64;
        let mut events = Vec::with_capacity(BATCH);
        // Nothing that limits a process refuses it.
        let room = spare_capacity(&mut events);
        epoll::wait(&self.0, room, None).map_err(|errno| failed("epoll_wait", errno))?;
        Ok(events.into_iter().map(|event| event.data.u64()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_stay_whole_and_an_end_is_told() {
        let (mine, other) = pair().unwrap();
        assert!(matches!(receive(&mine, 8).unwrap(), Arrived::Nothing));
        for bytes in [&b"one"[..], b"two", b"much too long"] {
            assert!(send(&other, bytes, &[other.as_fd()]).unwrap());
        }
        let mut got = Vec::new();
        while let Arrived::Packet {
            bytes,
            descriptors,
            cut,
        } = receive(&mine, 8).unwrap()
        {
            got.push((bytes, descriptors.len(), cut));
        }
        let expected = [
            (b"one".to_vec(), 1, false),
            (b"two".to_vec(), 1, false),
            (b"much too".to_vec(), 1, true),
        ];
        assert_eq!(got, expected);
        assert!(!hung_up(&mine));
        drop(other);
        assert!(hung_up(&mine));
        assert!(matches!(receive(&mine, 8).unwrap(), Arrived::End));
        assert!(send(&mine, b"late", &[]).is_err());
    }

    #[test]
    fn more_descriptors_than_may_go_are_refused() {
        let (mine, _other) = pair().unwrap();
        let many = vec![mine.as_fd(); DESCRIPTORS_MAX + 1];
        assert!(send(&mine, b"many", &many).is_err());
        assert!(send(&mine, b"all", &many[1..]).unwrap());
    }
}
