//! The arena of a tree of processes, with everything in it that recovery must know.

use crate::Result;
use crate::queue;
use crate::shm::Arena;
use crate::shm::recovery::Recovery;
use crate::sync::{barrier, condition, event, lock, rlock, semaphore};

pub(crate) static RECOVERIES: [Recovery; 7] = [
    lock::RECOVERY,
    rlock::RECOVERY,
    semaphore::RECOVERY,
    condition::RECOVERY,
    event::RECOVERY,
    barrier::RECOVERY,
    queue::RECOVERY,
];

impl Arena {
    /// Makes a new arena, with this process as its first member.
    ///
    /// About 150 µs; 256 KiB of memory, one descriptor.
    ///
    /// # Errors
    /// `Os` when the system refuses memory, a descriptor or a mapping.
    pub fn create() -> Result<Self> {
        Self::found(&RECOVERIES)
    }

    /// Joins the arena of the process that started this one, with the token of its
    /// [`ChildSlot`](crate::shm::ChildSlot); takes over the descriptor that the token names.
    ///
    /// If the parent is dead, and what it kept was given back, this process joins the tree as one that nobody kept anything
    /// for: of the objects that it was to have it can open those that others hold.
    ///
    /// # Errors
    /// `Malformed` when the token or the descriptor is not of that form, `Misuse` when they belong to another arena,
    /// another version of procession, or a child that has attached already. `Interrupted` when a signal handler ran while
    /// it waited: call again.
    pub fn attach(token: &str) -> Result<Self> {
        Self::join(token, &RECOVERIES)
    }
}
