//! This process' place in its tree of processes.

use crate::error::{Error, Result, retry};
use procession_core::Arena;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::time::Duration;

static ARENA: OnceLock<Arena> = OnceLock::new();
/// The process in which a thread is at making the arena, by its id; 0: none.
static MAKER: AtomicU32 = AtomicU32::new(0);

/// The tree's arena; made at the first call in a process that was not started by another one of ours.
pub(crate) fn arena() -> Result<&'static Arena> {
    match ARENA.get() {
        Some(arena) => Ok(arena),
        None => enter(Arena::create),
    }
}

/// What is in the arena, for tests: objects, processes, and bytes that somebody owns.
///
/// # Panics
/// When the arena contradicts itself.
#[doc(hidden)]
#[must_use]
pub fn census() -> (u64, u64, u64) {
    let counted = arena().and_then(|arena| {
        let census = retry(|| arena.reap().and_then(|()| arena.census()));
        census.map_err(|error| Error::at("take a census", error))
    });
    let census = counted.expect("a sound arena");
    (census.objects, census.processes, census.owned_bytes)
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
