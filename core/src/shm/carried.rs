//! Holds on the objects that a message names, on its way in or out.

use super::arena::Arena;
use super::blocks;
use super::object::{self, Handle, ObjectName};
use crate::sys::word::{Relaxed, Release};
use crate::{Error, Result};
use std::sync::Arc;

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
        let Some(Named { arena, names }) = self.named.as_deref() else {
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

    /// Whether there are none.
    #[must_use]
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.named.is_none() || self.names().is_empty()
    }

    /// Takes out those from the one with that number on: what was added by a message that was encoded while another was.
    ///
    /// # Panics
    /// When there aren't as many.
    #[must_use]
    pub(super) fn split_off(&mut self, at: usize) -> Self {
        match &mut self.named {
            Some(named) if at > 0 => {
                let (arena, names) = (named.arena.clone(), named.names.split_off(at));
                let named = Some(Box::new(Named { arena, names }));
                Self { named }
            }
            Some(_) => std::mem::take(self),
            None => {
                assert_eq!(at, 0, "there are none");
                Self::new()
            }
        }
    }

    /// Adds those of another message, which goes as a part of this one.
    ///
    /// # Errors
    /// `Misuse` when they lie in another arena than those before them.
    pub fn append(&mut self, mut more: Self) -> Result<()> {
        if let Some(more) = &mut more.named {
            self.of(&more.arena)?.append(&mut more.names);
        }
        Ok(())
    }

    /// The names, for one more of that arena.
    fn of(&mut self, arena: &Arena) -> Result<&mut Vec<ObjectName>> {
        let named = self.named.get_or_insert_with(|| {
            let (arena, names) = (arena.clone(), Vec::new());
            Box::new(Named { arena, names })
        });
        if Arc::ptr_eq(&named.arena.inner, &arena.inner) {
            Ok(&mut named.names)
        } else {
            Err(OTHER_ARENA)
        }
    }
}

const OTHER_ARENA: Error = Error::Misuse {
    what: "a message names objects of its own arena only",
};

impl Drop for Named {
    fn drop(&mut self) {
        for name in &self.names {
            object::let_go(&self.arena.inner, *name);
        }
    }
}
