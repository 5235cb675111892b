//! How messages get from one end to the other: the one place that knows of both ways.

use super::Address;
use super::stream::{self, Stream};
use crate::codec;
use crate::descriptor::copy;
use crate::error::{Error, Result, retry};
use crate::tree::arena;
use procession_core::connection::{Failure, Landed, PipeEnd};
use procession_core::process::wait_for_any;
use procession_core::{Arena, Deadline, Error as Core, Naming, ObjectName};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// One end of what carries messages. Threads may share it: each message goes whole, to one of those who receive.
#[derive(Debug)]
pub(crate) struct Transport {
    way: Way,
    /// Where the other end is, if that has an address.
    peer: Option<Address>,
}

#[derive(Debug)]
enum Way {
    /// To anywhere, in CPython's frames.
    Stream(Stream),
    /// Within this tree.
    Pipe(PipeEnd),
}

/// What a process is told of an end that it is given the descriptor of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Kind {
    /// Of a stream: the longest message that is received.
    Stream { limit: u64 },
    /// Of a pipe: offset and serial number of its name.
    Pipe { name: (u64, u64) },
}

/// Why nothing was sent or received, or only some of it.
#[derive(Debug)]
pub(super) enum Broken {
    /// Nobody is at the other end any more.
    Closed,
    Failed(Failure),
    /// A message was begun and not ended in time, now or before.
    Torn,
}

impl From<Failure> for Broken {
    fn from(failure: Failure) -> Self {
        use std::io::ErrorKind::{BrokenPipe, ConnectionReset};
        match &failure {
            Failure::End => Self::Closed,
            // What the other end hadn't read when it was closed is known to be lost.
            Failure::System(Core::Os { errno, .. })
                if [BrokenPipe, ConnectionReset]
                    .contains(&std::io::Error::from_raw_os_error(*errno).kind()) =>
            {
                Self::Closed
            }
            _ => Self::Failed(failure),
        }
    }
}

impl From<Core> for Broken {
    fn from(error: Core) -> Self {
        Failure::System(error).into()
    }
}

impl Transport {
    /// Over a descriptor, to a peer that may have an address.
    pub(super) fn stream(descriptor: OwnedFd, limit: u64, peer: Option<Address>) -> Self {
        let way = Way::Stream(Stream::new(descriptor, limit));
        Self { way, peer }
    }

    /// Both ends of a pipe.
    pub(super) fn pipe() -> Result<(Self, Self)> {
        let arena = arena()?;
        let made = retry(|| procession_core::connection::pipe(arena));
        let (one, other) = made.map_err(|error| Error::at("make a pipe", error))?;
        let end = |end| Self {
            way: Way::Pipe(end),
            peer: None,
        };
        Ok((end(one), end(other)))
    }

    /// An end whose descriptor came from another process of the tree.
    pub(super) fn open(descriptor: OwnedFd, kind: Kind) -> procession_core::Result<Self> {
        let way = match kind {
            Kind::Stream { limit } => Way::Stream(Stream::new(descriptor, limit)),
            Kind::Pipe { name } => {
                let arena = tree()?;
                let (offset, serial) = name;
                let name = ObjectName { offset, serial };
                // Interrupted, it is opened by another descriptor of the same socket.
                let socket = &descriptor;
                Way::Pipe(retry(|| PipeEnd::open(arena, name, copy(socket.as_fd())?))?)
            }
        };
        Ok(Self { way, peer: None })
    }

    /// What a process that is given a [copy](Self::copy) needs to open it; the message that is being encoded holds it meanwhile.
    pub(super) fn kind(&self) -> procession_core::Result<Kind> {
        match &self.way {
            Way::Stream(stream) => Ok(Kind::Stream {
                limit: stream.limit(),
            }),
            Way::Pipe(end) => {
                let name = end.name();
                Naming::add(tree()?, name)?;
                Ok(Kind::Pipe {
                    name: (name.offset, name.serial),
                })
            }
        }
    }

    /// A descriptor of the same end, for another process.
    ///
    /// # Errors
    /// `Misuse` in the middle of a message: its rest would mean nothing there.
    pub(super) fn copy(&self) -> procession_core::Result<OwnedFd> {
        if let Way::Stream(stream) = &self.way {
            stream.between()?;
        }
        copy(self.as_fd())
    }

    /// Both ends are in this tree, so that messages can name what lies in its arena.
    pub(super) fn is_in_tree(&self) -> bool {
        matches!(self.way, Way::Pipe(_))
    }

    pub(super) fn peer(&self) -> Option<&Address> {
        self.peer.as_ref()
    }

    /// Sends a message of these pieces; false when nothing of it could be sent until the deadline.
    pub(super) fn send(&self, pieces: &[&[u8]], deadline: Deadline) -> Result<bool, Broken> {
        match &self.way {
            Way::Stream(stream) => stream.send(pieces, deadline),
            Way::Pipe(end) => {
                let sent = retry(|| end.send(0, pieces, deadline))?;
                if sent {
                    let length = pieces.iter().map(|piece| piece.len()).sum();
                    // Not for ever: then it is taken later.
                    retry(|| end.wait_until_taken(length, deadline))?;
                }
                Ok(sent)
            }
        }
    }

    /// Receives a message; `None` when it isn't whole until the deadline. What there is of it is kept for the next call.
    pub(super) fn receive(&self, deadline: Deadline) -> Result<Option<Vec<u8>>, Broken> {
        match &self.way {
            Way::Stream(stream) => stream.receive(deadline),
            // A short one is copied once more, and so has a vector of its length.
            Way::Pipe(end) => codec::with_buffer(|buffer| match land(end, buffer, deadline)? {
                None => Ok(None),
                Some(Landed { extent: None, .. }) => Ok(Some(buffer.clone())),
                Some(Landed {
                    extent: Some(extent),
                    ..
                }) => {
                    let mut message = Vec::new();
                    extent.append_to(&mut message)?;
                    Ok(Some(message))
                }
            }),
        }
    }

    /// As [`receive`](Self::receive), for as long as `read` looks at it.
    pub(super) fn receive_for<T>(
        &self,
        deadline: Deadline,
        read: impl FnOnce(&[u8]) -> T,
    ) -> Result<Option<T>, Broken> {
        if let Way::Stream(stream) = &self.way {
            return Ok(stream.receive(deadline)?.map(|message| read(&message)));
        }
        codec::with_buffer(|buffer| {
            let whole = self.receive_into(buffer, deadline)?;
            Ok(whole.then(|| read(buffer)))
        })
    }

    /// As [`receive`](Self::receive), into a buffer that has room for it, or is given some. False when the message isn't whole.
    pub(super) fn receive_into(
        &self,
        buffer: &mut Vec<u8>,
        deadline: Deadline,
    ) -> Result<bool, Broken> {
        let end = match &self.way {
            Way::Stream(stream) => return stream.receive_into(buffer, deadline),
            Way::Pipe(end) => end,
        };
        buffer.clear();
        let Some(landed) = land(end, buffer, deadline)? else {
            return Ok(false);
        };
        if let Some(extent) = landed.extent {
            extent.append_to(buffer)?;
        }
        Ok(true)
    }

    /// Waits until something can be received, or the other end is gone; false once the deadline has passed.
    pub(super) fn poll(&self, deadline: Deadline) -> procession_core::Result<bool> {
        retry(|| match &self.way {
            Way::Stream(_) => Ok(!wait_for_any(&[self.as_fd()], deadline)?.is_empty()),
            Way::Pipe(end) => end.poll(deadline),
        })
    }
}

impl AsFd for Transport {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.way {
            Way::Stream(stream) => stream.as_fd(),
            Way::Pipe(end) => end.as_fd(),
        }
    }
}

/// The next message of a pipe, in the buffer or where it lies.
fn land(end: &PipeEnd, buffer: &mut Vec<u8>, deadline: Deadline) -> Result<Option<Landed>, Broken> {
    Ok(stream::retry(|| end.receive(buffer, deadline))?)
}

fn tree() -> procession_core::Result<&'static Arena> {
    arena().map_err(|_| Core::Closed { what: "tree" })
}
