//! Who waits for a result drives the pool: takes the answers, delivers everybody's, looks after the workers.
//!
//! One thread at a time has the *turn*. Others that wait for a result wait for it to be delivered, or for the turn.

use super::result::Job;
use super::worker::{SeatName, serve};
use crate::error::{Error, ErrorKind, JoinError, Result, retry};
use crate::function::{Named, Whole};
use crate::launch::{self, Launched, Plan};
use crate::process::StartMethod;
use crate::tree;
use procession_core::pool::{
    Action, Driver, Failure, LOOK, News, Phase, Refused, Submitted, WorkerId,
};
use procession_core::{Carried, Deadline, Error as CoreError, ExitStatus, Taken};
use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Answers delivered before a driver asks again whether it still has to wait.
const BATCH: usize = 256;
const KILL: i32 = 9;

/// What comes back with a task's answer.
#[derive(Debug)]
pub(super) struct Ticket {
    job: Arc<Job>,
    index: u64,
}

/// How a worker ended.
#[derive(Debug, Clone)]
pub(super) enum Exit {
    Ended(ExitStatus),
    /// Somebody else has collected its status.
    Unknown,
    NotStarted(Error),
}

/// A pool, as its results share it.
#[derive(Debug)]
pub(super) struct Shared {
    core: Driver<Ticket, Exit>,
    size: u32,
    /// The process that made it.
    pid: u32,
    turn: Mutex<Turn>,
    changed: Condvar,
    workers: Mutex<BTreeMap<WorkerId, Arc<Launched>>>,
}

#[derive(Debug, Default)]
struct Turn {
    taken: bool,
    /// Who has it sleeps in the queue of answers.
    asleep: bool,
    /// Threads that wait for it.
    waiting: u32,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(super) fn new(workers: u32) -> Result<Arc<Self>> {
        if workers == 0 {
            let text = "make a pool: it needs one worker at least";
            return Err(Error::new(ErrorKind::Misuse, text));
        }
        let arena = tree::arena()?;
        let core = retry(|| Driver::new(arena, workers)).map_err(failed)?;
        let shared = Arc::new(Self {
            core,
            size: workers,
            pid: std::process::id(),
            turn: Mutex::default(),
            changed: Condvar::new(),
            workers: Mutex::default(),
        });
        if let Err(error) = shared.carry_out(true) {
            // Those that were started must not be left behind.
            shared.terminate()?;
            shared.join()?;
            return Err(error);
        }
        Ok(shared)
    }

    pub(super) fn is_mine(&self) -> bool {
        self.pid == std::process::id()
    }

    pub(super) fn size(&self) -> usize {
        self.size as usize
    }

    pub(super) fn pids(&self) -> Vec<u32> {
        lock(&self.workers)
            .values()
            .map(|worker| worker.child.pid())
            .collect()
    }

    /// Tasks that are unanswered.
    pub(super) fn unanswered(&self) -> usize {
        self.core.with(|scheduler| scheduler.unanswered())
    }

    /// Submits a task of a job.
    pub(super) fn submit(
        &self,
        job: &Arc<Job>,
        index: u64,
        call: &[u8],
        names: &Carried,
    ) -> Result<()> {
        let job = job.clone();
        match self.core.submit(Ticket { job, index }, 0, &[call], names) {
            Submitted::Accepted(_) => Ok(()),
            Submitted::Refused(_, refused) => Err(refusal(refused)),
            Submitted::Failed(_, error) => Err(Error::at("submit a task", error)),
        }
    }

    /// Begins a job that submits its tasks bit by bit.
    pub(super) fn feed_began(&self) -> Result<()> {
        self.core
            .with(procession_core::pool::Scheduler::feed_began)
            .map_err(refusal)
    }

    /// Such a job has submitted its last task.
    pub(super) fn feed_ended(&self) {
        self.core.with(procession_core::pool::Scheduler::feed_ended);
    }

    /// Waits until `done`, driving if nobody else does; false once the deadline has passed.
    pub(super) fn drive(&self, done: &dyn Fn() -> bool, deadline: Deadline) -> Result<bool> {
        if done() {
            return Ok(true);
        }
        if !self.is_mine() {
            let text = "wait for a pool: it belongs to the parent process";
            return Err(Error::new(ErrorKind::Misuse, text));
        }
        loop {
            let mut turn = lock(&self.turn);
            if !turn.taken {
                turn.taken = true;
                drop(turn);
                let _turn = Owner(self);
                return self.take_turn(done, deadline);
            }
            if done() {
                return Ok(true);
            }
            if deadline.passed() {
                return Ok(false);
            }
            turn.waiting += 1;
            let time = deadline.at_most(LOOK).remaining().unwrap_or(LOOK);
            let waited = self.changed.wait_timeout(turn, time);
            waited.unwrap_or_else(PoisonError::into_inner).0.waiting -= 1;
        }
    }

    /// Drives, with the turn.
    fn take_turn(&self, done: &dyn Fn() -> bool, deadline: Deadline) -> Result<bool> {
        let mut buffer = Vec::new();
        loop {
            let heard = self.hear_all(&mut buffer, BATCH)?;
            self.carry_out(false)?;
            if heard > 0 {
                self.tell();
            }
            if done() {
                return Ok(true);
            }
            if heard == BATCH {
                continue;
            }
            if self.core.is_time_to_look() {
                self.reap(&mut buffer)?;
                if done() {
                    return Ok(true);
                }
            }
            if deadline.passed() {
                return Ok(false);
            }
            self.sleep(&mut buffer, deadline.at_most(LOOK))?;
        }
    }

    /// Waits for a message from the workers, and delivers it.
    fn sleep(&self, buffer: &mut Vec<u8>, until: Deadline) -> Result<()> {
        buffer.clear();
        lock(&self.turn).asleep = true;
        let taken = self.core.next(buffer, until);
        lock(&self.turn).asleep = false;
        match taken {
            Ok(Some(taken)) => {
                self.hear(taken, buffer)?;
                self.tell();
                Ok(())
            }
            Ok(None) | Err(CoreError::Interrupted) => Ok(()),
            Err(error) => Err(failed(error)),
        }
    }

    /// Delivers messages that are there, at most so many.
    fn hear_all(&self, buffer: &mut Vec<u8>, most: usize) -> Result<usize> {
        for heard in 0..most {
            buffer.clear();
            let Some(taken) = self.core.try_next(buffer).map_err(failed)? else {
                return Ok(heard);
            };
            self.hear(taken, buffer)?;
        }
        Ok(most)
    }

    fn hear(&self, taken: Taken, buffer: &mut Vec<u8>) -> Result<()> {
        let news = self.core.hear(&taken, buffer).map_err(failed)?;
        if let News::Answer(Ticket { job, index }) = news {
            if let Some(extent) = taken.extent {
                extent.append_to(buffer).map_err(failed)?;
            }
            let bytes = buffer
                .get(Driver::<Ticket, Exit>::START..)
                .unwrap_or_default();
            job.put(index, Ok((taken.tag, bytes.into(), taken.carried)));
        }
        Ok(())
    }

    /// Does what the scheduler wants done; `raising`: a worker that can't be started is the caller's error.
    fn carry_out(&self, raising: bool) -> Result<()> {
        if !self.core.has_actions() {
            return Ok(());
        }
        while let Some(action) = self.core.next_action().map_err(failed)? {
            match action {
                Action::Start(worker) => {
                    if let Err(error) = self.start(worker) {
                        self.core
                            .start_failed(worker, Exit::NotStarted(error.clone()));
                        if raising {
                            return Err(error);
                        }
                    }
                }
                Action::Fail(Ticket { job, index }, why) => job.put(index, Err(failure(why))),
                Action::Stop => {}
                Action::Kill => {
                    for worker in lock(&self.workers).values() {
                        worker.signal(KILL)?;
                    }
                }
            }
        }
        self.tell();
        if lock(&self.turn).asleep {
            self.core.nudge().map_err(failed)?;
        }
        Ok(())
    }

    fn start(&self, worker: WorkerId) -> Result<()> {
        let arena = tree::arena()?;
        let seat = retry(|| self.core.seat(arena, worker)).map_err(failed)?;
        let named = Named::of::<Whole, _, _, _>(serve)?;
        let plan = Plan {
            daemon: true,
            ..Plan::of("PoolWorker", StartMethod::Spawn)
        };
        let (launched, _no_pipes) = launch::start(plan, named, &SeatName::of(&seat))?;
        // The worker opens the seat by name. The pool holds its queues and its claim; if the pool is gone by then, the
        // worker finds them closed, and leaves.
        lock(&self.workers).insert(worker, launched);
        Ok(())
    }

    /// Notices workers that are gone: first who, then everything they said, then what died with them.
    fn reap(&self, buffer: &mut Vec<u8>) -> Result<()> {
        let mut ended = Vec::new();
        lock(&self.workers).retain(|worker, launched| {
            let exit = match launched.wait(Deadline::now()) {
                Ok(None) => return true,
                Ok(Some(status)) => Exit::Ended(status),
                Err(_) => Exit::Unknown,
            };
            ended.push((*worker, exit));
            false
        });
        if !self.core.note_ends(ended) {
            return Ok(());
        }
        while self.hear_all(buffer, BATCH)? > 0 {}
        self.core.tell_of_ends().map_err(failed)?;
        let arena = tree::arena()?;
        retry(|| arena.reap()).map_err(failed)?;
        self.carry_out(false)
    }

    pub(super) fn close(&self) -> Result<()> {
        self.core.with(procession_core::pool::Scheduler::close);
        self.carry_out(false)
    }

    pub(super) fn terminate(&self) -> Result<()> {
        self.core.with(procession_core::pool::Scheduler::terminate);
        self.carry_out(false)
    }

    pub(super) fn join(&self) -> Result<()> {
        if self.core.phase() == Phase::Running {
            let text = "join a pool: it is still open";
            return Err(Error::new(ErrorKind::Misuse, text));
        }
        let phase = || self.core.phase();
        self.drive(&|| phase() != Phase::Closing, Deadline::NEVER)?;
        let left = || self.core.with(|scheduler| scheduler.workers());
        while left() > 0 {
            // Asleep for the first of them; all are looked at afterwards. Without one, messages are still to be heard.
            let first = lock(&self.workers).values().next().cloned();
            let looked = match first {
                Some(launched) => launched
                    .wait(Deadline::after(LOOK))
                    .map(|_| Deadline::now()),
                None => Ok(Deadline::after(LOOK)),
            };
            self.core.look_soon();
            // Somebody else collected the status: it is gone all the same.
            let until = looked.unwrap_or_else(|_| Deadline::now());
            self.drive(&|| left() == 0, until)?;
        }
        Ok(())
    }

    /// Tells threads that wait for a result that some were delivered.
    fn tell(&self) {
        if lock(&self.turn).waiting > 0 {
            self.changed.notify_all();
        }
    }
}

/// The turn, given up when dropped.
struct Owner<'a>(&'a Shared);

impl Drop for Owner<'_> {
    fn drop(&mut self) {
        let mut turn = lock(&self.0.turn);
        turn.taken = false;
        turn.asleep = false;
        self.0.changed.notify_all();
    }
}

fn failed(error: CoreError) -> Error {
    Error::at("drive a pool", error)
}

fn refusal(refused: Refused) -> Error {
    let (kind, why) = match refused {
        Refused::Closed => (ErrorKind::Closed, "the pool is closed"),
        Refused::Terminated => (ErrorKind::Terminated, "the pool was terminated"),
        Refused::Broken => (ErrorKind::Broken, "the pool's workers die as they start"),
        Refused::Full => (
            ErrorKind::Exhausted,
            "more than 4 billion tasks are unanswered",
        ),
    };
    Error::new(kind, format!("submit a task: {why}"))
}

/// Why a task has no result.
fn failure(why: Failure<Exit>) -> JoinError {
    match why {
        Failure::Lost(Exit::Ended(status)) => JoinError::Lost(status),
        Failure::Lost(exit) => {
            let text = format!("run a task: its worker is gone{}", exit.text());
            JoinError::Failed(Error::new(ErrorKind::Lost, text))
        }
        Failure::Terminated => {
            let text = "run a task: the pool was terminated";
            JoinError::Failed(Error::new(ErrorKind::Terminated, text))
        }
        Failure::Broken(exit) => {
            let text = format!(
                "run a task: the pool's workers die as they start{}",
                exit.text()
            );
            JoinError::Failed(Error::new(ErrorKind::Broken, text))
        }
    }
}

impl Exit {
    fn text(&self) -> String {
        match self {
            Self::Ended(status) => format!(", the last by {status}"),
            Self::Unknown => String::new(),
            Self::NotStarted(error) => format!(": {error}"),
        }
    }
}
