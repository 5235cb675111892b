//! An arena that has contradicted itself: whoever notices says so in its header, and every call of every process then
//! fails. Better than to go on with some of it, which would hand out what is in use, or wait for what doesn't come.
//!
//! Source: PostgreSQL does the same to a cluster whose backend crashed in shared memory; `std`'s poisoned mutex.

use super::arena::Member;
use super::blocks;
use super::layout::POISON_TEXT;
use crate::sys::word::{Acquire, Relaxed, Release};
use crate::{Error, Result};

impl Member {
    /// Fails once the arena is poisoned. Two loads of lines that are only read.
    #[inline]
    pub(crate) fn sound(&self) -> Result<()> {
        if self.header()?.poison.load(Relaxed) == 0 {
            Ok(())
        } else {
            Err(self.poisoned())
        }
    }

    /// The result of a call, which poisons the arena if that has contradicted itself.
    #[inline]
    pub(crate) fn judged<T>(&self, result: Result<T>) -> Result<T> {
        match result {
            Err(Error::Broken { what }) => Err(self.poison(what)),
            result => result,
        }
    }

    #[cold]
    fn poisoned(&self) -> Error {
        let mut is_news = false;
        let what = self.poison_text().get_or_init(|| {
            is_news = true;
            // Read once, and kept: the text may be nonsense, but must not grow with every call.
            self.read_text().leak()
        });
        if is_news {
            // Whoever poisoned it may have died before it woke all. It may lead here again, so the text comes first.
            self.wake_all();
        }
        Error::Poisoned { what }
    }

    #[cold]
    fn poison(&self, what: &'static str) -> Error {
        let Ok(header) = self.header() else {
            return Error::Poisoned { what };
        };
        if header.poison.replace(0, 1) {
            let mut bytes = [0; POISON_TEXT];
            let length = what.len().min(POISON_TEXT);
            bytes[..length].copy_from_slice(&what.as_bytes()[..length]);
            for (cell, bytes) in header.poison_text.iter().zip(bytes.as_chunks().0) {
                cell.store(u64::from_le_bytes(*bytes), Relaxed);
            }
            header.poison.store(2, Release);
        }
        self.poisoned()
    }

    fn read_text(&self) -> String {
        let Ok(header) = self.header() else {
            return String::new();
        };
        // Whoever poisons it may be writing it: then there is no text yet.
        if header.poison.load(Acquire) == 1 {
            return "something".into();
        }
        let cells = header.poison_text.iter();
        let bytes: Vec<u8> = cells
            .flat_map(|cell| cell.load(Relaxed).to_le_bytes())
            .collect();
        let end = bytes
            .iter()
            .position(|byte| *byte == 0)
            .unwrap_or(bytes.len());
        String::from_utf8_lossy(&bytes[..end]).into_owned()
    }

    /// Wakes those who sleep on objects, as far as they can be found: the others look by themselves, or when they wake.
    fn wake_all(&self) {
        blocks::find_objects(self, |offset, object| {
            let kind = object.kind.load(Relaxed);
            let mut recoveries = self.recoveries().iter();
            if let Some(recovery) = recoveries.find(|recovery| recovery.kind == kind) {
                let _ = (recovery.wake)(self, offset);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use crate::shm::layout::OBJECT_HEADER;
    use crate::sys::word::{Cell, Relaxed};
    use crate::{Arena, Deadline, Error, Lock, Queue};

    #[test]
    fn every_call_says_what_contradicted_itself() {
        let arena = Arena::create().unwrap();
        let lock = Lock::new(&arena).unwrap();
        let [queue, other] = [(); 2].map(|()| Queue::new(&arena, None).unwrap());
        queue.put(0, &[b"message"], Deadline::NEVER).unwrap();
        let poisoned = Error::Poisoned {
            what: "a record of a queue",
        };
        std::thread::scope(|scope| {
            let sleeper = scope.spawn(|| other.get(Deadline::NEVER).map(drop));
            let header = queue.name().offset + OBJECT_HEADER;
            // The consumers' position, and the kind of the record there.
            let position = arena.inner.at::<Cell>(header + 256).unwrap().load(Relaxed);
            arena
                .inner
                .at::<Cell>(position)
                .unwrap()
                .store(0xff, Relaxed);
            assert_eq!(queue.get(Deadline::now()).map(drop), Err(poisoned.clone()));
            assert_eq!(sleeper.join().unwrap(), Err(poisoned.clone()));
        });
        let name = lock.name();
        let calls: [(&str, Result<(), Error>); 13] = [
            ("get", other.get(Deadline::now()).map(drop)),
            ("put", other.put(0, &[b"more"], Deadline::NEVER).map(drop)),
            ("try_put", other.try_put(0, &[b"more"]).map(drop)),
            ("len", other.len().map(drop)),
            ("close", other.close()),
            ("settle", other.settle().map(drop)),
            ("acquire", lock.acquire(Deadline::NEVER).map(drop)),
            ("release", lock.release()),
            ("is_held", lock.is_held().map(drop)),
            ("new", Lock::new(&arena).map(drop)),
            ("open", Lock::open(&arena, name).map(drop)),
            ("reap", arena.reap()),
            ("census", arena.census().map(drop)),
        ];
        for (call, result) in calls {
            assert_eq!(result, Err(poisoned.clone()), "{call}");
        }
        assert_eq!(arena.reserve().map(drop), Err(poisoned));
    }

    #[test]
    fn a_bad_name_poisons_nothing() {
        let arena = Arena::create().unwrap();
        for offset in [0, 7, 1 << 20, u64::MAX, u64::MAX - 191, 1 << 45] {
            let name = crate::ObjectName { offset, serial: 1 };
            let refused = Lock::open(&arena, name).unwrap_err();
            assert!(
                matches!(refused, Error::Closed { .. } | Error::Malformed { .. }),
                "{offset}: {refused}"
            );
        }
        assert!(arena.census().is_ok());
    }
}
