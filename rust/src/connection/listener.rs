//! Letting others connect.

use super::access::{self, Access};
use super::error::failed;
use super::transport::Transport;
use super::{Address, Connection};
use crate::error::{Error, ErrorKind, Result, retry};
use procession_core::Deadline;
use procession_core::connection::{Accepted, Listener as Core};
use procession_core::wire::Role;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

/// Connections that nobody has accepted yet, if it isn't said: what the system allows at most, usually 4,096.
const BACKLOG: u32 = u32::MAX;

/// A socket at which others connect: processes of this tree and of others, of this machine and of others, and programs that use
/// Python's `multiprocessing.connection`.
///
/// With a [key](ListenerBuilder::key), only those who have the same one are let in, and see that this end has it. Who
/// connects and says nothing, or nonsense, costs a descriptor for ten seconds and nobody any time: all handshakes go on
/// while one thread accepts. At most 64 are under way at once. Nothing protects what is sent afterwards: between machines that don't trust
/// the wire, put TLS or ssh under it.
///
/// Any number of threads may accept. Dropped, it removes the file that it made.
///
/// # Across processes
/// The file is left behind by a process that is killed; then the address is in use until somebody removes it.
///
/// # After fork
/// The child listens at the same address: each connection goes to one of the two.
///
/// # Examples
/// ```
/// # fn main() -> procession::Result<()> {
/// use procession::{Client, Connection, Listener};
/// let listener = Listener::builder().key("secret").bind((std::net::Ipv4Addr::LOCALHOST, 0))?;
/// let address = listener.address().clone();
/// let other = std::thread::spawn(move || -> procession::Result<()> {
///     let connection = Client::to(address).key("secret").connect::<String, u64>()?;
///     connection.send(&"eleven here".to_owned())?;
///     assert_eq!(connection.recv()?, 11);
///     Ok(())
/// });
/// let connection: Connection<u64, String> = listener.accept()?;
/// connection.send(&(connection.recv()?.len() as u64))?;
/// # other.join().unwrap()
/// # }
/// ```
///
/// Python: `Listener`.
#[derive(Debug)]
pub struct Listener {
    core: Core,
    address: Address,
    access: Access,
}

/// What a [`Listener`] is to be like: made by [`Listener::builder`].
#[derive(Debug, Clone)]
pub struct ListenerBuilder {
    access: Access,
    backlog: u32,
}

/// Why no connection was accepted. The listener goes on whatever it was.
#[derive(Debug, Clone)]
pub enum AcceptError {
    /// Nobody was let in until the timeout passed.
    Nobody,
    /// Somebody wasn't let in, and the connection is closed.
    Refused {
        /// Where it came from; `None` for a unix socket without a name.
        peer: Option<Address>,
        /// Why, of the kind [`Authentication`](ErrorKind::Authentication), or [`Closed`](ErrorKind::Closed) and others when
        /// what came was no handshake at all.
        error: Error,
    },
    /// Anything else.
    Failed(Error),
}

impl Listener {
    /// Listens at an address, and lets everybody in.
    ///
    /// # Errors
    /// `Os` with what the system says: an address that is in use, or none of this machine's, a folder that isn't there.
    pub fn bind(address: impl Into<Address>) -> Result<Self> {
        Self::builder().bind(address)
    }

    /// What a listener is to be like, step by step.
    #[must_use]
    pub fn builder() -> ListenerBuilder {
        ListenerBuilder {
            access: Access::default(),
            backlog: BACKLOG,
        }
    }

    /// Where it listens: with the port that the system chose.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// The next connection of somebody who is let in; waits until there is one.
    ///
    /// The types of what is sent and received are those that the other end has the other way round; `[u8]` with a Python
    /// at the other end.
    ///
    /// # Errors
    /// [`AcceptError::Refused`] when somebody wasn't let in; `Failed` of the kind `Os` when there has been no descriptor for a
    /// connection for a second. Neither is its end: accept again.
    pub fn accept<S: ?Sized, R: ?Sized>(&self) -> Result<Connection<S, R>, AcceptError> {
        self.accept_until(Deadline::NEVER)
    }

    /// As [`accept`](Self::accept), waiting for at most so long. Handshakes that aren't over then go on at the next call.
    ///
    /// # Errors
    /// As [`accept`](Self::accept), and [`AcceptError::Nobody`].
    pub fn accept_timeout<S: ?Sized, R: ?Sized>(
        &self,
        timeout: Duration,
    ) -> Result<Connection<S, R>, AcceptError> {
        self.accept_until(Deadline::after(timeout))
    }

    fn accept_until<S: ?Sized, R: ?Sized>(
        &self,
        deadline: Deadline,
    ) -> Result<Connection<S, R>, AcceptError> {
        const DOING: &str = "accept a connection";
        let no_accept = |error| AcceptError::Failed(Error::at(DOING, error));
        let Some(key) = &self.access.key else {
            let accepted = retry(|| self.core.accept(deadline)).map_err(no_accept)?;
            return accepted
                .map(|accepted| self.connection(accepted))
                .ok_or(AcceptError::Nobody);
        };
        let terms = self.access.handshake(Role::Listener);
        let admission = retry(|| self.core.accept_known(key, terms, deadline));
        match admission.map_err(no_accept)? {
            None => Err(AcceptError::Nobody),
            Some(Ok((accepted, authenticated))) => {
                access::note(authenticated, &"a client");
                Ok(self.connection(accepted))
            }
            Some(Err(refused)) => Err(AcceptError::Refused {
                peer: refused.peer.map(Address::of),
                error: failed(DOING, &refused.failure),
            }),
        }
    }

    fn connection<S: ?Sized, R: ?Sized>(&self, accepted: Accepted) -> Connection<S, R> {
        let peer = accepted.peer.map(Address::of);
        Connection::of(Transport::stream(accepted.stream, self.access.limit, peer))
    }
}

impl ListenerBuilder {
    /// Lets in only who has this key, of any length but none.
    ///
    /// Python: `authkey`.
    #[must_use]
    pub fn key(mut self, key: impl Into<Vec<u8>>) -> Self {
        self.access.key = Some(key.into());
        self
    }

    /// Whether HMAC-MD5 will do, which CPython up to 3.11 has and nothing better. Without it those are refused.
    #[must_use]
    pub fn allow_md5(mut self, allow: bool) -> Self {
        self.access.md5 = allow;
        self
    }

    /// The longest message that its connections receive, in bytes: 1 GiB, if it isn't said. A longer one is an error before
    /// there is any memory for it, and the end of its connection.
    #[must_use]
    pub fn limit(mut self, bytes: u64) -> Self {
        self.access.limit = bytes;
        self
    }

    /// How many connections wait that nobody has accepted yet, about; of more, the system lets none come.
    #[must_use]
    pub fn backlog(mut self, backlog: u32) -> Self {
        self.backlog = backlog;
        self
    }

    /// Listens at an address.
    ///
    /// # Errors
    /// As [`Listener::bind`]; `Misuse` for an empty key.
    pub fn bind(self, address: impl Into<Address>) -> Result<Listener> {
        let address = address.into();
        let doing = format!("listen at {address}");
        self.access.check(&doing)?;
        let core = retry(|| Core::bind(&address.core(), self.backlog));
        let core = core.map_err(|error| Error::at(&doing, error))?;
        Ok(Listener {
            address: Address::of(core.address().clone()),
            core,
            access: self.access,
        })
    }
}

impl AsFd for Listener {
    /// Can be read from when somebody has connected, who isn't let in yet: for [`wait`](crate::wait()), and an
    /// [`accept_timeout`](Listener::accept_timeout) behind it.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.core.as_fd()
    }
}

impl fmt::Display for AcceptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nobody => f.write_str("accept a connection: nobody came in time"),
            Self::Refused { error, peer: None } | Self::Failed(error) => error.fmt(f),
            Self::Refused {
                error,
                peer: Some(peer),
            } => write!(f, "{error} (from {peer})"),
        }
    }
}

impl std::error::Error for AcceptError {}

impl From<AcceptError> for Error {
    fn from(error: AcceptError) -> Self {
        let text = error.to_string();
        match error {
            AcceptError::Nobody => Self::new(ErrorKind::WouldWait, text),
            AcceptError::Refused { error, .. } => Self::new(error.kind(), text),
            AcceptError::Failed(error) => error,
        }
    }
}
