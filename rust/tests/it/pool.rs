//! Pools.

use crate::watchdog::{until, watch};
use procession::{ErrorKind, ExitStatus, JoinError, Lock, Pool, Queue};
use std::time::Duration;

fn square(number: u64) -> u64 {
    number * number
}

fn fragile(number: u32) -> u32 {
    match number {
        13 => panic!("thirteen"),
        99 => std::process::abort(),
        98 => std::process::exit(3),
        number => number + 1,
    }
}

#[test]
fn results_come_in_order() {
    let _watchdog = watch();
    let pool = Pool::new(2).unwrap();
    let squares: Vec<u64> = (0..1000).map(square).collect();
    assert_eq!(pool.map(square, 0..1000).unwrap(), squares);
    assert_eq!(pool.map(square, []).unwrap(), []);
    assert_eq!(pool.apply(square, 12).unwrap(), 144);
    let results: Result<Vec<u64>, _> = pool.imap(square, 0..10_000).unwrap().collect();
    assert_eq!(
        results.unwrap(),
        (0..10_000).map(square).collect::<Vec<_>>()
    );
    let mut results: Vec<u64> = pool
        .imap_unordered(square, 0..10_000)
        .unwrap()
        .map(Result::unwrap)
        .collect();
    results.sort_unstable();
    assert_eq!(results, (0..10_000).map(square).collect::<Vec<_>>());
    let sums = pool.starmap(|a: u32, b: u32, c: u32| a + b + c, [(1, 2, 3), (4, 5, 6)]);
    assert_eq!(sums.unwrap(), [6, 15]);
}

#[test]
fn jobs_run_side_by_side_and_from_any_thread() {
    let _watchdog = watch();
    let pool = Pool::new(2).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..3u64 {
            let pool = &pool;
            scope.spawn(move || {
                for round in 0..50 {
                    let job = pool.map_async(square, round..round + 10).unwrap();
                    assert_eq!(pool.apply(square, thread).unwrap(), thread * thread);
                    assert_eq!(job.get().unwrap()[0], round * round);
                }
            });
        }
    });
}

#[test]
fn tasks_of_any_length() {
    let _watchdog = watch();
    let pool = Pool::new(2).unwrap();
    let twice = |text: String| text.repeat(2);
    let items = [0, 1, 20_000, 3 << 20];
    let results = pool
        .imap(twice, items.map(|length| "z".repeat(length)))
        .unwrap();
    let lengths: Vec<usize> = results.map(|text| text.unwrap().len()).collect();
    assert_eq!(lengths, items.map(|length| 2 * length));
}

#[test]
fn a_panic_fails_its_task_alone() {
    let _watchdog = watch();
    let pool = Pool::new(2).unwrap();
    let pids = pool.pids();
    let results: Vec<_> = pool.imap(fragile, 10..16).unwrap().collect();
    for (number, result) in (10..16).zip(results) {
        match result {
            Err(JoinError::Panicked(panic)) if number == 13 => {
                assert_eq!(panic.message(), "thirteen")
            }
            result => assert_eq!(result.unwrap(), number + 1),
        }
    }
    assert!(matches!(
        pool.map(fragile, 0..20),
        Err(JoinError::Panicked(_))
    ));
    assert_eq!(pool.pids(), pids, "the workers go on");
}

#[test]
fn a_workers_death_fails_its_task_alone() {
    let _watchdog = watch();
    let pool = Pool::new(2).unwrap();
    for round in 0..3 {
        let items = (0..40).chain([99]).chain(40..60).chain([98]).chain(60..80);
        let results: Vec<_> = pool.imap(fragile, items.clone()).unwrap().collect();
        for (number, result) in items.zip(results) {
            match (number, result) {
                (99, Err(JoinError::Lost(ExitStatus::Signal(6)))) => {}
                (98, Err(JoinError::Lost(ExitStatus::Code(3)))) => {}
                (13, Err(JoinError::Panicked(_))) => {}
                (number, result) => assert_eq!(result.unwrap(), number + 1, "round {round}"),
            }
        }
    }
    assert_eq!(pool.pids().len(), 2);
}

#[test]
fn killed_idle_workers_are_replaced() {
    let _watchdog = watch();
    let pool = Pool::new(2).unwrap();
    assert_eq!(pool.apply(square, 2).unwrap(), 4);
    let before = pool.pids();
    for pid in &before {
        let killed = std::process::Command::new("kill")
            .args(["-KILL", &pid.to_string()])
            .status();
        assert!(killed.unwrap().success());
    }
    assert_eq!(pool.map(square, 0..100).unwrap().len(), 100);
    until("new workers", || {
        pool.apply(square, 1).unwrap();
        pool.pids().len() == 2 && pool.pids().iter().all(|pid| !before.contains(pid))
    });
}

#[test]
fn a_closed_pool_finishes_its_tasks() {
    let _watchdog = watch();
    let pool = Pool::new(2).unwrap();
    let job = pool.map_async(square, 0..100).unwrap();
    assert_eq!(pool.join().unwrap_err().kind(), ErrorKind::Misuse);
    pool.close().unwrap();
    let refused = pool.apply_async(square, 1).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Closed);
    assert_eq!(
        pool.imap(square, 0..3).unwrap_err().kind(),
        ErrorKind::Closed
    );
    pool.join().unwrap();
    assert_eq!(job.get().unwrap().len(), 100);
    assert!(pool.pids().is_empty());
    assert_eq!(Pool::new(0).unwrap_err().kind(), ErrorKind::Misuse);
}

#[test]
fn a_terminated_pool_answers_everything() {
    let _watchdog = watch();
    let pool = Pool::new(1).unwrap();
    let queue: Queue<()> = Queue::new().unwrap();
    let wait = |queue: Queue<()>| queue.get().is_ok();
    let running = pool.apply_async(wait, queue.clone()).unwrap();
    let waiting = pool.apply_async(wait, queue).unwrap();
    assert!(!running.wait_timeout(Duration::from_millis(20)).unwrap());
    pool.terminate().unwrap();
    for result in [running, waiting] {
        assert!(result.is_ready().unwrap());
        let error = result.get().unwrap_err();
        assert!(matches!(error, JoinError::Failed(error) if error.kind() == ErrorKind::Terminated));
    }
    pool.join().unwrap();
    let refused = pool.apply(square, 1).unwrap_err();
    assert!(matches!(refused, JoinError::Failed(error) if error.kind() == ErrorKind::Terminated));
}

#[test]
fn a_drop_ends_the_workers_and_the_results() {
    let _watchdog = watch();
    let lock = Lock::new().unwrap();
    let guard = lock.acquire().unwrap();
    let pool = Pool::new(2).unwrap();
    let result = pool
        .apply_async(|lock: Lock| drop(lock.acquire().unwrap()), lock.clone())
        .unwrap();
    let pids = pool.pids();
    drop(pool);
    assert!(result.get().is_err());
    drop(guard);
    for pid in pids {
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
    }
}
