//! Models of the primitives that users see; here of the lock.

mod barrier;
mod condition;
mod event;
mod rlock;
mod semaphore;
mod waiters;

use super::{Acquired, Lock};
use crate::shm::layout::PAGE;
use crate::shm::orders::{FREE, found, join};
use crate::sys::model::{Scene, exit, explore, explore_deaths, explore_disturbed};
use crate::{Arena, Deadline};
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// One process' hold on an object.
struct Hold<T> {
    arena: Arena,
    object: Arc<T>,
}

/// What the processes 0 to 3 hold, each by its own membership: the first makes it, the others open it.
fn shared_by_four<T>(
    scene: &Scene,
    make: impl Fn(&Arena) -> crate::Result<T>,
    open: impl Fn(&Arena, &T) -> crate::Result<T>,
) -> [Hold<T>; 4] {
    let arena = found(scene);
    let object = Arc::new(make(&arena).unwrap());
    let first = Hold { arena, object };
    let [one, two, three] = [1, 2, 3].map(|process| {
        let arena = join(scene, &first.arena, process);
        scene.act_for(process);
        let object = Arc::new(open(&arena, &first).unwrap());
        Hold { arena, object }
    });
    scene.act_for(0);
    [first, one, two, three]
}

fn lock_of_four(scene: &Scene) -> [Hold<Lock>; 4] {
    shared_by_four(scene, Lock::new, |arena, lock| {
        Lock::open(arena, lock.name())
    })
}

impl<T> Clone for Hold<T> {
    fn clone(&self) -> Self {
        Self {
            arena: self.arena.clone(),
            object: self.object.clone(),
        }
    }
}

impl<T> Deref for Hold<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.object
    }
}

impl<T> Hold<T> {
    /// One of some places in memory: reads and writes of it that aren't ordered fail the model.
    fn read(&self, place: u64) -> u64 {
        let mut bytes = [0; 8];
        let windows = self.arena.inner.windows();
        windows.read(FREE + place * PAGE, &mut bytes).unwrap();
        u64::from_le_bytes(bytes)
    }

    fn write(&self, place: u64, value: u64) {
        let windows = self.arena.inner.windows();
        windows
            .write(FREE + place * PAGE, &value.to_le_bytes())
            .unwrap();
    }

    /// What the object guards.
    fn guarded(&self) -> u64 {
        self.read(0)
    }

    fn count_up(&self) {
        self.write(0, self.guarded() + 1);
    }
}

/// Takes a lock, and waits for it as long as it takes.
fn acquire(lock: &Lock) -> Acquired {
    lock.acquire(Deadline::NEVER).unwrap()
}

/// Three processes count under a lock: no count is lost, and nobody who sleeps is forgotten, also when a sleep ends
/// for no reason, or at the 50 ms after which a sleeper looks at the owner, who lives.
#[test]
fn lock_excludes_and_wakes() {
    explore_disturbed(2, |scene| {
        let [first, others @ ..] = lock_of_four(scene);
        for (process, lock) in (1..).zip(others.clone()) {
            scene.part(process, move || {
                assert_eq!(acquire(&lock), Acquired::Clean);
                lock.count_up();
                lock.release().unwrap();
            });
        }
        scene.play();
        assert_eq!(first.guarded(), 3);
        assert_eq!(first.is_held(), Ok(false));
    });
}

/// A process dies before each of its steps, two others want the lock: whoever waits finds the death and recovers it;
/// if the dead held the lock just one is told; and the lock is free in the end.
#[test]
fn lock_of_a_dead_process_is_handed_on() {
    explore_deaths(2, |scene| {
        let [first, others @ ..] = lock_of_four(scene);
        scene.doom(1);
        let (told, inside) = (
            Arc::new(AtomicU64::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        for (process, lock) in (1..).zip(others.clone()) {
            let (told, inside) = (told.clone(), inside.clone());
            scene.part(process, move || {
                let acquired = acquire(&lock);
                told.fetch_add(u64::from(acquired == Acquired::OwnerDied), Relaxed);
                inside.store(process == 1 || inside.load(Relaxed), Relaxed);
                lock.count_up();
                inside.store(process != 1 && inside.load(Relaxed), Relaxed);
                lock.release().unwrap();
            });
        }
        scene.play();
        first.arena.reap().unwrap();
        let last = acquire(&first);
        told.fetch_add(u64::from(last == Acquired::OwnerDied), Relaxed);
        assert!(told.load(Relaxed) <= scene.was_killed().into());
        assert!(told.load(Relaxed) == 1 || !inside.load(Relaxed) || !scene.was_killed());
        assert!(first.guarded() + u64::from(scene.was_killed()) >= 3);
        first.arena.census().unwrap();
    });
}

/// A process leaves normally while it holds the lock: it stays held, whoever recovers the process; once a third one
/// has released it, who waits gets it, and is told of no death.
#[test]
fn lock_of_one_that_left_stays_held() {
    explore(2, |scene| {
        let [first, holder, waiter, releaser] = lock_of_four(scene);
        scene.act_for(1);
        assert_eq!(acquire(&holder), Acquired::Clean);
        scene.act_for(0);
        {
            let holder = holder.clone();
            scene.part(1, move || {
                holder.arena.leave();
                exit();
            });
        }
        let waiting = waiter.clone();
        scene.part(2, move || {
            assert_eq!(acquire(&waiting), Acquired::Clean);
        });
        let releasing = releaser.clone();
        scene.part(3, move || {
            releasing.arena.reap().unwrap();
            releasing.release().unwrap();
        });
        scene.play();
        assert_eq!(first.is_held(), Ok(true));
        scene.act_for(2);
        waiter.release().unwrap();
    });
}
