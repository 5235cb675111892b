//! Joinable queues between processes: who waits for whom to be done with what was got.

use crate::child::{Child, Random, alone, fork, until, until_empty};
use procession_core::{Arena, Deadline, Error, Put, Queue};
use std::time::{Duration, Instant};

const NEVER: Deadline = Deadline::NEVER;

fn put(queue: &Queue, count: usize) {
    for _ in 0..count {
        assert_eq!(queue.put(0, &[b"task"], NEVER), Ok(Put::Stored));
    }
}

fn get(queue: &Queue, count: usize) {
    for _ in 0..count {
        assert!(queue.get(Deadline::now()).unwrap().is_some());
    }
}

fn join(queue: &Queue) -> Option<u64> {
    queue
        .join(Deadline::after(Duration::from_secs(20)))
        .unwrap()
}

/// Runs in a process that ends by a signal, holding whatever it took.
fn die(work: impl FnOnce()) {
    let child = fork(|| {
        work();
        // SAFETY: to this process.
        unsafe { libc::raise(libc::SIGKILL) };
    });
    assert_eq!(child.wait(), -libc::SIGKILL);
}

fn is_misuse<T>(result: Result<T, Error>) -> bool {
    matches!(result, Err(Error::Misuse { .. }))
}

#[test]
fn join_waits_for_each_task() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let queue = Queue::joinable(&arena, None).unwrap();
    assert_eq!((join(&queue), queue.unfinished()), (Some(0), Ok(0)));
    assert!(is_misuse(queue.task_done()) && is_misuse(queue.try_task_done()));
    put(&queue, 2);
    // What waits in the queue is unfinished, and what was got; a task may be done before it is got.
    get(&queue, 1);
    queue.task_done().unwrap();
    assert_eq!(queue.unfinished(), Ok(1));
    assert_eq!(queue.join(Deadline::now()), Ok(None));
    let begin = Instant::now();
    let timeout = Duration::from_millis(70);
    assert_eq!(queue.join(Deadline::after(timeout)), Ok(None));
    assert!(begin.elapsed() >= timeout);
    assert_eq!(queue.try_task_done(), Ok(true));
    assert_eq!(join(&queue), Some(0));
    assert!(is_misuse(queue.try_task_done()) && is_misuse(queue.task_done()));
    get(&queue, 1);
    assert!(
        is_misuse(queue.task_done()),
        "it was said to be done before"
    );
    drop(queue);
    until_empty(&arena);
}

#[test]
fn a_plain_queue_has_no_tasks() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let queue = Queue::new(&arena, None).unwrap();
    assert!(is_misuse(queue.task_done()));
    assert!(is_misuse(queue.join(Deadline::now())));
    assert!(is_misuse(queue.unfinished()));
    let opened = Queue::open_joinable(&arena, queue.name());
    assert!(matches!(opened, Err(Error::Malformed { .. })));
    let joinable = Queue::joinable(&arena, Some(1)).unwrap();
    assert_eq!(joinable.capacity(), Ok(Some(1)));
    Queue::open_joinable(&arena, joinable.name()).unwrap();
    assert!(is_misuse(Queue::joinable(&arena, Some(0))));
}

#[test]
fn workers_finish_and_joiners_wake() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let queue = Queue::joinable(&arena, Some(5)).unwrap();
    let worker = || {
        while queue.get(NEVER).is_ok() {
            queue.task_done().unwrap();
        }
    };
    let workers = [(); 3].map(|()| fork(worker));
    for round in 1..=20 {
        put(&queue, round);
        let joiner = fork(|| assert_eq!(join(&queue), Some(0)));
        assert_eq!((join(&queue), queue.unfinished()), (Some(0), Ok(0)));
        joiner.join();
    }
    queue.close().unwrap();
    workers.into_iter().for_each(Child::join);
}

#[test]
fn what_the_dead_owed_is_done_and_told_once() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let queue = Queue::joinable(&arena, None).unwrap();
    put(&queue, 5);
    let dying = fork(|| {
        get(&queue, 3);
        queue.task_done().unwrap();
        std::thread::sleep(Duration::from_secs(600));
    });
    until("it to have got its tasks", || queue.len() == Ok(2));
    until("it to have done one", || queue.unfinished() == Ok(4));
    get(&queue, 1);
    queue.task_done().unwrap();
    let joiner = fork(|| assert_eq!(join(&queue), Some(2)));
    assert_eq!(
        queue.join(Deadline::after(Duration::from_millis(60))),
        Ok(None)
    );
    dying.signal(libc::SIGKILL);
    assert_eq!(dying.wait(), -libc::SIGKILL);
    // What nobody has got yet isn't lost.
    until("its tasks to be given back", || {
        arena.reap().unwrap();
        queue.unfinished() == Ok(1)
    });
    get(&queue, 1);
    queue.task_done().unwrap();
    joiner.join();
    assert_eq!(join(&queue), Some(0), "a loss was told twice");
}

#[test]
fn one_that_leaves_normally_keeps_its_debt() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let queue = Queue::joinable(&arena, None).unwrap();
    put(&queue, 2);
    let leave = || {
        get(&queue, 2);
        arena.leave();
    };
    fork(leave).join();
    arena.reap().unwrap();
    assert_eq!(
        queue.join(Deadline::after(Duration::from_millis(60))),
        Ok(None)
    );
    // Its place goes to another, which owes nothing of that.
    die(|| put(&queue, 1));
    arena.reap().unwrap();
    assert_eq!(queue.unfinished(), Ok(3));
    // Nor does one that gets something there, and dies.
    die(|| get(&queue, 1));
    arena.reap().unwrap();
    assert_eq!(queue.unfinished(), Ok(2));
    // Somebody may speak for it.
    (0..2).for_each(|_| queue.task_done().unwrap());
    assert_eq!(join(&queue), Some(1));
}

#[test]
fn a_task_may_be_done_by_another_than_its_getter() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let queue = Queue::joinable(&arena, None).unwrap();
    let go_on = Queue::new(&arena, None).unwrap();
    let hold = |count| {
        let (queue, go_on) = (&queue, &go_on);
        fork(move || {
            get(queue, count);
            go_on.get(NEVER).unwrap();
        })
    };
    put(&queue, 6);
    let many = hold(4);
    until("one to have got four", || queue.len() == Ok(2));
    let few = hold(1);
    until("one to have got one", || queue.len() == Ok(1));
    get(&queue, 1);
    // The first is this process' own, the others' go to who owes most: two and one are left.
    (0..3).for_each(|_| queue.task_done().unwrap());
    assert_eq!(queue.unfinished(), Ok(3));
    for (process, left) in [(many, 1), (few, 0)] {
        process.signal(libc::SIGKILL);
        process.wait();
        arena.reap().unwrap();
        assert_eq!(queue.unfinished(), Ok(left));
    }
    assert_eq!(join(&queue), Some(3));
}

/// Puts, gets and does tasks, is killed at random, and another takes its place: joins end, and what was put is done, or
/// lost with one that was killed.
#[test]
fn random_kills_leave_nobody_waiting() {
    let _alone = alone();
    let mut random = Random::seeded(20_261_126);
    let arena = Arena::create().unwrap();
    let queue = Queue::joinable(&arena, None).unwrap();
    let worker = || loop {
        queue.get(NEVER).unwrap();
        queue.task_done().unwrap();
    };
    let mut workers: Vec<_> = (0..3).map(|_| fork(worker)).collect();
    let (mut lost, mut kills) = (0, 0);
    for _ in 0..60 {
        put(&queue, 200);
        let which = usize::try_from(random.below(3)).unwrap();
        std::thread::sleep(Duration::from_micros(random.below(300)));
        workers[which].signal(libc::SIGKILL);
        kills += 1;
        assert_eq!(
            std::mem::replace(&mut workers[which], fork(worker)).wait(),
            -libc::SIGKILL
        );
        lost += join(&queue).expect("a join that ends");
        assert_eq!((queue.unfinished(), queue.len()), (Ok(0), Ok(0)));
    }
    println!("{kills} kills, {lost} tasks lost");
    assert!(lost <= kills, "more lost than one each");
}
