//! Forks and execs at the worst moments.

use crate::child::{alone, fork, until, until_empty};
use procession_core::{Acquired, Arena, ChildSlot, Deadline, Error, Lock, Put, Queue};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

fn store(queue: &Queue, message: &[u8]) {
    let put = queue.put(0, &[message], Deadline::NEVER);
    assert_eq!(put, Ok(Put::Stored));
}

/// Sends a signal to this process.
fn raise(signal: i32) {
    // SAFETY: to this process, whose handlers are the default ones.
    unsafe { libc::raise(signal) };
}

/// The parent drops all that it has of a queue right after the fork; the child goes on with it.
#[test]
fn a_child_keeps_what_its_parent_drops_at_once() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let answers = Queue::new(&arena, None).unwrap();
    for round in 0..1000u32 {
        let queue = Queue::new(&arena, None).unwrap();
        let lock = Lock::new(&arena).unwrap();
        queue.put(0, &[&[7; 20_000]], Deadline::NEVER).unwrap();
        let child = fork(|| {
            lock.acquire(Deadline::NEVER).unwrap();
            let got = queue.get(Deadline::NEVER).unwrap().unwrap();
            assert_eq!(got.bytes, [7; 20_000]);
            queue.put(0, &[b"again"], Deadline::NEVER).unwrap();
            assert!(queue.get(Deadline::NEVER).unwrap().is_some());
            answers
                .put(0, &[&round.to_le_bytes()], Deadline::NEVER)
                .unwrap();
        });
        drop((queue, lock));
        if round % 3 == 0 {
            // As a neighbour does who looks for the dead.
            arena.reap().unwrap();
        }
        let answer = answers.get(Deadline::NEVER).unwrap().unwrap();
        assert_eq!(answer.bytes, round.to_le_bytes());
        child.join();
    }
    drop(answers);
    until_empty(&arena);
}

/// The same, of a parent that is gone as soon as it has forked, and of its parent.
#[test]
fn a_grandchild_keeps_what_both_before_it_had() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let answers = Queue::new(&arena, None).unwrap();
    for _ in 0..200 {
        let queue = Queue::new(&arena, None).unwrap();
        queue.put(0, &[b"inherited"], Deadline::NEVER).unwrap();
        let child = fork(|| {
            std::mem::forget(fork(|| {
                let got = queue.get(Deadline::NEVER).unwrap().unwrap();
                answers.put(0, &[&got.bytes], Deadline::NEVER).unwrap();
            }));
        });
        drop(queue);
        child.join();
        arena.reap().unwrap();
        let answer = answers.get(Deadline::NEVER).unwrap().unwrap();
        assert_eq!(answer.bytes, b"inherited");
    }
    drop(answers);
    until_empty(&arena);
}

/// Threads that make, clone, use and drop everything, and so hold each mutex of this process now and then.
fn busy(arena: &Arena, queue: &Queue, lock: &Lock, over: &AtomicBool) {
    while !over.load(Ordering::Relaxed) {
        let (other, again) = (queue.clone(), Lock::open(arena, lock.name()).unwrap());
        let own = Queue::new(arena, None).unwrap();
        own.put(0, &[&[7; 20_000]], Deadline::NEVER).unwrap();
        drop(own.clone());
        other.put(0, &[b"x"], Deadline::NEVER).unwrap();
        assert!(other.get(Deadline::NEVER).unwrap().is_some());
        again.acquire(Deadline::NEVER).unwrap();
        again.release().unwrap();
        let place: ChildSlot = arena.reserve().unwrap();
        place.give(own.name()).unwrap();
    }
}

/// What a child does with all that its parent's threads were busy with.
fn use_all(arena: &Arena, queue: &Queue, lock: &Lock) {
    let (other, own) = (queue.clone(), Queue::new(arena, None).unwrap());
    drop(Lock::open(arena, lock.name()).unwrap());
    own.put(0, &[&[7; 20_000]], Deadline::NEVER).unwrap();
    assert!(own.get(Deadline::now()).unwrap().is_some());
    other.put(0, &[b"y"], Deadline::NEVER).unwrap();
    assert!(other.get(Deadline::NEVER).unwrap().is_some());
    // A thread of the parent's may have held it: that one frees it.
    assert_eq!(lock.acquire(Deadline::NEVER).unwrap(), Acquired::Clean);
    lock.release().unwrap();
    drop(arena.reserve().unwrap());
}

#[test]
fn nothing_that_other_threads_hold_is_in_a_childs_way() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let (queue, lock) = (
        Queue::new(&arena, None).unwrap(),
        Lock::new(&arena).unwrap(),
    );
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| busy(&arena, &queue, &lock, &over));
        }
        for _ in 0..400 {
            fork(|| use_all(&arena, &queue, &lock)).join();
        }
        over.store(true, Ordering::Relaxed);
    });
    assert!(queue.is_empty().unwrap());
    drop((queue, lock));
    until_empty(&arena);
}

/// All threads fork at once, and so do their children.
#[test]
fn forks_of_several_threads_and_generations() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let queue = Queue::new(&arena, None).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..50 {
                    fork(|| {
                        queue.put(0, &[b"child"], Deadline::NEVER).unwrap();
                        fork(|| store(&queue, b"grandchild")).join();
                    })
                    .join();
                }
            });
        }
    });
    assert_eq!(queue.len().unwrap(), 300);
    drop(queue);
    until_empty(&arena);
}

/// How a process ends.
type End = fn(&Arena);

/// A forked child ends in any way, and what it put is there.
#[test]
fn every_end_of_a_bare_fork() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let (queue, lock) = (
        Queue::new(&arena, None).unwrap(),
        Lock::new(&arena).unwrap(),
    );
    let ends: [(End, Acquired); 5] = [
        // SAFETY: ends the process.
        (|_| unsafe { libc::_exit(0) }, Acquired::OwnerDied),
        (|_| raise(libc::SIGKILL), Acquired::OwnerDied),
        (|_| raise(libc::SIGSEGV), Acquired::OwnerDied),
        (|_| become_another(), Acquired::OwnerDied),
        // It leaves normally: what it holds stays held, until somebody releases it.
        (Arena::leave, Acquired::TimedOut),
    ];
    for (end, expected) in ends {
        let child = fork(|| {
            lock.acquire(Deadline::NEVER).unwrap();
            queue.put(0, &[&[7; 20_000]], Deadline::NEVER).unwrap();
            end(&arena);
        });
        assert!(queue.get(Deadline::NEVER).unwrap().is_some());
        if expected == Acquired::OwnerDied {
            // Nobody has waited for it yet, or it lives on as another program.
            assert_eq!(lock.acquire(Deadline::NEVER).unwrap(), expected);
        } else {
            child.join();
            let timeout = Deadline::after(Duration::from_millis(120));
            assert_eq!(lock.acquire(timeout).unwrap(), expected);
        }
        lock.release().unwrap();
    }
    drop((queue, lock));
    until_empty(&arena);
}

fn become_another() {
    let error = std::process::Command::new("sleep").arg("60").exec();
    panic!("{error}");
}

/// A process execs while one of its threads is inside an internal lock, and others wait for that.
#[test]
fn exec_in_the_midst_of_things() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let queue = Queue::new(&arena, Some(4)).unwrap();
    for round in 0..40 {
        let child = fork(|| {
            let over = AtomicBool::new(false);
            std::thread::scope(|scope| {
                for _ in 0..2 {
                    scope.spawn(|| {
                        while !over.load(Ordering::Relaxed) {
                            queue.put(0, &[&[7; 20_000]], Deadline::NEVER).unwrap();
                            queue.get(Deadline::NEVER).unwrap();
                        }
                    });
                }
                std::thread::sleep(Duration::from_micros(500 + 150 * round));
                become_another();
            });
        });
        // What it had stored and not got is there, and the queue works while the other program runs.
        for _ in 0..20 {
            queue.put(0, &[&[7; 20_000]], Deadline::NEVER).unwrap();
            let got = queue.get(Deadline::NEVER).unwrap().unwrap();
            assert_eq!(got.bytes, [7; 20_000]);
        }
        until("the other program", || {
            arena.reap().unwrap();
            arena.census().unwrap().processes == 1
        });
        drop(child);
        while queue.get(Deadline::now()).unwrap().is_some() {}
    }
    drop(queue);
    until_empty(&arena);
}

/// The first thread ends by itself: the process lives, keeps its lock, and goes on.
#[test]
fn a_first_thread_that_ends_alone_takes_nothing_along() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let (queue, lock) = (
        Queue::new(&arena, None).unwrap(),
        Lock::new(&arena).unwrap(),
    );
    let told = Queue::new(&arena, None).unwrap();
    let child = fork(|| {
        lock.acquire(Deadline::NEVER).unwrap();
        let (queue, lock, told) = (queue.clone(), lock.clone(), told.clone());
        let first = std::process::id();
        std::thread::spawn(move || {
            until("the first thread to end", || state_of(first) == 'Z');
            queue.put(0, &[b"here still"], Deadline::NEVER).unwrap();
            let question = told.get(Deadline::NEVER).unwrap().unwrap();
            queue.put(0, &[&question.bytes], Deadline::NEVER).unwrap();
            // Its own children are forked by a thread that isn't the first.
            fork(|| store(&queue, b"child")).join();
            told.get(Deadline::NEVER).unwrap().unwrap();
            lock.release().unwrap();
            // SAFETY: ends the process.
            unsafe { libc::_exit(0) };
        });
        // SAFETY: ends this thread alone, which has nothing to drop.
        unsafe { libc::syscall(libc::SYS_exit, 0) };
    });
    let heard = || queue.get(Deadline::NEVER).unwrap().unwrap().bytes;
    assert_eq!(heard(), b"here still");
    for _ in 0..5 {
        arena.reap().unwrap();
        let timeout = Deadline::after(Duration::from_millis(60));
        assert_eq!(lock.acquire(timeout).unwrap(), Acquired::TimedOut);
    }
    assert_eq!(arena.census().unwrap().processes, 2);
    told.put(0, &[b"a question"], Deadline::NEVER).unwrap();
    assert_eq!(heard(), b"a question");
    assert_eq!(heard(), b"child");
    told.put(0, &[b"go on"], Deadline::NEVER).unwrap();
    assert_eq!(lock.acquire(Deadline::NEVER).unwrap(), Acquired::Clean);
    child.join();
    drop((queue, lock, told));
    until_empty(&arena);
}

/// The letter of a process' state.
fn state_of(pid: u32) -> char {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    text.rsplit_once(") ").unwrap().1.chars().next().unwrap()
}

/// A child by a bare system call runs no fork handler: it has no place of its own. What it can do is exec.
#[test]
fn a_program_started_by_vfork_is_in_nobodys_way() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let (queue, lock) = (
        Queue::new(&arena, None).unwrap(),
        Lock::new(&arena).unwrap(),
    );
    let (over, rounds) = (AtomicBool::new(false), AtomicU32::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                lock.acquire(Deadline::NEVER).unwrap();
                queue.put(0, &[&[7; 20_000]], Deadline::NEVER).unwrap();
                assert!(queue.get(Deadline::NEVER).unwrap().is_some());
                lock.release().unwrap();
                rounds.fetch_add(1, Ordering::Relaxed);
            }
        });
        let number = arena.descriptor().as_raw_fd();
        for _ in 0..50 {
            // std starts it by posix_spawn, which is a vfork.
            let script = format!("test ! -e /proc/self/fd/{number}");
            let status = std::process::Command::new("sh")
                .args(["-c", &script])
                .status();
            assert!(status.unwrap().success(), "it has the arena");
        }
        over.store(true, Ordering::Relaxed);
    });
    assert!(rounds.into_inner() > 0);
    assert_eq!(arena.census().unwrap().processes, 1);
    drop((queue, lock));
    until_empty(&arena);
}

/// A forked child may use up the arena's places, one way or another: it shares nothing then, and its parent all.
#[test]
fn a_child_for_which_there_is_no_place_says_so() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let queue = Queue::new(&arena, None).unwrap();
    let places: Vec<_> = std::iter::from_fn(|| arena.reserve().ok()).collect();
    for _ in 0..3 {
        fork(|| {
            let put = queue.put(0, &[b"x"], Deadline::NEVER);
            assert!(matches!(put, Err(Error::Misuse { .. })));
            // Nor have its children one, and nor do they end otherwise.
            fork(|| assert!(queue.get(Deadline::now()).is_err())).join();
        })
        .join();
    }
    drop(places);
    fork(|| assert_eq!(queue.put(0, &[b"x"], Deadline::NEVER), Ok(Put::Stored))).join();
    assert_eq!(queue.len().unwrap(), 1);
    drop(queue);
    until_empty(&arena);
}
