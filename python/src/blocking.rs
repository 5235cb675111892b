//! Waiting, written once: let go of the interpreter, wait, run Python's signal handlers, wait on.

use crate::error::raise;
use procession_core::{Deadline, Error, Result};
use pyo3::prelude::*;
use std::time::Duration;

/// More bytes than this are copied without the interpreter: letting go of it costs as much as copying 1 KiB; another thread may
/// take it for 5 ms, so short messages are quicker with it.
const COPY_ATTACHED_MAX: usize = 64 << 10;
/// The first of the turns that a long wait is made of; each is twice as long as the one before.
const FIRST_TURN: Duration = Duration::from_millis(50);
/// The longest turn of a wait for data: when idle, it costs a few system calls in so long.
pub(crate) const FOR_DATA: Duration = Duration::from_secs(10);
/// The longest turn of a wait for something owned, which looks at the owner as often.
pub(crate) const FOR_OWNED: Duration = FIRST_TURN;

/// Calls `wait` without the interpreter until it gives something or `deadline` has passed: then `None`.
///
/// Python's signal handlers run after each interruption, and an exception of theirs ends the wait. A signal that comes
/// while nobody sleeps yet interrupts nothing; so the wait is made of turns, which get longer up to `longest`, and
/// handlers run between them too.
pub(crate) fn wait<T: Send>(
    py: Python<'_>,
    deadline: Deadline,
    longest: Duration,
    wait: impl FnMut(Deadline) -> Result<Option<T>> + Send,
) -> PyResult<Option<T>> {
    wait_for(py, deadline, longest, raise, wait)
}

/// As [`wait`], with other exceptions for the core's errors.
pub(crate) fn wait_for<T: Send>(
    py: Python<'_>,
    deadline: Deadline,
    longest: Duration,
    raise: impl Fn(Error) -> PyErr,
    mut wait: impl FnMut(Deadline) -> Result<Option<T>> + Send,
) -> PyResult<Option<T>> {
    let mut turn = FIRST_TURN;
    loop {
        let until = deadline.at_most(turn);
        match py.detach(|| wait(until)) {
            Err(Error::Interrupted) => {}
            Ok(None) if !deadline.passed() => turn = (turn * 2).min(longest),
            result => return result.map_err(raise),
        }
        py.check_signals()?;
    }
}

/// Makes a call that has no deadline, without the interpreter, and again after each interruption, once Python's signal
/// handlers have run.
pub(crate) fn call<T: Send>(
    py: Python<'_>,
    mut call: impl FnMut() -> Result<T> + Send,
) -> PyResult<T> {
    loop {
        match py.detach(&mut call) {
            Err(Error::Interrupted) => py.check_signals()?,
            result => return result.map_err(raise),
        }
    }
}

/// Makes a call that copies so many bytes: without the interpreter, if they are many.
pub(crate) fn copying<T: Send>(py: Python<'_>, bytes: usize, copy: impl FnOnce() -> T + Send) -> T {
    if bytes <= COPY_ATTACHED_MAX {
        copy()
    } else {
        py.detach(copy)
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
