//! Models of the barrier.

use super::super::{Barrier, Passed};
use super::{Hold, shared_by_four};
use crate::sys::model::{Scene, explore, explore_deaths, explore_disturbed};
use crate::{Deadline, Error};

fn barrier_of_two(scene: &Scene) -> [Hold<Barrier>; 4] {
    shared_by_four(
        scene,
        |arena| Barrier::new(arena, 2),
        |arena, barrier| Barrier::open(arena, barrier.name()),
    )
}

/// Comes to the barrier and goes on; false if it is broken.
fn pass(barrier: &Barrier) -> bool {
    let party = match barrier.come(Deadline::NEVER) {
        Err(Error::Closed { .. }) => return false,
        party => party.unwrap().unwrap(),
    };
    if party.acts() {
        return party.end().unwrap();
    }
    party.wait(Deadline::NEVER).unwrap().unwrap() == Passed::Through
}

/// Two pass twice: each sees what the other wrote before it came, and writes again only after the other has looked;
/// nobody is forgotten, also when a sleep ends for no reason.
#[test]
fn a_barrier_orders_what_is_before_and_after() {
    explore_disturbed(1, |scene| {
        let [first, one, two, _] = barrier_of_two(scene);
        scene.old_loads(1);
        for (process, barrier) in [(1, one.clone()), (2, two.clone())] {
            scene.part(process, move || {
                let (mine, others) = (process as u64, 3 - process as u64);
                barrier.write(mine, 1);
                assert!(pass(&barrier));
                assert_eq!(barrier.read(others), 1);
                assert!(pass(&barrier));
                barrier.write(mine, 2);
            });
        }
        scene.play();
        assert_eq!(first.waiting(), Ok(0));
        assert_eq!(first.is_broken(), Ok(false));
    });
}

/// Four come to a barrier for two, once each: those who come too early for the next round wait for the last party of this
/// one, and are woken.
#[test]
fn a_barrier_of_two_lets_four_through() {
    explore(1, |scene| {
        let [first, others @ ..] = barrier_of_two(scene);
        scene.old_loads(1);
        for (process, barrier) in (1..).zip(others.clone()) {
            scene.part(process, move || assert!(pass(&barrier)));
        }
        let last = first.clone();
        scene.part(4, move || assert!(pass(&last)));
        scene.play();
        assert_eq!(first.waiting(), Ok(0));
        assert_eq!(first.is_broken(), Ok(false));
    });
}

/// Two have passed once; then one dies before each of its steps, on its way to the second time and through: the other gets
/// through or is told that it won't, and the barrier is broken.
#[test]
fn a_barrier_breaks_with_one_who_dies() {
    explore_deaths(1, |scene| {
        let [first, one, two, _] = barrier_of_two(scene);
        scene.old_loads(1);
        {
            scene.act_for(1);
            let early = one.come(Deadline::NEVER).unwrap().unwrap();
            scene.act_for(2);
            assert!(two.come(Deadline::NEVER).unwrap().unwrap().end().unwrap());
            scene.act_for(1);
            assert_eq!(early.wait(Deadline::NEVER), Ok(Some(Passed::Through)));
        }
        scene.act_for(0);
        scene.doom(1);
        for (process, barrier) in [(1, one.clone()), (2, two.clone())] {
            scene.part(process, move || assert!(pass(&barrier) || process == 2));
        }
        scene.play();
        first.arena.reap().unwrap();
        assert_eq!(first.is_broken(), Ok(scene.was_killed()));
        assert_eq!(first.waiting(), Ok(0));
        first.arena.census().unwrap();
    });
}
