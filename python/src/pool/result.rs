//! What a caller gets for a job: `ApplyResult`, `MapResult`, and the iterators of `imap`.

use super::drive::Shared;
use super::lock;
use crate::blocking;
use procession_core::Deadline;
use procession_core::pool::batch::{Gather, Stream};
use pyo3::exceptions::{PyStopIteration, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyTuple};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// How a task ended: its result, or the exception that stands for it.
pub(super) type End = Result<Py<PyAny>, Py<PyAny>>;

static JOBS: AtomicU64 = AtomicU64::new(0);

/// A job, by what its caller got for it.
pub(super) enum Job {
    Result(Py<ApplyResult>),
    Stream(Py<IMapIterator>),
}

impl Job {
    /// Takes the end of a task.
    pub(super) fn put(&self, py: Python<'_>, index: u64, end: End) {
        match self {
            Self::Result(result) => result.get().put(py, result, index, end),
            Self::Stream(stream) => stream.get().put(index, end),
        }
    }

    /// Learns how many tasks it has, now that the last one was submitted.
    pub(super) fn set_tasks(&self, py: Python<'_>, tasks: u64) {
        match self {
            Self::Result(result) => result.get().set_tasks(py, result, tasks),
            Self::Stream(stream) => stream.get().set_tasks(tasks),
        }
    }

    pub(super) fn clone_ref(&self, py: Python<'_>) -> Self {
        match self {
            Self::Result(result) => Self::Result(result.clone_ref(py)),
            Self::Stream(stream) => Self::Stream(stream.clone_ref(py)),
        }
    }

    pub(super) fn entry(&self, py: Python<'_>) -> (u64, Py<PyAny>) {
        match self {
            Self::Result(result) => (result.get().job, result.clone_ref(py).into_any()),
            Self::Stream(stream) => (stream.get().job, stream.clone_ref(py).into_any()),
        }
    }
}

/// The result of `Pool.apply_async`, and what that of `Pool.map_async` inherits.
#[pyclass(subclass, frozen, dict, weakref, module = "procession.pool")]
pub(crate) struct ApplyResult {
    job: u64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The pool lives while the job isn't done.
    pool: Option<(Py<PyAny>, Arc<Shared>)>,
    callback: Option<Py<PyAny>>,
    error_callback: Option<Py<PyAny>>,
    chunks: Option<Gather<Py<PyAny>, Py<PyAny>>>,
    chunk_size: usize,
    end: Option<End>,
    /// The end may be asked for: a callback has run.
    ready: bool,
}

/// The result of `Pool.map_async`.
#[pyclass(extends = ApplyResult, subclass, frozen, module = "procession.pool")]
pub(crate) struct MapResult;

#[pymethods]
impl ApplyResult {
    fn ready(&self, py: Python<'_>) -> PyResult<bool> {
        if let Some(shared) = self.shared() {
            shared.look(py)?;
        }
        Ok(self.is_ready())
    }

    fn successful(slf: &Bound<'_, Self>) -> PyResult<bool> {
        if !slf.get().ready(slf.py())? {
            return Err(PyValueError::new_err(format!("{} not ready", slf.repr()?)));
        }
        Ok(slf.get()._success())
    }

    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<()> {
        self.wait_until(py, blocking::deadline(true, timeout))
            .map(drop)
    }

    #[pyo3(signature = (timeout=None))]
    pub(super) fn get(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Py<PyAny>> {
        if !self.is_ready() && !self.wait_until(py, blocking::deadline(true, timeout))? {
            return Err(timed_out(py));
        }
        let state = lock(&self.state);
        match &state.end {
            Some(Ok(value)) => Ok(value.clone_ref(py)),
            Some(Err(error)) => {
                let error = error.clone_ref(py);
                drop(state);
                Err(PyErr::from_value(error.into_bound(py)))
            }
            None => Err(crate::value::malformed(0)),
        }
    }

    fn _set(slf: &Bound<'_, Self>, i: u64, obj: (bool, Py<PyAny>)) {
        let end = if obj.0 { Ok(obj.1) } else { Err(obj.1) };
        slf.get().put(slf.py(), slf.as_unbound(), i, end);
    }

    /// The callback has run, and raised `error`, which is the job's end then.
    fn _called(&self, error: Option<Py<PyAny>>) {
        if let Some(error) = error {
            let _old = lock(&self.state).end.replace(Err(error));
        }
        self.done();
    }

    #[getter]
    fn _job(&self) -> u64 {
        self.job
    }

    #[getter]
    fn _success(&self) -> bool {
        matches!(lock(&self.state).end, Some(Ok(_)))
    }

    #[getter]
    fn _value(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        match &lock(&self.state).end {
            Some(Ok(value) | Err(value)) => Some(value.clone_ref(py)),
            None => None,
        }
    }

    #[getter]
    fn _pool(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        let state = lock(&self.state);
        state.pool.as_ref().map(|(pool, _)| pool.clone_ref(py))
    }

    #[getter]
    fn _cache(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        match self._pool(py) {
            Some(pool) => pool.getattr(py, "_cache"),
            None => Ok(PyDict::new(py).into_any().unbind()),
        }
    }

    #[getter]
    fn _callback(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        lock(&self.state)
            .callback
            .as_ref()
            .map(|call| call.clone_ref(py))
    }

    #[getter]
    fn _error_callback(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        lock(&self.state)
            .error_callback
            .as_ref()
            .map(|call| call.clone_ref(py))
    }
}

#[pymethods]
impl MapResult {
    #[getter]
    fn _number_left(slf: PyRef<'_, Self>) -> usize {
        lock(&slf.as_super().state)
            .chunks
            .as_ref()
            .map_or(0, Gather::left)
    }

    #[getter]
    fn _chunksize(slf: PyRef<'_, Self>) -> usize {
        lock(&slf.as_super().state).chunk_size
    }
}

/// What `apply_async` and `map_async` are asked to call at the end.
pub(super) struct Callbacks {
    pub(super) callback: Option<Py<PyAny>>,
    pub(super) error_callback: Option<Py<PyAny>>,
}

impl ApplyResult {
    /// A result of one task.
    pub(super) fn new(pool: Py<PyAny>, shared: Arc<Shared>, callbacks: Callbacks) -> Self {
        Self {
            job: JOBS.fetch_add(1, Ordering::Relaxed),
            state: Mutex::new(State {
                pool: Some((pool, shared)),
                callback: callbacks.callback,
                error_callback: callbacks.error_callback,
                ..State::default()
            }),
        }
    }

    /// A result of so many chunks.
    pub(super) fn of_chunks(
        py: Python<'_>,
        new: Self,
        chunks: usize,
        chunk_size: usize,
    ) -> PyResult<Py<Self>> {
        {
            let mut state = lock(&new.state);
            state.chunks = Some(Gather::new(chunks));
            state.chunk_size = chunk_size;
        }
        let result = Py::new(py, PyClassInitializer::from(new).add_subclass(MapResult))?;
        Ok(result.into_bound(py).into_super().unbind())
    }

    /// Says that there is nothing to do: the result of `map` over nothing. No callback is called, as in the standard.
    pub(super) fn finish_empty(&self, py: Python<'_>) {
        lock(&self.state).end = Some(Ok(PyList::empty(py).into_any().unbind()));
        self.done();
    }

    pub(super) fn is_ready(&self) -> bool {
        lock(&self.state).ready
    }

    fn shared(&self) -> Option<Arc<Shared>> {
        let state = lock(&self.state);
        state.pool.as_ref().map(|(_, shared)| shared.clone())
    }

    fn wait_until(&self, py: Python<'_>, deadline: Deadline) -> PyResult<bool> {
        match self.shared() {
            Some(shared) => shared.drive(py, &|| self.is_ready(), deadline),
            None => Ok(self.is_ready()),
        }
    }

    /// Takes the end of a task; dropped if the job has ended.
    fn put(&self, py: Python<'_>, slf: &Py<Self>, index: u64, end: End) {
        let mut state = lock(&self.state);
        let dropped;
        match &mut state.chunks {
            None => {
                if state.end.is_some() {
                    drop(state);
                    return;
                }
                state.end = Some(end);
                dropped = None;
            }
            Some(chunks) => {
                let complete;
                (complete, dropped) = chunks.put(usize::try_from(index).unwrap_or(usize::MAX), end);
                if !complete {
                    drop(state);
                    drop(dropped);
                    return;
                }
            }
        }
        drop(state);
        drop(dropped);
        self.complete(py, slf);
    }

    fn set_tasks(&self, py: Python<'_>, slf: &Py<Self>, tasks: u64) {
        let mut state = lock(&self.state);
        let Some(chunks) = &mut state.chunks else {
            return;
        };
        if chunks.left() == 0 {
            return;
        }
        chunks.resize(usize::try_from(tasks).unwrap_or(usize::MAX));
        let complete = chunks.left() == 0;
        drop(state);
        if complete {
            self.complete(py, slf);
        }
    }

    /// All tasks have ended: joins the chunks, and calls back before anybody may ask.
    fn complete(&self, py: Python<'_>, slf: &Py<Self>) {
        let finished = {
            let mut state = lock(&self.state);
            if state.ready {
                return;
            }
            state.chunks.as_mut().map(Gather::finish)
        };
        if let Some(finished) = finished {
            let end = match finished {
                Ok(chunks) => join(py, chunks).map_err(|error| error.into_value(py).into_any()),
                Err(error) => Err(error),
            };
            lock(&self.state).end = Some(end);
        }
        let state = lock(&self.state);
        let (call, value) = match &state.end {
            Some(Ok(value)) => (&state.callback, value),
            Some(Err(error)) => (&state.error_callback, error),
            None => return,
        };
        if let (Some(call), Some((_, shared))) = (call, &state.pool) {
            let (call, value, shared) = (call.clone_ref(py), value.clone_ref(py), shared.clone());
            drop(state);
            shared.call_back(py, slf.clone_ref(py), call, value);
        } else {
            drop(state);
            self.done();
        }
    }

    /// From now on everybody may ask.
    pub(super) fn done(&self) {
        let mut state = lock(&self.state);
        state.ready = true;
        let kept = (
            state.pool.take(),
            state.callback.take(),
            state.error_callback.take(),
        );
        drop(state);
        // The last hold on the pool may be this one, and its end runs user code.
        drop(kept);
    }
}

/// One list of all chunks' lists.
fn join(py: Python<'_>, chunks: Vec<Py<PyAny>>) -> PyResult<Py<PyAny>> {
    let mut chunks = chunks.into_iter();
    let Some(first) = chunks.next() else {
        return Ok(PyList::empty(py).into_any().unbind());
    };
    let all = first.into_bound(py).cast_into::<PyList>()?;
    for chunk in chunks {
        let end = all.len();
        all.set_slice(end, end, chunk.bind(py))?;
    }
    Ok(all.into_any().unbind())
}

/// The iterator of `Pool.imap`.
#[pyclass(subclass, frozen, dict, weakref, module = "procession.pool")]
pub(crate) struct IMapIterator {
    job: u64,
    state: Mutex<StreamState>,
}

struct StreamState {
    stream: Stream<End>,
    pool: Option<(Py<PyAny>, Arc<Shared>)>,
}

/// The iterator of `Pool.imap_unordered`.
#[pyclass(extends = IMapIterator, subclass, frozen, module = "procession.pool")]
pub(crate) struct IMapUnorderedIterator;

#[pymethods]
impl IMapIterator {
    fn __iter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        self.take(py, Deadline::NEVER)
    }

    #[pyo3(signature = (timeout=None))]
    fn next(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Py<PyAny>> {
        self.take(py, blocking::deadline(true, timeout))?
            .ok_or_else(|| PyStopIteration::new_err(()))
    }

    fn _set(&self, i: u64, obj: (bool, Py<PyAny>)) {
        self.put(i, if obj.0 { Ok(obj.1) } else { Err(obj.1) });
    }

    fn _set_length(&self, length: u64) {
        self.set_tasks(length);
    }

    #[getter]
    fn _job(&self) -> u64 {
        self.job
    }

    #[getter]
    fn _index(&self) -> u64 {
        lock(&self.state).stream.reached()
    }

    #[getter]
    fn _length(&self) -> Option<u64> {
        lock(&self.state).stream.tasks()
    }

    #[getter]
    fn _pool(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        let state = lock(&self.state);
        state.pool.as_ref().map(|(pool, _)| pool.clone_ref(py))
    }
}

impl IMapIterator {
    /// An iterator over the results of a job that is about to begin.
    pub(super) fn make(
        py: Python<'_>,
        pool: Py<PyAny>,
        shared: Arc<Shared>,
        ordered: bool,
    ) -> PyResult<Py<Self>> {
        let new = Self {
            job: JOBS.fetch_add(1, Ordering::Relaxed),
            state: Mutex::new(StreamState {
                stream: if ordered {
                    Stream::ordered()
                } else {
                    Stream::unordered()
                },
                pool: Some((pool, shared)),
            }),
        };
        if ordered {
            return Py::new(py, new);
        }
        let unordered = PyClassInitializer::from(new).add_subclass(IMapUnorderedIterator);
        Ok(Py::new(py, unordered)?.into_bound(py).into_super().unbind())
    }

    fn take(&self, py: Python<'_>, deadline: Deadline) -> PyResult<Option<Py<PyAny>>> {
        loop {
            let mut state = lock(&self.state);
            match state.stream.take() {
                Some(Ok(value)) => return Ok(Some(value)),
                Some(Err(error)) => {
                    drop(state);
                    return Err(PyErr::from_value(error.into_bound(py)));
                }
                None if state.stream.is_over() => return Ok(None),
                None => {}
            }
            let shared = state.pool.as_ref().map(|(_, shared)| shared.clone());
            drop(state);
            let moves = || {
                let state = lock(&self.state);
                state.stream.is_ready() || state.stream.is_over()
            };
            let moved = match shared {
                Some(shared) => shared.drive(py, &moves, deadline)?,
                None => moves(),
            };
            if !moved {
                return Err(timed_out(py));
            }
        }
    }

    fn put(&self, index: u64, end: End) {
        let mut state = lock(&self.state);
        state.stream.put(index, end);
        Self::settle(state);
    }

    fn set_tasks(&self, tasks: u64) {
        let mut state = lock(&self.state);
        state.stream.set_tasks(tasks);
        Self::settle(state);
    }

    /// Lets go of the pool once all results are here.
    fn settle(mut state: std::sync::MutexGuard<'_, StreamState>) {
        if state.stream.is_complete() {
            let pool = state.pool.take();
            drop(state);
            drop(pool);
        }
    }
}

/// The package's `TimeoutError`.
fn timed_out(py: Python<'_>) -> PyErr {
    py.import("procession.pool")
        .and_then(|module| module.getattr("TimeoutError")?.call1(PyTuple::empty(py)))
        .map_or_else(|error| error, PyErr::from_value)
}
