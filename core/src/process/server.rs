//! A fork server: a process that has everything loaded, and forks others when it is asked to.
//!
//! The face pulls: [`Server::next_request`] gives the next [`Request`] and meanwhile tells those who asked before how their
//! children ended. The face makes the fork, so that its language's own hooks run around it, and says what came of it.
//! One thread, and nothing waits for a client: what can't be told at once isn't told.
//!
//! Anyone of the tree may hold the way to the server. Each request is one packet that brings the socket for its own
//! replies, so nothing interleaves, and what isn't a request with the key is dropped.

use super::forkserver::ForkServer;
use super::protocol::{self, Call, Key, OURS, REQUEST_MAX, Reply};
use super::report;
use crate::shm::{Adoption, Arena, Place};
use crate::sys::packet::{self, Arrived, Ready};
use crate::sys::pidfd;
use crate::{Deadline, Error, Result};
use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};

/// The number of the socket that requests come by; children have later ones.
const REQUESTS: u64 = 0;

/// What may be better at the next request: `EMFILE`, `ENFILE`, `ENOMEM`, `ENOBUFS`.
const PASSING: [i32; 4] = [24, 23, 12, 105];

/// This process as a fork server.
///
/// It is over when nobody is left who could ask: every child holds the way to it, so it outlives no process that may.
///
/// # After fork
/// Only by [`become_child`](Self::become_child): a copy that stays open keeps those who ask from noticing the server's end.
#[derive(Debug)]
pub struct Server {
    requests: OwnedFd,
    key: Key,
    ready: Ready,
    children: HashMap<u64, Served>,
    /// The number of the next child.
    next: u64,
}

/// A child that runs.
#[derive(Debug)]
struct Served {
    pidfd: OwnedFd,
    reply: OwnedFd,
}

/// What one process of the tree asks for: a child that takes the place which it keeps.
#[derive(Debug)]
pub struct Request {
    place: Place,
    body: Vec<u8>,
    reply: OwnedFd,
    way: OwnedFd,
    requester: OwnedFd,
    passed: Vec<OwnedFd>,
}

/// What a child of the server has.
#[derive(Debug)]
pub struct Inherited {
    /// The server, for children of its own.
    pub server: ForkServer,
    /// The pidfd of the process that asked for it: its parent in all but the kernel's tables.
    pub requester: OwnedFd,
    /// What the request said.
    pub body: Vec<u8>,
    /// The descriptors that came with it.
    pub passed: Vec<OwnedFd>,
}

impl Server {
    /// The server at its end of the socket that [`ForkServer::new`] made.
    ///
    /// # Errors
    /// `Malformed` when no key comes first; `Closed` when nobody is at the other end; `Os` without descriptors.
    pub fn new(requests: OwnedFd) -> Result<Self> {
        packet::wait_readable(requests.as_fd(), Deadline::NEVER)?;
        let key = match packet::receive(&requests, protocol::FIRST)? {
            Arrived::Packet { bytes, cut, .. } if !cut => Key::of_first(&bytes),
            Arrived::End => return Err(Error::Closed { what: "tree" }),
            _ => None,
        };
        let key = key.ok_or(Error::Malformed {
            what: "first packet to a fork server",
            at: 0,
        })?;
        let ready = Ready::new()?;
        ready.add(&requests, REQUESTS)?;
        Ok(Self {
            requests,
            key,
            ready,
            children: HashMap::new(),
            next: REQUESTS + 1,
        })
    }

    /// The next request, as soon as there is one; `None` when nobody is left who could make one.
    ///
    /// Meanwhile it collects the status of each child that has ended, and tells it to who asked for it.
    ///
    /// # Errors
    /// `Interrupted` when a signal handler ran: call again. `Os` when somebody has closed what is the server's.
    pub fn next_request(&mut self) -> Result<Option<Request>> {
        loop {
            let mut asked = false;
            for number in self.ready.wait()? {
                asked |= number == REQUESTS;
                self.look_at(number);
            }
            if !asked {
                continue;
            }
            match packet::receive(&self.requests, REQUEST_MAX) {
                Ok(Arrived::End) => return Ok(None),
                Ok(Arrived::Packet {
                    bytes,
                    descriptors,
                    cut,
                }) => {
                    if let Some(request) = self.read(&bytes, descriptors, cut) {
                        return Ok(Some(request));
                    }
                }
                Ok(Arrived::Nothing) => {}
                // Who sent it sees its socket close.
                Err(Error::Os { errno, .. }) if PASSING.contains(&errno) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The request of a packet; anything else is dropped, with its descriptors.
    fn read(&self, bytes: &[u8], descriptors: Vec<OwnedFd>, cut: bool) -> Option<Request> {
        /// `EMFILE`: the kernel drops descriptors for which there is no room.
        const NO_ROOM: i32 = 24;
        let asked = protocol::asked(&self.key, bytes)?;
        let wanted = OURS + asked.passed;
        if cut && descriptors.len() < wanted {
            let reply = descriptors.first()?;
            tell(reply, Reply::Refused(Call::Receive, NO_ROOM));
            return None;
        }
        if descriptors.len() != wanted {
            return None;
        }
        let mut descriptors = descriptors.into_iter();
        Some(Request {
            place: asked.place,
            body: asked.body.to_vec(),
            reply: descriptors.next()?,
            way: descriptors.next()?,
            requester: descriptors.next()?,
            passed: descriptors.collect(),
        })
    }

    /// Tells how a child ended, if that one has.
    fn look_at(&mut self, number: u64) {
        let Some(child) = self.children.get(&number) else {
            return;
        };
        let status = match pidfd::collect(child.pidfd.as_fd()) {
            Ok(Some(status)) => report::status(status),
            Ok(None) | Err(Error::Interrupted) => return,
            // This process ignores SIGCHLD, or somebody in it waits for any child.
            Err(_) => report::afterwards(child.pidfd.as_fd()),
        };
        tell(&child.reply, Reply::Ended(status));
        self.ready.remove(&child.pidfd);
        self.children.remove(&number);
    }

    /// Says that the request's child runs: it is this process' child, and nobody has waited for it.
    ///
    /// If it can't be watched, or told of, it is killed, and the request refused.
    pub fn started(&mut self, request: Request, pid: u32) {
        match self.watch(pid, &request.reply) {
            Ok((number, pidfd)) => {
                let reply = request.reply;
                self.children.insert(number, Served { pidfd, reply });
            }
            Err(error) => {
                pidfd::end(pid);
                Self::refuse(request, &error);
            }
        }
    }

    fn watch(&mut self, pid: u32, reply: &OwnedFd) -> Result<(u64, OwnedFd)> {
        let pidfd = pidfd::open(pid)?;
        let number = self.next;
        self.ready.add(&pidfd, number)?;
        self.next += 1;
        let started = Reply::Started(pid).bytes();
        match packet::send(reply, &started, &[pidfd.as_fd()]) {
            // Nobody hears it when who asked is gone: the child will find that out.
            Ok(_) => Ok((number, pidfd)),
            Err(error) if packet::is_closed(&error) => Ok((number, pidfd)),
            Err(error) => {
                self.ready.remove(&pidfd);
                Err(error)
            }
        }
    }

    /// Says that there will be no child, and why: the error of the call that failed.
    #[expect(clippy::needless_pass_by_value, reason = "a request is answered once")]
    pub fn refuse(request: Request, error: &Error) {
        /// `EPERM`: what has no number of its own is forbidden.
        const FORBIDDEN: i32 = 1;
        let refused = match error {
            Error::Os { call, errno } => Reply::Refused(Call::named(call), *errno),
            _ => Reply::Refused(Call::Other, FORBIDDEN),
        };
        tell(&request.reply, refused);
    }

    /// In the forked child: closes all that is the server's.
    #[must_use]
    pub fn become_child(self, request: Request) -> Inherited {
        Inherited {
            server: ForkServer::at(request.way, self.key),
            requester: request.requester,
            body: request.body,
            passed: request.passed,
        }
    }
}

impl Request {
    /// Has this thread's next fork give its child the place that was kept for it: see [`Arena::adopt`].
    ///
    /// # Errors
    /// `Misuse` when who asks is of another tree.
    pub fn adopt(&self, arena: &Arena) -> Result<Adoption> {
        arena.adopt(self.place)
    }

    /// What the request says: the face's affair.
    #[must_use]
    pub fn body(&self) -> &[u8] {
        &self.body
    }
}

/// Tells somebody who may not be there any more, or not listen.
fn tell(reply: &OwnedFd, what: Reply) {
    let _ = packet::send(reply, &what.bytes(), &[]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ExitStatus;

    #[test]
    fn a_server_without_a_key_or_a_client_is_none() {
        let (mine, other) = packet::pair().unwrap();
        packet::send(&other, b"no key", &[]).unwrap();
        let refused = Server::new(mine).map(drop);
        assert!(matches!(refused, Err(Error::Malformed { .. })));
        let (mine, _) = packet::pair().unwrap();
        let refused = Server::new(mine).map(drop);
        assert!(matches!(refused, Err(Error::Closed { .. })));
        assert!(matches!(report::status((true, 9)), ExitStatus::Signal(9)));
    }
}
