//! Fork servers: both ends, what dies when, and hostile bytes.

use crate::child::{self, Random, alone, fork, until, until_empty};
use procession_core::process::{Inherited, PASSED_MAX, Server};
use procession_core::{
    Acquired, Arena, Child, ChildSlot, Deadline, Error, ExitStatus, ForkServer, Lock, ObjectName,
    Put, Queue, die_with,
};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

/// What a child does: the first byte of the request's body. The rest is the command's.
mod command {
    pub(super) const EXIT: u8 = 0;
    pub(super) const KILL_ITSELF: u8 = 1;
    /// Waits until its first descriptor can be read.
    pub(super) const WAIT: u8 = 2;
    /// The same, and dies with the requester.
    pub(super) const WAIT_AS_DAEMON: u8 = 3;
    /// Takes a lock, puts a message into a queue, both named, and leaves.
    pub(super) const USE: u8 = 4;
    /// Asks for a grandchild, and exits as that does.
    pub(super) const ASK: u8 = 5;
}

/// A server that is a child of this process, and the way to it.
struct Scene {
    arena: Arena,
    server: ForkServer,
    process: child::Child,
}

impl Scene {
    fn new() -> Self {
        Self::with(|_| {})
    }

    /// With something that the server does before each of its turns.
    fn with(before: fn(u64)) -> Self {
        let arena = Arena::create().unwrap();
        let (server, end) = ForkServer::new().unwrap();
        let way = server.as_fd().as_raw_fd();
        let process = fork(|| {
            close(way);
            serve(&arena, end, before);
        });
        Self {
            arena,
            server,
            process,
        }
    }

    fn ask(&self, slot: &ChildSlot, body: &[u8], passed: &[BorrowedFd<'_>]) -> Child {
        ask(&self.server, slot, body, passed).unwrap()
    }

    /// A child that waits until what is returned with it is closed.
    fn waiting(&self, slot: &ChildSlot, command: u8) -> (Child, std::io::PipeWriter) {
        let (reader, writer) = std::io::pipe().unwrap();
        (self.ask(slot, &[command], &[reader.as_fd()]), writer)
    }

    /// Ends the server, by closing the only way to it.
    fn close(self) {
        let Self {
            arena,
            server,
            process,
        } = self;
        drop(server);
        process.join();
        until_empty(&arena);
    }
}

fn close(descriptor: RawFd) {
    // SAFETY: a forked child's copy, whose owner it never drops.
    drop(unsafe { OwnedFd::from_raw_fd(descriptor) });
}

/// The server's whole life.
fn serve(arena: &Arena, end: OwnedFd, before: fn(u64)) {
    let mut server = Server::new(end).unwrap();
    for turn in 0.. {
        before(turn);
        let next = match server.next_fork(arena, true) {
            Ok(Some(next)) => next,
            Ok(None) => return,
            Err(Error::Interrupted) => continue,
            Err(error) => panic!("{error}"),
        };
        let placeless = arena.placeless();
        // SAFETY: this process has one thread.
        let pid = unsafe { libc::fork() };
        drop(placeless);
        match pid {
            0 => {
                #[cfg(crash_points)]
                procession_core::sys::refuse::disarm();
                let waiting = server.become_child(next);
                let work = std::panic::AssertUnwindSafe(|| {
                    let inherited = waiting.request(arena).unwrap();
                    inherited.map_or(0, |inherited| obey(arena, inherited))
                });
                let code = std::panic::catch_unwind(work).unwrap_or(101);
                // SAFETY: ends the process.
                unsafe { libc::_exit(code) }
            }
            -1 => server.could_not(next, &no_processes()),
            pid => server.forked(next, pid.cast_unsigned()),
        }
    }
}

fn no_processes() -> Error {
    Error::Os {
        call: "fork",
        errno: libc::EAGAIN,
    }
}

fn obey(arena: &Arena, inherited: Inherited) -> i32 {
    let (&command, rest) = inherited.body.split_first().unwrap();
    match command {
        command::EXIT => rest[0].into(),
        command::KILL_ITSELF => {
            // SAFETY: to this process.
            unsafe { libc::raise(rest[0].into()) };
            1
        }
        command::WAIT | command::WAIT_AS_DAEMON => {
            if command == command::WAIT_AS_DAEMON {
                die_with(inherited.requester).unwrap();
            }
            let mut pipe = std::fs::File::from(inherited.passed.into_iter().next().unwrap());
            std::io::Read::read_to_end(&mut pipe, &mut Vec::new()).unwrap();
            7
        }
        command::USE => {
            let number = |at: usize| u64::from_le_bytes(rest[at..at + 8].try_into().unwrap());
            let name = |at| ObjectName {
                offset: number(at),
                serial: number(at + 8),
            };
            let lock = Lock::open(arena, name(0)).unwrap();
            let queue = Queue::open(arena, name(16)).unwrap();
            assert_eq!(lock.acquire(Deadline::NEVER), Ok(Acquired::Clean));
            let put = queue.put(0, &[b"from the child"], Deadline::NEVER);
            assert_eq!(put, Ok(Put::Stored));
            lock.release().unwrap();
            arena.leave();
            0
        }
        command::ASK => {
            let slot = arena.reserve().unwrap();
            let child = ask(&inherited.server, &slot, &[command::EXIT, 9], &[]).unwrap();
            end(&child).number()
        }
        other => panic!("no command {other}"),
    }
}

fn ask(
    server: &ForkServer,
    slot: &ChildSlot,
    body: &[u8],
    passed: &[BorrowedFd<'_>],
) -> procession_core::Result<Child> {
    let never = Deadline::NEVER;
    let mut starting = server.start(slot, body, passed, never)?.unwrap();
    starting.wait(never).map(Option::unwrap)
}

fn end(child: &Child) -> ExitStatus {
    let status = child.wait(Deadline::after(Duration::from_secs(60)));
    status.unwrap().expect("the child ends within a minute")
}

fn names(lock: &Lock, queue: &Queue) -> Vec<u8> {
    let mut body = vec![command::USE];
    for name in [lock.name(), queue.name()] {
        body.extend(name.offset.to_le_bytes());
        body.extend(name.serial.to_le_bytes());
    }
    body
}

/// Descriptors of a process.
fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .count()
}

#[test]
fn a_served_child_ends_as_exactly_as_an_own_one() {
    let _alone = alone();
    let scene = Scene::new();
    let slot = scene.arena.reserve().unwrap();
    assert_eq!(
        end(&scene.ask(&slot, &[command::EXIT, 1], &[])),
        ExitStatus::Code(1)
    );
    let before = descriptors(scene.process.pid());
    for (body, expected) in [
        ([command::EXIT, 0], ExitStatus::Code(0)),
        ([command::EXIT, 77], ExitStatus::Code(77)),
        ([command::KILL_ITSELF, 9], ExitStatus::Signal(9)),
        ([command::KILL_ITSELF, 15], ExitStatus::Signal(15)),
    ] {
        let slot = scene.arena.reserve().unwrap();
        let child = scene.ask(&slot, &body, &[]);
        assert_eq!(end(&child), expected);
        assert_eq!(end(&child), expected, "once more");
        child.signal(9).unwrap();
    }
    let slot = scene.arena.reserve().unwrap();
    let (child, writer) = scene.waiting(&slot, command::WAIT);
    let begin = Instant::now();
    let timeout = Duration::from_millis(30);
    assert_eq!(child.wait(Deadline::after(timeout)), Ok(None));
    assert!(begin.elapsed() >= timeout);
    drop(writer);
    assert_eq!(end(&child), ExitStatus::Code(7));
    drop((child, slot));
    until("the server to close what it had for children", || {
        descriptors(scene.process.pid()) <= before
    });
    scene.close();
}

#[test]
fn what_is_kept_for_a_child_is_its_own_from_the_first_instant() {
    let _alone = alone();
    let scene = Scene::new();
    let answers = Queue::new(&scene.arena, None).unwrap();
    for round in 0..100 {
        let slot = scene.arena.reserve().unwrap();
        let lock = Lock::new(&scene.arena).unwrap();
        let body = names(&lock, &answers);
        slot.give(lock.name()).unwrap();
        slot.give(answers.name()).unwrap();
        drop(lock);
        let child = scene.ask(&slot, &body, &[]);
        if round % 3 == 0 {
            scene.arena.reap().unwrap();
        }
        assert_eq!(end(&child), ExitStatus::Code(0));
        let got = answers.get(Deadline::now()).unwrap().unwrap();
        assert_eq!(got.bytes, b"from the child");
    }
    drop(answers);
    scene.close();
}

/// What the server has open when it forks, its children hold too.
#[test]
fn a_child_inherits_what_the_server_holds() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let queue = Queue::new(&arena, None).unwrap();
    let (server, way) = ForkServer::new().unwrap();
    let own = server.as_fd().as_raw_fd();
    let process = fork(|| {
        close(own);
        // Made here, so that nobody else has it.
        let lock = Lock::new(&arena).unwrap();
        let bytes = names(&lock, &queue);
        queue.put(0, &[&bytes], Deadline::NEVER).unwrap();
        serve(&arena, way, |_| {});
        drop(lock);
    });
    let body = queue.get(Deadline::NEVER).unwrap().unwrap().bytes;
    let slot = arena.reserve().unwrap();
    slot.give(queue.name()).unwrap();
    let child = ask(&server, &slot, &body, &[]).unwrap();
    assert_eq!(end(&child), ExitStatus::Code(0));
    drop((slot, server, queue));
    process.join();
    until_empty(&arena);
}

#[test]
fn a_grandchild_comes_from_the_same_server() {
    let _alone = alone();
    let scene = Scene::new();
    let slot = scene.arena.reserve().unwrap();
    let child = scene.ask(&slot, &[command::ASK], &[]);
    assert_eq!(end(&child), ExitStatus::Code(9));
    drop(slot);
    scene.close();
}

/// A server that is killed takes no child with it, and the status of each is as exact as before.
#[test]
fn children_outlive_their_server() {
    let _alone = alone();
    let inherits = |set: libc::c_ulong| {
        // SAFETY: sets a flag of this process.
        assert_eq!(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, set) }, 0);
    };
    inherits(1);
    let scene = Scene::new();
    let slots = [(); 3].map(|()| scene.arena.reserve().unwrap());
    let (waiting, writer) = scene.waiting(&slots[0], command::WAIT);
    let (killed, _held) = scene.waiting(&slots[1], command::WAIT);
    scene.process.signal(libc::SIGKILL);
    until("the server to die", || !scene.server.is_alive());
    assert_eq!(waiting.wait(Deadline::now()), Ok(None));
    killed.signal(15).unwrap();
    assert_eq!(end(&killed), ExitStatus::Signal(15));
    drop(writer);
    assert_eq!(end(&waiting), ExitStatus::Code(7));
    let refused = ask(&scene.server, &slots[2], &[command::EXIT, 0], &[]);
    assert!(matches!(refused, Err(Error::Closed { .. })));
    inherits(0);
    drop((slots, killed, waiting));
    let arena = scene.arena.clone();
    assert_eq!(scene.process.wait(), -libc::SIGKILL);
    until_empty(&arena);
}

/// The child that a server has forked ahead.
fn waiting_child(scene: &Scene) -> u32 {
    let server = scene.process.pid();
    until("a child to be forked ahead", || {
        let children = children(server);
        children.len() == 1 && state(children[0]) == Some('S')
    });
    children(server)[0]
}

/// Stops the server where it sleeps, with a child ahead beside the `served`: it holds no lock that the next calls want.
fn stop(scene: &Scene, served: usize) {
    let server = &scene.process;
    until("the server to have a child ahead, and sleep", || {
        children(server.pid()).len() > served && state(server.pid()) == Some('S')
    });
    server.signal(libc::SIGSTOP);
    assert!(server.wait_stopped());
}

fn signal(pid: u32, signal: i32) {
    // SAFETY: to a process of which the caller knows that nobody has waited for it.
    assert_eq!(unsafe { libc::kill(pid.cast_signed(), signal) }, 0);
}

/// It has no place in the tree, is what the next start gets, and there is never more than one.
#[test]
fn a_child_waits_to_be_asked_for() {
    let _alone = alone();
    let scene = Scene::new();
    for code in 1..5 {
        let ahead = waiting_child(&scene);
        // This one and the server.
        scene.arena.reap().unwrap();
        assert_eq!(scene.arena.census().unwrap().processes, 2);
        let slot = scene.arena.reserve().unwrap();
        let child = scene.ask(&slot, &[command::EXIT, code], &[]);
        assert_eq!(child.pid(), ahead);
        assert_eq!(end(&child), ExitStatus::Code(code.into()));
    }
    let ahead = waiting_child(&scene);
    scene.close();
    until("the child to go with its server", || !is_there(ahead));
}

/// Whatever becomes of the child that waits, nobody who asks later hears of it.
#[test]
fn a_child_that_waits_may_be_killed_stopped_or_interrupted() {
    let _alone = alone();
    let scene = Scene::new();
    for (number, code) in [
        (libc::SIGKILL, 1),
        (libc::SIGSTOP, 2),
        (libc::SIGINT, 3),
        (libc::SIGTERM, 4),
    ] {
        let slot = scene.arena.reserve().unwrap();
        let child = scene.ask(&slot, &[command::EXIT, 0], &[]);
        assert_eq!(end(&child), ExitStatus::Code(0));
        drop(slot);
        let ahead = waiting_child(&scene);
        signal(ahead, number);
        until("the signal to have done its work", || {
            matches!(state(ahead), Some('T' | 'Z') | None)
        });
        let slot = scene.arena.reserve().unwrap();
        let child = scene.ask(&slot, &[command::EXIT, code], &[]);
        assert_ne!(child.pid(), ahead);
        assert_eq!(end(&child), ExitStatus::Code(code.into()), "{number}");
        until("nothing to be left of it", || !is_there(ahead));
    }
    scene.close();
}

/// It is killed at any instant of a start: who asks is told that there is none, and the next who asks has one; or it is a child
/// that was killed.
#[test]
fn a_child_may_be_killed_while_it_is_given_its_request() {
    let _alone = alone();
    let scene = Scene::new();
    let mut random = Random::seeded(1);
    for round in 0..100 {
        let ahead = waiting_child(&scene);
        let pidfd = pidfd_of(ahead);
        let delay = Duration::from_micros(random.below(300));
        let killer = std::thread::spawn(move || {
            std::thread::sleep(delay);
            // SAFETY: no pointer but that to no further information.
            unsafe {
                libc::syscall(
                    libc::SYS_pidfd_send_signal,
                    pidfd.as_raw_fd(),
                    libc::SIGKILL,
                    std::ptr::null::<u8>(),
                    0,
                )
            }
        });
        let slot = scene.arena.reserve().unwrap();
        match ask(&scene.server, &slot, &[command::EXIT, 5], &[]) {
            Ok(child) => {
                let status = end(&child);
                let killed = child.pid() == ahead && status == ExitStatus::Signal(libc::SIGKILL);
                assert!(killed || status == ExitStatus::Code(5), "{round}: {status}");
            }
            Err(error) => assert!(matches!(error, Error::Closed { .. }), "{round}: {error}"),
        }
        killer.join().unwrap();
        drop(slot);
        let slot = scene.arena.reserve().unwrap();
        let child = scene.ask(&slot, &[command::EXIT, 6], &[]);
        assert_eq!(end(&child), ExitStatus::Code(6), "{round}");
    }
    scene.close();
}

/// The child that waits ends with its server, however that ends, and nothing of it is left.
#[test]
fn a_child_that_waits_ends_with_its_server() {
    let _alone = alone();
    let scene = Scene::new();
    let ahead = waiting_child(&scene);
    scene.process.signal(libc::SIGKILL);
    let Scene {
        arena,
        server,
        process,
    } = scene;
    assert_eq!(process.wait(), -libc::SIGKILL);
    until("the child to go", || !is_there(ahead));
    assert!(!server.is_alive());
    until_empty(&arena);
}

/// A fork that nobody has asked for is nobody's error; one that somebody waits for is theirs.
#[test]
fn a_fork_that_fails_is_told_to_who_asks() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let (way, end_of_server) = ForkServer::new().unwrap();
    let mut server = Server::new(end_of_server).unwrap();
    let slot = arena.reserve().unwrap();
    let mut starting = way.start(&slot, &[], &[], Deadline::NEVER).unwrap();
    let starting = starting.as_mut().unwrap();
    let early = server.next_fork(&arena, true).unwrap().unwrap();
    server.could_not(early, &no_processes());
    assert_eq!(
        starting.wait(Deadline::now()).map(|it| it.is_none()),
        Ok(true)
    );
    // Asked for by now, and not before.
    let asked = server.next_fork(&arena, true).unwrap().unwrap();
    server.could_not(asked, &no_processes());
    let refused = starting.wait(Deadline::NEVER).unwrap_err();
    assert_eq!(refused, no_processes());
}

#[test]
fn a_stopped_server_keeps_nobody_beyond_the_deadline() {
    let _alone = alone();
    let scene = Scene::new();
    let slots = [(); 2].map(|()| scene.arena.reserve().unwrap());
    let (child, writer) = scene.waiting(&slots[0], command::WAIT);
    stop(&scene, 1);
    drop(writer);
    // It has ended, which the pidfd tells at once; how, the server will tell.
    let short = || Deadline::after(Duration::from_millis(20));
    for _ in 0..3 {
        assert_eq!(child.wait(short()), Ok(None));
    }
    let body = [command::EXIT, 5];
    let mut starting = scene.server.start(&slots[1], &body, &[], short());
    let starting = starting.as_mut().unwrap().as_mut().unwrap();
    assert!(starting.wait(short()).unwrap().is_none());
    scene.process.signal(libc::SIGCONT);
    assert_eq!(end(&child), ExitStatus::Code(7));
    let other = starting.wait(Deadline::NEVER).unwrap().unwrap();
    assert_eq!(end(&other), ExitStatus::Code(5));
    drop((slots, child, other));
    scene.close();
}

/// Requests that a stopped server doesn't take fill a socket; then a start waits, and no longer than it was told.
#[test]
fn a_start_waits_for_room() {
    let _alone = alone();
    let scene = Scene::new();
    stop(&scene, 0);
    let mut slots = Vec::new();
    let mut starting = Vec::new();
    loop {
        let slot = scene.arena.reserve().unwrap();
        let short = Deadline::after(Duration::from_millis(20));
        let body = [&[command::EXIT, 0][..], &[0; 8_000]].concat();
        match scene.server.start(&slot, &body, &[], short).unwrap() {
            Some(begun) => starting.push(begun),
            None => break,
        }
        slots.push(slot);
    }
    assert!(!starting.is_empty());
    scene.process.signal(libc::SIGCONT);
    for mut begun in starting {
        let child = begun.wait(Deadline::NEVER).unwrap().unwrap();
        assert_eq!(end(&child), ExitStatus::Code(0));
    }
    drop(slots);
    scene.close();
}

/// Who asks is killed: what dies with it dies, what doesn't lives on, and the server ends with the last of them.
#[test]
fn a_server_and_daemons_end_with_the_tree() {
    let _alone = alone();
    let scene = Scene::new();
    let Scene {
        arena,
        server,
        process,
    } = scene;
    let pids = Queue::new(&arena, None).unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    let requester = fork(|| {
        let slots = [(); 2].map(|()| arena.reserve().unwrap());
        let commands = [command::WAIT, command::WAIT_AS_DAEMON];
        let children = [0, 1].map(|index| {
            let body = [commands[index]];
            ask(&server, &slots[index], &body, &[reader.as_fd()]).unwrap()
        });
        for child in &children {
            let pid = child.pid().to_le_bytes();
            pids.put(0, &[&pid], Deadline::NEVER).unwrap();
        }
        loop {
            std::thread::park();
        }
    });
    drop((server, reader));
    let [plain, daemon] = [(); 2].map(|()| {
        let message = pids.get(Deadline::NEVER).unwrap().unwrap();
        u32::from_le_bytes(message.bytes.try_into().unwrap())
    });
    requester.signal(libc::SIGKILL);
    assert_eq!(requester.wait(), -libc::SIGKILL);
    until("the daemon to die", || !is_there(daemon));
    assert!(is_there(plain));
    drop(writer);
    process.join();
    until("the last child to go", || !is_there(plain));
    drop(pids);
    until_empty(&arena);
}

/// The state of a process, as /proc has it.
fn state(pid: u32) -> Option<char> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    text.rsplit_once(") ")?.1.chars().next()
}

/// The children of a process that nobody has waited for.
fn children(parent: u32) -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").unwrap();
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let is_child = |pid: &u32| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let rest = text.rsplit_once(") ").map(|(_, rest)| rest.to_owned());
        rest.is_some_and(|rest| rest[2..].starts_with(&format!("{parent} ")))
    };
    names
        .filter_map(|name| name.parse().ok())
        .filter(is_child)
        .collect()
}

/// Whether a process is there that nobody has waited for yet.
fn is_there(pid: u32) -> bool {
    std::path::Path::new(&format!("/proc/{pid}")).exists()
}

#[test]
fn more_than_can_go_is_refused_by_name() {
    let _alone = alone();
    let scene = Scene::new();
    let slot = scene.arena.reserve().unwrap();
    let (reader, _writer) = std::io::pipe().unwrap();
    let many = vec![reader.as_fd(); PASSED_MAX + 1];
    let refused = ask(&scene.server, &slot, &[command::WAIT], &many);
    let text = refused.unwrap_err().to_string();
    assert!(
        text.contains("descriptors") && text.contains("250"),
        "{text}"
    );
    let refused = ask(&scene.server, &slot, &[0; 20_000], &[]);
    assert!(matches!(refused, Err(Error::TooLong { limit: 16_384, .. })));
    drop(_writer);
    let child = scene.ask(&slot, &[command::WAIT], &many[1..]);
    assert_eq!(end(&child), ExitStatus::Code(7));
    drop((slot, child));
    scene.close();
}

/// The server has no room for the descriptors: it says so, and serves the next.
#[test]
fn a_server_without_room_says_so() {
    let _alone = alone();
    let scene = Scene::new();
    let pid = scene.process.pid();
    let room = descriptors(pid) as u64 + 10;
    let limit = |soft: u64| {
        let limit = libc::rlimit {
            rlim_cur: soft,
            rlim_max: 4096,
        };
        let pid = pid.cast_signed();
        // SAFETY: reads one limit, and wants no old one.
        let set = unsafe {
            libc::prlimit(
                pid,
                libc::RLIMIT_NOFILE,
                &raw const limit,
                std::ptr::null_mut(),
            )
        };
        assert_eq!(set, 0);
    };
    limit(room);
    let slot = scene.arena.reserve().unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    let many = vec![reader.as_fd(); 30];
    let refused = ask(&scene.server, &slot, &[command::WAIT], &many);
    let expected = Error::Os {
        call: "recvmsg",
        errno: libc::EMFILE,
    };
    assert_eq!(refused.unwrap_err(), expected);
    limit(1024);
    // That one has the limit with which it was forked.
    let ahead = waiting_child(&scene);
    signal(ahead, libc::SIGKILL);
    until("it to go", || !is_there(ahead));
    let child = scene.ask(&slot, &[command::WAIT], &many);
    drop(writer);
    assert_eq!(end(&child), ExitStatus::Code(7));
    drop((slot, child));
    scene.close();
}

/// Who asked dies, and is recovered, while the child is there and has not said so yet: its place stays its own, with what was
/// given to it. If it then dies too, nothing stays.
#[cfg(crash_points)]
#[test]
fn a_child_loses_nothing_when_who_asked_dies_before_it_settles() {
    use procession_core::sys::crash::{self, Action, Trigger, Whose};
    let _alone = alone();
    for dies in [false, true] {
        let arena = Arena::create().unwrap();
        let answers = Queue::new(&arena, None).unwrap();
        let (way, end) = ForkServer::new().unwrap();
        let own = way.as_fd().as_raw_fd();
        let process = fork(|| {
            close(own);
            crash::arm_at(Trigger::Nth(1), Action::Stop, Whose::Child);
            serve(&arena, end, |_| {});
        });
        let asker = fork(|| {
            let slot = arena.reserve().unwrap();
            let lock = Lock::new(&arena).unwrap();
            slot.give(lock.name()).unwrap();
            slot.give(answers.name()).unwrap();
            let body = names(&lock, &answers);
            drop(lock);
            let child = ask(&way, &slot, &body, &[]).unwrap();
            let pid = child.pid().to_le_bytes();
            answers.put(0, &[&pid], Deadline::NEVER).unwrap();
            loop {
                std::thread::park();
            }
        });
        let pid = answers.get(Deadline::NEVER).unwrap().unwrap().bytes;
        let child = u32::from_le_bytes(pid.try_into().unwrap());
        until("the child to stop", || state(child) == Some('T'));
        asker.signal(libc::SIGKILL);
        assert_eq!(asker.wait(), -libc::SIGKILL);
        for _ in 0..2 {
            arena.reap().unwrap();
            // The queue, and the lock that the child's place holds.
            assert_eq!(arena.census().unwrap().objects, 2);
        }
        let signal = if dies { libc::SIGKILL } else { libc::SIGCONT };
        // SAFETY: to a child of the server that runs still, which has not been waited for.
        unsafe { libc::kill(child.cast_signed(), signal) };
        until("the child to end", || !is_there(child));
        assert_eq!(answers.get(Deadline::now()).unwrap().is_some(), !dies);
        drop(way);
        process.join();
        drop(answers);
        until_empty(&arena);
    }
}

/// Each call that a start makes is refused once, and each that the server makes for it: the error names it, nothing is left
/// behind, and the next start is as good as any.
#[cfg(crash_points)]
#[test]
fn any_call_of_a_start_may_be_refused() {
    use procession_core::sys::refuse;
    const REFUSED: i32 = libc::EMFILE;
    /// Of the server's calls in one turn; every other turn nothing is refused.
    const TURNS: u64 = 40;
    fn refuse_in_turn(turn: u64) {
        refuse::disarm();
        if turn > 2 && turn < 2 * TURNS && turn % 2 == 1 {
            refuse::arm(turn / 2, REFUSED);
        }
    }
    let _alone = alone();
    let scene = Scene::with(refuse_in_turn);
    let count = || {
        (
            descriptors(std::process::id()),
            descriptors(scene.process.pid()),
        )
    };
    let start = || -> procession_core::Result<ExitStatus> {
        let slot = scene.arena.reserve().unwrap();
        let child = ask(&scene.server, &slot, &[command::EXIT, 6], &[])?;
        Ok(end(&child))
    };
    assert_eq!(start(), Ok(ExitStatus::Code(6)));
    let before = count();
    let mut errors = std::collections::BTreeSet::new();
    let mut check = |result: procession_core::Result<ExitStatus>, known: &[&str]| match result {
        Ok(status) => assert_eq!(status, ExitStatus::Code(6)),
        Err(Error::Os { call, errno }) => {
            assert_eq!(errno, REFUSED, "{call}");
            assert!(known.contains(&call), "{call} wasn't refused");
            errors.insert(call);
        }
        Err(error) => panic!("{error}"),
    };
    // The server's own, before and after it has forked.
    for _ in 0..2 * TURNS {
        check(start(), &["sendmsg"]);
    }
    assert_eq!(start(), Ok(ExitStatus::Code(6)));
    for n in 1.. {
        let slot = scene.arena.reserve().unwrap();
        refuse::arm(n, REFUSED);
        let started = ask(&scene.server, &slot, &[command::EXIT, 6], &[]);
        let passed = refuse::disarm();
        let is_over = passed.len() < usize::try_from(n).unwrap();
        check(
            started.map(|child| end(&child)),
            &passed[passed.len() - 1..],
        );
        assert_eq!(start(), Ok(ExitStatus::Code(6)), "after {passed:?}");
        if is_over {
            break;
        }
    }
    for call in ["pidfd_open", "socketpair", "sendmsg", "recvmsg", "poll"] {
        assert!(errors.contains(call), "{call} was not refused: {errors:?}");
    }
    until("nothing to be left", || {
        let now = count();
        now.0 <= before.0 && now.1 <= before.1
    });
    scene.close();
}

/// Whatever comes by the socket, the server serves the next, and keeps none of the descriptors.
#[test]
fn any_bytes_leave_a_server_as_it_was() {
    let _alone = alone();
    // One that is no server: what it is sent is what a real one will be sent, changed.
    let arena = Arena::create().unwrap();
    let (server, end_of_none) = ForkServer::new().unwrap();
    let slot = arena.reserve().unwrap();
    let body = [command::EXIT, 0];
    drop(server.start(&slot, &body, &[], Deadline::NEVER).unwrap());
    let [key, request] = [(); 2].map(|()| receive(&end_of_none));
    drop(server);
    let (way, end) = pair();
    send(way.as_fd(), &key, &[]);
    let process = fork(|| {
        close(way.as_raw_fd());
        serve(&arena, end, |_| {});
    });
    let mut random = Random::seeded(1);
    let mut before = None;
    for case in 0..2_000 {
        let bytes = changed(&request, |limit| {
            usize::try_from(random.below(limit as u64)).unwrap()
        });
        let count = random.below(5);
        let all: Vec<_> = (0..count).map(|_| way.as_fd()).collect();
        send(way.as_fd(), &bytes, &all);
        if case % 100 == 0 {
            let (reply, servers) = pair();
            let own = own_pidfd();
            let slot = arena.reserve().unwrap();
            let good = with_place(&request, &slot);
            let all = [servers.as_fd(), way.as_fd(), own.as_fd()];
            send(way.as_fd(), &good, &all);
            drop(servers);
            let started = receive(&reply);
            assert_eq!(started[0], 1, "case {case}");
            assert_eq!(receive(&reply)[..12], [3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
            let pid = process.pid();
            // The first count may still have what that child had.
            let first = *before.get_or_insert_with(|| descriptors(pid));
            until("the server to close all", || descriptors(pid) <= first);
        }
    }
    drop((way, slot));
    process.join();
    until_empty(&arena);
}

/// Some other bytes than the request: cut, longer, others altogether, or with a few changed.
fn changed(request: &[u8], mut below: impl FnMut(usize) -> usize) -> Vec<u8> {
    let byte = |below: &mut dyn FnMut(usize) -> usize| u8::try_from(below(255)).unwrap();
    let mut bytes = request.to_vec();
    match below(6) {
        0 => bytes.truncate(1 + below(bytes.len())),
        1 => bytes.resize(bytes.len() + 1 + below(20_000), 0),
        2 => bytes = vec![byte(&mut below); 1 + below(200)],
        _ => {
            for _ in 0..=below(3) {
                // Not the place: a child would take any that is kept.
                let at = below(40);
                let at = if at < 36 { at } else { 64 + at - 36 };
                bytes[at] ^= 1 + byte(&mut below);
            }
        }
    }
    bytes
}

/// The request with the place that `slot` keeps.
fn with_place(request: &[u8], slot: &ChildSlot) -> Vec<u8> {
    let token = slot.token(0);
    let fields: Vec<&str> = token.split(':').collect();
    let mut bytes = request.to_vec();
    for (at, field) in [(40, fields[1]), (44, fields[2])] {
        let number: u32 = field.parse().unwrap();
        bytes[at..at + 4].copy_from_slice(&number.to_le_bytes());
    }
    bytes
}

fn own_pidfd() -> OwnedFd {
    pidfd_of(std::process::id())
}

fn pidfd_of(pid: u32) -> OwnedFd {
    // SAFETY: no pointers.
    let number = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    // SAFETY: made above, and nobody else has it.
    unsafe { OwnedFd::from_raw_fd(RawFd::try_from(number).unwrap()) }
}

fn pair() -> (OwnedFd, OwnedFd) {
    let mut ends = [0; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: writes two numbers.
    let made = unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, ends.as_mut_ptr()) };
    assert_eq!(made, 0);
    // SAFETY: made above, and nobody else has them.
    let [one, other] = ends.map(|end| unsafe { OwnedFd::from_raw_fd(end) });
    (one, other)
}

fn receive(socket: &OwnedFd) -> Vec<u8> {
    let mut bytes = vec![0; 65_536];
    let into = bytes.as_mut_ptr().cast();
    // SAFETY: writes into the buffer; descriptors that come are dropped.
    let length = unsafe { libc::recv(socket.as_raw_fd(), into, bytes.len(), 0) };
    bytes.truncate(usize::try_from(length).unwrap());
    bytes
}

/// Sends a packet with descriptors, and waits for room.
fn send(socket: BorrowedFd<'_>, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
    let numbers: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let length = u32::try_from(size_of_val(&numbers[..])).unwrap();
    let mut part = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    let mut control = [0u64; 16];
    // SAFETY: all zero is a message of nothing.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    if !numbers.is_empty() {
        message.msg_control = control.as_mut_ptr().cast();
        // SAFETY: arithmetic.
        message.msg_controllen = unsafe { libc::CMSG_SPACE(length) } as usize;
        // SAFETY: the buffer has room for a header.
        let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
        // SAFETY: it lies in the buffer, which nothing else refers to.
        let header = unsafe { &mut *header };
        header.cmsg_level = libc::SOL_SOCKET;
        header.cmsg_type = libc::SCM_RIGHTS;
        // SAFETY: arithmetic.
        header.cmsg_len = unsafe { libc::CMSG_LEN(length) } as usize;
        // SAFETY: the data follow the header.
        let data = unsafe { libc::CMSG_DATA(header) };
        // SAFETY: the buffer has room for so many.
        unsafe { std::ptr::copy_nonoverlapping(numbers.as_ptr().cast(), data, length as usize) };
    }
    let flags = libc::MSG_NOSIGNAL;
    // SAFETY: reads what the message names, which lives until here.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, flags) };
    assert_eq!(usize::try_from(sent), Ok(bytes.len()));
}
