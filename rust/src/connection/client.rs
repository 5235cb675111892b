//! Connecting to others.

use super::access::{self, Access};
use super::error::failed;
use super::stream::retry as retry_failing;
use super::transport::Transport;
use super::{Address, Connection};
use crate::error::{Error, ErrorKind, Result, retry};
use procession_core::Deadline;
use procession_core::connection::{Authentication, Connecting};
use procession_core::wire::Role;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

/// The way to a [`Listener`](crate::Listener), or to one of Python's: where it is, the key, and how long a message may be.
///
/// It can connect any number of times. With [`key`](Self::key), each end sees that the other has the same one, and nobody
/// learns it.
///
/// # Examples
/// ```
/// # fn main() -> procession::Result<()> {
/// use procession::{Client, ErrorKind, Listener};
/// use std::net::Ipv4Addr;
/// use std::time::Duration;
/// let silent = Listener::builder().key("secret").bind((Ipv4Addr::LOCALHOST, 0))?;
/// let client = Client::to(silent.address()).key("secret").timeout(Duration::from_millis(30));
/// // Nobody accepts.
/// let error = client.connect::<[u8], [u8]>().unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::Authentication);
/// # Ok(())
/// # }
/// ```
///
/// Python: `Client`.
#[derive(Debug, Clone)]
pub struct Client {
    address: Address,
    access: Access,
    timeout: Option<Duration>,
}

impl Client {
    /// The way to a listener at that address, which lets everybody in.
    #[must_use]
    pub fn to(address: impl Into<Address>) -> Self {
        Self {
            address: address.into(),
            access: Access::default(),
            timeout: None,
        }
    }

    /// Shows the listener that this end has this key, and wants to be shown the same.
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

    /// How long connecting may take in all, the handshake included: as long as it takes, if it isn't said.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Connects.
    ///
    /// The types of what is sent and received are those that the other end has the other way round; `[u8]` with a Python
    /// at the other end. One round trip, and three more with a key, which the listener may take its time for: it is in
    /// somebody's call of `accept`.
    ///
    /// # Errors
    /// `Os` with what the system says: nobody listens there. `Authentication` when the listener has another key, or is
    /// late; `Closed` when it has closed the connection; `WouldWait` when it has no room for one more in time; `Misuse` for an
    /// empty key.
    pub fn connect<S: ?Sized, R: ?Sized>(&self) -> Result<Connection<S, R>> {
        let doing = format!("connect to {}", self.address);
        self.access.check(&doing)?;
        let deadline = self.timeout.map_or(Deadline::NEVER, Deadline::after);
        let stream = self.stream(&doing, deadline)?;
        if let Some(key) = &self.access.key {
            let terms = self.access.handshake(Role::Client);
            let mut authentication =
                Authentication::begin(&**key, terms).map_err(|error| Error::at(&doing, error))?;
            let end = retry_failing(|| authentication.run(stream.as_fd(), deadline));
            let authenticated = end.map_err(|failure| failed(&doing, &failure))?;
            access::note(authenticated, &self.address);
        }
        let peer = Some(self.address.clone());
        Ok(Connection::of(Transport::stream(
            stream,
            self.access.limit,
            peer,
        )))
    }

    fn stream(&self, doing: &str, deadline: Deadline) -> Result<OwnedFd> {
        let failed = |error| Error::at(doing, error);
        let mut connecting = Connecting::begin(&self.address.core()).map_err(failed)?;
        if retry(|| connecting.run(deadline)).map_err(failed)? {
            return Ok(connecting.into_stream());
        }
        let text = format!("{doing}: it has no room for one more, and none was made in time");
        Err(Error::new(ErrorKind::WouldWait, text))
    }
}
