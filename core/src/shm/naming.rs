//! Which objects a message names, while a face encodes it.

use super::arena::Arena;
use super::carried::Carried;
use super::object::ObjectName;
use crate::Result;
use std::cell::{Cell, RefCell};

/// How many names, and how many pledges.
type Counts = (u32, u32);

thread_local! {
    /// While a message is encoded: how many objects it has named so far, and how many pledges it has. Beside `NAMED`, since this one
    /// costs nothing.
    static NAMES: Cell<Option<Counts>> = const { Cell::new(None) };
    /// What the message that is encoded names, behind what those name within which it is.
    static NAMED: RefCell<Carried> = const { RefCell::new(Carried::new()) };
}

/// A message is being encoded by this thread, until this is dropped. Messages nest: user code that encodes one may put
/// another.
#[derive(Debug)]
pub struct Naming {
    /// What was being encoded before.
    outer: Option<Counts>,
}

impl Naming {
    /// Encodes a message, and gives what `encode` does and the objects that it [added](Self::add): held, until a queue
    /// has the message.
    ///
    /// # Errors
    /// Those of `encode`.
    #[inline]
    pub fn during<R, E>(encode: impl FnOnce() -> Result<R, E>) -> Result<(R, Carried), E> {
        let outer = NAMES.replace(Some((0, 0)));
        let naming = Self { outer };
        let encoded = encode()?;
        Ok((encoded, naming.take()))
    }

    /// Adds an object that this process holds to the message that is being encoded; false when none is, so that the name
    /// may go where nobody can see it.
    ///
    /// # Errors
    /// As [`Carried::add`].
    pub fn add(arena: &Arena, name: ObjectName) -> Result<bool> {
        let Some((names, pledges)) = NAMES.get() else {
            return Ok(false);
        };
        NAMED.with_borrow_mut(|named| named.add(arena, name))?;
        NAMES.set(Some((names + 1, pledges)));
        Ok(true)
    }

    /// Has `take_back` called unless the message that is being encoded is put; false when none is.
    ///
    /// # Errors
    /// As [`Carried::pledge`].
    pub fn pledge(arena: &Arena, take_back: impl FnOnce() + Send + Sync + 'static) -> Result<bool> {
        let Some((names, pledges)) = NAMES.get() else {
            return Ok(false);
        };
        NAMED.with_borrow_mut(|named| named.pledge(arena, Box::new(take_back)))?;
        NAMES.set(Some((names, pledges + 1)));
        Ok(true)
    }

    /// Whether this thread encodes a message.
    #[must_use]
    pub fn is_active() -> bool {
        NAMES.get().is_some()
    }

    /// The objects that it has named.
    #[inline]
    fn take(&self) -> Carried {
        match NAMES.replace(Some((0, 0))) {
            None | Some((0, 0)) => Carried::new(),
            Some((names, pledges)) => {
                NAMED.with_borrow_mut(|named| named.split_off(names, pledges))
            }
        }
    }
}

impl Drop for Naming {
    #[inline]
    fn drop(&mut self) {
        // What an encoder that failed or panicked has left.
        drop(self.take());
        NAMES.set(self.outer);
    }
}
