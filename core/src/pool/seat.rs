//! A worker's end of a pool: takes tasks, gives answers, says how it is.
//!
//! ```text
//! a task        queue's tag: the face's
//!   0   8   its id; noted in the worker's claim together with taking it
//!   8       the face's bytes
//! an answer     queue's tag: the face's, below 0xF0
//!   0   8   the id of its task
//!   8       the face's bytes
//! a notice      queue's tag: 0xF0 ready, 0xF1 retired, 0xF2 faulty, 0xF3 a nudge, of no worker
//!   0   8   the worker's number
//!   8       faulty: what its initializer failed with, UTF-8
//! ```

use super::{TaskId, WorkerId};
use crate::shm::{Arena, Extent, ObjectName};
use crate::{Carried, Claim, Deadline, Error, Queue, Result};

/// Tags from here on are notices, not answers.
pub(super) const NOTICES: u8 = 0xF0;
pub(super) const READY: u8 = 0xF0;
pub(super) const RETIRED: u8 = 0xF1;
pub(super) const FAULTY: u8 = 0xF2;
pub(super) const NUDGE: u8 = 0xF3;
/// The number that tasks, answers and notices begin with.
pub(super) const ID_BYTES: usize = 8;

/// A worker's place in a pool: the two queues, and the claim that says which task it took last.
///
/// # Across processes
/// Made by the pool, used by one worker. When that dies, the claim tells the pool which task died with it.
#[derive(Debug, Clone)]
pub struct Seat {
    pub(super) worker: WorkerId,
    pub(super) tasks: Queue,
    pub(super) answers: Queue,
    pub(super) claim: Claim,
}

/// A task that was taken: the face's bytes are in the buffer behind [`Task::START`], or in the extent.
#[derive(Debug)]
pub struct Task {
    /// Its name, for the answer.
    pub id: TaskId,
    /// The tag that it was submitted with.
    pub tag: u8,
    /// Its bytes if they are many, from [`Task::START`] on.
    pub extent: Option<Extent>,
    /// The objects that it names, held until it is dropped.
    pub carried: Carried,
}

impl Task {
    /// Where the face's bytes begin, in buffer or extent.
    pub const START: usize = ID_BYTES;
}

impl Seat {
    /// Takes the seat of those names: number, queue of tasks, queue of answers, claim.
    ///
    /// # Errors
    /// As [`Queue::open`]: the pool may be gone by now.
    pub fn open(arena: &Arena, worker: WorkerId, names: [ObjectName; 3]) -> Result<Self> {
        let [tasks, answers, claim] = names;
        Ok(Self {
            worker,
            tasks: Queue::open(arena, tasks)?,
            answers: Queue::open(arena, answers)?,
            claim: Claim::open(arena, claim)?,
        })
    }

    /// The worker that it is for.
    #[must_use]
    pub fn worker(&self) -> WorkerId {
        self.worker
    }

    /// The names to open it with, to be held for the worker until it has: tasks, answers, claim.
    #[must_use]
    pub fn names(&self) -> [ObjectName; 3] {
        [self.tasks.name(), self.answers.name(), self.claim.name()]
    }

    /// Takes the next task, appending a short one to `buffer`; `None` once the deadline has passed.
    ///
    /// # Errors
    /// `Closed` when no task will come any more, `Interrupted` when a signal handler ran while it slept.
    pub fn take(&self, buffer: &mut Vec<u8>, deadline: Deadline) -> Result<Option<Task>> {
        let Some(taken) = self.tasks.get_claiming(&self.claim, buffer, deadline)? else {
            return Ok(None);
        };
        let id = TaskId::from_bits(self.claim.value()?).ok_or(Error::Broken {
            what: "the number of a task",
        })?;
        Ok(Some(Task {
            id,
            tag: taken.tag,
            extent: taken.extent,
            carried: taken.carried,
        }))
    }

    /// Answers a task: `parts`, one behind the other, with a tag below 0xF0; `names` are the objects that they name.
    ///
    /// # Errors
    /// As [`Queue::put`]; `Misuse` for a tag of the notices.
    pub fn answer(&self, task: TaskId, tag: u8, parts: &[&[u8]], names: &Carried) -> Result<()> {
        if tag >= NOTICES {
            return Err(Error::Misuse {
                what: "an answer's tag is below 0xF0",
            });
        }
        send(&self.answers, tag, task.to_bits(), parts, names)
    }

    /// Tells the pool that the worker takes tasks from now on.
    ///
    /// # Errors
    /// As [`Queue::put`].
    pub fn ready(&self) -> Result<()> {
        self.notify(READY, &[])
    }

    /// Tells the pool that the worker takes no more tasks and is about to exit.
    ///
    /// # Errors
    /// As [`Queue::put`].
    pub fn retire(&self) -> Result<()> {
        self.notify(RETIRED, &[])
    }

    /// Tells the pool why the worker can't start; the exit itself is noticed as any other.
    ///
    /// # Errors
    /// As [`Queue::put`].
    pub fn faulty(&self, why: &str) -> Result<()> {
        self.notify(FAULTY, &[why.as_bytes()])
    }

    fn notify(&self, notice: u8, parts: &[&[u8]]) -> Result<()> {
        let worker = u64::from(self.worker.0);
        send(&self.answers, notice, worker, parts, &Carried::default())
    }
}

/// Puts a message that begins with a number: at once if possible, else as soon as possible.
pub(super) fn send(
    queue: &Queue,
    tag: u8,
    number: u64,
    parts: &[&[u8]],
    names: &Carried,
) -> Result<()> {
    let number = number.to_le_bytes();
    let mut all: [&[u8]; 4] = [&number, &[], &[], &[]];
    let Some(rest) = all.get_mut(1..=parts.len()) else {
        let whole = parts.concat();
        return queue
            .put_naming(tag, &[&number, &whole], names, Deadline::NEVER)
            .map(drop);
    };
    rest.copy_from_slice(parts);
    let all = &all[..=parts.len()];
    if names.is_empty() && queue.try_put(tag, all)? {
        return Ok(());
    }
    queue.put_naming(tag, all, names, Deadline::NEVER).map(drop)
}
