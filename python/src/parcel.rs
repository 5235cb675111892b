//! Objects that go through a pipe, whose bytes nobody can look into.
//!
//! What a pickle names is put into a queue of its own, the parcel, and the pipe carries the parcel's name: the queue's one
//! message holds the objects, as any message in a queue does, until whoever receives the name has got it. A parcel that
//! nobody ever receives lives until the tree ends.

use crate::error::raise;
use crate::pickle::{self, Pieces};
use crate::{blocking, tree};
use procession_core::{Carried, Deadline, Error, Naming, ObjectName, Queue};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyTuple};

/// What is pickled in place of an object that names others.
#[pyclass(frozen, module = "procession._core")]
struct Parcel {
    queue: Queue,
    pickle: Py<PyBytes>,
}

impl Parcel {
    fn new(py: Python<'_>, pickle: Py<PyBytes>, names: &Carried) -> PyResult<Self> {
        let arena = tree::arena()?;
        let queue = blocking::call(py, || {
            let queue = Queue::new(arena, None)?;
            queue.put_naming(0, &[], names, Deadline::NEVER)?;
            queue.escape()?;
            Ok(queue)
        })?;
        Ok(Self { queue, pickle })
    }
}

#[pymethods]
impl Parcel {
    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyTuple>> {
        let (py, parcel) = (slf.py(), slf.get());
        let open = py.import("procession._core")?.getattr("open_parcel")?;
        let ObjectName { offset, serial } = parcel.queue.name();
        (open, (offset, serial, &parcel.pickle)).into_pyobject(py)
    }
}

/// Pickles an object and has `send` send it, to one who receives it once.
pub(crate) fn send(
    object: &Bound<'_, PyAny>,
    mut send: impl FnMut(&Pieces) -> PyResult<()>,
) -> PyResult<()> {
    let py = object.py();
    let (pieces, names) = Naming::during(|| pickle::dumps(py, object))?;
    if names.names().is_empty() {
        return send(&pieces).inspect(|()| names.delivered());
    }
    let parcel = Bound::new(py, Parcel::new(py, joined(py, &pieces).unbind(), &names)?)?;
    let sent = pickle::dumps(py, parcel.as_any()).and_then(|pieces| send(&pieces));
    sent.inspect_err(|_| {
        // Nobody has its name, then; if it can't be told, the parcel lives on.
        let _ = parcel.get().queue.recapture();
    })
}

fn joined<'py>(py: Python<'py>, pieces: &Pieces) -> Bound<'py, PyBytes> {
    let pieces: Vec<&[u8]> = pieces.iter().map(|piece| piece.as_bytes(py)).collect();
    PyBytes::new(py, &pieces.concat())
}

/// Pickles an object and sends it by `send_bytes`, which takes bytes.
#[pyfunction]
pub(crate) fn send_pickled(obj: &Bound<'_, PyAny>, send_bytes: &Bound<'_, PyAny>) -> PyResult<()> {
    let py = obj.py();
    send(obj, |pieces| {
        send_bytes.call1((joined(py, pieces),)).map(drop)
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
    let opened = blocking::call(py, || match Queue::open(arena, name) {
        Err(Error::Closed { .. }) => Ok(None),
        queue => {
            let queue = queue?;
            let message = queue.get(Deadline::now())?;
            Ok(message.map(|message| (queue, message)))
        }
    })?;
    let (queue, message) = opened
        .ok_or_else(|| PyValueError::new_err("the message of a pipe was unpickled before"))?;
    queue.recapture().map_err(raise)?;
    let object = py.import("pickle")?.call_method1("loads", (pickle,));
    drop(message);
    object
}
