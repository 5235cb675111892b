//! Descriptors that one process keeps and another redeems: who may be killed, stopped, forked or hostile meanwhile.

use crate::child::{Child, alone, fork, until};
use procession_core::handoff::{
    Invitation, Redeeming, TICKET_BYTES, Ticket, entrust, invite, kept, offer, stop, withdraw,
};
use procession_core::process::Others;
use procession_core::{Deadline, Error, ExitStatus, Result, Setting};
use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType};
use std::io::{PipeReader, PipeWriter, Read, Write, pipe};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

const SHORT: Duration = Duration::from_millis(120);

/// Redeems a ticket, as long as it takes.
fn redeem(ticket: &Ticket) -> Result<OwnedFd> {
    go_on(&mut ticket.redeem())
}

fn go_on(redeeming: &mut Redeeming) -> Result<OwnedFd> {
    loop {
        match redeeming.wait(Deadline::NEVER) {
            Err(Error::Interrupted) => {}
            redeemed => return redeemed.map(|descriptor| descriptor.expect("no deadline")),
        }
    }
}

/// A pipe whose writer is to be sent: once it was redeemed and written to, the reader has it; once nobody holds it, an end.
fn offered() -> (PipeReader, Ticket) {
    let (reader, writer) = pipe().unwrap();
    let ticket = offer(writer.as_fd()).unwrap();
    assert_eq!(ticket.descriptor(), writer.as_raw_fd());
    (reader, ticket)
}

fn write(descriptor: OwnedFd, text: &str) {
    PipeWriter::from(descriptor)
        .write_all(text.as_bytes())
        .unwrap();
}

fn all(mut reader: PipeReader) -> String {
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    text
}

/// Why the descriptor of a ticket can't be had.
#[track_caller]
fn why(ticket: &Ticket, redeemed: Result<OwnedFd>) -> &'static str {
    let Err(Error::Lost {
        descriptor,
        pid,
        why,
    }) = redeemed
    else {
        panic!("{redeemed:?}");
    };
    assert_eq!((descriptor, pid), (ticket.descriptor(), ticket.pid()));
    why
}

/// A child that makes tickets, and lives until it is ended.
struct Sender {
    child: Child,
    tickets: PipeReader,
}

impl Sender {
    fn new(work: impl FnOnce(PipeWriter)) -> Self {
        let (tickets, writer) = pipe().unwrap();
        let child = fork(|| {
            work(writer);
            loop {
                std::thread::sleep(Duration::from_secs(1));
            }
        });
        Self { child, tickets }
    }

    /// One that sends so many copies of a descriptor.
    fn of(descriptor: &impl AsFd, count: usize) -> Self {
        Self::new(|mut writer| {
            for _ in 0..count {
                let ticket = offer(descriptor.as_fd()).unwrap();
                writer.write_all(&ticket.to_bytes()).unwrap();
            }
        })
    }

    fn ticket(&mut self) -> Ticket {
        let mut bytes = [0; TICKET_BYTES];
        self.tickets.read_exact(&mut bytes).unwrap();
        Ticket::from_bytes(&bytes).unwrap()
    }

    fn kill(self) {
        self.child.signal(libc::SIGKILL);
        assert_eq!(self.child.wait(), -libc::SIGKILL);
    }
}

/// A bare connection to whoever keeps a ticket's descriptor.
fn connect(ticket: &Ticket) -> OwnedFd {
    use std::fmt::Write;
    let mut name = "procession-handoff-".to_owned();
    for byte in &ticket.to_bytes()[8..24] {
        write!(name, "{byte:02x}").unwrap();
    }
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    );
    let (socket, address) = (
        socket.unwrap(),
        SocketAddrUnix::new_abstract_name(name.as_bytes()).unwrap(),
    );
    rustix::net::connect(&socket, &address).unwrap();
    socket
}

#[test]
fn a_descriptor_is_redeemed_once_by_whoever_comes_first() {
    let _alone = alone();
    // By the process itself.
    let (reader, ticket) = offered();
    assert_eq!(kept(), 1);
    write(redeem(&ticket).unwrap(), "here");
    assert_eq!((all(reader), kept()), ("here".to_owned(), 0));
    assert!(why(&ticket, redeem(&ticket)).contains("redeemed before"));
    // By a child, and then by its parent.
    let (reader, ticket) = offered();
    fork(|| {
        assert_eq!(kept(), 0);
        write(redeem(&ticket).unwrap(), "there");
        assert!(why(&ticket, redeem(&ticket)).contains("redeemed before"));
    })
    .join();
    assert_eq!((all(reader), kept()), ("there".to_owned(), 0));
    assert!(why(&ticket, redeem(&ticket)).contains("redeemed before"));
    // By a parent, from its child.
    let (reader, writer) = pipe().unwrap();
    let mut sender = Sender::of(&writer, 1);
    drop(writer);
    let ticket = sender.ticket();
    assert_eq!(ticket.pid(), sender.child.pid());
    write(redeem(&ticket).unwrap(), "back");
    sender.kill();
    assert_eq!(all(reader), "back");
    stop();
}

#[test]
fn a_ticket_with_another_secret_is_none() {
    let _alone = alone();
    let (_reader, ticket) = offered();
    for at in 32..48 {
        let mut bytes = ticket.to_bytes();
        bytes[at] ^= 1;
        let other = Ticket::from_bytes(&bytes).unwrap();
        assert!(why(&other, redeem(&other)).contains("redeemed before"));
        fork(|| assert!(why(&other, redeem(&other)).contains("redeemed before"))).join();
    }
    assert_eq!(kept(), 1);
    assert!(redeem(&ticket).is_ok());
    stop();
}

#[test]
fn what_was_taken_back_or_stopped_is_not_there_any_more() {
    let _alone = alone();
    let (reader, ticket) = offered();
    withdraw(&ticket);
    assert_eq!((all(reader), kept()), (String::new(), 0));
    assert!(why(&ticket, redeem(&ticket)).contains("taken back"));
    let (reader, ticket) = offered();
    stop();
    assert_eq!((all(reader), kept()), (String::new(), 0));
    assert!(why(&ticket, redeem(&ticket)).contains("keeps no descriptors"));
    fork(|| assert!(why(&ticket, redeem(&ticket)).contains("keeps no descriptors"))).join();
    let (reader, ticket) = offered();
    write(redeem(&ticket).unwrap(), "again");
    assert_eq!(all(reader), "again");
    stop();
    stop();
}

#[test]
fn a_dead_sender_is_named() {
    let _alone = alone();
    let null = std::fs::File::open("/dev/null").unwrap();
    let mut sender = Sender::of(&null, 2);
    let (ticket, other) = (sender.ticket(), sender.ticket());
    assert!(redeem(&other).is_ok());
    // It is stopped, and dies while it is waited for.
    sender.child.signal(libc::SIGSTOP);
    assert!(sender.child.wait_stopped());
    let mut redeeming = ticket.redeem();
    let begin = Instant::now();
    let waited = redeeming.wait(Deadline::after(SHORT)).unwrap();
    assert!(waited.is_none() && begin.elapsed() >= SHORT);
    sender.kill();
    assert!(why(&ticket, go_on(&mut redeeming)).contains("has ended"));
    // Nobody has answered for it since.
    assert!(why(&ticket, redeem(&ticket)).contains("has ended"));
    let text = redeem(&ticket).unwrap_err().to_string();
    let (descriptor, pid) = (ticket.descriptor(), ticket.pid());
    let named = format!("descriptor {descriptor} of process {pid} can't be had: ");
    assert!(text.starts_with(&named), "{text}");
}

#[test]
fn a_stopped_sender_is_waited_for() {
    let _alone = alone();
    let null = std::fs::File::open("/dev/null").unwrap();
    let mut sender = Sender::of(&null, 1);
    let ticket = sender.ticket();
    sender.child.signal(libc::SIGSTOP);
    assert!(sender.child.wait_stopped());
    let mut redeeming = ticket.redeem();
    assert!(
        redeeming
            .wait(Deadline::after(SHORT))
            .is_ok_and(|none| none.is_none())
    );
    sender.child.signal(libc::SIGCONT);
    assert!(go_on(&mut redeeming).is_ok());
    sender.kill();
}

fn close(descriptor: i32) {
    // SAFETY: a forked child's copy, whose owner it never drops.
    drop(unsafe { OwnedFd::from_raw_fd(descriptor) });
}

/// A child that lives until the pipe's writer is dropped here.
fn bystander(work: impl FnOnce()) -> (Child, PipeWriter) {
    let (mut reader, writer) = pipe().unwrap();
    let number = writer.as_raw_fd();
    let child = fork(|| {
        close(number);
        work();
        assert_eq!(reader.read(&mut [0]).unwrap(), 0);
    });
    (child, writer)
}

#[test]
fn a_forked_child_neither_holds_nor_gives_what_its_parent_keeps() {
    let _alone = alone();
    let (reader, ticket) = offered();
    let (_other_reader, other) = offered();
    // The thread is at work by now.
    fork(|| assert!(redeem(&other).is_ok())).join();
    let (child, hold) = bystander(|| {
        assert_eq!(kept(), 0);
        let (_reader, own) = offered();
        assert!(redeem(&own).is_ok());
    });
    drop(redeem(&ticket).unwrap());
    // The child has no copy of the writer.
    assert_eq!(all(reader), "");
    let (_reader, ticket) = offered();
    stop();
    // Nor of the socket that listened.
    fork(|| assert!(why(&ticket, redeem(&ticket)).contains("keeps no descriptors"))).join();
    drop(hold);
    child.join();
}

#[test]
fn a_sender_that_became_another_program_keeps_nothing() {
    let _alone = alone();
    let (reader, writer) = pipe().unwrap();
    let (hold, release) = pipe().unwrap();
    let numbers = [writer.as_raw_fd(), release.as_raw_fd()];
    let mut sender = Sender::new(|mut tickets| {
        let ticket = offer(writer.as_fd()).unwrap();
        numbers.into_iter().for_each(close);
        tickets.write_all(&ticket.to_bytes()).unwrap();
        let mut program = std::process::Command::new("cat");
        let error = std::os::unix::process::CommandExt::exec(program.stdin(hold));
        panic!("{error}");
    });
    let ticket = sender.ticket();
    drop(writer);
    // Nothing of the sender's is open any more, its end of this pipe included.
    assert_eq!(all(reader), "");
    assert!(why(&ticket, redeem(&ticket)).contains("the process"));
    drop(release);
    sender.child.join();
}

#[test]
fn silent_and_senseless_peers_cost_their_own_connection_only() {
    let _alone = alone();
    let (reader, ticket) = offered();
    let silent: Vec<_> = (0..200).map(|_| connect(&ticket)).collect();
    let mut senseless = Vec::new();
    for bytes in [
        &b"x"[..],
        &[0xff; 500],
        b"prcgive1",
        &[b"prckeep1", &[0; 40][..]].concat(),
    ] {
        let peer = connect(&ticket);
        rustix::net::send(&peer, bytes, SendFlags::NOSIGNAL).unwrap();
        senseless.push(peer);
    }
    fork(|| write(redeem(&ticket).unwrap(), "through")).join();
    assert_eq!(all(reader), "through");
    // Whoever sent nonsense is hung up on, and so are the first of the silent.
    for peer in senseless.iter().chain(&silent[..100]) {
        let end = rustix::net::recv(peer, &mut [0; 8], rustix::net::RecvFlags::empty());
        assert!(
            matches!(end, Ok((0, _)) | Err(rustix::io::Errno::CONNRESET)),
            "{end:?}"
        );
    }
    stop();
}

#[test]
fn many_processes_redeem_at_once() {
    const EACH: usize = 25;
    let _alone = alone();
    let (reader, writer) = pipe().unwrap();
    let tickets: Vec<Ticket> = (0..8 * EACH)
        .map(|_| offer(writer.as_fd()).unwrap())
        .collect();
    drop(writer);
    let children: Vec<_> = tickets
        .chunks(EACH)
        .map(|tickets| {
            fork(|| {
                for ticket in tickets {
                    write(redeem(ticket).unwrap(), ".");
                }
            })
        })
        .collect();
    children.into_iter().for_each(Child::join);
    assert_eq!(all(reader).len(), 8 * EACH);
    assert_eq!(kept(), 0);
    stop();
}

#[test]
fn what_is_entrusted_outlives_its_sender() {
    let _alone = alone();
    for is_serving in [false, true] {
        let (serving_reader, serving) = offered();
        if !is_serving {
            stop();
        }
        let invited = invite().unwrap();
        let bytes = invited.invitation().to_bytes();
        let (reader, writer) = pipe().unwrap();
        let (mut tickets, mut to) = pipe().unwrap();
        fork(|| {
            let ticket = entrust(writer.as_fd(), &Invitation::from_bytes(bytes)).unwrap();
            to.write_all(&ticket.to_bytes()).unwrap();
            assert_eq!(kept(), 0);
            let mut wrong = bytes;
            wrong[31] ^= 1;
            let lost = entrust(writer.as_fd(), &Invitation::from_bytes(wrong)).unwrap();
            if is_serving {
                assert!(why(&lost, redeem(&lost)).contains("redeemed before"));
            }
            // Where nobody is, nothing can be left.
            wrong[0] ^= 1;
            let mine = entrust(writer.as_fd(), &Invitation::from_bytes(wrong)).unwrap();
            assert_eq!(kept(), 1);
            assert!(redeem(&mine).is_ok());
        })
        .join();
        drop(writer);
        let mut bytes = [0; TICKET_BYTES];
        tickets.read_exact(&mut bytes).unwrap();
        let ticket = Ticket::from_bytes(&bytes).unwrap();
        // What has come is kept, whoever is invited still.
        drop(invited);
        write(redeem(&ticket).unwrap(), "the late");
        assert_eq!(all(reader), "the late");
        let again = why(&ticket, redeem(&ticket));
        let expected = if is_serving {
            "redeemed before"
        } else {
            "has ended"
        };
        assert!(again.contains(expected), "{again}");
        assert_eq!(redeem(&serving).is_ok(), is_serving);
        drop(serving_reader);
        stop();
    }
}

#[test]
fn a_process_that_keeps_descriptors_can_be_forked_alone() {
    let _alone = alone();
    // In a process without libtest's threads.
    fork(|| {
        let (reader, ticket) = offered();
        let work = |(): ()| {
            assert_eq!(kept(), 0);
            write(redeem(&ticket).unwrap(), "forked");
            7
        };
        let ((), child) =
            procession_core::process::fork(Others::None, Setting::default(), (), work);
        let ended = child.unwrap().wait(Deadline::NEVER).unwrap().unwrap();
        assert_eq!(
            (ended, all(reader)),
            (ExitStatus::Code(7), "forked".to_owned())
        );
        // Once nothing is kept, a fork leaves no thread behind.
        fork(|| {}).join();
        assert_eq!(std::fs::read_dir("/proc/self/task").unwrap().count(), 1);
    })
    .join();
}

/// A mask of signals as /proc has it, of the thread of that name.
fn blocked(name: &str) -> Option<u64> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let mut statuses =
        tasks.filter_map(|task| std::fs::read_to_string(task.path().join("status")).ok());
    let status = statuses.find(|status| status.starts_with(&format!("Name:\t{name}\n")))?;
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("SigBlk:\t"))?;
    u64::from_str_radix(mask, 16).ok()
}

#[test]
fn the_thread_has_no_signals_delivered_to_it() {
    let _alone = alone();
    let (_reader, _ticket) = offered();
    until("the thread", || blocked("handoff").is_some());
    let mask = blocked("handoff").unwrap();
    for signal in [
        libc::SIGINT,
        libc::SIGTERM,
        libc::SIGCHLD,
        libc::SIGALRM,
        libc::SIGUSR1,
    ] {
        assert_ne!(mask & 1 << (signal - 1), 0, "signal {signal}");
    }
    let mine = std::thread::Builder::new().name("other".into());
    let other = mine.spawn(|| blocked("other")).unwrap().join().unwrap();
    assert_eq!(other.unwrap() & 1 << (libc::SIGTERM - 1), 0);
    stop();
}

#[test]
fn a_receiver_without_room_loses_nothing() {
    let _alone = alone();
    let (reader, ticket) = offered();
    fork(|| {
        // SAFETY: copies a descriptor; fails when there is no room.
        let fill = || unsafe { libc::dup(reader.as_raw_fd()) };
        let limit = rustix::process::Rlimit {
            current: Some(64),
            maximum: Some(64),
        };
        rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
        let mut filled: Vec<i32> =
            std::iter::from_fn(|| Some(fill()).filter(|it| *it >= 0)).collect();
        let mut refused = 0;
        let descriptor = loop {
            match redeem(&ticket) {
                Ok(descriptor) => break descriptor,
                Err(Error::Os {
                    errno: libc::EMFILE,
                    ..
                }) => refused += 1,
                Err(error) => panic!("{error}"),
            }
            filled.pop().map(close).unwrap();
        };
        // For the socket, and for what comes.
        assert_eq!(refused, 2);
        write(descriptor, "room");
    })
    .join();
    assert_eq!(all(reader), "room");
    stop();
}

/// Each system call of sender and receiver, refused once: what is kept is kept, or whoever asked is told.
#[cfg(crash_points)]
#[test]
fn refused_calls_are_told_and_leave_nothing() {
    use procession_core::sys::refuse;
    let _alone = alone();
    let null = std::fs::File::open("/dev/null").unwrap();
    for errno in [libc::EMFILE, libc::ENOMEM, libc::EPERM] {
        for n in 1.. {
            stop();
            refuse::arm(n, errno);
            let offered = offer(null.as_fd());
            let calls = refuse::disarm();
            match &offered {
                Ok(ticket) => assert!(kept() == 1 && redeem(ticket).is_ok()),
                Err(error) => {
                    assert!(
                        matches!(error, Error::Os { errno: it, .. } if *it == errno),
                        "{error}"
                    );
                    assert_eq!(kept(), 0, "{calls:?}");
                }
            }
            if (calls.len() as u64) < n {
                break;
            }
        }
        for n in 1.. {
            let ticket = offer(null.as_fd()).unwrap();
            // The last one tells that there are no more.
            let was_last = fork(|| {
                refuse::arm(n, errno);
                let redeemed = redeem(&ticket);
                let calls = refuse::disarm();
                match redeemed {
                    Ok(_) => {}
                    Err(Error::Os { errno: it, .. }) => assert_eq!(it, errno, "{calls:?}"),
                    Err(Error::Lost { .. }) => assert!(calls.contains(&"getsockopt"), "{calls:?}"),
                    Err(error) => panic!("{error}"),
                }
                // SAFETY: ends the process.
                unsafe { libc::_exit(i32::from((calls.len() as u64) < n)) };
            });
            let was_last = was_last.wait();
            assert!([0, 1].contains(&was_last), "{was_last}");
            withdraw(&ticket);
            if was_last == 1 {
                break;
            }
        }
        assert_eq!(kept(), 0);
    }
    stop();
}
