//! The way to a listener.

use crate::sys::socket::{self, Address};
use crate::{Deadline, Result};
use std::os::fd::OwnedFd;

/// A connection that is being made.
///
/// Python: `SocketClient`; with an [`Authentication`](super::Authentication) as [`Role::Client`](crate::wire::Role::Client) behind it,
/// `Client`.
#[derive(Debug)]
pub struct Connecting(socket::Connecting);

impl Connecting {
    /// Prepares one to that address.
    ///
    /// # Errors
    /// `Os`, when there is no descriptor, or a path leads nowhere.
    pub fn begin(address: &Address) -> Result<Self> {
        socket::Connecting::begin(address).map(Self)
    }

    /// Waits until a listener has it in its backlog; false once the deadline has passed. Called again it waits on, and so it
    /// does after an interruption.
    ///
    /// # Errors
    /// `Os` with what connect(2) says; `Interrupted`.
    pub fn run(&mut self, deadline: Deadline) -> Result<bool> {
        self.0.run(deadline)
    }

    /// The stream, once [`run`](Self::run) has said that it is there.
    #[must_use]
    pub fn into_stream(self) -> OwnedFd {
        self.0.into_stream()
    }
}
