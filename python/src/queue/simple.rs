//! `SimpleQueue`: what `procession.queues.SimpleQueue` inherits.

use super::{
    Ends, Inner, NO_READER, NO_WRITER, QueueReader, QueueWriter, decode, get_at_last, put_value,
};
use crate::error::raise;
use crate::{blocking, tree, value};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};
use std::sync::Arc;

/// A queue of objects with nothing but `put` and `get`.
#[pyclass(subclass, frozen, module = "procession._core")]
pub(crate) struct SimpleQueue {
    inner: Arc<Inner>,
    ends: Ends,
}

#[pymethods]
impl SimpleQueue {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self {
            inner: Arc::default(),
            ends: Ends::new(),
        }
    }

    #[pyo3(signature = (*, ctx=None))]
    fn __init__(&self, py: Python<'_>, ctx: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
        let _ = ctx;
        let arena = tree::arena()?;
        let queue = blocking::call(py, || procession_core::Queue::new(arena, None))?;
        self.inner.set(queue)
    }

    /// Puts an object; never waits for room.
    fn put(&self, obj: &Bound<'_, PyAny>) -> PyResult<()> {
        let value = value::encode(obj)?;
        put_value(obj.py(), self.inner.by_end(NO_WRITER)?, &value, true, None)
    }

    /// Gets an object; waits until there is one.
    fn get<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        get_at_last(py, self.inner.by_end(NO_READER)?, decode)
    }

    fn empty(&self) -> PyResult<bool> {
        self.inner.by_end(NO_READER)?.is_empty().map_err(raise)
    }

    /// Says that this process puts and gets nothing here any more.
    fn close(&self) {
        self.inner.becomes(NO_READER | NO_WRITER);
    }

    /// Its end for getters, as an object that is much like a `Connection`.
    #[getter]
    fn _reader(&self, py: Python<'_>) -> PyResult<Py<QueueReader>> {
        self.ends.reader(py, &self.inner)
    }

    /// Its end for putters, as an object that is much like a `Connection`.
    #[getter]
    fn _writer(&self, py: Python<'_>) -> PyResult<Py<QueueWriter>> {
        self.ends.writer(py, &self.inner)
    }

    /// Its name: all that a pickle of it has.
    fn __getstate__(&self, py: Python<'_>) -> PyResult<(u64, u64)> {
        self.inner.pickled(py)
    }

    fn __setstate__(&self, py: Python<'_>, name: (u64, u64)) -> PyResult<()> {
        self.inner.open(py, name)
    }
}
