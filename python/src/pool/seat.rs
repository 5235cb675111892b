//! A worker's loop: take a task, call its function, answer.

use super::lock;
use super::task::{FUNCTION, FUNCTION_BYTES, Known, form};
use crate::blocking;
use crate::error::raise;
use crate::tree;
use crate::value::{self, Source, kind, malformed};
use procession_core::pool::{Seat, Task, TaskId, WorkerId};
use procession_core::{Carried, Deadline, Error, Naming, ObjectName};
use pyo3::exceptions::PyException;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyTuple};
use std::sync::Mutex;

/// A worker's place in a pool; goes to the worker that is started, and nowhere else.
#[pyclass(frozen, module = "procession._core")]
pub(crate) struct WorkerSeat {
    seat: Seat,
    known: Mutex<Known>,
}

impl WorkerSeat {
    pub(super) fn new(seat: Seat) -> Self {
        Self {
            seat,
            known: Mutex::default(),
        }
    }
}

#[pymethods]
impl WorkerSeat {
    /// Says that tasks are taken from now on.
    fn ready(&self) -> PyResult<()> {
        self.seat.ready().map_err(raise)
    }

    /// Says why the worker can't start.
    fn faulty(&self, why: &str) -> PyResult<()> {
        self.seat.faulty(why).map_err(raise)
    }

    /// Takes and answers tasks until none will come, or `most` were answered; says how many.
    ///
    /// `failed(exception)` and `unsendable(error, value)` return the text of a traceback and a pickle, for the answer.
    fn serve(
        &self,
        py: Python<'_>,
        most: Option<u64>,
        failed: &Bound<'_, PyAny>,
        unsendable: &Bound<'_, PyAny>,
    ) -> PyResult<u64> {
        let mut buffer = Vec::new();
        let mut served = 0;
        while most.is_none_or(|most| served < most) {
            buffer.clear();
            let Some(task) = self.take(py, &mut buffer)? else {
                return Ok(served);
            };
            let outcome = self.run(py, &task, &buffer);
            self.answer(py, task.id, outcome, failed, unsendable)?;
            served += 1;
        }
        self.seat.retire().map_err(raise)?;
        Ok(served)
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyTuple>> {
        let py = slf.py();
        let seat = &slf.get().seat;
        let mut names = Vec::new();
        for name in seat.names() {
            if !tree::given(py, name)? {
                return Err(raise(Error::Misuse {
                    what: "a worker's seat goes to the worker that is being started only",
                }));
            }
            names.push((name.offset, name.serial));
        }
        let open = py.import("procession._core")?.getattr("open_seat")?;
        (open, (seat.worker().0, names)).into_pyobject(py)
    }
}

/// What the pickle of a seat calls.
#[pyfunction]
pub(crate) fn open_seat(
    py: Python<'_>,
    worker: u32,
    names: Vec<(u64, u64)>,
) -> PyResult<WorkerSeat> {
    let names: Vec<ObjectName> = names
        .into_iter()
        .map(|(offset, serial)| ObjectName { offset, serial })
        .collect();
    let names: [ObjectName; 3] = names.try_into().map_err(|_| malformed(0))?;
    let arena = tree::arena()?;
    let seat = blocking::call(py, || Seat::open(arena, WorkerId(worker), names))?;
    Ok(WorkerSeat::new(seat))
}

impl WorkerSeat {
    fn take(&self, py: Python<'_>, buffer: &mut Vec<u8>) -> PyResult<Option<Task>> {
        loop {
            match py.detach(|| self.seat.take(buffer, Deadline::NEVER)) {
                Ok(Some(task)) => return Ok(Some(task)),
                Ok(None) => {}
                Err(Error::Interrupted) => py.check_signals()?,
                Err(Error::Closed { .. }) => return Ok(None),
                Err(error) => return Err(raise(error)),
            }
        }
    }

    fn run<'py>(&self, py: Python<'py>, task: &Task, buffer: &[u8]) -> PyResult<Bound<'py, PyAny>> {
        let source = Source {
            buffer,
            extent: task.extent.as_ref(),
        };
        let mut length = [0; 4];
        if !source.read(FUNCTION, &mut length)? {
            return Err(malformed(FUNCTION));
        }
        let length = usize::try_from(u32::from_le_bytes(length)).unwrap_or(usize::MAX);
        let payload = source.decode(py, task.tag >> 4, FUNCTION_BYTES.saturating_add(length))?;
        let (function, payload) = if length == 0 {
            payload.extract::<(Bound<'py, PyAny>, Bound<'py, PyAny>)>()?
        } else {
            (self.function(py, &source, length)?, payload)
        };
        call(task.tag & 0xF, &function, payload)
    }

    fn function<'py>(
        &self,
        py: Python<'py>,
        source: &Source<'_>,
        length: usize,
    ) -> PyResult<Bound<'py, PyAny>> {
        let mut known = std::mem::take(&mut *lock(&self.known));
        let found = match source.extent {
            None => {
                let pickle = source.buffer.get(FUNCTION_BYTES..FUNCTION_BYTES + length);
                known.find(py, pickle.ok_or_else(|| malformed(FUNCTION_BYTES))?)
            }
            Some(_) => {
                let mut pickle = vec![0; length];
                source.read(FUNCTION_BYTES, &mut pickle)?;
                known.find(py, &pickle)
            }
        };
        *lock(&self.known) = known;
        found
    }

    fn answer(
        &self,
        py: Python<'_>,
        task: TaskId,
        outcome: PyResult<Bound<'_, PyAny>>,
        failed: &Bound<'_, PyAny>,
        unsendable: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let error: (Bound<'_, PyAny>, Carried) = match outcome {
            Ok(object) => {
                let sent = value::encode(&object).and_then(|value| {
                    value.parts(py, &[], |parts| {
                        self.send(py, task, value.kind(), parts, value.names())
                    })
                });
                match sent {
                    Err(error) if error.is_instance_of::<PyException>(py) => {
                        Naming::during(|| unsendable.call1((error.into_value(py), object)))?
                    }
                    sent => return sent,
                }
            }
            Err(error) if error.is_instance_of::<PyException>(py) => {
                Naming::during(|| failed.call1((error.into_value(py),)))?
            }
            Err(error) => return Err(error),
        };
        let (error, names) = error;
        let (text, pickle): (String, Vec<u8>) = error.extract()?;
        let length = u32::try_from(text.len())
            .map_err(|_| malformed(0))?
            .to_le_bytes();
        let parts: [&[u8]; 3] = [&length, text.as_bytes(), &pickle];
        self.send(py, task, kind::RAISED, &parts, &names)
    }

    fn send(
        &self,
        py: Python<'_>,
        task: TaskId,
        tag: u8,
        parts: &[&[u8]],
        names: &Carried,
    ) -> PyResult<()> {
        let bytes: usize = parts.iter().map(|part| part.len()).sum();
        let answer = || self.seat.answer(task, tag, parts, names);
        loop {
            match blocking::copying(py, bytes, answer) {
                Err(Error::Interrupted) => py.check_signals()?,
                sent => return sent.map_err(raise),
            }
        }
    }
}

/// Calls the function in the way that the task says.
fn call<'py>(
    how: u8,
    function: &Bound<'py, PyAny>,
    payload: Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyAny>> {
    let py = function.py();
    match how {
        form::ONE => function.call1((payload,)),
        form::ARGUMENTS => function.call1(arguments(payload)?),
        form::KEYWORDS => {
            let (args, kwds): (Bound<'py, PyAny>, Bound<'py, PyAny>) = payload.extract()?;
            let keywords = PyDict::new(py);
            keywords.update(kwds.cast()?)?;
            function.call(arguments(args)?, Some(&keywords))
        }
        form::CHUNK | form::STAR_CHUNK => {
            let (module, name) = if how == form::CHUNK {
                ("builtins", "map")
            } else {
                ("itertools", "starmap")
            };
            let results = py
                .import(module)?
                .getattr(name)?
                .call1((function, payload))?;
            py.get_type::<PyList>().call1((results,))
        }
        _ => Err(malformed(0)),
    }
}

fn arguments(payload: Bound<'_, PyAny>) -> PyResult<Bound<'_, PyTuple>> {
    match payload.cast_into_exact::<PyTuple>() {
        Ok(arguments) => Ok(arguments),
        Err(other) => {
            let other = other.into_inner();
            Ok(other
                .py()
                .get_type::<PyTuple>()
                .call1((other,))?
                .cast_into()?)
        }
    }
}
