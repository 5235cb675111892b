//! Messages of a pipe inside the tree: values as queues have them, so that the commonest need no pickle.
//!
//! What was sent as bytes is received as that or, being a pickle, as the object; what was sent as an object is received as that, or as its
//! pickle.

use super::failure::{Trouble, raise_error, raise_failure};
use super::{Connection, Handle, Way};
use crate::error::raise;
use crate::memory::fill;
use crate::value::{self, Scratch, Source, Value, kind};
use crate::{blocking, parcel, tree};
use procession_core::connection::{self, Landed, Numbered, PipeEnd};
use procession_core::{Deadline, ObjectName, copy_of};
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyType};
use std::os::fd::RawFd;

/// Sends an object.
pub(super) fn send(object: &Bound<'_, PyAny>, handle: &Handle, end: &PipeEnd) -> PyResult<()> {
    let py = object.py();
    let value = value::encode(object)?;
    let send = |parts: &[&[u8]]| send_pickle(py, handle, end, parts);
    match &value {
        Value::Pickle(pieces, names) if !names.is_empty() => {
            return parcel::deliver(py, pieces, names, send);
        }
        // Buffers lie beside what is a message by itself, and this one is inside another.
        Value::Buffers(_, _, names) if !names.is_empty() => return parcel::send(object, send),
        _ => {}
    }
    value.parts(py, &[], |parts| write(py, handle, end, value.kind(), parts))
}

/// Sends bytes, which may be a pickle.
pub(super) fn send_pickle(
    py: Python<'_>,
    handle: &Handle,
    end: &PipeEnd,
    parts: &[&[u8]],
) -> PyResult<()> {
    write(py, handle, end, kind::PICKLE, parts)
}

fn write(py: Python<'_>, handle: &Handle, end: &PipeEnd, tag: u8, parts: &[&[u8]]) -> PyResult<()> {
    if end.try_send(tag, parts).map_err(raise_error)? {
        return Ok(());
    }
    if let Err(error) = handle.may_wait() {
        let sent = end.send(tag, parts, Deadline::now()).map_err(raise_error)?;
        return if sent { Ok(()) } else { Err(error) };
    }
    handle.wait_long(py, |until| Ok(end.send(tag, parts, until)?.then_some(())))?;
    let length = parts.iter().map(|part| part.len()).sum();
    handle.wait_long(py, |until| {
        Ok(end.wait_until_taken(length, until)?.then_some(()))
    })
}

/// Receives an object.
pub(super) fn receive<'py>(
    py: Python<'py>,
    handle: &Handle,
    end: &PipeEnd,
) -> PyResult<Bound<'py, PyAny>> {
    read(py, handle, end, |tag, source| source.decode(py, tag, 0))
}

/// Receives a message as bytes, or the pickle of what it is, unless that has more than `limit`.
pub(super) fn receive_pickle<'py>(
    py: Python<'py>,
    handle: &Handle,
    end: &PipeEnd,
    limit: u64,
) -> Result<Bound<'py, PyBytes>, Trouble> {
    let within = |length: usize| {
        if length as u64 <= limit {
            return Ok(());
        }
        let text = format!("bad message length: {length} bytes exceed the limit of {limit}");
        Err(Trouble {
            error: PyOSError::new_err(text),
            is_refusal: true,
        })
    };
    read(py, handle, end, |tag, source| {
        if tag == kind::PICKLE {
            within(source.len())?;
        }
        let bytes = source.pickled(py, tag)?;
        within(bytes.as_bytes().len())?;
        Ok(bytes)
    })
}

/// Receives a message as bytes, or the pickle of what it is, into a buffer, and gives its length.
pub(super) fn receive_into(
    py: Python<'_>,
    handle: &Handle,
    end: &PipeEnd,
    room: &mut [u8],
) -> Result<usize, Trouble> {
    read(py, handle, end, |tag, source| {
        let length = source.len();
        if tag == kind::PICKLE && length <= room.len() {
            let to = &mut room[..length];
            blocking::copying(py, length, || source.read(0, to))?;
            return Ok(length);
        }
        Ok(fill(room, source.pickled(py, tag)?)?)
    })
}

/// Receives a message and gives what `read` makes of it. User code may run.
fn read<T, E: From<PyErr>>(
    py: Python<'_>,
    handle: &Handle,
    end: &PipeEnd,
    read: impl FnOnce(u8, &Source<'_>) -> Result<T, E>,
) -> Result<T, E> {
    Scratch::with(|buffer| {
        let landed = take(py, handle, end, buffer)?;
        let source = Source {
            buffer,
            extent: landed.extent.as_ref(),
        };
        read(landed.tag, &source)
    })
}

fn take(py: Python<'_>, handle: &Handle, end: &PipeEnd, buffer: &mut Vec<u8>) -> PyResult<Landed> {
    let came = end.try_receive(buffer);
    if let Some(landed) = came.map_err(|failure| raise_failure(py, failure))? {
        return Ok(landed);
    }
    handle.may_wait()?;
    handle.wait_long(py, |until| end.receive(buffer, until))
}

/// What another process of the tree makes the same end of, with its descriptor: the tree, and the pipe's offset and serial number.
pub(super) fn name(py: Python<'_>, end: &PipeEnd) -> PyResult<(u64, u64, u64)> {
    let (offset, serial) = tree::pickled(py, end.name(), || end.escape())?;
    Ok((tree::arena()?.id().map_err(raise)?, offset, serial))
}

/// Both ends of a pipe, as objects of `class`; if not duplex, the first only receives and the second only sends.
#[pyfunction]
pub(crate) fn pipe<'py>(
    class: &Bound<'py, PyType>,
    duplex: bool,
) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyAny>)> {
    let arena = tree::arena()?;
    let (one, other) = blocking::call(class.py(), || connection::pipe(arena))?;
    Ok((
        connection_of(class, one, true, duplex)?,
        connection_of(class, other, duplex, true)?,
    ))
}

/// An end of a pipe that another process has sent, of which `number` is the descriptor and the others are its [`name`].
#[pyfunction]
pub(crate) fn open_end<'py>(
    class: &Bound<'py, PyType>,
    number: RawFd,
    readable: bool,
    writable: bool,
    name: (u64, u64, u64),
) -> PyResult<Bound<'py, PyAny>> {
    // Closed at last: the end has a copy, another one after each interruption.
    let _given = Numbered::new(number);
    let (arena, (id, offset, serial)) = (tree::arena()?, name);
    if arena.id().map_err(raise)? != id {
        return Err(PyValueError::new_err(
            "the end of a pipe is of use only in the tree of processes that it was made in",
        ));
    }
    let name = ObjectName { offset, serial };
    let end = blocking::call(class.py(), || PipeEnd::open(arena, name, copy_of(number)?))?;
    connection_of(class, end, readable, writable)
}

fn connection_of<'py>(
    class: &Bound<'py, PyType>,
    end: PipeEnd,
    readable: bool,
    writable: bool,
) -> PyResult<Bound<'py, PyAny>> {
    let object = class.call_method1("__new__", (class,))?;
    let connection = object.cast::<Connection>()?.get();
    connection.begin(Way::Pipe(end), readable, writable);
    Ok(object)
}
