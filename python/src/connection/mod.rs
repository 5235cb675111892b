//! Connections: messages between processes of a tree as a pipe carries them, and on any other descriptor in CPython's frames.
//!
//! A call first tries without letting go of the interpreter, when it has reason to think that it need not wait; then it waits without
//! it.

mod address;
mod baton;
mod challenge;
mod failure;
mod listener;
pub(crate) mod pipe;
mod receive;
mod stream;

pub(crate) use baton::forget_turns;
pub(crate) use challenge::{create_response, verify_response};
pub(crate) use listener::{Listener, connect};

use crate::blocking::{self, FOR_DATA};
use crate::memory::{part, with_bytes, with_room};
use crate::{parcel, pickle};
use failure::{Trouble, raise_error, raise_failure};
use procession_core::connection::{self, Failure, Numbered, PipeEnd};
use procession_core::{Deadline, Error, Result};
use pyo3::exceptions::{PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyTuple};
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use stream::Stream;

/// One end of a pipe, a socket, or whatever else carries a stream of bytes.
#[pyclass(subclass, frozen, weakref, module = "procession._core")]
pub(crate) struct Connection {
    handle: Mutex<Option<Arc<Handle>>>,
    readable: AtomicBool,
    writable: AtomicBool,
}

/// What a connection has open.
struct Handle {
    way: Way,
    is_closed: AtomicBool,
}

/// How messages travel.
enum Way {
    /// As packets, within the tree.
    Pipe(PipeEnd),
    /// As frames, to anywhere.
    Stream(Stream),
}

impl Handle {
    fn new(way: Way) -> Arc<Self> {
        let is_closed = AtomicBool::new(false);
        Arc::new(Self { way, is_closed })
    }

    fn numbered(&self) -> &Numbered {
        match &self.way {
            Way::Pipe(end) => end.descriptor(),
            Way::Stream(stream) => stream.descriptor(),
        }
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.numbered().as_fd()
    }

    /// A BlockingIOError if the program has made the descriptor one that nobody waits at.
    fn may_wait(&self) -> PyResult<()> {
        connection::may_wait(self.descriptor()).map_err(raise_error)
    }

    /// Waits without the interpreter until `step` gives something, or this end is closed by another thread.
    fn wait<T: Send>(
        &self,
        py: Python<'_>,
        deadline: Deadline,
        mut step: impl FnMut(Deadline) -> Result<Option<T>, Failure> + Send,
    ) -> PyResult<Option<T>> {
        let waited = blocking::wait_for(py, deadline, FOR_DATA, raise_error, |until| {
            if self.is_closed.load(Ordering::Relaxed) {
                return Err(Error::Closed { what: "handle" });
            }
            match step(until) {
                Err(Failure::System(error)) => Err(error),
                Err(failure) => Ok(Some(Err(failure))),
                Ok(value) => Ok(value.map(Ok)),
            }
        })?;
        let given = waited.transpose();
        given.map_err(|failure| raise_failure(py, failure))
    }

    /// As [`wait`](Self::wait), for as long as it takes.
    fn wait_long<T: Send>(
        &self,
        py: Python<'_>,
        step: impl FnMut(Deadline) -> Result<Option<T>, Failure> + Send,
    ) -> PyResult<T> {
        let given = self.wait(py, Deadline::NEVER, step)?;
        given.ok_or_else(|| PyRuntimeError::new_err("a wait for ever has ended"))
    }
}

#[pymethods]
impl Connection {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self {
            handle: Mutex::default(),
            readable: AtomicBool::new(false),
            writable: AtomicBool::new(false),
        }
    }

    #[pyo3(signature = (handle, readable=true, writable=true))]
    fn __init__(
        &self,
        handle: &Bound<'_, PyAny>,
        #[pyo3(from_py_with = blocking::truth)] readable: bool,
        #[pyo3(from_py_with = blocking::truth)] writable: bool,
    ) -> PyResult<()> {
        let number: i64 = handle.call_method0("__index__")?.extract()?;
        let invalid = || PyValueError::new_err("invalid handle");
        let number = RawFd::try_from(number).map_err(|_| invalid())?;
        let descriptor = Numbered::new(number).ok_or_else(invalid)?;
        if !readable && !writable {
            descriptor.disown();
            return Err(PyValueError::new_err(
                "at least one of `readable` and `writable` must be True",
            ));
        }
        self.begin(Way::Stream(Stream::new(descriptor)), readable, writable);
        Ok(())
    }

    /// Whether it can receive.
    #[getter]
    fn readable(&self) -> bool {
        self.readable.load(Ordering::Relaxed)
    }

    /// Whether it can send.
    #[getter]
    fn writable(&self) -> bool {
        self.writable.load(Ordering::Relaxed)
    }

    #[getter]
    fn _readable(&self) -> bool {
        self.readable()
    }

    #[setter(_readable)]
    fn set_readable(&self, readable: bool) {
        self.readable.store(readable, Ordering::Relaxed);
    }

    #[getter]
    fn _writable(&self) -> bool {
        self.writable()
    }

    #[setter(_writable)]
    fn set_writable(&self, writable: bool) {
        self.writable.store(writable, Ordering::Relaxed);
    }

    /// Whether it is closed.
    #[getter]
    fn closed(&self) -> bool {
        self.lock().is_none()
    }

    #[getter]
    fn _handle(&self) -> Option<RawFd> {
        let handle = self.lock();
        handle.as_ref().map(|handle| handle.numbered().number())
    }

    /// Another descriptor, or none: the one before is left open, since somebody has taken it.
    #[setter(_handle)]
    fn set_handle(&self, number: Option<RawFd>) {
        let stream = number.and_then(Numbered::new).map(Stream::new);
        if let Some(before) = self.set(stream.map(Way::Stream)) {
            before.numbered().disown();
        }
    }

    /// What another process of the tree makes the same end of a pipe of, with its descriptor; None for any other stream.
    fn _pipe_name(&self, py: Python<'_>) -> PyResult<Option<(u64, u64, u64)>> {
        match &self.open()?.way {
            Way::Pipe(end) => pipe::name(py, end).map(Some),
            Way::Stream(_) => Ok(None),
        }
    }

    /// The descriptor.
    fn fileno(&self) -> PyResult<RawFd> {
        Ok(self.open()?.numbered().number())
    }

    /// Closes it.
    fn close(&self) {
        drop(self.set(None));
    }

    fn _close(&self) {
        self.close();
    }

    /// Sends the bytes of a buffer, or a part of them, as one message.
    #[pyo3(signature = (buf, offset=0, size=None))]
    fn send_bytes(
        &self,
        buf: &Bound<'_, PyAny>,
        offset: isize,
        size: Option<isize>,
    ) -> PyResult<()> {
        let (py, handle) = (buf.py(), self.for_sending()?);
        with_bytes(buf, |bytes| {
            let parts = [part(bytes, offset, size)?];
            match &handle.way {
                Way::Pipe(end) => pipe::send_pickle(py, &handle, end, &parts),
                Way::Stream(stream) => stream.send(py, &handle, &parts),
            }
        })
    }

    /// Sends an object.
    fn send(&self, obj: &Bound<'_, PyAny>) -> PyResult<()> {
        let (py, handle) = (obj.py(), self.for_sending()?);
        match &handle.way {
            Way::Pipe(end) => pipe::send(obj, &handle, end),
            Way::Stream(stream) => parcel::send(obj, |parts| stream.send(py, &handle, parts)),
        }
    }

    /// Receives a message as bytes; an OSError ends the connection if it has more than `maxlength`.
    #[pyo3(signature = (maxlength=None))]
    fn recv_bytes<'py>(
        &self,
        py: Python<'py>,
        maxlength: Option<i64>,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let handle = self.for_receiving()?;
        let limit = maxlength.map_or(Ok(u64::MAX), |limit| {
            u64::try_from(limit).map_err(|_| PyValueError::new_err("negative maxlength"))
        })?;
        self.unless_refused(match &handle.way {
            Way::Pipe(end) => pipe::receive_pickle(py, &handle, end, limit),
            Way::Stream(stream) => stream.receive(py, &handle, limit),
        })
    }

    /// Receives a message into a buffer, from an offset on, and gives its length. Where it doesn't fit, `BufferTooShort` has it.
    #[pyo3(signature = (buf, offset=0))]
    fn recv_bytes_into(&self, buf: &Bound<'_, PyAny>, offset: isize) -> PyResult<usize> {
        let (py, handle) = (buf.py(), self.for_receiving()?);
        with_room(buf, offset, |room| {
            self.unless_refused(match &handle.way {
                Way::Pipe(end) => pipe::receive_into(py, &handle, end, room),
                Way::Stream(stream) => stream.receive_into(py, &handle, room),
            })
        })
    }

    /// Receives an object; EOFError once the other side is closed and all is received.
    fn recv<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let handle = self.for_receiving()?;
        match &handle.way {
            Way::Pipe(end) => pipe::receive(py, &handle, end),
            Way::Stream(stream) => {
                let message = stream.receive(py, &handle, u64::MAX);
                pickle::loads(py, &self.unless_refused(message)?)
            }
        }
    }

    /// Whether something can be received, waiting for it so many seconds (None: as long as it takes).
    #[pyo3(signature = (timeout=Some(0.0)), text_signature = "($self, timeout=0.0)")]
    fn poll(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        let handle = self.for_receiving()?;
        let stream = handle.descriptor();
        let deadline = blocking::deadline(true, timeout);
        if deadline.passed() {
            return blocking::call(py, || connection::can_receive(stream, Deadline::now()));
        }
        let ready = handle.wait(py, deadline, |until| {
            Ok(connection::can_receive(stream, until)?.then_some(()))
        })?;
        Ok(ready.is_some())
    }
}

impl Connection {
    fn lock(&self) -> MutexGuard<'_, Option<Arc<Handle>>> {
        self.handle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, way: Way, readable: bool, writable: bool) {
        self.readable.store(readable, Ordering::Relaxed);
        self.writable.store(writable, Ordering::Relaxed);
        drop(self.set(Some(way)));
    }

    /// Has something else open from now on. What was open before is closed when nobody waits at it any more.
    fn set(&self, way: Option<Way>) -> Option<Arc<Handle>> {
        let before = std::mem::replace(&mut *self.lock(), way.map(Handle::new));
        if let Some(before) = &before {
            before.is_closed.store(true, Ordering::Relaxed);
        }
        before
    }

    fn open(&self) -> PyResult<Arc<Handle>> {
        let handle = self.lock().clone();
        handle.ok_or_else(|| PyOSError::new_err("handle is closed"))
    }

    fn for_receiving(&self) -> PyResult<Arc<Handle>> {
        let handle = self.open()?;
        if self.readable() {
            return Ok(handle);
        }
        Err(PyOSError::new_err("connection is write-only"))
    }

    fn for_sending(&self) -> PyResult<Arc<Handle>> {
        let handle = self.open()?;
        if self.writable() {
            return Ok(handle);
        }
        Err(PyOSError::new_err("connection is read-only"))
    }

    /// What was received. After a refusal what follows can't be told apart any more; what was sent may still be read.
    fn unless_refused<T>(&self, received: Result<T, Trouble>) -> PyResult<T> {
        received.map_err(|trouble| {
            if trouble.is_refusal {
                if self.writable() {
                    self.readable.store(false, Ordering::Relaxed);
                } else {
                    self.close();
                }
            }
            trouble.error
        })
    }
}
