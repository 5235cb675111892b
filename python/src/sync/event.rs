//! `Event`.

use super::{get, holds, init, look, open, reduce};
use crate::blocking;
use crate::error::raise;
use procession_core::{Arena, Event as Core, ObjectName, Result};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};
use std::sync::OnceLock;

/// A flag that processes and threads wait for, as multiprocessing's `Event`.
#[pyclass(subclass, frozen, weakref, module = "procession.synchronize")]
pub(crate) struct Event(OnceLock<Core>);

#[pymethods]
impl Event {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self(OnceLock::new())
    }

    #[pyo3(signature = (*, ctx=None))]
    fn __init__(&self, py: Python<'_>, ctx: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
        let _ = ctx;
        init(py, self, Core::new)
    }

    fn _open(&self, py: Python<'_>, offset: u64, serial: u64) -> PyResult<()> {
        open(py, self, offset, serial)
    }

    /// Whether it is set.
    fn is_set(&self) -> PyResult<bool> {
        look(get(self)?.is_set())
    }

    /// Sets it, and wakes all who wait.
    fn set(&self) -> PyResult<()> {
        look(get(self)?.set())
    }

    /// Clears it. Whoever was waiting when it was set goes on all the same.
    fn clear(&self) -> PyResult<()> {
        look(get(self)?.clear())
    }

    /// Waits until it is set; false if it isn't within timeout seconds.
    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        let event = get(self)?;
        let deadline = blocking::deadline(true, timeout);
        let count = event.count().map_err(raise)?;
        let set = blocking::wait(py, deadline, blocking::FOR_DATA, |until| {
            Ok(event.wait(count, until)?.then_some(()))
        })?;
        Ok(set.is_some())
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyTuple>> {
        reduce(slf)
    }
}

holds!(Event, Core);
