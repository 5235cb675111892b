//! Who waits for a result drives the pool: takes the answers, delivers everybody's, looks after workers.
//!
//! One thread at a time has the *turn*. Others that wait for a result wait for it to be delivered, or for the turn.
//! When nobody waits and work is outstanding, the helper thread takes the turn (`help.rs`); it gives it up as soon as
//! somebody waits, and stays away while threads come and go. Callbacks run in the helper only: one at a time, never in
//! a thread of the user's, as in the standard library.
//!
//! Everything here runs with the interpreter held but for the waits, so no lock of ours is held across a fork.

use super::feed::Feed;
use super::lock;
use super::result::{ApplyResult, End, Job};
use super::task::Function;
use super::turn::{Call, Owner, Turn, Waiting};
use super::workers::Exit;
use crate::blocking;
use crate::error::raise;
use crate::tree;
use crate::value::{Source, Value, kind, malformed};
use procession_core::pool::{Driver, LOOK, News, Phase, Refused, Submitted};
use procession_core::{Deadline, Error, Taken};
use pyo3::exceptions::{PyException, PyRuntimeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::thread::{self, ThreadId};

/// Answers delivered before a driver asks again whether it still has to wait.
pub(super) const BATCH: usize = 256;
/// Fed jobs submit until so many tasks are unanswered, and go on when half of them are answered.
const WINDOW_TASKS: usize = 4096;
/// The same in bytes: more would only fill pages that a later message could have used again while they are warm.
const WINDOW_BYTES: u64 = 8 << 20;

thread_local! {
    /// Where answers are copied to before they are decoded: taken while in use.
    static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Processes of which this is a copy made by fork: a pool belongs to the process that made it.
static FORKS: AtomicU32 = AtomicU32::new(0);

/// This process is a new copy of another one: its pools are the other's.
pub(super) fn forked() {
    FORKS.fetch_add(1, Ordering::Relaxed);
}

/// What comes back with a task's answer.
pub(super) struct Ticket {
    pub(super) job: Job,
    pub(super) index: u64,
    pub(super) bytes: u64,
}

/// A pool, as its results, its feeds and its helper share it.
pub(super) struct Shared {
    pub(super) core: Driver<Ticket, Exit>,
    /// Python's part: starts workers, knows which are gone, makes exceptions.
    pub(super) staff: Py<PyAny>,
    pub(super) turn: Mutex<Turn>,
    pub(super) changed: Condvar,
    pub(super) feeds: Mutex<VecDeque<Feed>>,
    pub(super) size: u32,
    /// Submissions so far, for the helper to see whether there are new ones.
    pub(super) submissions: AtomicU64,
    /// What the helper is at: see `help.rs`.
    pub(super) helper: AtomicU8,
    pub(super) bytes_out: AtomicU64,
    last_function: Mutex<Option<Arc<Function>>>,
    /// What an initializer failed with.
    pub(super) fault: Mutex<Option<String>>,
    forks: u32,
    /// The interpreter ends; this thread ends it.
    frozen: OnceLock<ThreadId>,
}

impl Shared {
    pub(super) fn new(py: Python<'_>, staff: Py<PyAny>, size: u32) -> PyResult<Arc<Self>> {
        let arena = tree::arena()?;
        Ok(Arc::new(Self {
            core: blocking::call(py, || Driver::new(arena, size))?,
            staff,
            turn: Mutex::default(),
            changed: Condvar::new(),
            feeds: Mutex::default(),
            size,
            submissions: AtomicU64::new(0),
            helper: AtomicU8::new(0),
            bytes_out: AtomicU64::new(0),
            last_function: Mutex::new(None),
            fault: Mutex::default(),
            forks: FORKS.load(Ordering::Relaxed),
            frozen: OnceLock::new(),
        }))
    }

    pub(super) fn is_mine(&self) -> bool {
        self.forks == FORKS.load(Ordering::Relaxed)
    }

    /// The function as tasks carry it; the last named one is kept. An error if workers wouldn't find it.
    pub(super) fn function(&self, object: &Bound<'_, PyAny>) -> PyResult<Arc<Function>> {
        if let Some(function) = &*lock(&self.last_function)
            && function.is(object)
        {
            return Ok(function.clone());
        }
        let py = object.py();
        self.staff
            .call_method1(py, intern!(py, "check"), (object,))?;
        let function = Arc::new(Function::new(object));
        if function.is_named() {
            let old = lock(&self.last_function).replace(function.clone());
            drop(old);
        }
        Ok(function)
    }

    /// Submits a task. An error is the pool's, for the caller; one of the task itself becomes its answer.
    pub(super) fn submit(
        &self,
        py: Python<'_>,
        (job, index): (Job, u64),
        form: u8,
        function: &Function,
        rest: &Bound<'_, PyAny>,
    ) -> Result<(), (Job, PyErr)> {
        let value = match function.payload(rest) {
            Ok(value) => value,
            Err(error) if error.is_instance_of::<PyException>(py) => {
                job.put(py, index, Err(error.into_value(py).into_any()));
                return Ok(());
            }
            Err(error) => return Err((job, error)),
        };
        let (tag, names) = (form | value.kind() << 4, value.names());
        let sent = value.parts(py, function.head(), |parts| {
            let length = parts.iter().map(|part| part.len()).sum();
            let bytes = length as u64;
            let ticket = Ticket { job, index, bytes };
            self.bytes_out.fetch_add(bytes, Ordering::Relaxed);
            blocking::copying(py, length, || self.core.submit(ticket, tag, parts, names))
        });
        drop::<Value<'_>>(value);
        let (ticket, error) = match sent {
            Submitted::Accepted(_) => {
                self.submissions.fetch_add(1, Ordering::Relaxed);
                return Ok(());
            }
            Submitted::Refused(ticket, refused) => (ticket, self.refusal(py, refused)),
            Submitted::Failed(ticket, error) => (ticket, raise(error)),
        };
        self.bytes_out.fetch_sub(ticket.bytes, Ordering::Relaxed);
        Err((ticket.job, error))
    }

    pub(super) fn refusal(&self, py: Python<'_>, refused: Refused) -> PyErr {
        match refused {
            Refused::Closed => PyValueError::new_err("Pool not running"),
            Refused::Full => PyRuntimeError::new_err("more than 4 billion tasks are unanswered"),
            Refused::Terminated => self.failure_error(py, "terminated"),
            Refused::Broken => self.failure_error(py, "broken"),
        }
    }

    fn failure_error(&self, py: Python<'_>, why: &str) -> PyErr {
        self.failure(py, why, None).map_or_else(
            |error| error,
            |error| PyErr::from_value(error.into_bound(py)),
        )
    }

    /// Whether fed jobs may submit more: below the whole window, or below half of it to begin again.
    pub(super) fn has_room(&self, begin_again: bool) -> bool {
        let part = if begin_again { 2 } else { 1 };
        let unanswered = self.core.with(|scheduler| scheduler.unanswered());
        // Two tasks for each worker in any case, or the workers would wait for each other.
        unanswered < 2 * self.size as usize
            || (unanswered < WINDOW_TASKS / part
                && self.bytes_out.load(Ordering::Relaxed) < WINDOW_BYTES / part as u64)
    }

    /// Waits until `done`, driving if nobody else does; false once the deadline has passed.
    pub(super) fn drive(
        self: &Arc<Self>,
        py: Python<'_>,
        done: &dyn Fn() -> bool,
        deadline: Deadline,
    ) -> PyResult<bool> {
        if done() {
            return Ok(true);
        }
        if !self.is_mine() {
            return Err(PyRuntimeError::new_err(
                "the pool belongs to the parent process",
            ));
        }
        let _waiting = Waiting::begin(self);
        let me = thread::current().id();
        loop {
            let seen = {
                let mut turn = lock(&self.turn);
                if turn.owner.is_none() || turn.owner == Some(me) {
                    let _turn = Owner::begin(self, &mut turn, me, false);
                    drop(turn);
                    return self.take_turn(py, done, deadline);
                }
                if turn.asleep && turn.by_helper {
                    self.core.nudge().map_err(raise)?;
                }
                turn.changes
            };
            if deadline.passed() {
                return Ok(false);
            }
            self.wait(py, seen, deadline.at_most(LOOK));
            py.check_signals()?;
            if done() {
                return Ok(true);
            }
        }
    }

    /// Delivers what is there, without waiting.
    pub(super) fn look(self: &Arc<Self>, py: Python<'_>) -> PyResult<()> {
        let me = thread::current().id();
        let mut turn = lock(&self.turn);
        if turn.owner.is_some() || !self.is_mine() {
            return Ok(());
        }
        let owner = Owner::begin(self, &mut turn, me, false);
        drop(turn);
        let looked = self.take_turn(py, &|| false, Deadline::now());
        drop(owner);
        looked.map(drop)
    }

    /// Drives, with the turn, until `done`; false once the deadline has passed.
    pub(super) fn take_turn(
        self: &Arc<Self>,
        py: Python<'_>,
        done: &dyn Fn() -> bool,
        deadline: Deadline,
    ) -> PyResult<bool> {
        let mut buffer = BUFFER.take();
        let driven = self.drive_with(py, &mut buffer, done, deadline);
        BUFFER.set(buffer);
        driven
    }

    fn drive_with(
        self: &Arc<Self>,
        py: Python<'_>,
        buffer: &mut Vec<u8>,
        done: &dyn Fn() -> bool,
        deadline: Deadline,
    ) -> PyResult<bool> {
        loop {
            let heard = self.hear_all(py, buffer, BATCH)?;
            self.carry_out(py, false)?;
            self.feed(py)?;
            if heard > 0 {
                self.tell_waiting();
            }
            if done() {
                return Ok(true);
            }
            if heard == BATCH {
                continue;
            }
            if self.core.is_time_to_look() {
                self.reap(py, buffer)?;
                if done() {
                    return Ok(true);
                }
            }
            if deadline.passed() {
                return Ok(false);
            }
            self.sleep(py, buffer, deadline.at_most(LOOK))?;
        }
    }

    /// Waits for a message from the workers and delivers it.
    fn sleep(
        self: &Arc<Self>,
        py: Python<'_>,
        buffer: &mut Vec<u8>,
        until: Deadline,
    ) -> PyResult<()> {
        buffer.clear();
        lock(&self.turn).asleep = true;
        let taken = py.detach(|| self.core.next(buffer, until));
        self.stay_if_frozen(py);
        lock(&self.turn).asleep = false;
        match taken {
            Ok(Some(taken)) => {
                self.hear(py, &taken, buffer)?;
                self.tell_waiting();
                Ok(())
            }
            Ok(None) => Ok(()),
            Err(Error::Interrupted) => py.check_signals(),
            Err(error) => Err(raise(error)),
        }
    }

    /// Delivers messages that are there, at most so many.
    pub(super) fn hear_all(
        self: &Arc<Self>,
        py: Python<'_>,
        buffer: &mut Vec<u8>,
        most: usize,
    ) -> PyResult<usize> {
        for heard in 0..most {
            buffer.clear();
            let Some(taken) = self.core.try_next(buffer).map_err(raise)? else {
                return Ok(heard);
            };
            self.hear(py, &taken, buffer)?;
        }
        Ok(most)
    }

    fn hear(&self, py: Python<'_>, taken: &Taken, buffer: &[u8]) -> PyResult<()> {
        let source = Source {
            buffer,
            extent: taken.extent.as_ref(),
        };
        let start = Driver::<Ticket, Exit>::START;
        match self.core.hear(taken, buffer).map_err(raise)? {
            News::Answer(ticket) => {
                self.bytes_out.fetch_sub(ticket.bytes, Ordering::Relaxed);
                let end = self.read(py, &source, taken.tag, start);
                ticket.job.put(py, ticket.index, end);
            }
            News::Faulty(_) => {
                let text = source.bytes(py, start)?;
                let text = String::from_utf8_lossy(text.as_bytes()).into_owned();
                *lock(&self.fault) = Some(text);
            }
            News::Nothing => {}
        }
        Ok(())
    }

    /// What an answer says; if it can't be read, why.
    fn read(&self, py: Python<'_>, source: &Source<'_>, tag: u8, start: usize) -> End {
        let read = if tag == kind::RAISED {
            self.read_raised(py, source, start)
        } else {
            source
                .decode(py, tag, start)
                .map(|value| Ok(value.unbind()))
        };
        read.unwrap_or_else(|error| Err(error.into_value(py).into_any()))
    }

    /// An exception: 4 bytes length, the remote traceback, the exception's pickle.
    fn read_raised(&self, py: Python<'_>, source: &Source<'_>, start: usize) -> PyResult<End> {
        let bytes = source.bytes(py, start)?;
        let (length, rest) = bytes
            .as_bytes()
            .split_first_chunk()
            .ok_or_else(|| malformed(start))?;
        let length = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX);
        let (text, pickle) = rest
            .split_at_checked(length)
            .ok_or_else(|| malformed(start))?;
        let text = String::from_utf8_lossy(text);
        let raised = self
            .staff
            .call_method1(py, intern!(py, "raised"), (text, pickle))?;
        Ok(Err(raised))
    }

    /// Lets feeds submit more, if there is room for it.
    fn feed(self: &Arc<Self>, py: Python<'_>) -> PyResult<()> {
        if lock(&self.feeds).is_empty() || !self.has_room(true) {
            return Ok(());
        }
        let feed = lock(&self.feeds).pop_front();
        if let Some(mut feed) = feed {
            if !feed.run(py, self) {
                lock(&self.feeds).push_back(feed);
            }
            self.carry_out(py, false)?;
        }
        Ok(())
    }

    /// Has the helper call a callback; the result may be asked for after that.
    pub(super) fn call_back(
        self: &Arc<Self>,
        py: Python<'_>,
        result: Py<ApplyResult>,
        call: Py<PyAny>,
        value: Py<PyAny>,
    ) {
        if self.core.phase() == Phase::Terminated {
            result.get().done();
            return;
        }
        lock(&self.turn).calls.push_back(Call {
            result,
            call,
            value,
        });
        self.wake_helper(py, true);
    }

    /// The interpreter ends. Nobody is told any more: a thread that waits at this moment is a daemon, and would only
    /// print its exception into the end of the others. It waits on, as in the standard library.
    pub(super) fn freeze(&self) -> PyResult<()> {
        let _ = self.frozen.set(thread::current().id());
        self.core.with(procession_core::pool::Scheduler::terminate);
        let mut kept = Vec::new();
        while let Some(action) = self.core.next_action().map_err(raise)? {
            kept.push(action);
        }
        // Their results are asked for by nobody, and user code would run to drop them.
        std::mem::forget(kept);
        self.tell_all()
    }

    /// Waits for ever if the interpreter ends, unless in the thread that ends it.
    pub(super) fn stay_if_frozen(&self, py: Python<'_>) {
        let ends = |by: &ThreadId| *by != thread::current().id();
        if self.frozen.get().is_some_and(ends) {
            py.detach(|| {
                loop {
                    thread::park();
                }
            });
        }
    }
}
