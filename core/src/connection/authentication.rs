//! The handshake over a descriptor.

use super::stream::end;
use super::{AWAKE, Failure, can_receive};
use crate::sync::patience::Patience;
use crate::sys::{self, stream};
use crate::wire::auth::MESSAGE_MAX;
use crate::wire::{Authenticated, Decoder, Handshake, Header, Terms};
use crate::{Deadline, Result};
use std::borrow::Cow;
use std::io::IoSlice;
use std::os::fd::BorrowedFd;

/// How much is read at once, at most: as long as a message may be.
const ROOM: usize = 256;

/// A handshake under way on a stream, which says nothing else meanwhile.
#[derive(Debug)]
pub struct Authentication<'k> {
    handshake: Handshake<'k>,
    decoder: Decoder,
    /// What has come, and the decoder hasn't got.
    heard: Vec<u8>,
    /// What is to be sent before anything is received.
    unsent: Vec<u8>,
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
        let mut authentication = Self {
            handshake,
            decoder: Decoder::new(MESSAGE_MAX),
            heard: Vec::new(),
            unsent: Vec::new(),
            patience: Patience::up_to(AWAKE),
            end: None,
        };
        if let Some(first) = first {
            authentication.add(&first);
        }
        Ok(authentication)
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
            // What is to be said to all that has come goes out together.
            while self.end.is_none()
                && let Some(message) = self.next()?
            {
                self.take(&message);
            }
            if !self.say(stream, deadline)? {
                return Ok(None);
            }
            if let Some(end) = &self.end {
                if end.is_err() {
                    // Closed with something unread, a connection is reset, and what was said last may be lost.
                    let _ = stream::fill(stream, &mut [0; ROOM], Deadline::now());
                }
                return end.clone().map(Some);
            }
            if !self.hear(stream, deadline, awake)? {
                return Ok(None);
            }
        }
    }

    /// The next message of those that have come.
    fn next(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        let taken = self.decoder.push(&self.heard)?;
        self.heard.drain(..taken);
        Ok(self.decoder.frame())
    }

    fn take(&mut self, message: &[u8]) {
        let step = self.handshake.receive(message);
        if let Some(Err(_)) = step.end {
            // Whoever failed hears nothing more than that.
            self.unsent.clear();
        }
        let early = self.handshake.open_early();
        let both = [step.send, early.map(Cow::from)];
        both.iter().flatten().for_each(|said| self.add(said));
        self.end = step.end.map(|end| end.map_err(Failure::Auth));
    }

    fn add(&mut self, message: &[u8]) {
        let header = Header::of(message.len() as u64);
        self.unsent.extend_from_slice(header.bytes());
        self.unsent.extend_from_slice(message);
    }

    /// Sends what is to be sent; false once the deadline has passed.
    fn say(&mut self, to: BorrowedFd<'_>, deadline: Deadline) -> Result<bool, Failure> {
        while !self.unsent.is_empty() {
            match stream::write(to, &[IoSlice::new(&self.unsent)], deadline)? {
                Some(bytes) => drop(self.unsent.drain(..bytes)),
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Hears more of the peer: looks for it, waits for it awake if so asked, then sleeps until the deadline; false once that has passed.
    fn hear(
        &mut self,
        from: BorrowedFd<'_>,
        deadline: Deadline,
        awake: bool,
    ) -> Result<bool, Failure> {
        let mut room = [0; ROOM];
        let most = self.most()?.min(room.len());
        let mut look = || stream::fill(from, &mut room[..most], Deadline::now());
        let mut heard = look()?;
        if awake && heard.is_none() {
            self.patience.offer(|| {
                heard = look()?;
                Ok(heard.is_some())
            })?;
        }
        while heard.is_none() && !deadline.passed() && can_receive(from, deadline)? {
            heard = look()?;
        }
        match heard {
            None => return Ok(false),
            Some(0) => return Err(end(&self.decoder)),
            Some(bytes) => self.heard.extend_from_slice(&room[..bytes]),
        }
        Ok(true)
    }

    /// How much may be read at once: nothing that follows the handshake, which isn't ours.
    fn most(&mut self) -> Result<usize, Failure> {
        if self.decoder.end().is_ok() {
            return Ok(self.handshake.least_to_come());
        }
        Ok(self.decoder.wanted()?.map_or(0, |wanted| wanted.most))
    }
}
