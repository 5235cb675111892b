//! Listeners and the way to them.

use super::address::{from_python, to_python};
use super::failure::{raise_error, raise_failure};
use crate::blocking::{self, FOR_DATA};
use procession_core::connection::{
    Accepted, Authentication, Connecting, Failure, Listener as Core, Refused,
};
use procession_core::wire::{Digest, Role, Terms};
use procession_core::{Deadline, Error};
use pyo3::exceptions::PyOSError;
use pyo3::prelude::*;
use std::os::fd::{AsFd, AsRawFd, IntoRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const CLOSED: Error = Error::Closed { what: "listener" };

/// A socket that listens.
#[pyclass(frozen, module = "procession._core")]
pub(crate) struct Listener {
    /// Locked only with the interpreter, so never by a thread that a forked child hasn't got.
    core: Mutex<Option<Arc<Core>>>,
    is_closed: AtomicBool,
}

/// Peers of any version are let in: those up to 3.11 know nothing but MD5.
fn terms(role: Role) -> Terms {
    Terms {
        role,
        digest: Digest::Sha256,
        md5: true,
    }
}

#[pymethods]
impl Listener {
    #[new]
    fn new(address: &Bound<'_, PyAny>, family: &str, backlog: i32) -> PyResult<Self> {
        let address = from_python(address, family)?;
        let backlog = u32::try_from(backlog).unwrap_or(0);
        let listener = Core::bind(&address, backlog).map_err(|error| at(&address, error))?;
        Ok(Self {
            core: Mutex::new(Some(Arc::new(listener))),
            is_closed: AtomicBool::new(false),
        })
    }

    /// Where it listens.
    #[getter]
    fn address<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        to_python(py, Some(self.get()?.address()))
    }

    /// The descriptor.
    fn fileno(&self) -> PyResult<RawFd> {
        Ok(self.get()?.as_fd().as_raw_fd())
    }

    /// The descriptor of the next connection, and where that comes from; with a key, of somebody who has it. None after so many seconds.
    #[pyo3(signature = (authkey=None, timeout=None))]
    fn accept<'py>(
        &self,
        py: Python<'py>,
        authkey: Option<&[u8]>,
        timeout: Option<f64>,
    ) -> PyResult<Option<(RawFd, Bound<'py, PyAny>)>> {
        let listener = self.get()?;
        let deadline = blocking::deadline(true, timeout);
        let came = blocking::wait_for(py, deadline, FOR_DATA, raise_error, |until| {
            if self.is_closed.load(Ordering::Relaxed) {
                return Err(CLOSED);
            }
            let Some(key) = authkey else {
                return Ok(listener.accept(until)?.map(Ok));
            };
            let admission = listener.accept_known(key, terms(Role::Listener), until)?;
            Ok(admission.map(|admission| admission.map(|(accepted, _)| accepted)))
        })?;
        match came {
            None => Ok(None),
            Some(Ok(Accepted { stream, peer })) => {
                let peer = to_python(py, peer.as_ref())?;
                Ok(Some((stream.into_raw_fd(), peer)))
            }
            Some(Err(Refused { failure, .. })) => Err(raise_failure(py, failure)),
        }
    }

    /// Closes it and removes its file. Who is accepting notices within seconds.
    fn close(&self) {
        self.is_closed.store(true, Ordering::Relaxed);
        if let Some(listener) = self.lock().take() {
            listener.remove_file();
        }
    }
}

impl Listener {
    fn lock(&self) -> MutexGuard<'_, Option<Arc<Core>>> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self) -> PyResult<Arc<Core>> {
        let core = self.lock().clone();
        core.ok_or_else(|| raise_error(CLOSED))
    }
}

/// The descriptor of a connection to an address; with a key, once both ends know that the other one has it.
#[pyfunction]
#[pyo3(signature = (address, family, authkey=None))]
pub(crate) fn connect(
    address: &Bound<'_, PyAny>,
    family: &str,
    authkey: Option<&[u8]>,
) -> PyResult<RawFd> {
    let py = address.py();
    let address = from_python(address, family)?;
    let raise = |error| at(&address, error);
    let mut connecting = Connecting::begin(&address).map_err(raise)?;
    blocking::wait_for(py, Deadline::NEVER, FOR_DATA, raise, |until| {
        Ok(connecting.run(until)?.then_some(()))
    })?;
    let stream = connecting.into_stream();
    if let Some(key) = authkey {
        let authentication = Authentication::begin(key, terms(Role::Client));
        let mut authentication = authentication.map_err(raise_error)?;
        let known = blocking::wait_for(py, Deadline::NEVER, FOR_DATA, raise_error, |until| {
            match authentication.advance(stream.as_fd(), until) {
                Err(Failure::System(error)) => Err(error),
                Err(failure) => Ok(Some(Err(failure))),
                Ok(known) => Ok(known.map(Ok)),
            }
        })?;
        known
            .unwrap_or(Err(Failure::Late))
            .map_err(|failure| raise_failure(py, failure))?;
    }
    Ok(stream.into_raw_fd())
}

/// The system's refusal, with the address.
fn at(address: &procession_core::connection::Address, error: Error) -> PyErr {
    match error {
        Error::Os { errno, .. } => PyOSError::new_err((errno, format!("{error}: {address}"))),
        error => raise_error(error),
    }
}
