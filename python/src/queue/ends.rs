//! The two ends of a queue, for code that knows queues as two ends of a pipe: `_reader` and `_writer`.
//!
//! Whole objects go through them: what one end sends as a pickle the other receives as that, or as the object.

use super::{Inner, NO_READER, NO_WRITER, decode, get_at_last, put_value, store};
use crate::error::raise;
use crate::memory::{fill, part, with_bytes, with_room};
use crate::value::{Source, kind};
use crate::{blocking, pickle, value};
use procession_core::{Carried, Taken};
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyBytes;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

/// A queue's end for getters.
#[pyclass(frozen, module = "procession._core")]
pub(crate) struct QueueReader {
    inner: Arc<Inner>,
}

/// A queue's end for putters.
#[pyclass(frozen, module = "procession._core")]
pub(crate) struct QueueWriter {
    inner: Arc<Inner>,
}

/// The two ends of one object, made when they are first asked for: whoever waits for some gets back the ones that it has.
pub(crate) struct Ends {
    reader: PyOnceLock<Py<QueueReader>>,
    writer: PyOnceLock<Py<QueueWriter>>,
}

impl Ends {
    pub(super) const fn new() -> Self {
        Self {
            reader: PyOnceLock::new(),
            writer: PyOnceLock::new(),
        }
    }

    pub(super) fn reader(&self, py: Python<'_>, inner: &Arc<Inner>) -> PyResult<Py<QueueReader>> {
        let inner = Arc::clone(inner);
        let make = || Py::new(py, QueueReader { inner });
        Ok(self.reader.get_or_try_init(py, make)?.clone_ref(py))
    }

    pub(super) fn writer(&self, py: Python<'_>, inner: &Arc<Inner>) -> PyResult<Py<QueueWriter>> {
        let inner = Arc::clone(inner);
        let make = || Py::new(py, QueueWriter { inner });
        Ok(self.writer.get_or_try_init(py, make)?.clone_ref(py))
    }
}

impl QueueReader {
    fn receive<'py, T>(
        &self,
        py: Python<'py>,
        read: impl FnOnce(Python<'py>, &Taken, &[u8]) -> PyResult<T>,
    ) -> PyResult<T> {
        get_at_last(py, self.inner.by_end(NO_READER)?, read)
    }
}

#[pymethods]
impl QueueReader {
    /// Receives an object.
    fn recv<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.receive(py, decode)
    }

    /// Receives an object as its pickle, or the bytes that were sent.
    #[pyo3(signature = (maxlength=None))]
    fn recv_bytes<'py>(
        &self,
        py: Python<'py>,
        maxlength: Option<isize>,
    ) -> PyResult<Bound<'py, PyBytes>> {
        if maxlength.is_some_and(isize::is_negative) {
            return Err(PyValueError::new_err("negative maxlength"));
        }
        let bytes = self.receive(py, pickled)?;
        if maxlength.is_some_and(|most| bytes.as_bytes().len() > most.unsigned_abs()) {
            self.close();
            return Err(PyOSError::new_err("bad message length"));
        }
        Ok(bytes)
    }

    /// Whether an object can be received, waiting for it so many seconds (None: as long as it takes).
    #[pyo3(signature = (timeout=Some(0.0)), text_signature = "($self, timeout=0.0)")]
    fn poll(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        let queue = self.inner.by_end(NO_READER)?;
        if !queue.is_empty().map_err(raise)? {
            return Ok(true);
        }
        let deadline = blocking::deadline(true, timeout);
        let there = |until| Ok(queue.poll(until)?.then_some(()));
        let waited = blocking::wait(py, deadline, blocking::FOR_DATA, there)?;
        Ok(waited.is_some())
    }

    /// Receives as `recv_bytes`, into a buffer from an offset on; gives how many bytes those are. Where they don't fit,
    /// `BufferTooShort` has them.
    #[pyo3(signature = (buf, offset=0))]
    fn recv_bytes_into(
        &self,
        py: Python<'_>,
        buf: &Bound<'_, PyAny>,
        offset: isize,
    ) -> PyResult<usize> {
        with_room(buf, offset, |room| {
            let bytes = self.receive(py, pickled)?;
            fill(room, bytes)
        })
    }

    /// A descriptor that is readable while an object can be received, until this process lets go of the queue.
    fn fileno(&self, py: Python<'_>) -> PyResult<RawFd> {
        let queue = self.inner.by_end(NO_READER)?;
        Ok(blocking::call(py, || queue.readable())?.as_raw_fd())
    }

    fn close(&self) {
        self.inner.becomes(NO_READER);
    }

    #[getter]
    fn closed(&self) -> bool {
        self.inner.is(NO_READER)
    }

    #[getter]
    fn readable(&self) -> bool {
        true
    }

    #[getter]
    fn writable(&self) -> bool {
        false
    }
}

#[pymethods]
impl QueueWriter {
    /// Sends an object: puts it.
    fn send(&self, obj: &Bound<'_, PyAny>) -> PyResult<()> {
        let queue = self.inner.by_end(NO_WRITER)?;
        put_value(obj.py(), queue, &value::encode(obj)?, true, None)
    }

    /// Sends the bytes of a buffer, or a part of them: a pickle, for whoever gets an object.
    #[pyo3(signature = (buf, offset=0, size=None))]
    fn send_bytes(
        &self,
        buf: &Bound<'_, PyAny>,
        offset: isize,
        size: Option<isize>,
    ) -> PyResult<()> {
        let (py, queue) = (buf.py(), self.inner.by_end(NO_WRITER)?);
        with_bytes(buf, |bytes| {
            let parts = [part(bytes, offset, size)?];
            let message = (kind::PICKLE, &parts[..], &Carried::new());
            store(py, queue, message, true, None)
        })
    }

    /// A descriptor that is writable while there is room, until this process lets go of the queue.
    fn fileno(&self, py: Python<'_>) -> PyResult<RawFd> {
        let queue = self.inner.by_end(NO_WRITER)?;
        Ok(blocking::call(py, || queue.writable())?.as_raw_fd())
    }

    fn close(&self) {
        self.inner.becomes(NO_WRITER);
    }

    #[getter]
    fn closed(&self) -> bool {
        self.inner.is(NO_WRITER)
    }

    #[getter]
    fn readable(&self) -> bool {
        false
    }

    #[getter]
    fn writable(&self) -> bool {
        true
    }
}

/// The pickle of a message's object. One that names others is pickled again: its bytes alone wouldn't hold them.
fn pickled<'py>(py: Python<'py>, taken: &Taken, buffer: &[u8]) -> PyResult<Bound<'py, PyBytes>> {
    if !taken.carried.names().is_empty() {
        return pickle::dumped(&decode(py, taken, buffer)?);
    }
    let source = Source {
        buffer,
        extent: taken.extent.as_ref(),
    };
    source.pickled(py, taken.tag)
}
