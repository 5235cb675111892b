//! Models of the lock that users see.

use super::{Acquired, Lock};
use crate::shm::orders::{FREE, found, join};
use crate::sys::model::{Scene, exit, explore, explore_deaths, explore_disturbed};
use crate::{Arena, Deadline};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// One process' hold on the lock.
#[derive(Clone)]
struct Hold {
    arena: Arena,
    lock: Arc<Lock>,
}

/// A lock that the processes 0 to 3 hold, each by its own membership.
fn shared_by_four(scene: &Scene) -> [Hold; 4] {
    let first = found(scene);
    let lock = Lock::new(&first).unwrap();
    let name = lock.name();
    let [one, two, three] = [1, 2, 3].map(|process| {
        let arena = join(scene, &first, process);
        scene.act_for(process);
        let lock = Arc::new(Lock::open(&arena, name).unwrap());
        Hold { arena, lock }
    });
    scene.act_for(0);
    let first = Hold {
        arena: first,
        lock: Arc::new(lock),
    };
    [first, one, two, three]
}

impl Hold {
    fn acquire(&self) -> Acquired {
        self.lock.acquire(Deadline::NEVER).unwrap()
    }

    fn release(&self) {
        self.lock.release().unwrap();
    }

    /// What the lock guards: reads and writes of it that aren't ordered fail the model.
    fn guarded(&self) -> u64 {
        let mut bytes = [0; 8];
        self.arena.inner.windows().read(FREE, &mut bytes).unwrap();
        u64::from_le_bytes(bytes)
    }

    fn count(&self) {
        let bytes = (self.guarded() + 1).to_le_bytes();
        self.arena.inner.windows().write(FREE, &bytes).unwrap();
    }
}

/// Three processes count under a lock: no count is lost, and nobody who sleeps is forgotten, also when a sleep ends
/// for no reason, or at the 50 ms after which a sleeper looks at the owner, who lives.
#[test]
fn lock_excludes_and_wakes() {
    explore_disturbed(2, |scene| {
        let [first, others @ ..] = shared_by_four(scene);
        for (process, lock) in (1..).zip(others.clone()) {
            scene.part(process, move || {
                assert_eq!(lock.acquire(), Acquired::Clean);
                lock.count();
                lock.release();
            });
        }
        scene.play();
        assert_eq!(first.guarded(), 3);
        assert_eq!(first.lock.is_held(), Ok(false));
    });
}

/// A process dies before each of its steps, two others want the lock: whoever waits finds the death and recovers it;
/// if the dead held the lock just one is told; and the lock is free in the end.
#[test]
fn lock_of_a_dead_process_is_handed_on() {
    explore_deaths(2, |scene| {
        let [first, others @ ..] = shared_by_four(scene);
        scene.doom(1);
        let (told, inside) = (
            Arc::new(AtomicU64::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        for (process, lock) in (1..).zip(others.clone()) {
            let (told, inside) = (told.clone(), inside.clone());
            scene.part(process, move || {
                let acquired = lock.acquire();
                told.fetch_add(u64::from(acquired == Acquired::OwnerDied), Relaxed);
                inside.store(process == 1 || inside.load(Relaxed), Relaxed);
                lock.count();
                inside.store(process != 1 && inside.load(Relaxed), Relaxed);
                lock.release();
            });
        }
        scene.play();
        first.arena.reap().unwrap();
        let last = first.acquire();
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
        let [first, holder, waiter, releaser] = shared_by_four(scene);
        scene.act_for(1);
        assert_eq!(holder.acquire(), Acquired::Clean);
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
            assert_eq!(waiting.acquire(), Acquired::Clean);
        });
        let releasing = releaser.clone();
        scene.part(3, move || {
            releasing.arena.reap().unwrap();
            releasing.release();
        });
        scene.play();
        assert_eq!(first.lock.is_held(), Ok(true));
        scene.act_for(2);
        waiter.release();
    });
}
