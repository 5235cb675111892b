//! Programs started, waited for and signalled.

use crate::child::{alone, fork};
use procession_core::process::{self, Others, wait_for_any};
use procession_core::{Arena, Child, Deadline, Error, ExitStatus, Lock, Parent, Setting, Spec};
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, IntoRawFd};
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
    let stray = unsafe { libc::dup(other.as_raw_fd()) };
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

#[test]
fn it_begins_as_the_setting_says() {
    let _alone = alone();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let script =
        "read line; echo \"$line $ADDED $(pwd) ${CARGO_MANIFEST_DIR-none}\"; echo error >&2";
    let mut setting = Setting::default();
    setting
        .variable("ADDED".as_ref(), Some("added".as_ref()))
        .unwrap();
    setting
        .variable("CARGO_MANIFEST_DIR".as_ref(), None)
        .unwrap();
    setting.directory("/proc/self/../..".as_ref()).unwrap();
    let (input, mut other) = std::io::pipe().unwrap();
    setting.stream(0, input.into());
    setting.stream(1, writer.try_clone().unwrap().into());
    setting.stream(2, writer.into());
    let child = shell(script).setting(setting).start().unwrap();
    std::io::Write::write_all(&mut other, b"input\n").unwrap();
    let mut text = String::new();
    reader.read_to_string(&mut text).unwrap();
    assert_eq!(text, "input added / none\nerror\n");
    assert_eq!(end(&child), ExitStatus::Code(0));
}

/// Runs in a forked child, which has a single thread.
fn in_a_single_thread(work: impl FnOnce()) {
    let _alone = alone();
    fork(work).join();
}

fn forked(work: impl FnOnce() -> i32) -> procession_core::Result<Child> {
    process::fork(Others::None, Setting::default(), (), |()| work()).1
}

#[test]
fn a_fork_ends_where_its_work_does() {
    in_a_single_thread(|| {
        let start = |code: i32| forked(move || code).unwrap();
        assert_eq!(end(&start(0)), ExitStatus::Code(0));
        assert_eq!(end(&start(77)), ExitStatus::Code(77));
        let panics = forked(|| panic!("as it should"));
        assert_eq!(end(&panics.unwrap()), ExitStatus::Code(101));
    });
}

#[test]
fn a_process_with_threads_is_not_forked() {
    let _alone = alone();
    // libtest's own, and this one.
    assert!(process::other_threads(Others::None).unwrap() > 0);
    let forked = forked(|| 0);
    assert!(matches!(forked, Err(Error::Misuse { .. })));
}

#[test]
fn a_forked_child_is_a_member_of_the_arena() {
    in_a_single_thread(|| {
        let arena = Arena::create().unwrap();
        let lock = Lock::new(&arena).unwrap();
        let leave = || {
            assert!(lock.try_acquire().unwrap());
            assert_eq!(arena.census().unwrap().processes, 2);
            arena.leave();
            0
        };
        let child = forked(leave).unwrap();
        assert_eq!(end(&child), ExitStatus::Code(0));
        // It left normally, with the lock.
        assert!(!lock.try_acquire().unwrap());
        arena.reap().unwrap();
        assert_eq!(arena.census().unwrap().processes, 1);
    });
}

#[test]
fn the_first_of_several_is_found() {
    let _alone = alone();
    let (reader, writer) = std::io::pipe().unwrap();
    let child = shell("read line").start().unwrap();
    let (begin, timeout) = (Instant::now(), Duration::from_millis(30));
    let none = wait_for_any(&[reader.as_fd()], Deadline::after(timeout)).unwrap();
    assert_eq!(none, []);
    assert!(begin.elapsed() >= timeout);
    child.signal(9).unwrap();
    let both = [reader.as_fd(), child.as_fd()];
    assert_eq!(wait_for_any(&both, Deadline::NEVER).unwrap(), [1]);
    assert!(child.wait_for_end(Deadline::now()).unwrap());
    drop(writer);
    assert_eq!(wait_for_any(&both, Deadline::NEVER).unwrap(), [0, 1]);
    end(&child);
    assert!(child.wait_for_end(Deadline::now()).unwrap());
}

#[test]
fn a_parent_is_seen_to_go() {
    let _alone = alone();
    let (mut reader, writer) = std::io::pipe().unwrap();
    let parent = fork(|| {
        let (pid, mut writer) = (std::process::id(), writer.try_clone().unwrap());
        let work = move || {
            let parent = Parent::new(pid).unwrap();
            assert_eq!(
                (parent.pid(), parent.wait(Deadline::now()).unwrap()),
                (pid, false)
            );
            std::io::Write::write_all(&mut writer, b"+").unwrap();
            assert!(parent.wait(Deadline::NEVER).unwrap());
            // Opened only now, it isn't taken for another process.
            assert!(Parent::new(pid).unwrap().wait(Deadline::now()).unwrap());
            std::io::Write::write_all(&mut writer, b"-").unwrap();
            0
        };
        drop(forked(work).unwrap());
        std::thread::sleep(Duration::from_secs(600));
    });
    drop(writer);
    let mut byte = [0];
    reader.read_exact(&mut byte).unwrap();
    parent.signal(9);
    let mut rest = String::new();
    reader.read_to_string(&mut rest).unwrap();
    assert_eq!((byte, &*rest), (*b"+", "-"));
    assert_eq!(parent.wait(), -9);
}

#[test]
fn what_is_no_inherited_descriptor_is_not_taken_over() {
    let (reader, _writer) = std::io::pipe().unwrap();
    for number in [-1, 0, 2, reader.as_fd().as_raw_fd(), 1 << 20] {
        let taken = procession_core::inherited(number);
        assert!(matches!(taken, Err(Error::Malformed { .. })), "{number}");
    }
}
