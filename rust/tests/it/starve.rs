//! Too little of something: an error that says what is missing, or another way that works.
//!
//! The limits are the shell's to set: it starts this program again, for one test, in which all of them hold.
#![allow(
    clippy::print_stdout,
    reason = "how each piece of work ended, for the test that has set the limits"
)]

use crate::watchdog::watch;
use procession::{Error, ErrorKind, JoinError, Lock, Pool, Process, Queue};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
use std::process::Command;

/// Set where [`work`] is the only test.
const STARVED: &str = "PROCESSION_TEST_STARVED";

/// The error with which a filter of the kernel's refuses descriptors of processes, where it is set.
const WITHOUT_PIDFDS: &str = "PROCESSION_TEST_WITHOUT_PIDFDS";
/// On every kind of machine. Source: pidfd_open(2).
const PIDFD_OPEN: i64 = 434;

type Work = fn() -> Result<(), Error>;

fn double(number: u32) -> u32 {
    number * 2
}

/// Says why an error that names the system's refusal is one; panics at any other.
fn refusal(doing: &str, error: &Error) -> String {
    assert!(
        matches!(error.kind(), ErrorKind::Os | ErrorKind::Exhausted),
        "{doing}: {error}"
    );
    error.to_string()
}

fn share() -> Result<(), Error> {
    let (queue, lock) = (Queue::new()?, Lock::new()?);
    for length in [10, 100_000] {
        let guard = lock.acquire().unwrap();
        queue.put(&vec![7u8; length]).unwrap();
        assert_eq!(queue.get().unwrap(), vec![7u8; length]);
        drop(guard);
    }
    Ok(())
}

fn start() -> Result<(), Error> {
    match Process::spawn(double, 21)?.join() {
        Ok(number) => assert_eq!(number, 42),
        // The child had too little to begin with, and said so on its standard error.
        Err(JoinError::Lost(_)) => println!("refused in the child"),
        Err(error) => panic!("{error}"),
    }
    Ok(())
}

fn descriptors() -> usize {
    // Without a descriptor for the look itself it's the same on both sides.
    std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

/// Refuses a system call from now on: to this thread, and what it starts. Source: seccomp(2).
fn refuse(call: i64, errno: u32) {
    let rules = [(call, Vec::new())].into();
    let (others, this) = (SeccompAction::Allow, SeccompAction::Errno(errno));
    let machine = std::env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(rules, others, this, machine).unwrap();
    seccompiler::apply_filter(&BpfProgram::try_from(filter).unwrap()).unwrap();
}

/// All that a program does, which is refused or works, and leaves nothing behind.
#[test]
fn work() {
    let _watchdog = watch();
    if let Ok(errno) = std::env::var(WITHOUT_PIDFDS) {
        refuse(PIDFD_OPEN, errno.parse().unwrap());
    }
    let works: [(&str, Work); 3] = [
        ("share", share),
        ("start a process", start),
        ("a pool", || {
            let pool = Pool::new(2)?;
            match pool.map(double, 0..10) {
                Ok(doubled) => assert_eq!(doubled, (0..10).map(double).collect::<Vec<_>>()),
                // Its workers had too little to begin with.
                Err(error) => println!("refused in the workers: {error}"),
            }
            Ok(())
        }),
    ];
    // The arena is there for good.
    let _ = share();
    for (doing, work) in works {
        let before = descriptors();
        match work() {
            Ok(()) => println!("done: {doing}"),
            Err(error) => println!("refused: {}", refusal(doing, &error)),
        }
        // Else other tests open some meanwhile.
        if std::env::var_os(STARVED).is_some() {
            assert_eq!(descriptors(), before, "{doing}");
        }
    }
}

/// Runs [`work`] under what the shell has set, and gives what it printed.
fn under(shell: &str) -> String {
    let _watchdog = watch();
    let program = std::env::current_exe().unwrap();
    let script = format!(
        "exec 2>&1; {shell}; exec \"$0\" starve::work --exact --nocapture --test-threads=1"
    );
    let output = Command::new("sh")
        .arg("-c")
        .arg(&script)
        .arg(program)
        .env(STARVED, "")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{shell}: {text}");
    text
}

#[test]
fn few_descriptors() {
    let (mut refused, mut done) = (0, 0);
    for limit in 5..20 {
        let text = under(&format!("ulimit -n {limit}"));
        refused += text.matches("refused: ").count();
        done += text.matches("done: ").count();
    }
    assert!(refused > 0 && done > 0, "{refused} refused, {done} done");
    assert_eq!(under("ulimit -n 64").matches("done: ").count(), 3);
}

#[test]
fn short_files() {
    let text = under("ulimit -f 0");
    assert!(text.contains("File too large"), "{text}");
}

#[test]
fn little_memory() {
    // 600 MiB, of which the program itself needs the most.
    let text = under("ulimit -v 600000");
    assert_eq!(text.matches("done: ").count(), 3, "{text}");
}

#[test]
fn closed_standard_streams() {
    for closed in ["exec 0<&-", "exec 2>&-", "exec 0<&- 2>&-"] {
        let text = under(closed);
        assert_eq!(text.matches("done: ").count(), 3, "{closed}: {text}");
    }
}

#[test]
fn no_descriptors_of_processes() {
    // EPERM is a container's, ENOSYS an old kernel's.
    for (errno, says) in [(1, "Operation not permitted"), (38, "not implemented")] {
        let text = under(&format!("export {WITHOUT_PIDFDS}={errno}"));
        let ends: Vec<&str> = text
            .lines()
            .filter(|line| line.contains("done: ") || line.contains("refused"))
            .collect();
        let [shared, refusals @ ..] = &ends[..] else {
            panic!("{text}");
        };
        assert!(shared.contains("done: share"), "{text}");
        assert_eq!(refusals.len(), 2, "{text}");
        for refusal in refusals {
            let is_named = refusal.contains("refused: ") && refusal.contains("pidfd_open");
            assert!(is_named && refusal.contains(says), "{text}");
        }
    }
}
