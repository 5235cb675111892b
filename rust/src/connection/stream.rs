//! Messages over a stream of bytes: a socket, a pipe of the system's, a terminal.

use super::transport::Broken;
use super::turn::Turn;
use procession_core::connection::{self, AWAKE, Failure, Patience, Received, can_receive_soon};
use procession_core::wire::Decoder;
use procession_core::{Deadline, Error as Core};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// One end of a stream that carries messages: each is a frame of its own.
///
/// One thread at a time sends, and one receives; both may be at work at once. Whoever waits for its turn does so within its
/// deadline.
#[derive(Debug)]
pub(super) struct Stream {
    descriptor: OwnedFd,
    limit: u64,
    sending: Turn<Sending>,
    receiving: Turn<Decoder>,
    /// How long a wait for a message is awake.
    patience: Patience,
}

/// Where the stream out is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sending {
    /// Between two messages.
    Between,
    /// Inside of one, whose rest will never come.
    Torn,
}

impl Stream {
    /// Over a descriptor: messages of up to `limit` bytes are received.
    pub(super) fn new(descriptor: OwnedFd, limit: u64) -> Self {
        Self {
            descriptor,
            limit,
            sending: Turn::new(Sending::Between),
            receiving: Turn::new(Decoder::new(limit)),
            patience: Patience::up_to(AWAKE),
        }
    }

    pub(super) fn limit(&self) -> u64 {
        self.limit
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
        Ok(self.soon(deadline, |until| {
            connection::receive(self.as_fd(), &mut decoder, until)
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
        let received = self.soon(deadline, |until| {
            connection::receive_into(self.as_fd(), &mut decoder, &mut *buffer, until)
        });
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

    /// Makes a call that receives: of what is there, else once something came, which is waited for awake at first.
    fn soon<T>(
        &self,
        deadline: Deadline,
        mut receive: impl FnMut(Deadline) -> Result<Option<T>, Failure>,
    ) -> Result<Option<T>, Failure> {
        let now = retry(|| receive(Deadline::now()));
        if !matches!(now, Ok(None)) || deadline.passed() {
            return now;
        }
        retry(|| {
            let came = can_receive_soon(self.as_fd(), &self.patience, deadline)?;
            if came { receive(deadline) } else { Ok(None) }
        })
    }

    /// Makes sure that another process could go on with it: it is between two messages, both ways.
    ///
    /// # Errors
    /// `Misuse` when it isn't.
    pub(super) fn between(&self) -> procession_core::Result<()> {
        // Who is at it now knows where it is; whoever is given a copy shares the stream with them.
        let sending = self.sending.take(Deadline::now());
        let receiving = self.receiving.take(Deadline::now());
        let what = if sending.is_some_and(|state| *state == Sending::Torn) {
            "a connection can't go elsewhere once it was torn while a message was sent"
        } else if receiving.is_some_and(|decoder| decoder.end().is_err()) {
            "a connection can't go elsewhere while the rest of a message is to be received"
        } else {
            return Ok(());
        };
        Err(Core::Misuse { what })
    }
}

impl AsFd for Stream {
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
