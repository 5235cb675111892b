//! Messages over a descriptor: [`wire`](crate::wire)'s frames and handshake, with the system calls that they need.
//!
//! Everything here works on a descriptor that somebody else owns, and may be called again after it was interrupted or late: what was
//! sent and received so far is in the caller's hands. Nothing is locked: who lets several threads send, or receive, on
//! one stream has a lock for each of the two.
//!
//! A [`Listener`] takes connections in, and [`Connecting`] makes them.

mod authentication;
mod hall;
mod listener;
mod pipe;
mod stream;

pub use crate::sync::patience::Patience;
pub use crate::sys::number::Numbered;
pub use crate::sys::socket::{Address, Connecting};
pub use authentication::Authentication;
pub use listener::{Accepted, Admission, GUEST_TIME, GUESTS_MAX, Listener, Refused};
pub use pipe::{Landed, PipeEnd, pipe};
pub use stream::{
    Received, can_receive, can_receive_soon, is_socket, receive, receive_body, receive_into,
    receive_length, send,
};

use crate::sys::descriptor::{is_nonblocking, would_wait};
use crate::sys::packet;
use crate::wire::{AuthError, FrameError};
use crate::{Error, Result};
use std::fmt;
use std::os::fd::BorrowedFd;
use std::time::Duration;

/// How long a peer is waited for awake, at first, over a socket. One that is awake answers in 2 µs, in 6 over TCP, and has something else to do besides;
/// one that sleeps is there after 10 to 20. A handshake's six answers, each slept for, take twice as long as this way.
pub const AWAKE: Duration = Duration::from_micros(25);

/// Whether a descriptor is an end of a pipe inside a tree, which carries no frames.
#[must_use]
pub fn is_pipe_end(descriptor: BorrowedFd<'_>) -> bool {
    packet::is_one(descriptor).unwrap_or(false)
}

/// Whether a call may wait at a descriptor, for a face whose language lets the program say so: with `O_NONBLOCK`, which the calls
/// of this module don't look at.
///
/// # Errors
/// `Os` with EAGAIN where it may not, and what fcntl(2) says.
pub fn may_wait(at: BorrowedFd<'_>) -> Result<()> {
    if is_nonblocking(at)? {
        return Err(would_wait());
    }
    Ok(())
}

/// Why nothing was sent, received or authenticated. Python: `EOFError` for `End`, `AuthenticationError` for `Auth`, else
/// `OSError`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The system refused a call, or a signal handler ran: then call again.
    System(Error),
    /// The stream ended between two messages.
    End,
    /// What came is no frame, or one that isn't taken, or part of one. Nothing can be received any more.
    Frame(FrameError),
    /// The peer wasn't authenticated. The stream is to be closed.
    Auth(AuthError),
    /// The deadline passed before the peer was authenticated. The stream is to be closed.
    Late,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::System(error) => error.fmt(f),
            Self::End => f.write_str("the other end was closed"),
            Self::Frame(error) => error.fmt(f),
            Self::Auth(error) => error.fmt(f),
            Self::Late => f.write_str("the peer took too long to authenticate itself"),
        }
    }
}

impl std::error::Error for Failure {}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::System(error)
    }
}

impl From<FrameError> for Failure {
    fn from(error: FrameError) -> Self {
        Self::Frame(error)
    }
}

impl From<AuthError> for Failure {
    fn from(error: AuthError) -> Self {
        Self::Auth(error)
    }
}
