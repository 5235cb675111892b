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

const USAGE: &str = "\
cargo xtask VERB

  demo [--quick] [--python P]   the main job on the standard library, on procession and in Rust, side by side
  test [WORD]                   the tests of Rust, with and without crash points, then those of Python on each
                                interpreter that is found (3.11 to 3.13); WORD is a filter for both
  check                         formatting, clippy, documentation, and the rules of the house (tidy)
  ci                            check, test, demo --quick and a bounded conformance run: what CI runs
  bench [--quick] [WORD]        both faces beside their peers and the bare limits
  conformance [--python P] [--method fork|spawn|forkserver] [WORD]
                                CPython's own suite on the package
  build-python                  the extension module, put where `import procession` finds it
  wheel [--python P]            a wheel of the Python face, in target/wheels
";

fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let verb = words.next().unwrap_or_default();
    let begin = Instant::now();
    let result = Arguments::parse(&verb, words).and_then(|arguments| perform(&verb, &arguments));
    match result {
        Ok(()) => {
            println!("xtask {verb}: done in {}", run::seconds(begin.elapsed()));
            ExitCode::SUCCESS
        }
        Err(Failed(why)) => {
            eprintln!("xtask {verb}: failed: {why}");
            ExitCode::FAILURE
        }
    }
}

fn perform(verb: &str, arguments: &Arguments) -> Step {
    let word = arguments.word.as_deref();
    match verb {
        "demo" => demo::perform(arguments),
        "test" => suite::perform(word),
        "check" => check::perform(),
        "ci" => ci(),
        "bench" => bench::perform(arguments.quick, word),
        "conformance" => conformance::perform(arguments),
        "build-python" => python::build(),
        "wheel" => wheel::perform(arguments),
        _ => {
            eprint!("{USAGE}");
            Err(Failed::new("no such verb"))
        }
    }
}

/// What CI runs, in the order in which a failure is cheapest. Each part runs even if one before it failed, so that one
/// run says all there is to say.
fn ci() -> Step {
    let quick = Arguments {
        quick: true,
        ..Arguments::default()
    };
    let parts = [
        ("check", check::perform()),
        ("demo", demo::perform(&quick)),
        ("conformance", conformance::bounded()),
        // Last: its closing line is the one that a reader of the log looks for.
        ("test", suite::perform(None)),
    ];
    let failures = parts
        .into_iter()
        .filter_map(|(name, result)| Some(format!("{name}: {}", result.err()?.0)));
    Failed::unless_empty(failures)
}
