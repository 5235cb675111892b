//! Messages and handshakes over real descriptors, with peers that are slow, silent, gone, or don't read.

use crate::child::alone;
use procession_core::connection::{Authentication, Failure, Received, receive, receive_into, send};
use procession_core::wire::auth::NONCE_BYTES;
use procession_core::wire::{
    AuthError, Authenticated, Decoder, Digest, FrameError, Handshake, Header, Role, Terms,
};
use procession_core::{Deadline, Error};
use std::borrow::Cow;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use std::{net, thread};

const NEVER: Deadline = Deadline::NEVER;
const SHORT: Duration = Duration::from_millis(30);
const LIMIT: u64 = 64 << 20;

fn soon() -> Deadline {
    Deadline::after(SHORT)
}

/// Both ends of each kind of stream: the first is written to, the second is read.
fn streams() -> [(OwnedFd, OwnedFd); 3] {
    let (reader, writer) = std::io::pipe().unwrap();
    let (one, other) = UnixStream::pair().unwrap();
    let listener = net::TcpListener::bind("127.0.0.1:0").unwrap();
    let client = net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let served = listener.accept().unwrap().0;
    [
        (writer.into(), reader.into()),
        (one.into(), other.into()),
        (client.into(), served.into()),
    ]
}

fn body(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at % 251).to_le_bytes()[0]).collect()
}

#[test]
fn messages_of_any_length_arrive() {
    let _alone = alone();
    const LENGTHS: [usize; 8] = [0, 1, 9, 16_384, 16_385, 1 << 20, (1 << 20) + 7, 5_000_000];
    for (writer, reader) in streams() {
        thread::scope(|scope| {
            scope.spawn(|| {
                for (count, length) in LENGTHS.into_iter().enumerate() {
                    let body = body(length);
                    let (head, tail) = body.split_at(length / 3);
                    // Late calls go on where the one before ended.
                    let deadline = || if count % 2 == 0 { NEVER } else { soon() };
                    let mut sent = 0;
                    let pieces = [head, b"", tail];
                    while !send(writer.as_fd(), &pieces, &mut sent, deadline()).unwrap() {}
                }
            });
            let mut decoder = Decoder::new(LIMIT);
            for length in LENGTHS {
                let received = receive(reader.as_fd(), &mut decoder, NEVER).unwrap();
                assert!(received.unwrap() == body(length), "{length}");
            }
        });
        drop(writer);
        let mut decoder = Decoder::new(LIMIT);
        let end = receive(reader.as_fd(), &mut decoder, NEVER);
        assert_eq!(end, Err(Failure::End));
    }
}

#[test]
fn who_does_not_read_holds_up_a_sender_until_its_deadline() {
    let _alone = alone();
    for (writer, reader) in streams() {
        let body = body(30_000_000);
        let mut sent = 0;
        let begin = Instant::now();
        let whole = send(writer.as_fd(), &[&body], &mut sent, soon()).unwrap();
        assert!(!whole && begin.elapsed() >= SHORT && sent > 0, "{sent}");
        // What went is the beginning of the message.
        thread::scope(|scope| {
            scope.spawn(|| assert!(send(writer.as_fd(), &[&body], &mut sent, NEVER).unwrap()));
            let mut decoder = Decoder::new(LIMIT);
            let received = receive(reader.as_fd(), &mut decoder, NEVER).unwrap();
            assert!(received.unwrap() == body);
        });
    }
}

#[test]
fn a_silent_peer_costs_a_deadline_and_a_slow_one_nothing() {
    let _alone = alone();
    for (writer, reader) in streams() {
        let mut decoder = Decoder::new(LIMIT);
        let begin = Instant::now();
        assert_eq!(receive(reader.as_fd(), &mut decoder, soon()), Ok(None));
        assert!(begin.elapsed() >= SHORT);
        let mut writer = std::fs::File::from(writer);
        let mut buffer = [0; 3];
        for byte in b"\0\0\0\x03ab" {
            writer.write_all(&[*byte]).unwrap();
            assert_eq!(
                receive(reader.as_fd(), &mut decoder, Deadline::now()),
                Ok(None)
            );
            let into = receive_into(reader.as_fd(), &mut decoder, &mut buffer, Deadline::now());
            assert_eq!(into, Ok(None));
        }
        writer.write_all(b"c\0\0\0\x01d").unwrap();
        let into = receive_into(reader.as_fd(), &mut decoder, &mut buffer, NEVER);
        assert_eq!((into, &buffer), (Ok(Some(Received::Into(3))), b"abc"));
        // Nothing was read ahead.
        let mut rest = [0; 5];
        std::fs::File::from(reader).read_exact(&mut rest).unwrap();
        assert_eq!(&rest, b"\0\0\0\x01d");
    }
}

#[test]
fn a_buffer_that_is_too_short_loses_nothing() {
    let _alone = alone();
    let (mut writer, reader) = UnixStream::pair().unwrap();
    writer
        .write_all(b"\0\0\0\x04abcd\0\0\0\0\0\0\0\x02ef")
        .unwrap();
    let mut decoder = Decoder::new(LIMIT);
    let mut buffer = [0; 3];
    let mut next = || receive_into(reader.as_fd(), &mut decoder, &mut buffer, NEVER);
    assert_eq!(next(), Ok(Some(Received::TooLong(b"abcd".to_vec()))));
    assert_eq!(next(), Ok(Some(Received::Into(0))));
    assert_eq!(next(), Ok(Some(Received::Into(2))));
    drop(writer);
    assert_eq!(next(), Err(Failure::End));
}

#[test]
fn what_is_no_message_is_an_error_that_says_what_it_was() {
    let _alone = alone();
    let table: [(&[u8], FrameError); 5] = [
        (b"\0\0", FrameError::NoHeader { arrived: 2 }),
        (
            b"\0\0\0\x05abc",
            FrameError::NoBody {
                arrived: 3,
                length: 5,
            },
        ),
        (
            b"\0\0\0\x05",
            FrameError::NoBody {
                arrived: 0,
                length: 5,
            },
        ),
        (
            b"\xff\xff\xff\xfe....",
            FrameError::Negative {
                length: -2,
                limit: 256,
            },
        ),
        (
            b"GET / HTTP",
            FrameError::TooLong {
                length: 0x4745_5420,
                limit: 256,
            },
        ),
    ];
    for (stream, error) in table {
        for into in [false, true] {
            let (mut writer, reader) = UnixStream::pair().unwrap();
            writer.write_all(stream).unwrap();
            drop(writer);
            let mut decoder = Decoder::new(256);
            for _ in 0..2 {
                let failed = if into {
                    receive_into(reader.as_fd(), &mut decoder, &mut [0; 9], NEVER).map(|_| ())
                } else {
                    receive(reader.as_fd(), &mut decoder, NEVER).map(|_| ())
                };
                assert_eq!(failed, Err(Failure::Frame(error)));
            }
        }
    }
}

fn terms(role: Role) -> Terms {
    Terms {
        role,
        digest: Digest::Sha256,
        md5: false,
    }
}

fn authenticate(
    stream: &impl AsFd,
    key: &[u8],
    role: Role,
    deadline: Deadline,
) -> Result<Authenticated, Failure> {
    let mut authentication = Authentication::begin(key, terms(role)).unwrap();
    authentication.run(stream.as_fd(), deadline)
}

#[test]
fn two_ends_know_each_other_by_their_key() {
    let _alone = alone();
    let both = |keys: [&[u8]; 2]| {
        let (listener, client) = UnixStream::pair().unwrap();
        thread::scope(|scope| {
            let other = scope.spawn(move || authenticate(&client, keys[1], Role::Client, NEVER));
            let one = authenticate(&listener, keys[0], Role::Listener, NEVER);
            (one, other.join().unwrap())
        })
    };
    let welcome = Ok(Authenticated { with_md5: false });
    assert_eq!(both([b"key", b"key"]), (welcome.clone(), welcome));
    let wrong = |error| Err(Failure::Auth(error));
    assert_eq!(
        both([b"key", b"another"]),
        (wrong(AuthError::WrongDigest), wrong(AuthError::Rejected))
    );
}

/// Plays the other end of a handshake by hand, in the order that CPython has, or in that of ours; and sends a message right behind it.
fn play(end: &mut UnixStream, terms: Terms, is_ours: bool) {
    let (mut handshake, first) = Handshake::begin(b"key", terms, [7; NONCE_BYTES]);
    let mut decoder = Decoder::new(LIMIT);
    let mut said: Vec<_> = first.into_iter().map(Cow::from).collect();
    let mut is_over = false;
    loop {
        let mut bytes: Vec<u8> = said.drain(..).flat_map(|one| framed(&one)).collect();
        if is_over {
            bytes.extend(framed(b"the first message"));
        }
        end.write_all(&bytes).unwrap();
        if is_over {
            return;
        }
        let heard = receive(end.as_fd(), &mut decoder, NEVER).unwrap().unwrap();
        let step = handshake.receive(&heard);
        said.extend(step.send);
        if is_ours {
            said.extend(handshake.open_early().map(Cow::from));
        }
        is_over = step.end.is_some_and(|end| end.is_ok());
    }
}

fn framed(message: &[u8]) -> Vec<u8> {
    [Header::of(message.len() as u64).bytes(), message].concat()
}

#[test]
fn nothing_that_follows_a_handshake_is_read() {
    let _alone = alone();
    for (role, other) in [
        (Role::Listener, Role::Client),
        (Role::Client, Role::Listener),
        (Role::Deliver, Role::Answer),
        (Role::Answer, Role::Deliver),
    ] {
        for (digest, is_ours) in [Digest::Md5, Digest::Sha256, Digest::Sha3_384]
            .into_iter()
            .flat_map(|digest| [(digest, false), (digest, true)])
        {
            let terms = |role| Terms {
                role,
                digest,
                md5: true,
            };
            let (one, mut end) = UnixStream::pair().unwrap();
            thread::scope(|scope| {
                scope.spawn(|| play(&mut end, terms(other), is_ours));
                let mut authentication = Authentication::begin(b"key", terms(role)).unwrap();
                authentication.run(one.as_fd(), NEVER).unwrap();
                let mut decoder = Decoder::new(LIMIT);
                let next = receive(one.as_fd(), &mut decoder, NEVER);
                assert_eq!(next.unwrap().unwrap(), b"the first message", "{role:?}");
            });
        }
    }
}

#[test]
fn a_rejected_client_hears_so_though_it_has_challenged_already() {
    let _alone = alone();
    let listener = net::TcpListener::bind("127.0.0.1:0").unwrap();
    for _ in 0..50 {
        let client = net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let served = listener.accept().unwrap().0;
        thread::scope(|scope| {
            let rejected = scope.spawn(|| authenticate(&client, b"wrong", Role::Client, NEVER));
            let wrong = authenticate(&served, b"key", Role::Listener, NEVER);
            // Closed with something unread, it would be reset.
            drop(served);
            assert_eq!(wrong, Err(Failure::Auth(AuthError::WrongDigest)));
            let rejected = rejected.join().unwrap();
            assert_eq!(rejected, Err(Failure::Auth(AuthError::Rejected)));
        });
        let closed = receive(client.as_fd(), &mut Decoder::new(LIMIT), NEVER);
        assert_eq!(closed, Err(Failure::End));
    }
}

#[test]
fn a_stranger_hears_a_challenge_and_failure() {
    let _alone = alone();
    let (listener, mut stranger) = UnixStream::pair().unwrap();
    stranger.write_all(b"\0\0\0\x10................").unwrap();
    let refused = authenticate(&listener, b"key", Role::Listener, NEVER);
    assert_eq!(refused, Err(Failure::Auth(AuthError::Md5)));
    drop(listener);
    let mut heard = Vec::new();
    stranger.read_to_end(&mut heard).unwrap();
    let (challenge, rest) = heard.split_at(4 + 59);
    assert!(challenge.starts_with(b"\0\0\0\x3b#CHALLENGE#{sha256}"));
    assert_eq!(rest, b"\0\0\0\x09#FAILURE#");
}

#[test]
fn strangers_cost_a_handshake_its_deadline_at_most() {
    let _alone = alone();
    for role in [Role::Listener, Role::Client, Role::Deliver, Role::Answer] {
        // Silent.
        let (end, stranger) = UnixStream::pair().unwrap();
        let begin = Instant::now();
        assert_eq!(authenticate(&end, b"key", role, soon()), Err(Failure::Late));
        assert!(begin.elapsed() >= SHORT);
        drop(stranger);
        // Slow: each byte in time, but not all of them.
        let (end, mut stranger) = UnixStream::pair().unwrap();
        let slow = thread::spawn(move || {
            while stranger.write_all(&[0]).is_ok() && stranger.write_all(b"\0\0\xff").is_ok() {
                thread::sleep(SHORT / 3);
            }
        });
        let late = authenticate(&end, b"key", role, Deadline::after(3 * SHORT));
        assert_ne!(late, Ok(Authenticated { with_md5: false }));
        drop(end);
        slow.join().unwrap();
        // Gone, and gone in the middle of something.
        for (said, failure) in [
            (&b""[..], Failure::End),
            (b"\0", FrameError::NoHeader { arrived: 1 }.into()),
            (
                b"\0\0\x01\x01",
                FrameError::TooLong {
                    length: 257,
                    limit: 256,
                }
                .into(),
            ),
        ] {
            let (end, mut stranger) = UnixStream::pair().unwrap();
            stranger.write_all(said).unwrap();
            stranger.shutdown(net::Shutdown::Write).unwrap();
            assert_eq!(authenticate(&end, b"key", role, NEVER), Err(failure));
        }
    }
}

extern "C" fn nothing(_signal: i32) {}

/// Does something while signals come to the calling thread, as long as it is interrupted; and says how often it was.
fn interrupted<T>(mut work: impl FnMut() -> Result<T, Failure>) -> (T, usize) {
    // SAFETY: all zero is a value: no flags, so that calls aren't restarted, and no signals masked.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = nothing as *const () as usize;
    // SAFETY: a handler that does nothing, for a signal that is ignored otherwise.
    unsafe { libc::sigaction(libc::SIGWINCH, &raw const action, std::ptr::null_mut()) };
    // SAFETY: no arguments.
    let me = unsafe { libc::pthread_self() };
    let done = std::sync::atomic::AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                // SAFETY: the thread waits for this one.
                unsafe { libc::pthread_kill(me, libc::SIGWINCH) };
                thread::sleep(Duration::from_millis(2));
            }
        });
        let mut count = 0;
        loop {
            match work() {
                Err(Failure::System(Error::Interrupted)) => count += 1,
                other => {
                    done.store(true, std::sync::atomic::Ordering::Relaxed);
                    return (other.unwrap(), count);
                }
            }
        }
    })
}

#[test]
fn interruptions_lose_nothing() {
    let _alone = alone();
    for (writer, reader) in streams() {
        let body = body(30_000_000);
        thread::scope(|scope| {
            let sender = scope.spawn(|| {
                let mut sent = 0;
                interrupted(|| send(writer.as_fd(), &[&body], &mut sent, NEVER)).1
            });
            // It has to wait.
            thread::sleep(SHORT);
            let mut decoder = Decoder::new(LIMIT);
            let (received, _) = interrupted(|| receive(reader.as_fd(), &mut decoder, NEVER));
            assert!(received.unwrap() == body);
            assert!(sender.join().unwrap() > 0);
        });
    }
    let (listener, client) = UnixStream::pair().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(SHORT);
            authenticate(&client, b"key", Role::Client, NEVER).unwrap();
        });
        let mut authentication = Authentication::begin(b"key", terms(Role::Listener)).unwrap();
        let (_, count) = interrupted(|| authentication.run(listener.as_fd(), NEVER));
        assert!(count > 0);
    });
}
