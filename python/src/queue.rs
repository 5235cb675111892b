//! `Queue` and its kin: what the classes of `procession.queues` inherit.

mod ends;
mod joinable;
mod simple;

use ends::Ends;
pub(crate) use ends::{QueueReader, QueueWriter};
pub(crate) use joinable::JoinableQueue;
pub(crate) use simple::SimpleQueue;

use crate::blocking;
use crate::error::raise;
use crate::tree;
use crate::value::{self, Scratch, Source, Value};
use procession_core::{Arena, Carried, Deadline, ObjectName, Put, Taken};
use pyo3::exceptions::{PyException, PyOSError, PyRuntimeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyTuple};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};

/// The queue that an object is, and what this object was used for.
#[derive(Default)]
pub(crate) struct Inner {
    queue: OnceLock<procession_core::Queue>,
    state: AtomicU8,
}

/// `close` was called: nothing is put or got here by this object any more.
const CLOSED: u8 = 1;
/// Its end for getters was closed.
const NO_READER: u8 = 2;
/// Its end for putters was closed.
const NO_WRITER: u8 = 4;
/// Something was put by this object.
const USED: u8 = 8;

impl Inner {
    /// Says which queue it is; once.
    fn set(&self, queue: procession_core::Queue) -> PyResult<()> {
        self.queue
            .set(queue)
            .map_err(|_| PyRuntimeError::new_err("the queue is made already"))
    }

    fn get(&self) -> PyResult<&procession_core::Queue> {
        self.queue
            .get()
            .ok_or_else(|| PyRuntimeError::new_err("the queue's __init__ was not called"))
    }

    #[inline]
    fn is(&self, state: u8) -> bool {
        self.state.load(Ordering::Relaxed) & state != 0
    }

    fn becomes(&self, state: u8) {
        self.state.fetch_or(state, Ordering::Relaxed);
    }

    /// The queue's name, for a pickle.
    fn pickled(&self, py: Python<'_>) -> PyResult<(u64, u64)> {
        let queue = self.get()?;
        tree::pickled(py, queue.name(), || queue.escape())
    }

    /// Holds the queue of a name from a pickle.
    fn open(&self, py: Python<'_>, (offset, serial): (u64, u64)) -> PyResult<()> {
        let (arena, name) = (tree::arena()?, ObjectName { offset, serial });
        let open = || procession_core::Queue::open(arena, name);
        self.set(blocking::call(py, open)?)
    }

    /// The queue, unless the end for that was closed.
    #[inline]
    fn by_end(&self, closed: u8) -> PyResult<&procession_core::Queue> {
        if self.is(closed) {
            return Err(PyOSError::new_err("handle is closed"));
        }
        self.get()
    }
}

/// A queue of objects between processes, without a feeder thread: `put` has stored the object when it returns.
#[pyclass(subclass, frozen, module = "procession._core")]
pub(crate) struct Queue {
    inner: Arc<Inner>,
    ends: Ends,
}

#[pymethods]
impl Queue {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self {
            inner: Arc::default(),
            ends: Ends::new(),
        }
    }

    #[pyo3(signature = (maxsize=0, *, ctx=None))]
    fn __init__(
        &self,
        py: Python<'_>,
        maxsize: i64,
        ctx: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let _ = ctx;
        self.make(py, maxsize, procession_core::Queue::new)
    }

    /// Puts an object; `queue.Full` if there is no room at once (block=False) or within timeout seconds.
    #[pyo3(signature = (obj, block=true, timeout=None))]
    fn put(
        slf: &Bound<'_, Self>,
        obj: &Bound<'_, PyAny>,
        #[pyo3(from_py_with = blocking::truth)] block: bool,
        timeout: Option<f64>,
    ) -> PyResult<()> {
        let (py, queue) = (slf.py(), slf.get().open(slf, NO_WRITER)?);
        if !slf.get().inner.is(USED) {
            slf.get().inner.becomes(USED);
        }
        match value::encode(obj) {
            Ok(value) => put_value(py, queue, &value, block, timeout),
            // What isn't an error (Ctrl-C in a `__reduce__`) is the caller's.
            Err(error) if !error.is_instance_of::<PyException>(py) => Err(error),
            Err(error) => {
                let error = error.into_value(py);
                slf.call_method1(intern!(py, "_on_queue_feeder_error"), (error, obj))
                    .map(drop)
            }
        }
    }

    /// Gets an object; `queue.Empty` if there is none at once (block=False) or within timeout seconds.
    #[pyo3(signature = (block=true, timeout=None))]
    fn get<'py>(
        slf: &Bound<'py, Self>,
        #[pyo3(from_py_with = blocking::truth)] block: bool,
        timeout: Option<f64>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (py, queue) = (slf.py(), slf.get().open(slf, NO_READER)?);
        let deadline = || blocking::deadline(block, timeout);
        get_with(py, queue, deadline, decode)?.ok_or_else(|| exception(py, "Empty"))
    }

    fn put_nowait(slf: &Bound<'_, Self>, obj: &Bound<'_, PyAny>) -> PyResult<()> {
        // Through the class, as the standard's: a subclass that overrides put has its own called.
        slf.call_method1(intern!(slf.py(), "put"), (obj, false))
            .map(drop)
    }

    fn get_nowait<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        slf.call_method1(intern!(slf.py(), "get"), (false,))
    }

    /// Messages that were put and not got.
    fn qsize(&self) -> PyResult<u64> {
        self.get_queue()?.len().map_err(raise)
    }

    fn empty(&self) -> PyResult<bool> {
        self.inner.by_end(NO_READER)?.is_empty().map_err(raise)
    }

    fn full(&self) -> PyResult<bool> {
        let queue = self.get_queue()?;
        let capacity = queue.capacity().map_err(raise)?;
        let length = queue.len().map_err(raise)?;
        Ok(capacity.is_some_and(|capacity| length >= u64::from(capacity)))
    }

    /// Says that this process puts and gets nothing here any more.
    fn close(&self) {
        // The standard's has no ends to close before its first put.
        let ends = if self.inner.is(USED) {
            NO_READER | NO_WRITER
        } else {
            0
        };
        self.inner.becomes(CLOSED | ends);
    }

    /// Its end for getters, as an object that is much like a `Connection`.
    #[getter]
    fn _reader(&self, py: Python<'_>) -> PyResult<Py<QueueReader>> {
        self.ends.reader(py, &self.inner)
    }

    /// Its end for putters, as an object that is much like a `Connection`.
    #[getter]
    fn _writer(&self, py: Python<'_>) -> PyResult<Py<QueueWriter>> {
        self.ends.writer(py, &self.inner)
    }

    /// The most objects that it holds: what the standard has for a queue without a limit is one of 31 bits.
    #[getter]
    fn _maxsize(&self) -> PyResult<u32> {
        let capacity = self.get_queue()?.capacity().map_err(raise)?;
        Ok(capacity.unwrap_or(i32::MAX.cast_unsigned()))
    }

    /// Whether `close` was called.
    #[getter]
    fn _closed(&self) -> bool {
        self.inner.is(CLOSED)
    }

    /// Messages that were lost with a getter that was killed.
    #[getter]
    fn _lost(&self) -> PyResult<u64> {
        self.get_queue()?.lost().map_err(raise)
    }

    /// Its name: all that a pickle of it has, as the standard's. What a subclass keeps besides, it pickles itself.
    fn __getstate__(&self, py: Python<'_>) -> PyResult<(u64, u64)> {
        self.inner.pickled(py)
    }

    fn __setstate__(&self, py: Python<'_>, name: (u64, u64)) -> PyResult<()> {
        self.inner.open(py, name)
    }
}

impl Queue {
    fn make(
        &self,
        py: Python<'_>,
        maxsize: i64,
        make: fn(&Arena, Option<u32>) -> procession_core::Result<procession_core::Queue>,
    ) -> PyResult<()> {
        // More than can be counted is no limit.
        let capacity = u32::try_from(maxsize).ok().filter(|capacity| *capacity > 0);
        let arena = tree::arena()?;
        let queue = blocking::call(py, || make(arena, capacity))?;
        self.inner.set(queue)
    }

    fn get_queue(&self) -> PyResult<&procession_core::Queue> {
        self.inner.get()
    }

    #[inline]
    fn open(&self, slf: &Bound<'_, Self>, end: u8) -> PyResult<&procession_core::Queue> {
        if self.inner.is(CLOSED) {
            return Err(closed(slf));
        }
        self.inner.by_end(end)
    }
}

#[cold]
fn closed(queue: &Bound<'_, Queue>) -> PyErr {
    match queue.repr() {
        Ok(text) => PyValueError::new_err(format!("Queue {text} is closed")),
        Err(error) => error,
    }
}

/// Puts an encoded object.
fn put_value(
    py: Python<'_>,
    queue: &procession_core::Queue,
    value: &Value<'_>,
    block: bool,
    timeout: Option<f64>,
) -> PyResult<()> {
    value.parts(py, &[], |parts| {
        let message = (value.kind(), parts, value.names());
        store(py, queue, message, block, timeout)
    })
}

/// Takes a message and gives what `read` makes of it and of the buffer, in which it is if it isn't long; `None` at the
/// deadline. What the message names is held until then.
fn get_with<'py, T>(
    py: Python<'py>,
    queue: &procession_core::Queue,
    deadline: impl FnOnce() -> Deadline,
    read: impl FnOnce(Python<'py>, &Taken, &[u8]) -> PyResult<T>,
) -> PyResult<Option<T>> {
    Scratch::with(|buffer| match take(py, queue, buffer, deadline)? {
        Some(taken) => read(py, &taken, buffer).map(Some),
        None => Ok(None),
    })
}

/// As [`get_with`], for as long as it takes.
fn get_at_last<'py, T>(
    py: Python<'py>,
    queue: &procession_core::Queue,
    read: impl FnOnce(Python<'py>, &Taken, &[u8]) -> PyResult<T>,
) -> PyResult<T> {
    let got = get_with(py, queue, || Deadline::NEVER, read)?;
    got.ok_or_else(|| PyRuntimeError::new_err("a wait for ever has ended"))
}

/// Puts a message: at once if that can be done, else without the interpreter.
fn store(
    py: Python<'_>,
    queue: &procession_core::Queue,
    (tag, parts, names): (u8, &[&[u8]], &Carried),
    block: bool,
    timeout: Option<f64>,
) -> PyResult<()> {
    if names.is_empty() && queue.try_put(tag, parts).map_err(raise)? {
        return Ok(());
    }
    let deadline = blocking::deadline(block, timeout);
    let stored = blocking::wait(py, deadline, blocking::FOR_DATA, |until| {
        let put = queue.put_naming(tag, parts, names, until)?;
        Ok((put == Put::Stored).then_some(()))
    })?;
    stored.ok_or_else(|| exception(py, "Full"))
}

/// Takes a message: at once if there is one, else without the interpreter.
fn take(
    py: Python<'_>,
    queue: &procession_core::Queue,
    buffer: &mut Vec<u8>,
    deadline: impl FnOnce() -> Deadline,
) -> PyResult<Option<Taken>> {
    if let Some(taken) = queue.try_get_into(buffer).map_err(raise)? {
        return Ok(Some(taken));
    }
    blocking::wait(py, deadline(), blocking::FOR_DATA, |until| {
        queue.get_into(buffer, until)
    })
}

/// The object of a message. User code may run: no lock of ours is held.
fn decode<'py>(py: Python<'py>, taken: &Taken, buffer: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    let source = Source {
        buffer,
        extent: taken.extent.as_ref(),
    };
    source.decode(py, taken.tag, 0)
}

/// An exception of the standard module `queue`.
fn exception(py: Python<'_>, name: &str) -> PyErr {
    static MODULE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    MODULE
        .get_or_try_init(py, || {
            py.import("queue").map(|module| module.into_any().unbind())
        })
        .and_then(|module| module.bind(py).getattr(name)?.call0())
        .map_or_else(|error| error, PyErr::from_value)
}
