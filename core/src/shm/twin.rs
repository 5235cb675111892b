//! A copy of an arena, in which a harness asks what would follow from a death at this instant.
//!
//! Compiled in by `--cfg crash_points` only.

use super::arena::{Arena, Member};
use super::family;
use crate::Result;
use crate::sys::{mapping, robust};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

/// The bytes of an arena at one moment, in a memfd of their own that nobody has joined.
#[derive(Debug)]
pub struct Snapshot {
    file: OwnedFd,
}

impl AsFd for Snapshot {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Arena {
    /// The arena's bytes as they are at this moment. Memory that was given to its file and never touched is a hole in
    /// the copy. For harnesses only.
    ///
    /// # Errors
    /// `Os` when the system refuses memory or a descriptor.
    ///
    /// # Across processes
    /// Nobody else may change the arena meanwhile, or the copy is of no single instant.
    pub fn snapshot(&self) -> Result<Snapshot> {
        let file = mapping::replica(self.descriptor())?;
        Ok(Snapshot { file })
    }

    /// As [`twin_of`](Self::twin_of), with the bytes of this moment.
    ///
    /// # Errors
    /// As [`snapshot`](Self::snapshot) and [`twin_of`](Self::twin_of).
    pub fn twin(&self) -> Result<Self> {
        self.twin_of(self.snapshot()?)
    }

    /// An arena of those bytes, once this one's, in which this process is the same member as here, as if the calling
    /// thread had joined. Whoever else was a member then is one there, whether it lives or not. For harnesses only.
    ///
    /// This process holds there what it held here, and gives it back when it has opened it there by its name and
    /// drops it.
    ///
    /// # Errors
    /// `Os` when the system refuses a mapping; `Broken` when the bytes contradict themselves.
    ///
    /// # After fork
    /// As any arena: the child is a member of its own.
    pub fn twin_of(&self, snapshot: Snapshot) -> Result<Self> {
        let twin = Member::new(snapshot.file, self.inner.recoveries());
        let (number, generation) = (self.inner.slot(), self.inner.generation());
        if number != 0 {
            twin.slot_at(number)?.live_by(robust::this_thread());
            twin.have_place(number, generation);
        }
        let inner = Arc::new(twin);
        family::enter(&inner);
        Ok(Self { inner })
    }
}

#[cfg(test)]
mod tests {
    use crate::{Acquired, Arena, Deadline, Lock, Queue};

    #[test]
    fn a_twin_goes_its_own_way() {
        let arena = Arena::create().unwrap();
        let (lock, queue) = (
            Lock::new(&arena).unwrap(),
            Queue::new(&arena, None).unwrap(),
        );
        queue.put(7, &[b"before"], Deadline::NEVER).unwrap();
        let twin = arena.twin().unwrap();
        let same = Lock::open(&twin, lock.name()).unwrap();
        assert_eq!(same.acquire(Deadline::NEVER).unwrap(), Acquired::Clean);
        assert!(!lock.is_held().unwrap());
        let copied = Queue::open(&twin, queue.name()).unwrap();
        queue.put(7, &[b"after"], Deadline::NEVER).unwrap();
        let got = copied.get(Deadline::now()).unwrap().unwrap();
        assert_eq!((got.tag, &got.bytes[..]), (7, &b"before"[..]));
        assert!(copied.get(Deadline::now()).unwrap().is_none());
        drop((same, copied));
        assert_eq!(twin.census().unwrap().objects, 0);
        drop(twin);
        assert_eq!(arena.census().unwrap().objects, 2);
        assert_eq!(queue.len().unwrap(), 2);
    }

    #[test]
    fn a_twin_has_all_windows() {
        let arena = Arena::create().unwrap();
        let queue = Queue::new(&arena, None).unwrap();
        let long = vec![3; 3 << 20];
        queue.put(0, &[&long], Deadline::NEVER).unwrap();
        let twin = arena.twin().unwrap();
        let copied = Queue::open(&twin, queue.name()).unwrap();
        drop((queue, arena));
        assert!(copied.get(Deadline::now()).unwrap().unwrap().bytes == long);
    }
}
