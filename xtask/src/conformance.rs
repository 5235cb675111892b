//! CPython's own suite on the package: python/tests/conformance.

use crate::arguments::Arguments;
use crate::python::{self, Interpreter};
use crate::run::{Failed, Step, root, step};

/// All start methods.
const METHODS: [&str; 3] = ["fork", "spawn", "forkserver"];

/// What CI runs on each interpreter: the classes for what is built, on each start method. The rest of the
/// suite is mostly about what isn't built yet, and takes long to say so.
const BOUNDED: [&str; 47] = [
    "WithProcessesTestLock",
    "WithProcessesTestSemaphore",
    "WithProcessesTestCondition",
    "WithProcessesTestEvent",
    "WithProcessesTestBarrier",
    "WithProcessesTestQueue",
    "TestSimpleQueue",
    "WithProcessesTestProcess",
    "WithProcessesTestPool",
    "WithProcessesTestLogging",
    "WithProcessesTestFinalize",
    "WithProcessesTestAtExit",
    "WithProcessesTestSubclassingProcess",
    "TestStartMethod",
    "TestCloseFds",
    "TestIgnoreEINTR",
    "TestForkAwareThreadLock",
    "TestStdinBadfiledescriptor",
    "TestNoForkBomb",
    "TestInitializers",
    "_TestImportStar",
    "MiscTestCase",
    "TestInternalDecorators",
    "TestTimeouts",
    "WithThreadsTestProcess",
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
    "WithThreadsTestQueue",
    "TestNamedResource",
    "TestResourceTracker",
    "TestConnection",
    "TestListener",
    "TestPoll",
    "TestPicklingConnections",
    "TestWait",
    "TestInvalidHandle",
    "TestInvalidFamily",
    "ChallengeResponseTest",
    "OtherTest",
];

/// The suite of main modules, which lies beside it: how each kind comes to children.
const MAIN_MODULES: [&str; 1] = ["CmdLineTest"];

/// Runs the suite, or the tests that have `word` in `Class.test`, on the interpreter that was asked for or on each one
/// that is found.
pub(crate) fn perform(arguments: &Arguments) -> Step {
    let interpreters = match &arguments.python {
        Some(program) => vec![Interpreter::named(program)?],
        None => Interpreter::all()?,
    };
    let methods: Vec<&str> = match arguments.method.as_deref() {
        Some(method) => vec![method],
        None => METHODS.to_vec(),
    };
    let words: Vec<&str> = arguments.word.as_deref().into_iter().collect();
    run(&interpreters, &methods, &[], &words)
}

/// What CI runs.
pub(crate) fn bounded() -> Step {
    let interpreters = Interpreter::all()?;
    run(&interpreters, &METHODS, &[], &BOUNDED)?;
    run(&interpreters, &METHODS, &["--companions"], &MAIN_MODULES)
}

fn run(interpreters: &[Interpreter], methods: &[&str], options: &[&str], words: &[&str]) -> Step {
    python::build()?;
    let mut failures = Vec::new();
    for interpreter in interpreters {
        println!("Python {}:", interpreter.version);
        let mut command = interpreter.command();
        command.arg(root().join("python/tests/conformance/run.py"));
        // Its tests sleep most of the time.
        command.args(["--jobs", "2"]).args(options);
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
