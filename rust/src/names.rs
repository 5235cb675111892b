//! Objects in messages: what a value that is encoded names, and how it is opened again.

use crate::codec;
use crate::error::{Result, retry};
use crate::tree::arena;
use procession_core::{Arena, Carried, Error, Naming, ObjectName};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};
use std::cell::Cell;

/// Encodes a message for a queue, and gives the objects that it names: held, until the queue has it.
#[inline]
pub(crate) fn naming<E>(encode: impl FnOnce() -> Result<(), E>) -> Result<Carried, E> {
    Naming::during(encode).map(|((), names)| names)
}

/// Encodes an object as its name. Within a message for a queue the message will hold it; anything else may go where
/// nobody can see it, so the object lives on without a holder.
pub(crate) fn serialize<S: Serializer>(
    serializer: S,
    name: ObjectName,
    escape: impl FnOnce() -> procession_core::Result<ObjectName>,
) -> Result<S::Ok, S::Error> {
    let arena = arena().map_err(ser::Error::custom)?;
    if !Naming::add(arena, name).map_err(ser::Error::custom)? {
        escape().map_err(ser::Error::custom)?;
    }
    (name.offset, name.serial).serialize(serializer)
}

thread_local! {
    /// While a message is decoded that may come from another tree, where names mean something else.
    static FOREIGN: Cell<bool> = const { Cell::new(false) };
}

/// Decodes a message that may come from another tree: names in it are refused.
pub(crate) fn foreign<R>(decode: impl FnOnce() -> R) -> R {
    /// Decoding may panic.
    struct Before(bool);
    impl Drop for Before {
        fn drop(&mut self) {
            FOREIGN.set(self.0);
        }
    }
    let _before = Before(FOREIGN.replace(true));
    decode()
}

/// # Errors
/// `Misuse`, while such a message is decoded.
pub(crate) fn not_foreign() -> procession_core::Result<()> {
    if FOREIGN.get() {
        return Err(Error::Misuse {
            what: "what names an object of a tree of processes must come from the same tree",
        });
    }
    Ok(())
}

/// Opens the object whose name is decoded.
pub(crate) fn deserialize<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    open: impl Fn(&Arena, ObjectName) -> procession_core::Result<T>,
) -> Result<T, D::Error> {
    let (offset, serial) = Deserialize::deserialize(deserializer)?;
    not_foreign().map_err(codec::misread)?;
    let arena = arena().map_err(de::Error::custom)?;
    retry(|| open(arena, ObjectName { offset, serial })).map_err(de::Error::custom)
}

#[cfg(test)]
mod tests {
    use crate::tree::arena;
    use crate::{Lock, Pool, Process, PutError, Queue};
    use serde::{Deserialize, Deserializer, Serialize, Serializer, ser};
    use std::time::{Duration, Instant};

    crate::test_support!();

    fn objects() -> u64 {
        let arena = arena().unwrap();
        arena.reap().unwrap();
        arena.census().unwrap().objects
    }

    /// Waits until the tree has so many objects: a worker lets go of its own in its own time.
    fn until(count: u64) {
        let end = Instant::now() + Duration::from_secs(60);
        while objects() != count {
            assert!(Instant::now() < end, "{} objects, not {count}", objects());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Names a lock, and then can't be encoded.
    struct Unfinished(Lock);

    impl Serialize for Unfinished {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            self.0.serialize(serializer)?;
            Err(ser::Error::custom("no more"))
        }
    }

    /// Puts a lock into a queue while it is encoded itself.
    struct Nested(Lock, Queue<Lock>);

    impl Serialize for Nested {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            let other = Lock::new().map_err(ser::Error::custom)?;
            self.1.put(&other).map_err(ser::Error::custom)?;
            (&self.0, &self.1).serialize(serializer)
        }
    }

    impl<'de> Deserialize<'de> for Nested {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            let (lock, queue) = Deserialize::deserialize(deserializer)?;
            Ok(Self(lock, queue))
        }
    }

    // One after the other, since they count the objects of the whole process.
    #[test]
    fn objects_end_with_their_last_holder() {
        in_queues();
        in_failures();
        in_processes();
        in_pools();
        // Bytes that nobody can see: the lock lives on.
        let before = objects();
        let bytes = postcard::to_allocvec(&Lock::new().unwrap()).unwrap();
        assert_eq!(objects(), before + 1);
        let lock: Lock = postcard::from_bytes(&bytes).unwrap();
        drop(lock);
        assert_eq!(objects(), before + 1);
    }

    fn in_queues() {
        let before = objects();
        let queue = Queue::new().unwrap();
        for _ in 0..10 {
            queue.put(&Lock::new().unwrap()).unwrap();
        }
        assert_eq!(objects(), before + 11);
        for got in 0..5 {
            let lock: Lock = queue.get().unwrap();
            assert_eq!(objects(), before + 11 - got);
            drop(lock.acquire().unwrap());
        }
        assert_eq!(objects(), before + 6);
        let outer = Queue::new().unwrap();
        outer.put(&(1, queue)).unwrap();
        assert_eq!(objects(), before + 7);
        let (_, inner): (u8, Queue<Lock>) = outer.get().unwrap();
        drop(outer);
        assert_eq!((objects(), inner.len().unwrap()), (before + 6, 5));
        drop(inner);
        assert_eq!(objects(), before);
    }

    fn in_failures() {
        let before = objects();
        let queue = Queue::new().unwrap();
        let failed = queue.put(&Unfinished(Lock::new().unwrap()));
        assert!(matches!(failed, Err(PutError::Failed(_))));
        assert_eq!(objects(), before + 1);
        let inner = Queue::new().unwrap();
        let both = Queue::new().unwrap();
        both.put(&Nested(Lock::new().unwrap(), inner.clone()))
            .unwrap();
        drop(inner);
        assert_eq!(objects(), before + 5);
        let Nested(lock, inner) = both.get().unwrap();
        assert_eq!(inner.len().unwrap(), 1);
        drop(lock.acquire().unwrap());
        drop((lock, inner, both, queue));
        assert_eq!(objects(), before);
    }

    fn in_processes() {
        let before = objects();
        let give = |lock: Lock| {
            drop(lock.acquire().unwrap());
            (lock, Lock::new().unwrap())
        };
        let child = Process::spawn(give, Lock::new().unwrap()).unwrap();
        let (lock, other) = child.join().unwrap();
        drop((lock.acquire().unwrap(), other.acquire().unwrap()));
        until(before + 2);
        drop((lock, other));
        until(before);
    }

    fn in_pools() {
        let before = objects();
        let pool = Pool::new(2).unwrap();
        pool.map(|number: u32| number, 0..20).unwrap();
        let ready = objects();
        let locks: Vec<Lock> = (0..20).map(|_| Lock::new().unwrap()).collect();
        let back: Vec<Lock> = pool.map(|lock: Lock| lock, locks).unwrap();
        until(ready + 20);
        let made: Vec<Lock> = pool
            .imap(|(): ()| Lock::new().unwrap(), [(); 20])
            .unwrap()
            .map(Result::unwrap)
            .collect();
        until(ready + 40);
        for lock in back.iter().chain(&made) {
            drop(lock.acquire().unwrap());
        }
        drop((back, made));
        until(ready);
        let fails = pool.apply(
            |_: Lock| -> Lock { panic!("as it should") },
            Lock::new().unwrap(),
        );
        assert!(fails.is_err());
        until(ready);
        // An answer that nobody takes, and a task that dies with its worker.
        let unheard = pool
            .apply_async(|lock: Lock| lock, Lock::new().unwrap())
            .unwrap();
        let dies = |_: Lock| -> u8 { std::process::abort() };
        assert!(pool.apply(dies, Lock::new().unwrap()).is_err());
        drop((unheard, pool));
        until(before);
    }
}
