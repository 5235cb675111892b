//! Kills, stops and refused calls at each place where one can happen.

use super::{LARGE, NOW, body, is_readable, next, number_of, receive, send, soon};
use crate::child::{Random, alone, fork, until_empty};
use procession_core::connection::{Failure, PipeEnd, pipe};
use procession_core::sys::crash::{self, Action};
use procession_core::sys::refuse;
use procession_core::{Arena, Deadline, Error};
use std::time::Duration;

/// Of messages that go through the kernel, are named, and need a window that isn't there yet.
const LENGTHS: [usize; 3] = [8, LARGE, 3 << 20];
/// Longer than a call takes, unless the one who is stopped is in its way.
const WHILE: Duration = Duration::from_millis(60);

/// Runs `work` in a child that is killed before its `n`-th store; false when it makes fewer.
fn dies(n: u64, work: impl FnOnce()) -> bool {
    let victim = fork(|| {
        crash::arm(n, Action::Kill);
        work();
        crash::disarm();
    });
    let status = victim.wait();
    assert!([0, -libc::SIGKILL].contains(&status), "{status}");
    status != 0
}

/// Both ends work, and nothing is left of whoever died.
fn check(arena: &Arena, here: &PipeEnd, there: &PipeEnd) {
    for (from, to) in [(here, there), (there, here)] {
        for length in LENGTHS {
            send(from, 9, length);
            assert_eq!(next(to), Some(9));
        }
        assert!(!is_readable(to));
    }
    arena.reap().unwrap();
    let census = arena.census().unwrap();
    assert_eq!((census.processes, census.owned_bytes), (1, 0));
}

#[test]
fn a_message_whose_sender_is_killed_is_received_whole_or_never_was() {
    let _alone = alone();
    let (mut kills, mut left_behind) = (0, 0);
    for length in LENGTHS {
        for n in 1.. {
            // A new one each time, so that the n-th store is the next one.
            let arena = Arena::create().unwrap();
            let (here, there) = pipe(&arena).unwrap();
            send(&here, 1, length);
            let killed = dies(n, || send(&here, 2, length));
            kills += u64::from(killed);
            assert_eq!(next(&there), Some(1));
            let second = receive(&there, NOW()).unwrap();
            if second.is_some_and(|bytes| number_of(&bytes) == 2) {
                assert!(!is_readable(&there));
            } else {
                assert!(killed);
            }
            check(&arena, &here, &there);
            // At most the one message that nobody was told of, which goes with the pipe.
            let left = arena.census().unwrap().linked_bytes;
            assert!(left <= (length as u64).next_multiple_of(4096), "{left}");
            left_behind += u64::from(left > 0);
            drop((here, there));
            until_empty(&arena);
            if !killed {
                break;
            }
        }
    }
    println!("{kills} kills");
    // Of each long length, one killed between handing the run over and sending its name.
    assert!(kills > 10 && left_behind == 2, "{kills}, {left_behind}");
}

#[test]
fn one_message_at_most_dies_with_its_receiver() {
    let _alone = alone();
    let mut kills = 0;
    for length in LENGTHS {
        for n in 1.. {
            // A new one each time, so that the n-th store is the next one.
            let arena = Arena::create().unwrap();
            let (here, there) = pipe(&arena).unwrap();
            let sent = if length == LENGTHS[2] { 2 } else { 3 };
            (0..sent).for_each(|number| send(&here, number, length));
            let killed = dies(n, || assert_eq!(next(&there), Some(0)));
            kills += u64::from(killed);
            let first = next(&there).unwrap();
            assert!(first == 1 || killed && first == 0, "{first}");
            (first + 1..sent).for_each(|number| assert_eq!(next(&there), Some(number)));
            check(&arena, &here, &there);
            let left = arena.census().unwrap().linked_bytes;
            assert!(left <= (length as u64).next_multiple_of(4096), "{left}");
            drop((here, there));
            until_empty(&arena);
            if !killed {
                break;
            }
        }
    }
    println!("{kills} kills");
    assert!(kills > 5, "{kills}");
}

#[test]
fn who_makes_or_drops_one_may_be_killed() {
    let _alone = alone();
    for n in 1.. {
        let arena = Arena::create().unwrap();
        let killed = dies(n, || {
            let (here, there) = pipe(&arena).unwrap();
            send(&here, 1, LARGE);
            drop(here);
            assert_eq!(next(&there), Some(1));
        });
        until_empty(&arena);
        if !killed {
            assert!(n > 10, "{n}");
            break;
        }
    }
}

#[test]
fn a_stopped_sender_or_receiver_stops_nobody_for_longer_than_they_wish() {
    let _alone = alone();
    let mut stops = 0;
    for sends in [true, false] {
        for n in 1.. {
            let arena = Arena::create().unwrap();
            let (here, there) = pipe(&arena).unwrap();
            (0..2).for_each(|number| send(&here, number, LARGE));
            let victim = fork(|| {
                crash::arm(n, Action::Stop);
                if sends {
                    send(&here, 2, LARGE);
                } else {
                    assert_eq!(next(&there), Some(0));
                }
                crash::disarm();
            });
            let stopped = victim.wait_stopped();
            if stopped {
                stops += 1;
                // What needs no memory of the arena goes on; the rest does, too, or says that it can't yet.
                send(&there, 7, 8);
                assert_eq!(next(&here), Some(7));
                let large = here.send(0, &[&body(3, LARGE)], Deadline::after(WHILE));
                let large = large.unwrap();
                victim.signal(libc::SIGCONT);
                victim.join();
                let mut numbers = Vec::new();
                while is_readable(&there) {
                    numbers.push(next(&there).unwrap());
                }
                numbers.sort_unstable();
                let mut expected = vec![1];
                expected.splice(..0, sends.then_some(0));
                expected.extend(sends.then_some(2));
                expected.extend(large.then_some(3));
                assert_eq!(numbers, expected, "store {n}");
                check(&arena, &here, &there);
                assert_eq!(arena.census().unwrap().linked_bytes, 0);
            } else {
                std::mem::forget(victim);
            }
            drop((here, there));
            until_empty(&arena);
            if !stopped {
                break;
            }
        }
    }
    println!("{stops} stops");
    assert!(stops > 10, "{stops}");
}

#[test]
fn each_call_that_is_refused_is_an_error_that_names_it_and_leaves_nothing() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let mut refusals = 0;
    for errno in [libc::EPERM, libc::ENOMEM, libc::EMFILE, libc::ENOBUFS] {
        for length in LENGTHS {
            for n in 1.. {
                let refused = refuses(&arena, n, errno, length);
                until_empty(&arena);
                if !refused {
                    break;
                }
                refusals += 1;
            }
        }
    }
    println!("{refusals} refusals");
    assert!(refusals > 30, "{refusals}");
}

/// Has another process make a pipe and send a message through it, its `n`-th call refused; false when it makes fewer.
fn refuses(arena: &Arena, n: u64, errno: i32, length: usize) -> bool {
    const REFUSED: i32 = 3;
    let victim = fork(|| {
        refuse::arm(n, errno);
        let through = || -> Result<(), Error> {
            let (here, there) = pipe(arena)?;
            let bytes = body(1, length);
            let sent = here.send(0, &[&bytes], soon());
            if sent.is_err() {
                // It is not in the pipe, and the next one is.
                assert!(!is_readable(&there));
                send(&here, 2, length);
                assert_eq!(next(&there), Some(2));
            }
            assert!(sent?);
            match receive(&there, soon()) {
                Err(Failure::System(error)) => Err(error),
                received => {
                    assert_eq!(number_of(&received.unwrap().unwrap()), 1);
                    Ok(())
                }
            }
        };
        let outcome = through();
        let calls = refuse::disarm();
        if (calls.len() as u64) < n {
            outcome.unwrap();
            return;
        }
        let refused = calls[usize::try_from(n).unwrap() - 1];
        match outcome {
            // A look that may fail.
            Ok(()) => {}
            Err(Error::Os { call, errno: told }) => assert_eq!((call, told), (refused, errno)),
            Err(error) => panic!("{error} for {refused}"),
        }
        // SAFETY: ends the process.
        unsafe { libc::_exit(REFUSED) };
    });
    let status = victim.wait();
    assert!([0, REFUSED].contains(&status), "{n}, {errno}: {status}");
    status == REFUSED
}

#[test]
fn a_pipe_is_as_its_model() {
    let _alone = alone();
    let mut random = Random::seeded(20_261_130);
    let arena = Arena::create().unwrap();
    let mut kills = 0;
    for _ in 0..150 {
        let (here, there) = pipe(&arena).unwrap();
        // Numbers of the messages that are in the pipe; the last one may not be there, if its sender died.
        let (mut first, mut end) = (0, 0);
        for _ in 0..1 + random.below(6) {
            let length = LENGTHS[usize::try_from(random.below(2)).unwrap()];
            let n = 1 + random.below(40);
            let many = 1 + random.below(3);
            if random.below(2) == 0 {
                // A death between two sends is as good as one inside: what was sent is asked of who receives.
                let killed = dies(n, || {
                    (end..end + many).for_each(|it| send(&here, it, length))
                });
                kills += u64::from(killed);
                let sent = count(&here, &there);
                let new = sent - (end - first);
                assert!(new <= many && (killed || new == many));
                end += new;
            } else {
                let many = many.min(end - first);
                let killed = dies(n, || {
                    (first..first + many).for_each(|it| assert_eq!(next(&there), Some(it)));
                });
                kills += u64::from(killed);
                let left = count(&here, &there);
                assert!(left >= end - first - many && (killed || left == end - first - many));
                first = end - left;
            }
            assert_eq!(is_readable(&there), first < end);
        }
        (first..end).for_each(|number| assert_eq!(next(&there), Some(number)));
        check(&arena, &here, &there);
        drop((here, there));
        until_empty(&arena);
    }
    println!("{kills} kills");
    assert!(kills > 50, "{kills}");
}

/// How many messages wait: takes them all, and sends them again.
fn count(here: &PipeEnd, there: &PipeEnd) -> u64 {
    let mut messages = Vec::new();
    while is_readable(there) {
        messages.push(receive(there, NOW()).unwrap().unwrap());
    }
    let numbers: Vec<u64> = messages.iter().map(|bytes| number_of(bytes)).collect();
    assert!(
        numbers.is_sorted_by(|one, other| one + 1 == *other),
        "{numbers:?}"
    );
    for message in &messages {
        assert!(here.send(0, &[message], soon()).unwrap());
    }
    numbers.len() as u64
}
