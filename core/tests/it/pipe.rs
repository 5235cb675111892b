//! Pipes between processes: lengths, readiness, the end, ends that are shared, and what a death leaves.

#[cfg(crash_points)]
mod deaths;

use crate::child::{Child, Random, alone, fork, until, until_empty};
use procession_core::connection::{Failure, Landed, PipeEnd, pipe};
use procession_core::{Arena, Deadline, Error, ObjectName, Queue};
use std::cell::RefCell;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// The longest that goes through the kernel.
const INLINE: usize = 16 << 10;
const LARGE: usize = 50_000;
const NEVER: Deadline = Deadline::NEVER;
const NOW: fn() -> Deadline = Deadline::now;
/// No call takes as long on the most loaded machine.
const SOON: Duration = Duration::from_secs(20);

fn soon() -> Deadline {
    Deadline::after(SOON)
}

/// A message: its number, then bytes that say whether it is whole.
fn body(number: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![u8::try_from(number % 251).unwrap(); length.max(8)];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes
}

fn number_of(bytes: &[u8]) -> u64 {
    let number = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    let is_whole = |byte: &u8| u64::from(*byte) == number % 251;
    assert!(bytes[8..].iter().all(is_whole), "{number} is torn");
    number
}

fn send(end: &PipeEnd, number: u64, length: usize) {
    assert!(end.send(0, &[&body(number, length)], soon()).unwrap());
}

/// The next message, if there is one until the deadline.
fn receive(end: &PipeEnd, deadline: Deadline) -> Result<Option<Vec<u8>>, Failure> {
    let mut bytes = Vec::new();
    let landed = end.receive(&mut bytes, deadline)?;
    Ok(landed.map(|landed| {
        if let Some(extent) = landed.extent {
            assert!(bytes.is_empty() && extent.len() > INLINE);
            extent.append_to(&mut bytes).unwrap();
        }
        bytes
    }))
}

/// The number of the next message; `None` at the end.
fn next(end: &PipeEnd) -> Option<u64> {
    match receive(end, soon()) {
        Ok(bytes) => Some(number_of(&bytes.expect("a message"))),
        Err(Failure::End) => None,
        Err(error) => panic!("{error}"),
    }
}

fn errno(error: &Error) -> i32 {
    match error {
        Error::Os { errno, .. } => *errno,
        error => panic!("{error}"),
    }
}

/// Whether select(2) and the like say that it is readable.
fn is_readable(end: &PipeEnd) -> bool {
    let mut poll = libc::pollfd {
        fd: end.as_fd().as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one descriptor.
    let count = unsafe { libc::poll(&raw mut poll, 1, 0) };
    assert_eq!(count == 1, end.poll(NOW()).unwrap());
    count == 1
}

fn kill(child: Child) {
    child.signal(libc::SIGKILL);
    assert_eq!(child.wait(), -libc::SIGKILL);
}

#[test]
fn a_message_of_any_length_comes_back_whole() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let (here, there) = pipe(&arena).unwrap();
    let echo = fork(|| {
        let mut bytes = Vec::new();
        while let Ok(Some(landed)) = there.receive(&mut bytes, soon()) {
            let Landed { tag, extent } = landed;
            if let Some(extent) = extent {
                extent.append_to(&mut bytes).unwrap();
            }
            let (one, other) = bytes.split_at(bytes.len() / 3);
            assert!(there.send(tag, &[one, &[], other], soon()).unwrap());
            bytes.clear();
        }
    });
    let mut random = Random::new(7);
    for length in [
        0,
        1,
        8,
        4096,
        INLINE - 1,
        INLINE,
        INLINE + 1,
        LARGE,
        1 << 20,
        9_999_999,
    ] {
        let bytes: Vec<u8> = (0..length)
            .map(|_| random.below(256).to_le_bytes()[0])
            .collect();
        let (tag, mut back) = (random.below(256).to_le_bytes()[0], Vec::new());
        assert!(here.send(tag, &[&bytes], soon()).unwrap());
        let landed = here.receive(&mut back, soon()).unwrap().unwrap();
        if let Some(extent) = &landed.extent {
            extent.append_to(&mut back).unwrap();
        }
        assert_eq!((landed.tag, back), (tag, bytes));
    }
    let parts = vec![&b"part"[..]; 3_000];
    assert!(here.send(0, &parts, soon()).unwrap());
    assert_eq!(receive(&here, soon()).unwrap().unwrap(), parts.concat());
    kill(echo);
    drop((here, there));
    until_empty(&arena);
}

#[test]
fn it_is_readable_exactly_while_a_message_is_there() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let (here, there) = pipe(&arena).unwrap();
    for length in [8, LARGE] {
        for round in 0..4 {
            assert!(!is_readable(&here) && !is_readable(&there));
            assert_eq!(receive(&here, NOW()).unwrap(), None);
            for number in 0..round {
                send(&there, number, length);
                assert!(is_readable(&here) && !is_readable(&there));
            }
            for number in 0..round {
                assert!(is_readable(&here));
                assert_eq!(next(&here), Some(number));
            }
        }
    }
    drop(there);
    assert!(is_readable(&here));
    assert_eq!(next(&here), None);
    assert!(is_readable(&here));
}

#[test]
fn a_wait_keeps_its_deadline() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let (here, there) = pipe(&arena).unwrap();
    let patience = Duration::from_millis(60);
    for wait in [
        |end: &PipeEnd, deadline| receive(end, deadline).unwrap().is_some(),
        |end: &PipeEnd, deadline| end.poll(deadline).unwrap(),
        |end: &PipeEnd, deadline| {
            while end.send(0, &[&[0; 9_000]], NOW()).unwrap() {}
            end.send(0, &[&[0; LARGE]], deadline).unwrap()
        },
    ] {
        let begin = Instant::now();
        assert!(!wait(&here, Deadline::after(patience)));
        assert!(begin.elapsed() >= patience);
    }
    drop((here, there));
    until_empty(&arena);
}

#[test]
fn senders_do_not_run_away() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let (here, there) = pipe(&arena).unwrap();
    for length in [8, INLINE, INLINE + 1, LARGE, 1 << 20, 40 << 20] {
        for _ in 0..3 {
            let mut sent = 0;
            while here.send(0, &[&body(sent, length)], NOW()).unwrap() {
                sent += 1;
            }
            let waiting = arena.census().unwrap().linked_bytes;
            let limit = 8 * (length as u64).max(1 << 20);
            assert!(
                sent >= 2 && waiting <= limit,
                "{sent} of {length}: {waiting}"
            );
            // What wasn't sent has left nothing.
            assert!(!here.send(0, &[&body(sent, length)], NOW()).unwrap());
            assert_eq!(arena.census().unwrap().linked_bytes, waiting);
            for number in 0..sent {
                assert_eq!(next(&there), Some(number));
            }
            assert_eq!(arena.census().unwrap().linked_bytes, 0);
        }
    }
    let sender = fork(|| (0..200).for_each(|number| send(&here, number, LARGE)));
    (0..200).for_each(|number| assert_eq!(next(&there), Some(number)));
    sender.join();
    drop((here, there));
    until_empty(&arena);
}

#[test]
fn the_end_is_told_when_the_last_holder_is_gone() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    for length in [8, LARGE] {
        let (here, there) = pipe(&arena).unwrap();
        let (one, other) = (fork(sleep), fork(sleep));
        send(&there, 1, length);
        drop(there);
        assert_eq!(next(&here), Some(1));
        for child in [one, other] {
            assert!(!is_readable(&here));
            // The children have copies of this end, too: it is the other one that counts.
            assert!(here.send(0, &[b"to somebody"], NOW()).unwrap());
            kill(child);
        }
        until("the end", || is_readable(&here));
        let unread = receive(&here, NOW()).unwrap_err();
        assert!(
            matches!(&unread, Failure::System(error) if errno(error) == libc::ECONNRESET),
            "{unread}"
        );
        assert_eq!((next(&here), next(&here)), (None, None));
        let refused = here.send(0, &[&body(2, length)], NEVER).unwrap_err();
        assert_eq!(errno(&refused), libc::EPIPE);
        arena.reap().unwrap();
        assert_eq!(arena.census().unwrap().linked_bytes, 0);
        drop(here);
        until_empty(&arena);
    }
}

fn sleep() {
    loop {
        std::thread::sleep(SOON);
    }
}

#[test]
fn what_was_sent_is_received_before_the_end_and_a_refusal_comes_after() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    for (length, sends) in [(8, true), (LARGE, true), (8, false), (LARGE, false)] {
        let (here, there) = pipe(&arena).unwrap();
        (0..3).for_each(|number| send(&there, number, length));
        send(&here, 9, length);
        drop(there);
        // The kernel tells whoever comes first that what was sent wasn't read; the receiver hears of it at the end all the same.
        if sends {
            let refused = here.send(0, &[&body(10, length)], NEVER).unwrap_err();
            assert_eq!(errno(&refused), libc::EPIPE);
        }
        (0..3).for_each(|number| assert_eq!(next(&here), Some(number)));
        let unread = receive(&here, NOW()).unwrap_err();
        assert!(matches!(unread, Failure::System(error) if errno(&error) == libc::ECONNRESET));
        assert_eq!(next(&here), None);
    }
    until_empty(&arena);
}

#[test]
fn a_sleeper_is_woken_by_a_message_and_by_the_end() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let (here, there) = pipe(&arena).unwrap();
    let (here, there) = (RefCell::new(Some(here)), RefCell::new(Some(there)));
    let sleeper = fork(|| {
        // Its copy of the other end: nobody but its parent has that now.
        drop(there.take());
        let here = here.take().unwrap();
        assert_eq!((next(&here), next(&here)), (Some(0), Some(1)));
        assert_eq!(here.send(0, &[b"done"], soon()), Ok(true));
        assert_eq!(next(&here), None);
    });
    drop(here.take());
    let there = there.take().unwrap();
    for (number, length) in [(0, 8), (1, LARGE)] {
        std::thread::sleep(Duration::from_millis(20));
        send(&there, number, length);
    }
    assert_eq!(receive(&there, soon()).unwrap().unwrap(), b"done");
    std::thread::sleep(Duration::from_millis(20));
    drop(there);
    sleeper.join();
    until_empty(&arena);
}

#[test]
fn threads_and_processes_share_an_end() {
    const SENDERS: u64 = 4;
    const EACH: u64 = 400;
    let _alone = alone();
    let mut random = Random::seeded(20_261_127);
    let arena = Arena::create().unwrap();
    let (here, there) = pipe(&arena).unwrap();
    let heard = Queue::new(&arena, None).unwrap();
    let two = |work: &(dyn Fn(u64) + Sync), of: u64| {
        fork(|| {
            std::thread::scope(|scope| {
                let second = scope.spawn(|| work(2 * of + 1));
                work(2 * of);
                second.join().unwrap();
            });
        })
    };
    let seed = random.below(u64::MAX);
    let all_send = |sender: u64| {
        let mut random = Random::new(seed ^ sender << 8);
        for n in 0..EACH {
            let length = [8, 300, INLINE, LARGE][usize::try_from(random.below(4)).unwrap()];
            send(&here, sender * EACH + n, length);
        }
    };
    let all_receive = |_| {
        let mut last = [None; 4];
        loop {
            let number = number_of(&receive(&there, soon()).unwrap().unwrap());
            if number == u64::MAX {
                break;
            }
            let last: &mut Option<u64> = &mut last[usize::try_from(number / EACH).unwrap()];
            assert!(last.replace(number) < Some(number), "out of order");
            heard.put(0, &[&number.to_le_bytes()], NEVER).unwrap();
        }
    };
    let receivers = [two(&all_receive, 0), two(&all_receive, 1)];
    for sender in [two(&all_send, 0), two(&all_send, 1)] {
        sender.join();
    }
    (0..SENDERS).for_each(|_| send(&here, u64::MAX, 8));
    receivers.into_iter().for_each(Child::join);
    let mut numbers = Vec::new();
    while let Some(message) = heard.get(NOW()).unwrap() {
        numbers.push(u64::from_le_bytes(message.bytes.try_into().unwrap()));
    }
    numbers.sort_unstable();
    assert!(numbers.iter().copied().eq(0..SENDERS * EACH));
    drop((here, there, heard));
    until_empty(&arena);
}

#[test]
fn a_forked_child_has_the_same_ends() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let (here, there) = pipe(&arena).unwrap();
    // On their way before the fork, from a process that is gone by then.
    fork(|| (0..4).for_each(|number| send(&here, number, LARGE))).join();
    arena.reap().unwrap();
    fork(|| (0..2).for_each(|number| assert_eq!(next(&there), Some(number)))).join();
    (2..4).for_each(|number| assert_eq!(next(&there), Some(number)));
    // What is on its way when both ends are closed goes with them.
    send(&here, 4, LARGE);
    drop((here, there));
    until_empty(&arena);
}

#[test]
fn random_kills_tear_nothing_and_leave_nothing() {
    let _alone = alone();
    let mut random = Random::seeded(20_261_128);
    let arena = Arena::create().unwrap();
    for _ in 0..60 {
        let (here, there) = pipe(&arena).unwrap();
        let seed = random.below(u64::MAX);
        let sender = fork(|| {
            let mut random = Random::new(seed);
            for number in 0.. {
                let length = [8, LARGE, 2 * LARGE][usize::try_from(random.below(3)).unwrap()];
                send(&here, number, length);
            }
        });
        let receiver = fork(|| while next(&there).is_some() {});
        std::thread::sleep(Duration::from_micros(500 + random.below(4_000)));
        let first = random.below(2) == 0;
        let (one, other) = if first {
            (receiver, sender)
        } else {
            (sender, receiver)
        };
        kill(one);
        std::thread::sleep(Duration::from_micros(random.below(1_000)));
        kill(other);
        drop(here);
        // What was sent and not received is here still, in order and whole.
        let mut last = None;
        while let Some(number) = next(&there) {
            assert!(last.is_none_or(|last| number == last + 1));
            last = Some(number);
        }
        arena.reap().unwrap();
        assert_eq!(arena.census().unwrap().owned_bytes, 0);
        drop(there);
        until_empty(&arena);
    }
}

#[test]
fn an_end_is_opened_by_its_name_and_socket() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let (here, there) = pipe(&arena).unwrap();
    assert_eq!(here.name(), there.name());
    let copy = |end: &PipeEnd| end.as_fd().try_clone_to_owned().unwrap();
    let again = PipeEnd::open(&arena, there.name(), copy(&there)).unwrap();
    drop(there);
    for length in [8, LARGE] {
        send(&here, 3, length);
        assert_eq!(next(&again), Some(3));
    }
    let none = |name, socket: OwnedFd| match PipeEnd::open(&arena, name, socket).unwrap_err() {
        Error::Malformed { what, .. } | Error::Closed { what } => what,
        error => panic!("{error}"),
    };
    let stream: OwnedFd = UnixStream::pair().unwrap().0.into();
    let file: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
    for other in [stream, file] {
        assert_eq!(none(again.name(), other), "descriptor of a pipe");
    }
    let queue = Queue::new(&arena, None).unwrap();
    assert_eq!(none(queue.name(), copy(&again)), "name of an object");
    let ObjectName { offset, serial } = again.name();
    let stale = ObjectName {
        offset,
        serial: serial + 100,
    };
    assert_eq!(none(stale, copy(&again)), "object");
    // Its name may go where nobody holds it.
    let (name, socket) = (again.escape().unwrap(), copy(&again));
    drop((here, again, queue));
    let last = PipeEnd::open(&arena, name, socket).unwrap();
    last.recapture().unwrap();
    drop(last);
    until_empty(&arena);
}

#[test]
fn any_bytes_in_its_socket_are_an_error_and_do_no_harm() {
    let _alone = alone();
    let mut random = Random::seeded(20_261_129);
    let arena = Arena::create().unwrap();
    let (here, there) = pipe(&arena).unwrap();
    let (other, _silent) = pipe(&arena).unwrap();
    let mut raw = std::fs::File::from(here.as_fd().try_clone_to_owned().unwrap());
    // Runs of another pipe and of a queue, which no packet of this one may name.
    send(&other, 1, LARGE);
    let queue = Queue::new(&arena, None).unwrap();
    queue.put(0, &[&body(2, LARGE)], NEVER).unwrap();
    let before = arena.census().unwrap();
    let mut refused = 0;
    for _ in 0..3_000 {
        let offset = match random.below(4) {
            0 => random.below(u64::MAX),
            1 => random.below(1 << 20),
            _ => random.below(1 << 8) << 12,
        };
        let mut packet = offset.to_le_bytes().to_vec();
        packet.extend(random.below(1 << 17).to_le_bytes());
        packet.resize(usize::try_from(random.below(40)).unwrap().max(1), 0);
        packet.push(u8::try_from(random.below(4)).unwrap());
        if random.below(8) == 0 {
            packet.resize(20_000, 0);
        }
        raw.write_all(&packet).unwrap();
        send(&here, 5, LARGE);
        match receive(&there, NOW()) {
            // Sent as it is, if only by chance.
            Ok(Some(bytes)) => assert_eq!(bytes, packet[..packet.len() - 2]),
            Err(Failure::System(Error::Malformed { what, .. })) => {
                assert_eq!(what, "message of a pipe");
                refused += 1;
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(next(&there), Some(5));
    }
    assert!(refused > 1_000, "{refused}");
    assert_eq!(arena.census().unwrap(), before);
    // A name that is sent a second time names nothing any more; one too long names nothing either.
    send(&here, 6, LARGE);
    let mut packet = [0; 17];
    // SAFETY: into a buffer of that length; the packet stays there.
    let peeked = unsafe {
        let flags = libc::MSG_PEEK;
        libc::recv(
            there.as_fd().as_raw_fd(),
            packet.as_mut_ptr().cast(),
            packet.len(),
            flags,
        )
    };
    assert_eq!(peeked, 17);
    raw.write_all(&[&packet[..], &[2]].concat()).unwrap();
    let mut long = packet;
    long[8..16].copy_from_slice(&(1u64 << 40).to_le_bytes());
    assert_eq!(next(&there), Some(6));
    assert!(receive(&there, NOW()).is_err());
    send(&here, 7, LARGE);
    raw.write_all(&[&long[..], &[2]].concat()).unwrap();
    assert_eq!(next(&there), Some(7));
    assert!(receive(&there, NOW()).is_err());
    drop((here, there, other, queue, raw));
}
