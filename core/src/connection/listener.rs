//! Whoever wants to connect, and who of them is let in.
//!
//! A peer that connected and isn't known yet is a guest. All guests are looked after together, whenever somebody accepts: who is silent keeps nobody
//! waiting, and each costs no more than a descriptor for [`GUEST_TIME`]. There is no thread for it.

use super::hall::Hall;
use super::{AWAKE, Authentication, Failure};
use crate::sync::patience::Patience;
use crate::sys::descriptor::{pause, readable};
use crate::sys::socket::{self, Address, Came, FileIdentity};
use crate::wire::{Authenticated, Terms};
use crate::{Deadline, Error, Result, deadline, sys};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a guest has for its handshake, while somebody accepts: three messages there and three back, over any network.
pub const GUEST_TIME: Duration = Duration::from_secs(10);
/// How many guests there may be at once; of more, who has been there longest goes. A listener in a program with the usual 1,024
/// descriptors leaves most of them to it.
pub const GUESTS_MAX: usize = 64;

/// How long a connection for which there is no descriptor waits for one before that is an error.
const SHORTAGE_TIME: Duration = Duration::from_secs(1);
/// How long a shortage is left alone: so it costs twenty looks, not all of a processor.
const SHORTAGE_TURN: Duration = Duration::from_millis(50);
/// How long a wait is in a forked child that has no descriptor for a bell: what guests other threads leave behind is seen after it.
const SHARED_TURN: Duration = Duration::from_millis(50);

/// A socket that listens at an address. Dropped, it removes the file that it made, if that is still there.
///
/// Any number of threads may accept at once.
///
/// # Across processes
/// A forked child has a listener of its own at the same address; each connection goes to one of the two. It closes the guests of its
/// parent when it first accepts, and removes no file.
///
/// Python: `Listener`, `SocketListener`.
#[derive(Debug)]
pub struct Listener {
    socket: OwnedFd,
    address: Address,
    /// The file at the address, and the process that made it.
    file: Option<(FileIdentity, u32)>,
    hall: Hall,
    /// How long a wait for a connection is awake, by how that went so far.
    patience: Patience,
}

/// A peer that isn't known yet.
#[derive(Debug)]
pub(super) struct Guest {
    stream: OwnedFd,
    peer: Option<Address>,
    authentication: Authentication<'static>,
    until: Deadline,
    /// The process that accepted it.
    host: u32,
    /// When it was last looked after, while nobody accepts.
    left: Option<Instant>,
}

/// A connection.
#[derive(Debug)]
pub struct Accepted {
    /// Its stream.
    pub stream: OwnedFd,
    /// Where it comes from; `None` for a unix socket without a name. Python: `Listener.last_accepted`.
    pub peer: Option<Address>,
}

/// A connection that wasn't let in, and is closed.
#[derive(Debug)]
pub struct Refused {
    /// Where it came from.
    pub peer: Option<Address>,
    /// Why.
    pub failure: Failure,
}

/// How it ended for a guest.
pub type Admission = Result<(Accepted, Authenticated), Refused>;

impl Listener {
    /// Listens at an address; the system keeps about `backlog` connections that nobody has accepted yet, and lets no more come. Two
    /// descriptors.
    ///
    /// # Errors
    /// `Os` with what bind(2) says: EADDRINUSE for a file that exists, though nobody may listen there any more.
    pub fn bind(address: &Address, backlog: u32) -> Result<Self> {
        let (socket, address) = socket::listener(address, backlog)?;
        let file = match &address {
            Address::Path(path) => socket::file_at(path).map(|file| (file, sys::identity::pid())),
            Address::Inet(_) | Address::Abstract(_) => None,
        };
        let listener = Self {
            socket,
            address,
            file,
            hall: Hall::default(),
            patience: Patience::up_to(AWAKE),
        };
        listener.hall.enter().hang_bell()?;
        Ok(listener)
    }

    /// Where it listens: with the port that the system chose.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Removes the file that it made, if that is still there: nobody connects from now on. In another process than the one that made
    /// it, nothing happens.
    pub fn remove_file(&self) {
        if let (Some((file, maker)), Address::Path(path)) = (self.file, &self.address)
            && maker == sys::identity::pid()
        {
            socket::remove(path, file);
        }
    }

    /// The next connection, whoever that is; `None` once the deadline has passed.
    ///
    /// When there is no descriptor for one, it waits for a second until somebody closes one.
    ///
    /// # Errors
    /// `Os`: EMFILE or ENFILE after that second, and the connection waits on; `Interrupted`.
    ///
    /// Python: `SocketListener.accept`.
    pub fn accept(&self, deadline: Deadline) -> Result<Option<Accepted>> {
        loop {
            match self.look(!deadline.passed())? {
                Came::Connection(stream, peer) => {
                    self.hall.enter().shortage = None;
                    return Ok(Some(Accepted { stream, peer }));
                }
                Came::Nobody => {
                    if readable([self.socket.as_fd()], deadline)?.is_empty() {
                        return Ok(None);
                    }
                }
                Came::NoRoom(error) => {
                    self.bear(error)?;
                    if deadline.passed() {
                        return Ok(None);
                    }
                    pause(deadline.at_most(SHORTAGE_TURN))?;
                }
            }
        }
    }

    /// The next connection of somebody who has the key, or of somebody who hasn't; `None` once the deadline has passed.
    ///
    /// Guests whose handshake isn't over then stay for the next call; they get no older meanwhile.
    ///
    /// # Errors
    /// As [`accept`](Self::accept).
    ///
    /// Python: `Listener.accept`, of a listener with an `authkey`.
    pub fn accept_known(
        &self,
        key: &[u8],
        terms: Terms,
        deadline: Deadline,
    ) -> Result<Option<Admission>> {
        let (mut guests, bell) = self.enter();
        let admission = self.receive(&mut guests, bell.as_deref(), key, terms, deadline);
        self.leave(guests);
        admission
    }

    fn receive(
        &self,
        guests: &mut Vec<Guest>,
        bell: Option<&OwnedFd>,
        key: &[u8],
        terms: Terms,
        deadline: Deadline,
    ) -> Result<Option<Admission>> {
        let mut someone_came = true;
        // Some may have said something while nobody looked.
        let mut speaking: Vec<usize> = (0..guests.len()).collect();
        loop {
            let (late, end) = (Err(Failure::Late), guests.iter().position(Guest::is_late));
            if let Some((place, end)) = ended(guests, &speaking).or(end.map(|place| (place, late)))
            {
                return Ok(Some(guests.remove(place).leave(end)));
            }
            let mut is_short = false;
            if someone_came {
                // Who is waited for as a guest answers sooner than another one comes.
                match self.look(guests.is_empty() && !deadline.passed())? {
                    Came::Connection(stream, peer) => {
                        self.hall.enter().shortage = None;
                        if guests.len() >= GUESTS_MAX {
                            guests[0].until = Deadline::now();
                        }
                        guests.push(Guest::new(stream, peer, key, terms)?);
                        // It may be the last one, and have said something.
                        speaking = vec![guests.len() - 1];
                        continue;
                    }
                    Came::Nobody => {}
                    Came::NoRoom(error) => {
                        // Each guest has a descriptor. Who has kept it for a while gives it back.
                        let oldest = guests.first_mut();
                        if let Some(oldest) = oldest.filter(|guest| guest.has_stayed()) {
                            oldest.until = Deadline::now();
                            continue;
                        }
                        self.bear(error)?;
                        is_short = true;
                    }
                }
            }
            if deadline.passed() {
                return Ok(None);
            }
            (someone_came, speaking) = self.wait(guests, bell, is_short, deadline)?;
            let left = self.take_over();
            if !left.is_empty() {
                // Who has been here longest comes first.
                let mine = std::mem::replace(guests, left);
                guests.extend(mine);
                speaking = (0..guests.len()).collect();
            }
        }
    }

    /// Who has come; awake, it waits for somebody for a moment.
    fn look(&self, awake: bool) -> Result<Came> {
        let came = socket::accept(self.socket.as_fd())?;
        // In vain, that call takes 2.1 µs and this one 0.2: it makes a socket first.
        let is_there = || Ok(!readable([self.socket.as_fd()], Deadline::now())?.is_empty());
        if awake && matches!(came, Came::Nobody) && self.patience.offer(is_there)? {
            return socket::accept(self.socket.as_fd());
        }
        Ok(came)
    }

    /// Waits until somebody comes, or guests say something: whether that is, and who. Another thread may have left guests behind, too. In a
    /// shortage nobody can come for a while.
    fn wait(
        &self,
        guests: &[Guest],
        bell: Option<&OwnedFd>,
        is_short: bool,
        deadline: Deadline,
    ) -> Result<(bool, Vec<usize>)> {
        let ends = guests.iter().filter_map(|guest| guest.until.remaining());
        let until = ends.min().map_or(deadline, |end| deadline.at_most(end));
        let streams = guests.iter().map(|guest| guest.stream.as_fd());
        if is_short {
            return Ok((true, readable(streams, until.at_most(SHORTAGE_TURN))?));
        }
        let until = bell.map_or_else(|| until.at_most(SHARED_TURN), |_| until);
        // The guests come first, so that their places are right.
        let others = [self.socket.as_fd()]
            .into_iter()
            .chain(bell.map(AsFd::as_fd));
        let mut ready = readable(streams.chain(others), until)?;
        let someone_came = ready.contains(&guests.len());
        ready.retain(|place| *place < guests.len());
        Ok((someone_came, ready))
    }

    /// Begins to accept: the guests that nobody looks after, and what rings when there are such again.
    fn enter(&self) -> (Vec<Guest>, Option<Arc<OwnedFd>>) {
        // Without a descriptor for it, this thread looks now and then.
        let bell = self.hall.enter().come().ok();
        (self.take_over(), bell)
    }

    /// Takes over all guests that nobody looks after.
    fn take_over(&self) -> Vec<Guest> {
        let mut guests = self.hall.enter().empty();
        guests.retain_mut(Guest::resume);
        guests
    }

    fn leave(&self, mut guests: Vec<Guest>) {
        let now = deadline::now();
        for guest in &mut guests {
            guest.left = Some(now);
        }
        self.hall.enter().go(guests);
    }

    /// Bears a lack of descriptors for a while.
    fn bear(&self, error: Error) -> Result<()> {
        let mut hall = self.hall.enter();
        let until = hall.shortage;
        let until = until.unwrap_or_else(|| Deadline::after(SHORTAGE_TIME));
        hall.shortage = (!until.passed()).then_some(until);
        hall.shortage.map(|_| ()).ok_or(error)
    }
}

impl AsFd for Listener {
    /// Can be read from when somebody has come.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.remove_file();
    }
}

impl Guest {
    fn new(stream: OwnedFd, peer: Option<Address>, key: &[u8], terms: Terms) -> Result<Self> {
        Ok(Self {
            stream,
            peer,
            authentication: Authentication::begin(key.to_vec(), terms)?,
            until: Deadline::after(GUEST_TIME),
            host: sys::identity::pid(),
            left: None,
        })
    }

    /// Goes on with the handshake as far as it goes without sleeping, and says how it ended.
    fn advance(&mut self) -> Option<Result<Authenticated, Failure>> {
        loop {
            match self.authentication.attend(self.stream.as_fd()) {
                Err(Failure::System(Error::Interrupted)) => {}
                advanced => return advanced.transpose(),
            }
        }
    }

    /// Is looked after again, no older than when it was left; false if it is another process'.
    fn resume(&mut self) -> bool {
        if let Some(left) = self.left.take() {
            let idle = deadline::now().saturating_duration_since(left);
            self.until = self.until.later(idle);
        }
        self.host == sys::identity::pid()
    }

    fn is_late(&self) -> bool {
        self.until.passed()
    }

    fn has_stayed(&self) -> bool {
        let left = self.until.remaining();
        left.is_some_and(|left| left + SHORTAGE_TIME <= GUEST_TIME)
    }

    fn leave(self, end: Result<Authenticated, Failure>) -> Admission {
        let Self { stream, peer, .. } = self;
        match end {
            Ok(authenticated) => Ok((Accepted { stream, peer }, authenticated)),
            Err(failure) => Err(Refused { peer, failure }),
        }
    }
}

/// The first of those guests whose handshake has ended, and how.
fn ended(
    guests: &mut [Guest],
    speaking: &[usize],
) -> Option<(usize, Result<Authenticated, Failure>)> {
    let mut ends = speaking.iter();
    ends.find_map(|place| Some((*place, guests[*place].advance()?)))
}
