//! `JoinableQueue`: what `procession.queues.JoinableQueue` inherits, besides `Queue`.

use super::Queue;
use crate::blocking;
use procession_core::{Deadline, Error};
use pyo3::exceptions::{PyRuntimeWarning, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};
use std::ffi::CString;

/// A queue that counts the objects that were put and aren't done with.
#[pyclass(extends = Queue, subclass, frozen, module = "procession._core")]
pub(crate) struct JoinableQueue;

#[pymethods]
impl JoinableQueue {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(
        _args: &Bound<'_, PyTuple>,
        _kwargs: Option<&Bound<'_, PyDict>>,
    ) -> PyClassInitializer<Self> {
        PyClassInitializer::from(Queue::new(_args, _kwargs)).add_subclass(Self)
    }

    #[pyo3(signature = (maxsize=0, *, ctx=None))]
    fn __init__(
        slf: &Bound<'_, Self>,
        maxsize: i64,
        ctx: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let _ = ctx;
        let queue = slf.as_super().get();
        queue.make(slf.py(), maxsize, procession_core::Queue::joinable)
    }

    /// Says that one is done with an object that was got.
    fn task_done(slf: &Bound<'_, Self>) -> PyResult<()> {
        let queue = slf.as_super().get().get_queue()?;
        // What is wrong the other call says, too.
        if let Ok(true) = queue.try_task_done() {
            return Ok(());
        }
        blocking::call(slf.py(), || match queue.task_done() {
            Err(Error::Misuse { what }) => Ok(Err(what)),
            done => done.map(Ok),
        })?
        .map_err(PyValueError::new_err)
    }

    /// Waits until all objects are done with that were put. A `RuntimeWarning` says how many were lost with processes that
    /// had got them.
    fn join(slf: &Bound<'_, Self>) -> PyResult<()> {
        let (py, queue) = (slf.py(), slf.as_super().get().get_queue()?);
        let joined = |until| queue.join(until);
        let lost = blocking::wait(py, Deadline::NEVER, blocking::FOR_DATA, joined)?;
        match lost {
            None | Some(0) => Ok(()),
            Some(lost) => {
                let text = CString::new(format!(
                    "{lost} of the queue's objects were lost with processes that died before task_done()"
                ))?;
                PyErr::warn(py, &py.get_type::<PyRuntimeWarning>(), &text, 1)
            }
        }
    }

    /// Objects that were put and aren't done with.
    #[getter]
    fn _unfinished(slf: &Bound<'_, Self>) -> PyResult<u64> {
        let queue = slf.as_super().get().get_queue()?;
        queue.unfinished().map_err(crate::error::raise)
    }
}
