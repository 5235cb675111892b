//! A fork server, as those see it who ask it for children.

use super::Child;
use super::protocol::{BODY_MAX, Call, Key, PASSED_MAX, REPLY, Reply, request};
use super::report::Report;
use crate::shm::ChildSlot;
use crate::sys::packet::{self, Arrived};
use crate::sys::{identity, pidfd};
use crate::{Deadline, Error, Result};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

const GONE: Error = Error::Closed {
    what: "fork server",
};

/// The way to a fork server, for every process that has it: threads and processes may ask at once.
///
/// The server lives until the last of these is closed, in whatever process.
///
/// # After fork
/// The child may ask too. A program that is started by exec doesn't get it.
#[derive(Debug)]
pub struct ForkServer {
    way: OwnedFd,
    key: Key,
}

/// A child that was asked for.
///
/// Dropping it takes nothing back: the child may run already.
#[derive(Debug)]
pub struct Starting<'a> {
    server: &'a ForkServer,
    /// Until the child has it.
    reply: Option<OwnedFd>,
}

impl ForkServer {
    /// Makes the way to a server, and the server's own end of it, for the program that will be the server: it calls
    /// [`Server::new`](super::Server::new) with that.
    ///
    /// # Errors
    /// `Os` without descriptors, or without random bytes for the key.
    pub fn new() -> Result<(Self, OwnedFd)> {
        let key = Key(identity::secret()?);
        let (way, servers) = packet::pair()?;
        // It waits there for the server to come.
        packet::send(&way, &key.first(), &[])?;
        Ok((Self { way, key }, servers))
    }

    pub(super) fn at(way: OwnedFd, key: Key) -> Self {
        Self { way, key }
    }

    /// Whether the server lives. One system call.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        !packet::hung_up(&self.way)
    }

    /// Asks for a child that takes the place of `slot`. It gets `body` and copies of `descriptors`.
    ///
    /// Waits while the server has more requests before it than a socket holds, about a hundred; `None` once the deadline has
    /// passed.
    ///
    /// # Errors
    /// `Closed` when the server is gone; `TooLong` for a body of more than 16 KiB; `Exhausted` for more than 250 descriptors;
    /// `Interrupted` when a signal handler ran while it waited; `Os` without descriptors.
    pub fn start(
        &self,
        slot: &ChildSlot,
        body: &[u8],
        descriptors: &[BorrowedFd<'_>],
        deadline: Deadline,
    ) -> Result<Option<Starting<'_>>> {
        if body.len() > BODY_MAX {
            return Err(Error::TooLong {
                length: body.len() as u64,
                limit: BODY_MAX as u64,
            });
        }
        if descriptors.len() > PASSED_MAX {
            return Err(Error::Exhausted {
                what: "descriptors that a child of a fork server can be given",
                limit: PASSED_MAX as u64,
            });
        }
        let packet = request(&self.key, slot.place(), descriptors.len(), body);
        let requester = pidfd::open(identity::pid())?;
        let (reply, servers) = packet::pair()?;
        let ours = [servers.as_fd(), self.way.as_fd(), requester.as_fd()];
        let descriptors = [&ours, descriptors].concat();
        while !packet::send(&self.way, &packet, &descriptors).map_err(gone)? {
            if !packet::wait_writable(self.way.as_fd(), deadline)? {
                return Ok(None);
            }
        }
        Ok(Some(Starting {
            server: self,
            reply: Some(reply),
        }))
    }
}

impl AsFd for ForkServer {
    /// The way, which children of other kinds may inherit.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.way.as_fd()
    }
}

impl Starting<'_> {
    /// Waits for the child, which comes once; `None` once the deadline has passed.
    ///
    /// # Errors
    /// `Closed` when the server is gone, or dropped the request: no child of it will come to life that was not told of, but
    /// for one that was forked in the server's last instant. `Os` when the server couldn't fork, as what it called.
    /// `Interrupted` when a signal handler ran: call again.
    pub fn wait(&mut self, deadline: Deadline) -> Result<Option<Child>> {
        let Some(reply) = &self.reply else {
            return Err(GONE);
        };
        // A copy of the server's end may be in a process that another thread forked just then.
        let way = self.server.as_fd();
        if !packet::wait_readable_or_hung_up(reply.as_fd(), way, deadline)? {
            return Ok(None);
        }
        let Arrived::Packet {
            bytes,
            descriptors,
            cut,
        } = packet::receive(reply, REPLY)?
        else {
            return Err(GONE);
        };
        let mut descriptors = descriptors.into_iter();
        match (Reply::of(&bytes), descriptors.next()) {
            (Some(Reply::Started(pid)), Some(pidfd)) if !cut => {
                let report = self.reply.take().map(Report::new);
                Ok(Some(Child::served(pid, pidfd, report)))
            }
            (Some(Reply::Refused(call, errno)), _) => Err(refused(call, errno)),
            // This process has no room for the pidfd: the child can't be waited for.
            (Some(Reply::Started(_)), _) => Err(Error::Os {
                call: "recvmsg",
                errno: NO_ROOM,
            }),
            _ => Err(GONE),
        }
    }
}

/// `EMFILE`.
const NO_ROOM: i32 = 24;

fn refused(call: Call, errno: i32) -> Error {
    Error::Os {
        call: call.name(),
        errno,
    }
}

/// What a failure to send says: the other end is closed.
fn gone(error: Error) -> Error {
    if packet::is_closed(&error) {
        GONE
    } else {
        error
    }
}
