//! `Lock`: the class that users see is this one.

use crate::blocking;
use crate::error::raise;
use crate::tree;
use procession_core::{Acquired, Deadline, Error, ObjectName};
use pyo3::exceptions::{PyRuntimeError, PyRuntimeWarning, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple, PyType};
use std::sync::OnceLock;

/// A lock that processes and threads share, as multiprocessing's `Lock`; its dead holder never blocks the living.
#[pyclass(subclass, frozen, module = "procession.synchronize")]
pub(crate) struct Lock(OnceLock<procession_core::Lock>);

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
        let arena = tree::arena()?;
        let lock = blocking::call(py, || procession_core::Lock::new(arena))?;
        self.0
            .set(lock)
            .map_err(|_| PyRuntimeError::new_err("the lock is made already"))
    }

    /// Takes the lock; false if it can't be had at once (block=False) or within timeout seconds.
    #[pyo3(signature = (block=true, timeout=None))]
    fn acquire(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = blocking::truth)] block: bool,
        timeout: Option<f64>,
    ) -> PyResult<bool> {
        let lock = self.get()?;
        if lock.try_acquire().map_err(raise)? {
            return Ok(true);
        }
        Self::acquire_slow(py, lock, blocking::deadline(block, timeout))
    }

    /// Frees the lock, whoever holds it.
    fn release(&self) -> PyResult<()> {
        match self.get()?.release() {
            Err(Error::Misuse { .. }) => Err(PyValueError::new_err(
                "semaphore or lock released too many times",
            )),
            result => result.map_err(raise),
        }
    }

    /// Whether anybody holds it.
    fn locked(&self) -> PyResult<bool> {
        self.get()?.is_held().map_err(raise)
    }

    fn __enter__(&self, py: Python<'_>) -> PyResult<bool> {
        self.acquire(py, true, None)
    }

    #[pyo3(signature = (*_args))]
    fn __exit__(&self, _args: &Bound<'_, PyTuple>) -> PyResult<()> {
        self.release()
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyTuple>> {
        let py = slf.py();
        let lock = slf.get().get()?;
        let (offset, serial) = tree::pickled(py, lock.name(), || lock.escape())?;
        let open = py.import("procession._core")?.getattr("open_lock")?;
        (open, (slf.get_type(), offset, serial)).into_pyobject(py)
    }
}

impl Lock {
    /// The lock, once `__init__` has made it.
    #[inline]
    pub(crate) fn made(&self) -> Option<&procession_core::Lock> {
        self.0.get()
    }

    fn get(&self) -> PyResult<&procession_core::Lock> {
        self.made()
            .ok_or_else(|| PyRuntimeError::new_err("the lock's __init__ was not called"))
    }

    #[cold]
    fn acquire_slow(
        py: Python<'_>,
        lock: &procession_core::Lock,
        deadline: Deadline,
    ) -> PyResult<bool> {
        let acquired = blocking::wait(py, deadline, blocking::FOR_OWNED, |until| {
            let acquired = lock.acquire(until)?;
            Ok((acquired != Acquired::TimedOut).then_some(acquired))
        })?;
        match acquired {
            Some(Acquired::Clean) => Ok(true),
            None | Some(Acquired::TimedOut) => Ok(false),
            Some(Acquired::OwnerDied) => {
                let text =
                    c"the lock's last holder died holding it: what it guards may be half changed";
                let category = py.get_type::<PyRuntimeWarning>();
                // A warning that is an error by the user's filter must not leave the lock held.
                PyErr::warn(py, &category, text, 1).inspect_err(|_| {
                    let _ = lock.release();
                })?;
                Ok(true)
            }
        }
    }
}

/// Makes an object of `class`, a `Lock`, that holds the lock of that name: what its pickle calls.
#[pyfunction]
pub(crate) fn open_lock<'py>(
    class: &Bound<'py, PyType>,
    offset: u64,
    serial: u64,
) -> PyResult<Bound<'py, PyAny>> {
    let object = class.call_method1("__new__", (class,))?;
    let (arena, name) = (tree::arena()?, ObjectName { offset, serial });
    let lock = blocking::call(class.py(), || procession_core::Lock::open(arena, name))?;
    let _ = object.cast::<Lock>()?.get().0.set(lock);
    Ok(object)
}
