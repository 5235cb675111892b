//! The exceptions of connections.

use crate::error::raise;
use procession_core::Error;
use procession_core::connection::Failure;
use procession_core::wire::FrameError;
use pyo3::exceptions::{PyEOFError, PyMemoryError, PyOSError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyType;

/// Why nothing was received.
#[derive(Debug)]
pub(super) struct Trouble {
    pub(super) error: PyErr,
    /// A message was there, and is one that isn't taken.
    pub(super) is_refusal: bool,
}

impl From<PyErr> for Trouble {
    fn from(error: PyErr) -> Self {
        let is_refusal = false;
        Self { error, is_refusal }
    }
}

/// What the core's failure is in Python.
pub(super) fn raise_failure(py: Python<'_>, failure: Failure) -> PyErr {
    let text = failure.to_string();
    match failure {
        Failure::System(error) => raise_error(error),
        Failure::End => PyEOFError::new_err(()),
        // Nothing of the message came: the standard library calls that an end, too.
        Failure::Frame(FrameError::NoBody { arrived: 0, .. }) => PyEOFError::new_err(()),
        Failure::Frame(FrameError::NoMemory { .. }) => PyMemoryError::new_err(text),
        Failure::Frame(_) => PyOSError::new_err(text),
        Failure::Auth(_) | Failure::Late => authentication_error(py, text),
    }
}

/// What an error of the core's is on a descriptor: closed means that this end is.
pub(super) fn raise_error(error: Error) -> PyErr {
    match error {
        Error::Closed { what } => PyOSError::new_err(format!("{what} is closed")),
        error => raise(error),
    }
}

pub(super) fn authentication_error(py: Python<'_>, text: String) -> PyErr {
    static CLASS: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    match CLASS.import(py, "procession.context", "AuthenticationError") {
        Ok(class) => PyErr::from_type(class.clone(), text),
        Err(error) => error,
    }
}
