//! What Python's `Barrier` is made of, beside its action and its timeout.

use super::{get, holds, init, look, open, reduce};
use crate::blocking;
use crate::error::raise;
use procession_core::{Arena, Barrier as Core, Deadline, Error, ObjectName, Passed, Result};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};
use std::sync::OnceLock;

/// A place where a number of processes and threads wait for each other.
#[pyclass(subclass, frozen, module = "procession._core")]
pub(crate) struct Barrier(OnceLock<Core>);

#[pymethods]
impl Barrier {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self(OnceLock::new())
    }

    fn __init__(&self, py: Python<'_>, parties: i64) -> PyResult<()> {
        let number = u32::try_from(parties).unwrap_or(0);
        init(py, self, |arena| Core::new(arena, number)).map_err(|error| {
            if error.is_instance_of::<PyValueError>(py) {
                PyValueError::new_err(format!(
                    "a barrier has from 1 to 2048 parties, not {parties}"
                ))
            } else {
                error
            }
        })
    }

    fn _open(&self, py: Python<'_>, offset: u64, serial: u64) -> PyResult<()> {
        open(py, self, offset, serial)
    }

    /// Waits until all are there, for at most timeout seconds; the last one calls the action before all go on. How many
    /// had come before.
    #[pyo3(signature = (action, timeout))]
    fn wait(
        &self,
        py: Python<'_>,
        action: Option<&Bound<'_, PyAny>>,
        timeout: Option<f64>,
    ) -> PyResult<u32> {
        let barrier = get(self)?;
        let deadline = blocking::deadline(true, timeout);
        match pass(py, barrier, action, deadline)? {
            Some(index) => Ok(index),
            None => Err(broken(py)),
        }
    }

    /// Breaks it, for all who wait and all who come.
    fn abort(&self) -> PyResult<()> {
        look(get(self)?.abort())
    }

    /// Makes it whole and empty; those who wait are told that it is broken.
    fn reset(&self) -> PyResult<()> {
        look(get(self)?.reset())
    }

    #[getter]
    fn parties(&self) -> PyResult<u32> {
        look(get(self)?.parties())
    }

    #[getter]
    fn n_waiting(&self) -> PyResult<u32> {
        look(get(self)?.waiting())
    }

    #[getter]
    fn broken(&self) -> PyResult<bool> {
        look(get(self)?.is_broken())
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyTuple>> {
        reduce(slf)
    }
}

/// How many had come before; `None` when the barrier is broken.
fn pass(
    py: Python<'_>,
    barrier: &Core,
    action: Option<&Bound<'_, PyAny>>,
    deadline: Deadline,
) -> PyResult<Option<u32>> {
    let come = blocking::wait(py, deadline, blocking::FOR_OWNED, |until| {
        match barrier.come(until) {
            Err(Error::Closed { .. }) => Ok(Some(None)),
            come => Ok(come?.map(Some)),
        }
    })?;
    let party = match come {
        Some(Some(party)) => party,
        // The last party of the round before acts, and takes too long: its barrier breaks.
        None => return barrier.abort().map_err(raise).map(|()| None),
        Some(None) => return Ok(None),
    };
    let index = party.index();
    if party.acts() {
        // If it raises, the party goes, and breaks the barrier.
        action.map_or(Ok(()), |action| action.call0().map(drop))?;
        return Ok(party.end().map_err(raise)?.then_some(index));
    }
    let passed = blocking::wait(py, deadline, blocking::FOR_OWNED, |until| party.wait(until))?;
    let passed = match passed {
        Some(passed) => passed,
        None => party.give_up().map_err(raise)?,
    };
    Ok((passed == Passed::Through).then_some(index))
}

fn broken(py: Python<'_>) -> PyErr {
    let class = py
        .import("threading")
        .and_then(|threading| threading.getattr("BrokenBarrierError"));
    class
        .and_then(|class| class.call0())
        .map_or_else(|error| error, PyErr::from_value)
}

holds!(Barrier, Core);
