//! A fork server: a process that has everything loaded, and forks others ahead of the requests for them.
//!
//! The face pulls: [`Server::next_fork`] says when it is to fork, and meanwhile gives the child that waits to the next who
//! asks, and tells those who asked before how theirs ended. The face makes the fork, so that its language's own hooks run
//! around it. One thread, and nothing waits for a client: what can't be told at once isn't told.
//!
//! A child [waits](Waiting) at a socket for its request, which the server passes on to it as it came: so neither the copy of
//! the page tables nor the hooks are what a start waits for. `docs/processes.md` has the states, and who dies in which.
//!
//! Anyone of the tree may hold the way to the server. Each request is one packet that brings the socket for its own
//! replies, so nothing interleaves, and what isn't a request with the key is dropped.

use super::forkserver::ForkServer;
use super::protocol::{self, Asked, Call, Key, OURS, REQUEST_MAX, Reply};
use super::report;
use crate::shm::{Adoption, Arena, Place};
use crate::sys::fork::{Interrupts, hold_interrupts};
use crate::sys::packet::{self, Arrived, Ready};
use crate::sys::pidfd;
use crate::{Deadline, Error, Result};
use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};

/// The number of the socket that requests come by; children have later ones.
const REQUESTS: u64 = 0;

/// What may be better at the next request: `EMFILE`, `ENFILE`, `ENOMEM`, `ENOBUFS`.
const PASSING: [i32; 4] = [24, 23, 12, 105];

/// `EMFILE`: the kernel drops descriptors for which there is no room.
const NO_ROOM: i32 = 24;

/// This process as a fork server.
///
/// It is over when nobody is left who could ask: every child holds the way to it, so it outlives no process that may. It holds
/// back SIGINT, which the terminal sends to all processes of a job: it must survive what its children are to die of.
///
/// # After fork
/// Only by [`become_child`](Self::become_child): a copy that stays open keeps those who ask from noticing the server's end.
#[derive(Debug)]
pub struct Server {
    requests: OwnedFd,
    key: Key,
    ready: Ready,
    children: HashMap<u64, Served>,
    ahead: Option<Ahead>,
    /// The last child that was forked ahead came to nothing: the next is forked when somebody asks for it.
    is_wary: bool,
    /// The number of the next child.
    next: u64,
    interrupts: Interrupts,
}

/// A child that runs.
#[derive(Debug)]
struct Served {
    pidfd: OwnedFd,
    reply: OwnedFd,
}

/// The child that waits.
#[derive(Debug)]
struct Ahead {
    number: u64,
    pid: u32,
    pidfd: OwnedFd,
    /// Where it waits for its request, or for the end of the server.
    line: OwnedFd,
    adoption: Adoption,
}

/// A fork that the server's process is to make now.
#[derive(Debug)]
pub struct Fork {
    servers: OwnedFd,
    childs: OwnedFd,
    adoption: Adoption,
    /// Nobody has asked yet.
    is_early: bool,
}

/// A child of the server that nobody has asked for yet.
///
/// Until it [has](Self::request) a request it has no place in the tree, if it was forked [without one](Arena::placeless), and
/// holds nothing open that anybody waits for the end of.
#[derive(Debug)]
pub struct Waiting {
    line: OwnedFd,
    key: Key,
    /// Until it has its place.
    _adoption: Adoption,
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
    /// The server at its end of the socket that [`ForkServer::new`] made. From now on the calling thread, which is to serve, holds
    /// back SIGINT.
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
            ahead: None,
            is_wary: false,
            next: REQUESTS + 1,
            interrupts: hold_interrupts(),
        })
    }

    /// The next fork to make, as soon as it is time for it; `None` when nobody is left who could ask for a child.
    ///
    /// `ahead`: it may be made before anybody asks. Not so in a process that another thread may change meanwhile: its child is to
    /// be as one that is forked now.
    ///
    /// # Errors
    /// `Interrupted` when a signal handler ran: call again. `Os` when somebody has closed what is the server's.
    pub fn next_fork(&mut self, arena: &Arena, ahead: bool) -> Result<Option<Fork>> {
        loop {
            let is_early = ahead && self.ahead.is_none() && !self.is_wary;
            if !is_early {
                self.wait_for_request()?;
                if self.has_child() {
                    if self.serve(arena)? {
                        continue;
                    }
                    self.end_ahead();
                    return Ok(None);
                }
            }
            match packet::pair() {
                Ok((servers, childs)) => {
                    return Ok(Some(Fork {
                        servers,
                        childs,
                        adoption: arena.adoption(),
                        is_early,
                    }));
                }
                Err(error) => self.failed(is_early, &error),
            }
        }
    }

    /// Waits until somebody asks, or nobody can any more.
    fn wait_for_request(&mut self) -> Result<()> {
        loop {
            let ready = self.ready.wait();
            if ready == Err(Error::Interrupted) {
                // The handler may have changed what a child is to find.
                self.end_ahead();
            }
            let mut is_asked = false;
            for number in ready? {
                is_asked |= number == REQUESTS;
                self.look_at(number);
            }
            if is_asked {
                return Ok(());
            }
        }
    }

    /// Tells how a child ended, if that one has.
    fn look_at(&mut self, number: u64) {
        if let Some(ahead) = self.ahead.take_if(|ahead| ahead.number == number) {
            self.end(&ahead);
            self.is_wary = true;
        }
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

    /// Whether there is a child that waits. One that was stopped or killed is none.
    fn has_child(&mut self) -> bool {
        let runs = |ahead: &Ahead| pidfd::runs(ahead.pidfd.as_fd());
        if !self.ahead.as_ref().is_some_and(runs) {
            self.end_ahead();
        }
        self.ahead.is_some()
    }

    fn end_ahead(&mut self) {
        if let Some(ahead) = self.ahead.take() {
            self.end(&ahead);
        }
    }

    fn end(&self, ahead: &Ahead) {
        self.ready.remove(&ahead.pidfd);
        pidfd::end(ahead.pid);
    }

    /// Passes the next request on to the child that waits; false when there will be none any more.
    fn serve(&mut self, arena: &Arena) -> Result<bool> {
        match packet::receive(&self.requests, REQUEST_MAX) {
            Ok(Arrived::End) => return Ok(false),
            Ok(Arrived::Packet {
                bytes,
                descriptors,
                cut,
            }) => {
                // Anything else is dropped, with its descriptors.
                if let Some(asked) = self.asked(&bytes, &descriptors, cut) {
                    self.pass_on(arena, asked.place, &bytes, descriptors);
                }
            }
            Ok(Arrived::Nothing) => {}
            // Who sent it sees its socket close.
            Err(Error::Os { errno, .. }) if PASSING.contains(&errno) => {}
            Err(error) => return Err(error),
        }
        Ok(true)
    }

    /// The request of a packet, if it is one, and whole. Who made one that isn't for want of room is told.
    fn asked<'a>(&self, bytes: &'a [u8], descriptors: &[OwnedFd], cut: bool) -> Option<Asked<'a>> {
        let asked = protocol::asked(&self.key, bytes)?;
        let wanted = OURS + asked.passed;
        if cut && descriptors.len() < wanted {
            tell(descriptors.first()?, Reply::Refused(Call::Receive, NO_ROOM));
            return None;
        }
        (descriptors.len() == wanted).then_some(asked)
    }

    /// Gives the child that waits the place that is kept for it, and the request; and tells who asked.
    fn pass_on(&mut self, arena: &Arena, place: Place, request: &[u8], descriptors: Vec<OwnedFd>) {
        let Some(ahead) = self.ahead.take() else {
            return;
        };
        // If who kept it is gone, the child gets another one.
        let _ = arena.adopt(place, &ahead.adoption);
        let passed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        let sent = packet::send(&ahead.line, request, &passed);
        let Some(reply) = descriptors.into_iter().next() else {
            return;
        };
        let told = match sent {
            Ok(true) => {
                let started = Reply::Started(ahead.pid).bytes();
                packet::send(&reply, &started, &[ahead.pidfd.as_fd()])
            }
            // It has ended a moment ago. Who asked sees its socket close, and asks again.
            Err(error) if packet::is_closed(&error) => return self.end(&ahead),
            unsent => unsent,
        };
        match told {
            Err(error) if !packet::is_closed(&error) => {
                self.end(&ahead);
                refuse(&reply, &error);
            }
            // Nobody hears it when who asked is gone: the child will find that out.
            _ => {
                let Ahead { number, pidfd, .. } = ahead;
                self.children.insert(number, Served { pidfd, reply });
                self.is_wary = false;
            }
        }
    }

    /// Says that the fork was made: the child is this process', and nobody has waited for it.
    pub fn forked(&mut self, fork: Fork, pid: u32) {
        match self.watch(pid) {
            Ok((number, pidfd)) => {
                self.ahead = Some(Ahead {
                    number,
                    pid,
                    pidfd,
                    line: fork.servers,
                    adoption: fork.adoption,
                });
            }
            Err(error) => {
                pidfd::end(pid);
                self.failed(fork.is_early, &error);
            }
        }
    }

    fn watch(&mut self, pid: u32) -> Result<(u64, OwnedFd)> {
        let pidfd = pidfd::open(pid)?;
        let number = self.next;
        self.ready.add(&pidfd, number)?;
        self.next += 1;
        Ok((number, pidfd))
    }

    /// Says that the fork couldn't be made, and why.
    #[expect(clippy::needless_pass_by_value, reason = "a fork is made once")]
    pub fn could_not(&mut self, fork: Fork, error: &Error) {
        self.failed(fork.is_early, error);
    }

    /// A fork that nobody has asked for is nobody's error when it fails; else the next who asks is told.
    fn failed(&mut self, is_early: bool, error: &Error) {
        self.is_wary = true;
        if is_early {
            return;
        }
        if let Ok(Arrived::Packet {
            bytes,
            descriptors,
            cut,
        }) = packet::receive(&self.requests, REQUEST_MAX)
            && self.asked(&bytes, &descriptors, cut).is_some()
            && let Some(reply) = descriptors.first()
        {
            refuse(reply, error);
        }
    }

    /// In the forked child: closes all that is the server's. The thread gets SIGINT again as it did before the server held that
    /// back.
    #[must_use]
    pub fn become_child(self, fork: Fork) -> Waiting {
        self.interrupts.meet();
        Waiting {
            line: fork.childs,
            key: self.key,
            _adoption: fork.adoption,
        }
    }
}

impl Waiting {
    /// Waits for the request that this child is for, and takes the place that was kept for it. `None`: there will be none, and
    /// this process is to end at once.
    ///
    /// # Errors
    /// `Os` when the system refuses to receive all of it; and as [`Arena::take_place`] has it.
    pub fn request(self, arena: &Arena) -> Result<Option<Inherited>> {
        let arrived = match packet::receive_next(&self.line, REQUEST_MAX) {
            Err(Error::Interrupted) => {
                // The handler may have changed what a child is to find: another one will be forked, unless this one was given
                // a request by now.
                packet::end_receiving(&self.line)?;
                packet::receive(&self.line, REQUEST_MAX)?
            }
            arrived => arrived?,
        };
        let Arrived::Packet {
            bytes, descriptors, ..
        } = arrived
        else {
            return Ok(None);
        };
        let asked = protocol::asked(&self.key, &bytes);
        let asked = asked.filter(|asked| descriptors.len() == OURS + asked.passed);
        let mut descriptors = descriptors.into_iter();
        let ours = [(); OURS].map(|()| descriptors.next());
        // The reply's socket is the server's affair.
        let (Some(asked), [_, Some(way), Some(requester)]) = (asked, ours) else {
            return Err(Error::Os {
                call: "recvmsg",
                errno: NO_ROOM,
            });
        };
        arena.take_place(asked.place)?;
        Ok(Some(Inherited {
            server: ForkServer::at(way, self.key),
            requester,
            body: asked.body.to_vec(),
            passed: descriptors.collect(),
        }))
    }
}

/// Says that there will be no child, and why: the error of the call that failed.
fn refuse(reply: &OwnedFd, error: &Error) {
    /// `EPERM`: what has no number of its own is forbidden.
    const FORBIDDEN: i32 = 1;
    let refused = match error {
        Error::Os { call, errno } => Reply::Refused(Call::named(call), *errno),
        _ => Reply::Refused(Call::Other, FORBIDDEN),
    };
    tell(reply, refused);
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
