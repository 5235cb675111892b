//! Waiting, written once: let go of the interpreter, wait, run Python's signal handlers, wait on.

use crate::error::raise;
use procession_core::{Deadline, Error, Result};
use pyo3::prelude::*;
use std::time::Duration;

/// Calls `wait` without the interpreter until it ends with anything but an interruption; after each interruption
/// Python's signal handlers run, and an exception of theirs ends the wait.
pub(crate) fn wait<T: Send>(
    py: Python<'_>,
    mut wait: impl FnMut() -> Result<T> + Send,
) -> PyResult<T> {
    loop {
        match py.detach(&mut wait) {
            Err(Error::Interrupted) => py.check_signals()?,
            result => return result.map_err(raise),
        }
    }
}

/// The deadline that Python's `block` and `timeout` (in seconds; negative is zero) mean.
pub(crate) fn deadline(block: bool, timeout: Option<f64>) -> Deadline {
    match timeout {
        _ if !block => Deadline::now(),
        None => Deadline::NEVER,
        // What is longer than can be counted is as good as for ever.
        Some(seconds) => {
            Duration::try_from_secs_f64(seconds.max(0.0)).map_or(Deadline::NEVER, Deadline::after)
        }
    }
}

/// What an argument means as yes or no: anything has a truth in Python, and programs say `get(0)` and `acquire(1)`.
pub(crate) fn truth(argument: &Bound<'_, PyAny>) -> PyResult<bool> {
    argument.is_truthy()
}
