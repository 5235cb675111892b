//! What can go wrong, sorted by cause.
//!
//! One enum for the whole core, exhaustive on purpose: the faces match without a catch-all, so a new cause doesn't
//! compile until each face has decided what it means there. Waiting too long is not an error: calls that wait say
//! so in their result.

use std::fmt;

/// The result of a call into the core.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call of the core failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// The system refused a call. Python: the `OSError` of that number.
    Os {
        /// The system call, by its name in the manual.
        call: &'static str,
        /// The error number of errno(3).
        errno: i32,
    },
    /// A signal handler ran during a wait. The face runs the language's handlers, then waits again with the same
    /// deadline; no user sees it.
    Interrupted,
    /// The object was closed, or the other side is gone for good.
    Closed {
        /// The noun of what is closed.
        what: &'static str,
    },
    /// Something contradicts itself. Of calls on the arena only a census says so; any other poisons it.
    Broken {
        /// What contradicts itself.
        what: &'static str,
    },
    /// The arena has contradicted itself, in this process or in another: nothing in it can be relied on any more, and every
    /// call says so. Python: `RuntimeError`.
    Poisoned {
        /// What contradicted itself.
        what: &'static str,
    },
    /// Bytes from a peer, a parent or a file are not what their format allows.
    Malformed {
        /// What was read.
        what: &'static str,
        /// The offset, in bytes, of the first wrong one.
        at: u64,
    },
    /// A message or a buffer has more bytes than the limit.
    TooLong {
        /// Its length in bytes.
        length: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// A descriptor that another process sent can't be had. Python: `ConnectionRefusedError`, which is an `OSError`.
    Lost {
        /// The number that it had there.
        descriptor: i32,
        /// That process, by its id.
        pid: u32,
        /// Why, as a sentence without its full stop.
        why: &'static str,
    },
    /// A limit of our own or of the machine is used up. Python: `MemoryError` for memory, else `OSError`.
    Exhausted {
        /// What there is no more of.
        what: &'static str,
        /// How much of it there can be.
        limit: u64,
    },
    /// The caller asked for something that this object or this moment doesn't allow.
    Misuse {
        /// What was wrong with the call, as a sentence without its full stop.
        what: &'static str,
    },
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Os { call, errno } => {
                write!(f, "{call}: {}", std::io::Error::from_raw_os_error(*errno))
            }
            Self::Interrupted => f.write_str("a signal handler ran"),
            Self::Closed { what } => write!(f, "the {what} is closed"),
            Self::Broken { what } => write!(f, "{what} in shared memory contradicts itself"),
            Self::Poisoned { what } => write!(
                f,
                "the shared memory of this tree of processes is poisoned: {what} contradicted itself"
            ),
            Self::Malformed { what, at } => write!(f, "malformed {what} at byte {at}"),
            Self::TooLong { length, limit } => {
                write!(f, "{length} bytes exceed the limit of {limit}")
            }
            Self::Lost {
                descriptor,
                pid,
                why,
            } => write!(
                f,
                "descriptor {descriptor} of process {pid} can't be had: {why}"
            ),
            Self::Exhausted { what, limit } => write!(f, "no more {what}: the limit is {limit}"),
            Self::Misuse { what } => f.write_str(what),
        }
    }
}

impl std::error::Error for Error {}
