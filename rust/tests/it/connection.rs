//! Connections between processes, threads, and peers that don't keep to the rules.

use crate::each::{METHODS, each, start};
use crate::watchdog::{until, watch};
use procession::{
    Connection, ErrorKind, Event, Lock, Process, Queue, RecvError, SendError, StartMethod,
    one_way_pipe, pipe, wait, wait_timeout,
};
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

const SHORT: Duration = Duration::from_millis(40);

/// Both ends of a stream, in CPython's frames: the first sends `S` and receives `R`, the second sends `O`.
fn streams<S: ?Sized, R: ?Sized, O: ?Sized>() -> (Connection<S, R>, Connection<O, S>) {
    let (one, other) = UnixStream::pair().unwrap();
    (OwnedFd::from(one).into(), OwnedFd::from(other).into())
}

fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at % 251).to_le_bytes()[0]).collect()
}

#[test]
fn values_go_both_ways() {
    each(|method| {
        type Record = (u64, String, Vec<Option<i16>>);
        let (mine, theirs) = pipe::<Record, Record>().unwrap();
        let echo = |connection: Connection<Record>| {
            let mut count = 0;
            while let Ok(mut record) = connection.recv() {
                record.0 += 1;
                connection.send(&record).unwrap();
                count += 1;
            }
            count
        };
        let child = start(method, echo, theirs);
        for length in [0, 1, 100, 20_000, 1 << 20] {
            let text = "x".repeat(length);
            mine.send(&(7, text.clone(), vec![Some(-3), None])).unwrap();
            let back = mine.recv().unwrap();
            assert_eq!(back, (8, text, vec![Some(-3), None]));
        }
        // By fork the child has both ends, and would wait for itself.
        if METHODS[method] == StartMethod::Fork {
            child.kill().unwrap();
        } else {
            drop(mine);
            assert_eq!(child.join().unwrap(), 5);
        }
    });
}

#[test]
fn bytes_go_as_they_are_in_an_argument_of_several() {
    each(|method| {
        let (receiver, theirs) = one_way_pipe::<[u8]>().unwrap();
        let (inbox, sender) = one_way_pipe::<[u8]>().unwrap();
        type Ways = Vec<(Connection<Infallible, [u8]>, Connection<[u8], Infallible>)>;
        let copy = |(ways, lengths): (Ways, Vec<usize>)| {
            let mut buffer = Vec::new();
            for length in lengths {
                ways[0].0.recv_bytes_into(&mut buffer).unwrap();
                assert_eq!(buffer.len(), length);
                ways[0].1.send_bytes(&buffer).unwrap();
            }
        };
        let lengths = vec![1, 0, 64, 16_384, 16_385, 1 << 20, 3 << 20, 5];
        let child = start(method, copy, (vec![(inbox, theirs)], lengths.clone()));
        for length in lengths {
            sender.send_bytes(&bytes(length)).unwrap();
            assert!(receiver.recv_bytes().unwrap() == bytes(length), "{length}");
        }
        child.join().unwrap();
    });
}

#[test]
fn clones_in_an_argument_are_one_end() {
    each(|method| {
        let (mine, theirs) = pipe::<u8, u8>().unwrap();
        let look = |(one, other): (Connection<u8>, Connection<u8>)| {
            let descriptors = [&one, &other].map(|end| end.as_fd().as_raw_fd());
            let first = one.recv().unwrap();
            drop(one);
            other.send(&(first + other.recv().unwrap())).unwrap();
            descriptors[0] == descriptors[1]
        };
        let child = start(method, look, (theirs.clone(), theirs));
        mine.send(&3).unwrap();
        mine.send(&4).unwrap();
        assert_eq!(mine.recv().unwrap(), 7);
        assert!(child.join().unwrap());
    });
}

#[test]
fn a_child_that_is_killed_is_the_end() {
    each(|method| {
        let (mine, theirs) = pipe::<(), String>().unwrap();
        let child = start(
            method,
            |connection: Connection<String, ()>| {
                connection.send(&"sent".to_owned()).unwrap();
                // Nothing ever comes.
                let _ = connection.recv();
            },
            theirs,
        );
        assert!(mine.poll_timeout(Duration::from_secs(60)).unwrap());
        assert!(matches!(mine.recv(), Ok(text) if text == "sent"));
        assert!(!mine.poll().unwrap());
        child.kill().unwrap();
        child.join().unwrap_err();
        assert!(matches!(mine.recv(), Err(RecvError::Closed)));
        assert!(mine.poll().unwrap());
        until("the end to be told", || {
            matches!(mine.send(&()), Err(SendError::Closed))
        });
    });
}

#[test]
fn what_was_sent_outlives_its_sender() {
    each(|method| {
        let (mine, theirs) = pipe::<(), Vec<u32>>().unwrap();
        let send_and_abort = |connection: Connection<Vec<u32>, ()>| -> () {
            for count in 0..10 {
                connection.send(&(0..count).collect()).unwrap();
            }
            std::process::abort();
        };
        start(method, send_and_abort, theirs).join().unwrap_err();
        for count in 0..10 {
            assert_eq!(mine.recv().unwrap(), (0..count).collect::<Vec<u32>>());
        }
        assert!(matches!(mine.recv(), Err(RecvError::Closed)));
    });
}

#[test]
fn a_forked_child_shares_its_parents_ends() {
    let _watchdog = watch();
    let work = |(): ()| {
        let (left, right) = pipe::<u32, u32>().unwrap();
        // Both ends are used by child and parent, one after the other; neither's drop is the other's.
        for round in 0..20 {
            let work = |(left, right): (Connection<u32>, Connection<u32>)| {
                left.send(&1).unwrap();
                let got = right.recv().unwrap();
                drop((left, right));
                got
            };
            let argument = (left.clone(), right.clone());
            let child = start(1, work, argument);
            assert_eq!(child.join().unwrap(), 1, "{round}");
            left.send(&2).unwrap();
            assert_eq!(right.recv().unwrap(), 2);
        }
    };
    Process::spawn(work, ()).unwrap().join().unwrap();
}

#[test]
fn objects_of_the_tree_go_along_and_go_with_their_last_holder() {
    let _watchdog = watch();
    let work = |(): ()| {
        let (mine, theirs) = pipe::<(Queue<u32>, Vec<Lock>), Lock>().unwrap();
        let before = procession::__private::census().0;
        let child = Process::spawn(
            |connection: Connection<Lock, (Queue<u32>, Vec<Lock>)>| {
                let (queue, mut locks) = connection.recv().unwrap();
                queue.put(&5).unwrap();
                let lock = locks.pop().unwrap();
                lock.acquire().unwrap().keep();
                connection.send(&lock).unwrap();
                drop(connection.recv());
                drop(lock.release());
            },
            theirs,
        )
        .unwrap();
        let queue = Queue::new().unwrap();
        let locks = vec![Lock::new().unwrap(), Lock::new().unwrap()];
        mine.send(&(queue.clone(), locks)).unwrap();
        assert_eq!(queue.get().unwrap(), 5);
        let lock = mine.recv().unwrap();
        assert!(lock.try_acquire().unwrap().is_none());
        // One that nobody can receive any more is gone with its parcel, too.
        drop(mine);
        child.join().unwrap();
        drop(lock.acquire().unwrap());
        let (sender, receiver) = pipe::<Lock, ()>().unwrap();
        drop(receiver);
        assert!(matches!(sender.send(&lock), Err(SendError::Closed)));
        drop((queue, lock));
        until("all objects to be gone", || {
            procession::__private::census().0 == before
        });
    };
    Process::spawn(work, ()).unwrap().join().unwrap();
}

#[test]
fn connections_go_through_queues_and_pipes_and_come_back() {
    each(|method| {
        let (post, inbox) = pipe::<Connection<u32>, Connection<u32>>().unwrap();
        let queue: Queue<Connection<u32>> = Queue::new().unwrap();
        let (mine, theirs) = pipe::<u32, u32>().unwrap();
        let (other, stream) = streams::<u32, u32, u32>();
        let relay = |(inbox, queue): (Connection<Connection<u32>>, Queue<Connection<u32>>)| {
            let (by_pipe, by_queue) = (inbox.recv().unwrap(), queue.get().unwrap());
            by_queue.send(&by_pipe.recv().unwrap()).unwrap();
            inbox.send(&by_queue).unwrap();
            // What is on its way is good while this process lives; what it returns outlives it.
            assert_eq!(by_pipe.recv().unwrap(), 0);
            by_pipe
        };
        let child = start(method, relay, (inbox, queue.clone()));
        post.send(&theirs).unwrap();
        queue.put(&stream).unwrap();
        drop((theirs, stream));
        mine.send(&7).unwrap();
        assert_eq!(other.recv().unwrap(), 7);
        // Each of them is the same end, wherever it went.
        let stream = post.recv().unwrap();
        mine.send(&0).unwrap();
        let theirs = child.join().unwrap();
        stream.send(&8).unwrap();
        theirs.send(&9).unwrap();
        assert_eq!((other.recv().unwrap(), mine.recv().unwrap()), (8, 9));
        drop((stream, theirs));
        // By fork, the child had these ends, too, and is gone.
        assert!(matches!(mine.recv(), Err(RecvError::Closed)));
        assert!(matches!(other.recv(), Err(RecvError::Closed)));
    });
}

#[test]
fn what_cannot_go_is_told_of_and_stays() {
    let _watchdog = watch();
    let (mine, _theirs) = pipe::<u8, u8>().unwrap();
    // By hand: nobody would hold it on its way.
    assert!(postcard::to_allocvec(&mine).is_err());
    // Where the other end may be anybody, what lies in the tree isn't sent.
    let (one, _other) = UnixStream::pair().unwrap();
    let abroad = Connection::<Lock, ()>::from(OwnedFd::from(one));
    let error = procession::Error::from(abroad.send(&Lock::new().unwrap()).unwrap_err());
    assert_eq!(error.kind(), ErrorKind::Misuse);
    let (one, _other) = UnixStream::pair().unwrap();
    let abroad = Connection::<Connection<u8>, ()>::from(OwnedFd::from(one));
    let error = procession::Error::from(abroad.send(&mine).unwrap_err());
    assert_eq!(error.kind(), ErrorKind::Misuse);
    // Nor is it taken from there, even if somebody knows its name.
    let (one, other) = UnixStream::pair().unwrap();
    let (stranger, lock) = (
        Connection::<(u64, u64), ()>::from(OwnedFd::from(one)),
        Connection::<(), Lock>::from(OwnedFd::from(other)),
    );
    stranger.send(&(4096, 1)).unwrap();
    let error = procession::Error::from(lock.recv().unwrap_err());
    assert_eq!(error.kind(), ErrorKind::Misuse);
    assert!(
        error.to_string().ends_with("must come from the same tree"),
        "{error}"
    );
    // A message that has begun to arrive can't be finished by another process.
    let (mut peer, stream) = UnixStream::pair().unwrap();
    let connection = Connection::<[u8]>::from(OwnedFd::from(stream));
    peer.write_all(b"\0\0\0\x02a").unwrap();
    assert!(matches!(
        connection.recv_bytes_timeout(SHORT),
        Err(RecvError::Empty)
    ));
    let receive = |connection: Connection<[u8]>| connection.recv_bytes().unwrap();
    let error = Process::spawn(receive, connection.clone()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Misuse);
    peer.write_all(b"b").unwrap();
    assert_eq!(connection.recv_bytes().unwrap(), b"ab");
    peer.write_all(b"\0\0\0\x01c").unwrap();
    let child = Process::spawn(receive, connection).unwrap();
    assert_eq!(child.join().unwrap(), b"c");
    // What came to a wrong type is gone, and what comes next is there.
    let (numbers, wrong) = streams::<(), String, [u8]>();
    wrong.send_bytes(&[0, 200, 1]).unwrap();
    wrong.send_bytes(&[9]).unwrap();
    wrong.send_bytes(b"\0\x05right").unwrap();
    for kind in [ErrorKind::Encoding, ErrorKind::Malformed] {
        let error = procession::Error::from(numbers.recv().unwrap_err());
        assert_eq!(error.kind(), kind, "{error}");
    }
    assert_eq!(numbers.recv().unwrap(), "right");
}

#[test]
fn many_go_with_one_argument() {
    let _watchdog = watch();
    let all: Vec<_> = (0..40).map(|_| pipe::<u32, u32>().unwrap()).collect();
    for method in [0, 2] {
        let theirs: Vec<_> = all.iter().map(|(_, theirs)| theirs.clone()).collect();
        let number = |ends: Vec<Connection<u32>>| {
            for (number, end) in (0..).zip(ends) {
                end.send(&number).unwrap();
            }
        };
        start(method, number, theirs).join().unwrap();
        for (number, (mine, _)) in (0..).zip(&all) {
            assert_eq!(mine.recv().unwrap(), number);
        }
    }
}

#[test]
fn threads_share_an_end() {
    type Message = (u32, Vec<u8>);
    let _watchdog = watch();
    let (left, right) = pipe::<Message, Message>().unwrap();
    share(&left, &right);
    let (left, right) = streams::<Message, Message, Message>();
    share(&left, &right);
}

fn share(left: &Connection<(u32, Vec<u8>)>, right: &Connection<(u32, Vec<u8>)>) {
    const EACH: u32 = 2_000;
    let seen = std::thread::scope(|scope| {
        for thread in 0..3 {
            // By a clone, and by a reference.
            let clone = left.clone();
            scope.spawn(move || {
                for number in 0..EACH {
                    let number = thread * EACH + number;
                    let length = if number.is_multiple_of(50) {
                        100_000
                    } else {
                        10
                    };
                    let fill = number.to_le_bytes()[0];
                    let end = if number.is_multiple_of(2) {
                        left
                    } else {
                        &clone
                    };
                    end.send(&(number, vec![fill; length])).unwrap();
                }
            });
        }
        let receivers = [(); 3].map(|()| {
            scope.spawn(|| {
                let mut seen = Vec::new();
                while let Ok((number, body)) = right.recv() {
                    if body.is_empty() {
                        return seen;
                    }
                    assert!(body.iter().all(|byte| *byte == number.to_le_bytes()[0]));
                    seen.push(number);
                    right.send(&(number, Vec::new())).unwrap();
                }
                panic!("the end came before the last message");
            })
        });
        for _ in 0..3 * EACH {
            assert!(left.recv().unwrap().1.is_empty());
        }
        for _ in 0..3 {
            left.send(&(0, Vec::new())).unwrap();
        }
        receivers.map(|receiver| receiver.join().unwrap()).concat()
    });
    assert_eq!(seen.len(), 3 * EACH as usize);
    let distinct: BTreeSet<u32> = seen.into_iter().collect();
    assert_eq!(distinct.len(), 3 * EACH as usize);
}

#[test]
fn waits_end_with_their_time() {
    let _watchdog = watch();
    let (left, right) = pipe::<[u8], [u8]>().unwrap();
    time(&left, &right);
    // What doesn't fit as a whole isn't sent, and what comes next is.
    let large = bytes(10 << 20);
    let mut count = 0;
    while left.try_send_bytes(&large).is_ok() {
        count += 1;
    }
    let begin = Instant::now();
    let late = left.send_bytes_timeout(&large, SHORT);
    assert!(matches!(late, Err(SendError::Full)) && count > 0);
    assert!(begin.elapsed() >= SHORT);
    for _ in 0..count {
        assert!(right.recv_bytes().unwrap() == large);
    }
    left.send_bytes(b"next").unwrap();
    assert_eq!(right.recv_bytes().unwrap(), b"next");
    let (left, right) = streams::<[u8], [u8], [u8]>();
    time(&left, &right);
    // On a stream, a message that can only be begun is the last one.
    let begin = Instant::now();
    let torn = left.send_bytes_timeout(&bytes(10 << 20), SHORT);
    let kind = procession::Error::from(torn.unwrap_err()).kind();
    assert_eq!(kind, ErrorKind::Broken);
    assert!(begin.elapsed() >= SHORT);
    let next = procession::Error::from(left.send_bytes(b"more").unwrap_err());
    assert_eq!(next.kind(), ErrorKind::Broken);
    right.send_bytes(b"the other way").unwrap();
    assert_eq!(left.recv_bytes().unwrap(), b"the other way");
    drop(left);
    let end = procession::Error::from(right.recv_bytes().unwrap_err());
    assert_eq!(end.kind(), ErrorKind::Malformed);
}

fn time(left: &Connection<[u8]>, right: &Connection<[u8]>) {
    let took = |work: &mut dyn FnMut()| {
        let begin = Instant::now();
        work();
        assert!(begin.elapsed() >= SHORT);
    };
    let is_empty = |received| matches!(received, Err(RecvError::Empty));
    assert!(is_empty(left.try_recv_bytes()));
    took(&mut || assert!(is_empty(left.recv_bytes_timeout(SHORT))));
    took(&mut || assert!(!left.poll_timeout(SHORT).unwrap()));
    // Another thread waits, too.
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| left.recv_bytes().unwrap());
        took(&mut || assert!(is_empty(left.recv_bytes_timeout(SHORT))));
        right.send_bytes(b"at last").unwrap();
        assert_eq!(waits.join().unwrap(), b"at last");
    });
    // Small messages fill it, and are all there afterwards.
    let mut count = 0u32;
    while left.try_send_bytes(&count.to_le_bytes()).is_ok() {
        count += 1;
    }
    took(&mut || {
        let late = left.send_bytes_timeout(b"late", SHORT);
        assert!(matches!(late, Err(SendError::Full)));
    });
    for number in 0..count {
        assert_eq!(right.recv_bytes().unwrap(), number.to_le_bytes());
    }
}

#[test]
fn a_bad_peer_costs_its_own_connection() {
    let _watchdog = watch();
    let (good, peer) = pipe::<[u8], [u8]>().unwrap();
    let table: [(&[u8], ErrorKind, &str); 6] = [
        (b"", ErrorKind::Closed, "the other end was closed"),
        (b"\0\0", ErrorKind::Malformed, "after 2 bytes of its length"),
        (b"\0\0\0\x05abc", ErrorKind::Malformed, "after 3 of 5 bytes"),
        (
            b"\x7f\xff\xff\xff",
            ErrorKind::Malformed,
            "after 0 of 2147483647 bytes",
        ),
        (
            b"\xff\xff\xff\xfe....",
            ErrorKind::Malformed,
            "bad message length: -2",
        ),
        (
            b"GET / HTTP/1.1\r\n\r\n",
            ErrorKind::Malformed,
            "of 1195725856 bytes",
        ),
    ];
    for (garbage, kind, text) in table {
        let (mut bad, stream) = UnixStream::pair().unwrap();
        let connection = Connection::<[u8]>::from(OwnedFd::from(stream));
        bad.write_all(garbage).unwrap();
        drop(bad);
        for _ in 0..2 {
            let error = procession::Error::from(connection.recv_bytes().unwrap_err());
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().contains(text), "{error}");
        }
        good.send_bytes(garbage).unwrap();
        assert_eq!(peer.recv_bytes().unwrap(), garbage);
    }
}

#[test]
fn a_stream_of_ones_own_has_cpythons_frames() {
    let _watchdog = watch();
    let (mut peer, stream) = UnixStream::pair().unwrap();
    let connection = Connection::<[u8]>::from(OwnedFd::from(stream));
    connection.send_bytes(b"abc").unwrap();
    let mut frame = [0; 7];
    peer.read_exact(&mut frame).unwrap();
    assert_eq!(&frame, b"\0\0\0\x03abc");
    // Byte by byte, the needlessly long form too.
    for byte in b"\xff\xff\xff\xff\0\0\0\0\0\0\0\x02d" {
        peer.write_all(&[*byte]).unwrap();
        assert!(matches!(connection.try_recv_bytes(), Err(RecvError::Empty)));
    }
    peer.write_all(b"e").unwrap();
    assert_eq!(connection.recv_bytes().unwrap(), b"de");
}

#[test]
fn one_waits_for_the_first_of_anything() {
    let _watchdog = watch();
    let (left, right) = pipe::<u8, u8>().unwrap();
    let (mut stream, other) = UnixStream::pair().unwrap();
    let event = Event::new().unwrap();
    let sleep = |event: Event| drop(event.wait());
    let child = Process::spawn(sleep, event.clone()).unwrap();
    let objects: [&dyn AsFd; 3] = [&left, &other, &child];
    let begin = Instant::now();
    assert_eq!(wait_timeout(objects, SHORT).unwrap(), [0usize; 0]);
    assert!(begin.elapsed() >= SHORT);
    right.send(&1).unwrap();
    assert_eq!(wait(objects).unwrap(), [0]);
    stream.write_all(b"x").unwrap();
    assert_eq!(wait(objects).unwrap(), [0, 1]);
    assert_eq!(left.recv().unwrap(), 1);
    assert_eq!(wait(objects).unwrap(), [1]);
    event.set().unwrap();
    assert_eq!(wait([&child]).unwrap(), [0]);
    drop(right);
    assert_eq!(wait(objects).unwrap(), [0, 1, 2]);
    child.join().unwrap();
}
