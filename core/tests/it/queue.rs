//! The queue between processes.

use crate::child::{Child, Random, alone, fork, until, until_empty};
use procession_core::{Arena, Deadline, Error, Put, Queue};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

const PRODUCERS: usize = 3;

fn message(from: u64, number: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![u8::try_from(number % 251).unwrap(); length.max(16)];
    bytes[..8].copy_from_slice(&from.to_le_bytes());
    bytes[8..16].copy_from_slice(&number.to_le_bytes());
    bytes
}

fn check(bytes: &[u8]) -> (u64, u64) {
    let from = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    let number = u64::from_le_bytes(bytes[8..16].try_into().unwrap());
    let fill = u8::try_from(number % 251).unwrap();
    assert!(
        bytes[16..].iter().all(|byte| *byte == fill),
        "message {number} of {from} is torn"
    );
    (from, number)
}

/// Puts a message and makes it a record of no kind, so that whoever gets it finds that the arena contradicts itself.
pub(crate) fn spoil(arena: &Arena, queue: &Queue) {
    // By docs/shm.md: behind the object's header, in the consumers' end.
    const POSITION: u64 = 192 + 256;
    queue.put(0, &[b"message"], Deadline::NEVER).unwrap();
    // The first get follows the jump into the first segment.
    queue.get(Deadline::now()).unwrap();
    queue.put(0, &[b"message"], Deadline::NEVER).unwrap();
    let file = std::fs::File::from(arena.descriptor().try_clone_to_owned().unwrap());
    let mut bytes = [0; 8];
    let position = queue.name().offset + POSITION;
    file.read_exact_at(&mut bytes, position).unwrap();
    let record = u64::from_le_bytes(bytes);
    file.write_all_at(&[0xff; 8], record).unwrap();
}

#[test]
fn keeps_order_and_bytes_of_any_length() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let queue = Queue::new(&arena, None).unwrap();
    let lengths = [
        0,
        1,
        7,
        8,
        9,
        1000,
        16 << 10,
        (16 << 10) + 1,
        64 << 10,
        1 << 20,
        3_000_001,
    ];
    for round in 0..50u8 {
        for length in lengths {
            let bytes = vec![round; length];
            let (left, right) = bytes.split_at(length / 3);
            assert_eq!(
                queue.put(round, &[left, right], Deadline::NEVER).unwrap(),
                Put::Stored
            );
        }
        for length in lengths {
            let got = queue.get(Deadline::now()).unwrap().unwrap();
            assert_eq!((got.tag, got.bytes.len()), (round, length));
            assert!(got.bytes.iter().all(|byte| *byte == round));
        }
    }
    assert!(queue.get(Deadline::now()).unwrap().is_none());
    assert_eq!(queue.len().unwrap(), 0);
    drop(queue);
    until_empty(&arena);
}

#[test]
fn many_producers_and_consumers_lose_nothing() {
    let _alone = alone();
    for capacity in [None, Some(7)] {
        let arena = Arena::create().unwrap();
        let queue = Queue::new(&arena, capacity).unwrap();
        let sums = Queue::new(&arena, None).unwrap();
        let each = 20_000u64;
        let consumers: Vec<_> = (0..2).map(|_| fork(|| consume(&queue, &sums))).collect();
        let producers: Vec<_> = (0..PRODUCERS as u64)
            .map(|from| {
                let queue = &queue;
                fork(move || {
                    for number in 1..=each {
                        let bytes = message(from, number, 16 + (number % 200) as usize);
                        queue.put(1, &[&bytes], Deadline::NEVER).unwrap();
                    }
                })
            })
            .collect();
        producers.into_iter().for_each(Child::join);
        queue.close().unwrap();
        consumers.into_iter().for_each(Child::join);
        let mut total = 0;
        while let Some(sum) = sums.get(Deadline::now()).unwrap() {
            total += u64::from_le_bytes(sum.bytes.try_into().unwrap());
        }
        assert_eq!(total, PRODUCERS as u64 * each * (each + 1) / 2);
    }
}

fn consume(queue: &Queue, sums: &Queue) {
    let (mut last, mut sum) = ([0; PRODUCERS], 0);
    loop {
        match queue.get(Deadline::NEVER) {
            Ok(Some(got)) => {
                let (from, number) = check(&got.bytes);
                let last = &mut last[usize::try_from(from).unwrap()];
                assert!(*last < number, "{number} after {last}");
                *last = number;
                sum += number;
            }
            Err(Error::Closed { .. }) => break,
            other => panic!("{other:?}"),
        }
    }
    sums.put(0, &[&sum.to_le_bytes()], Deadline::NEVER).unwrap();
}

#[test]
fn bounded_says_full_and_timeouts_are_kept() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let queue = Queue::new(&arena, Some(2)).unwrap();
    for _ in 0..2 {
        assert_eq!(queue.put(0, &[b"x"], Deadline::now()).unwrap(), Put::Stored);
    }
    let begin = Instant::now();
    let timeout = Duration::from_millis(60);
    assert_eq!(
        queue.put(0, &[b"x"], Deadline::after(timeout)).unwrap(),
        Put::Full
    );
    assert!(begin.elapsed() >= timeout);
    queue.get(Deadline::NEVER).unwrap().unwrap();
    assert_eq!(queue.put(0, &[b"x"], Deadline::now()).unwrap(), Put::Stored);
    let waiter = fork(|| assert_eq!(queue.put(0, &[b"y"], Deadline::NEVER).unwrap(), Put::Stored));
    queue.get(Deadline::NEVER).unwrap().unwrap();
    waiter.join();
    assert_eq!(queue.len().unwrap(), 2);
    let empty = Queue::new(&arena, None).unwrap();
    let begin = Instant::now();
    assert!(empty.get(Deadline::after(timeout)).unwrap().is_none());
    assert!(begin.elapsed() >= timeout);
}

#[test]
fn a_killed_getter_leaves_it_to_the_others() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let queue = Queue::new(&arena, None).unwrap();
    for _ in 0..10 {
        let sleeper = fork(|| {
            queue.get(Deadline::NEVER).unwrap();
        });
        // No way to see it sleep: it is killed at whatever it does by then.
        std::thread::sleep(Duration::from_millis(20));
        sleeper.signal(libc::SIGKILL);
        let heir = fork(|| assert!(queue.get(Deadline::NEVER).unwrap().is_some()));
        queue.put(0, &[b"one"], Deadline::NEVER).unwrap();
        heir.join();
    }
}

#[test]
fn what_was_put_outlives_its_putter() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let queue = Queue::new(&arena, None).unwrap();
    for number in 0..40u64 {
        let child = fork(|| {
            let length = if number % 2 == 0 { 20 } else { 100_000 };
            queue
                .put(0, &[&message(0, number, length)], Deadline::NEVER)
                .unwrap();
            // SAFETY: to this process.
            unsafe { libc::raise(libc::SIGKILL) };
        });
        assert_eq!(child.wait(), -libc::SIGKILL);
    }
    arena.reap().unwrap();
    for number in 0..40 {
        let got = queue
            .get(Deadline::now())
            .unwrap()
            .expect("put had returned");
        assert_eq!(check(&got.bytes), (0, number));
    }
}

#[test]
fn random_kills_lose_and_tear_nothing() {
    let _alone = alone();
    let mut random = Random::seeded(20_261_124);
    let arena = Arena::create().unwrap();
    let queue = Queue::new(&arena, None).unwrap();
    let said = Queue::new(&arena, None).unwrap();
    let mut expected = std::collections::HashSet::new();
    let mut seen = std::collections::HashSet::new();
    for round in 0..60u64 {
        let producer = fork(|| {
            for number in 0.. {
                let length = if number % 50 == 0 {
                    20_000
                } else {
                    16 + (number % 300) as usize
                };
                queue
                    .put(0, &[&message(round, number, length)], Deadline::NEVER)
                    .unwrap();
                said.put(0, &[&message(round, number, 16)], Deadline::NEVER)
                    .unwrap();
            }
        });
        std::thread::sleep(Duration::from_micros(500 + random.below(6000)));
        producer.signal(libc::SIGKILL);
        assert_eq!(producer.wait(), -libc::SIGKILL);
        while let Some(got) = said.get(Deadline::now()).unwrap() {
            expected.insert(check(&got.bytes));
        }
        while let Some(got) = queue.get(Deadline::now()).unwrap() {
            assert!(seen.insert(check(&got.bytes)), "got twice");
        }
    }
    assert!(
        expected.is_subset(&seen),
        "lost a message whose put had returned"
    );
    assert!(seen.len() <= expected.len() + 60);
    drop((queue, said));
    until_empty(&arena);
}

#[test]
fn a_million_messages_leave_little_behind() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let queue = Queue::new(&arena, None).unwrap();
    for number in 0..1_000_000u64 {
        queue
            .put(0, &[&number.to_le_bytes()], Deadline::NEVER)
            .unwrap();
        if number >= 100 {
            queue.get(Deadline::now()).unwrap().unwrap();
        }
    }
    let census = arena.census().unwrap();
    assert!(census.allocated_bytes <= 8 << 20, "{census:?}");
    assert!(census.linked_bytes <= 1 << 20, "{census:?}");
}

#[test]
fn large_messages_depend_on_no_consumer() {
    // A producer that is far ahead waits for a moment while something is got; never for the consumers to be there.
    const AHEAD: u64 = 20;
    const LENGTH: usize = 256 << 10;
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let queue = Queue::new(&arena, None).unwrap();
    let put = |number| {
        let bytes = message(0, number, LENGTH);
        assert_eq!(
            queue.put(0, &[&bytes], Deadline::now()).unwrap(),
            Put::Stored
        );
    };
    (0..AHEAD).for_each(put);
    for number in 0..AHEAD {
        let got = queue.get(Deadline::now()).unwrap().unwrap();
        assert_eq!(check(&got.bytes), (0, number));
        // Nobody gets anything during this.
        put(AHEAD + number);
    }
    assert_eq!(queue.len().unwrap(), AHEAD);
}

#[test]
fn a_forked_child_keeps_what_its_parent_drops() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let [kept, told] = [(); 2].map(|()| Queue::new(&arena, None).unwrap());
    let child = fork(|| {
        told.get(Deadline::NEVER).unwrap().unwrap();
        kept.put(0, &[b"kept"], Deadline::NEVER).unwrap();
        assert_eq!(kept.get(Deadline::now()).unwrap().unwrap().bytes, b"kept");
    });
    let name = kept.name();
    drop(kept);
    // Held by the child from its first instant on, or it would be gone by now.
    drop(Queue::open(&arena, name).unwrap());
    told.put(0, &[b"go on"], Deadline::NEVER).unwrap();
    child.join();
    drop(told);
    until_empty(&arena);
    assert!(matches!(
        Queue::open(&arena, name),
        Err(Error::Closed { .. })
    ));
}

#[test]
fn an_answer_at_the_instant_of_the_sleep_is_heard() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let [asked, answered] = [(); 2].map(|()| Queue::new(&arena, None).unwrap());
    let rounds = 10_000u64;
    // Each waits for the other, so a wake that is lost is not made good by a later one.
    let answerer = fork(|| {
        let mut random = Random::new(99);
        for _ in 0..rounds {
            asked.get(Deadline::NEVER).unwrap().unwrap();
            // About as long as the other waits awake.
            for _ in 0..random.below(1000) {
                std::hint::spin_loop();
            }
            answered.put(0, &[b"answer"], Deadline::NEVER).unwrap();
        }
    });
    let asker = fork(|| {
        for _ in 0..rounds {
            asked.put(0, &[b"question"], Deadline::NEVER).unwrap();
            answered.get(Deadline::NEVER).unwrap().unwrap();
        }
    });
    asker.join();
    answerer.join();
}

#[test]
fn close_wakes_whoever_waits() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let queue = Queue::new(&arena, Some(1)).unwrap();
    let waiters: Vec<_> = (0..2)
        .map(|_| {
            fork(|| {
                assert!(matches!(
                    queue.get(Deadline::NEVER),
                    Err(Error::Closed { .. })
                ))
            })
        })
        .collect();
    std::thread::sleep(Duration::from_millis(20));
    queue.close().unwrap();
    waiters.into_iter().for_each(Child::join);
    assert!(matches!(
        queue.put(0, &[b"x"], Deadline::now()),
        Err(Error::Closed { .. })
    ));
    until("it to be closed", || queue.is_closed().unwrap());
}

#[test]
fn many_queues_need_windows_that_no_lock_is_in_the_way_of() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let queues: Vec<Queue> = (0..4000)
        .map(|_| Queue::new(&arena, None).unwrap())
        .collect();
    for queue in [&queues[0], &queues[3999]] {
        queue.put(0, &[b"here"], Deadline::NEVER).unwrap();
        let got = queue.get(Deadline::NEVER).unwrap().unwrap();
        assert_eq!(got.bytes, b"here");
    }
    drop(queues);
    until_empty(&arena);
}

#[test]
fn a_forked_child_does_not_free_its_parents_bytes() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let queue = Queue::new(&arena, None).unwrap();
    queue.put(0, &[&[7; 50_000]], Deadline::NEVER).unwrap();
    let mut buffer = Vec::new();
    let taken = queue.get_into(&mut buffer, Deadline::NEVER).unwrap();
    let owned = arena.census().unwrap().owned_bytes;
    assert!(owned >= 50_000);
    // SAFETY: the child's copy is dropped once, in the child, which leaves by _exit.
    fork(|| drop(unsafe { std::ptr::read(&raw const taken) })).join();
    assert_eq!(arena.census().unwrap().owned_bytes, owned);
    drop(taken);
    assert_eq!(arena.census().unwrap().owned_bytes, 0);
}
