//! This process' place in its tree of processes.

use crate::error::{Error, Result, retry};
use procession_core::{Arena, ChildSlot, ObjectName};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};
use std::cell::RefCell;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::time::Duration;

static ARENA: OnceLock<Arena> = OnceLock::new();
/// The process in which a thread is at making the arena, by its id; 0: none.
static MAKER: AtomicU32 = AtomicU32::new(0);

thread_local! {
    /// While the argument of a child is encoded: the objects that it names.
    static NAMED: RefCell<Option<Vec<ObjectName>>> = const { RefCell::new(None) };
}

/// The tree's arena; made at the first call in a process that was not started by another one of ours.
pub(crate) fn arena() -> Result<&'static Arena> {
    match ARENA.get() {
        Some(arena) => Ok(arena),
        None => enter(Arena::create),
    }
}

/// Joins the tree of the process that started this one.
pub(crate) fn attach(token: &str) -> Result<&'static Arena> {
    enter(|| Arena::attach(token))
}

#[cold]
fn enter(make: impl FnMut() -> procession_core::Result<Arena>) -> Result<&'static Arena> {
    let _making = Making::begin(&MAKER);
    if let Some(arena) = ARENA.get() {
        return Ok(arena);
    }
    let arena = retry(make).map_err(|error| Error::at("enter the tree of processes", error))?;
    procession_core::at_exit(leave).map_err(|error| Error::at("register an exit hook", error))?;
    Ok(ARENA.get_or_init(|| arena))
}

/// One thread at a time makes the arena. Not a mutex: a bare fork's child would find that locked, by a thread that it
/// doesn't have.
struct Making<'a>(&'a AtomicU32);

impl<'a> Making<'a> {
    fn begin(maker: &'a AtomicU32) -> Self {
        let me = std::process::id();
        loop {
            let before = maker.load(Relaxed);
            if before != me && maker.compare_exchange(before, me, Acquire, Relaxed).is_ok() {
                return Self(maker);
            }
            // Making takes a tenth of that, once in the life of a process.
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Making<'_> {
    fn drop(&mut self) {
        self.0.store(0, Release);
    }
}

/// Marks this process as leaving normally.
extern "C" fn leave() {
    if let Some(arena) = ARENA.get() {
        arena.leave();
    }
}

/// Encodes what a child is given, and has its place hold every object that is named in it.
pub(crate) fn give<R>(slot: &ChildSlot, encode: impl FnOnce() -> Result<R>) -> Result<R> {
    let outer = NAMED.replace(Some(Vec::new()));
    let encoded = encode();
    let named = NAMED.replace(outer).unwrap_or_default();
    let encoded = encoded?;
    for name in named {
        retry(|| slot.give(name))
            .map_err(|error| Error::at("hold an object for a child", error))?;
    }
    Ok(encoded)
}

/// Encodes an object as its name. For a child that is being started its place holds the object too; anything else may
/// be a message, so the object lives on without a holder.
pub(crate) fn serialize<S: Serializer>(
    serializer: S,
    name: ObjectName,
    escape: impl FnOnce() -> procession_core::Result<ObjectName>,
) -> Result<S::Ok, S::Error> {
    let given = NAMED.with_borrow_mut(|named| named.as_mut().map(|named| named.push(name)));
    if given.is_none() {
        escape().map_err(ser::Error::custom)?;
    }
    (name.offset, name.serial).serialize(serializer)
}

/// Opens the object whose name is decoded.
pub(crate) fn deserialize<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    open: impl Fn(&Arena, ObjectName) -> procession_core::Result<T>,
) -> Result<T, D::Error> {
    let (offset, serial) = Deserialize::deserialize(deserializer)?;
    let arena = arena().map_err(de::Error::custom)?;
    retry(|| open(arena, ObjectName { offset, serial })).map_err(de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::Making;
    use std::sync::atomic::AtomicU32;
    use std::sync::atomic::Ordering::Relaxed;

    #[test]
    fn what_a_thread_of_the_parent_was_at_is_begun_again() {
        let maker = AtomicU32::new(std::process::id() + 1);
        drop(Making::begin(&maker));
        assert_eq!(maker.load(Relaxed), 0);
    }

    #[test]
    fn one_thread_makes_at_a_time() {
        let (maker, inside) = (AtomicU32::new(0), AtomicU32::new(0));
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..20 {
                        let _making = Making::begin(&maker);
                        assert_eq!(inside.fetch_add(1, Relaxed), 0);
                        inside.fetch_sub(1, Relaxed);
                    }
                });
            }
        });
    }
}
