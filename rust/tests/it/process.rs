//! Processes: started, joined, killed.

use crate::signals::interrupt;
use crate::watchdog::{until, watch};
use procession::{ChildHandle, ErrorKind, ExitStatus, GetError, JoinError, Process, Queue};
use std::time::{Duration, Instant};

fn add((left, right): (u64, u64)) -> u64 {
    left + right
}

/// Waits for a message that nobody sends.
fn wait_for_ever(queue: Queue<()>) {
    let _ = queue.get();
}

#[test]
fn a_value_comes_back() {
    let _watchdog = watch();
    let child = Process::spawn(add, (40, 2)).unwrap();
    assert!(child.pid() > 0 && child.pid() != std::process::id());
    assert_eq!(child.join().unwrap(), 42);
    let greeting = |name: String| format!("hello, {name}");
    let child = Process::spawn(greeting, "you".to_owned()).unwrap();
    assert_eq!(child.join().unwrap(), "hello, you");
}

#[test]
fn a_panic_is_an_error_with_its_message() {
    let _watchdog = watch();
    let mut child = Process::spawn(|number: u8| -> u8 { panic!("number {number}") }, 7).unwrap();
    let error = child
        .join_timeout(Duration::from_secs(60))
        .unwrap()
        .unwrap_err();
    let JoinError::Panicked(panic) = &error else {
        panic!("{error}")
    };
    assert_eq!(panic.message(), "number 7");
    assert_eq!(child.exit_code().unwrap(), Some(101));
    let again = child.join_timeout(Duration::ZERO).unwrap().unwrap_err();
    assert!(matches!(again, JoinError::Failed(error) if error.kind() == ErrorKind::Misuse));
}

#[test]
fn how_it_ended_is_told() {
    let _watchdog = watch();
    let queue = Queue::new().unwrap();
    type End = fn(&ChildHandle) -> i32;
    let ends: [End; 3] = [
        |child| child.kill().map_or(0, |()| 9),
        |child| child.terminate().map_or(0, |()| 15),
        interrupt,
    ];
    for end in ends {
        let child = Process::spawn(wait_for_ever, queue.clone()).unwrap();
        assert!(child.is_alive().unwrap());
        assert_eq!(child.exit_code().unwrap(), None);
        let signal = end(&child);
        until("it to end", || !child.is_alive().unwrap());
        assert_eq!(child.exit_code().unwrap(), Some(-signal));
        let ended = child.join();
        assert!(
            matches!(ended, Err(JoinError::Lost(ExitStatus::Signal(number))) if number == signal)
        );
    }
    for code in [0, 3] {
        let child = Process::spawn(|code: i32| -> () { std::process::exit(code) }, code).unwrap();
        assert!(
            matches!(child.join(), Err(JoinError::Lost(ExitStatus::Code(number))) if number == code)
        );
    }
}

#[test]
fn a_join_keeps_its_timeout() {
    let _watchdog = watch();
    let queue = Queue::new().unwrap();
    let mut child = Process::spawn(wait_for_ever, queue.clone()).unwrap();
    let (begin, timeout) = (Instant::now(), Duration::from_millis(50));
    assert!(child.join_timeout(timeout).is_none());
    assert!(begin.elapsed() >= timeout);
    queue.put(&()).unwrap();
    child.join().unwrap();
}

#[test]
fn arguments_and_values_of_any_length() {
    let _watchdog = watch();
    let text = "0123456789abcdef".repeat(4 << 20);
    let reverse = |text: String| text.chars().rev().collect::<String>();
    let child = Process::spawn(reverse, text.clone()).unwrap();
    let back = child.join().unwrap();
    assert_eq!(back.len(), text.len());
    assert!(back.starts_with("fedcba9876543210fed"));
}

#[test]
fn one_that_never_reads_its_argument_hurts_nobody() {
    let _watchdog = watch();
    for _ in 0..20 {
        let child = Process::spawn(|text: String| text.len(), "x".repeat(1 << 20)).unwrap();
        child.kill().unwrap();
        // It may have been done by then.
        match child.join() {
            Ok(length) => assert_eq!(length, 1 << 20),
            Err(error) => assert!(
                matches!(error, JoinError::Lost(ExitStatus::Signal(9))),
                "{error}"
            ),
        }
    }
}

#[test]
fn children_start_children() {
    let _watchdog = watch();
    fn factorial(number: u64) -> u64 {
        if number == 0 {
            return 1;
        }
        let child = Process::spawn(factorial, number - 1).unwrap();
        number * child.join().unwrap()
    }
    assert_eq!(Process::spawn(factorial, 4).unwrap().join().unwrap(), 24);
}

#[test]
fn a_dropped_one_runs_on() {
    let _watchdog = watch();
    let (questions, answers) = (Queue::new().unwrap(), Queue::new().unwrap());
    let answer = |(questions, answers): (Queue<u32>, Queue<u32>)| {
        answers.put(&(questions.get().unwrap() + 1)).unwrap();
    };
    drop(Process::spawn(answer, (questions.clone(), answers.clone())).unwrap());
    questions.put(&1).unwrap();
    assert_eq!(answers.get().unwrap(), 2);
}

/// Starts a child, says who it is, and waits.
fn middle((pids, never, daemon): (Queue<u32>, Queue<()>, bool)) {
    let builder = Process::builder().daemon(daemon).name("grandchild");
    let child = builder.spawn(wait_for_ever, never.clone()).unwrap();
    assert_eq!(child.name(), "grandchild");
    pids.put(&child.pid()).unwrap();
    wait_for_ever(never);
}

#[test]
fn a_daemon_dies_with_its_parent() {
    let _watchdog = watch();
    let (pids, never) = (Queue::new().unwrap(), Queue::new().unwrap());
    for daemon in [true, false] {
        let parent = Process::spawn(middle, (pids.clone(), never.clone(), daemon)).unwrap();
        let pid = pids.get().unwrap();
        let alive = || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let state = stat
                .rsplit_once(") ")
                .and_then(|(_, rest)| rest.chars().next());
            state.is_some_and(|state| !matches!(state, 'Z' | 'X'))
        };
        parent.kill().unwrap();
        parent.join().unwrap_err();
        if daemon {
            until("the daemon to end", || !alive());
        } else {
            assert!(alive());
            never.put(&()).unwrap();
            until("the other to end", || !alive());
        }
    }
    assert!(matches!(pids.try_get(), Err(GetError::Empty)));
}
