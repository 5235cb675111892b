//! Whose turn it is: what one thread at a time may have of a connection, and others wait for.

use crate::blocking::FOR_OWNED;
use pyo3::prelude::*;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, Thread};

/// How many forks lie between this process and the first one that used this module.
static FORKS: AtomicU32 = AtomicU32::new(0);

/// After a fork: what a thread of the parent's had taken is the parent's affair.
#[pyfunction]
pub(crate) fn forget_turns() {
    FORKS.fetch_add(1, Ordering::Relaxed);
}

/// Something that one thread at a time takes and gives back.
#[derive(Debug)]
pub(super) struct Baton<T> {
    state: Mutex<State<T>>,
    fresh: fn() -> T,
}

#[derive(Debug)]
struct State<T> {
    here: Option<T>,
    /// `FORKS` of who has it.
    taken: u32,
    /// Who sleeps until it is given back, in the order in which they came.
    waiting: VecDeque<Thread>,
}

impl<T> State<T> {
    /// Takes it, if it is here.
    fn take(&mut self, fresh: fn() -> T) -> Option<T> {
        let forks = FORKS.load(Ordering::Relaxed);
        if self.here.is_none() && self.taken != forks {
            // A thread of this process' parent has it, and won't give it back here.
            self.here = Some(fresh());
            self.waiting.clear();
        }
        self.taken = forks;
        self.here.take()
    }

    fn forget(&mut self, who: &Thread) {
        self.waiting.retain(|thread| thread.id() != who.id());
    }

    fn wake_next(&self) {
        if let Some(next) = self.waiting.front() {
            next.unpark();
        }
    }
}

impl<T: Send> Baton<T> {
    pub(super) fn new(fresh: fn() -> T) -> Self {
        Self {
            state: Mutex::new(State {
                here: Some(fresh()),
                taken: 0,
                waiting: VecDeque::new(),
            }),
            fresh,
        }
    }

    /// Under the interpreter's lock, never beside it: so no fork of Python's finds it locked.
    fn lock(&self, _py: Python<'_>) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes it, once whoever has it has given it back.
    pub(super) fn take(&self, py: Python<'_>) -> PyResult<T> {
        let taken = self.lock(py).take(self.fresh);
        taken.map_or_else(|| self.wait(py), Ok)
    }

    #[cold]
    fn wait(&self, py: Python<'_>) -> PyResult<T> {
        let me = thread::current();
        self.lock(py).waiting.push_back(me.clone());
        loop {
            // No signal interrupts this, so it is short.
            py.detach(|| thread::park_timeout(FOR_OWNED));
            let signals = py.check_signals();
            let mut state = self.lock(py);
            if let Err(raised) = signals {
                state.forget(&me);
                if state.here.is_some() {
                    state.wake_next();
                }
                return Err(raised);
            }
            if let Some(value) = state.take(self.fresh) {
                state.forget(&me);
                return Ok(value);
            }
        }
    }

    /// Gives it back.
    pub(super) fn put(&self, py: Python<'_>, value: T) {
        let mut state = self.lock(py);
        state.here = Some(value);
        state.wake_next();
    }
}
