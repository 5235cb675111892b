//! Locks between processes.

use crate::watchdog::watch;
use procession::{ErrorKind, Lock, LockError, Process, Queue};
use std::time::{Duration, Instant};

#[test]
fn keeps_two_processes_apart() {
    let _watchdog = watch();
    // A number that each takes out and puts back: only one may be between the two.
    let work = |(lock, number): (Lock, Queue<u32>)| {
        for _ in 0..2_000 {
            let _guard = lock.acquire().unwrap();
            let value = number.try_get().unwrap();
            number.try_put(&(value + 1)).unwrap();
        }
    };
    let (lock, number) = (Lock::new().unwrap(), Queue::new().unwrap());
    number.put(&0).unwrap();
    let children = [(); 2].map(|()| Process::spawn(work, (lock.clone(), number.clone())).unwrap());
    for child in children {
        child.join().unwrap();
    }
    assert_eq!(number.get().unwrap(), 4_000);
}

#[test]
fn says_that_its_holder_died() {
    let _watchdog = watch();
    let lock = Lock::new().unwrap();
    let hold_and_die = |lock: Lock| -> () {
        lock.acquire().unwrap().keep();
        std::process::abort();
    };
    Process::spawn(hold_and_die, lock.clone())
        .unwrap()
        .join()
        .unwrap_err();
    match lock.acquire() {
        Err(LockError::OwnerDied(guard)) => drop(guard),
        other => panic!("{other:?}"),
    }
    drop(lock.acquire().unwrap());
    Process::spawn(hold_and_die, lock.clone())
        .unwrap()
        .join()
        .unwrap_err();
    let error = procession::Error::from(lock.acquire().unwrap_err());
    assert_eq!(error.kind(), ErrorKind::OwnerDied);
    assert!(!lock.is_held().unwrap());
}

#[test]
fn stays_held_when_its_holder_returns() {
    let _watchdog = watch();
    let lock = Lock::new().unwrap();
    let hold = |lock: Lock| lock.acquire().unwrap().keep();
    Process::spawn(hold, lock.clone()).unwrap().join().unwrap();
    let (begin, timeout) = (Instant::now(), Duration::from_millis(80));
    assert!(lock.try_acquire().unwrap().is_none());
    assert!(lock.acquire_timeout(timeout).unwrap().is_none());
    assert!(begin.elapsed() >= timeout);
    lock.release().unwrap();
    drop(lock.acquire().unwrap());
    assert_eq!(lock.release().unwrap_err().kind(), ErrorKind::Misuse);
}
