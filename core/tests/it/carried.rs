//! Objects that live in messages: who holds them on the way, and when they end.

use crate::child::{Child, Random, alone, fork, until_empty};
use procession_core::pool::{Action, Driver, News, Submitted, Task};
use procession_core::{
    Acquired, Arena, Carried, Deadline, Error, Lock, Memory, ObjectName, Put, Queue,
};
use std::fs::File;
use std::time::{Duration, Instant};

/// Longer than a message that lies among the records.
const LARGE: usize = 40_000;

fn queue(arena: &Arena) -> Queue {
    Queue::new(arena, None).unwrap()
}

fn naming(arena: &Arena, names: &[ObjectName]) -> Carried {
    let mut carried = Carried::new();
    for name in names {
        carried.add(arena, *name).unwrap();
    }
    carried
}

/// Puts a message of so many bytes that names those objects.
fn put(arena: &Arena, queue: &Queue, names: &[ObjectName], bytes: usize) {
    let names = naming(arena, names);
    let body = vec![7; bytes];
    let put = queue.put_naming(1, &[&body], &names, Deadline::NEVER);
    assert_eq!(put, Ok(Put::Stored));
}

/// Puts a message of some bytes into `queue` that names a lock which nobody else holds.
fn put_lock(arena: &Arena, queue: &Queue, bytes: usize) -> ObjectName {
    let name = Lock::new(arena).map(|lock| {
        put(arena, queue, &[lock.name()], bytes);
        lock.name()
    });
    name.unwrap()
}

fn objects(arena: &Arena) -> u64 {
    arena.reap().unwrap();
    arena.census().unwrap().objects
}

#[test]
fn what_was_sent_lives_in_its_message_and_ends_with_its_last_holder() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let queue = queue(&arena);
    for bytes in [0, 40, LARGE] {
        let name = put_lock(&arena, &queue, bytes);
        assert_eq!(objects(&arena), 2);
        let got = queue.get(Deadline::now()).unwrap().unwrap();
        assert_eq!((got.tag, got.carried.names()), (1, &[name][..]));
        assert_eq!(got.bytes, vec![7; bytes]);
        let lock = Lock::open(&arena, name).unwrap();
        drop(got);
        assert_eq!(objects(&arena), 2);
        assert_eq!(lock.acquire(Deadline::now()).unwrap(), Acquired::Clean);
        drop(lock);
        assert_eq!(objects(&arena), 1, "{bytes} bytes");
        let gone = Lock::open(&arena, name).unwrap_err();
        assert!(matches!(gone, Error::Closed { .. }), "{gone}");
    }
    assert_eq!(queue.lost(), Ok(0));
}

#[test]
fn a_message_that_nobody_opens_and_one_that_nobody_gets_end_what_they_name() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let queue = queue(&arena);
    for _ in 0..3 {
        put_lock(&arena, &queue, 40);
        put_lock(&arena, &queue, LARGE);
    }
    assert_eq!(objects(&arena), 7);
    drop(queue.get(Deadline::now()).unwrap().unwrap());
    let taken = queue.get_into(&mut Vec::new(), Deadline::now());
    drop(taken.unwrap().unwrap());
    assert_eq!(objects(&arena), 5);
    drop(queue);
    until_empty(&arena);
}

#[test]
fn queues_live_in_queues() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let outer = queue(&arena);
    let name = {
        let (middle, inner) = (queue(&arena), queue(&arena));
        put_lock(&arena, &inner, 40);
        put(&arena, &middle, &[inner.name()], LARGE);
        put(&arena, &outer, &[middle.name()], 8);
        middle.name()
    };
    assert_eq!(objects(&arena), 4);
    // Twice, so that what the first trace left is traced again.
    assert_eq!(objects(&arena), 4);
    let message = outer.get(Deadline::now()).unwrap().unwrap();
    let middle = Queue::open(&arena, name).unwrap();
    drop((message, outer));
    assert_eq!(objects(&arena), 3);
    let message = middle.get(Deadline::now()).unwrap().unwrap();
    let inner = Queue::open(&arena, message.carried.names()[0]).unwrap();
    drop((message, middle));
    let message = inner.get(Deadline::now()).unwrap().unwrap();
    let lock = Lock::open(&arena, message.carried.names()[0]).unwrap();
    drop((message, inner));
    assert_eq!(objects(&arena), 1);
    drop(lock);
    until_empty(&arena);
}

#[test]
fn circles_end_with_their_last_holder() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let one = queue(&arena);
    put(&arena, &one, &[one.name()], 40);
    put_lock(&arena, &one, 40);
    assert_eq!(objects(&arena), 2);
    drop(one);
    until_empty(&arena);
    let (one, other) = (queue(&arena), queue(&arena));
    put(&arena, &one, &[other.name()], 40);
    put(&arena, &other, &[one.name(), other.name()], 40);
    drop(other);
    assert_eq!(objects(&arena), 2);
    drop(one);
    until_empty(&arena);
}

#[test]
fn what_a_dead_process_sent_lives_on_and_what_it_got_does_not() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let queue = queue(&arena);
    fork(|| {
        put_lock(&arena, &queue, 40);
    })
    .join();
    assert_eq!(objects(&arena), 2);
    fork(|| {
        let message = queue.get(Deadline::now()).unwrap().unwrap();
        let lock = Lock::open(&arena, message.carried.names()[0]).unwrap();
        lock.acquire(Deadline::NEVER).unwrap();
        // SAFETY: to this process.
        unsafe { libc::raise(libc::SIGKILL) };
    })
    .wait();
    assert_eq!(objects(&arena), 1);
}

#[test]
fn only_what_is_held_can_be_named_and_stale_names_are_passed_over() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let queue = queue(&arena);
    let stale = Lock::new(&arena).unwrap().name();
    let refused = Carried::new().add(&arena, stale);
    assert!(matches!(refused, Err(Error::Misuse { .. })), "{refused:?}");
    let other = Arena::create().unwrap();
    let lock = Lock::new(&other).unwrap();
    let names = naming(&other, &[lock.name()]);
    let refused = queue.put_naming(0, &[b"x"], &names, Deadline::NEVER);
    assert!(matches!(refused, Err(Error::Misuse { .. })), "{refused:?}");
    assert_eq!(queue.len(), Ok(0));
    // A child that is told of an object by its number holds nothing of it.
    let lock = Lock::new(&arena).unwrap();
    assert_ne!(lock.name(), stale);
    let message = naming(&arena, &[lock.name(), lock.name()]);
    queue
        .put_naming(0, &[b"twice"], &message, Deadline::NEVER)
        .unwrap();
    drop((message, lock));
    let message = queue.get(Deadline::now()).unwrap().unwrap();
    assert_eq!(message.carried.names().len(), 2);
    drop((message, queue));
    until_empty(&arena);
}

#[test]
fn a_message_of_no_number_stays_where_it_is_with_what_it_names() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let queue = queue(&arena);
    put_lock(&arena, &queue, 7);
    let claim = procession_core::Claim::new(&arena).unwrap();
    let refused = queue.get_claiming(&claim, &mut Vec::new(), Deadline::now());
    assert!(matches!(refused, Err(Error::Malformed { .. })));
    assert_eq!((objects(&arena), claim.value()), (3, Ok(0)));
    let message = queue.get(Deadline::now()).unwrap().unwrap();
    assert_eq!((message.bytes.len(), message.carried.names().len()), (7, 1));
    drop((message, claim, queue));
    until_empty(&arena);
}

#[test]
fn a_task_and_its_answer_hold_what_they_name() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let driver: Driver<u64, i32> = Driver::new(&arena, 1).unwrap();
    let Ok(Some(Action::Start(worker))) = driver.next_action() else {
        panic!("a pool begins with starting its workers");
    };
    let seat = driver.seat(&arena, worker).unwrap();
    driver.with(|scheduler| scheduler.ready(worker));
    let before = objects(&arena);
    {
        let lock = Lock::new(&arena).unwrap();
        let names = naming(&arena, &[lock.name()]);
        let submitted = driver.submit(5, 0, &[b"task"], &names);
        assert!(matches!(submitted, Submitted::Accepted(_)));
    }
    assert_eq!(objects(&arena), before + 1);
    let mut buffer = Vec::new();
    let task = seat.take(&mut buffer, Deadline::now()).unwrap().unwrap();
    assert_eq!(&buffer[Task::START..], b"task");
    seat.answer(task.id, 0, &[b"answer"], &task.carried)
        .unwrap();
    drop(task);
    assert_eq!(objects(&arena), before + 1);
    buffer.clear();
    let taken = driver.next(&mut buffer, Deadline::now()).unwrap().unwrap();
    assert_eq!(driver.hear(&taken, &buffer), Ok(News::Answer(5)));
    let lock = Lock::open(&arena, taken.carried.names()[0]).unwrap();
    drop(taken);
    assert_eq!(objects(&arena), before + 1);
    drop(lock);
    assert_eq!(objects(&arena), before);
}

#[test]
fn garbage_is_a_share_of_what_lives() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let (waiting, passing) = (queue(&arena), queue(&arena));
    let began = Instant::now();
    for _ in 0..10_000 {
        put_lock(&arena, &waiting, 8);
    }
    assert_eq!(objects(&arena), 10_002);
    let before = arena.census().unwrap();
    for _ in 0..10_000 {
        put_lock(&arena, &passing, 8);
        drop(passing.get(Deadline::now()).unwrap().unwrap());
    }
    // Nobody has asked for a trace: what letting go of them has left is less than half of them, 256 bytes each.
    let after = arena.census().unwrap();
    assert_eq!(after.objects, before.objects);
    let more = after.allocated_bytes - before.allocated_bytes;
    assert!(more < 1 << 20, "{more}");
    for _ in 0..10_000 {
        drop(waiting.get(Deadline::now()).unwrap().unwrap());
    }
    drop((waiting, passing));
    until_empty(&arena);
    println!("30,000 locks in {:?}", began.elapsed());
}

#[test]
fn what_is_large_goes_at_once() {
    const BYTES: usize = 4 << 20;
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let (waiting, passing) = (queue(&arena), queue(&arena));
    for _ in 0..2_000 {
        put_lock(&arena, &waiting, 8);
    }
    for round in 0..100 {
        let memory = Memory::new(&arena, BYTES).unwrap();
        put(&arena, &passing, &[memory.name()], 8);
        drop(memory);
        if round % 2 == 0 {
            drop(passing.get(Deadline::now()).unwrap().unwrap());
        } else {
            // In a queue that goes with what is in it.
            let inner = queue(&arena);
            let message = passing.get(Deadline::now()).unwrap().unwrap();
            put(&arena, &inner, message.carried.names(), 8);
            drop(message);
        }
    }
    // Nobody has asked for a trace.
    let file = File::from(arena.descriptor().try_clone_to_owned().unwrap());
    let length = file.metadata().unwrap().len();
    assert!(length <= 10 * BYTES as u64, "{length}");
    drop((waiting, passing));
    until_empty(&arena);
}

/// A ring of queues in which messages go round, each of which names a queue with a lock in it that nobody else holds.
fn ring(arena: &Arena, messages: usize) -> Vec<Queue> {
    let ring: Vec<Queue> = (0..3).map(|_| queue(arena)).collect();
    for _ in 0..messages {
        let inner = queue(arena);
        put_lock(arena, &inner, 8);
        put(arena, &ring[0], &[inner.name()], 8);
    }
    ring
}

/// Takes a message out of a queue of the ring, and the lock out of the queue that it names, and passes both on. Whatever
/// was in a message is there when it is got. `others_die`: the lock may have gone with one who had it.
fn pass(arena: &Arena, from: &Queue, to: &Queue, others_die: bool) {
    let soon = Deadline::after(Duration::from_secs(30));
    let message = from.get(soon).unwrap().expect("a message");
    let inner = Queue::open(arena, message.carried.names()[0]).unwrap();
    let got = inner.get(Deadline::now()).unwrap();
    assert!(got.is_some() || others_die, "a lock");
    let lock = match &got {
        Some(got) => Lock::open(arena, got.carried.names()[0]).unwrap(),
        None => Lock::new(arena).unwrap(),
    };
    drop(got);
    put(arena, &inner, &[lock.name()], 8);
    drop((lock, message));
    put(arena, to, &[inner.name()], 8);
}

fn start_passer(arena: &Arena, ring: &[Queue], at: usize, passes: u64, others_die: bool) -> Child {
    let (from, to) = (&ring[at % ring.len()], &ring[(at + 1) % ring.len()]);
    fork(|| {
        for _ in 0..passes {
            pass(arena, from, to, others_die);
        }
    })
}

#[test]
fn what_is_passed_on_while_others_trace_is_never_freed() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let ring = ring(&arena, 8);
    let passers: Vec<_> = (0..3)
        .map(|at| start_passer(&arena, &ring, at, 3_000, false))
        .collect();
    for _ in 0..500 {
        assert_eq!(objects(&arena), 3 + 16);
    }
    for passer in passers {
        passer.join();
    }
    assert_eq!(objects(&arena), 3 + 16);
    drop(ring);
    until_empty(&arena);
}

#[test]
fn what_is_passed_on_by_those_who_are_killed_is_there_or_gone_with_them() {
    let _alone = alone();
    let mut random = Random::seeded(20_261_126);
    let arena = Arena::create().unwrap();
    let ring = ring(&arena, 200);
    let start = |at| start_passer(&arena, &ring, at, u64::MAX, true);
    let mut passers: Vec<Child> = (0..3).map(start).collect();
    for round in 0..100 {
        std::thread::sleep(Duration::from_micros(200 + random.below(3_000)));
        let passer = std::mem::replace(&mut passers[round % 3], start(round % 3));
        passer.signal(libc::SIGKILL);
        assert_eq!(passer.wait(), -libc::SIGKILL);
        if random.below(2) == 0 {
            arena.census().unwrap();
        }
    }
    for passer in passers {
        passer.signal(libc::SIGKILL);
        assert_eq!(passer.wait(), -libc::SIGKILL);
    }
    arena.reap().unwrap();
    let mut expected = ring.len() as u64;
    let mut left = Vec::new();
    for queue in &ring {
        while let Some(message) = queue.get(Deadline::now()).unwrap() {
            let inner = Queue::open(&arena, message.carried.names()[0]).unwrap();
            expected += 1 + inner.len().unwrap();
            left.push(inner);
        }
    }
    assert!(!left.is_empty(), "all are gone");
    assert_eq!(objects(&arena), expected);
    for inner in &left {
        if let Some(message) = inner.get(Deadline::now()).unwrap() {
            drop(Lock::open(&arena, message.carried.names()[0]).unwrap());
        }
    }
    assert_eq!(objects(&arena), (ring.len() + left.len()) as u64);
    drop((ring, left));
    until_empty(&arena);
}
