//! Who doesn't wait, and a process that is stopped in the middle of a queue.

use crate::child::{Child, alone, fork, until, until_empty};
use procession_core::sys::crash::{self, Action};
use procession_core::{Arena, Deadline, Put, Queue};

const SMALL: usize = 40;
/// A message with a run of its own.
const LARGE: usize = 50_000;

fn put(queue: &Queue, length: usize, deadline: Deadline) -> bool {
    let bytes = vec![u8::from(length == LARGE); length];
    queue.put(0, &[&bytes], deadline).unwrap() == Put::Stored
}

/// The length of the message that was got, which is whole.
fn get(queue: &Queue) -> Option<usize> {
    let got = queue.get(Deadline::now()).unwrap()?;
    let length = got.bytes.len();
    assert!([SMALL, LARGE].contains(&length), "{length}");
    assert!(
        got.bytes
            .iter()
            .all(|byte| *byte == u8::from(length == LARGE))
    );
    Some(length)
}

/// How often this thread has slept so far: times at which it let go of the processor by itself. Source: getrusage(2).
fn sleeps() -> i64 {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: writes the one structure, which holds for any value.
    let result = unsafe { libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr()) };
    assert_eq!(result, 0);
    // SAFETY: zeros are a value, and so is what was written over them.
    unsafe { usage.assume_init() }.ru_nvcsw
}

/// What a call that doesn't wait gives; if nothing, it has given up without a sleep. The look at the other process may have to
/// wait for the kernel, now and then.
fn at_once<T>(call: impl Fn() -> Option<T>) -> Option<T> {
    for _ in 0..20 {
        let before = sleeps();
        let result = call();
        if result.is_some() || sleeps() == before {
            return result;
        }
    }
    panic!("a call that doesn't wait sleeps");
}

/// What a process does, and is stopped in.
type Work = fn(&Queue);

/// Everything that can be done at once to a queue with two messages and room for two; how many were got, and the lengths of
/// those put, and how many gets and puts were refused.
fn try_everything(queue: &Queue) -> (Vec<usize>, Vec<usize>, [u32; 2]) {
    let (mut got, mut stored, mut refused) = (Vec::new(), Vec::new(), [0; 2]);
    for length in [SMALL, LARGE] {
        match at_once(|| put(queue, length, Deadline::now()).then_some(())) {
            Some(()) => stored.push(length),
            None => refused[1] += 1,
        }
        match at_once(|| get(queue)) {
            Some(length) => got.push(length),
            None => refused[0] += 1,
        }
    }
    (got, stored, refused)
}

fn two_and_room_for_two(arena: &Arena) -> Queue {
    let queue = Queue::new(arena, Some(4)).unwrap();
    for length in [LARGE, SMALL] {
        assert!(put(&queue, length, Deadline::NEVER));
    }
    queue
}

/// A getter, or a putter, is stopped before each of its stores. Whoever doesn't wait has what there is, or nothing, and never
/// sleeps; when the stopped one goes on, everything is got once.
#[test]
fn who_does_not_wait_does_not_sleep_for_who_is_stopped() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let works: [(usize, Work); 3] = [
        (0, |queue| assert!(get(queue).is_some())),
        (SMALL, |queue| assert!(put(queue, SMALL, Deadline::NEVER))),
        (LARGE, |queue| assert!(put(queue, LARGE, Deadline::NEVER))),
    ];
    for (puts, work) in works {
        let mut all_refused = [0; 2];
        for n in 1.. {
            let queue = two_and_room_for_two(&arena);
            let child = fork(|| {
                crash::arm(n, Action::Stop);
                work(&queue);
                crash::disarm();
            });
            if !child.wait_stopped() {
                std::mem::forget(child);
                break;
            }
            let (mut got, stored, refused) = try_everything(&queue);
            go_on(child);
            while let Some(length) = get(&queue) {
                got.push(length);
            }
            let mut expected = [&[LARGE, SMALL], &stored[..]].concat();
            expected.extend((puts != 0).then_some(puts));
            got.sort_unstable();
            expected.sort_unstable();
            if puts == 0 {
                // One of them was the child's.
                assert_eq!(got.len() + 1, expected.len(), "stopped before store {n}");
            } else {
                assert_eq!(got, expected, "stopped before store {n}");
            }
            for (all, this) in all_refused.iter_mut().zip(refused) {
                *all += this;
            }
            drop(queue);
            until_empty(&arena);
        }
        assert!(all_refused[usize::from(puts != 0)] > 5, "{all_refused:?}");
    }
}

/// A getter is stopped in its sleep, with the consumers' lock; then something is put. Others that don't wait get nothing, and
/// those who put hear nothing of it.
#[test]
fn who_is_stopped_in_its_sleep_is_not_waited_for() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let queue = Queue::new(&arena, None).unwrap();
    let child = fork(|| assert!(queue.get(Deadline::NEVER).unwrap().is_some()));
    until("a sleeper", || child.sleeps());
    child.signal(libc::SIGSTOP);
    assert!(child.wait_stopped());
    for _ in 0..2 {
        assert!(at_once(|| put(&queue, SMALL, Deadline::now()).then_some(())).is_some());
    }
    assert_eq!(queue.len(), Ok(2));
    assert_eq!(at_once(|| get(&queue)), None);
    go_on(child);
    assert_eq!((get(&queue), get(&queue)), (Some(SMALL), None));
    drop(queue);
    until_empty(&arena);
}

fn go_on(child: Child) {
    child.signal(libc::SIGCONT);
    child.join();
}
