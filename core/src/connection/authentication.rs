//! The handshake over a descriptor.

use super::{Failure, receive, send};
use crate::wire::auth::MESSAGE_MAX;
use crate::wire::{Authenticated, Decoder, Handshake, Terms};
use crate::{Deadline, Result, sys};
use std::borrow::Cow;
use std::os::fd::BorrowedFd;

/// A handshake under way on a stream, which says nothing else meanwhile.
#[derive(Debug)]
pub struct Authentication<'k> {
    handshake: Handshake<'k>,
    decoder: Decoder,
    /// What is to be sent before anything is received, and how much of its frame has gone.
    unsent: Option<Cow<'static, [u8]>>,
    sent: u64,
    /// How it ended; that may have to be sent first.
    end: Option<Result<Authenticated, Failure>>,
}

impl<'k> Authentication<'k> {
    /// Prepares one, with a nonce of the system's.
    ///
    /// # Errors
    /// `Os`, when there are no random numbers.
    pub fn begin(key: impl Into<Cow<'k, [u8]>>, terms: Terms) -> Result<Self> {
        let (handshake, first) = Handshake::begin(key, terms, sys::identity::secret()?);
        Ok(Self {
            handshake,
            decoder: Decoder::new(MESSAGE_MAX),
            unsent: first.map(Cow::from),
            sent: 0,
            end: None,
        })
    }

    /// Goes through with it. After an interruption it is called again, with the same deadline.
    ///
    /// # Errors
    /// `Auth`, `Frame`, `End`, `Late` and `System`; after any but an interruption the stream is to be closed.
    ///
    /// Python: `deliver_challenge`, `answer_challenge`.
    pub fn run(
        &mut self,
        stream: BorrowedFd<'_>,
        deadline: Deadline,
    ) -> Result<Authenticated, Failure> {
        self.advance(stream, deadline)?.ok_or(Failure::Late)
    }

    /// Goes on with it; `None` once the deadline has passed: called again, it goes on from there. With [`Deadline::now`] it never
    /// waits, so that many can be under way.
    ///
    /// # Errors
    /// As [`run`](Self::run), but for `Late`.
    pub fn advance(
        &mut self,
        stream: BorrowedFd<'_>,
        deadline: Deadline,
    ) -> Result<Option<Authenticated>, Failure> {
        loop {
            if let Some(message) = &self.unsent {
                if !send(stream, &[message], &mut self.sent, deadline)? {
                    return Ok(None);
                }
                (self.unsent, self.sent) = (None, 0);
            }
            if let Some(end) = &self.end {
                return end.clone().map(Some);
            }
            let Some(message) = receive(stream, &mut self.decoder, deadline)? else {
                return Ok(None);
            };
            let step = self.handshake.receive(&message);
            self.unsent = step.send;
            self.end = step.end.map(|end| end.map_err(Failure::Auth));
        }
    }
}
