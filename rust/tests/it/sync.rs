//! Recursive locks, semaphores, conditions, events and barriers between processes.

use crate::watchdog::watch;
use procession::{
    Barrier, BarrierError, BoundedSemaphore, Condition, ErrorKind, Event, LockError, Process,
    Queue, RLock, Semaphore,
};
use std::time::{Duration, Instant};

const SHORT: Duration = Duration::from_millis(80);

#[test]
fn a_recursive_lock_is_its_threads() {
    let _watchdog = watch();
    let lock = RLock::new().unwrap();
    let outer = lock.acquire().unwrap();
    drop(lock.acquire().unwrap());
    let is_refused = |lock: RLock| lock.acquire_timeout(SHORT).unwrap().is_none();
    assert!(
        Process::spawn(is_refused, lock.clone())
            .unwrap()
            .join()
            .unwrap()
    );
    drop(outer);
    assert!(!Process::spawn(is_refused, lock).unwrap().join().unwrap());
}

#[test]
fn a_recursive_lock_says_that_its_holder_ended() {
    let _watchdog = watch();
    let lock = RLock::new().unwrap();
    let hold = |lock: RLock| std::mem::forget(lock.acquire().unwrap());
    Process::spawn(hold, lock.clone()).unwrap().join().unwrap();
    match lock.acquire() {
        Err(LockError::OwnerDied(guard)) => drop(guard),
        other => panic!("{other:?}"),
    }
    drop(lock.acquire().unwrap());
}

#[test]
fn permits_of_the_dead_come_back() {
    let _watchdog = watch();
    let rooms = BoundedSemaphore::new(2).unwrap();
    let die_inside = |rooms: BoundedSemaphore| -> () {
        let _first = rooms.acquire().unwrap();
        rooms.acquire().unwrap().keep();
        std::process::abort();
    };
    Process::spawn(die_inside, rooms.clone())
        .unwrap()
        .join()
        .unwrap_err();
    let both = [(); 2].map(|()| rooms.acquire().unwrap());
    assert!(rooms.try_acquire().unwrap().is_none());
    drop(both);
    assert_eq!(rooms.value().unwrap(), 2);
    assert_eq!(rooms.release().unwrap_err().kind(), ErrorKind::Misuse);
}

#[test]
fn a_signal_is_answered_by_another_process() {
    let _watchdog = watch();
    let signal = Semaphore::new(0).unwrap();
    let begin = Instant::now();
    assert!(signal.acquire_timeout(SHORT).unwrap().is_none());
    assert!(begin.elapsed() >= SHORT);
    let answer = |signal: Semaphore| signal.release().unwrap();
    let child = Process::spawn(answer, signal.clone()).unwrap();
    signal.acquire().unwrap().keep();
    child.join().unwrap();
    assert_eq!(signal.value().unwrap(), 0);
}

#[test]
fn conditions_go_through_queues() {
    let _watchdog = watch();
    let condition = Condition::new().unwrap();
    let (numbers, places) = (Queue::<u32>::new().unwrap(), Queue::new().unwrap());
    places.put(&(condition.clone(), numbers.clone())).unwrap();
    let work = |places: Queue<(Condition, Queue<u32>)>| {
        let (condition, numbers) = places.get().unwrap();
        let mut guard = condition.acquire().unwrap();
        guard.wait_for(|| !numbers.is_empty().unwrap()).unwrap();
        numbers.get().unwrap()
    };
    let child = Process::spawn(work, places).unwrap();
    let guard = condition.acquire().unwrap();
    numbers.put(&7).unwrap();
    guard.notify_all().unwrap();
    drop(guard);
    assert_eq!(child.join().unwrap(), 7);
    let mut guard = condition.acquire().unwrap();
    let begin = Instant::now();
    assert!(!guard.wait_timeout(SHORT).unwrap());
    assert!(!guard.wait_for_timeout(SHORT, || false).unwrap());
    assert!(begin.elapsed() >= 2 * SHORT);
    assert_eq!(guard.notify(1).unwrap(), 0);
}

#[test]
fn an_event_starts_all_who_wait() {
    let _watchdog = watch();
    let (start, done) = (Event::new().unwrap(), Semaphore::new(0).unwrap());
    assert!(!start.wait_timeout(SHORT).unwrap());
    let work = |(start, done): (Event, Semaphore)| {
        start.wait().unwrap();
        done.release().unwrap();
    };
    let children = [(); 3].map(|()| Process::spawn(work, (start.clone(), done.clone())).unwrap());
    start.set().unwrap();
    for child in children {
        child.join().unwrap();
    }
    assert_eq!(done.value().unwrap(), 3);
    start.clear().unwrap();
    assert!(!start.is_set().unwrap());
}

#[test]
fn a_barrier_counts_and_breaks() {
    let _watchdog = watch();
    let barrier = Barrier::new(3).unwrap();
    let (places, acted) = (Queue::new().unwrap(), Semaphore::new(0).unwrap());
    let work = |(barrier, places, acted): (Barrier, Queue<u32>, Semaphore)| {
        let act = || acted.release().unwrap();
        places.put(&barrier.wait_acting(act).unwrap()).unwrap();
    };
    let children = [(); 3].map(|()| {
        let arguments = (barrier.clone(), places.clone(), acted.clone());
        Process::spawn(work, arguments).unwrap()
    });
    for child in children {
        child.join().unwrap();
    }
    let mut seen = [(); 3].map(|()| places.get().unwrap());
    seen.sort_unstable();
    assert_eq!(seen, [0, 1, 2]);
    assert_eq!(acted.value().unwrap(), 1);
    let alone = barrier.wait_timeout(SHORT);
    assert!(matches!(alone, Err(BarrierError::TimedOut)), "{alone:?}");
    assert!(matches!(barrier.wait(), Err(BarrierError::Broken)));
    let error = procession::Error::from(barrier.wait().unwrap_err());
    assert_eq!(error.kind(), ErrorKind::BarrierBroken);
    barrier.reset().unwrap();
    assert!(!barrier.is_broken().unwrap());
    assert_eq!(
        (barrier.parties().unwrap(), barrier.waiting().unwrap()),
        (3, 0)
    );
}

#[test]
fn a_barrier_breaks_when_one_who_waits_is_killed() {
    let _watchdog = watch();
    let barrier = Barrier::new(2).unwrap();
    let wait = |barrier: Barrier| drop(barrier.wait());
    let child = Process::spawn(wait, barrier.clone()).unwrap();
    while barrier.waiting().unwrap() == 0 {
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.join().unwrap_err();
    assert!(matches!(barrier.wait(), Err(BarrierError::Broken)));
}
