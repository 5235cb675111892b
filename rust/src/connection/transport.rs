//! How messages get from one end to the other: the one place that knows that it is a stream of bytes.

use super::Address;
use super::turn::Turn;
use crate::error::{Error, ErrorKind, Result};
use procession_core::connection::{self, Failure, Received};
use procession_core::process::wait_for_any;
use procession_core::wire::Decoder;
use procession_core::{Deadline, Error as Core};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// What both ends of a stream are to agree on, and what an end tells the process that it is given to.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Terms {
    /// The longest message that is received, in bytes.
    pub(crate) limit: u64,
    /// Both ends are in this tree, so that messages can name what lies in its arena.
    pub(crate) in_tree: bool,
}

/// One end of a stream that carries messages: each is a frame of its own.
///
/// One thread at a time sends, and one receives; both may be at work at once. Whoever waits for its turn does so within its
/// deadline.
#[derive(Debug)]
pub(crate) struct Transport {
    descriptor: OwnedFd,
    terms: Terms,
    /// Where the other end is, if that has an address.
    peer: Option<Address>,
    sending: Turn<Sending>,
    receiving: Turn<Decoder>,
}

/// Where the stream out is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sending {
    /// Between two messages.
    Between,
    /// Inside of one, whose rest will never come.
    Torn,
}

/// Why nothing was sent or received, or only some of it.
#[derive(Debug)]
pub(super) enum Broken {
    /// Nobody is at the other end any more.
    Closed,
    Failed(Failure),
    /// A message was begun and not ended in time, now or before.
    Torn,
}

impl From<Failure> for Broken {
    fn from(failure: Failure) -> Self {
        use std::io::ErrorKind::{BrokenPipe, ConnectionReset};
        match &failure {
            Failure::End => Self::Closed,
            // What the other end hadn't read when it was closed is known to be lost.
            Failure::System(Core::Os { errno, .. })
                if [BrokenPipe, ConnectionReset]
                    .contains(&std::io::Error::from_raw_os_error(*errno).kind()) =>
            {
                Self::Closed
            }
            _ => Self::Failed(failure),
        }
    }
}

impl Transport {
    pub(crate) fn new(descriptor: OwnedFd, terms: Terms) -> Self {
        Self {
            descriptor,
            terms,
            peer: None,
            sending: Turn::new(Sending::Between),
            receiving: Turn::new(Decoder::new(terms.limit)),
        }
    }

    /// Two ends in this process of one stream.
    pub(super) fn pair(terms: Terms) -> Result<(Self, Self)> {
        let pair = std::os::unix::net::UnixStream::pair();
        let (one, other) = pair.map_err(|error| {
            let text = format!("make a pipe: socketpair: {error}");
            Error::new(ErrorKind::Os, text)
        })?;
        Ok((Self::new(one.into(), terms), Self::new(other.into(), terms)))
    }

    pub(super) fn with_peer(mut self, peer: Option<Address>) -> Self {
        self.peer = peer;
        self
    }

    pub(super) fn peer(&self) -> Option<&Address> {
        self.peer.as_ref()
    }

    pub(crate) fn terms(&self) -> Terms {
        self.terms
    }

    /// Sends a message of these pieces; false when nothing of it could be sent until the deadline.
    pub(super) fn send(&self, pieces: &[&[u8]], deadline: Deadline) -> Result<bool, Broken> {
        let Some(mut state) = self.sending.take(deadline) else {
            return Ok(false);
        };
        if *state == Sending::Torn {
            return Err(Broken::Torn);
        }
        let mut sent = 0;
        let end = retry(|| connection::send(self.as_fd(), pieces, &mut sent, deadline));
        if !matches!(end, Ok(true)) && sent > 0 {
            *state = Sending::Torn;
        }
        match end? {
            false if sent > 0 => Err(Broken::Torn),
            whole => Ok(whole),
        }
    }

    /// Receives a message; `None` when it isn't whole until the deadline. What there is of it is kept for the next call.
    pub(super) fn receive(&self, deadline: Deadline) -> Result<Option<Vec<u8>>, Broken> {
        let Some(mut decoder) = self.receiving.take(deadline) else {
            return Ok(None);
        };
        Ok(retry(|| {
            connection::receive(self.as_fd(), &mut decoder, deadline)
        })?)
    }

    /// As [`receive`](Self::receive), into a buffer that has room for it, or else another one takes its place. False when the
    /// message isn't whole.
    pub(super) fn receive_into(
        &self,
        buffer: &mut Vec<u8>,
        deadline: Deadline,
    ) -> Result<bool, Broken> {
        let Some(mut decoder) = self.receiving.take(deadline) else {
            return Ok(false);
        };
        // For messages of one length nothing is to be zeroed.
        buffer.resize(buffer.capacity(), 0);
        let received =
            retry(|| connection::receive_into(self.as_fd(), &mut decoder, &mut *buffer, deadline));
        match received {
            Ok(Some(Received::Into(length))) => buffer.truncate(length),
            Ok(Some(Received::TooLong(message))) => *buffer = message,
            Ok(None) | Err(_) => {
                buffer.clear();
                return Ok(received?.is_some());
            }
        }
        Ok(true)
    }

    /// Waits until something can be received, or the other end is gone; false once the deadline has passed.
    pub(super) fn poll(&self, deadline: Deadline) -> procession_core::Result<bool> {
        let ready = crate::error::retry(|| wait_for_any(&[self.as_fd()], deadline))?;
        Ok(!ready.is_empty())
    }

    /// A descriptor of the same end, for another process.
    ///
    /// # Errors
    /// `Misuse` in the middle of a message: its rest would mean nothing there.
    pub(crate) fn copy(&self) -> Result<OwnedFd> {
        let failed = |kind, why: &str| Error::new(kind, format!("give a connection away: {why}"));
        // Who is at it now knows where it is; whoever is given a copy shares the stream with them.
        let sending = self.sending.take(Deadline::now());
        let receiving = self.receiving.take(Deadline::now());
        if sending.is_some_and(|state| *state == Sending::Torn) {
            return Err(failed(
                ErrorKind::Broken,
                "it was torn while a message was sent",
            ));
        }
        if receiving.is_some_and(|decoder| decoder.end().is_err()) {
            let why = "the beginning of a message was received, and its rest is to come";
            return Err(failed(ErrorKind::Misuse, why));
        }
        let copy = self.descriptor.try_clone();
        copy.map_err(|error| failed(ErrorKind::Os, &error.to_string()))
    }
}

impl AsFd for Transport {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

/// Calls the core, and again whenever a signal handler ran meanwhile.
pub(super) fn retry<T>(mut call: impl FnMut() -> Result<T, Failure>) -> Result<T, Failure> {
    loop {
        match call() {
            Err(Failure::System(Core::Interrupted)) => {}
            other => return other,
        }
    }
}
