//! Programs started, waited for and signalled.

use crate::child::alone;
use procession_core::{Arena, Child, Deadline, Error, ExitStatus, Lock, Spec};
use std::io::Read;
use std::os::fd::{AsFd, IntoRawFd};
use std::time::{Duration, Instant};

fn shell(script: &str) -> Spec {
    Spec::new("/bin/sh")
        .argument("sh")
        .argument("-c")
        .argument(script)
}

fn end(child: &Child) -> ExitStatus {
    let timeout = Duration::from_secs(60);
    let status = child.wait(Deadline::after(timeout)).unwrap();
    status.expect("the child ends within a minute")
}

#[test]
fn says_how_it_ended() {
    let scripts = [
        ("exit 0", ExitStatus::Code(0)),
        ("exit 7", ExitStatus::Code(7)),
        ("kill -KILL $$", ExitStatus::Signal(9)),
        ("kill -PIPE $$", ExitStatus::Signal(13)),
    ];
    for (script, expected) in scripts {
        let child = shell(script).start().unwrap();
        assert_eq!(end(&child), expected, "{script}");
        assert_eq!(end(&child), expected, "once more");
        child.signal(9).unwrap();
    }
}

#[test]
fn a_wait_keeps_its_deadline_and_any_thread_may_wait() {
    // A child that another test forks meanwhile would keep the pipes open.
    let _alone = alone();
    let (reader, writer) = std::io::pipe().unwrap();
    let mut spec = shell("read line <&3");
    assert_eq!(spec.pass(&reader).unwrap(), 3);
    let child = spec.start().unwrap();
    let begin = Instant::now();
    let timeout = Duration::from_millis(30);
    assert_eq!(child.wait(Deadline::after(timeout)).unwrap(), None);
    assert!(begin.elapsed() >= timeout);
    std::thread::scope(|scope| {
        let waiters = [(); 3].map(|()| scope.spawn(|| end(&child)));
        child.signal(15).unwrap();
        for waiter in waiters {
            assert_eq!(waiter.join().unwrap(), ExitStatus::Signal(15));
        }
    });
    drop(writer);
}

#[test]
fn it_has_the_chosen_descriptors_and_no_other() {
    // A child that another test forks meanwhile would keep the pipes open.
    let _alone = alone();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let (other, _closed) = std::io::pipe().unwrap();
    // One that is not closed on exec: it isn't chosen, so the child doesn't have it either.
    // SAFETY: a descriptor of this test's own.
    let stray = unsafe { libc::dup(std::os::fd::AsRawFd::as_raw_fd(&other)) };
    assert!(stray > 2);
    let script = "for fd in /proc/self/fd/*; do [ -e $fd ] && echo ${fd##*/}; done >&4; exit 3";
    let mut spec = shell(script);
    assert_eq!(spec.pass(&other).unwrap(), 3);
    assert_eq!(spec.pass(&writer).unwrap(), 4);
    let child = spec.start().unwrap();
    drop((spec, writer));
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    // SAFETY: the descriptor was made above.
    unsafe { libc::close(stray) };
    assert_eq!(end(&child), ExitStatus::Code(3));
    // The shell keeps copies of its own from 10 on.
    let numbers: Vec<u32> = text.lines().map(|line| line.parse().unwrap()).collect();
    let low: Vec<u32> = numbers.into_iter().filter(|number| *number < 10).collect();
    assert_eq!(low, [0, 1, 2, 3, 4]);
}

#[test]
fn the_environment_is_this_process_with_additions() {
    let spec = shell(
        "[ \"$ADDED\" = 'a value' ] && [ \"$PATH\" = '/replaced' ] && [ -n \"$CARGO_MANIFEST_DIR\" ]",
    );
    let spec = spec
        .variable("ADDED", "a value")
        .variable("PATH", "/replaced");
    assert_eq!(end(&spec.start().unwrap()), ExitStatus::Code(0));
}

#[test]
fn what_cant_be_started_says_so() {
    let missing = Spec::new("/nowhere/at/all").start();
    let expected = Error::Os {
        call: "posix_spawn",
        errno: libc::ENOENT,
    };
    assert_eq!(missing.unwrap_err(), expected);
    let child = shell("exit 0").start().unwrap();
    assert!(matches!(child.signal(4000), Err(Error::Misuse { .. })));
    end(&child);
}

#[test]
fn this_program_starts_again() {
    let spec = Spec::myself()
        .argument("--list")
        .variable("RUST_TEST_NOCAPTURE", "1");
    assert_eq!(end(&spec.start().unwrap()), ExitStatus::Code(0));
}

#[test]
fn a_newcomer_opens_what_lies_in_a_window_that_it_has_not_mapped() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let mut locks = Vec::new();
    while locks
        .last()
        .is_none_or(|lock: &Lock| lock.name().offset < 1 << 20)
    {
        locks.push(Lock::new(&arena).unwrap());
    }
    // Another membership in this process knows as little of the windows as a fresh process.
    let slot = arena.reserve().unwrap();
    let copy = arena.descriptor().as_fd().try_clone_to_owned().unwrap();
    let newcomer = Arena::attach(&slot.token(copy.into_raw_fd())).unwrap();
    let lock = Lock::open(&newcomer, locks.last().unwrap().name()).unwrap();
    assert!(lock.try_acquire().unwrap());
    assert!(locks.last().unwrap().is_held().unwrap());
}
