//! Descriptors that tell of queues: always right in a moment, whoever puts, gets, closes, forks and dies.

use crate::child::{Random, alone, fork, until, until_empty};
use procession_core::process::wait_for_any;
use procession_core::{Arena, Deadline, Error, Put, Queue, Readiness};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

const NEVER: Deadline = Deadline::NEVER;

fn put(queue: &Queue) {
    assert_eq!(queue.put(0, &[b"message"], NEVER), Ok(Put::Stored));
}

fn get(queue: &Queue) {
    assert!(queue.get(Deadline::now()).unwrap().is_some());
}

/// Sleeps until a descriptor is ready for one of these events.
pub(crate) fn await_lamp(lamp: &Readiness, wanted: i16) {
    while !is_lit(lamp, wanted, -1) {}
}

/// Whether a descriptor is ready for one of these events, or becomes it in so many milliseconds.
pub(crate) fn is_lit(lamp: &Readiness, wanted: i16, timeout: i32) -> bool {
    wait_for_events(lamp.as_raw_fd(), wanted, timeout) & wanted != 0
}

/// What a descriptor is ready for, of these events, now.
fn events(descriptor: RawFd, wanted: i16) -> i16 {
    wait_for_events(descriptor, wanted, 0)
}

fn wait_for_events(descriptor: RawFd, wanted: i16, timeout: i32) -> i16 {
    let mut poll = libc::pollfd {
        fd: descriptor,
        events: wanted,
        revents: 0,
    };
    // SAFETY: one entry, written by the call.
    assert!(unsafe { libc::poll(&raw mut poll, 1, timeout) } >= 0);
    poll.revents
}

fn is_readable(lamp: &Readiness) -> bool {
    events(lamp.as_raw_fd(), libc::POLLIN) == libc::POLLIN
}

fn is_writable(lamp: &Readiness) -> bool {
    events(lamp.as_raw_fd(), libc::POLLOUT) == libc::POLLOUT
}

fn is_open(descriptor: RawFd) -> bool {
    // SAFETY: asks for flags.
    unsafe { libc::fcntl(descriptor, libc::F_GETFD) >= 0 }
}

/// The directories of this process' watchers, among those of its threads.
fn watchers() -> Vec<std::path::PathBuf> {
    let threads = std::fs::read_dir("/proc/self/task").unwrap();
    let threads = threads.map(|thread| thread.unwrap().path());
    threads
        .filter(|thread| {
            let name = std::fs::read_to_string(thread.join("comm"));
            name.is_ok_and(|name| name.trim() == "queue-watch")
        })
        .collect()
}

/// Waits until all other threads of this process sleep: then what a call does about its watcher doesn't depend on what that is
/// just doing.
#[cfg(crash_points)]
pub(crate) fn until_watchers_sleep() {
    let me = std::fs::read_link("/proc/thread-self").unwrap();
    until("the watchers to sleep", || {
        let mut threads = std::fs::read_dir("/proc/self/task").unwrap();
        threads.all(|thread| {
            let thread = thread.unwrap().path();
            let stat = std::fs::read_to_string(thread.join("stat")).unwrap_or_default();
            thread.file_name() == me.file_name() || crate::child::is_asleep(&stat)
        })
    });
}

#[test]
fn a_lamp_is_right_as_soon_as_a_call_here_returns() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    for capacity in [None, Some(2)] {
        let queue = Queue::new(&arena, capacity).unwrap();
        put(&queue);
        let [readable, writable] = [queue.readable().unwrap(), queue.writable().unwrap()];
        for _ in 0..200 {
            assert!(is_readable(&readable) && is_writable(&writable));
            put(&queue);
            assert!(is_readable(&readable));
            assert_eq!(is_writable(&writable), capacity.is_none());
            get(&queue);
            assert!(is_readable(&readable) && is_writable(&writable));
            get(&queue);
            assert!(!is_readable(&readable) && is_writable(&writable));
            assert!(queue.try_put(0, &[b"message"]).unwrap());
        }
        assert_eq!(queue.readable().unwrap().as_raw_fd(), readable.as_raw_fd());
    }
}

#[test]
fn others_light_it_and_darken_it() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let queue = Queue::new(&arena, Some(1)).unwrap();
    let [readable, writable] = [queue.readable().unwrap(), queue.writable().unwrap()];
    for _ in 0..20 {
        fork(|| put(&queue)).join();
        await_lamp(&readable, libc::POLLIN);
        until("a lamp", || !is_writable(&writable));
        fork(|| get(&queue)).join();
        await_lamp(&writable, libc::POLLOUT);
        until("a lamp", || !is_readable(&readable));
    }
    fork(|| queue.close().unwrap()).join();
    assert_eq!(wait_for_any(&[readable.as_fd()], NEVER), Ok(vec![0]));
    assert!(matches!(queue.get(NEVER), Err(Error::Closed { .. })));
}

#[test]
fn a_queue_is_waited_for_beside_others_and_a_pipe() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let queues = [(); 3].map(|()| Queue::new(&arena, None).unwrap());
    let lamps: Vec<Readiness> = queues.iter().map(|it| it.readable().unwrap()).collect();
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let all: Vec<BorrowedFd<'_>> = lamps
        .iter()
        .map(AsFd::as_fd)
        .chain([theirs.as_fd()])
        .collect();
    assert_eq!(wait_for_any(&all, Deadline::now()), Ok(vec![]));
    for (place, queue) in queues.iter().enumerate() {
        let child = fork(|| {
            std::thread::sleep(Duration::from_millis(2));
            put(queue);
        });
        assert_eq!(wait_for_any(&all, NEVER), Ok(vec![place]));
        child.join();
        get(queue);
    }
    ours.write_all(b"byte").unwrap();
    assert_eq!(wait_for_any(&all, NEVER), Ok(vec![3]));
}

#[test]
fn descriptor_and_thread_go_with_the_queue() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let queue = Queue::new(&arena, None).unwrap();
    // Those of other tests end in a moment.
    until("their watchers' end", || watchers().is_empty());
    let room = queue.writable().unwrap();
    assert!(watchers().is_empty(), "there is always room");
    let lamp = queue.readable().unwrap();
    until("the watcher's name", || watchers().len() == 1);
    let other = Queue::new(&arena, Some(1)).unwrap();
    let another = other.writable().unwrap();
    assert_eq!(watchers().len(), 1, "one for all queues");
    for thread in watchers() {
        let status = std::fs::read_to_string(thread.join("status")).unwrap();
        let blocked = status.lines().find(|line| line.starts_with("SigBlk"));
        let blocked = u64::from_str_radix(blocked.unwrap()[7..].trim(), 16).unwrap();
        // All but SIGKILL and SIGSTOP, and two that are the C library's own.
        assert_eq!(blocked | 1 << 8 | 1 << 18 | 3 << 31, u64::MAX);
    }
    let descriptors = [&room, &lamp, &another].map(AsRawFd::as_raw_fd);
    drop((queue, room, lamp));
    assert_eq!(descriptors.map(is_open), [false, false, true]);
    assert_eq!(watchers().len(), 1);
    drop((another, other));
    assert!(!is_open(descriptors[2]));
    until("the watcher's end", || watchers().is_empty());
    // And comes again.
    let queue = Queue::new(&arena, None).unwrap();
    let lamp = queue.readable().unwrap();
    fork(|| put(&queue)).join();
    assert_eq!(wait_for_any(&[lamp.as_fd()], NEVER), Ok(vec![0]));
}

#[test]
fn a_child_has_lamps_of_its_own() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let [queue, back] = [(); 2].map(|()| Queue::new(&arena, None).unwrap());
    queue.readable().unwrap();
    let descriptor = queue.readable().unwrap().as_raw_fd();
    let child = fork(|| {
        assert!(!is_open(descriptor), "it is the parent's");
        assert!(watchers().is_empty());
        let own = queue.readable().unwrap();
        put(&back);
        assert_eq!(wait_for_any(&[own.as_fd()], NEVER), Ok(vec![0]));
        get(&queue);
        assert!(!is_readable(&own));
    });
    assert!(is_open(descriptor));
    back.get(NEVER).unwrap();
    put(&queue);
    child.join();
    until("a lamp", || events(descriptor, libc::POLLIN) == 0);
    fork(|| put(&queue)).join();
    until("a lamp", || events(descriptor, libc::POLLIN) != 0);
}

#[test]
fn who_dies_while_it_watches_is_no_loss_to_others() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let queue = Queue::new(&arena, Some(1)).unwrap();
    let [readable, writable] = [queue.readable().unwrap(), queue.writable().unwrap()];
    for _ in 0..10 {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        let child = fork(|| {
            let own = [queue.readable().unwrap(), queue.writable().unwrap()];
            theirs.write_all(b"!").unwrap();
            std::thread::sleep(Duration::from_secs(600));
            drop(own);
        });
        ours.read_exact(&mut [0]).unwrap();
        child.signal(libc::SIGKILL);
        assert_eq!(child.wait(), -libc::SIGKILL);
        fork(|| put(&queue)).join();
        until("a lamp", || {
            is_readable(&readable) && !is_writable(&writable)
        });
        arena.reap().unwrap();
        fork(|| get(&queue)).join();
        until("a lamp", || {
            !is_readable(&readable) && is_writable(&writable)
        });
    }
    drop((queue, readable, writable));
    until_empty(&arena);
}

#[test]
fn what_contradicts_itself_is_not_waited_for() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let [queue, other] = [(); 2].map(|()| Queue::new(&arena, None).unwrap());
    put(&queue);
    let lamp = other.readable().unwrap();
    assert!(!is_readable(&lamp));
    fork(|| {
        crate::queue::spoil(&arena, &queue);
        assert!(matches!(
            queue.get(Deadline::now()),
            Err(Error::Poisoned { .. })
        ));
    })
    .join();
    assert_eq!(wait_for_any(&[lamp.as_fd()], NEVER), Ok(vec![0]));
    assert!(matches!(other.get(NEVER), Err(Error::Poisoned { .. })));
    until("the watcher's end", || watchers().is_empty());
}

/// Several processes put and get as a seed has it, each with lamps of its own, some of which are dropped and asked for
/// again; whenever they pause, all lamps are right, or are in a moment.
#[test]
fn lamps_are_right_whenever_queues_are_at_rest() {
    let _alone = alone();
    let mut random = Random::seeded(5);
    let arena = Arena::create().unwrap();
    let queues = [None, Some(1), Some(3)].map(|room| Queue::new(&arena, room).unwrap());
    let mut children = Vec::new();
    for _ in 0..3 {
        let seed = random.below(u64::MAX);
        let (ours, theirs) = UnixStream::pair().unwrap();
        children.push((fork(|| take_part(&queues, seed, theirs)), ours));
    }
    for _round in 0..60 {
        // They are at work, then they rest, then they look.
        for step in *b"wrl" {
            for (_, way) in &mut children {
                way.write_all(&[step]).unwrap();
            }
            for (_, way) in &mut children {
                way.read_exact(&mut [0]).unwrap();
            }
        }
    }
    for (child, mut way) in children {
        way.write_all(b"e").unwrap();
        child.join();
    }
    drop(queues);
    until_empty(&arena);
}

fn take_part(queues: &[Queue; 3], seed: u64, mut way: UnixStream) {
    let mut random = Random::new(seed);
    let mut lamps: [Option<[Readiness; 2]>; 3] = [const { None }; 3];
    let mut step = [0];
    while way.read_exact(&mut step).is_ok() {
        match step {
            [b'w'] => {
                for _ in 0..random.below(40) {
                    let at = usize::try_from(random.below(3)).unwrap();
                    match random.below(8) {
                        0..3 => drop(queues[at].try_put(0, &[b"message"]).unwrap()),
                        3..6 => drop(queues[at].try_get_into(&mut Vec::new()).unwrap()),
                        6 => lamps[at] = None,
                        _ => {
                            let asked = [queues[at].readable(), queues[at].writable()];
                            lamps[at] = Some(asked.map(Result::unwrap));
                        }
                    }
                }
            }
            [b'l'] => {
                for (queue, lamps) in queues.iter().zip(&lamps) {
                    let Some([readable, writable]) = lamps else {
                        continue;
                    };
                    let length = queue.len().unwrap();
                    let room = queue.capacity().unwrap();
                    let room = room.is_none_or(|room| length < u64::from(room));
                    until("a lamp", || is_readable(readable) == (length > 0));
                    until("a lamp", || is_writable(writable) == room);
                }
            }
            [b'r'] => {}
            _ => return,
        }
        way.write_all(&step).unwrap();
    }
}
