//! Where a listener's guests are while nobody looks after them.

use super::listener::Guest;
use crate::sys::fork_safe::ForkSafe;
use crate::sys::{eventfd, identity};
use crate::{Deadline, Result};
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Held by whoever is in any listener's hall: so a forked child finds none locked by a thread that isn't there.
static HALLS: ForkSafe<()> = ForkSafe::new((), || {}, |()| {});

/// A listener's hall; one thread at a time is in it, and for no longer than a system call takes.
#[derive(Debug, Default)]
pub(super) struct Hall(Mutex<Room>);

/// What is in it.
#[derive(Debug, Default)]
pub(super) struct Room {
    guests: Vec<Guest>,
    /// How many threads are accepting.
    hosts: usize,
    bell: Option<Bell>,
    /// When it becomes an error that a connection waits for a descriptor.
    pub(super) shortage: Option<Deadline>,
}

/// What wakes who is accepting when another thread leaves guests behind; readable as long as they are there. A process has its own:
/// two that share one would take each other's rings.
#[derive(Debug)]
struct Bell {
    ring: Arc<OwnedFd>,
    host: u32,
}

/// The hall, for the thread that is in it; left in the order of the fields.
pub(super) struct Inside<'a> {
    room: MutexGuard<'a, Room>,
    _halls: MutexGuard<'static, ()>,
}

impl Hall {
    /// Goes in, once nobody else is.
    pub(super) fn enter(&self) -> Inside<'_> {
        let _halls = HALLS.lock();
        let room = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Inside { room, _halls }
    }
}

impl Deref for Inside<'_> {
    type Target = Room;

    fn deref(&self) -> &Room {
        &self.room
    }
}

impl DerefMut for Inside<'_> {
    fn deref_mut(&mut self) -> &mut Room {
        &mut self.room
    }
}

impl Room {
    /// One more thread accepts: what rings when there are guests for it.
    ///
    /// # Errors
    /// `Os`, without a descriptor for it; that thread accepts all the same.
    pub(super) fn come(&mut self) -> Result<Arc<OwnedFd>> {
        self.hosts += 1;
        self.hang_bell()
    }

    /// A thread that has accepted goes, and leaves its guests to others.
    pub(super) fn go(&mut self, mut guests: Vec<Guest>) {
        self.hosts -= 1;
        self.guests.append(&mut guests);
        if self.hosts > 0 && !self.guests.is_empty() {
            self.tell(|ring| eventfd::set(ring, 1));
        }
    }

    /// This process' bell.
    ///
    /// # Errors
    /// `Os`, without a descriptor for it.
    pub(super) fn hang_bell(&mut self) -> Result<Arc<OwnedFd>> {
        let host = identity::pid();
        if let Some(bell) = self.bell.as_ref().filter(|bell| bell.host == host) {
            return Ok(Arc::clone(&bell.ring));
        }
        // The parent's isn't for this process to ring.
        self.bell = None;
        let ring = Arc::new(eventfd::create()?);
        self.bell = Some(Bell {
            ring: Arc::clone(&ring),
            host,
        });
        Ok(ring)
    }

    /// Takes all guests out.
    pub(super) fn empty(&mut self) -> Vec<Guest> {
        if !self.guests.is_empty() {
            self.tell(eventfd::clear);
        }
        std::mem::take(&mut self.guests)
    }

    fn tell(&self, what: impl FnOnce(BorrowedFd<'_>) -> Result<()>) {
        if let Some(bell) = &self.bell {
            // It is this process' own, and never full: nothing refuses it.
            let _ = what(bell.ring.as_fd());
        }
    }
}
