//! Recursive locks, semaphores, conditions, events and barriers between processes.

use crate::child::{Child, alone, fork, until, until_empty};
use procession_core::{
    Acquired, Arena, Barrier, Condition, Deadline, Error, Event, Lock, Passed, Permit, RLock,
    Semaphore,
};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

const SHORT: Duration = Duration::from_millis(120);

fn soon() -> Deadline {
    Deadline::after(SHORT)
}

fn sleep_for_ever() -> ! {
    loop {
        std::thread::sleep(Duration::from_secs(1));
    }
}

fn kill(child: Child) {
    child.signal(libc::SIGKILL);
    assert_eq!(child.wait(), -libc::SIGKILL);
}

#[test]
fn a_recursive_lock_is_its_threads() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let lock = RLock::new(&arena).unwrap();
    for _ in 0..3 {
        assert_eq!(lock.acquire(Deadline::NEVER).unwrap(), Acquired::Clean);
    }
    assert_eq!(lock.count().unwrap(), 3);
    let refused = Err(Error::Misuse {
        what: "the recursive lock is not held by this thread",
    });
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                assert_eq!(lock.acquire(soon()).unwrap(), Acquired::TimedOut);
                assert_eq!(lock.release(), refused);
                assert_eq!(lock.count().unwrap(), 0);
            })
            .join()
            .unwrap();
    });
    fork(|| {
        assert_eq!(lock.acquire(soon()).unwrap(), Acquired::TimedOut);
        assert_eq!(lock.release(), refused);
    })
    .join();
    for _ in 0..2 {
        lock.release().unwrap();
    }
    fork(|| assert_eq!(lock.acquire(soon()).unwrap(), Acquired::TimedOut)).join();
    lock.release().unwrap();
    fork(|| {
        assert_eq!(lock.acquire(soon()).unwrap(), Acquired::Clean);
        lock.release().unwrap();
    })
    .join();
    assert_eq!(lock.release(), refused);
}

#[test]
fn a_recursive_lock_goes_on_however_its_holder_ends() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let lock = RLock::new(&arena).unwrap();
    for leaves in [false, true] {
        fork(|| {
            for _ in 0..2 {
                lock.acquire(Deadline::NEVER).unwrap();
            }
            if leaves {
                arena.leave();
            }
        })
        .join();
        assert_eq!(lock.acquire(Deadline::NEVER).unwrap(), Acquired::OwnerDied);
        assert_eq!(lock.count().unwrap(), 1);
        lock.release().unwrap();
        assert!(!lock.is_held().unwrap());
    }
}

#[test]
fn a_semaphore_has_so_many_permits() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let semaphore = Semaphore::new(&arena, 3, 3).unwrap();
    let workers: Vec<_> = (0..4)
        .map(|_| {
            fork(|| {
                for round in 0..1000 {
                    let permit = [Permit::Held, Permit::Acquired][round % 2];
                    assert!(semaphore.acquire(permit, Deadline::NEVER).unwrap());
                    assert!(semaphore.value().unwrap() < 3);
                    semaphore.release(permit).unwrap();
                }
            })
        })
        .collect();
    workers.into_iter().for_each(Child::join);
    assert_eq!(semaphore.value().unwrap(), 3);
    let too_many = Err(Error::Misuse {
        what: "semaphore released too many times",
    });
    assert_eq!(semaphore.release(Permit::Acquired), too_many);
    for _ in 0..3 {
        assert!(
            semaphore
                .acquire(Permit::Acquired, Deadline::now())
                .unwrap()
        );
    }
    let begin = Instant::now();
    assert!(!semaphore.acquire(Permit::Acquired, soon()).unwrap());
    assert!(begin.elapsed() >= SHORT);
}

/// A child that takes permits by `take`, and is killed once it has.
fn die_with(arena: &Arena, semaphore: &Semaphore, permits: &[Permit]) {
    let ready = Event::new(arena).unwrap();
    let child = fork(|| {
        for permit in permits {
            assert!(semaphore.acquire(*permit, Deadline::NEVER).unwrap());
        }
        ready.set().unwrap();
        sleep_for_ever();
    });
    assert!(ready.wait(0, Deadline::NEVER).unwrap());
    kill(child);
}

#[test]
fn permits_of_the_dead_come_back() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let semaphore = Semaphore::new(&arena, 5, 5).unwrap();
    for _ in 0..20 {
        die_with(
            &arena,
            &semaphore,
            &[Permit::Held, Permit::Acquired, Permit::Held],
        );
        // Whoever needs them looks.
        for _ in 0..5 {
            assert!(
                semaphore
                    .acquire(Permit::Acquired, Deadline::NEVER)
                    .unwrap()
            );
        }
        for _ in 0..5 {
            semaphore.release(Permit::Acquired).unwrap();
        }
    }
    assert_eq!(semaphore.value().unwrap(), 5);
}

#[test]
fn signals_of_the_dead_stay_taken() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let semaphore = Semaphore::new(&arena, 0, 100).unwrap();
    // This process holds no permit: what it gives is a signal.
    for _ in 0..3 {
        semaphore.release(Permit::Acquired).unwrap();
    }
    die_with(&arena, &semaphore, &[Permit::Acquired, Permit::Held]);
    arena.reap().unwrap();
    assert_eq!(semaphore.value().unwrap(), 2);
}

#[test]
fn a_permit_that_is_kept_is_as_if_acquired() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    for (signal, left) in [(false, 3), (true, 3)] {
        let semaphore = Semaphore::new(&arena, 3, 100).unwrap();
        if signal {
            semaphore.release(Permit::Acquired).unwrap();
        }
        let ready = Event::new(&arena).unwrap();
        let child = fork(|| {
            semaphore.acquire(Permit::Held, Deadline::NEVER).unwrap();
            semaphore.keep().unwrap();
            ready.set().unwrap();
            sleep_for_ever();
        });
        assert!(ready.wait(0, Deadline::NEVER).unwrap());
        kill(child);
        arena.reap().unwrap();
        assert_eq!(semaphore.value().unwrap(), left, "signal: {signal}");
    }
}

#[test]
fn a_process_that_leaves_normally_keeps_its_permits() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let semaphore = Semaphore::new(&arena, 3, 3).unwrap();
    fork(|| {
        semaphore
            .acquire(Permit::Acquired, Deadline::NEVER)
            .unwrap();
        arena.leave();
    })
    .join();
    arena.reap().unwrap();
    assert_eq!(semaphore.value().unwrap(), 2);
    // The next process in its slot has taken nothing, and gives nothing back.
    die_with(&arena, &semaphore, &[]);
    arena.reap().unwrap();
    assert_eq!(semaphore.value().unwrap(), 2);
}

#[test]
fn more_processes_than_a_semaphore_has_cells_take_permits() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let semaphore = Semaphore::new(&arena, 100, 100).unwrap();
    let ready = Semaphore::new(&arena, 0, 100).unwrap();
    let children: Vec<_> = (0..90)
        .map(|_| {
            fork(|| {
                assert!(semaphore.acquire(Permit::Held, Deadline::NEVER).unwrap());
                ready.release(Permit::Acquired).unwrap();
                sleep_for_ever();
            })
        })
        .collect();
    for _ in 0..90 {
        assert!(ready.acquire(Permit::Acquired, Deadline::NEVER).unwrap());
    }
    assert_eq!(semaphore.value().unwrap(), 10);
    children.into_iter().for_each(kill);
    arena.reap().unwrap();
    assert_eq!(semaphore.value().unwrap(), 100);
    drop((semaphore, ready));
    until_empty(&arena);
}

#[test]
fn a_sleeper_gets_the_permit_that_another_gives() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let [ping, pong] = [(); 2].map(|()| Semaphore::new(&arena, 0, 1).unwrap());
    let child = fork(|| {
        for _ in 0..500 {
            assert!(ping.acquire(Permit::Acquired, Deadline::NEVER).unwrap());
            pong.release(Permit::Acquired).unwrap();
        }
    });
    for _ in 0..500 {
        ping.release(Permit::Acquired).unwrap();
        assert!(pong.acquire(Permit::Acquired, Deadline::NEVER).unwrap());
    }
    child.join();
}

#[test]
fn an_event_is_waited_for_and_pulsed() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let event = Event::new(&arena).unwrap();
    let begin = Instant::now();
    assert!(!event.wait(0, soon()).unwrap());
    assert!(begin.elapsed() >= SHORT);
    let count = event.count().unwrap();
    let waiters: Vec<_> = (0..3)
        .map(|_| fork(|| assert!(event.wait(count, Deadline::NEVER).unwrap())))
        .collect();
    // No way to see them sleep; those that don't yet find it was set.
    std::thread::sleep(Duration::from_millis(20));
    event.set().unwrap();
    event.clear().unwrap();
    waiters.into_iter().for_each(Child::join);
    assert!(!event.is_set().unwrap());
    event.set().unwrap();
    event.set().unwrap();
    assert!(event.is_set().unwrap());
    assert_eq!(event.count().unwrap(), count + 2);
}

/// A child that waits on a condition under a lock, and puts down that it does.
fn wait_on<'a>(condition: &'a Condition, lock: &'a Lock, woken: &'a Semaphore) -> Child {
    let before = condition.waiting().unwrap();
    let child = fork(|| {
        lock.acquire(Deadline::NEVER).unwrap();
        let waiting = condition.enlist(Deadline::NEVER).unwrap().unwrap();
        lock.release().unwrap();
        assert!(waiting.wait(Deadline::NEVER).unwrap());
        assert!(waiting.leave());
        woken.release(Permit::Acquired).unwrap();
    });
    until("the child to wait", || {
        condition.waiting().unwrap() == before + 1
    });
    child
}

#[test]
fn a_notification_is_for_those_who_wait_and_live() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let (condition, lock) = (Condition::new(&arena).unwrap(), Lock::new(&arena).unwrap());
    let woken = Semaphore::new(&arena, 0, 100).unwrap();
    assert_eq!(condition.notify(usize::MAX).unwrap(), 0);
    let mut children: Vec<_> = (0..5).map(|_| wait_on(&condition, &lock, &woken)).collect();
    // The two that came first die: they are neither counted nor woken.
    for dead in children.drain(..2) {
        kill(dead);
    }
    assert_eq!(condition.waiting().unwrap(), 3);
    assert_eq!(condition.notify(2).unwrap(), 2);
    for _ in 0..2 {
        assert!(woken.acquire(Permit::Acquired, Deadline::NEVER).unwrap());
    }
    assert!(!woken.acquire(Permit::Acquired, soon()).unwrap());
    assert_eq!(condition.waiting().unwrap(), 1);
    assert_eq!(condition.notify(usize::MAX).unwrap(), 1);
    children.into_iter().for_each(Child::join);
    assert_eq!(condition.notify(1).unwrap(), 0);
}

#[test]
fn a_waiter_that_gives_up_is_not_notified() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let condition = Condition::new(&arena).unwrap();
    let waiting = condition.enlist(Deadline::NEVER).unwrap().unwrap();
    let begin = Instant::now();
    assert!(!waiting.wait(soon()).unwrap());
    assert!(begin.elapsed() >= SHORT);
    assert!(!waiting.leave());
    assert_eq!(condition.notify(1).unwrap(), 0);
    let [early, late] = [(); 2].map(|()| condition.enlist(Deadline::NEVER).unwrap().unwrap());
    assert_eq!(condition.notify(1).unwrap(), 1);
    assert!(early.leave());
    assert!(!late.leave());
}

#[test]
fn a_semaphore_in_a_phase_that_there_is_not_is_told_of() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let semaphore = Semaphore::new(&arena, 3, 3).unwrap();
    // By docs/shm.md, behind the object's header: some are free, and the phase is 3.
    let file = std::fs::File::from(arena.descriptor().try_clone_to_owned().unwrap());
    let state = semaphore.name().offset + 192;
    let permits = 3u64 << 62 | 3;
    file.write_all_at(&permits.to_le_bytes(), state).unwrap();
    let refused = semaphore.acquire(Permit::Held, Deadline::NEVER);
    assert!(
        matches!(refused, Err(Error::Poisoned { .. })),
        "{refused:?}"
    );
}

/// Who poisons an arena wakes those who sleep on its objects, and finds the contradiction once more.
#[test]
fn a_condition_that_contradicts_itself_is_told_of() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let condition = Condition::new(&arena).unwrap();
    // By docs/shm.md, behind the object's header: more entries than it has itself, in a run beyond the arena.
    let file = std::fs::File::from(arena.descriptor().try_clone_to_owned().unwrap());
    let state = condition.name().offset + 192;
    file.write_all_at(&u64::MAX.to_le_bytes(), state + 8)
        .unwrap();
    file.write_all_at(&100u32.to_le_bytes(), state + 16)
        .unwrap();
    assert!(matches!(condition.notify(1), Err(Error::Poisoned { .. })));
    assert!(matches!(condition.waiting(), Err(Error::Poisoned { .. })));
}

#[test]
fn more_wait_than_a_condition_has_room_for() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let condition = Condition::new(&arena).unwrap();
    let waiting: Vec<_> =
        std::iter::from_fn(|| condition.enlist(Deadline::NEVER).ok().flatten()).collect();
    assert_eq!(waiting.len(), 48 + 4096);
    assert!(matches!(
        condition.enlist(Deadline::NEVER),
        Err(Error::Exhausted { limit: 4144, .. })
    ));
    assert_eq!(condition.notify(usize::MAX).unwrap(), 4144);
    drop(waiting);
    assert_eq!(condition.waiting().unwrap(), 0);
    assert!(!condition.enlist(Deadline::NEVER).unwrap().unwrap().leave());
    drop(condition);
    until_empty(&arena);
}

/// What a party does: it comes, ends the round if it is the last, else waits.
fn pass(barrier: &Barrier, deadline: Deadline) -> Passed {
    match barrier.come(deadline) {
        Err(Error::Closed { .. }) => Passed::Broken,
        Err(error) => panic!("{error}"),
        Ok(None) => {
            barrier.abort().unwrap();
            Passed::Broken
        }
        Ok(Some(party)) if party.acts() => {
            if party.end().unwrap() {
                Passed::Through
            } else {
                Passed::Broken
            }
        }
        Ok(Some(party)) => match party.wait(deadline).unwrap() {
            Some(passed) => passed,
            None => party.give_up().unwrap(),
        },
    }
}

#[test]
fn a_barrier_lets_all_through_round_after_round() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let barrier = Barrier::new(&arena, 3).unwrap();
    let total = Semaphore::new(&arena, 0, 10_000).unwrap();
    let parties: Vec<_> = (0..3)
        .map(|_| {
            fork(|| {
                for round in 1..=300 {
                    total.release(Permit::Acquired).unwrap();
                    assert_eq!(pass(&barrier, Deadline::NEVER), Passed::Through);
                    let there = total.value().unwrap();
                    assert!(
                        (3 * round..3 * round + 3).contains(&there),
                        "{there} in round {round}"
                    );
                }
                arena.leave();
            })
        })
        .collect();
    parties.into_iter().for_each(Child::join);
    arena.reap().unwrap();
    assert!(!barrier.is_broken().unwrap());
    assert_eq!(barrier.waiting().unwrap(), 0);
}

#[test]
fn a_barrier_breaks_when_a_party_dies() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let barrier = Barrier::new(&arena, 3).unwrap();
    let come = || fork(|| assert_eq!(pass(&barrier, Deadline::NEVER), Passed::Broken));
    let (dies, lives) = (come(), come());
    until("two to wait", || barrier.waiting().unwrap() == 2);
    kill(dies);
    lives.join();
    assert!(barrier.is_broken().unwrap());
    assert_eq!(pass(&barrier, Deadline::NEVER), Passed::Broken);
    barrier.reset().unwrap();
    assert!(!barrier.is_broken().unwrap());
}

#[test]
fn a_barrier_breaks_when_one_of_the_last_round_dies() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    for leaves in [false, true] {
        let barrier = Barrier::new(&arena, 2).unwrap();
        let other = fork(|| {
            assert_eq!(pass(&barrier, Deadline::NEVER), Passed::Through);
            if leaves {
                arena.leave();
            }
        });
        assert_eq!(pass(&barrier, Deadline::NEVER), Passed::Through);
        other.join();
        if leaves {
            let third = fork(|| assert_eq!(pass(&barrier, Deadline::NEVER), Passed::Through));
            assert_eq!(pass(&barrier, Deadline::NEVER), Passed::Through);
            third.join();
        } else {
            assert_eq!(pass(&barrier, Deadline::NEVER), Passed::Broken);
        }
    }
}

#[test]
fn a_barrier_breaks_when_the_one_that_acts_dies() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let barrier = Barrier::new(&arena, 2).unwrap();
    let acting = Event::new(&arena).unwrap();
    let first = fork(|| assert_eq!(pass(&barrier, Deadline::NEVER), Passed::Broken));
    until("one to wait", || barrier.waiting().unwrap() == 1);
    let actor = fork(|| {
        let party = barrier.come(Deadline::NEVER).unwrap().unwrap();
        assert!(party.acts());
        acting.set().unwrap();
        sleep_for_ever();
    });
    assert!(acting.wait(0, Deadline::NEVER).unwrap());
    // A third one comes too early for the next round.
    let third = fork(|| assert_eq!(pass(&barrier, Deadline::NEVER), Passed::Broken));
    assert!(barrier.come(soon()).unwrap().is_none());
    kill(actor);
    first.join();
    third.join();
}

#[test]
fn a_party_that_gives_up_breaks_the_barrier() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let barrier = Barrier::new(&arena, 2).unwrap();
    let begin = Instant::now();
    assert_eq!(pass(&barrier, soon()), Passed::Broken);
    assert!(begin.elapsed() >= SHORT);
    assert!(barrier.is_broken().unwrap());
    barrier.reset().unwrap();
    drop(barrier.come(Deadline::NEVER).unwrap());
    assert!(barrier.is_broken().unwrap());
}

#[test]
fn a_reset_sends_those_who_wait_away() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let barrier = Barrier::new(&arena, 3).unwrap();
    let waits: Vec<_> = (0..2)
        .map(|_| fork(|| assert_eq!(pass(&barrier, Deadline::NEVER), Passed::Broken)))
        .collect();
    until("two to wait", || barrier.waiting().unwrap() == 2);
    barrier.reset().unwrap();
    waits.into_iter().for_each(Child::join);
    assert!(!barrier.is_broken().unwrap());
    assert_eq!(barrier.waiting().unwrap(), 0);
}

#[test]
fn nothing_of_it_stays() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let child = fork(|| {
        let all = (
            RLock::new(&arena).unwrap(),
            Semaphore::new(&arena, 1, 1).unwrap(),
            Condition::new(&arena).unwrap(),
            Event::new(&arena).unwrap(),
            Barrier::new(&arena, 2).unwrap(),
        );
        std::mem::forget(all.2.enlist(Deadline::NEVER).unwrap().unwrap());
        std::mem::forget(all.4.come(Deadline::NEVER).unwrap());
        std::mem::forget(all);
        // SAFETY: to this process.
        unsafe { libc::raise(libc::SIGKILL) };
    });
    assert_eq!(child.wait(), -libc::SIGKILL);
    until_empty(&arena);
}
