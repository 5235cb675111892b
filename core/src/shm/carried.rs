//! Holds on the objects that a message names, on its way in or out, and what is to be taken back if it doesn't go.

use super::arena::Arena;
use super::blocks;
use super::layout::index;
use super::object::{self, Handle, ObjectName};
use crate::sys::word::{Relaxed, Release};
use crate::{Error, Result};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// The objects that a message names, each of them held by this process until this is dropped.
///
/// Whoever encodes a message collects here what it names, so that [`Queue::put_naming`](crate::Queue::put_naming) may
/// rely on their living; and a message that was got brings them, so that whoever decodes it finds them alive. Most
/// messages name nothing: then it is a word, and zero.
///
/// # Across processes
/// What this process holds here is given back when it dies. In between, a message that waits in a queue holds them.
///
/// # After fork
/// The child's copy holds the same objects for the child.
#[derive(Debug, Default)]
pub struct Carried {
    named: Option<Box<Named>>,
}

/// Objects of an arena.
#[derive(Debug)]
struct Named {
    arena: Arena,
    names: Vec<ObjectName>,
    pledges: Vec<Pledge>,
    /// The message was put.
    is_delivered: AtomicBool,
}

/// What takes back what a message relies on, beside objects: a descriptor that its sender keeps.
struct Pledge(Box<dyn FnOnce() + Send + Sync>);

impl fmt::Debug for Pledge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pledge")
    }
}

impl Carried {
    /// None so far.
    #[must_use]
    #[inline]
    pub const fn new() -> Self {
        Self { named: None }
    }

    /// Adds an object that this process holds.
    ///
    /// # Errors
    /// `Misuse` when this process doesn't hold it, or it lies in another arena than those before it.
    pub fn add(&mut self, arena: &Arena, name: ObjectName) -> Result<()> {
        let names = self.of(arena)?;
        if !object::hold_again(&arena.inner, name) {
            return Err(Error::Misuse {
                what: "a message can name only objects that its sender holds",
            });
        }
        names.push(name);
        Ok(())
    }

    /// Adds what is called when this is dropped and no message was put with it. A message that has such goes as one that names
    /// objects does.
    ///
    /// # Errors
    /// `Misuse` when the message names objects of another arena.
    pub fn pledge(
        &mut self,
        arena: &Arena,
        take_back: Box<dyn FnOnce() + Send + Sync>,
    ) -> Result<()> {
        self.named_of(arena)?.pledges.push(Pledge(take_back));
        Ok(())
    }

    /// Says that a message was put with this, or sent otherwise.
    pub fn delivered(&self) {
        if let Some(named) = &self.named {
            named.delivered();
        }
    }

    /// Adds an object that a message names which nobody else can take meanwhile; nothing if it is gone.
    pub(crate) fn take_up(&mut self, arena: &Arena, name: ObjectName) -> Result<()> {
        let names = self.of(arena)?;
        if object::hold_named(&arena.inner, name)? {
            names.push(name);
        }
        Ok(())
    }

    /// Says that messages in `carrier` name these from now on: without a holder they live as long as one does. Before
    /// the first of those messages can be seen.
    pub(crate) fn send<T>(&self, carrier: &Handle<T>) -> Result<()> {
        let Some(Named { arena, names, .. }) = self.named.as_deref() else {
            return Ok(());
        };
        if !Arc::ptr_eq(&arena.inner, &carrier.arena().inner) {
            return Err(OTHER_ARENA);
        }
        for name in names {
            match blocks::named(&arena.inner, *name) {
                Ok(object) if object.sent.load(Relaxed) == 0 => object.sent.store(1, Release),
                // A forked child may refer to what is gone.
                Ok(_) | Err(Error::Closed { .. } | Error::Malformed { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let header = carrier.header()?;
        if header.carries.load(Relaxed) == 0 {
            header.carries.store(1, Release);
        }
        Ok(())
    }

    /// Their names, in the order in which they were added.
    #[must_use]
    pub fn names(&self) -> &[ObjectName] {
        self.named.as_ref().map_or(&[], |named| &named.names)
    }

    /// Whether there are none, and no pledges either.
    #[must_use]
    #[inline]
    pub fn is_empty(&self) -> bool {
        let is_empty = |named: &Named| named.names.is_empty() && named.pledges.is_empty();
        self.named.as_deref().is_none_or(is_empty)
    }

    /// Takes out so many of the last names and pledges: what was added by a message that was encoded while another was.
    #[must_use]
    pub(super) fn split_off(&mut self, names: u32, pledges: u32) -> Self {
        let Some(named) = &mut self.named else {
            return Self::new();
        };
        let before = |length: usize, last: u32| length.saturating_sub(index(last.into()));
        let names = before(named.names.len(), names);
        let pledges = before(named.pledges.len(), pledges);
        if (names, pledges) == (0, 0) {
            return std::mem::take(self);
        }
        let mut last = Box::new(Named::new(&named.arena));
        last.names = named.names.split_off(names);
        last.pledges = named.pledges.split_off(pledges);
        Self { named: Some(last) }
    }

    /// Adds those of another message, which goes as a part of this one.
    ///
    /// # Errors
    /// `Misuse` when they lie in another arena than those before them.
    pub fn append(&mut self, mut more: Self) -> Result<()> {
        if let Some(more) = &mut more.named {
            let all = self.named_of(&more.arena)?;
            all.names.append(&mut more.names);
            all.pledges.append(&mut more.pledges);
        }
        Ok(())
    }

    /// The names, for one more of that arena.
    fn of(&mut self, arena: &Arena) -> Result<&mut Vec<ObjectName>> {
        Ok(&mut self.named_of(arena)?.names)
    }

    fn named_of(&mut self, arena: &Arena) -> Result<&mut Named> {
        let named = self
            .named
            .get_or_insert_with(|| Box::new(Named::new(arena)));
        if Arc::ptr_eq(&named.arena.inner, &arena.inner) {
            Ok(named)
        } else {
            Err(OTHER_ARENA)
        }
    }
}

const OTHER_ARENA: Error = Error::Misuse {
    what: "a message names objects of its own arena only",
};

impl Named {
    fn new(arena: &Arena) -> Self {
        Self {
            arena: arena.clone(),
            names: Vec::new(),
            pledges: Vec::new(),
            is_delivered: AtomicBool::new(false),
        }
    }

    fn delivered(&self) {
        // Of this process' own memory, and of one thread.
        self.is_delivered.store(true, Relaxed);
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        if !*self.is_delivered.get_mut() {
            for Pledge(take_back) in self.pledges.drain(..) {
                take_back();
            }
        }
        for name in &self.names {
            object::let_go(&self.arena.inner, *name);
        }
    }
}
