//! What can be said about the code without running it.

use crate::run::{Failed, Step, cargo, step, succeeds, target, with_flags};
use crate::{planted, python, tidy};

/// Formatting, lints, documentation, tidy, and whether the planted bugs still apply. All are tried; a tool that this machine lacks is skipped with a line.
pub(crate) fn perform() -> Step {
    let parts = [
        tidy::perform(),
        planted::check(),
        formatting(),
        lints(),
        crash_lints(),
        documentation(),
    ];
    let failures = parts.into_iter().filter_map(Result::err);
    Failed::unless_empty(failures.map(|failed| failed.0))
}

fn formatting() -> Step {
    if !has("fmt") {
        return Ok(());
    }
    step(cargo(&["fmt", "--all", "--check"]))
}

fn lints() -> Step {
    if !has("clippy") {
        return Ok(());
    }
    let mut command = cargo(&["clippy", "--workspace", "--all-targets"]);
    command.args(["--", "-D", "warnings"]);
    python::choose_for_build(&mut command);
    step(command)
}

/// What only the build with crash points compiles: those, simulated processes, and the tests of both.
fn crash_lints() -> Step {
    if !has("clippy") {
        return Ok(());
    }
    let mut command = cargo(&["clippy", "--package", "procession-core", "--all-targets"]);
    command.args(["--", "-D", "warnings"]);
    with_flags(&mut command, "RUSTFLAGS", "--cfg crash_points");
    command.env("CARGO_TARGET_DIR", target().join("crash_points"));
    step(command)
}

fn documentation() -> Step {
    let mut command = cargo(&[
        "doc",
        "--workspace",
        "--no-deps",
        "--document-private-items",
    ]);
    // Private items are documented too, for the reader of the engine, so a link to one leads somewhere.
    let flags = "-D warnings -A rustdoc::private_intra_doc_links";
    with_flags(&mut command, "RUSTDOCFLAGS", flags);
    python::choose_for_build(&mut command);
    step(command)
}

/// Whether cargo has this subcommand here; says so if not.
fn has(subcommand: &str) -> bool {
    let has = succeeds(cargo(&[subcommand, "--version"]));
    if !has {
        println!("skipped: cargo {subcommand} isn't installed on this machine");
    }
    has
}
