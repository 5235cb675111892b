//! Descriptors in messages.

use crate::codec;
use crate::error::{Error, Result, retry};
use crate::names::not_foreign;
use crate::process::me;
use crate::tree::arena;
use procession_core::handoff::{self, Invited, TICKET_BYTES, Ticket};
use procession_core::{Deadline, Error as CoreError, Naming};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};
use std::cell::Cell;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A file, socket or pipe that goes wherever values go: through queues, as an argument or a value of a process, in tasks of a pool.
///
/// Whoever gets the value has a descriptor of its own for the same open file, as by `dup`; the sender's stays open, and may be
/// dropped once the value was put. What doesn't go through this crate can't carry it: encoding it for something else is an error.
///
/// # Across processes
/// The value is good while its sender lives, since that keeps the descriptor until it is fetched, by a thread of its own
/// which is started for the first one. A getter waits for it, some 50 µs as a rule, and 20 s if the sender is stopped. Then, and when the
/// sender has ended, `get` fails with [`Lost`](crate::ErrorKind::Lost), and names descriptor and process; the next value can be
/// got as before. What a function returns from a process or a task is kept by the process that started it instead, and outlives the
/// sender. A value that nobody gets keeps a descriptor of its sender's busy until that ends.
///
/// # After fork
/// What the parent has sent, the parent goes on giving out; the child keeps nothing of it open.
///
/// # Examples
/// ```standalone_crate
/// use procession::{Descriptor, Process};
/// use std::io::{PipeWriter, Read, Write};
///
/// fn main() -> Result<(), Box<dyn std::error::Error>> {
///     procession::init();
///     let (mut reader, writer) = std::io::pipe()?;
///     let greet = |to: Descriptor| PipeWriter::from(to.into_inner()).write_all(b"hello").unwrap();
///     let child = Process::spawn(greet, Descriptor::new(writer))?;
///     child.join()?;
///     let mut text = String::new();
///     reader.read_to_string(&mut text)?;
///     assert_eq!(text, "hello");
///     Ok(())
/// }
/// ```
///
/// Python: `reduction.DupFd`, and sockets and connections in pickles.
#[derive(Debug)]
pub struct Descriptor(OwnedFd);

impl Descriptor {
    /// Whatever owns a descriptor: a `File`, a `TcpStream`, a `UnixListener`, a pipe.
    #[must_use]
    pub fn new(owner: impl Into<OwnedFd>) -> Self {
        Self(owner.into())
    }

    /// As what it is: `TcpStream::from(descriptor.into_inner())`.
    #[must_use]
    pub fn into_inner(self) -> OwnedFd {
        self.0
    }

    /// One more descriptor of the same open file.
    ///
    /// # Errors
    /// `Os` when there is no room for it.
    pub fn try_clone(&self) -> Result<Self> {
        let copied = copy(self.as_fd());
        copied
            .map(Self)
            .map_err(|error| Error::at("copy a descriptor", error))
    }
}

/// One more descriptor of the same open file.
pub(crate) fn copy(descriptor: BorrowedFd<'_>) -> procession_core::Result<OwnedFd> {
    descriptor
        .try_clone_to_owned()
        .map_err(|error| CoreError::Os {
            call: "fcntl(F_DUPFD_CLOEXEC)",
            errno: error.raw_os_error().unwrap_or_default(),
        })
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<OwnedFd> for Descriptor {
    fn from(descriptor: OwnedFd) -> Self {
        Self(descriptor)
    }
}

impl From<Descriptor> for OwnedFd {
    fn from(descriptor: Descriptor) -> Self {
        descriptor.0
    }
}

thread_local! {
    /// This thread encodes what a function has returned.
    static RETURNS: Cell<bool> = const { Cell::new(false) };
}

/// Encodes what a function has returned: its descriptors go to the process that waits for it.
pub(crate) fn returning<R>(encode: impl FnOnce() -> R) -> R {
    let before = RETURNS.replace(true);
    let encoded = encode();
    RETURNS.set(before);
    encoded
}

/// Invites a process that is about to be started to leave here the descriptors that it returns. If that can't be, it keeps
/// them itself.
pub(crate) fn invite() -> Option<Invited> {
    handoff::invite().ok()
}

fn ticket(descriptor: BorrowedFd<'_>) -> procession_core::Result<Ticket> {
    if !Naming::is_active() {
        return Err(CoreError::Misuse {
            what: "a descriptor goes only into messages, arguments and values of this crate",
        });
    }
    let parent = RETURNS.get().then(|| me::me().invitation()).flatten();
    match parent {
        Some(parent) => handoff::entrust(descriptor, &parent),
        None => handoff::offer(descriptor),
    }
}

impl Serialize for Descriptor {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let arena = arena().map_err(ser::Error::custom)?;
        let ticket = ticket(self.as_fd()).map_err(codec::explained)?;
        let pledged = Naming::pledge(arena, move || handoff::withdraw(&ticket));
        pledged.map_err(codec::explained)?;
        serializer.serialize_bytes(&ticket.to_bytes())
    }
}

impl<'de> Deserialize<'de> for Descriptor {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_bytes(TicketVisitor).map(Self)
    }
}

struct TicketVisitor;

impl de::Visitor<'_> for TicketVisitor {
    type Value = OwnedFd;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the {TICKET_BYTES} bytes of a descriptor's ticket")
    }

    fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<OwnedFd, E> {
        let ticket = not_foreign().and_then(|()| Ticket::from_bytes(bytes));
        let redeemed = ticket.and_then(|ticket| redeem(&ticket));
        redeemed.map_err(codec::misread)
    }
}

fn redeem(ticket: &Ticket) -> procession_core::Result<OwnedFd> {
    let mut redeeming = ticket.redeem();
    loop {
        if let Some(descriptor) = retry(|| redeeming.wait(Deadline::NEVER))? {
            return Ok(descriptor);
        }
    }
}
