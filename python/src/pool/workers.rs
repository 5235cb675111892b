//! A pool's workers: started, missed and replaced, as the scheduler wants it.

use super::drive::{BATCH, Shared};
use super::lock;
use super::seat::WorkerSeat;
use crate::blocking;
use crate::error::raise;
use crate::tree;
use procession_core::pool::{Action, Failure, WorkerId};
use pyo3::exceptions::PyException;
use pyo3::intern;
use pyo3::prelude::*;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// How a worker ended.
#[derive(Debug, Clone)]
pub(super) enum Exit {
    Code(i64),
    NotStarted(String),
}

impl Shared {
    /// Does what the scheduler wants done; `raising`: a worker that can't be started is the caller's exception.
    pub(super) fn carry_out(self: &Arc<Self>, py: Python<'_>, raising: bool) -> PyResult<()> {
        if !self.core.has_actions() {
            return Ok(());
        }
        while let Some(action) = self.core.next_action().map_err(raise)? {
            match action {
                Action::Start(worker) => self.start(py, worker, raising)?,
                Action::Fail(ticket, failure) => {
                    self.bytes_out.fetch_sub(ticket.bytes, Ordering::Relaxed);
                    let end = match failure {
                        Failure::Lost(exit) => self.failure(py, "lost", Some(&exit))?,
                        Failure::Terminated => self.failure(py, "terminated", None)?,
                        Failure::Broken(exit) => self.failure(py, "broken", Some(&exit))?,
                    };
                    ticket.job.put(py, ticket.index, Err(end));
                }
                Action::Stop => {}
                Action::Kill => {
                    self.staff.call_method0(py, intern!(py, "kill"))?;
                }
            }
        }
        self.tell_all()
    }

    fn start(self: &Arc<Self>, py: Python<'_>, worker: WorkerId, raising: bool) -> PyResult<()> {
        let arena = tree::arena()?;
        let seat = blocking::call(py, || self.core.seat(arena, worker));
        let started = seat.and_then(|seat| {
            let seat = Py::new(py, WorkerSeat::new(seat))?;
            self.staff
                .call_method1(py, intern!(py, "start"), (worker.0, seat))
        });
        let Err(error) = started else {
            return Ok(());
        };
        self.core
            .start_failed(worker, Exit::NotStarted(error.to_string()));
        if raising || !error.is_instance_of::<PyException>(py) {
            return Err(error);
        }
        Ok(())
    }

    /// The exception for a task that nobody will answer.
    pub(super) fn failure(
        &self,
        py: Python<'_>,
        why: &str,
        exit: Option<&Exit>,
    ) -> PyResult<Py<PyAny>> {
        let (code, text) = match exit {
            Some(Exit::Code(code)) => (Some(*code), None),
            Some(Exit::NotStarted(text)) => (None, Some(text.clone())),
            None => (None, None),
        };
        let fault = lock(&self.fault).clone();
        self.staff
            .call_method1(py, intern!(py, "failure"), (why, code, text, fault))
    }

    /// Notices workers that are gone: first who, then everything they said, then what died with them.
    pub(super) fn reap(self: &Arc<Self>, py: Python<'_>, buffer: &mut Vec<u8>) -> PyResult<()> {
        let gone: Vec<(u32, i64)> = self
            .staff
            .call_method0(py, intern!(py, "gone"))?
            .extract(py)?;
        let ended = gone
            .into_iter()
            .map(|(worker, code)| (WorkerId(worker), Exit::Code(code)));
        if !self.core.note_ends(ended) {
            return Ok(());
        }
        while self.hear_all(py, buffer, BATCH)? > 0 {}
        self.core.tell_of_ends().map_err(raise)?;
        self.carry_out(py, false)
    }

    /// Looks after the workers now.
    pub(super) fn maintain(self: &Arc<Self>, py: Python<'_>) -> PyResult<()> {
        self.core.look_soon();
        self.look(py)
    }
}
