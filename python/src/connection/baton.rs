//! Whose turn it is: what one thread at a time may have of a connection, and others wait for.

use crate::blocking::{self, FOR_OWNED};
use procession_core::{Deadline, Error};
use pyo3::prelude::*;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// How many forks lie between this process and the first one that used this module.
static FORKS: AtomicU32 = AtomicU32::new(0);

/// After a fork: what a thread of the parent's had taken is the parent's affair.
#[pyfunction]
pub(crate) fn forget_turns() {
    FORKS.fetch_add(1, Ordering::Relaxed);
}

/// Something that one thread at a time takes and gives back. Taken without the interpreter's lock only by whoever waits.
#[derive(Debug)]
pub(super) struct Baton<T> {
    state: Mutex<State<T>>,
    returned: Condvar,
    fresh: fn() -> T,
}

#[derive(Debug)]
struct State<T> {
    here: Option<T>,
    /// `FORKS` of who has it.
    taken: u32,
    waiting: usize,
}

impl<T> State<T> {
    fn take(&mut self) -> Option<T> {
        self.taken = FORKS.load(Ordering::Relaxed);
        self.here.take()
    }
}

impl<T: Send> Baton<T> {
    pub(super) fn new(fresh: fn() -> T) -> Self {
        Self {
            state: Mutex::new(State {
                here: Some(fresh()),
                taken: 0,
                waiting: 0,
            }),
            returned: Condvar::new(),
            fresh,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes it, once whoever has it has given it back.
    pub(super) fn take(&self, py: Python<'_>) -> PyResult<T> {
        let mut state = self.lock();
        if state.here.is_none() && state.taken != FORKS.load(Ordering::Relaxed) {
            // A thread of this process' parent has it, and won't give it back here.
            (state.here, state.waiting) = (Some((self.fresh)()), 0);
        }
        if let Some(value) = state.take() {
            return Ok(value);
        }
        drop(state);
        // No signal interrupts this wait, so its turns are short.
        let taken = blocking::wait(py, Deadline::NEVER, FOR_OWNED, |until| Ok(self.wait(until)))?;
        taken.ok_or_else(|| crate::error::raise(Error::Interrupted))
    }

    fn wait(&self, until: Deadline) -> Option<T> {
        let mut state = self.lock();
        state.waiting += 1;
        while state.here.is_none() && !until.passed() {
            let left = until.remaining().unwrap_or(FOR_OWNED);
            let woken = self.returned.wait_timeout(state, left);
            state = woken.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.waiting -= 1;
        state.take()
    }

    /// Gives it back.
    pub(super) fn put(&self, value: T) {
        let mut state = self.lock();
        state.here = Some(value);
        if state.waiting > 0 {
            self.returned.notify_one();
        }
    }
}
