//! Descriptors of this process that say what an object is ready for: made when somebody asks for one, and closed when the
//! process lets go of the object.
//!
//! A lamp is this process' alone: it lies in its own memory, and a forked child closes its copies. What a lamp has to
//! show is known above; who keeps it right, too.

use crate::Result;
use crate::sys::eventfd;
use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

/// What a lamp tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tells {
    /// There is something to be got: its descriptor can be read from then.
    Something,
    /// There is room: its descriptor can be written to then.
    Room,
}

/// A descriptor, and what it shows.
#[derive(Debug)]
pub(crate) struct Lamp {
    /// Offset of the cell in which the object has this process' bit as long as it has lamps.
    noted: u64,
    pub(crate) tells: Tells,
    pub(crate) descriptor: Arc<OwnedFd>,
    pub(crate) is_lit: bool,
}

impl Lamp {
    fn new(noted: u64, tells: Tells) -> Result<Self> {
        Ok(Self {
            noted,
            tells,
            descriptor: Arc::new(eventfd::create()?),
            is_lit: tells == Tells::Room,
        })
    }

    /// Has it show that it is so, or isn't.
    pub(crate) fn show(&mut self, lit: bool) -> Result<()> {
        if lit == self.is_lit {
            return Ok(());
        }
        let descriptor = self.descriptor.as_fd();
        match (self.tells, lit) {
            (Tells::Something, true) => eventfd::set(descriptor, 1)?,
            (Tells::Room, false) => eventfd::set(descriptor, eventfd::FULL)?,
            _ => eventfd::clear(descriptor)?,
        }
        self.is_lit = lit;
        Ok(())
    }
}

/// All lamps of this process in one arena, by the offset of the object that they tell of.
#[derive(Debug, Default)]
pub(crate) struct Lamps {
    lamps: HashMap<u64, Vec<Lamp>>,
    /// A thread keeps them right.
    pub(crate) watched: bool,
    /// One was lit that the thread hasn't looked at since.
    pub(crate) fresh: bool,
}

impl Lamps {
    /// The lamps of the object there.
    pub(crate) fn of(&mut self, offset: u64) -> Option<&mut Vec<Lamp>> {
        self.lamps.get_mut(&offset)
    }

    /// The descriptor of the object's lamp that tells that, which is made if there is none. The object has `noted` in the cell
    /// of that offset who has lamps: each by the [bit of its slot](super::object::place).
    pub(crate) fn descriptor(
        &mut self,
        offset: u64,
        noted: u64,
        tells: Tells,
    ) -> Result<Arc<OwnedFd>> {
        let lamps = self.lamps.entry(offset).or_default();
        if let Some(lamp) = lamps.iter().find(|lamp| lamp.tells == tells) {
            return Ok(Arc::clone(&lamp.descriptor));
        }
        let lamp = Lamp::new(noted, tells)?;
        let descriptor = Arc::clone(&lamp.descriptor);
        lamps.push(lamp);
        Ok(descriptor)
    }

    /// The objects that have some.
    pub(crate) fn offsets(&self) -> Vec<u64> {
        self.lamps.keys().copied().collect()
    }

    /// Lights all, as far as that can be done.
    pub(crate) fn light_all(&mut self) {
        for lamp in self.lamps.values_mut().flatten() {
            // What the system refuses now stays dark: there is nobody to tell.
            let _ = lamp.show(true);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.lamps.is_empty()
    }

    /// Closes the lamps of an object, if it had some, and gives the offset of the cell in which that is noted.
    pub(super) fn forget(&mut self, offset: u64) -> Option<u64> {
        let lamps = self.lamps.remove(&offset)?;
        lamps.first().map(|lamp| lamp.noted)
    }
}
