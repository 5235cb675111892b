//! Pickles: C Picklers kept for each thread, and the standard `loads`.
//!
//! Making a Pickler costs four times what a small pickle does. A kept one is taken out of its slot while in use, so a
//! `__reduce__` that puts into a queue itself gets a fresh one; its memo is cleared after every dump, failed ones too.
//! Its table of reducers is looked up live: ours, the standard library's, copyreg's (`procession.reduction`).
//!
//! Within the tree, large buffers (PEP 574) lie beside the pickle, and so are copied once on each side.

use crate::extent::ExtentFile;
use crate::memory::HeldBuffer;
use procession_core::Extent;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{IntoPyDict, PyBytes, PyDict, PyList};
use std::cell::Cell;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Buffers of at least so many bytes lie beside their pickle; below, they cost less inside.
const BESIDE_MIN: usize = 16 << 10;
/// The first protocol with buffers beside a pickle.
const BESIDE_PROTOCOL: u8 = 5;

/// The pieces of a pickle, in order.
pub(crate) type Pieces = Vec<Py<PyBytes>>;

/// A pickle, and the buffers that it refers to, in the order in which it does.
#[derive(Default)]
pub(crate) struct Pickled {
    pub(crate) pieces: Pieces,
    pub(crate) buffers: Vec<HeldBuffer>,
}

/// What a Pickler writes to: the pieces of one pickle, as it hands them over, and its buffers.
#[pyclass(frozen)]
struct Sink(Mutex<Pickled>);

impl Sink {
    fn lock(&self) -> MutexGuard<'_, Pickled> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

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
        self.lock().pieces.push(bytes.unbind());
        Ok(())
    }

    /// Whether a PickleBuffer goes into the pickle; otherwise it is kept, to lie beside it.
    fn is_inside(&self, buffer: &Bound<'_, PyAny>) -> PyResult<bool> {
        // One that isn't in one piece is refused by the Pickler, which says so.
        let Ok(raw) = buffer.call_method0(intern!(buffer.py(), "raw")) else {
            return Ok(true);
        };
        let held = HeldBuffer::get(&raw)?;
        let is_inside = held.as_bytes().len() < BESIDE_MIN;
        if !is_inside {
            self.lock().buffers.push(held);
        }
        Ok(is_inside)
    }
}

/// Where the large buffers of a pickle go.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Buffers {
    /// Into it, in the interpreter's default protocol: anybody can read that.
    Inside,
    Beside,
}

struct Kept {
    buffers: Buffers,
    dump: Py<PyAny>,
    clear_memo: Py<PyAny>,
    sink: Py<Sink>,
}

/// A thread's own Picklers. A thread that ends has no interpreter to drop them with, and leaves them to the others.
#[derive(Default)]
struct Slots {
    inside: Cell<Option<Kept>>,
    beside: Cell<Option<Kept>>,
}

thread_local! {
    static KEPT: Slots = const { Slots { inside: Cell::new(None), beside: Cell::new(None) } };
}

/// Left by threads that have ended. Only ever tried: a fork may have copied it locked.
static LEFT: Mutex<Vec<Kept>> = Mutex::new(Vec::new());

impl Slots {
    fn of(&self, buffers: Buffers) -> &Cell<Option<Kept>> {
        match buffers {
            Buffers::Inside => &self.inside,
            Buffers::Beside => &self.beside,
        }
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        if let Ok(mut left) = LEFT.try_lock() {
            left.extend(self.inside.take());
            left.extend(self.beside.take());
        }
    }
}

impl Kept {
    fn take(py: Python<'_>, buffers: Buffers) -> PyResult<Self> {
        let left = || {
            let mut left = LEFT.try_lock().ok()?;
            let place = left.iter().position(|kept| kept.buffers == buffers)?;
            Some(left.swap_remove(place))
        };
        let kept = KEPT.with(|slots| slots.of(buffers).take());
        kept.or_else(left)
            .map_or_else(|| Self::new(py, buffers), Ok)
    }

    fn new(py: Python<'_>, buffers: Buffers) -> PyResult<Self> {
        let sink = Bound::new(py, Sink(Mutex::default()))?;
        let options = PyDict::new(py);
        if buffers == Buffers::Beside {
            options.set_item("protocol", BESIDE_PROTOCOL)?;
            options.set_item("buffer_callback", sink.getattr("is_inside")?)?;
        }
        let pickler = py.import("pickle")?.getattr("Pickler")?;
        let pickler = pickler.call((&sink,), Some(&options))?;
        let table = py
            .import("procession.reduction")?
            .getattr("_live_reducers")?;
        pickler.setattr("dispatch_table", table)?;
        Ok(Self {
            buffers,
            dump: pickler.getattr("dump")?.unbind(),
            clear_memo: pickler.getattr("clear_memo")?.unbind(),
            sink: sink.unbind(),
        })
    }
}

/// Pickles an object, for whoever can read pickles.
pub(crate) fn dumps(py: Python<'_>, object: &Bound<'_, PyAny>) -> PyResult<Pieces> {
    Ok(dump(py, object, Buffers::Inside)?.pieces)
}

/// Pickles an object, for a process of the tree: large buffers stay where they are.
pub(crate) fn dumps_beside(py: Python<'_>, object: &Bound<'_, PyAny>) -> PyResult<Pickled> {
    dump(py, object, Buffers::Beside)
}

fn dump(py: Python<'_>, object: &Bound<'_, PyAny>, buffers: Buffers) -> PyResult<Pickled> {
    let kept = Kept::take(py, buffers)?;
    let dumped = kept.dump.bind(py).call1((object,));
    let pickled = std::mem::take(&mut *kept.sink.get().lock());
    let cleared = kept.clear_memo.bind(py).call0();
    dumped?;
    cleared?;
    KEPT.with(|slots| slots.of(buffers).set(Some(kept)));
    Ok(pickled)
}

/// A pickle in one piece, for whoever gets it as bytes: what it names lives on.
pub(crate) fn dumped<'py>(object: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
    let py = object.py();
    let pickler = py
        .import("procession.reduction")?
        .getattr("ForkingPickler")?;
    let pickle = pickler.call_method1(intern!(py, "dumps"), (object,))?;
    let bytes = py.get_type::<PyBytes>().call1((pickle,))?;
    Ok(bytes.cast_into()?)
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

/// Unpickles an object whose pickle is in an extent from `at` on, and whose buffers are these. Long bytes inside are copied
/// once, to where the object has them.
pub(crate) fn load<'py>(
    py: Python<'py>,
    extent: &Extent,
    at: usize,
    buffers: Option<Bound<'py, PyList>>,
) -> PyResult<Bound<'py, PyAny>> {
    let file = Bound::new(py, ExtentFile::new(extent.clone(), at))?;
    let options = [("buffers", buffers)].into_py_dict(py)?;
    py.import("pickle")?
        .getattr(intern!(py, "load"))?
        .call((file,), Some(&options))
}
