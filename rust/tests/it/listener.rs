//! Listeners and clients, and peers that mean them no good.

use crate::watchdog::{until, watch};
use procession::{
    AcceptError, Address, Client, Connection, Error, ErrorKind, Listener, Process, RecvError, wait,
    wait_timeout,
};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

const SHORT: Duration = Duration::from_millis(40);
const KEY: &str = "a key";

/// A folder of a test's own, which goes with it.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("procession-{name}-{}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

/// One address of each family; IPv6's only where this machine has it.
fn addresses(folder: &Folder) -> Vec<Address> {
    let long = folder.0.join("x".repeat(120));
    std::fs::create_dir(&long).unwrap();
    let mut addresses = vec![
        Address::from((Ipv4Addr::LOCALHOST, 0)),
        Address::from(folder.0.join("short")),
        Address::from(long.join("y".repeat(40))),
        Address::Abstract(format!("procession-test-{}", std::process::id()).into_bytes()),
    ];
    if TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).is_ok() {
        addresses.push(Address::from((Ipv6Addr::LOCALHOST, 0)));
    }
    addresses
}

fn listener() -> Listener {
    let builder = Listener::builder().key(KEY);
    builder.bind((Ipv4Addr::LOCALHOST, 0)).unwrap()
}

#[test]
fn processes_meet_at_addresses_of_all_families() {
    let _watchdog = watch();
    let folder = Folder::new("families");
    for address in addresses(&folder) {
        for key in [None, Some(KEY)] {
            let builder = Listener::builder();
            let builder = match key {
                Some(key) => builder.key(key),
                None => builder,
            };
            let listener = builder.bind(&address).unwrap();
            let serve = |(address, key): (Address, Option<String>)| {
                let client = Client::to(&address);
                let client = match key {
                    Some(key) => client.key(key),
                    None => client,
                };
                let connection: Connection<String, usize> = client.connect().unwrap();
                assert_eq!(connection.peer(), Some(&address));
                while let Ok(number) = connection.recv() {
                    connection.send(&"z".repeat(number)).unwrap();
                }
            };
            let argument = (listener.address().clone(), key.map(str::to_owned));
            let child = Process::spawn(serve, argument).unwrap();
            let connection: Connection<usize, String> = listener.accept().unwrap();
            assert_eq!(
                connection.peer().is_some(),
                matches!(address, Address::Inet(_))
            );
            for length in [0, 3, 500_000] {
                connection.send(&length).unwrap();
                assert_eq!(connection.recv().unwrap().len(), length);
            }
            drop(connection);
            child.join().unwrap();
            if let Address::Path(path) = &address {
                assert!(path.exists());
                let error = Listener::bind(&address).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Os);
                assert!(error.to_string().contains(&address.to_string()), "{error}");
                drop(listener);
                assert!(!path.exists());
            }
        }
    }
}

#[test]
fn a_wrong_key_is_found_by_both_and_the_next_one_comes_in() {
    let _watchdog = watch();
    let listener = listener();
    std::thread::scope(|scope| {
        let address = listener.address();
        let wrong = scope.spawn(move || Client::to(address).key("no key").connect::<[u8], [u8]>());
        let refused = listener.accept::<[u8], [u8]>().unwrap_err();
        let AcceptError::Refused { peer, error } = &refused else {
            panic!("{refused}");
        };
        assert!(matches!(peer, Some(Address::Inet(peer)) if peer.ip().is_loopback()));
        assert_eq!(error.kind(), ErrorKind::Authentication);
        assert_eq!(
            error.to_string(),
            "accept a connection: digest received was wrong"
        );
        assert_eq!(Error::from(refused).kind(), ErrorKind::Authentication);
        let error = wrong.join().unwrap().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Authentication);
        let text = format!("connect to {address}: digest sent was rejected");
        assert_eq!(error.to_string(), text);
        let right = scope.spawn(move || Client::to(address).key(KEY).connect::<u8, ()>().unwrap());
        let connection = listener.accept::<(), u8>().unwrap();
        right.join().unwrap().send(&1).unwrap();
        assert_eq!(connection.recv().unwrap(), 1);
    });
    for wrong in [
        Listener::builder()
            .key("")
            .bind((Ipv4Addr::LOCALHOST, 0))
            .map(drop),
        Client::to(listener.address())
            .key("")
            .connect::<(), ()>()
            .map(drop),
    ] {
        assert_eq!(wrong.unwrap_err().kind(), ErrorKind::Misuse);
    }
}

#[test]
fn strangers_cost_nobody_anything() {
    let _watchdog = watch();
    let listener = listener();
    let Address::Inet(address) = *listener.address() else {
        unreachable!()
    };
    // Silent, gone, and full of nonsense.
    let silent: Vec<_> = (0..70)
        .map(|_| TcpStream::connect(address).unwrap())
        .collect();
    drop(TcpStream::connect(address).unwrap());
    let frames = [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"\0\0\0\x05hello",
        b"\xff\xff\xff\xfe",
    ];
    let garbage = frames.map(|bytes| {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(bytes).unwrap();
        stream
    });
    let (mut refused, mut kinds) = (0, Vec::new());
    let client = Client::to(address).key(KEY);
    let known = std::thread::spawn(move || client.connect::<u8, [u8]>().unwrap().send(&5).unwrap());
    let connection = loop {
        match listener.accept::<[u8], u8>() {
            Ok(connection) => break connection,
            Err(AcceptError::Refused { error, .. }) => {
                refused += 1;
                kinds.push(error.kind());
            }
            Err(error) => panic!("{error}"),
        }
    };
    known.join().unwrap();
    assert_eq!(connection.recv().unwrap(), 5);
    // The four that said something or went, and of the others as many as there is no room for.
    for kind in [ErrorKind::Closed, ErrorKind::TooLong, ErrorKind::Malformed] {
        assert!(kinds.contains(&kind), "{kinds:?}");
    }
    assert!(refused >= 4, "{refused}");
    drop((silent, garbage));
}

/// A listener without the key, which is connected to twice, and has its second victim answer the first one's challenge.
#[test]
fn a_challenge_that_is_sent_back_is_not_answered() {
    let _watchdog = watch();
    let folder = Folder::new("reflection");
    let path = folder.0.join("false");
    let listener = UnixListener::bind(&path).unwrap();
    let victim = || {
        let client = Client::to(path.clone()).key(KEY).allow_md5(true);
        std::thread::spawn(move || client.connect::<[u8], [u8]>().map(drop))
    };
    let accept = || Connection::<[u8]>::from(OwnedFd::from(listener.accept().unwrap().0));
    let (first, a) = (victim(), accept());
    let (second, b) = (victim(), accept());
    a.send_bytes(&[&b"#CHALLENGE#{sha256}"[..], &[7; 40]].concat())
        .unwrap();
    // Whatever the answer is, it is right.
    a.recv_bytes().unwrap();
    a.send_bytes(b"#WELCOME#").unwrap();
    let challenge = a.recv_bytes().unwrap();
    assert!(challenge.starts_with(b"#CHALLENGE#"));
    b.send_bytes(&challenge).unwrap();
    let nothing = b.recv_bytes().unwrap_err();
    assert!(matches!(nothing, RecvError::Closed), "{nothing}");
    let error = second.join().unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Authentication);
    assert!(
        error
            .to_string()
            .ends_with("the peer sent back a challenge of our own"),
        "{error}"
    );
    drop((a, b));
    let error = first.join().unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Closed);
}

#[test]
fn waits_for_others_end_with_their_time() {
    let _watchdog = watch();
    let listener = listener();
    let begin = Instant::now();
    let nobody = listener.accept_timeout::<(), ()>(SHORT).unwrap_err();
    assert!(matches!(nobody, AcceptError::Nobody));
    assert_eq!(Error::from(nobody).kind(), ErrorKind::WouldWait);
    assert!(begin.elapsed() >= SHORT);
    // Nobody accepts; and a listener that says nothing.
    let dumb = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let dumb = Address::from(dumb.local_addr().unwrap());
    for address in [listener.address(), &dumb] {
        let begin = Instant::now();
        let client = Client::to(address).key(KEY).timeout(SHORT);
        let error = client.connect::<(), ()>().unwrap_err();
        if *address != dumb || error.kind() != ErrorKind::Os {
            assert_eq!(error.kind(), ErrorKind::Authentication, "{error}");
            assert!(begin.elapsed() >= SHORT);
        }
    }
    // A backlog that is full.
    let folder = Folder::new("backlog");
    let full = Listener::builder()
        .backlog(0)
        .bind(folder.0.join("full"))
        .unwrap();
    let client = Client::to(full.address()).timeout(SHORT);
    let mut inside = Vec::new();
    let error = loop {
        match client.connect::<(), ()>() {
            Ok(connection) => inside.push(connection),
            Err(error) => break error,
        }
    };
    assert_eq!(error.kind(), ErrorKind::WouldWait, "{error}");
    let nobody = Client::to(folder.0.join("nowhere")).connect::<(), ()>();
    assert_eq!(nobody.unwrap_err().kind(), ErrorKind::Os);
}

#[test]
fn a_message_over_the_limit_is_refused_before_there_is_memory_for_it() {
    let _watchdog = watch();
    let listener = Listener::builder()
        .limit(1000)
        .bind((Ipv4Addr::LOCALHOST, 0))
        .unwrap();
    let client = Client::to(listener.address()).limit(2000);
    let one = client.connect::<[u8], [u8]>().unwrap();
    let other: Connection<[u8]> = listener.accept().unwrap();
    one.send_bytes(&[1; 1000]).unwrap();
    assert_eq!(other.recv_bytes().unwrap().len(), 1000);
    other.send_bytes(&[1; 2000]).unwrap();
    assert_eq!(one.recv_bytes().unwrap().len(), 2000);
    one.send_bytes(&[1; 1001]).unwrap();
    for _ in 0..2 {
        let error = Error::from(other.recv_bytes().unwrap_err());
        assert_eq!(error.kind(), ErrorKind::TooLong);
        assert!(
            error
                .to_string()
                .ends_with("1001 bytes exceed the limit of 1000"),
            "{error}"
        );
    }
    // The other direction, and the next connection, are as they were.
    other.send_bytes(b"still").unwrap();
    assert_eq!(one.recv_bytes().unwrap(), b"still");
    let one = client.connect::<[u8], [u8]>().unwrap();
    one.send_bytes(b"again").unwrap();
    let next: Connection<[u8]> = listener.accept().unwrap();
    assert_eq!(next.recv_bytes().unwrap(), b"again");
}

#[test]
fn what_was_accepted_can_be_given_to_a_process() {
    let _watchdog = watch();
    let listener = listener();
    let client = Client::to(listener.address()).key(KEY);
    let known = std::thread::spawn(move || client.connect::<u32, u32>().unwrap());
    let connection: Connection<u32> = listener.accept().unwrap();
    let known = known.join().unwrap();
    let double = |connection: Connection<u32>| {
        while let Ok(number) = connection.recv() {
            connection.send(&(number * 2)).unwrap();
        }
    };
    let child = Process::spawn(double, connection).unwrap();
    known.send(&21).unwrap();
    assert_eq!(known.recv().unwrap(), 42);
    child.kill().unwrap();
    assert!(matches!(known.recv(), Err(RecvError::Closed)));
    child.join().unwrap_err();
}

#[test]
fn one_waits_for_a_listener_among_others() {
    let _watchdog = watch();
    let listener = listener();
    let (one, mut other) = UnixStream::pair().unwrap();
    let objects: [&dyn AsFd; 2] = [&listener, &one];
    assert_eq!(wait_timeout(objects, SHORT).unwrap(), [0usize; 0]);
    let client = Client::to(listener.address()).key(KEY);
    let known = std::thread::spawn(move || client.connect::<(), ()>().unwrap());
    assert_eq!(wait(objects).unwrap(), [0]);
    let mut connection = None;
    until("the handshake", || {
        connection = listener.accept_timeout::<(), ()>(SHORT).ok();
        connection.is_some()
    });
    other.write_all(b"x").unwrap();
    assert_eq!(wait(objects).unwrap(), [1]);
    known.join().unwrap().send(&()).unwrap();
    connection.unwrap().recv().unwrap();
    let mut byte = [0];
    (&one).read_exact(&mut byte).unwrap();
}
