//! The lock between processes.

use crate::child::{alone, fork, until, until_empty};
use procession_core::{Acquired, Arena, Deadline, Error, Lock, Memory, Queue, RLock};
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

#[test]
fn excludes_two_processes() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let lock = Lock::new(&arena).unwrap();
    // The counter is a queue's only message: read and written back under the lock.
    let counter = Queue::new(&arena, None).unwrap();
    counter
        .put(0, &[&0u64.to_le_bytes()], Deadline::NEVER)
        .unwrap();
    let children: Vec<_> = (0..3)
        .map(|_| {
            fork(|| {
                for _ in 0..2000 {
                    assert_eq!(lock.acquire(Deadline::NEVER).unwrap(), Acquired::Clean);
                    let seen = counter
                        .get(Deadline::now())
                        .unwrap()
                        .expect("under the lock");
                    let next = u64::from_le_bytes(seen.bytes.try_into().unwrap()) + 1;
                    counter
                        .put(0, &[&next.to_le_bytes()], Deadline::NEVER)
                        .unwrap();
                    lock.release().unwrap();
                }
            })
        })
        .collect();
    children.into_iter().for_each(crate::child::Child::join);
    let last = counter.get(Deadline::now()).unwrap().unwrap();
    assert_eq!(u64::from_le_bytes(last.bytes.try_into().unwrap()), 6000);
}

#[test]
fn goes_to_the_next_when_its_holder_is_killed() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let lock = Lock::new(&arena).unwrap();
    let holder = fork(|| {
        lock.acquire(Deadline::NEVER).unwrap();
        loop {
            std::thread::sleep(Duration::from_secs(1));
        }
    });
    until("the child to hold it", || lock.is_held().unwrap());
    holder.signal(libc::SIGKILL);
    assert_eq!(lock.acquire(Deadline::NEVER).unwrap(), Acquired::OwnerDied);
    lock.release().unwrap();
    assert_eq!(lock.acquire(Deadline::NEVER).unwrap(), Acquired::Clean);
    assert_eq!(holder.wait(), -libc::SIGKILL);
}

#[test]
fn stays_held_when_its_holder_leaves_normally() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let lock = Lock::new(&arena).unwrap();
    let child = fork(|| {
        lock.acquire(Deadline::NEVER).unwrap();
        arena.leave();
    });
    child.join();
    arena.reap().unwrap();
    let timeout = Deadline::after(Duration::from_millis(120));
    assert_eq!(lock.acquire(timeout).unwrap(), Acquired::TimedOut);
    lock.release().unwrap();
    assert_eq!(lock.acquire(Deadline::NEVER).unwrap(), Acquired::Clean);
}

#[test]
fn is_not_taken_from_a_stopped_process() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let lock = Lock::new(&arena).unwrap();
    let holder = fork(|| {
        lock.acquire(Deadline::NEVER).unwrap();
        loop {
            std::thread::sleep(Duration::from_secs(1));
        }
    });
    until("the child to hold it", || lock.is_held().unwrap());
    holder.signal(libc::SIGSTOP);
    assert!(holder.wait_stopped());
    let begin = Instant::now();
    let timeout = Duration::from_millis(200);
    assert_eq!(
        lock.acquire(Deadline::after(timeout)).unwrap(),
        Acquired::TimedOut
    );
    assert!(begin.elapsed() >= timeout);
}

#[test]
fn may_be_released_by_another_process() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let lock = Lock::new(&arena).unwrap();
    lock.acquire(Deadline::NEVER).unwrap();
    fork(|| lock.release().unwrap()).join();
    assert!(!lock.is_held().unwrap());
    assert_eq!(
        lock.release(),
        Err(Error::Misuse {
            what: "the lock is not held"
        })
    );
}

#[test]
fn a_name_outlives_its_holder_only_with_another() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let lock = Lock::new(&arena).unwrap();
    let name = lock.name();
    let again = Lock::open(&arena, name).unwrap();
    drop(lock);
    again.acquire(Deadline::NEVER).unwrap();
    drop(again);
    until_empty(&arena);
    assert_eq!(
        Lock::open(&arena, name).unwrap_err(),
        Error::Closed { what: "object" }
    );
}

#[test]
fn a_name_of_another_kind_is_refused_and_not_held() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let queue = Queue::new(&arena, None).unwrap();
    for _ in 0..2 {
        let opened = Lock::open(&arena, queue.name());
        assert!(matches!(opened, Err(Error::Malformed { .. })));
    }
    // It is held as often as before: by the queue alone.
    queue.put(0, &[b"x"], Deadline::NEVER).unwrap();
    drop(queue);
    until_empty(&arena);
}

#[test]
fn a_killed_childs_holds_are_given_back() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let before = arena.census().unwrap();
    for _ in 0..20 {
        let child = fork(|| {
            let _locks: Vec<_> = (0..300).map(|_| Lock::new(&arena).unwrap()).collect();
            let queue = Queue::new(&arena, None).unwrap();
            queue.put(0, &[&[7; 100_000]], Deadline::NEVER).unwrap();
            // SAFETY: to this process.
            unsafe { libc::raise(libc::SIGKILL) };
        });
        assert_eq!(child.wait(), -libc::SIGKILL);
        until_empty(&arena);
    }
    let after = arena.census().unwrap();
    assert!(
        before.allocated_bytes + (4 << 20) > after.allocated_bytes,
        "{before:?} {after:?}"
    );
}

#[test]
fn a_child_killed_before_it_could_do_anything_leaves_nothing() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let lock = Lock::new(&arena).unwrap();
    for _ in 0..200 {
        // As soon as it exists: before its handlers have run, more often than not.
        let child = fork(|| {
            loop {
                std::hint::spin_loop();
            }
        });
        child.signal(libc::SIGKILL);
        assert_eq!(child.wait(), -libc::SIGKILL);
    }
    drop(lock);
    until_empty(&arena);
}

#[test]
fn what_is_done_briefly_is_done_alone_or_not_at_all() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let (lock, rlock) = (Lock::new(&arena).unwrap(), RLock::new(&arena).unwrap());
    let held = lock.briefly(|| lock.is_held().unwrap()).unwrap();
    assert_eq!(held, Some(true));
    let held = rlock.briefly(|| rlock.is_held().unwrap()).unwrap();
    assert_eq!(held, Some(true));
    assert!(!lock.is_held().unwrap() && !rlock.is_held().unwrap());
    lock.acquire(Deadline::NEVER).unwrap();
    rlock.acquire(Deadline::NEVER).unwrap();
    let by_another = || {
        assert_eq!(lock.briefly(|| ()).unwrap(), None);
        assert_eq!(rlock.briefly(|| ()).unwrap(), None);
    };
    fork(by_another).join();
    std::thread::scope(|scope| scope.spawn(by_another).join().unwrap());
    // Its own thread has it already.
    assert_eq!(rlock.briefly(|| ()).unwrap(), Some(()));
    assert_eq!(rlock.count().unwrap(), 1);
}

#[test]
fn what_is_done_briefly_keeps_others_apart_and_wakes_them() {
    let _alone = alone();
    const TIMES: u32 = 20_000;
    let arena = Arena::create().unwrap();
    let (lock, memory) = (RLock::new(&arena).unwrap(), Memory::new(&arena, 4).unwrap());
    // Only one may be between the look and the store.
    let add = || {
        let number = memory.bytes().u32_at(0).unwrap();
        number.store(number.load(Relaxed) + 1, Relaxed);
    };
    let work = || {
        for _ in 0..TIMES {
            if lock.briefly(add).unwrap().is_none() {
                while lock.acquire(Deadline::NEVER) == Err(Error::Interrupted) {}
                add();
                lock.release().unwrap();
            }
        }
    };
    let children = [(); 2].map(|()| fork(work));
    for child in children {
        child.join();
    }
    assert_eq!(memory.bytes().u32_at(0).unwrap().load(Relaxed), 2 * TIMES);
}
