//! All tests, and how many there were.

use crate::python::{self, Interpreter};
use crate::run::{Failed, Step, cargo, counted, root, succeeds, target, with_flags};
use crate::tally::Tally;
use std::panic::resume_unwind;
use std::process::Command;
use std::thread::ScopedJoinHandle;
use std::time::SystemTime;

/// What unittest exits with, from 3.12 on, when it ran no test.
const NO_TESTS: &str = "exit status: 5";

/// The toolchain that may have miri.
const MIRI: &str = "nightly";

/// Tests of the core that make no system call, by the beginnings of their names.
const WITHOUT_CALLS: [&str; 6] = [
    "pool::batch::",
    "pool::scheduler::",
    "pool::simulation::",
    "queue::layout::tests::records",
    "shm::layout::tests::",
    "shm::pages::tests::",
];

/// Runs the tests of both faces; `word` filters both. What fails doesn't stop the rest.
pub(crate) fn perform(word: Option<&str>) -> (Tally, Step) {
    let mut total = Tally::default();
    let mut failures = Vec::new();
    let mut note = |(tally, result): (Tally, Step)| {
        total += tally;
        match result {
            // A filter may leave an interpreter nothing to run.
            Err(Failed(why)) if word.is_some() && why.ends_with(NO_TESTS) => {}
            Err(Failed(why)) => {
                // What couldn't be built, or died on the way, has failed without a line of its own.
                total.failed += u64::from(tally.failed == 0);
                failures.push(why);
            }
            Ok(()) => {}
        }
    };
    note(counted(workspace(word), ""));
    at_once(crash_walk(word)).into_iter().for_each(&mut note);
    note(counted(models(word), ""));
    if word.is_none() {
        note(counted(hostile_peers(), ""));
    }
    // It takes one filter: its own.
    match (word, miri()) {
        (None, Some(command)) => note(counted(command, "")),
        (None, None) => println!("skipped: the toolchain {MIRI} has no miri on this machine"),
        (Some(_), _) => {}
    }
    match python::build().and_then(|()| Interpreter::all()) {
        Ok(interpreters) => at_once(faces(&interpreters, word))
            .into_iter()
            .for_each(note),
        Err(why) => note((Tally::default(), Err(why))),
    }
    (total, Failed::unless_empty(failures))
}

/// Every Rust test, the examples in the documentation included.
fn workspace(word: Option<&str>) -> Command {
    let mut command = cargo(&["test", "--workspace", "--no-fail-fast"]);
    python::choose_for_build(&mut command);
    command.args(word);
    command
}

/// The core's tests again, in the build in which a process can be killed at each store to shared memory. Stepping never sleeps,
/// so it goes beside the others, which mostly do.
fn crash_walk(word: Option<&str>) -> Vec<(String, Command)> {
    let all = |options: &[&str]| {
        let mut command = crash_build();
        command.arg("--no-fail-fast").args(word).args(options);
        (String::new(), command)
    };
    match word {
        Some(_) => vec![all(&[])],
        None => vec![all(&["--", "--skip", "steps::"]), steps()],
    }
}

/// Tests of the core in that build. It has a folder of its own, since other flags would throw away what the first build made.
fn crash_build() -> Command {
    let mut command = cargo(&["test", "--package", "procession-core"]);
    with_flags(&mut command, "RUSTFLAGS", "--cfg crash_points");
    command.env("CARGO_TARGET_DIR", target().join("crash_points"));
    command
}

fn steps() -> (String, Command) {
    let mut command = crash_build();
    command.args(["--test", "it", "--", "steps::", "--show-output"]);
    ("steps | ".to_owned(), command)
}

/// The two harnesses that kill and stop a process at every store, and at every instruction, with the counts that they
/// print: how many sites, kills, stops, instructions and states.
pub(crate) fn crash() -> (Tally, Step) {
    let mut walk = crash_build();
    walk.args(["--test", "it", "--", "crash::", "--show-output"]);
    let ended = at_once(vec![("walk | ".to_owned(), walk), steps()]);
    let mut total = Tally::default();
    let mut failures = Vec::new();
    for (tally, result) in ended {
        total += tally;
        failures.extend(result.err().map(|Failed(why)| why));
    }
    (total, Failed::unless_empty(failures))
}

/// The models of the engine, which explore every order of events (`core/src/sys/model`). Optimised, since loom plays each
/// of some hundred thousand orders; in a folder of their own for the same reason as above.
fn models(word: Option<&str>) -> Command {
    let mut command = cargo(&["test", "--package", "procession-core", "--lib", "--release"]);
    command.arg(word.unwrap_or("::orders::"));
    with_flags(&mut command, "RUSTFLAGS", "--cfg loom");
    command.env("CARGO_TARGET_DIR", target().join("loom"));
    command
}

/// The tests of what hostile peers send, for longer, and each time from another seed, which they print.
fn hostile_peers() -> Command {
    let mut command = cargo(&["test", "--package", "procession-core", "--test", "wire"]);
    command.args(["hostile::", "--", "--show-output"]);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let seed = now.unwrap_or_default().as_secs();
    command.env("SEED", seed.to_string()).env("SECONDS", "20");
    command
}

/// The core's tests that make no system call, under miri; `None` where it isn't installed.
fn miri() -> Option<Command> {
    let miri = |words: &[&str]| {
        let mut command = Command::new("rustup");
        command.args(["run", MIRI, "cargo", "miri"]).args(words);
        command.current_dir(root());
        command
    };
    if !succeeds(miri(&["--version"])) {
        return None;
    }
    let mut command = miri(&["test", "--package", "procession-core", "--lib", "--"]);
    command.args(WITHOUT_CALLS);
    command.env("CARGO_TARGET_DIR", target().join("miri"));
    // The simulation asks the environment how many seeds to run: each takes seconds here.
    with_flags(&mut command, "MIRIFLAGS", "-Zmiri-disable-isolation");
    command.env("SEEDS", "2");
    Some(command)
}

/// The Python face's tests on all interpreters: they are asleep half of the time.
fn faces(interpreters: &[Interpreter], word: Option<&str>) -> Vec<(String, Command)> {
    let one = |interpreter: &Interpreter| {
        let mark = format!("{} | ", interpreter.version);
        (mark, face(interpreter, word))
    };
    interpreters.iter().map(one).collect()
}

/// Runs tests side by side. Each line of the output begins with the mark of the command whose it is.
fn at_once(commands: Vec<(String, Command)>) -> Vec<(Tally, Step)> {
    std::thread::scope(|scope| {
        let running: Vec<_> = commands
            .into_iter()
            .map(|(mark, command)| scope.spawn(move || counted(command, &mark)))
            .collect();
        let ended = running.into_iter().map(ScopedJoinHandle::join);
        ended
            .map(|one| one.unwrap_or_else(|panic| resume_unwind(panic)))
            .collect()
    })
}

/// The Python face's tests on one interpreter. A test that hangs must not hang the run: each file has its own
/// watchdog (docs/testing.md).
fn face(interpreter: &Interpreter, word: Option<&str>) -> Command {
    let mut command = interpreter.command();
    command.args(["-m", "unittest", "discover", "-s"]);
    command.arg(root().join("python/tests"));
    if root().join("python/tests/__init__.py").exists() {
        command.arg("-t").arg(root().join("python"));
    }
    if let Some(word) = word {
        command.args(["-k", word]);
    }
    command
}
