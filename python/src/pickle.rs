//! Pickles: a C Pickler kept for each thread, and the standard `loads`.
//!
//! Making a Pickler costs four times what a small pickle does. A kept one is taken out of its slot while in use, so a
//! `__reduce__` that puts into a queue itself gets a fresh one; its memo is cleared after every dump, failed ones too.
//! Its table of reducers is looked up live: ours, the standard library's, copyreg's (`procession.reduction`).

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyBytes;
use std::cell::Cell;
use std::sync::{Mutex, PoisonError};

/// What a Pickler writes to: the pieces of one pickle, as it hands them over.
#[pyclass(frozen)]
struct Sink(Mutex<Vec<Py<PyBytes>>>);

#[pymethods]
impl Sink {
    fn write(&self, piece: &Bound<'_, PyAny>) -> PyResult<()> {
        let bytes = match piece.cast_exact::<PyBytes>() {
            Ok(bytes) => bytes.clone(),
            // A buffer out of band of the frames: a bytearray's, or a PickleBuffer's.
            Err(_) => piece
                .py()
                .get_type::<PyBytes>()
                .call1((piece,))?
                .cast_into()?,
        };
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(bytes.unbind());
        Ok(())
    }
}

struct Kept {
    dump: Py<PyAny>,
    clear_memo: Py<PyAny>,
    sink: Py<Sink>,
}

/// A thread's own Pickler. A thread that ends has no interpreter to drop it with, and leaves it to the others.
struct Slot(Cell<Option<Kept>>);

thread_local! {
    static KEPT: Slot = const { Slot(Cell::new(None)) };
}

/// Left by threads that have ended. Only ever tried: a fork may have copied it locked.
static LEFT: Mutex<Vec<Kept>> = Mutex::new(Vec::new());

impl Drop for Slot {
    fn drop(&mut self) {
        if let (Some(kept), Ok(mut left)) = (self.0.take(), LEFT.try_lock()) {
            left.push(kept);
        }
    }
}

impl Kept {
    fn new(py: Python<'_>) -> PyResult<Self> {
        let sink = Py::new(py, Sink(Mutex::default()))?;
        let pickler = py.import("pickle")?.getattr("Pickler")?.call1((&sink,))?;
        let table = py
            .import("procession.reduction")?
            .getattr("_live_reducers")?;
        pickler.setattr("dispatch_table", table)?;
        Ok(Self {
            dump: pickler.getattr("dump")?.unbind(),
            clear_memo: pickler.getattr("clear_memo")?.unbind(),
            sink,
        })
    }
}

/// The pieces of a pickle, in order.
pub(crate) type Pieces = Vec<Py<PyBytes>>;

/// Pickles an object.
pub(crate) fn dumps(py: Python<'_>, object: &Bound<'_, PyAny>) -> PyResult<Pieces> {
    let left = || LEFT.try_lock().ok()?.pop();
    let kept = match KEPT.with(|slot| slot.0.take()).or_else(left) {
        Some(kept) => kept,
        None => Kept::new(py)?,
    };
    let dumped = kept.dump.bind(py).call1((object,));
    let pieces = std::mem::take(
        &mut *kept
            .sink
            .get()
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner),
    );
    let cleared = kept.clear_memo.bind(py).call0();
    dumped?;
    cleared?;
    KEPT.with(|slot| slot.0.set(Some(kept)));
    Ok(pieces)
}

/// Unpickles an object.
pub(crate) fn loads<'py>(
    py: Python<'py>,
    pickle: &Bound<'py, PyBytes>,
) -> PyResult<Bound<'py, PyAny>> {
    static LOADS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let loads = LOADS.get_or_try_init(py, || {
        py.import("pickle")?
            .getattr(intern!(py, "loads"))
            .map(Bound::unbind)
    })?;
    loads.bind(py).call1((pickle,))
}
