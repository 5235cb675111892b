//! Jobs whose tasks are submitted bit by bit, as many as keep the workers busy.

use super::drive::Shared;
use super::lock;
use super::result::Job;
use super::task::{Function, form};
use procession_core::Deadline;
use procession_core::pool::{LOOK, Phase};
use pyo3::exceptions::PyStopIteration;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyIterator, PyTuple};
use std::sync::{Arc, Mutex};

/// Cuts an iterable into tasks.
pub(super) struct Feed {
    items: Py<PyIterator>,
    /// Items in a task; 0: a task is an item, not a tuple of them.
    chunk: usize,
    form: u8,
    function: Arc<Function>,
    job: Job,
    next: u64,
}

impl Feed {
    pub(super) fn new(
        items: Py<PyIterator>,
        chunk: usize,
        star: bool,
        function: Arc<Function>,
        job: Job,
    ) -> Self {
        let form = match (chunk, star) {
            (0, _) => form::ONE,
            (_, false) => form::CHUNK,
            (_, true) => form::STAR_CHUNK,
        };
        Self {
            items,
            chunk,
            form,
            function,
            job,
            next: 0,
        }
    }

    /// Submits tasks while there is room; true when it has submitted the last one. User code may run.
    pub(super) fn run(&mut self, py: Python<'_>, shared: &Arc<Shared>) -> bool {
        while shared.has_room(false) {
            let submitted = match self.take(py) {
                Ok(Some(item)) => {
                    let place = (self.job.clone_ref(py), self.next);
                    let sent = shared.submit(py, place, self.form, &self.function, &item);
                    sent.map_err(|(_, error)| error)
                }
                Ok(None) => {
                    self.end(py, shared);
                    return true;
                }
                Err(error) => Err(error),
            };
            if let Err(error) = submitted {
                // What stops the feed is the end of the task that it stopped at, and there is none behind it.
                self.job
                    .put(py, self.next, Err(error.into_value(py).into_any()));
                self.next += 1;
                self.end(py, shared);
                return true;
            }
            self.next += 1;
        }
        false
    }

    fn end(&self, py: Python<'_>, shared: &Arc<Shared>) {
        self.job.set_tasks(py, self.next);
        shared
            .core
            .with(procession_core::pool::Scheduler::feed_ended);
    }

    fn take<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyAny>>> {
        static ISLICE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let mut items = self.items.bind(py).clone();
        if self.chunk == 0 {
            return items.next().transpose();
        }
        let islice = ISLICE.get_or_try_init(py, || {
            let islice = py.import("itertools")?.getattr(intern!(py, "islice"))?;
            Ok::<_, PyErr>(islice.unbind())
        })?;
        let some = islice.bind(py).call1((items, self.chunk))?;
        let chunk = py.get_type::<PyTuple>().call1((some,))?;
        Ok((chunk.len()? > 0).then_some(chunk))
    }
}

/// A feed whose iterable may be slow or wait for results: it has a thread of its own, which calls `step`.
#[pyclass(frozen, module = "procession._core")]
pub(crate) struct Feeder {
    shared: Arc<Shared>,
    feed: Mutex<Option<Feed>>,
}

impl Feeder {
    pub(super) fn new(shared: Arc<Shared>, feed: Feed) -> Self {
        Self {
            shared,
            feed: Mutex::new(Some(feed)),
        }
    }
}

#[pymethods]
impl Feeder {
    /// Submits tasks while there is room, then waits for room; false when it has submitted the last one.
    fn step(&self, py: Python<'_>) -> PyResult<bool> {
        let Some(mut feed) = lock(&self.feed).take() else {
            return Err(PyStopIteration::new_err(()));
        };
        let over = feed.run(py, &self.shared);
        if over {
            drop(feed);
            self.shared.carry_out(py, false)?;
            self.shared.tell_all()?;
            return Ok(false);
        }
        *lock(&self.feed) = Some(feed);
        self.shared.wake_helper(py, false);
        let room = || {
            self.shared.has_room(true)
                || matches!(self.shared.core.phase(), Phase::Terminated | Phase::Broken)
        };
        while !room() {
            let seen = {
                let mut turn = lock(&self.shared.turn);
                turn.watching += 1;
                turn.changes
            };
            self.shared.wait(py, seen, Deadline::after(LOOK));
            lock(&self.shared.turn).watching -= 1;
        }
        Ok(true)
    }
}
