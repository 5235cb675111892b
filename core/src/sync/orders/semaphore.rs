//! Models of the semaphore.

use super::super::{Permit, Semaphore};
use super::{Hold, shared_by_four};
use crate::Deadline;
use crate::sys::model::{Scene, explore, explore_deaths, explore_disturbed};

/// One more permit could be free than there are: so one that is given back twice is seen.
fn semaphore_of_four(scene: &Scene, free: u32) -> [Hold<Semaphore>; 4] {
    shared_by_four(
        scene,
        |arena| Semaphore::new(arena, free, free + 1),
        |arena, semaphore| Semaphore::open(arena, semaphore.name()),
    )
}

fn acquire(semaphore: &Semaphore, permit: Permit) {
    assert_eq!(semaphore.acquire(permit, Deadline::NEVER), Ok(true));
}

/// A process is free of permits, as far as the semaphore knows.
fn assert_has_none(scene: &Scene, process: usize, semaphore: &Semaphore) {
    scene.act_for(process);
    assert_eq!(semaphore.taken(), Ok(0));
    scene.act_for(0);
}

/// Three processes count with the only permit, held or acquired: no count is lost, and nobody who sleeps is forgotten,
/// also when a sleep ends for no reason.
#[test]
fn a_permit_excludes_and_wakes() {
    explore_disturbed(1, |scene| {
        let [first, others @ ..] = semaphore_of_four(scene, 1);
        scene.old_loads(1);
        let permits = [Permit::Held, Permit::Acquired, Permit::Held];
        for (process, (semaphore, permit)) in (1..).zip(others.clone().into_iter().zip(permits)) {
            scene.part(process, move || {
                acquire(&semaphore, permit);
                semaphore.count_up();
                semaphore.release(permit).unwrap();
            });
        }
        scene.play();
        assert_eq!(first.guarded(), 3);
        assert_eq!(first.value(), Ok(1));
    });
}

/// Three processes take and give two permits, and so bring each other's cells up to date: in the end nobody has one, as far
/// as any cell says.
#[test]
fn cells_are_settled_by_whoever_comes() {
    explore(2, |scene| {
        let [first, others @ ..] = semaphore_of_four(scene, 2);
        scene.old_loads(1);
        for (process, semaphore) in (1..).zip(others.clone()) {
            scene.part(process, move || {
                acquire(&semaphore, Permit::Held);
                semaphore.release(Permit::Held).unwrap();
            });
        }
        scene.play();
        assert_eq!(first.value(), Ok(2));
        for (process, semaphore) in (1..).zip(&others) {
            assert_has_none(scene, process, semaphore);
        }
    });
}

/// Two give a signal each, which neither has taken, and two sleep for one each: no signal is lost between a look and a sleep,
/// and the first wake leaves the second sleeper known.
#[test]
fn a_signal_for_each_sleeper() {
    explore(1, |scene| {
        let [first, one, others @ ..] = semaphore_of_four(scene, 1);
        scene.old_loads(1);
        acquire(&first, Permit::Acquired);
        // The sleepers first: what is played first needs no preemption.
        for (process, semaphore) in (2..).zip(others.clone()) {
            scene.part(process, move || acquire(&semaphore, Permit::Acquired));
        }
        let giver = one.clone();
        scene.part(1, move || {
            for _ in 0..2 {
                giver.release(Permit::Acquired).unwrap();
            }
        });
        scene.play();
        assert_eq!(first.value(), Ok(0));
    });
}

/// A process dies before each of its steps, with a permit or without, two others want the only one: whoever sleeps finds the
/// death, the permit comes back, and just once.
#[test]
fn a_permit_of_a_dead_process_comes_back() {
    explore_deaths(1, |scene| {
        let [first, others @ ..] = semaphore_of_four(scene, 1);
        scene.old_loads(1);
        scene.doom(1);
        for (process, semaphore) in (1..).zip(others.clone()) {
            scene.part(process, move || {
                acquire(&semaphore, Permit::Held);
                semaphore.count_up();
                semaphore.release(Permit::Held).unwrap();
            });
        }
        scene.play();
        first.arena.reap().unwrap();
        assert!(first.guarded() + u64::from(scene.was_killed()) >= 3);
        assert_eq!(first.value(), Ok(1));
        for (process, semaphore) in [(2, &others[1]), (3, &others[2])] {
            assert_has_none(scene, process, semaphore);
        }
        first.arena.census().unwrap();
    });
}
