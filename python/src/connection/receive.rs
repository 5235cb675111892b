//! A message, straight from the kernel into the bytes object that the program gets.

use super::Handle;
use super::failure::{raise_error, raise_failure};
use super::stream::{BRIEF_BYTES, Stream};
use crate::memory::Growing;
use procession_core::connection::{
    Failure, can_receive, can_receive_soon, receive_body, receive_length,
};
use procession_core::wire::frame::AHEAD_MAX;
use procession_core::wire::{Decoder, FrameError};
use procession_core::{Deadline, Error};
use pyo3::exceptions::PyMemoryError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use std::os::fd::BorrowedFd;

/// Beyond `AHEAD_MAX`, so that a pickle of so many bytes isn't moved for the few that it has besides.
const SLACK: usize = 1 << 10;

/// Receives the next message; and whether it was there already, if that was hoped for.
pub(super) fn message<'py>(
    py: Python<'py>,
    handle: &Handle,
    stream: &Stream,
    decoder: &mut Decoder,
    hopes: bool,
) -> (PyResult<Bound<'py, PyBytes>>, bool) {
    let from = stream.as_fd();
    if hopes {
        match length(from, decoder, Deadline::now()) {
            Ok(Some(length)) => return (body(py, handle, stream, decoder, length), true),
            Ok(None) | Err(Failure::System(Error::Interrupted)) => {}
            Err(failure) => return (Err(raise_failure(py, failure)), false),
        }
    }
    if let Err(error) = may_begin(handle, from) {
        return (Err(error), false);
    }
    let waited = handle.wait_long(py, |until| {
        // Asking before it says something would be in vain.
        if !can_receive_soon(from, &stream.patience, until)? {
            return Ok(None);
        }
        length(from, decoder, until)
    });
    let received = waited.and_then(|length| body(py, handle, stream, decoder, length));
    (received, false)
}

/// A BlockingIOError where there is nothing to receive yet and the program wants to wait for nothing.
pub(super) fn may_begin(handle: &Handle, from: BorrowedFd<'_>) -> PyResult<()> {
    let may_wait = handle.may_wait();
    if may_wait.is_err() && can_receive(from, Deadline::now()).map_err(raise_error)? {
        return Ok(());
    }
    may_wait
}

fn length(
    stream: BorrowedFd<'_>,
    decoder: &mut Decoder,
    deadline: Deadline,
) -> Result<Option<u64>, Failure> {
    let length = receive_length(stream, decoder, deadline);
    told(decoder, length)
}

/// What was cut off is told once; behind it is the end.
pub(super) fn told<T>(decoder: &mut Decoder, came: Result<T, Failure>) -> Result<T, Failure> {
    if let Err(Failure::Frame(FrameError::NoHeader { .. } | FrameError::NoBody { .. })) = &came {
        decoder.pass();
    }
    came
}

fn body<'py>(
    py: Python<'py>,
    handle: &Handle,
    stream: &Stream,
    decoder: &mut Decoder,
    length: u64,
) -> PyResult<Bound<'py, PyBytes>> {
    let Ok(length) = usize::try_from(length) else {
        return Err(PyMemoryError::new_err("the message is too long"));
    };
    let before = decoder.take_body();
    let mut bytes = Growing::new(py, length.min(before.len().max(AHEAD_MAX) + SLACK))?;
    bytes.append(&before);
    loop {
        if bytes.len() == length {
            decoder.pass();
            return bytes.whole(py);
        }
        if bytes.room().is_empty() {
            // No more memory than has arrived, and a little: what a peer announces costs nothing.
            let room = length.min(bytes.len() + AHEAD_MAX);
            bytes = bytes.grow(py, room)?;
        }
        match more(py, handle, stream, &mut bytes, length) {
            Ok(0) => {
                // So the decoder knows what is missing.
                let _ = decoder.push(bytes.filled());
                let end = decoder.end().err().map_or(Failure::End, Failure::Frame);
                decoder.pass();
                return Err(raise_failure(py, end));
            }
            Ok(_) => {}
            Err(error) => {
                // Nothing is lost by an interruption.
                let _ = decoder.push(bytes.filled());
                return Err(error);
            }
        }
    }
}

/// Receives the next bytes of a body, and says how many.
fn more(
    py: Python<'_>,
    handle: &Handle,
    stream: &Stream,
    bytes: &mut Growing,
    length: usize,
) -> PyResult<usize> {
    let from = stream.as_fd();
    if stream.is_socket && length as u64 <= BRIEF_BYTES {
        // It follows its header at once.
        match bytes.fill(|room| receive_body(from, room, Deadline::now())) {
            Ok(Some(came)) => return Ok(came),
            Ok(None) | Err(Error::Interrupted) => {}
            Err(error) => return Err(raise_error(error)),
        }
    }
    let came = bytes.fill(|room| {
        handle.wait(py, Deadline::NEVER, |until| {
            Ok(receive_body(from, room, until)?)
        })
    })?;
    Ok(came.unwrap_or(0))
}
