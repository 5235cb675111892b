//! CPython's own suite on the package: python/tests/conformance.

use crate::arguments::Arguments;
use crate::python::{self, Interpreter};
use crate::run::{Failed, Step, root, step};

/// What CI runs on each interpreter: the classes for what is built, on both start methods that are. The rest of the
/// suite is mostly about what isn't built yet, and takes long to say so.
const BOUNDED: [&str; 23] = [
    "WithProcessesTestLock",
    "WithProcessesTestSemaphore",
    "WithProcessesTestCondition",
    "WithProcessesTestEvent",
    "WithProcessesTestBarrier",
    "WithProcessesTestQueue",
    "WithProcessesTestProcess",
    "WithProcessesTestPool",
    "WithProcessesTestLogging",
    "WithProcessesTestFinalize",
    "WithProcessesTestAtExit",
    "WithProcessesTestValue",
    "WithProcessesTestArray",
    "WithProcessesTestSharedCTypes",
    "WithProcessesTestHeap",
    "WithProcessesTestSharedMemory",
    "WithThreadsTestLock",
    "WithThreadsTestSemaphore",
    "WithThreadsTestCondition",
    "WithThreadsTestEvent",
    "WithThreadsTestBarrier",
    "TestNamedResource",
    "TestResourceTracker",
];

/// Runs the suite, or the tests that have `word` in `Class.test`, on the interpreter that was asked for or on each one
/// that is found.
pub(crate) fn perform(arguments: &Arguments) -> Step {
    let interpreters = match &arguments.python {
        Some(program) => vec![Interpreter::named(program)?],
        None => Interpreter::all()?,
    };
    let methods: Vec<&str> = match arguments.method.as_deref() {
        Some(method) => vec![method],
        None => vec!["fork", "spawn"],
    };
    let words: Vec<&str> = arguments.word.as_deref().into_iter().collect();
    run(&interpreters, &methods, &words)
}

/// What CI runs.
pub(crate) fn bounded() -> Step {
    run(&Interpreter::all()?, &["fork", "spawn"], &BOUNDED)
}

fn run(interpreters: &[Interpreter], methods: &[&str], words: &[&str]) -> Step {
    python::build()?;
    let mut failures = Vec::new();
    for interpreter in interpreters {
        println!("Python {}:", interpreter.version);
        let mut command = interpreter.command();
        command.arg(root().join("python/tests/conformance/run.py"));
        for method in methods {
            command.args(["--method", method]);
        }
        for word in words {
            command.args(["--only", word]);
        }
        failures.extend(step(command).err().map(|failed| failed.0));
    }
    Failed::unless_empty(failures)
}
