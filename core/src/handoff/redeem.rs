//! The receiver's side: a ticket becomes a descriptor.

use super::office::{self, Here};
use super::protocol::{ANSWER, GIVEN, NONE, Request, Ticket};
use crate::sys::identity::{self, Origin};
use crate::sys::local::{self, Reached};
use crate::sys::packet::{self, Arrived};
use crate::sys::{descriptor, pidfd};
use crate::{Deadline, Error, Result};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

/// How long a sender may take to answer: it has a thread for nothing else, so one that is silent for so long is stopped. As
/// `CONNECTION_TIMEOUT` of CPython's multiprocessing/connection.py.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// How often a waiting receiver looks whether the sender is there, where the kernel doesn't tell.
const LOOK: Duration = Duration::from_millis(50);
/// Between two attempts at a sender to whom others come too.
const PAUSE: Duration = Duration::from_millis(1);

const ENDED: &str = "the process has ended";
const CLOSED: &str = "the process keeps no descriptors any more";
const NOT_KEPT: &str = "it was redeemed before, or taken back";
const SILENT: &str = "the process doesn't answer";
const FOREIGN: &str = "another user's process answers in its name";

/// A ticket that is being redeemed.
#[derive(Debug)]
pub struct Redeeming {
    ticket: Ticket,
    /// When the sender's time is over.
    until: Deadline,
    /// Once the sender was asked.
    asked: Option<Asked>,
}

#[derive(Debug)]
struct Asked {
    end: OwnedFd,
    /// Keeps room for the descriptor: one that finds none is lost.
    room: Option<OwnedFd>,
    /// Whether the process at the other end is, by its id, the sender itself.
    is_sender: bool,
}

impl Ticket {
    /// Begins to redeem it.
    ///
    /// # After fork
    /// A child may redeem what its parent got, and what its parent sent, if that wasn't redeemed before.
    #[must_use]
    pub fn redeem(&self) -> Redeeming {
        Redeeming {
            ticket: *self,
            until: Deadline::after(PATIENCE),
            asked: None,
        }
    }
}

impl Redeeming {
    /// Waits for the descriptor; `None` once the deadline has passed. It is closed on exec, and comes once.
    ///
    /// Some 50 µs, in which the sender's thread wakes up; no wait in the process that sent it.
    ///
    /// # Errors
    /// `Lost` says which descriptor of which process can't be had, and why: the process has ended, keeps it no more, doesn't answer
    /// within [`PATIENCE`], or belongs to another user. `Interrupted` when a signal handler ran: call again. `Os` when
    /// this process has no room for a descriptor; nothing is lost then.
    ///
    /// # Across processes
    /// A receiver that is killed after the descriptor was given takes it along.
    pub fn wait(&mut self, deadline: Deadline) -> Result<Option<OwnedFd>> {
        loop {
            if self.asked.is_none() {
                match office::take(&self.ticket) {
                    Here::Given(descriptor) => return Ok(Some(descriptor)),
                    Here::None => return Err(self.ticket.lost(NOT_KEPT)),
                    Here::Elsewhere => self.asked = self.ask()?,
                }
            }
            if let Some(asked) = &mut self.asked {
                let turn = deadline.at_most(LOOK);
                if packet::wait_readable(asked.end.as_fd(), turn)? {
                    if let Some(descriptor) = asked.answer(&self.ticket)? {
                        return Ok(Some(descriptor));
                    }
                    // Hung up: too many came at once, or it has ended, which the next attempt finds.
                    self.asked = None;
                } else if asked.is_sender && is_gone(&self.ticket) {
                    return Err(self.ticket.lost(ENDED));
                }
            }
            if self.until.passed() {
                return Err(self.ticket.lost(SILENT));
            }
            if deadline.passed() {
                return Ok(None);
            }
            if self.asked.is_none() {
                std::thread::sleep(PAUSE);
            }
        }
    }

    /// Asks the sender; `None` if that must be tried again.
    fn ask(&self) -> Result<Option<Asked>> {
        let Ticket {
            office,
            number,
            secret,
            ..
        } = self.ticket;
        let end = match local::reach(&office.address())? {
            Reached::End(end) => end,
            Reached::Crowded => return Ok(None),
            Reached::Nobody if is_gone(&self.ticket) => return Err(self.ticket.lost(ENDED)),
            Reached::Nobody => return Err(self.ticket.lost(CLOSED)),
        };
        let peer = pidfd::peer(end.as_fd()).filter(|peer| peer.is_own());
        let peer = peer.ok_or_else(|| self.ticket.lost(FOREIGN))?;
        let room = descriptor::copy_above_streams(end.as_fd())?;
        let request = Request::Give { number, secret }.to_bytes();
        match packet::send(&end, &request, &[]) {
            Ok(true) => Ok(Some(Asked {
                end,
                room: Some(room),
                is_sender: peer.pid == self.ticket.pid,
            })),
            Ok(false) => Ok(None),
            Err(error) if packet::is_closed(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Asked {
    /// What the sender says; `None` if it has hung up.
    fn answer(&mut self, ticket: &Ticket) -> Result<Option<OwnedFd>> {
        drop(self.room.take());
        let Arrived::Packet {
            bytes,
            mut descriptors,
            ..
        } = packet::receive(&self.end, ANSWER)?
        else {
            return Ok(None);
        };
        match (bytes.as_slice(), descriptors.pop()) {
            (given, Some(descriptor)) if given == GIVEN => Ok(Some(descriptor)),
            // Another thread took the room that there was.
            (given, None) if given == GIVEN => Err(Error::Os {
                call: "recvmsg",
                errno: NO_ROOM,
            }),
            (none, _) if none == NONE => Err(ticket.lost(NOT_KEPT)),
            _ => Err(Error::Malformed {
                what: "answer of a process that keeps a descriptor",
                at: 0,
            }),
        }
    }
}

/// `EMFILE`.
const NO_ROOM: i32 = 24;

fn is_gone(ticket: &Ticket) -> bool {
    let (started, stack) = (ticket.started, 0);
    identity::is_gone(ticket.pid, Origin { started, stack }, None)
}
