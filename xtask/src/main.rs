//! The one way in: builds, tests, measures and shows procession.
//!
//! Needs cargo, python3 (3.11 or later) and a C compiler, and no crate. Each verb prints the commands that it runs and how long
//! each took, so that nothing is hidden and any of them can be run by hand.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "it talks to a person"
)]

mod arguments;
mod bench;
mod check;
mod conformance;
mod demo;
mod interop;
mod planted;
mod python;
mod report;
mod run;
mod suite;
mod tally;
mod tidy;
mod wheel;

use arguments::Arguments;
use run::{Failed, Step};
use std::process::ExitCode;
use std::time::Instant;
use tally::Tally;

const USAGE: &str = "\
cargo xtask VERB

  demo [--quick] [--python P]   the main job on the standard library, on procession and in Rust, side by side
  test [WORD]                   the tests of Rust, with and without crash points, the models, and what needs no system
                                under miri, where it is found; then those of Python on each interpreter that is
                                found (3.11 to 3.13); WORD is a filter for both
  crash                         the engine's processes killed and stopped at each store, and dead after each instruction:
                                how many of each, and which stores were not reached
  check                         formatting, clippy, documentation, the rules of the house (tidy), and whether the
                                planted bugs still apply
  ci                            check, demo --quick on each interpreter, a bounded conformance run, test, interop: what CI
                                runs
  bench [--quick] [WORD]        both faces beside their peers and the bare limits
  conformance [--python P] [--method fork|spawn|forkserver] [WORD]
                                CPython's own suite on the package
  interop                       every kind of peer with every other: Rust, the Python face and stock Pythons, as client and as
                                server, both families, right and wrong keys
  planted [WORD]                deliberate mistakes, each in a copy of the sources; some test must find it
  build-python                  the extension module, put where `import procession` finds it
  wheel [--python P]            a wheel of the Python face, in target/wheels
";

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let verb = words.next().unwrap_or_default();
    let begin = Instant::now();
    let (tally, result) = match Arguments::parse(&verb, words) {
        Ok(arguments) => perform(&verb, &arguments),
        Err(failed) => (None, Err(failed)),
    };
    let code = match result {
        Ok(()) => {
            println!("xtask {verb}: done in {}", run::seconds(begin.elapsed()));
            ExitCode::SUCCESS
        }
        Err(Failed(why)) => {
            eprintln!("xtask {verb}: failed: {why}");
            ExitCode::FAILURE
        }
    };
    // The last line of all: it is the one that a reader of the log looks for.
    if let Some(tally) = tally {
        println!("{tally}");
    }
    code
}

fn perform(verb: &str, arguments: &Arguments) -> (Option<Tally>, Step) {
    let counted = match verb {
        "test" => suite::perform(arguments.word.as_deref()),
        "crash" => suite::crash(),
        "interop" => interop::perform(),
        "ci" => ci(),
        _ => return (None, uncounted(verb, arguments)),
    };
    (Some(counted.0), counted.1)
}

/// Performs a verb that isn't about tests.
fn uncounted(verb: &str, arguments: &Arguments) -> Step {
    let word = arguments.word.as_deref();
    match verb {
        "demo" => demo::perform(arguments),
        "check" => check::perform(),
        "bench" => bench::perform(arguments.quick, word),
        "conformance" => conformance::perform(arguments),
        "build-python" => python::build(),
        "planted" => planted::perform(word),
        "wheel" => wheel::perform(arguments),
        _ => {
            eprint!("{USAGE}");
            Err(Failed::new("no such verb"))
        }
    }
}

/// What CI runs, in the order in which a failure is cheapest. Each part runs even if one before it failed, so that one
/// run says all there is to say.
fn ci() -> (Tally, Step) {
    let uncounted = [
        ("check", check::perform()),
        ("demo", demo::quick_on_each()),
        ("conformance", conformance::bounded()),
    ];
    let (mut tally, tests) = suite::perform(None);
    let (talks, interop) = interop::perform();
    tally += talks;
    // A part that failed counts too: a log that ends with none failed means that all is well.
    tally.failed += uncounted
        .iter()
        .map(|(_, result)| u64::from(result.is_err()))
        .sum::<u64>();
    let failures = uncounted
        .into_iter()
        .chain([("test", tests), ("interop", interop)])
        .filter_map(|(name, result)| Some(format!("{name}: {}", result.err()?.0)));
    (tally, Failed::unless_empty(failures))
}
