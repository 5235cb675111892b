//! Models of the internal lock, of places in the tree, and of recovery.

use super::Arena;
use super::arena::Member;
use super::layout::{PAGE, state};
use super::robust::RobustLock;
use super::slots;
use crate::sys::model::{Scene, exit, explore, explore_deaths, explore_disturbed};
use crate::tree::RECOVERIES;
use crate::{Acquired, Deadline, Error, Lock, Put, Queue};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

/// A new arena, with process 0 as its first member.
pub(crate) fn found(scene: &Scene) -> Arena {
    scene.act_for(0);
    let arena = Arena::lay_out(&RECOVERIES).unwrap();
    enter(&arena);
    arena
}

/// The membership of another process.
pub(crate) fn join(scene: &Scene, arena: &Arena, process: usize) -> Arena {
    scene.act_for(process);
    let other = stranger(arena);
    enter(&other);
    scene.act_for(0);
    other
}

/// An arena in a process that has no place in it yet.
fn stranger(arena: &Arena) -> Arena {
    let file = arena.descriptor().try_clone_to_owned().unwrap();
    Arena {
        inner: Arc::new(Member::new(file, &RECOVERIES)),
    }
}

/// A place for a child of the arena's process.
fn keep(arena: &Arena) -> (u32, u32) {
    slots::claim(&arena.inner, arena.inner.slot(), None, Deadline::NEVER).unwrap()
}

fn enter(arena: &Arena) {
    let (slot, generation) = slots::claim(&arena.inner, 0, None, Deadline::NEVER).unwrap();
    let settled = arena.inner.settle_in(slot, generation, Deadline::NEVER);
    settled.unwrap();
}

/// Where models put what isn't an object: a page that the allocator doesn't reach in a model.
pub(crate) const FREE: u64 = 200 << 12;

fn lock(arena: &Arena) -> &RobustLock {
    arena.inner.at(FREE).unwrap()
}

/// What a lock guards: reads and writes of it that aren't ordered fail the model.
fn guarded(arena: &Arena) -> u64 {
    let mut bytes = [0; 8];
    arena.inner.windows().read(FREE + PAGE, &mut bytes).unwrap();
    u64::from_le_bytes(bytes)
}

/// Counts under the lock, and says whether its last holder died.
fn count(arena: &Arena) -> bool {
    let mut held = lock(arena).lock(Deadline::NEVER).unwrap().unwrap();
    let bytes = (guarded(arena) + 1).to_le_bytes();
    arena.inner.windows().write(FREE + PAGE, &bytes).unwrap();
    // Whatever the dead had written is whole.
    std::mem::take(&mut held.recovered)
}

/// Three threads count under an internal lock: no count is lost, none is read while another writes, and nobody
/// who sleeps for the lock is forgotten; also when a sleep ends for no reason, or too early.
#[test]
fn internal_lock_excludes_and_wakes() {
    explore_disturbed(2, |scene| {
        let arena = found(scene);
        for process in 1..=3 {
            let arena = arena.clone();
            scene.part(process, move || assert!(!count(&arena)));
        }
        scene.play();
        assert_eq!(guarded(&arena), 3);
    });
}

/// As before, and one of them dies before each of its stores: the others go on, one of them is told if the dead
/// held the lock, and whatever the dead had written is there for it.
#[test]
fn internal_lock_survives_its_holder() {
    explore_deaths(2, |scene| {
        let arena = found(scene);
        scene.doom(1);
        let told = Arc::new(AtomicU64::new(0));
        for process in 1..=3 {
            let (arena, told) = (arena.clone(), told.clone());
            scene.part(process, move || {
                told.fetch_add(count(&arena).into(), Relaxed);
            });
        }
        scene.play();
        let counts = guarded(&arena);
        assert!(counts == 3 || counts == 2 && scene.was_killed());
        assert!(told.load(Relaxed) <= scene.was_killed().into());
    });
}

/// The registry's lock is held while the allocator's is taken; its holder dies before each of its steps, in or out of
/// either: both locks go on to others, who are told.
#[test]
fn nested_locks_survive_their_holder() {
    explore_deaths(2, |scene| {
        let arena = found(scene);
        scene.doom(1);
        for process in 1..=2 {
            let arena = arena.clone();
            scene.part(process, move || {
                let header = arena.inner.header().unwrap();
                let _outer = header
                    .registry
                    .lock_outer(Deadline::NEVER)
                    .unwrap()
                    .unwrap();
                let told = count(&arena);
                assert!(!told || process == 2);
            });
        }
        scene.play();
        let header = arena.inner.header().unwrap();
        let outer = header
            .registry
            .lock_outer(Deadline::NEVER)
            .unwrap()
            .unwrap();
        let inner = lock(&arena).lock(Deadline::NEVER).unwrap().unwrap();
        assert!(scene.was_killed() || !outer.recovered && !inner.recovered);
        assert!(guarded(&arena) + u64::from(scene.was_killed()) >= 2);
    });
}

fn state_of(arena: &Arena, slot: u32) -> u32 {
    arena.inner.slot_at(slot).unwrap().state.load(Relaxed)
}

/// The place of a process, as the arena has it: it lives, in that generation, and the kernel will tell of its death.
fn assert_lives(arena: &Arena, process: usize) {
    let member = &arena.inner;
    let slot = member.slot_at(member.slot()).unwrap();
    assert_eq!(slot.state.load(Relaxed), state::LIVE);
    assert_eq!(slot.generation.load(Relaxed), member.generation());
    assert_eq!(slot.life.word.load(Relaxed), slot.thread.load(Relaxed));
    assert_eq!(slot.pid.load(Relaxed), 100 + process as u32);
}

/// Two processes enter at once: each has a place of its own.
#[test]
fn two_newcomers_have_two_places() {
    explore(3, |scene| {
        let arena = found(scene);
        let newcomers = [1, 2].map(|process| (process, stranger(&arena)));
        for (process, newcomer) in newcomers.clone() {
            scene.part(process, move || enter(&newcomer));
        }
        scene.play();
        let [(_, one), (_, two)] = &newcomers;
        assert_ne!(one.inner.slot(), two.inner.slot());
        newcomers
            .iter()
            .for_each(|(process, arena)| assert_lives(arena, *process));
    });
}

/// A place that a dead process had goes to a newcomer while two others, who found the death, recover it: it is given
/// back once, and the newcomer, who may have got it in the meantime, keeps it.
#[test]
fn a_place_is_recovered_once_and_used_again() {
    explore(1, |scene| {
        let arena = found(scene);
        let [dead, one, two] = [1, 2, 3].map(|process| join(scene, &arena, process));
        let place = dead.inner.slot();
        scene.bury(1);
        let newcomer = stranger(&arena);
        for (process, arena) in [(2, one), (3, two)] {
            scene.part(process, move || arena.reap().unwrap());
        }
        {
            let newcomer = newcomer.clone();
            scene.part(4, move || enter(&newcomer));
        }
        scene.play();
        assert_lives(&newcomer, 4);
        let is_used_again = newcomer.inner.slot() == place;
        assert!(is_used_again || state_of(&arena, place) == state::FREE);
        assert_eq!(newcomer.inner.generation(), 1 + u32::from(is_used_again));
        assert_eq!(arena.census().unwrap().processes, 4);
    });
}

/// A parent dies before each of its steps while it keeps a place for a child; the child takes the place over, another
/// process recovers who is gone: the child lives in it, or is told that it is gone, and nothing stays reserved.
#[test]
fn a_kept_place_is_taken_over_or_given_back() {
    explore_deaths(1, |scene| {
        let arena = found(scene);
        let [parent, other] = [1, 3].map(|process| join(scene, &arena, process));
        scene.act_for(1);
        let (slot, generation) = keep(&parent);
        scene.act_for(0);
        scene.doom(1);
        // Whoever repairs the allocator looks at each page.
        scene.spare(420);
        let child = stranger(&arena);
        {
            let parent = parent.clone();
            // As one whose child seems not to come.
            scene.part(1, move || {
                slots::give_back(&parent.inner, slot, generation).unwrap()
            });
        }
        {
            let child = child.clone();
            scene.part(2, move || {
                let _ = child.inner.settle_in(slot, generation, Deadline::NEVER);
            });
        }
        scene.part(3, move || other.reap().unwrap());
        scene.play();
        arena.reap().unwrap();
        if child.inner.slot() == 0 {
            assert_eq!(state_of(&arena, slot), state::FREE);
        } else {
            assert_lives(&child, 2);
        }
        let settled = u64::from(child.inner.slot() != 0);
        let census = arena.census().unwrap();
        assert_eq!(
            census.processes,
            3 + settled - u64::from(scene.was_killed())
        );
    });
}

/// A process leaves, another one asks whether it is gone and recovers it, a third one enters: a slot is never taken from
/// who still runs, and is free for the next one afterwards.
#[test]
fn a_place_that_was_left_is_free_when_its_process_is_gone() {
    explore(2, |scene| {
        let arena = found(scene);
        let [leaver, other] = [1, 2].map(|process| join(scene, &arena, process));
        let left = leaver.inner.slot();
        scene.part(1, move || {
            leaver.leave();
            assert_eq!(state_of(&leaver, left), state::LEFT);
            exit();
        });
        scene.part(2, move || other.reap().unwrap());
        let newcomer = stranger(&arena);
        {
            let newcomer = newcomer.clone();
            scene.part(3, move || enter(&newcomer));
        }
        scene.play();
        assert_lives(&newcomer, 3);
        arena.reap().unwrap();
        assert!(newcomer.inner.slot() == left || state_of(&arena, left) == state::FREE);
        assert_eq!(arena.census().unwrap().processes, 3);
    });
}

/// The last holder of an object lets go of it while another opens it by name: it is gone, or it stays.
#[test]
fn an_object_goes_with_its_last_holder() {
    explore(2, |scene| {
        let arena = found(scene);
        let [one, two] = [1, 2].map(|process| join(scene, &arena, process));
        scene.act_for(1);
        let lock = Lock::new(&one).unwrap();
        scene.act_for(0);
        let name = lock.name();
        let opened = Arc::new(Mutex::new(None));
        scene.part(1, move || drop(lock));
        {
            let (opened, two) = (opened.clone(), two.clone());
            scene.part(2, move || match Lock::open(&two, name) {
                Ok(lock) => {
                    assert!(lock.try_acquire().unwrap());
                    *opened.lock().unwrap() = Some(lock);
                }
                Err(error) => assert!(matches!(error, Error::Closed { .. })),
            });
        }
        scene.play();
        let opened = opened.lock().unwrap().take();
        assert_eq!(arena.census().unwrap().objects, u64::from(opened.is_some()));
        scene.act_for(2);
    });
}

/// A process died with a lock held and a message half put. One recovers it and dies before each of its steps, another
/// one recovers both, a third one works on with queue and lock all the while: nothing of the living is touched, what
/// the dead held is given back once, and the lock's next holder is told once.
#[test]
fn recovery_survives_itself_beside_a_living_neighbour() {
    explore_deaths(1, |scene| {
        let arena = found(scene);
        let members = [1, 2, 3, 4].map(|process| join(scene, &arena, process));
        let queue = Queue::new(&arena, None).unwrap();
        let lock = Lock::new(&arena).unwrap();
        let hold = |process: usize| {
            scene.act_for(process);
            let arena = &members[process - 1];
            let queue = Queue::open(arena, queue.name()).unwrap();
            Arc::new((queue, Lock::open(arena, lock.name()).unwrap()))
        };
        let holds = [1, 2, 3, 4].map(hold);
        scene.act_for(1);
        assert!(holds[0].1.try_acquire().unwrap());
        // The first two enter the first segment; this one dies about where it publishes.
        scene.act_for(0);
        assert_eq!(queue.put(1, &[&[0]], Deadline::NEVER), Ok(Put::Stored));
        queue.get(Deadline::NEVER).unwrap().unwrap();
        let put = || drop(holds[0].0.put(1, &[&[7; 5]], Deadline::NEVER));
        scene.kill(1, 7, put);
        scene.doom(2);
        scene.spare(420);
        for process in [2, 3] {
            let arena = members[process - 1].clone();
            scene.part(process, move || arena.reap().unwrap());
        }
        let neighbour = holds[3].clone();
        scene.part(4, move || {
            let (queue, lock) = &*neighbour;
            assert_eq!(queue.put(1, &[&[8]], Deadline::NEVER), Ok(Put::Stored));
            assert_eq!(lock.acquire(Deadline::NEVER), Ok(Acquired::OwnerDied));
            lock.release().unwrap();
        });
        scene.play();
        arena.reap().unwrap();
        let mut got = Vec::new();
        while let Some(message) = queue.get(Deadline::now()).unwrap() {
            got.push(message.bytes);
        }
        let whole = got == [vec![8]] || got == [vec![7; 5], vec![8]];
        assert!(whole, "what the dead put is there, whole, or never was");
        assert_eq!(lock.acquire(Deadline::NEVER), Ok(Acquired::Clean));
        let census = arena.census().unwrap();
        assert_eq!(census.owned_bytes, 0);
        assert_eq!(census.processes, 4 - u64::from(scene.was_killed()));
    });
}
