//! Objects that go where nobody can look: through a pipe, or in any bytes that no queue carries.
//!
//! What such bytes name is put into a queue of its own, the parcel, and the bytes carry the parcel's name: the queue's one
//! message holds the objects, as any message in a queue does, until whoever receives the name has got it. A parcel that
//! nobody ever receives lives until the tree ends.

use super::Queue;
use crate::shm::{Arena, Carried, ObjectName};
use crate::{Deadline, Error, Result};

/// Objects on their way in bytes that no queue carries.
///
/// # Across processes
/// It belongs to whoever receives its name, once; until then, to the tree.
#[derive(Debug)]
pub struct Parcel(Queue);

impl Parcel {
    /// Puts what a message names into a parcel, which a few hundred bytes of the arena hold from then on.
    ///
    /// What the message has [pledged](Carried::pledge) stays its sender's affair, who tells `names` once it is
    /// [delivered](Carried::delivered).
    ///
    /// # Errors
    /// As [`Queue::put_naming`]; `Interrupted` has made nothing.
    pub fn pack(arena: &Arena, names: &Carried) -> Result<Self> {
        let mut held = Carried::new();
        for name in names.names() {
            held.add(arena, *name)?;
        }
        let queue = Queue::new(arena, None)?;
        queue.put_naming(0, &[], &held, Deadline::NEVER)?;
        queue.escape()?;
        Ok(Self(queue))
    }

    /// The name that the bytes carry.
    #[must_use]
    pub fn name(&self) -> ObjectName {
        self.0.name()
    }

    /// Says that the bytes weren't sent, and nobody has the name: the parcel goes with this.
    pub fn unsent(&self) {
        // If it can't be told, the parcel lives on.
        let _ = self.0.recapture();
    }

    /// Takes the objects out of the parcel of that name; `None` when somebody has done so before.
    ///
    /// # Errors
    /// As [`Queue::get`]; `Interrupted` has taken nothing.
    pub fn open(arena: &Arena, name: ObjectName) -> Result<Option<Carried>> {
        let queue = match Queue::open(arena, name) {
            Err(Error::Closed { .. }) => return Ok(None),
            queue => queue?,
        };
        let Some(message) = queue.get(Deadline::now())? else {
            return Ok(None);
        };
        queue.recapture()?;
        Ok(Some(message.carried))
    }
}
