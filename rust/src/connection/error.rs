//! Why a message didn't go through.

use super::transport::Broken;
use crate::error::{Error, ErrorKind};
use procession_core::connection::Failure;
use procession_core::wire::FrameError;
use std::fmt;

/// Why a message was not sent.
#[derive(Debug, Clone)]
pub enum SendError {
    /// The other end hadn't read enough for it to be begun, until the timeout passed. Nothing of it was sent.
    Full,
    /// Nobody is at the other end any more.
    Closed,
    /// Anything else.
    Failed(Error),
}

/// Why no message was received.
#[derive(Debug, Clone)]
pub enum RecvError {
    /// There was no whole message, until the timeout passed.
    Empty,
    /// Nobody is at the other end any more, and all that was sent was received.
    Closed,
    /// Anything else. A message that isn't of the connection's type is gone; after one that is no message at all
    /// nothing can be received any more.
    Failed(Error),
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str("send a message: the other end doesn't read"),
            Self::Closed => f.write_str("send a message: the other end was closed"),
            Self::Failed(error) => error.fmt(f),
        }
    }
}

impl fmt::Display for RecvError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("receive a message: there is none"),
            Self::Closed => f.write_str("receive a message: the other end was closed"),
            Self::Failed(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for SendError {}
impl std::error::Error for RecvError {}

impl From<SendError> for Error {
    fn from(error: SendError) -> Self {
        match error {
            SendError::Full => Self::new(ErrorKind::WouldWait, error.to_string()),
            SendError::Closed => Self::new(ErrorKind::Closed, error.to_string()),
            SendError::Failed(error) => error,
        }
    }
}

impl From<RecvError> for Error {
    fn from(error: RecvError) -> Self {
        match error {
            RecvError::Empty => Self::new(ErrorKind::WouldWait, error.to_string()),
            RecvError::Closed => Self::new(ErrorKind::Closed, error.to_string()),
            RecvError::Failed(error) => error,
        }
    }
}

impl From<Broken> for SendError {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Closed => Self::Closed,
            Broken::Failed(failure) => Self::Failed(failed("send a message", &failure)),
            Broken::Torn => Self::Failed(Error::new(
                ErrorKind::Broken,
                "send a message: the other end didn't read all of a message in time, and can't be told where another one \
                 begins",
            )),
        }
    }
}

impl From<Broken> for RecvError {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Closed | Broken::Torn => Self::Closed,
            Broken::Failed(failure) => Self::Failed(failed("receive a message", &failure)),
        }
    }
}

/// The error of a connection's call made to do something, which is named as "send a message".
pub(super) fn failed(doing: &str, failure: &Failure) -> Error {
    let kind = match failure {
        Failure::System(error) => return Error::at(doing, error.clone()),
        Failure::End => ErrorKind::Closed,
        Failure::Auth(_) | Failure::Late => ErrorKind::Authentication,
        Failure::Frame(FrameError::TooLong { .. }) => ErrorKind::TooLong,
        Failure::Frame(FrameError::NoMemory { .. }) => ErrorKind::Exhausted,
        Failure::Frame(_) => ErrorKind::Malformed,
    };
    Error::new(kind, format!("{doing}: {failure}"))
}
