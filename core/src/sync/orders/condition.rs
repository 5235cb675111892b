//! Models of the condition, with a lock around what is waited for, as its callers have it.

use super::super::{Condition, Lock};
use super::{Hold, acquire, shared_by_four};
use crate::Deadline;
use crate::sys::model::{Scene, explore, explore_deaths, explore_disturbed};

/// A store of things, with the lock and the condition that go with it.
struct Shop {
    lock: Lock,
    filled: Condition,
}

fn shop_of_four(scene: &Scene) -> [Hold<Shop>; 4] {
    shared_by_four(
        scene,
        |arena| {
            let (lock, filled) = (Lock::new(arena)?, Condition::new(arena)?);
            Ok(Shop { lock, filled })
        },
        |arena, shop| {
            let lock = Lock::open(arena, shop.lock.name())?;
            let filled = Condition::open(arena, shop.filled.name())?;
            Ok(Shop { lock, filled })
        },
    )
}

impl Hold<Shop> {
    /// Puts so many things there, and wakes as many.
    fn fill(&self, things: u64) {
        acquire(&self.lock);
        self.write(0, self.guarded() + things);
        self.filled.notify(things as usize).unwrap();
        self.lock.release().unwrap();
    }

    /// Takes one thing, and waits until there is one.
    fn take(&self) {
        acquire(&self.lock);
        while self.guarded() == 0 {
            let waiting = self.filled.enlist(Deadline::NEVER).unwrap().unwrap();
            self.lock.release().unwrap();
            assert_eq!(waiting.wait(Deadline::NEVER), Ok(true));
            assert!(waiting.leave());
            acquire(&self.lock);
        }
        self.write(0, self.guarded() - 1);
        self.lock.release().unwrap();
    }
}

/// One fills twice, two take: no notification is missed by who is about to sleep, also when a sleep ends for no reason.
#[test]
fn a_notification_reaches_who_is_about_to_sleep() {
    explore_disturbed(1, |scene| {
        let [first, one, others @ ..] = shop_of_four(scene);
        let filler = one.clone();
        scene.part(1, move || {
            filler.fill(1);
            filler.fill(1);
        });
        for (process, shop) in (2..).zip(others.clone()) {
            scene.part(process, move || shop.take());
        }
        scene.play();
        assert_eq!(first.guarded(), 0);
        assert_eq!(first.filled.waiting(), Ok(0));
    });
}

/// One who waits has died, and nobody has noticed: the only notification is for the one who waits and lives.
#[test]
fn a_notification_passes_over_the_dead() {
    explore(3, |scene| {
        let [first, one, dead, two] = shop_of_four(scene);
        // Before its sleep.
        scene.kill(2, ASLEEP, || dead.take());
        scene.spare(SPARE);
        let (filler, taker) = (one.clone(), two.clone());
        scene.part(1, move || filler.fill(1));
        scene.part(3, move || taker.take());
        scene.play();
        assert_eq!(first.guarded(), 0);
        first.arena.reap().unwrap();
        assert_eq!(first.filled.waiting(), Ok(0));
    });
}

/// Eights that a recovery touches which repairs the allocator.
const SPARE: usize = 420;

/// Steps of one who waits, up to its sleep: it takes the lock, comes, frees the lock, and says that it sleeps.
const ASLEEP: u64 = 7;

/// One of two who wait dies before each of its steps; things for both come at once: the other one gets its own, whatever
/// the dead one was told.
#[test]
fn who_dies_on_the_way_takes_nobodys_notification() {
    explore_deaths(1, |scene| {
        let [first, one, others @ ..] = shop_of_four(scene);
        scene.doom(2);
        // Whoever recovers the dead looks at each entry, and each page.
        scene.spare(SPARE);
        let filler = one.clone();
        scene.part(1, move || filler.fill(2));
        for (process, shop) in (2..).zip(others.clone()) {
            scene.part(process, move || shop.take());
        }
        scene.play();
        first.arena.reap().unwrap();
        assert!(first.guarded() <= scene.was_killed().into());
        assert_eq!(first.filled.waiting(), Ok(0));
        first.arena.census().unwrap();
    });
}
