//! All tests, and how many there were.

use crate::python::{self, Interpreter};
use crate::run::{Failed, Step, cargo, counted, root, target, with_flags};
use crate::tally::Tally;
use std::process::Command;

/// What unittest exits with, from 3.12 on, when it ran no test.
const NO_TESTS: &str = "exit status: 5";

/// Runs the tests of both faces; `word` filters both. What fails doesn't stop the rest.
pub(crate) fn perform(word: Option<&str>) -> (Tally, Step) {
    let mut total = Tally::default();
    let mut failures = Vec::new();
    let mut run = |command: Command| {
        let (tally, result) = counted(command);
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
    run(workspace(word));
    run(crash_walk(word));
    match python::build().and_then(|()| Interpreter::all()) {
        Ok(interpreters) => {
            for interpreter in interpreters {
                println!("Python {}:", interpreter.version);
                run(face(&interpreter, word));
            }
        }
        Err(Failed(why)) => {
            total.failed += 1;
            failures.push(why);
        }
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

/// The core's tests again, in the build in which a process can be killed at each store to shared memory. It has a
/// folder of its own, since other flags would throw away what the first build made.
fn crash_walk(word: Option<&str>) -> Command {
    let mut command = cargo(&["test", "--package", "procession-core", "--no-fail-fast"]);
    with_flags(&mut command, "RUSTFLAGS", "--cfg crash_points");
    command.env("CARGO_TARGET_DIR", target().join("crash_points"));
    command.args(word);
    command
}

/// The two harnesses that kill and stop a process at every store, and at every instruction, with the counts that they
/// print: how many sites, kills, stops, instructions and states.
pub(crate) fn crash() -> (Tally, Step) {
    let mut command = crash_walk(None);
    command.args(["--test", "it", "--", "crash::", "steps::", "--show-output"]);
    counted(command)
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
