//! `Pool`: what `procession.pool.Pool` inherits, and what its workers run.

mod drive;
mod feed;
mod help;
mod result;
mod seat;
mod task;
mod turn;
mod workers;

use drive::Shared;
use feed::Feed;
pub(crate) use feed::Feeder;
pub(crate) use help::PoolHandle;
use procession_core::Deadline;
use procession_core::pool::Scheduler;
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyAnyMethods, PyDict, PyIterator, PyTuple};
pub(crate) use result::{ApplyResult, IMapIterator, IMapUnorderedIterator, MapResult};
use result::{Callbacks, Job};
pub(crate) use seat::{WorkerSeat, open_seat};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use task::form;

/// Takes a lock of this process; what panicked under it left nothing half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The names of the states, as users and subclasses compare them.
const STATES: [&str; 4] = ["INIT", "RUN", "CLOSE", "TERMINATE"];
const RUN: u8 = 1;

/// The compiled part of a pool of processes: submits jobs.
#[pyclass(subclass, frozen, module = "procession._core")]
pub(crate) struct Pool {
    shared: OnceLock<Arc<Shared>>,
    state: AtomicU8,
}

#[pymethods]
impl Pool {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self {
            shared: OnceLock::new(),
            state: AtomicU8::new(0),
        }
    }

    /// Makes the queues of a pool of so many workers; `staff` starts and ends them.
    fn _open(&self, py: Python<'_>, staff: Py<PyAny>, size: u32) -> PyResult<PoolHandle> {
        let shared = Shared::new(py, staff, size)?;
        self.shared
            .set(shared.clone())
            .map_err(|_| PyRuntimeError::new_err("the pool is made already"))?;
        Ok(PoolHandle(shared))
    }

    #[getter]
    fn _state(&self) -> &'static str {
        let state = usize::from(self.state.load(Ordering::Relaxed));
        STATES.get(state).copied().unwrap_or_default()
    }

    #[setter(_state)]
    fn set_state(&self, state: &str) -> PyResult<()> {
        let place = STATES.iter().position(|name| *name == state);
        let place = place.and_then(|place| u8::try_from(place).ok());
        let place = place.ok_or_else(|| PyValueError::new_err(format!("no state {state:?}")))?;
        self.state.store(place, Ordering::Relaxed);
        Ok(())
    }

    fn _check_running(&self) -> PyResult<()> {
        self.running().map(drop)
    }

    /// Equivalent of `func(*args, **kwds)`, in a worker.
    #[pyo3(signature = (func, args=None, kwds=None), text_signature = "($self, func, args=(), kwds={})")]
    fn apply(
        slf: &Bound<'_, Self>,
        func: &Bound<'_, PyAny>,
        args: Option<&Bound<'_, PyAny>>,
        kwds: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Py<PyAny>> {
        let (py, shared) = (slf.py(), slf.get().running()?);
        let callbacks = Callbacks {
            callback: None,
            error_callback: None,
        };
        let result = ApplyResult::new(slf.clone().into_any().unbind(), shared.clone(), callbacks);
        let result = Py::new(py, result)?;
        submit_call(py, shared, &result, func, args, kwds)?;
        let asked = result.get();
        shared.drive(py, &|| asked.is_ready(), Deadline::NEVER)?;
        asked.get(py, None)
    }

    /// As `apply`, without waiting: returns an `ApplyResult`.
    #[pyo3(
        signature = (func, args=None, kwds=None, callback=None, error_callback=None),
        text_signature = "($self, func, args=(), kwds={}, callback=None, error_callback=None)"
    )]
    fn apply_async(
        slf: &Bound<'_, Self>,
        func: &Bound<'_, PyAny>,
        args: Option<&Bound<'_, PyAny>>,
        kwds: Option<&Bound<'_, PyAny>>,
        callback: Option<Py<PyAny>>,
        error_callback: Option<Py<PyAny>>,
    ) -> PyResult<Py<ApplyResult>> {
        let (py, shared) = (slf.py(), slf.get().running()?);
        let calls = callback.is_some() || error_callback.is_some();
        let callbacks = Callbacks {
            callback,
            error_callback,
        };
        let result = ApplyResult::new(slf.clone().into_any().unbind(), shared.clone(), callbacks);
        let result = Py::new(py, result)?;
        submit_call(py, shared, &result, func, args, kwds)?;
        shared.wake_helper(py, calls);
        Ok(result)
    }

    /// `map` of an iterable of known length in chunks of `size`; waited for at once unless `alone`.
    ///
    /// Returns the result and, if the iterable is not a plain one, the feeder that a thread is to step.
    #[expect(
        clippy::too_many_arguments,
        reason = "the standard's own, and two of ours"
    )]
    fn _submit_map(
        slf: &Bound<'_, Self>,
        func: &Bound<'_, PyAny>,
        iterable: &Bound<'_, PyAny>,
        size: usize,
        star: bool,
        plain: bool,
        alone: bool,
        callback: Option<Py<PyAny>>,
        error_callback: Option<Py<PyAny>>,
    ) -> PyResult<(Py<ApplyResult>, Option<Feeder>)> {
        let (py, shared) = (slf.py(), slf.get().running()?);
        let callbacks = Callbacks {
            callback,
            error_callback,
        };
        let new = ApplyResult::new(slf.clone().into_any().unbind(), shared.clone(), callbacks);
        let length = iterable.len()?;
        let chunks = if size == 0 { 0 } else { length.div_ceil(size) };
        let result = ApplyResult::of_chunks(py, new, chunks, size)?;
        if chunks == 0 {
            result.get().finish_empty(py);
            return Ok((result, None));
        }
        let job = Job::Result(result.clone_ref(py));
        let items = match iterable.try_iter() {
            Ok(items) => items,
            Err(error) => {
                // The standard's handler thread would die here: the job fails instead.
                job.put(py, 0, Err(error.into_value(py).into_any()));
                job.set_tasks(py, 1);
                return Ok((result, None));
            }
        };
        let feed = Feed::new(items.unbind(), size, star, shared.function(func)?, job);
        let feeder = begin(py, shared, feed, plain)?;
        if alone {
            shared.wake_helper(py, false);
        }
        Ok((result, feeder))
    }

    /// `imap` over an iterator, a task an item if `size` is 0; the rest as `_submit_map`.
    fn _submit_imap(
        slf: &Bound<'_, Self>,
        func: &Bound<'_, PyAny>,
        items: &Bound<'_, PyIterator>,
        size: usize,
        ordered: bool,
        plain: bool,
    ) -> PyResult<(Py<IMapIterator>, Option<Feeder>)> {
        let (py, shared) = (slf.py(), slf.get().running()?);
        let pool = slf.clone().into_any().unbind();
        let stream = IMapIterator::make(py, pool, shared.clone(), ordered)?;
        let job = Job::Stream(stream.clone_ref(py));
        let feed = Feed::new(
            items.clone().unbind(),
            size,
            false,
            shared.function(func)?,
            job,
        );
        let feeder = begin(py, shared, feed, plain)?;
        shared.wake_helper(py, false);
        Ok((stream, feeder))
    }

    /// The results that wait for tasks or callbacks, by the number of their job: a copy, made when it is looked at.
    #[getter]
    fn _cache<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let jobs = PyDict::new(py);
        let Some(shared) = self.shared.get() else {
            return Ok(jobs);
        };
        shared.look(py)?;
        let mut entries: Vec<_> = shared
            .core
            .with(|tasks| tasks.tickets().map(|ticket| ticket.job.entry(py)).collect());
        entries.extend(
            lock(&shared.turn)
                .calls
                .iter()
                .map(|call| Job::Result(call.result.clone_ref(py)).entry(py)),
        );
        for (job, result) in entries {
            jobs.set_item(job, result)?;
        }
        Ok(jobs)
    }
}

impl Pool {
    fn running(&self) -> PyResult<&Arc<Shared>> {
        match self.shared.get() {
            Some(shared) if self.state.load(Ordering::Relaxed) == RUN => {
                if shared.is_mine() {
                    Ok(shared)
                } else {
                    Err(PyRuntimeError::new_err(
                        "the pool belongs to the parent process",
                    ))
                }
            }
            _ => Err(PyValueError::new_err("Pool not running")),
        }
    }
}

/// Submits one call.
fn submit_call(
    py: Python<'_>,
    shared: &Arc<Shared>,
    result: &Py<ApplyResult>,
    func: &Bound<'_, PyAny>,
    args: Option<&Bound<'_, PyAny>>,
    kwds: Option<&Bound<'_, PyAny>>,
) -> PyResult<()> {
    let function = shared.function(func)?;
    let nothing;
    let args = match args {
        Some(args) => args,
        None => {
            nothing = PyTuple::empty(py).into_any();
            &nothing
        }
    };
    let place = (Job::Result(result.clone_ref(py)), 0);
    let keywords = match kwds {
        Some(kwds) => kwds.is_truthy()?,
        None => false,
    };
    let sent = if let (Some(kwds), true) = (kwds, keywords) {
        let both = PyTuple::new(py, [args, kwds])?;
        shared.submit(py, place, form::KEYWORDS, &function, &both)
    } else if let Ok(tuple) = args.cast_exact::<PyTuple>()
        && tuple.len() == 1
    {
        shared.submit(py, place, form::ONE, &function, &tuple.get_item(0)?)
    } else {
        shared.submit(py, place, form::ARGUMENTS, &function, args)
    };
    sent.map_err(|(_, error)| error)
}

/// Begins a fed job: at once and by whoever drives, or by a thread of its own.
fn begin(
    py: Python<'_>,
    shared: &Arc<Shared>,
    mut feed: Feed,
    plain: bool,
) -> PyResult<Option<Feeder>> {
    shared
        .core
        .with(Scheduler::feed_began)
        .map_err(|refused| shared.refusal(py, refused))?;
    if !plain {
        return Ok(Some(Feeder::new(shared.clone(), feed)));
    }
    if !feed.run(py, shared) {
        lock(&shared.feeds).push_back(feed);
    }
    shared.carry_out(py, false)?;
    Ok(None)
}

/// After a fork: pools of the parent aren't the child's.
#[pyfunction]
pub(crate) fn forget_pools() {
    drive::forked();
}
