//! The pool's own end: the scheduler's decisions carried to the queues, and news from the queues to the scheduler.

use super::seat::{FAULTY, ID_BYTES, NOTICES, NUDGE, READY, RETIRED, Seat, send};
use super::{Action, Limits, Phase, Refused, Scheduler, TaskId, WorkerId};
use crate::queue::Taken;
use crate::shm::Arena;
use crate::{Carried, Claim, Deadline, Error, Queue, Result};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How often whoever drives a pool looks after its workers.
pub const LOOK: Duration = Duration::from_millis(50);

/// A pool's queues and its scheduler. `T` comes back with a task's answer, `X` says how a worker ended.
///
/// Any thread may call it; its lock is never held while a call waits, so [`submit`](Self::submit) and
/// [`hear`](Self::hear) cost a message each. Who calls carries out the [actions](Self::next_action) after each event.
#[derive(Debug)]
pub struct Driver<T, X> {
    tasks: Queue,
    answers: Queue,
    brain: Mutex<Brain<T, X>>,
}

#[derive(Debug)]
struct Brain<T, X> {
    scheduler: Scheduler<T, X>,
    claims: BTreeMap<WorkerId, Claim>,
    /// Workers whose processes are gone, until the scheduler can be told.
    ended: Vec<(WorkerId, X)>,
    last_look: Option<Instant>,
}

/// How a submission ended.
#[derive(Debug)]
pub enum Submitted<T> {
    /// The task will be answered exactly once.
    Accepted(TaskId),
    /// The pool doesn't take it.
    Refused(T, Refused),
    /// It couldn't be stored: no memory, most likely.
    Failed(T, Error),
}

/// What a message from the workers says.
#[derive(Debug, PartialEq, Eq)]
pub enum News<T> {
    /// A task was answered; the face's bytes begin at [`Driver::<T, X>::START`](Driver::START).
    Answer(T),
    /// A worker can't start, and says why from there on.
    Faulty(WorkerId),
    /// Nothing for the face.
    Nothing,
}

impl<T, X: Clone> Driver<T, X> {
    /// Where an answer's bytes begin, in buffer or extent.
    pub const START: usize = ID_BYTES;

    /// A pool of so many workers, none of which is started yet: those are the first actions.
    ///
    /// # Errors
    /// As [`Queue::new`].
    pub fn new(arena: &Arena, workers: u32) -> Result<Self> {
        let scheduler = Scheduler::new(workers, Limits::for_workers(workers));
        Ok(Self {
            tasks: Queue::new(arena, None)?,
            answers: Queue::new(arena, None)?,
            brain: Mutex::new(Brain {
                scheduler,
                claims: BTreeMap::new(),
                ended: Vec::new(),
                last_look: None,
            }),
        })
    }

    /// The same pool in a [twin](Arena::twin) of its arena, with what its scheduler knows by now. For harnesses only.
    ///
    /// # Errors
    /// As [`Queue::open`].
    #[cfg(crash_points)]
    pub fn twin(&self, twin: &Arena) -> Result<Self>
    where
        T: Clone,
    {
        let brain = self.brain();
        let claims = brain
            .claims
            .iter()
            .map(|(worker, claim)| Claim::open(twin, claim.name()).map(|claim| (*worker, claim)));
        Ok(Self {
            tasks: Queue::open(twin, self.tasks.name())?,
            answers: Queue::open(twin, self.answers.name())?,
            brain: Mutex::new(Brain {
                scheduler: brain.scheduler.clone(),
                claims: claims.collect::<Result<_>>()?,
                ended: brain.ended.clone(),
                last_look: None,
            }),
        })
    }

    /// Makes the seat for a worker that is about to be started.
    ///
    /// # Errors
    /// As [`Claim::new`].
    pub fn seat(&self, arena: &Arena, worker: WorkerId) -> Result<Seat> {
        let claim = Claim::new(arena)?;
        self.brain().claims.insert(worker, claim.clone());
        Ok(Seat {
            worker,
            tasks: self.tasks.clone(),
            answers: self.answers.clone(),
            claim,
        })
    }

    /// Accepts a task: `parts`, one behind the other, with a tag of the face's own; `names` are the objects that they name.
    ///
    /// May wait while a process is stopped inside the queue; the task is accepted then nevertheless.
    pub fn submit(&self, ticket: T, tag: u8, parts: &[&[u8]], names: &Carried) -> Submitted<T> {
        let id = match self.brain().scheduler.submit(ticket) {
            Ok(id) => id,
            Err((ticket, refused)) => return Submitted::Refused(ticket, refused),
        };
        loop {
            match send(&self.tasks, tag, id.to_bits(), parts, names) {
                Ok(()) => return Submitted::Accepted(id),
                Err(Error::Interrupted) => {}
                Err(error) => {
                    return match self.brain().scheduler.withdraw(id) {
                        Some(ticket) => Submitted::Failed(ticket, error),
                        // The pool was ended meanwhile, which answered it.
                        None => Submitted::Accepted(id),
                    };
                }
            }
        }
    }

    /// Takes a message from the workers if there is one: never waits.
    ///
    /// # Errors
    /// As [`Queue::get`].
    pub fn try_next(&self, buffer: &mut Vec<u8>) -> Result<Option<Taken>> {
        self.answers.try_get_into(buffer)
    }

    /// Takes the next message from the workers, waiting for it.
    ///
    /// # Errors
    /// As [`Queue::get`].
    pub fn next(&self, buffer: &mut Vec<u8>, deadline: Deadline) -> Result<Option<Taken>> {
        self.answers.get_into(buffer, deadline)
    }

    /// Lets the workers that wait for a task leave, once no task is left: for a pool that nobody will ask again.
    ///
    /// Not done by dropping it, since a fork's child drops its copy of a pool that is the parent's.
    ///
    /// # Errors
    /// `Poisoned` when the arena contradicts itself.
    pub fn dismiss(&self) -> Result<()> {
        self.tasks.close()
    }

    /// Reads a message from the workers, tells the scheduler, and says what is in it for the face.
    ///
    /// # Errors
    /// `Malformed` for a message that is none.
    pub fn hear(&self, taken: &Taken, buffer: &[u8]) -> Result<News<T>> {
        let mut number = [0; ID_BYTES];
        let read = match &taken.extent {
            Some(extent) => extent.copy_from(0, &mut number)? == ID_BYTES,
            None => buffer
                .first_chunk::<ID_BYTES>()
                .map(|bytes| number = *bytes)
                .is_some(),
        };
        let malformed = Error::Malformed {
            what: "message of a worker",
            at: 0,
        };
        if !read {
            return Err(malformed);
        }
        let number = u64::from_le_bytes(number);
        if taken.tag < NOTICES {
            let task = TaskId::from_bits(number);
            let ticket = task.and_then(|task| self.brain().scheduler.answered(task));
            return Ok(ticket.map_or(News::Nothing, News::Answer));
        }
        let worker = WorkerId(u32::try_from(number).map_err(|_| malformed.clone())?);
        match taken.tag {
            READY => self.brain().scheduler.ready(worker),
            RETIRED => self.brain().scheduler.retired(worker),
            FAULTY => return Ok(News::Faulty(worker)),
            NUDGE => {}
            _ => return Err(malformed),
        }
        Ok(News::Nothing)
    }

    /// Whether the last look after the workers was [`LOOK`] ago; who is told so looks.
    pub fn is_time_to_look(&self) -> bool {
        let (now, mut brain) = (Instant::now(), self.brain());
        let due = brain
            .last_look
            .is_none_or(|then| now.duration_since(then) >= LOOK);
        if due {
            brain.last_look = Some(now);
        }
        due
    }

    /// Makes it time to look.
    pub fn look_soon(&self) {
        self.brain().last_look = None;
    }

    /// Notes workers whose processes are gone, and how they ended. True when there is an end to [tell
    /// of](Self::tell_of_ends): once all that the workers said is heard.
    pub fn note_ends(&self, ended: impl IntoIterator<Item = (WorkerId, X)>) -> bool {
        let mut brain = self.brain();
        brain.ended.extend(ended);
        !brain.ended.is_empty()
    }

    /// Tells the scheduler of the workers that are gone, and so which tasks died with them.
    ///
    /// Not yet as long as a message waits: a worker is inside the queue, stopped perhaps, and answers are never overtaken
    /// by the news of a death. Nor while another process, stopped perhaps, repairs the queue of tasks. Call it again then.
    ///
    /// # Errors
    /// `Poisoned` when the arena contradicts itself.
    pub fn tell_of_ends(&self) -> Result<()> {
        if !self.answers.is_empty()? {
            return Ok(());
        }
        let ended = std::mem::take(&mut self.brain().ended);
        for (worker, how) in ended {
            if !self.exited(worker, how.clone())? {
                self.brain().ended.push((worker, how));
            }
        }
        Ok(())
    }

    /// Tells of one; false when it can't be said yet which task died with it.
    fn exited(&self, worker: WorkerId, how: X) -> Result<bool> {
        // A taker that died in the middle has claimed and taken, or neither, only after this.
        if !self.tasks.settle()? {
            return Ok(false);
        }
        let mut brain = self.brain();
        let claim = match brain.claims.remove(&worker) {
            Some(claim) => TaskId::from_bits(claim.value()?),
            None => None,
        };
        brain.scheduler.exited(worker, claim, how, Instant::now());
        Ok(true)
    }

    /// A worker couldn't be started.
    pub fn start_failed(&self, worker: WorkerId, how: X) {
        let mut brain = self.brain();
        brain.claims.remove(&worker);
        brain.scheduler.start_failed(worker, how);
    }

    /// The next thing to do. [`Action::Stop`] and [`Action::Kill`] have closed the queue of tasks already, so that
    /// workers that wait for one leave.
    ///
    /// # Errors
    /// `Poisoned` when the arena contradicts itself.
    pub fn next_action(&self) -> Result<Option<Action<T, X>>> {
        let action = self.brain().scheduler.next_action();
        if matches!(action, Some(Action::Stop | Action::Kill)) {
            self.tasks.close()?;
        }
        Ok(action)
    }

    /// Whether actions wait to be carried out.
    pub fn has_actions(&self) -> bool {
        self.brain().scheduler.has_actions()
    }

    /// Wakes a thread of this process that waits in [`next`](Self::next).
    ///
    /// # Errors
    /// As [`Queue::put`].
    pub fn nudge(&self) -> Result<()> {
        send(&self.answers, NUDGE, 0, &[], &Carried::default())
    }

    /// Tasks that no worker has taken yet.
    ///
    /// # Errors
    /// As [`Queue::len`].
    pub fn waiting(&self) -> Result<u64> {
        self.tasks.len()
    }

    /// Asks the scheduler, or tells it something that needs no queue.
    pub fn with<R>(&self, ask: impl FnOnce(&mut Scheduler<T, X>) -> R) -> R {
        ask(&mut self.brain().scheduler)
    }

    /// What the pool is up to.
    pub fn phase(&self) -> Phase {
        self.brain().scheduler.phase()
    }

    fn brain(&self) -> MutexGuard<'_, Brain<T, X>> {
        self.brain.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
