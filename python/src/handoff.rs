//! Descriptors in pickles: what `resource_sharer.DupFd` is.

use crate::error::raise;
use crate::{blocking, tree};
use procession_core::handoff::{self, Ticket};
use procession_core::{Deadline, Naming, copy_of};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyTuple};
use std::os::fd::{IntoRawFd, RawFd};

/// A descriptor that can be pickled at any time: this process keeps a copy of it for whoever unpickles it and calls `detach`.
#[pyclass(frozen, subclass, module = "procession.resource_sharer")]
pub(crate) struct DupFd(Ticket);

#[pymethods]
impl DupFd {
    #[new]
    fn new(py: Python<'_>, fd: RawFd) -> PyResult<Self> {
        let keep = || handoff::keep(copy_of(fd)?, fd);
        let ticket = py.detach(keep).map_err(raise)?;
        // Made while a message is pickled, it goes with that, or not at all.
        if Naming::is_active() {
            Naming::pledge(tree::arena()?, move || handoff::withdraw(&ticket)).map_err(raise)?;
        }
        Ok(Self(ticket))
    }

    /// The descriptor, the first time. A ConnectionRefusedError names it and its process if that doesn't have it any more.
    fn detach(&self, py: Python<'_>) -> PyResult<RawFd> {
        let mut redeeming = self.0.redeem();
        let redeemed = blocking::wait(py, Deadline::NEVER, blocking::FOR_OWNED, |until| {
            redeeming.wait(until)
        })?;
        let redeemed =
            redeemed.ok_or_else(|| PyRuntimeError::new_err("a wait for ever has ended"))?;
        Ok(redeemed.into_raw_fd())
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyTuple>> {
        let py = slf.py();
        let open = py.import("procession._core")?.getattr("open_descriptor")?;
        let ticket = PyBytes::new(py, &slf.get().0.to_bytes());
        (open, (ticket,)).into_pyobject(py)
    }

    fn __repr__(&self) -> String {
        let (descriptor, pid) = (self.0.descriptor(), self.0.pid());
        format!("<DupFd of descriptor {descriptor} of process {pid}>")
    }
}

/// What the pickle of a `DupFd` calls.
#[pyfunction]
pub(crate) fn open_descriptor(ticket: &[u8]) -> PyResult<DupFd> {
    Ticket::from_bytes(ticket).map(DupFd).map_err(raise)
}

/// Closes what this process keeps for others, and ends the thread that gives it to them.
#[pyfunction]
pub(crate) fn stop_sharing(py: Python<'_>) {
    py.detach(handoff::stop);
}
