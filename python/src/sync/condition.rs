//! What Python's `Condition` is made of, beside its lock.

use super::{get, holds, init, look, open, reduce};
use crate::blocking;
use procession_core::{Arena, Condition as Core, ObjectName, Result};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};
use std::sync::OnceLock;

/// Those who wait for a notification.
#[pyclass(subclass, frozen, module = "procession._core")]
pub(crate) struct Waiters(OnceLock<Core>);

#[pymethods]
impl Waiters {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self(OnceLock::new())
    }

    fn __init__(&self, py: Python<'_>) -> PyResult<()> {
        init(py, self, Core::new)
    }

    fn _open(&self, py: Python<'_>, offset: u64, serial: u64) -> PyResult<()> {
        open(py, self, offset, serial)
    }

    /// Frees the lock, waits until it is notified or timeout seconds have passed, and takes the lock again. Whether it was
    /// notified.
    #[pyo3(signature = (lock, timeout))]
    fn wait(
        &self,
        py: Python<'_>,
        lock: &Bound<'_, PyAny>,
        timeout: Option<f64>,
    ) -> PyResult<bool> {
        let condition = get(self)?;
        let deadline = blocking::deadline(true, timeout);
        let enlisted = blocking::wait(py, deadline, blocking::FOR_OWNED, |until| {
            condition.enlist(until)
        });
        let Some(waiting) = enlisted? else {
            return Ok(false);
        };
        let saved = lock.call_method0("_release_save")?;
        let waited = blocking::wait(py, deadline, blocking::FOR_DATA, |until| {
            Ok(waiting.wait(until)?.then_some(()))
        });
        let notified = waiting.leave();
        // Whatever ended the wait, its caller holds the lock; the first exception is the one to raise.
        let relocked = lock.call_method1("_acquire_restore", (saved,));
        waited?;
        relocked?;
        Ok(notified)
    }

    /// Wakes at most so many, those who have waited longest; how many.
    fn notify(&self, count: usize) -> PyResult<usize> {
        look(get(self)?.notify(count))
    }

    /// How many wait.
    fn get_value(&self) -> PyResult<usize> {
        look(get(self)?.waiting())
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyTuple>> {
        reduce(slf)
    }
}

holds!(Waiters, Core);
