//! This process' place in its tree of processes.

use crate::error::{Error, Result, retry};
use procession_core::{Arena, ChildSlot, ObjectName};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};
use std::cell::RefCell;
use std::sync::{Mutex, OnceLock, PoisonError};

static ARENA: OnceLock<Arena> = OnceLock::new();
static MAKING: Mutex<()> = Mutex::new(());

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
    let _making = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(arena) = ARENA.get() {
        return Ok(arena);
    }
    let arena = retry(make).map_err(|error| Error::at("enter the tree of processes", error))?;
    procession_core::at_exit(leave).map_err(|error| Error::at("register an exit hook", error))?;
    Ok(ARENA.get_or_init(|| arena))
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
