//! A flag that processes wait for.
//!
//! ```text
//! bits 0     set
//! bit  1     somebody may sleep
//! bits 2..   how often it was set
//! ```
//! One word, and no lock: a signal handler may set it in the middle of a wait, and nobody's death leaves it half
//! changed. The count tells a sleeper that it was set even if it was cleared before the sleeper woke. Whoever sets it
//! may die before it wakes anybody, so sleepers look twice a second.

use super::patience::Patience;
use crate::shm::Arena;
use crate::shm::arena::Member;
use crate::shm::layout::{OBJECT_HEADER, kind};
use crate::shm::object::{Handle, ObjectName};
use crate::shm::recovery::Recovery;
use crate::shm::view::shared;
use crate::sys::word::{Acquire, Cell, Wake, Word};
use crate::{Deadline, Error, Result};
use std::time::Duration;

const SET: u32 = 1;
const SLEEPERS: u32 = 2;
const COUNT: u32 = 4;

/// How long a sleep lasts that waits for no process in particular: the one that ended it may have died before its wake.
pub(super) const LOOK: Duration = Duration::from_millis(500);

shared! {
    /// An event's state, on a line of its own.
    EventState: 64 {
        word: Word,
        _pad: Word,
        _unused: [Cell; 7],
    }
}

/// A flag that processes set, clear and wait for.
///
/// # Across processes
/// It belongs to nobody; a process that dies, wherever, leaves it as it is, and keeps nobody waiting.
///
/// # After fork
/// The child holds the same event.
///
/// Python: `Event`.
#[derive(Debug)]
pub struct Event {
    handle: Handle<EventState>,
    patience: Patience,
}

impl Clone for Event {
    fn clone(&self) -> Self {
        Self {
            handle: self.handle.clone(),
            patience: Patience::default(),
        }
    }
}

impl Event {
    /// Makes an event that isn't set. 256 bytes of the arena, no descriptor.
    ///
    /// # Errors
    /// `Os` or `Exhausted` when there is no memory.
    pub fn new(arena: &Arena) -> Result<Self> {
        Ok(Self {
            handle: Handle::new(arena, kind::EVENT)?,
            patience: Patience::default(),
        })
    }

    /// Holds the event of that name.
    ///
    /// # Errors
    /// `Closed` when it is gone, `Malformed` when the name is not an event's.
    pub fn open(arena: &Arena, name: ObjectName) -> Result<Self> {
        Ok(Self {
            handle: Handle::open(arena, kind::EVENT, name)?,
            patience: Patience::default(),
        })
    }

    /// Its name, for a process that is given a hold on it.
    #[must_use]
    pub fn name(&self) -> ObjectName {
        self.handle.name()
    }

    /// Its name, for bytes that go elsewhere than into a queue: from now on the event lives until the tree ends.
    ///
    /// # Errors
    /// `Poisoned` when the arena contradicts itself.
    pub fn escape(&self) -> Result<ObjectName> {
        self.handle.escape()?;
        Ok(self.handle.name())
    }

    /// Whether it is set, at this moment.
    ///
    /// # Errors
    /// `Misuse` in a forked child without a place in the tree.
    pub fn is_set(&self) -> Result<bool> {
        Ok(self.word()?.load(Acquire) & SET != 0)
    }

    /// Sets it, and wakes all who wait. Never sleeps.
    ///
    /// # Errors
    /// `Misuse` in a forked child without a place in the tree.
    pub fn set(&self) -> Result<()> {
        let word = self.word()?;
        loop {
            let value = word.load(Acquire);
            if value & SET != 0 {
                return Ok(());
            }
            let next = (value & !SLEEPERS).wrapping_add(COUNT) | SET;
            if word.replace(value, next) {
                if value & SLEEPERS != 0 {
                    word.wake(u32::MAX);
                }
                return Ok(());
            }
        }
    }

    /// Clears it. Whoever was waiting when it was set returns all the same.
    ///
    /// # Errors
    /// `Misuse` in a forked child without a place in the tree.
    pub fn clear(&self) -> Result<()> {
        self.word()?.clear_bits(SET);
        Ok(())
    }

    /// How often it was set, for a [`wait`](Self::wait) that is begun before it is asked to sleep.
    ///
    /// # Errors
    /// `Misuse` in a forked child without a place in the tree.
    pub fn count(&self) -> Result<u32> {
        Ok(self.word()?.load(Acquire) / COUNT)
    }

    /// Waits until it is set, or was set since `count` was asked; false once the deadline has passed.
    ///
    /// # Errors
    /// `Interrupted` when a signal handler ran while it slept: wait again with the same count. `Misuse` in a forked
    /// child without a place in the tree.
    pub fn wait(&self, count: u32, deadline: Deadline) -> Result<bool> {
        let word = self.word()?;
        let is_over = |value: u32| value & SET != 0 || value / COUNT != count;
        let ready = || Ok(is_over(word.load(Acquire)));
        if ready()? {
            return Ok(true);
        }
        if deadline.passed() {
            return Ok(false);
        }
        if self.patience.wait(ready)? {
            return Ok(true);
        }
        loop {
            self.handle.member().sound()?;
            let value = word.load(Acquire);
            if is_over(value) {
                return Ok(true);
            }
            if deadline.passed() {
                return Ok(false);
            }
            if value & SLEEPERS == 0 && !word.replace(value, value | SLEEPERS) {
                continue;
            }
            let slept = word.sleep_while(value | SLEEPERS, deadline.at_most(LOOK));
            if slept == Wake::Interrupted && !ready()? {
                return Err(Error::Interrupted);
            }
        }
    }

    fn word(&self) -> Result<&Word> {
        self.handle.member().place()?;
        Ok(&self.handle.state().word)
    }
}

/// Whoever dies leaves an event as it is; but those who wait must hear of poison.
pub(crate) const RECOVERY: Recovery = Recovery {
    kind: kind::EVENT,
    repair: |_, _, _| Ok(()),
    wake,
    locks: false,
    names: None,
};

fn wake(member: &Member, offset: u64) -> Result<()> {
    let state: &EventState = member.at(offset + OBJECT_HEADER)?;
    state.word.wake(u32::MAX);
    Ok(())
}
