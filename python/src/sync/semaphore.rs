//! `Semaphore` and `BoundedSemaphore`.

use super::{get, holds, init, look, open, reduce};
use crate::blocking;
use crate::entry::{Fast, Slow};
use crate::error::raise;
use procession_core::{
    Arena, Deadline, Error, ObjectName, PERMITS_MAX, Permit, Result, Semaphore as Core,
};
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};
use std::sync::OnceLock;

const EINVAL: i32 = 22;

/// Permits that processes and threads take and give back, as multiprocessing's `Semaphore`; those of a dead process come
/// back.
#[pyclass(subclass, frozen, weakref, module = "procession.synchronize")]
pub(crate) struct Semaphore(OnceLock<Core>);

/// A `Semaphore` that never has more permits than at first.
#[pyclass(extends = Semaphore, subclass, frozen, module = "procession.synchronize")]
pub(crate) struct BoundedSemaphore;

#[pymethods]
impl Semaphore {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self(OnceLock::new())
    }

    #[pyo3(signature = (value=1, *, ctx=None))]
    fn __init__(&self, py: Python<'_>, value: i64, ctx: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
        let _ = ctx;
        let value = permits(value)?;
        init(py, self, |arena| Core::new(arena, value, PERMITS_MAX))
    }

    fn _open(&self, py: Python<'_>, offset: u64, serial: u64) -> PyResult<()> {
        open(py, self, offset, serial)
    }

    /// Takes a permit; false if none can be had at once (block=False) or within timeout seconds.
    #[pyo3(signature = (block=true, timeout=None))]
    fn acquire(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = blocking::truth)] block: bool,
        timeout: Option<f64>,
    ) -> PyResult<bool> {
        let deadline = blocking::deadline(block, timeout);
        take(py, get(self)?, Permit::Acquired, deadline)
    }

    /// Gives a permit, one of this process or a new one.
    fn release(&self, py: Python<'_>) -> PyResult<()> {
        give(py, get(self)?, Permit::Acquired)
    }

    /// Permits that are free.
    fn get_value(&self) -> PyResult<u32> {
        look(get(self)?.value())
    }

    /// Whether no permit is free.
    fn locked(&self) -> PyResult<bool> {
        Ok(self.get_value()? == 0)
    }

    fn _get_value(&self) -> PyResult<u32> {
        self.get_value()
    }

    fn _count(&self) -> PyResult<u32> {
        look(get(self)?.taken())
    }

    fn _is_mine(&self) -> PyResult<bool> {
        Ok(self._count()? > 0)
    }

    #[getter(maxvalue)]
    fn limit(&self) -> PyResult<u32> {
        look(get(self)?.limit())
    }

    /// Gives a permit for the time of a wait; what `_acquire_restore` is given.
    fn _release_save(&self, py: Python<'_>) -> PyResult<u32> {
        self.release(py).map(|()| 1)
    }

    fn _acquire_restore(&self, py: Python<'_>, saved: u32) -> PyResult<()> {
        let _ = saved;
        self.acquire(py, true, None).map(|_| ())
    }

    fn __enter__(&self, py: Python<'_>) -> PyResult<bool> {
        take(py, get(self)?, Permit::Held, Deadline::NEVER)
    }

    #[pyo3(signature = (*_args))]
    fn __exit__(&self, py: Python<'_>, _args: &Bound<'_, PyTuple>) -> PyResult<()> {
        give(py, get(self)?, Permit::Held)
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyTuple>> {
        reduce(slf)
    }
}

#[pymethods]
impl BoundedSemaphore {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(
        _args: &Bound<'_, PyTuple>,
        _kwargs: Option<&Bound<'_, PyDict>>,
    ) -> PyClassInitializer<Self> {
        PyClassInitializer::from(Semaphore(OnceLock::new())).add_subclass(Self)
    }

    #[pyo3(signature = (value=1, *, ctx=None))]
    fn __init__(slf: &Bound<'_, Self>, value: i64, ctx: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
        let _ = ctx;
        let value = permits(value)?;
        let semaphore = slf.as_super().get();
        init(slf.py(), semaphore, |arena| Core::new(arena, value, value))
    }
}

fn permits(value: i64) -> PyResult<u32> {
    let permits = u32::try_from(value)
        .ok()
        .filter(|value| *value <= PERMITS_MAX);
    permits.ok_or_else(|| {
        let text = format!("a semaphore has from 0 to {PERMITS_MAX} permits, not {value}");
        PyOSError::new_err((EINVAL, text))
    })
}

fn take(py: Python<'_>, core: &Core, permit: Permit, deadline: Deadline) -> PyResult<bool> {
    if matches!(core.try_acquire(permit), Ok(true)) {
        return Ok(true);
    }
    let taken = blocking::wait(py, deadline, blocking::FOR_OWNED, |until| {
        Ok(core.acquire(permit, until)?.then_some(()))
    })?;
    Ok(taken.is_some())
}

fn give(py: Python<'_>, core: &Core, permit: Permit) -> PyResult<()> {
    loop {
        match core.release(permit) {
            Err(Error::Interrupted) => py.check_signals()?,
            Err(Error::Misuse { .. }) => {
                return Err(PyValueError::new_err(
                    "semaphore or lock released too many times",
                ));
            }
            result => return result.map_err(raise),
        }
    }
}

holds!(Semaphore, Core);

impl Fast for Semaphore {
    #[inline]
    fn try_acquire(&self) -> bool {
        let taken = self.0.get().map(|core| core.try_acquire(Permit::Acquired));
        matches!(taken, Some(Ok(true)))
    }

    #[inline]
    fn try_release(&self) -> bool {
        let given = self.0.get().map(|core| core.release(Permit::Acquired));
        matches!(given, Some(Ok(())))
    }

    fn slow() -> &'static Slow {
        static SLOW: Slow = Slow::new();
        &SLOW
    }
}
