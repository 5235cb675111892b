//! Whose turn it is to drive a pool, and how the others wait.

use super::drive::Shared;
use super::lock;
use super::result::ApplyResult;
use crate::error::raise;
use procession_core::Deadline;
use pyo3::prelude::*;
use std::collections::VecDeque;
use std::thread::ThreadId;

/// Who drives, and who would like to.
#[derive(Default)]
pub(super) struct Turn {
    pub(super) owner: Option<ThreadId>,
    /// The owner sleeps in the queue of answers.
    pub(super) asleep: bool,
    pub(super) by_helper: bool,
    /// Threads that wait for a result, the owner included unless it is the helper.
    pub(super) waiting: u32,
    /// How many ever did.
    pub(super) visits: u64,
    /// Threads that want to hear of changes and have no use for the turn.
    pub(super) watching: u32,
    /// Counts what may end a wait for the turn.
    pub(super) changes: u64,
    pub(super) calls: VecDeque<Call>,
    /// Callbacks that run now: at most one.
    pub(super) calling: u32,
}

/// A callback to be called by the helper.
pub(super) struct Call {
    pub(super) result: Py<ApplyResult>,
    pub(super) call: Py<PyAny>,
    pub(super) value: Py<PyAny>,
}

impl Shared {
    /// Sleeps until something changes that was not `seen`.
    pub(super) fn wait(&self, py: Python<'_>, seen: u64, until: Deadline) {
        py.detach(|| self.wait_for_change(seen, until));
        self.stay_if_frozen(py);
    }

    fn wait_for_change(&self, seen: u64, until: Deadline) {
        let turn = lock(&self.turn);
        if turn.changes == seen {
            match until.remaining() {
                Some(time) => drop(self.changed.wait_timeout(turn, time)),
                None => drop(self.changed.wait(turn)),
            }
        }
    }

    /// Tells the threads that wait for the turn, if any do, that results were delivered.
    pub(super) fn tell_waiting(&self) {
        let mut turn = lock(&self.turn);
        if turn.waiting > 1 || turn.watching > 0 || (turn.by_helper && turn.waiting > 0) {
            turn.changes += 1;
            self.changed.notify_all();
        }
    }

    /// Tells every thread that waits, the one that sleeps in the queue included.
    pub(super) fn tell_all(&self) -> PyResult<()> {
        let mut turn = lock(&self.turn);
        turn.changes += 1;
        self.changed.notify_all();
        if turn.asleep {
            self.core.nudge().map_err(raise)?;
        }
        Ok(())
    }
}

/// A thread that waits for a result.
pub(super) struct Waiting<'a>(&'a Shared);

impl<'a> Waiting<'a> {
    pub(super) fn begin(shared: &'a Shared) -> Self {
        let mut turn = lock(&shared.turn);
        turn.waiting += 1;
        turn.visits += 1;
        Self(shared)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        lock(&self.0.turn).waiting -= 1;
    }
}

/// The turn, given up when dropped; taken again by a thread that has it, for user code that waits while it decodes.
pub(super) struct Owner<'a> {
    shared: &'a Shared,
    before: Option<ThreadId>,
}

impl<'a> Owner<'a> {
    pub(super) fn begin(
        shared: &'a Shared,
        turn: &mut Turn,
        me: ThreadId,
        by_helper: bool,
    ) -> Self {
        let before = turn.owner.replace(me);
        turn.by_helper = by_helper || (before.is_some() && turn.by_helper);
        Self { shared, before }
    }
}

impl Drop for Owner<'_> {
    fn drop(&mut self) {
        let mut turn = lock(&self.shared.turn);
        turn.owner = self.before;
        if self.before.is_none() {
            turn.by_helper = false;
            if turn.waiting > 0 {
                turn.changes += 1;
                self.shared.changed.notify_all();
            }
        }
    }
}
