//! `Lock`.

use super::{acquire, get, holds, init, look, open, reduce};
use crate::blocking;
use crate::entry::{Fast, Slow};
use crate::error::raise;
use procession_core::{Arena, Error, Lock as Core, ObjectName, Result};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};
use std::sync::OnceLock;

/// A lock that processes and threads share, as multiprocessing's `Lock`; its dead holder never blocks the living.
#[pyclass(subclass, frozen, weakref, module = "procession.synchronize")]
pub(crate) struct Lock(OnceLock<Core>);

#[pymethods]
impl Lock {
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

    /// Takes the lock; false if it can't be had at once (block=False) or within timeout seconds.
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

    /// Frees the lock, whoever holds it.
    fn release(&self) -> PyResult<()> {
        match get(self)?.release() {
            Err(Error::Misuse { .. }) => Err(PyValueError::new_err(
                "semaphore or lock released too many times",
            )),
            result => result.map_err(raise),
        }
    }

    /// Whether anybody holds it.
    fn locked(&self) -> PyResult<bool> {
        look(get(self)?.is_held())
    }

    fn _is_mine(&self) -> PyResult<bool> {
        look(get(self)?.is_mine())
    }

    fn _count(&self) -> PyResult<u32> {
        Ok(u32::from(self._is_mine()?))
    }

    fn _get_value(&self) -> PyResult<u32> {
        Ok(u32::from(!self.locked()?))
    }

    /// Frees the lock for the time of a wait; what `_acquire_restore` is given.
    fn _release_save(&self) -> PyResult<u32> {
        self.release().map(|()| 1)
    }

    fn _acquire_restore(&self, py: Python<'_>, saved: u32) -> PyResult<()> {
        let _ = saved;
        self.acquire(py, true, None).map(|_| ())
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

holds!(Lock, Core);

impl Fast for Lock {
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
