//! Pickles that name objects and go through a pipe: each in another pickle, which has their parcel's name.

use crate::pickle::{self, Pieces};
use crate::{blocking, tree};
use procession_core::{Carried, Naming, ObjectName};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyTuple};

/// What is pickled in place of an object that names others.
#[pyclass(frozen, module = "procession._core")]
struct Parcel {
    objects: procession_core::Parcel,
    pickle: Py<PyBytes>,
}

#[pymethods]
impl Parcel {
    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyTuple>> {
        let (py, parcel) = (slf.py(), slf.get());
        let open = py.import("procession._core")?.getattr("open_parcel")?;
        let ObjectName { offset, serial } = parcel.objects.name();
        (open, (offset, serial, &parcel.pickle)).into_pyobject(py)
    }
}

/// Pickles an object and has `send` send it, to one who receives it once.
pub(crate) fn send(
    object: &Bound<'_, PyAny>,
    send: impl FnMut(&[&[u8]]) -> PyResult<()>,
) -> PyResult<()> {
    let py = object.py();
    let (pieces, names) = Naming::during(|| pickle::dumps(py, object))?;
    deliver(py, &pieces, &names, send)
}

/// Has `send` send a pickle that names these objects.
pub(crate) fn deliver(
    py: Python<'_>,
    pieces: &Pieces,
    names: &Carried,
    mut send: impl FnMut(&[&[u8]]) -> PyResult<()>,
) -> PyResult<()> {
    let mut send = |pieces: &Pieces| match &pieces[..] {
        [piece] => send(&[piece.as_bytes(py)]),
        _ => {
            let parts: Vec<_> = pieces.iter().map(|piece| piece.as_bytes(py)).collect();
            send(&parts)
        }
    };
    if names.names().is_empty() {
        return send(pieces).inspect(|()| names.delivered());
    }
    let arena = tree::arena()?;
    let objects = blocking::call(py, || procession_core::Parcel::pack(arena, names))?;
    let pickle = joined(py, pieces).unbind();
    let parcel = Bound::new(py, Parcel { objects, pickle })?;
    let sent = pickle::dumps(py, parcel.as_any()).and_then(|pieces| send(&pieces));
    match &sent {
        Ok(()) => names.delivered(),
        Err(_) => parcel.get().objects.unsent(),
    }
    sent
}

fn joined<'py>(py: Python<'py>, pieces: &Pieces) -> Bound<'py, PyBytes> {
    let pieces: Vec<&[u8]> = pieces.iter().map(|piece| piece.as_bytes(py)).collect();
    PyBytes::new(py, &pieces.concat())
}

/// Pickles an object and sends it by `send_bytes`, which takes bytes.
#[pyfunction]
pub(crate) fn send_pickled(obj: &Bound<'_, PyAny>, send_bytes: &Bound<'_, PyAny>) -> PyResult<()> {
    let py = obj.py();
    send(obj, |parts| {
        let bytes = PyBytes::new(py, &parts.concat());
        send_bytes.call1((bytes,)).map(drop)
    })
}

/// Unpickles what came with a parcel, whose objects are held meanwhile: what its pickle calls.
#[pyfunction]
pub(crate) fn open_parcel<'py>(
    py: Python<'py>,
    offset: u64,
    serial: u64,
    pickle: &Bound<'py, PyBytes>,
) -> PyResult<Bound<'py, PyAny>> {
    let (arena, name) = (tree::arena()?, ObjectName { offset, serial });
    let opened = blocking::call(py, || procession_core::Parcel::open(arena, name))?;
    // Held until the pickle has opened them.
    let _names = opened
        .ok_or_else(|| PyValueError::new_err("the message of a pipe was unpickled before"))?;
    pickle::loads(py, pickle)
}
