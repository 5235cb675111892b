//! `RLock`.

use super::{acquire, get, holds, init, look, open, reduce};
use crate::blocking;
use crate::entry::{Fast, Slow};
use crate::error::raise;
use procession_core::{Arena, Deadline, Error, ObjectName, RLock as Core, Result};
use pyo3::exceptions::PyAssertionError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};
use std::sync::OnceLock;

/// A lock that the thread which holds it may take again, as multiprocessing's `RLock`; its dead holder never blocks the
/// living.
#[pyclass(subclass, frozen, weakref, module = "procession.synchronize")]
pub(crate) struct RLock(OnceLock<Core>);

#[pymethods]
impl RLock {
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

    /// Takes the lock, once more if this thread has it; false if it can't be had at once (block=False) or within timeout
    /// seconds.
    #[pyo3(signature = (block=true, timeout=None))]
    fn acquire(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = blocking::truth)] block: bool,
        timeout: Option<f64>,
    ) -> PyResult<bool> {
        let lock = get(self)?;
        if lock.try_acquire().map_err(raise)? {
            return Ok(true);
        }
        let deadline = blocking::deadline(block, timeout);
        acquire(
            py,
            deadline,
            |until| lock.acquire(until),
            || drop(lock.release()),
        )
    }

    /// Gives the lock back once; the last time frees it.
    fn release(&self) -> PyResult<()> {
        get(self)?.release().map_err(not_owned)
    }

    /// Whether anybody holds it.
    fn locked(&self) -> PyResult<bool> {
        look(get(self)?.is_held())
    }

    fn _is_mine(&self) -> PyResult<bool> {
        Ok(self._count()? > 0)
    }

    fn _count(&self) -> PyResult<u32> {
        look(get(self)?.count())
    }

    /// Whether another thread of this process holds it, or this one.
    fn _is_in_this_process(&self) -> PyResult<bool> {
        look(get(self)?.is_in_this_process())
    }

    fn _get_value(&self) -> PyResult<u32> {
        Ok(u32::from(!self.locked()?))
    }

    /// Frees the lock for the time of a wait; what `_acquire_restore` is given.
    fn _release_save(&self) -> PyResult<u32> {
        get(self)?.release_all().map_err(not_owned)
    }

    fn _acquire_restore(&self, py: Python<'_>, saved: u32) -> PyResult<()> {
        let lock = get(self)?;
        let take = |until| lock.acquire_times(saved, until);
        acquire(py, Deadline::NEVER, take, || drop(lock.release_all())).map(|_| ())
    }

    fn __enter__(&self, py: Python<'_>) -> PyResult<bool> {
        self.acquire(py, true, None)
    }

    #[pyo3(signature = (*_args))]
    fn __exit__(&self, _args: &Bound<'_, PyTuple>) -> PyResult<()> {
        self.release()
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyTuple>> {
        reduce(slf)
    }
}

fn not_owned(error: Error) -> PyErr {
    match error {
        Error::Misuse { .. } => {
            PyAssertionError::new_err("attempt to release recursive lock not owned by thread")
        }
        error => raise(error),
    }
}

holds!(RLock, Core);

impl Fast for RLock {
    #[inline]
    fn try_acquire(&self) -> bool {
        matches!(self.0.get().map(Core::try_acquire), Some(Ok(true)))
    }

    #[inline]
    fn try_release(&self) -> bool {
        matches!(self.0.get().map(Core::release), Some(Ok(())))
    }

    fn slow() -> &'static Slow {
        static SLOW: Slow = Slow::new();
        &SLOW
    }
}
