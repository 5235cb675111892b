//! The helper: a thread that drives when nobody waits, and calls the callbacks.
//!
//! It is Python's own daemon thread, started when a job is submitted that nobody waits for at once, and its loop is in
//! `procession/pool.py`, so that user code never runs above a frame of ours that an interpreter's end would unwind.
//!
//! ```text
//! state    meaning                                               who may leave it, to where
//! GONE     there is no such thread                               a submitter: ABOUT, and starts it
//! ABOUT    it drives, calls back, or will look within 50 ms      the helper: PARKED when idle, GONE at the end
//! PARKED   it sleeps until it is woken                           a submitter: ABOUT, and wakes it
//! ```

use super::drive::Shared;
use super::lock;
use super::result::ApplyResult;
use super::turn::Owner;
use procession_core::Deadline;
use procession_core::pool::{LOOK, Phase};
use pyo3::intern;
use pyo3::prelude::*;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::thread;
use std::time::Duration;

const GONE: u8 = 0;
const ABOUT: u8 = 1;
const PARKED: u8 = 2;

/// How long it stays away while other threads come and go.
const AWAY: Duration = Duration::from_millis(20);
/// How long it lets a thread go on that submits task after task, rather than wrestle with it for the interpreter.
const BURST: Duration = Duration::from_millis(5);
/// Submissions since the last look that make a burst.
const BURST_TASKS: u64 = 16;
/// Looks without anything to do before it parks.
const IDLE_LOOKS: u32 = 5;

/// A pool, without holding the object that the user has: what the helper and the finalizer know.
#[pyclass(frozen, module = "procession._core")]
pub(crate) struct PoolHandle(pub(super) Arc<Shared>);

/// A result, its callback, and what to call that with.
type Called = (Py<ApplyResult>, Py<PyAny>, Py<PyAny>);

enum Next {
    Call(Called),
    Leave,
    Wait(Duration),
    Park,
    Drive,
}

#[pymethods]
impl PoolHandle {
    /// Drives until a callback is to be called, and returns it; `None` when the thread isn't needed any more.
    fn help(&self, py: Python<'_>) -> PyResult<Option<Called>> {
        let helped = self.0.help(py);
        if helped.is_err() {
            self.0.helper.store(GONE, SeqCst);
        }
        helped
    }

    /// Takes no more jobs.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        self.0.core.with(procession_core::pool::Scheduler::close);
        self.0.carry_out(py, false)?;
        self.0.tell_all()?;
        if !self.0.is_idle() {
            self.0.wake_helper(py, false);
        }
        Ok(())
    }

    /// Fails every task that is unanswered.
    fn terminate(&self, py: Python<'_>) -> PyResult<()> {
        if !self.0.is_mine() {
            return Ok(());
        }
        self.0
            .core
            .with(procession_core::pool::Scheduler::terminate);
        self.0.carry_out(py, false)?;
        while let Some(mut feed) = { lock(&self.0.feeds).pop_front() } {
            feed.run(py, &self.0);
        }
        let calls = std::mem::take(&mut lock(&self.0.turn).calls);
        for call in calls {
            call.result.get().done();
        }
        self.0.tell_all()
    }

    /// Ends the pool together with the interpreter.
    fn freeze(&self) -> PyResult<()> {
        self.0.freeze()
    }

    /// Waits until everything is answered and every callback has run.
    fn finish(&self, py: Python<'_>) -> PyResult<()> {
        let finished = || self.0.is_idle() && self.0.helper_is_quiet();
        self.0.drive(py, &finished, Deadline::NEVER).map(drop)
    }

    /// Starts what workers are missing; an exception when one can't be.
    fn populate(&self, py: Python<'_>) -> PyResult<()> {
        self.0.carry_out(py, true)
    }

    /// Looks after the workers now.
    fn maintain(&self, py: Python<'_>) -> PyResult<()> {
        self.0.maintain(py)
    }

    /// Tasks that no worker has taken.
    fn waiting(&self) -> PyResult<u64> {
        self.0.core.waiting().map_err(crate::error::raise)
    }
}

impl Shared {
    pub(super) fn is_idle(&self) -> bool {
        self.core.with(|scheduler| scheduler.is_idle())
    }

    /// No callback runs or waits to.
    fn helper_is_quiet(&self) -> bool {
        let turn = lock(&self.turn);
        turn.calls.is_empty() && turn.calling == 0
    }

    /// Starts the helper if there is none, wakes it if it is parked; `now`: if it just stays away, too.
    pub(super) fn wake_helper(self: &Arc<Self>, py: Python<'_>, now: bool) {
        let state = self.helper.load(SeqCst);
        if state == GONE {
            if self
                .helper
                .compare_exchange(GONE, ABOUT, SeqCst, SeqCst)
                .is_ok()
            {
                let started = Py::new(py, PoolHandle(self.clone())).and_then(|handle| {
                    self.staff
                        .call_method1(py, intern!(py, "start_helper"), (handle,))
                });
                if started.is_err() {
                    // No thread any more, at the interpreter's end: who waits drives.
                    self.helper.store(GONE, SeqCst);
                }
            }
        } else if now || state == PARKED {
            let _ = self.helper.compare_exchange(PARKED, ABOUT, SeqCst, SeqCst);
            lock(&self.turn).changes += 1;
            self.changed.notify_all();
        }
    }

    fn help(self: &Arc<Self>, py: Python<'_>) -> PyResult<Option<Called>> {
        let me = thread::current().id();
        lock(&self.turn).calling = 0;
        self.tell_all()?;
        let mut visits = lock(&self.turn).visits;
        let mut submissions = self.submissions.load(SeqCst);
        let mut idle_looks = 0;
        loop {
            let (seen, next) = self.next_help(&mut visits, &mut submissions, &mut idle_looks);
            let until = match next {
                Next::Call(call) => return Ok(Some(call)),
                Next::Leave => return Ok(None),
                Next::Wait(time) => Deadline::after(time),
                Next::Park => Deadline::NEVER,
                Next::Drive => {
                    self.drive_for_others(py, me)?;
                    continue;
                }
            };
            self.wait(py, seen, until);
        }
    }

    fn next_help(
        &self,
        visits: &mut u64,
        submissions: &mut u64,
        idle_looks: &mut u32,
    ) -> (u64, Next) {
        let mut turn = lock(&self.turn);
        let seen = turn.changes;
        if let Some(call) = turn.calls.pop_front() {
            turn.calling = 1;
            return (seen, Next::Call((call.result, call.call, call.value)));
        }
        let idle = self.is_idle();
        if idle && !matches!(self.core.phase(), Phase::Running | Phase::Closing) {
            self.helper.store(GONE, SeqCst);
            return (seen, Next::Leave);
        }
        let submitted = self.submissions.load(SeqCst);
        let (new_visits, new_tasks) = (turn.visits != *visits, submitted - *submissions);
        (*visits, *submissions) = (turn.visits, submitted);
        if turn.waiting > 0 {
            return (seen, Next::Wait(LOOK));
        }
        if new_visits || turn.owner.is_some() {
            return (seen, Next::Wait(AWAY));
        }
        if new_tasks > BURST_TASKS {
            return (seen, Next::Wait(BURST));
        }
        if !idle {
            *idle_looks = 0;
            return (seen, Next::Drive);
        }
        *idle_looks += 1;
        if *idle_looks < IDLE_LOOKS {
            return (seen, Next::Wait(AWAY));
        }
        *idle_looks = 0;
        self.helper.store(PARKED, SeqCst);
        // A task submitted since the look above found nobody parked.
        if self.is_idle() {
            (seen, Next::Park)
        } else {
            self.helper.store(ABOUT, SeqCst);
            (seen, Next::Drive)
        }
    }

    /// Takes the turn until somebody else wants it or there is something else to do.
    fn drive_for_others(self: &Arc<Self>, py: Python<'_>, me: thread::ThreadId) -> PyResult<()> {
        let mut turn = lock(&self.turn);
        if turn.owner.is_some() {
            return Ok(());
        }
        let owner = Owner::begin(self, &mut turn, me, true);
        drop(turn);
        let enough = || {
            let turn = lock(&self.turn);
            turn.waiting > 0 || !turn.calls.is_empty() || self.is_idle()
        };
        let driven = self.take_turn(py, &enough, Deadline::NEVER);
        drop(owner);
        driven.map(drop)
    }
}
