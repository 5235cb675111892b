//! Connections: messages on descriptors, in CPython's frames.
//!
//! A call first tries without letting go of the interpreter, when it has reason to think that it need not wait; then it waits without
//! it. Each direction is one thread's at a time.

mod address;
mod baton;
mod challenge;
mod failure;
mod listener;
mod receive;

pub(crate) use baton::forget_turns;
pub(crate) use challenge::{create_response, verify_response};
pub(crate) use listener::{Listener, connect};

use crate::blocking::{self, FOR_DATA};
use crate::memory::{part, with_bytes};
use crate::{parcel, pickle};
use baton::Baton;
use failure::{raise_error, raise_failure};
use procession_core::connection::{self, Failure, Numbered};
use procession_core::wire::{Decoder, FrameError};
use procession_core::{Deadline, Error, Result};
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyTuple};
use std::os::fd::{AsFd, IntoRawFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Up to so many bytes are copied to or from the kernel without letting go of the interpreter: some microseconds.
const BRIEF_BYTES: u64 = 1 << 16;
/// How many messages aren't hoped for after one that had to be waited for.
const GLOOM: u8 = 15;

/// One end of a socket, a pipe, or whatever else carries a stream of bytes.
#[pyclass(subclass, frozen, weakref, module = "procession._core")]
pub(crate) struct Connection {
    handle: Mutex<Option<Arc<Handle>>>,
    readable: AtomicBool,
    writable: AtomicBool,
    incoming: Baton<Decoder>,
    /// False once a message was cut off in the middle: nothing that is sent behind it would be understood.
    outgoing: Baton<bool>,
    /// How many messages are to be waited for before one is hoped for.
    gloom: AtomicU8,
}

/// The descriptor of a connection.
struct Handle {
    descriptor: Numbered,
    is_socket: bool,
    is_closed: AtomicBool,
}

impl Handle {
    /// The deadline of a call: none on a pipe, no call of which can be told not to wait. What is needed of one is there.
    fn limit(&self, until: Deadline) -> Deadline {
        if self.is_socket {
            until
        } else {
            Deadline::NEVER
        }
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
            incoming: Baton::new(|| Decoder::new(u64::MAX)),
            outgoing: Baton::new(|| true),
            gloom: AtomicU8::new(0),
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
        self.readable.store(readable, Ordering::Relaxed);
        self.writable.store(writable, Ordering::Relaxed);
        self.set(Some(descriptor));
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
        handle.as_ref().map(|handle| handle.descriptor.number())
    }

    /// Another descriptor, or none: the one before is left open, since somebody has taken it.
    #[setter(_handle)]
    fn set_handle(&self, number: Option<RawFd>) {
        if let Some(before) = self.set(number.and_then(Numbered::new)) {
            before.descriptor.disown();
        }
    }

    /// The descriptor.
    fn fileno(&self) -> PyResult<RawFd> {
        Ok(self.open()?.descriptor.number())
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
        let handle = self.for_sending()?;
        with_bytes(buf, |bytes| {
            self.write(buf.py(), &handle, &[part(bytes, offset, size)?])
        })
    }

    /// Sends an object.
    fn send(&self, obj: &Bound<'_, PyAny>) -> PyResult<()> {
        let (py, handle) = (obj.py(), self.for_sending()?);
        parcel::send(obj, |pieces| match pieces.as_slice() {
            [piece] => self.write(py, &handle, &[piece.as_bytes(py)]),
            pieces => {
                let pieces: Vec<_> = pieces.iter().map(|piece| piece.as_bytes(py)).collect();
                self.write(py, &handle, &pieces)
            }
        })
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
        self.read(py, &handle, limit)
    }

    /// Receives an object; EOFError once the other side is closed and all is received.
    fn recv<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let message = self.read(py, &*self.for_receiving()?, u64::MAX)?;
        pickle::loads(py, &message)
    }

    /// Whether something can be received, waiting for it so many seconds (None: as long as it takes).
    #[pyo3(signature = (timeout=Some(0.0)), text_signature = "($self, timeout=0.0)")]
    fn poll(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        let handle = self.for_receiving()?;
        let stream = handle.descriptor.as_fd();
        let deadline = blocking::deadline(true, timeout);
        if deadline.passed() {
            let now = blocking::call(py, || connection::can_receive(stream, Deadline::now()));
            return now;
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

    /// Has another descriptor from now on. The one before is closed when nobody waits at it any more.
    fn set(&self, descriptor: Option<Numbered>) -> Option<Arc<Handle>> {
        let handle = descriptor.map(|descriptor| {
            Arc::new(Handle {
                is_socket: connection::is_socket(descriptor.as_fd()),
                descriptor,
                is_closed: AtomicBool::new(false),
            })
        });
        let before = std::mem::replace(&mut *self.lock(), handle);
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

    fn write(&self, py: Python<'_>, handle: &Handle, pieces: &[&[u8]]) -> PyResult<()> {
        let is_whole = self.outgoing.take(py)?;
        let mut sent = 0;
        let written = if is_whole {
            write(py, handle, pieces, &mut sent)
        } else {
            Err(PyOSError::new_err(
                "a message before this one was cut off in the middle",
            ))
        };
        self.outgoing
            .put(is_whole && (written.is_ok() || sent == 0));
        written
    }

    fn read<'py>(
        &self,
        py: Python<'py>,
        handle: &Handle,
        limit: u64,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let mut decoder = self.incoming.take(py)?;
        decoder.set_limit(limit);
        let hopes = handle.is_socket && self.gloom.load(Ordering::Relaxed) == 0;
        let (received, came_at_once) = receive::message(py, handle, &mut decoder, hopes);
        self.gloom.store(
            match self.gloom.load(Ordering::Relaxed) {
                _ if came_at_once => 0,
                0 => GLOOM,
                gloom => gloom - 1,
            },
            Ordering::Relaxed,
        );
        let is_refused = matches!(
            decoder.wanted(),
            Err(FrameError::Negative { .. } | FrameError::TooLong { .. })
        );
        if is_refused {
            self.refuse();
        }
        self.incoming.put(decoder);
        received
    }

    /// What follows can't be told apart any more; what was sent may still be read.
    fn refuse(&self) {
        if self.writable() {
            self.readable.store(false, Ordering::Relaxed);
        } else {
            self.close();
        }
    }
}

fn write(py: Python<'_>, handle: &Handle, pieces: &[&[u8]], sent: &mut u64) -> PyResult<()> {
    let stream = handle.descriptor.as_fd();
    if !handle.is_socket {
        // No call of a pipe can be told not to wait but all of them at once.
        handle.wait(py, Deadline::NEVER, |_| {
            connection::send(stream, pieces, sent, Deadline::NEVER).map(Some)
        })?;
        return Ok(());
    }
    let length: u64 = pieces.iter().map(|piece| piece.len() as u64).sum();
    if length <= BRIEF_BYTES {
        match connection::send(stream, pieces, sent, Deadline::now()) {
            Ok(true) => return Ok(()),
            Ok(false) | Err(Failure::System(Error::Interrupted)) => {}
            Err(failure) => return Err(raise_failure(py, failure)),
        }
    }
    handle.wait(py, Deadline::NEVER, |until| {
        Ok(connection::send(stream, pieces, sent, until)?.then_some(()))
    })?;
    Ok(())
}

/// The descriptors of two connected ends; of one that receives and one that sends if not duplex.
#[pyfunction]
pub(crate) fn pipe(duplex: bool) -> PyResult<(RawFd, RawFd)> {
    let ends = if duplex {
        connection::stream_pair()
    } else {
        connection::stream_pipe()
    };
    let (one, other) = ends.map_err(raise_error)?;
    Ok((one.into_raw_fd(), other.into_raw_fd()))
}
