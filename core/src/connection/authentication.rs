//! The handshake over a descriptor.

use super::{AWAKE, Failure, can_receive, receive, send};
use crate::sync::patience::Patience;
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
    /// How long an answer is waited for awake, by how that went so far.
    patience: Patience,
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
            patience: Patience::up_to(AWAKE),
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
        let awake = !deadline.passed();
        self.go_on(stream, deadline, awake)
    }

    /// Goes on with it as long as the peer answers at once, or within the few microseconds that a wait is awake.
    pub(super) fn attend(
        &mut self,
        stream: BorrowedFd<'_>,
    ) -> Result<Option<Authenticated>, Failure> {
        self.go_on(stream, Deadline::now(), true)
    }

    fn go_on(
        &mut self,
        stream: BorrowedFd<'_>,
        deadline: Deadline,
        awake: bool,
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
            let Some(message) = self.hear(stream, deadline, awake)? else {
                return Ok(None);
            };
            let step = self.handshake.receive(&message);
            self.unsent = step.send;
            self.end = step.end.map(|end| end.map_err(Failure::Auth));
        }
    }

    /// The peer's next message: looks for it, waits for it awake if so asked, then sleeps until the deadline.
    fn hear(
        &mut self,
        stream: BorrowedFd<'_>,
        deadline: Deadline,
        awake: bool,
    ) -> Result<Option<Vec<u8>>, Failure> {
        let decoder = &mut self.decoder;
        let mut look = || receive(stream, decoder, Deadline::now());
        let mut heard = look();
        if awake && matches!(heard, Ok(None)) {
            self.patience.offer(|| {
                heard = look();
                Ok(!matches!(heard, Ok(None)))
            })?;
        }
        while matches!(heard, Ok(None)) && !deadline.passed() && can_receive(stream, deadline)? {
            heard = look();
        }
        heard
    }
}
