//! Who waits for a result drives the pool: takes the answers, delivers everybody's, looks after workers.
//!
//! One thread at a time has the *turn*. Others that wait for a result wait for it to be delivered, or for the turn.
//! When nobody waits and work is outstanding, the helper thread takes the turn (`help.rs`); it gives it up as soon as
//! somebody waits, and stays away while threads come and go. Callbacks run in the helper only: one at a time, never in
//! a thread of the user's, as in the standard library.
//!
//! Everything here runs with the interpreter held but for the waits, so no lock of ours is held across a fork.

use super::feed::Feed;
use super::result::{ApplyResult, End, Job};
use super::task::Function;
use super::{lock, seat::WorkerSeat};
use crate::error::raise;
use crate::tree;
use crate::value::{COPY_ATTACHED_MAX, Source, Value, kind, malformed};
use procession_core::pool::{Action, Driver, Failure, News, Phase, Refused, Submitted, WorkerId};
use procession_core::{Deadline, Error, Taken};
use pyo3::exceptions::{PyException, PyRuntimeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

/// How often a thread that waits looks after the workers, and a thread that waits for another looks up.
pub(super) const LOOK: Duration = Duration::from_millis(50);
/// Answers delivered before a driver asks again whether it still has to wait.
const BATCH: usize = 256;
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

/// How a worker ended.
#[derive(Debug, Clone)]
pub(super) enum Exit {
    Code(i64),
    NotStarted(String),
}

/// What comes back with a task's answer.
pub(super) struct Ticket {
    pub(super) job: Job,
    pub(super) index: u64,
    bytes: u64,
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
    bytes_out: AtomicU64,
    last_function: Mutex<Option<Arc<Function>>>,
    /// Workers that are gone, to be reported once everything they said was heard.
    gone: Mutex<Vec<(u32, i64)>>,
    /// What an initializer failed with.
    fault: Mutex<Option<String>>,
    forks: u32,
    /// The interpreter ends; this thread ends it.
    frozen: OnceLock<ThreadId>,
}

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
    last_look: Option<Instant>,
}

/// A callback to be called by the helper.
pub(super) struct Call {
    pub(super) result: Py<ApplyResult>,
    pub(super) call: Py<PyAny>,
    pub(super) value: Py<PyAny>,
}

impl Shared {
    pub(super) fn new(staff: Py<PyAny>, size: u32) -> PyResult<Arc<Self>> {
        Ok(Arc::new(Self {
            core: Driver::new(tree::arena()?, size).map_err(raise)?,
            staff,
            turn: Mutex::default(),
            changed: Condvar::new(),
            feeds: Mutex::default(),
            size,
            submissions: AtomicU64::new(0),
            helper: AtomicU8::new(0),
            bytes_out: AtomicU64::new(0),
            last_function: Mutex::new(None),
            gone: Mutex::default(),
            fault: Mutex::default(),
            forks: FORKS.load(Ordering::Relaxed),
            frozen: OnceLock::new(),
        }))
    }

    pub(super) fn is_mine(&self) -> bool {
        self.forks == FORKS.load(Ordering::Relaxed)
    }

    /// The function as tasks carry it; the last named one is kept.
    pub(super) fn function(&self, object: &Bound<'_, PyAny>) -> Arc<Function> {
        if let Some(function) = &*lock(&self.last_function)
            && function.is(object)
        {
            return function.clone();
        }
        let function = Arc::new(Function::new(object));
        if function.is_named() {
            let old = lock(&self.last_function).replace(function.clone());
            drop(old);
        }
        function
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
        let tag = form | value.kind() << 4;
        let sent = value.parts(py, function.head(), |parts| {
            let bytes = parts.iter().map(|part| part.len() as u64).sum();
            let ticket = Ticket { job, index, bytes };
            self.bytes_out.fetch_add(bytes, Ordering::Relaxed);
            if bytes <= COPY_ATTACHED_MAX as u64 {
                self.core.submit(ticket, tag, parts)
            } else {
                py.detach(|| self.core.submit(ticket, tag, parts))
            }
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
            if self.is_time_to_look() {
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
    fn hear_all(
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
        let started = self
            .core
            .seat(tree::arena()?, worker)
            .map_err(raise)
            .and_then(|seat| {
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
    fn failure(&self, py: Python<'_>, why: &str, exit: Option<&Exit>) -> PyResult<Py<PyAny>> {
        let (code, text) = match exit {
            Some(Exit::Code(code)) => (Some(*code), None),
            Some(Exit::NotStarted(text)) => (None, Some(text.clone())),
            None => (None, None),
        };
        let fault = lock(&self.fault).clone();
        self.staff
            .call_method1(py, intern!(py, "failure"), (why, code, text, fault))
    }

    fn is_time_to_look(&self) -> bool {
        let now = Instant::now();
        let mut turn = lock(&self.turn);
        let due = turn
            .last_look
            .is_none_or(|then| now.duration_since(then) >= LOOK);
        if due {
            turn.last_look = Some(now);
        }
        due
    }

    /// Notices workers that are gone: first who, then everything they said, then what died with them.
    pub(super) fn reap(self: &Arc<Self>, py: Python<'_>, buffer: &mut Vec<u8>) -> PyResult<()> {
        let gone: Vec<(u32, i64)> = self
            .staff
            .call_method0(py, intern!(py, "gone"))?
            .extract(py)?;
        lock(&self.gone).extend(gone);
        if lock(&self.gone).is_empty() {
            return Ok(());
        }
        while self.hear_all(py, buffer, BATCH)? > 0 {}
        if self.core.has_news().map_err(raise)? {
            // A worker is inside the queue, stopped perhaps. Answers are never overtaken by the news of a death.
            return Ok(());
        }
        let gone = std::mem::take(&mut *lock(&self.gone));
        for (worker, code) in gone {
            self.core
                .exited(WorkerId(worker), Exit::Code(code))
                .map_err(raise)?;
        }
        self.carry_out(py, false)
    }

    /// Looks after the workers now.
    pub(super) fn maintain(self: &Arc<Self>, py: Python<'_>) -> PyResult<()> {
        lock(&self.turn).last_look = None;
        self.look(py)
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
    fn stay_if_frozen(&self, py: Python<'_>) {
        let ends = |by: &ThreadId| *by != thread::current().id();
        if self.frozen.get().is_some_and(ends) {
            py.detach(|| {
                loop {
                    thread::park();
                }
            });
        }
    }

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
    fn tell_waiting(&self) {
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
struct Waiting<'a>(&'a Shared);

impl<'a> Waiting<'a> {
    fn begin(shared: &'a Shared) -> Self {
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
