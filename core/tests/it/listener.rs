//! Listeners and clients: every kind of address, and peers that nobody would invite.

use crate::child::{alone, fork};
use procession_core::connection::{
    Accepted, Address, Authentication, Connecting, Failure, GUESTS_MAX, Listener, receive, send,
};
use procession_core::wire::{AuthError, Authenticated, Decoder, Digest, Role, Terms};
use procession_core::{Deadline, Error};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, Shutdown};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{fs, thread};

const NEVER: Deadline = Deadline::NEVER;
const SHORT: Duration = Duration::from_millis(30);
const KEY: &[u8] = b"key";
const KNOWN: Authenticated = Authenticated { with_md5: false };

/// A folder of its own, removed afterwards.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let name = format!("procession-listener-{}-{name}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    fn file(&self) -> Address {
        Address::Path(self.0.join("socket"))
    }

    /// A file in it whose path is longer than a socket's name may be.
    fn far_file(&self) -> Address {
        let mut folder = self.0.clone();
        for _ in 0..20 {
            folder.push("far-from-here");
        }
        fs::create_dir_all(&folder).unwrap();
        Address::Path(folder.join("socket"))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

fn connect(address: &Address) -> OwnedFd {
    let mut connecting = Connecting::begin(address).unwrap();
    assert!(connecting.run(NEVER).unwrap());
    connecting.into_stream()
}

fn accept(listener: &Listener) -> Accepted {
    listener.accept(NEVER).unwrap().unwrap()
}

fn terms(role: Role) -> Terms {
    Terms {
        role,
        digest: Digest::Sha256,
        md5: false,
    }
}

/// Connects as somebody with that key, and says how that was taken.
fn client(address: &Address, key: &'static [u8]) -> Result<OwnedFd, Failure> {
    let stream = connect(address);
    let mut authentication = Authentication::begin(key, terms(Role::Client)).unwrap();
    authentication.run(stream.as_fd(), NEVER).map(|_| stream)
}

/// The next who is let in or not.
fn admit(listener: &Listener) -> Result<Accepted, Failure> {
    let admission = listener.accept_known(KEY, terms(Role::Listener), NEVER);
    match admission.unwrap().unwrap() {
        Ok((accepted, KNOWN)) => Ok(accepted),
        Ok((_, other)) => panic!("{other:?}"),
        Err(refused) => Err(refused.failure),
    }
}

fn path(address: &Address) -> &Path {
    match address {
        Address::Path(path) => path,
        other => panic!("{other}"),
    }
}

#[test]
fn messages_go_both_ways_at_every_kind_of_address() {
    let _alone = alone();
    let folder = Folder::new("kinds");
    let name = format!("procession-{}-kinds", std::process::id());
    for address in [
        Address::Inet((Ipv4Addr::LOCALHOST, 0).into()),
        Address::Inet((Ipv6Addr::LOCALHOST, 0).into()),
        Address::Abstract(name.into_bytes()),
        folder.file(),
        folder.far_file(),
    ] {
        let listener = Listener::bind(&address, 1).unwrap();
        match (&address, listener.address()) {
            (Address::Inet(asked), Address::Inet(given)) => {
                assert_eq!(asked.ip(), given.ip());
                assert_ne!(given.port(), 0);
            }
            (asked, given) => assert_eq!(asked, given),
        }
        assert!(listener.accept(Deadline::now()).unwrap().is_none());
        let client = connect(listener.address());
        let Accepted { stream, peer } = accept(&listener);
        assert_eq!(peer.is_some(), matches!(address, Address::Inet(_)));
        for (from, to) in [(&client, &stream), (&stream, &client)] {
            assert!(send(from.as_fd(), &[b"mes", b"sage"], &mut 0, NEVER).unwrap());
            let received = receive(to.as_fd(), &mut Decoder::new(100), NEVER).unwrap();
            assert_eq!(received.unwrap(), b"message");
        }
        // Nobody else listens there.
        let refused = Listener::bind(listener.address(), 1).unwrap_err();
        assert!(
            matches!(
                refused,
                Error::Os {
                    call: "bind",
                    errno: libc::EADDRINUSE
                }
            ),
            "{refused}"
        );
    }
}

#[test]
fn a_listener_removes_its_file_and_no_other() {
    let _alone = alone();
    let folder = Folder::new("files");
    for address in [folder.file(), folder.far_file()] {
        let mut listener = Some(Listener::bind(&address, 1).unwrap());
        // A fork's copy leaves it.
        fork(|| drop(listener.take())).join();
        assert!(path(&address).exists());
        drop(listener);
        assert!(!path(&address).exists());
    }
    let address = folder.file();
    let replaced = Listener::bind(&address, 1).unwrap();
    fs::remove_file(path(&address)).unwrap();
    let another = Listener::bind(&address, 1).unwrap();
    drop(replaced);
    assert!(path(&address).exists());
    drop(another);
    assert!(!path(&address).exists());
    // What a dead one left is in the way, as for everybody.
    fs::write(path(&address), "").unwrap();
    assert!(Listener::bind(&address, 1).is_err());
}

#[test]
fn an_address_where_nobody_listens_is_an_error_and_a_full_one_takes_a_deadline() {
    let _alone = alone();
    let folder = Folder::new("full");
    let error = |address: &Address| {
        let connecting = Connecting::begin(address);
        match connecting.and_then(|mut connecting| connecting.run(NEVER)) {
            Err(Error::Os { errno, .. }) => errno,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(error(&folder.file()), libc::ENOENT);
    let nowhere = Address::Path(folder.0.join("x".repeat(200)).join("socket"));
    assert_eq!(error(&nowhere), libc::ENOENT);
    let too_long = Address::Path(folder.0.join("x".repeat(200)));
    assert_eq!(error(&too_long), libc::ENAMETOOLONG);
    let listener = Listener::bind(&folder.file(), 0).unwrap();
    let _first = connect(listener.address());
    let mut second = Connecting::begin(listener.address()).unwrap();
    let begin = Instant::now();
    assert!(!second.run(Deadline::after(SHORT)).unwrap());
    assert!(begin.elapsed() >= SHORT);
    thread::scope(|scope| {
        scope.spawn(|| assert!(second.run(NEVER).unwrap()));
        accept(&listener);
        accept(&listener);
    });
}

#[test]
fn who_has_the_key_is_let_in_past_any_number_of_silent_ones() {
    let _alone = alone();
    let listener = Listener::bind(&Address::Inet((Ipv4Addr::LOCALHOST, 0).into()), 128).unwrap();
    let address = listener.address();
    for silent in [0, 1, GUESTS_MAX / 2] {
        let silent: Vec<_> = (0..silent).map(|_| connect(address)).collect();
        thread::scope(|scope| {
            for _ in 0..3 {
                let good = scope.spawn(|| client(address, KEY));
                // No handshake of the silent ones is over.
                let accepted = admit(&listener).unwrap();
                assert!(matches!(accepted.peer, Some(Address::Inet(_))));
                let stream = good.join().unwrap().unwrap();
                assert!(send(stream.as_fd(), &[b"hello"], &mut 0, NEVER).unwrap());
                let mut decoder = Decoder::new(100);
                let hello = receive(accepted.stream.as_fd(), &mut decoder, NEVER);
                assert_eq!(hello.unwrap().unwrap(), b"hello");
            }
        });
        // They say the wrong thing, at last, and each is one refusal.
        for stream in &silent {
            send(
                stream.as_fd(),
                &[b"........................"],
                &mut 0,
                NEVER,
            )
            .unwrap();
        }
        for _ in &silent {
            let refused = admit(&listener).unwrap_err();
            assert!(matches!(
                refused,
                Failure::Auth(AuthError::UnknownDigest(_))
            ));
        }
    }
}

/// The system's form of a path.
fn sun(path: &[u8]) -> libc::sockaddr_un {
    // SAFETY: all zero is a value.
    let mut sun: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    sun.sun_family = 1;
    for (to, from) in sun.sun_path.iter_mut().zip(path) {
        *to = from.cast_signed();
    }
    sun
}

#[test]
fn a_client_may_have_any_name() {
    let _alone = alone();
    let size = u32::try_from(size_of::<libc::sockaddr_un>()).unwrap();
    let folder = Folder::new("name");
    let listener = Listener::bind(&folder.file(), 8).unwrap();
    let to = sun(path(listener.address()).as_os_str().as_bytes());
    for length in [60, 107, 108] {
        let mut name = folder.0.join("a").into_os_string().into_vec();
        name.resize(length, b'a');
        let name = sun(&name);
        // SAFETY: no pointers.
        let socket = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_STREAM, 0) };
        // SAFETY: a new one, that nobody else has.
        let client = unsafe { OwnedFd::from_raw_fd(socket) };
        // SAFETY: reads a structure of that size.
        let bound = unsafe { libc::bind(client.as_raw_fd(), (&raw const name).cast(), size) };
        // SAFETY: as above.
        let came = unsafe { libc::connect(client.as_raw_fd(), (&raw const to).cast(), size) };
        assert_eq!((bound, came), (0, 0));
        // The longest one the system tells in more bytes than it takes.
        assert_eq!(accept(&listener).peer.is_some(), length < 108);
    }
}

#[test]
fn of_too_many_guests_the_oldest_goes() {
    let _alone = alone();
    let folder = Folder::new("many");
    let listener = Listener::bind(&folder.file(), 128).unwrap();
    let guests: Vec<_> = (0..=GUESTS_MAX)
        .map(|_| connect(listener.address()))
        .collect();
    assert_eq!(admit(&listener).unwrap_err(), Failure::Late);
    let mut heard = Vec::new();
    let oldest = fs::File::from(guests.into_iter().next().unwrap());
    (&oldest).read_to_end(&mut heard).unwrap();
    assert!(heard.starts_with(b"\0\0\0\x3b#CHALLENGE#"));
}

#[test]
fn each_bad_guest_is_one_refusal_that_says_why() {
    let _alone = alone();
    let folder = Folder::new("bad");
    let listener = Listener::bind(&folder.file(), 8).unwrap();
    let address = listener.address();
    for (said, why) in [
        (&b""[..], "the other end was closed"),
        (
            b"\0\0",
            "got end of file during message: after 2 bytes of its length",
        ),
        (
            b"GET / HTTP/1.0\r\n\r\n",
            "bad message length: 1195725856 bytes exceed the limit of 256",
        ),
        (
            b"\xff\xff\xff\xfe....",
            "bad message length: -2, where 0 to 256 bytes may be announced",
        ),
        (
            b"\0\0\0\x10................",
            "the peer wants HMAC-MD5, which isn't allowed here",
        ),
        (
            b"\0\0\0\x28{sha256}................................",
            "digest received was wrong",
        ),
    ] {
        let mut bad = UnixStream::connect(path(address)).unwrap();
        bad.write_all(said).unwrap();
        bad.shutdown(Shutdown::Write).unwrap();
        assert_eq!(admit(&listener).unwrap_err().to_string(), why);
    }
    thread::scope(|scope| {
        let other = scope.spawn(|| client(address, b"another key"));
        let wrong = admit(&listener).unwrap_err();
        assert_eq!(wrong, Failure::Auth(AuthError::WrongDigest));
        let rejected = other.join().unwrap().unwrap_err();
        assert_eq!(rejected, Failure::Auth(AuthError::Rejected));
    });
}

#[test]
fn any_number_of_threads_accept() {
    let _alone = alone();
    const EACH: usize = 20;
    let listener = Listener::bind(&Address::Inet((Ipv4Addr::LOCALHOST, 0).into()), 128).unwrap();
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| (0..EACH).for_each(|_| drop(admit(&listener).unwrap())));
            scope.spawn(|| {
                (0..EACH).for_each(|_| drop(client(listener.address(), KEY).unwrap()));
            });
        }
    });
}

#[test]
fn a_thread_that_is_done_leaves_its_guests_to_one_that_waits() {
    let _alone = alone();
    let listener = Listener::bind(&Address::Inet((Ipv4Addr::LOCALHOST, 0).into()), 128).unwrap();
    for _ in 0..300 {
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| drop(admit(&listener).unwrap()));
                scope.spawn(|| drop(client(listener.address(), KEY).unwrap()));
            }
        });
    }
}

#[test]
fn a_child_that_is_forked_while_others_accept_can_accept() {
    let _alone = alone();
    let folder = Folder::new("fork");
    let listener = Listener::bind(&folder.file(), 8).unwrap();
    let look = || {
        let nobody = listener.accept_known(KEY, terms(Role::Listener), Deadline::now());
        assert!(nobody.unwrap().is_none());
    };
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    look();
                }
            });
        }
        // In the child those threads are gone, wherever they were.
        let all_went_on = (0..300).all(|_| fork(look).wait() == 0);
        is_over.store(true, Ordering::Relaxed);
        assert!(all_went_on);
    });
}

/// Until no descriptor is left.
fn use_up() -> Vec<OwnedFd> {
    // SAFETY: a valid structure for the call to read.
    let limited = unsafe {
        let limit = libc::rlimit {
            rlim_cur: 64,
            rlim_max: 64,
        };
        libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit)
    };
    assert_eq!(limited, 0);
    std::iter::from_fn(|| fs::File::open("/dev/null").ok().map(OwnedFd::from)).collect()
}

#[test]
fn without_descriptors_a_listener_waits_then_says_so_and_goes_on() {
    let _alone = alone();
    let folder = Folder::new("limit");
    let address = folder.file();
    let program = || {
        let listener = Listener::bind(&address, 8).unwrap();
        let silent = connect(&address);
        let known = |deadline| listener.accept_known(KEY, terms(Role::Listener), deadline);
        assert!(known(Deadline::after(SHORT)).unwrap().is_none());
        let waiting = [connect(&address), connect(&address)];
        let mut used = use_up();
        // A guest that stays silent gives its descriptor for the next one, which is as silent.
        let begin = Instant::now();
        let refused = known(NEVER).unwrap().unwrap().unwrap_err();
        assert_eq!(refused.failure, Failure::Late);
        assert!(begin.elapsed() >= Duration::from_millis(900));
        drop((silent, waiting));
        for _ in 0..2 {
            assert!(known(NEVER).unwrap().unwrap().is_err());
        }
        // Nobody can give anything.
        used.extend(use_up());
        used.pop();
        let waiting = connect(&address);
        for accept in [&|| known(NEVER).map(|_| ()) as _, &|| {
            listener.accept(NEVER).map(|_| ())
        }] as [&dyn Fn() -> procession_core::Result<()>; 2]
        {
            let begin = Instant::now();
            let short = accept().unwrap_err();
            assert_eq!(
                short.to_string(),
                "accept: Too many open files (os error 24)"
            );
            assert!(begin.elapsed() >= Duration::from_millis(900));
        }
        used.pop();
        assert!(listener.accept(NEVER).unwrap().is_some());
        drop(waiting);
    };
    fork(program).join();
}
