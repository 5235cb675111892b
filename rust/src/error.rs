//! What can go wrong, as users see it.

use procession_core::{Error as Core, ExitStatus};
use std::fmt;

/// The result of a call.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call failed: its [kind](Self::kind) for programs, its text for people.
#[derive(Debug, Clone)]
pub struct Error {
    kind: ErrorKind,
    text: Box<str>,
    source: Option<Core>,
}

/// The causes of an [`Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The system refused a call.
    Os,
    /// The queue or the pool was closed, nobody holds the object any more, or nobody is at the other end.
    Closed,
    /// The pool has given up: its workers die as they start. Or a connection is torn: it was left in the middle of a message.
    Broken,
    /// Shared memory has contradicted itself, in this process or in another: no call on it works any more.
    Poisoned,
    /// Bytes are not what their format allows.
    Malformed,
    /// More bytes than the limit.
    TooLong,
    /// A limit, of ours or of the machine, is used up.
    Exhausted,
    /// The call isn't allowed on this object or at this moment.
    Misuse,
    /// A value can't be turned into bytes, or bytes into a value of the type.
    Encoding,
    /// There was no room, or no message, at this moment.
    WouldWait,
    /// The holder of a lock died.
    OwnerDied,
    /// Not all parties of a barrier will come.
    BarrierBroken,
    /// The function panicked.
    Panicked,
    /// A process ended before it returned a value, or was done with what it had got, or a descriptor that it sent was redeemed.
    Lost,
    /// The pool was terminated.
    Terminated,
    /// The other end of a connection doesn't have the same key, or didn't show in time that it has.
    Authentication,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, text: impl Into<Box<str>>) -> Self {
        Self {
            kind,
            text: text.into(),
            source: None,
        }
    }

    /// The error of a core's call made to do something, which is named as "put a message".
    pub(crate) fn at(doing: &str, source: Core) -> Self {
        let kind = match &source {
            Core::Os { .. } => ErrorKind::Os,
            Core::Closed { .. } => ErrorKind::Closed,
            // Every wait goes through `retry`, so none is left to be seen.
            Core::Interrupted | Core::Broken { .. } | Core::Poisoned { .. } => ErrorKind::Poisoned,
            Core::Malformed { .. } => ErrorKind::Malformed,
            Core::TooLong { .. } => ErrorKind::TooLong,
            Core::Exhausted { .. } => ErrorKind::Exhausted,
            Core::Lost { .. } => ErrorKind::Lost,
            Core::Misuse { .. } => ErrorKind::Misuse,
        };
        Self {
            kind,
            text: format!("{doing}: {source}").into(),
            source: Some(source),
        }
    }

    /// What kind of failure it is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| source as _)
    }
}

/// Calls the core, and again whenever a signal handler ran meanwhile: Rust programs have nothing to do between.
#[inline]
pub(crate) fn retry<T>(
    mut call: impl FnMut() -> procession_core::Result<T>,
) -> procession_core::Result<T> {
    loop {
        match call() {
            Err(Core::Interrupted) => {}
            other => return other,
        }
    }
}

/// Why a message was not put.
#[derive(Debug, Clone)]
pub enum PutError {
    /// There was no room in the queue, until the timeout passed.
    Full,
    /// The queue was closed.
    Closed,
    /// Anything else.
    Failed(Error),
}

/// Why no message was got.
#[derive(Debug, Clone)]
pub enum GetError {
    /// There was no message in the queue, until the timeout passed.
    Empty,
    /// The queue was closed, and all its messages were got.
    Closed,
    /// Anything else. A message that isn't of the queue's type is gone, and so is one for whose bytes there is no memory.
    Failed(Error),
}

/// Why not all values of a queue were finished.
#[derive(Debug, Clone)]
pub enum TaskError {
    /// They are finished, but so many only since the process died that had got them.
    Lost(u64),
    /// Some weren't when the timeout had passed.
    Unfinished,
    /// Anything else.
    Failed(Error),
}

/// Why a function that ran in another process gave no value.
#[derive(Debug, Clone)]
pub enum JoinError {
    /// It panicked.
    Panicked(RemoteError),
    /// Its process ended so, before the function returned.
    Lost(ExitStatus),
    /// Anything else: its value can't be encoded, the pool was terminated.
    Failed(Error),
}

/// A panic in another process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteError {
    pub(crate) message: String,
}

impl RemoteError {
    /// What the function panicked with, if that was a text.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl fmt::Display for RemoteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "panicked in another process: {}", self.message)
    }
}

impl std::error::Error for RemoteError {}

impl fmt::Display for PutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str("put a message: the queue is full"),
            Self::Closed => f.write_str("put a message: the queue is closed"),
            Self::Failed(error) => error.fmt(f),
        }
    }
}

impl fmt::Display for GetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("get a message: the queue is empty"),
            Self::Closed => f.write_str("get a message: the queue is closed"),
            Self::Failed(error) => error.fmt(f),
        }
    }
}

impl fmt::Display for TaskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost(1) => f.write_str("join a queue: a message was lost with its getter"),
            Self::Lost(lost) => {
                write!(
                    f,
                    "join a queue: {lost} messages were lost with their getters"
                )
            }
            Self::Unfinished => f.write_str("join a queue: not all messages are done"),
            Self::Failed(error) => error.fmt(f),
        }
    }
}

impl fmt::Display for JoinError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Panicked(panic) => panic.fmt(f),
            Self::Lost(status) => {
                write!(
                    f,
                    "the process ended by {status} before its function returned"
                )
            }
            Self::Failed(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for PutError {}
impl std::error::Error for GetError {}
impl std::error::Error for TaskError {}
impl std::error::Error for JoinError {}

impl From<Error> for JoinError {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl From<PutError> for Error {
    fn from(error: PutError) -> Self {
        match error {
            PutError::Full => Self::new(ErrorKind::WouldWait, error.to_string()),
            PutError::Closed => Self::new(ErrorKind::Closed, error.to_string()),
            PutError::Failed(error) => error,
        }
    }
}

impl From<GetError> for Error {
    fn from(error: GetError) -> Self {
        match error {
            GetError::Empty => Self::new(ErrorKind::WouldWait, error.to_string()),
            GetError::Closed => Self::new(ErrorKind::Closed, error.to_string()),
            GetError::Failed(error) => error,
        }
    }
}

impl From<TaskError> for Error {
    fn from(error: TaskError) -> Self {
        match error {
            TaskError::Lost(_) => Self::new(ErrorKind::Lost, error.to_string()),
            TaskError::Unfinished => Self::new(ErrorKind::WouldWait, error.to_string()),
            TaskError::Failed(error) => error,
        }
    }
}

impl From<JoinError> for Error {
    fn from(error: JoinError) -> Self {
        match error {
            JoinError::Panicked(_) => Self::new(ErrorKind::Panicked, error.to_string()),
            JoinError::Lost(_) => Self::new(ErrorKind::Lost, error.to_string()),
            JoinError::Failed(error) => error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_say_what_was_being_done() {
        let full = Error::at(
            "make a queue",
            Core::Os {
                call: "fallocate",
                errno: 28,
            },
        );
        assert_eq!(full.kind(), ErrorKind::Os);
        assert!(full.to_string().starts_with("make a queue: fallocate: "));
        assert!(std::error::Error::source(&full).is_some());
        let lost = Error::from(JoinError::Lost(ExitStatus::Signal(9)));
        let text = "the process ended by signal 9 before its function returned";
        assert_eq!((lost.kind(), &*lost.to_string()), (ErrorKind::Lost, text));
        let lost = Error::from(TaskError::Lost(3));
        let text = "join a queue: 3 messages were lost with their getters";
        assert_eq!((lost.kind(), &*lost.to_string()), (ErrorKind::Lost, text));
        let unfinished = Error::from(TaskError::Unfinished);
        assert_eq!(unfinished.kind(), ErrorKind::WouldWait);
        assert_eq!(Error::from(PutError::Full).kind(), ErrorKind::WouldWait);
        assert_eq!(Error::from(GetError::Closed).kind(), ErrorKind::Closed);
    }
}
