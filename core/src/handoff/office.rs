//! What this process keeps for others, and the thread that gives it to them.
//!
//! A static, held across forks: a forked child must neither give out nor hold open what its parent keeps.
//!
//! Whoever comes may be anybody's process: those of other users are sent away before a byte is read, the others have [`PATIENCE`] to
//! say what they want, and there are at most [`PEERS_MAX`] of them.

use super::entrust::Invitation;
use super::protocol::{GIVEN, NONE, Name, REQUEST_MAX, Request, Secret, Ticket};
use crate::sys::descriptor::{copy_above_streams, readable};
use crate::sys::fork_safe::ForkSafe;
use crate::sys::local::{self, Accepted};
use crate::sys::packet::{self, Arrived};
use crate::sys::{fork, identity, pidfd, thread};
use crate::{Deadline, Error, Result};
use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// How long a peer may take to say what it wants: one of ours has said it when it is seen.
const PATIENCE: Duration = Duration::from_secs(5);
/// Who may be silent at once: the first of more is sent away, and comes again if it is one of ours.
const PEERS_MAX: usize = 64;
/// How long nobody is let in when there was no descriptor for one.
const REST: Duration = Duration::from_millis(20);

static OFFICE: ForkSafe<Option<Office>> = ForkSafe::new(None, end_idle, abandon);

#[derive(Debug)]
struct Office {
    name: Name,
    listener: Arc<OwnedFd>,
    /// With which a child may have something kept here.
    invitation: Secret,
    /// How many were told it that may come still.
    invited: u32,
    kept: BTreeMap<u64, Kept>,
    last: u64,
    peers: Vec<Peer>,
    /// Until when nobody is let in.
    rests: Option<Deadline>,
    /// This process' start.
    started: u64,
    server: Option<Server>,
}

#[derive(Debug)]
struct Kept {
    secret: Secret,
    descriptor: OwnedFd,
}

/// Somebody who hasn't said yet what it wants.
#[derive(Debug)]
struct Peer {
    end: Arc<OwnedFd>,
    deadline: Deadline,
}

/// The thread, and what tells it to end.
#[derive(Debug)]
struct Server {
    bell: OwnedFd,
    /// Its own end.
    rung: Arc<OwnedFd>,
    thread: JoinHandle<()>,
}

/// What came of a look for a ticket's descriptor in this process.
#[derive(Debug)]
pub(super) enum Here {
    Given(OwnedFd),
    None,
    Elsewhere,
}

/// Keeps a copy of a descriptor for whoever redeems the ticket, once.
///
/// Some microseconds, and at the first call in a process 100 more, in which a thread is started: it blocks all signals and sleeps
/// while nobody comes. One descriptor, until it is redeemed, [withdrawn](withdraw), or this process ends.
///
/// # Errors
/// `Os` without descriptors, threads or random bytes.
///
/// # After fork
/// The child keeps nothing of its parent's: the parent goes on giving it out.
///
/// Python: `resource_sharer.DupFd`; CPython's `Lib/multiprocessing/resource_sharer.py`.
pub fn offer(descriptor: BorrowedFd<'_>) -> Result<Ticket> {
    keep(copy_above_streams(descriptor)?, descriptor.as_raw_fd())
}

/// As [`offer`], of a copy that was made; `number` is what the original is known as.
///
/// # Errors
/// As [`offer`].
pub fn keep(descriptor: OwnedFd, number: RawFd) -> Result<Ticket> {
    let kept = Kept {
        secret: Secret(identity::secret()?),
        descriptor,
    };
    let mut office = OFFICE.lock();
    let office = Office::open(&mut office)?;
    office.serve()?;
    office.last += 1;
    let ticket = Ticket {
        office: office.name,
        number: office.last,
        secret: kept.secret,
        started: office.started,
        pid: identity::pid(),
        descriptor: number,
    };
    office.kept.insert(ticket.number, kept);
    Ok(ticket)
}

/// Takes back what a ticket of this process' was made for, if nobody has redeemed it: its message was not sent.
pub fn withdraw(ticket: &Ticket) {
    if let Some(office) = OFFICE
        .lock()
        .as_mut()
        .filter(|office| office.name == ticket.office)
    {
        office.kept.remove(&ticket.number);
    }
}

/// How many descriptors this process keeps at this moment.
#[must_use]
pub fn kept() -> usize {
    OFFICE.lock().as_ref().map_or(0, |office| office.kept.len())
}

/// Closes all that this process keeps, and ends its thread: whoever redeems one of its tickets is told so. Those made later
/// are good again.
///
/// Python: `resource_sharer.stop`.
pub fn stop() {
    let office = OFFICE.lock().take();
    if let Some(server) = office.and_then(|mut office| office.server.take()) {
        server.end();
    }
}

/// Another process of this user may [entrust](super::entrust()) descriptors to this one as long as this lives. What it has entrusted by
/// then is kept.
#[derive(Debug)]
pub struct Invited(Invitation);

/// Invites another process. Without a thread: what it entrusts waits in the kernel until this process redeems one of its own
/// tickets, or takes the invitation back. One descriptor for all that are invited.
///
/// # Errors
/// `Os` without descriptors or random bytes.
pub fn invite() -> Result<Invited> {
    let mut office = OFFICE.lock();
    let office = Office::open(&mut office)?;
    office.invited += 1;
    Ok(Invited(Invitation {
        name: office.name,
        secret: office.invitation,
    }))
}

impl Invited {
    /// What the other process is to know.
    #[must_use]
    pub fn invitation(&self) -> &Invitation {
        &self.0
    }
}

impl Drop for Invited {
    fn drop(&mut self) {
        let mut place = OFFICE.lock();
        // A forked child's copy, or one from before a stop, is nobody's.
        let Some(office) = place.as_mut().filter(|it| it.name == self.0.name) else {
            return;
        };
        office.invited -= 1;
        if office.invited == 0 {
            // All that has come, some at a time.
            let mut before = usize::MAX;
            while std::mem::replace(&mut before, office.kept.len()) != office.kept.len() {
                office.round();
            }
        }
        Office::close_idle(&mut place);
    }
}

/// The descriptor of a ticket, if this process keeps it.
pub(super) fn take(ticket: &Ticket) -> Here {
    let mut place = OFFICE.lock();
    let Some(office) = place.as_mut().filter(|it| it.name == ticket.office) else {
        return Here::Elsewhere;
    };
    let mut kept = office.remove(ticket.number, ticket.secret);
    if kept.is_none() {
        // What others have entrusted may not have been looked at.
        office.round();
        kept = office.remove(ticket.number, ticket.secret);
    }
    Office::close_idle(&mut place);
    kept.map_or(Here::None, |kept| Here::Given(kept.descriptor))
}

/// This process has no thread of ours as long as this lives: it is about to fork, and must be alone. Whoever comes meanwhile waits.
#[derive(Debug)]
pub(crate) struct Paused(bool);

/// Ends the thread for a while, if there is one.
pub(crate) fn pause() -> Paused {
    let server = OFFICE
        .lock()
        .as_mut()
        .and_then(|office| office.server.take());
    let was_serving = server.is_some();
    if let Some(server) = server {
        server.end();
    }
    Paused(was_serving)
}

impl Drop for Paused {
    fn drop(&mut self) {
        // In a forked child there is no office. Without a thread, the next to offer something tries again.
        if let (true, Some(office)) = (self.0, OFFICE.lock().as_mut()) {
            let _ = office.serve();
        }
    }
}

/// Threads that have nothing to do needn't be there in a fork: the child's language may warn of them.
fn end_idle() {
    let is_idle = OFFICE.lock().as_ref().is_some_and(Office::is_idle);
    if is_idle {
        stop();
    }
}

/// In a forked child, whose parent goes on with it.
fn abandon(place: &mut Option<Office>) {
    let Some(office) = place.take() else {
        return;
    };
    let ends = office.peers.into_iter().map(|peer| peer.end);
    let mut shared: Vec<_> = ends.chain([office.listener]).collect();
    if let Some(server) = office.server {
        shared.push(server.rung);
        // It isn't there, so there is nothing to detach.
        std::mem::forget(server.thread);
    }
    shared.into_iter().for_each(fork::close_in_child);
}

impl Office {
    fn open(place: &mut Option<Self>) -> Result<&mut Self> {
        if place.is_none() {
            *place = Some(Self::new()?);
        }
        place.as_mut().ok_or(Error::Closed { what: "office" })
    }

    fn new() -> Result<Self> {
        let name = Name(identity::secret()?);
        Ok(Self {
            name,
            listener: Arc::new(local::listen_at(&name.address())?),
            invitation: Secret(identity::secret()?),
            invited: 0,
            kept: BTreeMap::new(),
            last: 0,
            peers: Vec::new(),
            rests: None,
            started: identity::origin().started,
            server: None,
        })
    }

    /// Closes one that nobody can need and that has no thread.
    fn close_idle(place: &mut Option<Self>) {
        if place
            .as_ref()
            .is_some_and(|office| office.server.is_none() && office.is_idle())
        {
            *place = None;
        }
    }

    /// Nobody can need it.
    fn is_idle(&self) -> bool {
        self.kept.is_empty() && self.peers.is_empty() && self.invited == 0
    }

    /// Starts the thread, unless there is one.
    fn serve(&mut self) -> Result<()> {
        if self.server.is_some() {
            return Ok(());
        }
        let (bell, rung) = packet::pair()?;
        let (name, rung) = (self.name, Arc::new(rung));
        let hears = Arc::clone(&rung);
        let thread = thread::spawn("handoff", move || serve(name, &hears))?;
        self.server = Some(Server { bell, rung, thread });
        Ok(())
    }

    /// Does all that can be done at this moment.
    fn round(&mut self) {
        self.admit();
        for peer in std::mem::take(&mut self.peers) {
            if self.hear(&peer) {
                self.peers.push(peer);
            } else {
                // The thread may have a hold of it still.
                local::hang_up(&*peer.end);
            }
        }
    }

    /// Lets in who has come.
    fn admit(&mut self) {
        if self.rests.is_some_and(|rests| !rests.passed()) {
            return;
        }
        self.rests = None;
        for _ in 0..PEERS_MAX {
            match local::accept(&*self.listener) {
                Accepted::End(end) if is_own(&end) => {
                    if self.peers.len() == PEERS_MAX {
                        local::hang_up(&*self.peers.remove(0).end);
                    }
                    self.peers.push(Peer {
                        end: Arc::new(end),
                        deadline: Deadline::after(PATIENCE),
                    });
                }
                Accepted::End(_) => {}
                Accepted::Nobody => return,
                Accepted::NoRoom => {
                    self.rests = Some(Deadline::after(REST));
                    return;
                }
            }
        }
    }

    /// Does what a peer wants; true if it hasn't said it yet, and has time.
    fn hear(&mut self, peer: &Peer) -> bool {
        match packet::receive(&*peer.end, REQUEST_MAX) {
            Ok(Arrived::Nothing) => !peer.deadline.passed(),
            Ok(Arrived::Packet {
                bytes,
                descriptors,
                cut: false,
            }) => {
                if let Some(request) = Request::of(&bytes) {
                    self.answer(peer, request, descriptors);
                }
                false
            }
            _ => false,
        }
    }

    fn answer(&mut self, peer: &Peer, request: Request, mut descriptors: Vec<OwnedFd>) {
        match request {
            Request::Give { number, secret } => {
                let Some(kept) = self.remove(number, secret) else {
                    // Whoever has ended needn't know.
                    let _ = packet::send(&*peer.end, NONE, &[]);
                    return;
                };
                let sent = packet::send(&*peer.end, GIVEN, &[kept.descriptor.as_fd()]);
                if !matches!(sent, Ok(true)) {
                    self.kept.insert(number, kept);
                }
            }
            Request::Keep {
                number,
                secret,
                invitation,
            } => {
                let is_new = !self.kept.contains_key(&number);
                if let (Some(descriptor), true, true) =
                    (descriptors.pop(), is_new, self.invitation.is(invitation))
                {
                    self.kept.insert(number, Kept { secret, descriptor });
                }
            }
        }
    }

    /// Takes out what is kept under that number, for who knows its secret.
    fn remove(&mut self, number: u64, secret: Secret) -> Option<Kept> {
        let kept = self.kept.get(&number)?;
        kept.secret
            .is(secret)
            .then(|| self.kept.remove(&number))
            .flatten()
    }

    /// What the thread is to look at, and until when.
    fn watched(&self) -> (Vec<Arc<OwnedFd>>, Deadline) {
        let peers = self.peers.iter().map(|peer| Arc::clone(&peer.end));
        let listener = self.rests.is_none().then(|| Arc::clone(&self.listener));
        let ends = self.peers.iter().map(|peer| peer.deadline);
        let until = ends.chain(self.rests).fold(Deadline::NEVER, |first, end| {
            end.remaining().map_or(first, |left| first.at_most(left))
        });
        (listener.into_iter().chain(peers).collect(), until)
    }
}

impl Server {
    /// Has the thread end, and waits until it has.
    fn end(self) {
        // It has room for one, so this is refused only if the thread has ended.
        let _ = packet::send(&self.bell, b"end", &[]);
        let _ = self.thread.join();
    }
}

/// The thread's whole life: until the bell rings, or the office of that name is closed.
fn serve(name: Name, bell: &OwnedFd) {
    loop {
        let (watched, until) = {
            let mut office = OFFICE.lock();
            let Some(office) = office.as_mut().filter(|office| office.name == name) else {
                return;
            };
            office.round();
            office.watched()
        };
        let watched = watched.iter().map(|end| end.as_fd());
        match readable([bell.as_fd()].into_iter().chain(watched), until) {
            Ok(ready) if ready.first() == Some(&0) => return,
            Ok(_) | Err(Error::Interrupted) => {}
            // No memory for the call: later there may be.
            Err(_) => std::thread::sleep(REST),
        }
    }
}

pub(super) fn is_own(end: &OwnedFd) -> bool {
    pidfd::peer(end.as_fd()).is_some_and(|peer| peer.is_own())
}
