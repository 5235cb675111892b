//! Models of the recursive lock.

use super::super::{Acquired, RLock};
use super::{Hold, shared_by_four};
use crate::Deadline;
use crate::sys::model::{Scene, explore_deaths, explore_disturbed};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

fn rlock_of_four(scene: &Scene) -> [Hold<RLock>; 4] {
    shared_by_four(scene, RLock::new, |arena, lock| {
        RLock::open(arena, lock.name())
    })
}

/// Counts with the lock taken twice, and says how the first time went.
fn count_inside(lock: &Hold<RLock>) -> Acquired {
    let acquired = lock.acquire(Deadline::NEVER).unwrap();
    assert_eq!(lock.acquire(Deadline::NEVER), Ok(Acquired::Clean));
    assert_eq!(lock.count(), Ok(2));
    lock.count_up();
    lock.release().unwrap();
    lock.release().unwrap();
    acquired
}

/// Two threads of one process and one of another count: no count is lost, nobody takes another thread's hold for its own,
/// and nobody who sleeps is forgotten, also when a sleep ends for no reason.
#[test]
fn recursive_lock_excludes_and_wakes() {
    explore_disturbed(1, |scene| {
        let [first, one, other, _] = rlock_of_four(scene);
        // The parts have a thread's number of their own; whose threads they are, the membership says.
        for (thread, lock) in [(1, one.clone()), (2, one.clone()), (3, other)] {
            scene.part(thread, move || {
                assert_eq!(count_inside(&lock), Acquired::Clean);
            });
        }
        scene.play();
        assert_eq!(first.guarded(), 3);
        assert_eq!(first.is_held(), Ok(false));
    });
}

/// One thread takes the lock again and again while another one of its process does: what the first has been doesn't make it
/// the holder.
#[test]
fn a_thread_that_held_it_is_a_stranger_again() {
    explore_disturbed(2, |scene| {
        let [first, one, ..] = rlock_of_four(scene);
        for (thread, times) in [(1, 2), (2, 1)] {
            let lock = one.clone();
            scene.part(thread, move || {
                for _ in 0..times {
                    assert_eq!(count_inside(&lock), Acquired::Clean);
                }
            });
        }
        scene.play();
        assert_eq!(first.guarded(), 3);
    });
}

/// A process dies before each of its steps, two others want the lock: whoever waits finds the death and recovers it, and
/// at most one is told.
#[test]
fn recursive_lock_of_a_dead_process_is_handed_on() {
    explore_deaths(1, |scene| {
        let [first, others @ ..] = rlock_of_four(scene);
        scene.doom(1);
        let told = Arc::new(AtomicU64::new(0));
        for (process, lock) in (1..).zip(others.clone()) {
            let told = told.clone();
            scene.part(process, move || {
                let acquired = count_inside(&lock);
                told.fetch_add(u64::from(acquired == Acquired::OwnerDied), Relaxed);
            });
        }
        scene.play();
        first.arena.reap().unwrap();
        let last = first.acquire(Deadline::NEVER).unwrap();
        told.fetch_add(u64::from(last == Acquired::OwnerDied), Relaxed);
        assert!(told.load(Relaxed) <= scene.was_killed().into());
        assert!(first.guarded() + u64::from(scene.was_killed()) >= 3);
        first.arena.census().unwrap();
    });
}
