//! The only map from the core's errors to exceptions. No catch-all: a new cause doesn't compile until it has one.

use procession_core::Error;
use pyo3::exceptions::{
    PyInterruptedError, PyMemoryError, PyOSError, PyRuntimeError, PyValueError,
};
use pyo3::prelude::*;

const ENOMEM: i32 = 12;
const EAGAIN: i32 = 11;
const ENOSPC: i32 = 28;
const EPROTO: i32 = 71;
const ECONNREFUSED: i32 = 111;

/// The exception for an error of the core.
pub(crate) fn raise(error: Error) -> PyErr {
    let text = error.to_string();
    match error {
        // No memory for the arena is no memory, whatever file system says so.
        Error::Os {
            errno: ENOMEM | ENOSPC,
            ..
        } => PyMemoryError::new_err(text),
        Error::Exhausted { what, .. } if what.contains("memory") => PyMemoryError::new_err(text),
        Error::Os { errno, .. } => PyOSError::new_err((errno, text)),
        Error::Exhausted { .. } => PyOSError::new_err((EAGAIN, text)),
        Error::Lost { .. } => PyOSError::new_err((ECONNREFUSED, text)),
        Error::Malformed { .. } => PyOSError::new_err((EPROTO, text)),
        Error::Interrupted => PyInterruptedError::new_err(text),
        Error::Broken { .. } | Error::Poisoned { .. } => PyRuntimeError::new_err(text),
        Error::Closed { .. } | Error::TooLong { .. } | Error::Misuse { .. } => {
            PyValueError::new_err(text)
        }
    }
}
