//! Connections: values and bytes between two ends.
//!
//! [`pipe`](pipe()) makes both ends in this tree of processes, with a socket and shared memory between them. A [`Listener`] and a
//! [`Client`] make one each, anywhere: what is sent there is one of CPython's frames (`docs/wire.md`), so that a connection of bytes may have
//! a stock Python at its other end.

mod access;
mod address;
mod client;
mod error;
mod listener;
mod parcel;
pub(crate) mod passing;
mod pipe;
mod stream;
mod transport;
mod turn;

pub use address::Address;
pub use client::Client;
pub use error::{RecvError, SendError};
pub use listener::{AcceptError, Listener, ListenerBuilder};
pub use pipe::{Pipe, one_way_pipe, pipe};

use crate::codec;
use crate::error::{Error, Result};
use crate::names;
use procession_core::Deadline;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use transport::Transport;

/// One end of a connection, which sends values of one type and receives values of another, each whole and in order.
///
/// Of `[u8]`, it sends or receives bytes as they are: [`send_bytes`](Self::send_bytes), [`recv_bytes`](Self::recv_bytes).
/// Those are what a Python at the other end sends and receives; typed values are Rust's own. Long bytes inside those are best a
/// type that serde knows as bytes, such as `serde_bytes::ByteBuf`: a `Vec<u8>` is a list of numbers to it, which costs a
/// millisecond a MiB at each end, ten times as much as all the rest.
///
/// A clone is the same end, and threads may share it, by clones or by references: each message goes to one receiver, whole,
/// and messages of several senders don't mix. One end in several processes is only good for one sender and one
/// receiver at a time: nothing keeps two processes' messages apart. What two processes share is a [`Queue`](crate::Queue).
///
/// As an [`AsFd`] it can be read from when something can be received or the other end is gone: for [`wait`](crate::wait()),
/// poll(2) or an event loop. What can be read is none of their business.
///
/// # Across processes
/// It goes wherever values go, as a [`Descriptor`](crate::Descriptor) does: through queues and pipes, as a value of a process, in
/// tasks, while its sender lives; an argument of a process is the child's from its start. When the last process that has
/// the other end is gone or has dropped it, however that goes, [`recv`](Self::recv) gives what was sent, and then
/// [`Closed`](RecvError::Closed).
///
/// # After fork
/// The child has the same end, both of them if its parent had both: it is no end of file for the child that its parent
/// is gone, as long as it has the other end itself.
///
/// # Examples
/// ```standalone_crate
/// # fn main() -> procession::Result<()> {
/// procession::init();
/// use procession::{Connection, Process, RecvError, pipe};
/// let (mine, theirs) = pipe::<String, usize>()?;
/// let measure = |connection: Connection<usize, String>| {
///     while let Ok(text) = connection.recv() {
///         connection.send(&text.len()).unwrap();
///     }
/// };
/// let child = Process::spawn(measure, theirs)?;
/// mine.send(&"fourteen bytes".to_owned())?;
/// assert_eq!(mine.recv()?, 14);
/// drop(mine);
/// child.join()?;
/// # Ok(())
/// # }
/// ```
///
/// A value that isn't what it sends doesn't compile:
///
/// ```compile_fail,E0308
/// let (left, right) = procession::pipe::<u8, String>().unwrap();
/// left.send(&"text".to_owned()).unwrap();
/// ```
///
/// Python: `Connection`.
pub struct Connection<S: ?Sized, R: ?Sized = S> {
    transport: Arc<Transport>,
    values: PhantomData<fn(*const S) -> *const R>,
}

impl<S: ?Sized, R: ?Sized> Connection<S, R> {
    fn of(transport: Transport) -> Self {
        Self {
            transport: Arc::new(transport),
            values: PhantomData,
        }
    }

    /// Where the other end is: of one that was accepted, where it came from, and `None` if that has no name; of one that was
    /// made by a [`Client`], the listener. `None` for a pipe, and in a process that was given it.
    ///
    /// Python: `Listener.last_accepted`.
    #[must_use]
    pub fn peer(&self) -> Option<&Address> {
        self.transport.peer()
    }

    /// Whether something can be received without waiting, or the other end is gone. One system call.
    ///
    /// # Errors
    /// `Os` when there is no memory for the call.
    ///
    /// Python: `Connection.poll`.
    pub fn poll(&self) -> Result<bool> {
        self.poll_until(Deadline::now())
    }

    /// As [`poll`](Self::poll), waiting for it for at most so long.
    ///
    /// # Errors
    /// As [`poll`](Self::poll).
    pub fn poll_timeout(&self, timeout: Duration) -> Result<bool> {
        self.poll_until(Deadline::after(timeout))
    }

    fn poll_until(&self, deadline: Deadline) -> Result<bool> {
        let polled = self.transport.poll(deadline);
        polled.map_err(|error| Error::at("poll a connection", error))
    }

    /// Receives a message's bytes.
    fn receive(&self, deadline: Deadline) -> Result<Vec<u8>, RecvError> {
        self.transport.receive(deadline)?.ok_or(RecvError::Empty)
    }
}

impl<S: Serialize, R: ?Sized> Connection<S, R> {
    /// Sends a value; waits while the other end has too much to read.
    ///
    /// The value is encoded outside every lock, and may name queues and locks of the tree, which whoever receives it holds
    /// from then on. One system call, if there is room. The system has it when the call returns, which doesn't say that
    /// anybody will receive it.
    ///
    /// # Errors
    /// [`SendError::Closed`] when nobody is at the other end any more; `Failed` when the value can't be encoded, or names
    /// what lies in this tree while the other end may be in another.
    pub fn send(&self, value: &S) -> Result<(), SendError> {
        self.send_until(value, Deadline::NEVER)
    }

    /// Sends a value if there is room for it.
    ///
    /// # Errors
    /// As [`send_timeout`](Self::send_timeout).
    pub fn try_send(&self, value: &S) -> Result<(), SendError> {
        self.send_until(value, Deadline::now())
    }

    /// As [`send`](Self::send), for at most so long.
    ///
    /// # Errors
    /// As [`send`](Self::send); [`SendError::Full`] when none of it could be sent in time. When only some of it could, nothing
    /// can be sent any more: `Failed`, of the kind [`Broken`](crate::ErrorKind::Broken).
    pub fn send_timeout(&self, value: &S, timeout: Duration) -> Result<(), SendError> {
        self.send_until(value, Deadline::after(timeout))
    }

    fn send_until(&self, value: &S, deadline: Deadline) -> Result<(), SendError> {
        codec::with_buffer(|bytes| {
            let names = names::naming(|| codec::encode(value, bytes)).map_err(SendError::Failed)?;
            if names.is_empty() {
                return self.send_pieces(&[parcel::PLAIN, bytes], deadline);
            }
            if !self.transport.is_in_tree() {
                let text = "send a message: it names an object of this tree of processes, and the other end may be in another";
                let error = Error::new(crate::ErrorKind::Misuse, text);
                return Err(SendError::Failed(error));
            }
            let parcel = parcel::pack(&names).map_err(SendError::Failed)?;
            let sent = self.send_pieces(&[&parcel::head(&parcel), bytes], deadline);
            match &sent {
                Ok(()) => names.delivered(),
                Err(_) => parcel.unsent(),
            }
            sent
        })
    }
}

impl<S: ?Sized, R: ?Sized> Connection<S, R> {
    fn send_pieces(&self, pieces: &[&[u8]], deadline: Deadline) -> Result<(), SendError> {
        let whole = self.transport.send(pieces, deadline)?;
        whole.then_some(()).ok_or(SendError::Full)
    }
}

impl<S: ?Sized, R: DeserializeOwned> Connection<S, R> {
    /// Receives a value; waits until there is one, in the kernel.
    ///
    /// # Errors
    /// [`RecvError::Closed`] when nobody is at the other end any more; `Failed` when what came isn't an `R`, and is
    /// gone, or is no message.
    pub fn recv(&self) -> Result<R, RecvError> {
        self.recv_until(Deadline::NEVER)
    }

    /// Receives a value if there is one.
    ///
    /// # Errors
    /// As [`recv`](Self::recv), and [`RecvError::Empty`].
    pub fn try_recv(&self) -> Result<R, RecvError> {
        self.recv_until(Deadline::now())
    }

    /// As [`recv`](Self::recv), waiting for at most so long. What has come of a value that isn't whole then is kept.
    ///
    /// # Errors
    /// As [`recv`](Self::recv), and [`RecvError::Empty`].
    pub fn recv_timeout(&self, timeout: Duration) -> Result<R, RecvError> {
        self.recv_until(Deadline::after(timeout))
    }

    fn recv_until(&self, deadline: Deadline) -> Result<R, RecvError> {
        let is_in_tree = self.transport.is_in_tree();
        let read = |message: &[u8]| {
            // What it names is held until it is decoded, which opens it.
            let (_carried, value) = parcel::open(message, is_in_tree)?;
            let decode = || codec::decode_all(value);
            if is_in_tree {
                decode()
            } else {
                names::foreign(decode)
            }
        };
        let received = self.transport.receive_for(deadline, read)?;
        received.ok_or(RecvError::Empty)?.map_err(RecvError::Failed)
    }
}

impl<R: ?Sized> Connection<[u8], R> {
    /// Sends bytes; waits while the other end has too much to read. One system call, if there is room, and no copy but the
    /// system's.
    ///
    /// # Errors
    /// [`SendError::Closed`] when nobody is at the other end any more.
    ///
    /// # Examples
    /// ```
    /// # fn main() -> procession::Result<()> {
    /// let (left, right) = procession::pipe::<[u8], [u8]>()?;
    /// left.send_bytes(b"some bytes")?;
    /// assert_eq!(right.recv_bytes()?, b"some bytes");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// Python: `Connection.send_bytes`.
    pub fn send_bytes(&self, bytes: &[u8]) -> Result<(), SendError> {
        self.send_pieces(&[bytes], Deadline::NEVER)
    }

    /// Sends bytes if there is room for them.
    ///
    /// # Errors
    /// As [`send_bytes_timeout`](Self::send_bytes_timeout).
    pub fn try_send_bytes(&self, bytes: &[u8]) -> Result<(), SendError> {
        self.send_pieces(&[bytes], Deadline::now())
    }

    /// As [`send_bytes`](Self::send_bytes), for at most so long.
    ///
    /// # Errors
    /// As [`send_bytes`](Self::send_bytes); [`SendError::Full`] when none of them could be sent in time. When only some
    /// could, nothing can be sent any more: `Failed`, of the kind [`Broken`](crate::ErrorKind::Broken).
    pub fn send_bytes_timeout(&self, bytes: &[u8], timeout: Duration) -> Result<(), SendError> {
        self.send_pieces(&[bytes], Deadline::after(timeout))
    }
}

impl<S: ?Sized> Connection<S, [u8]> {
    /// Receives the bytes of a message; waits until there is one, in the kernel.
    ///
    /// # Errors
    /// [`RecvError::Closed`] when nobody is at the other end any more; `Failed` when what came is no message, or is longer
    /// than the limit.
    ///
    /// Python: `Connection.recv_bytes`.
    pub fn recv_bytes(&self) -> Result<Vec<u8>, RecvError> {
        self.receive(Deadline::NEVER)
    }

    /// As [`recv_bytes`](Self::recv_bytes), into a vector whose bytes are forgotten: none is allocated when it has the room.
    ///
    /// # Errors
    /// As [`recv_bytes`](Self::recv_bytes).
    ///
    /// Python: `Connection.recv_bytes_into`.
    pub fn recv_bytes_into(&self, bytes: &mut Vec<u8>) -> Result<(), RecvError> {
        let whole = self.transport.receive_into(bytes, Deadline::NEVER)?;
        whole.then_some(()).ok_or(RecvError::Empty)
    }

    /// Receives the bytes of a message if there is one.
    ///
    /// # Errors
    /// As [`recv_bytes`](Self::recv_bytes), and [`RecvError::Empty`].
    pub fn try_recv_bytes(&self) -> Result<Vec<u8>, RecvError> {
        self.receive(Deadline::now())
    }

    /// As [`recv_bytes`](Self::recv_bytes), waiting for at most so long. What has come of a message that isn't whole then
    /// is kept.
    ///
    /// # Errors
    /// As [`recv_bytes`](Self::recv_bytes), and [`RecvError::Empty`].
    pub fn recv_bytes_timeout(&self, timeout: Duration) -> Result<Vec<u8>, RecvError> {
        self.receive(Deadline::after(timeout))
    }
}

impl<S: ?Sized, R: ?Sized> Clone for Connection<S, R> {
    fn clone(&self) -> Self {
        Self {
            transport: self.transport.clone(),
            values: PhantomData,
        }
    }
}

impl<S: ?Sized, R: ?Sized> AsFd for Connection<S, R> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.transport.as_fd()
    }
}

/// A connection over a stream of one's own: a socket, a pipe, a terminal. Frames of any length are received, and nothing is
/// authenticated.
impl<S: ?Sized, R: ?Sized> From<OwnedFd> for Connection<S, R> {
    fn from(stream: OwnedFd) -> Self {
        Self::of(Transport::stream(stream, u64::MAX, None))
    }
}

impl<S: ?Sized, R: ?Sized> fmt::Debug for Connection<S, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("descriptor", &self.as_fd())
            .finish_non_exhaustive()
    }
}

impl<S: ?Sized, R: ?Sized> Serialize for Connection<S, R> {
    fn serialize<Z: Serializer>(&self, serializer: Z) -> Result<Z::Ok, Z::Error> {
        passing::serialize(&self.transport, serializer)
    }
}

impl<'de, S: ?Sized, R: ?Sized> Deserialize<'de> for Connection<S, R> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let transport = passing::deserialize(deserializer)?;
        Ok(Self {
            transport,
            values: PhantomData,
        })
    }
}
