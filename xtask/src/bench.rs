//! Both faces beside their peers and the bare limits. What it prints is measured on this machine, now.

use crate::python::{self, Interpreter};
use crate::run::{Failed, Step, cargo, output, root, step, target};
use std::process::Command;

/// Runs the benchmarks of both faces; `word` is a part of a scenario's name. A face that has no such scenario is left
/// out with a line.
pub(crate) fn perform(is_quick: bool, word: Option<&str>) -> Step {
    let interpreter = Interpreter::chosen(None)?;
    python::build()?;
    build_rust()?;
    let in_python = || {
        let mut command = interpreter.command();
        command.arg(root().join("bench/python/bench.py"));
        command
    };
    let in_rust = || {
        let mut command = Command::new(target().join("bench/release/mpbench"));
        command.current_dir(root());
        command
    };
    let faces: [(&str, &dyn Fn() -> Command); 2] = [("Python", &in_python), ("Rust", &in_rust)];
    let mut failures = Vec::new();
    let mut measured = 0;
    for (face, program) in faces {
        let mut list = program();
        list.arg("--list");
        select(&mut list, is_quick, word);
        if output(list)?.is_empty() {
            println!("skipped: {face} has no such scenario");
            continue;
        }
        let mut command = program();
        select(&mut command, is_quick, word);
        measured += 1;
        failures.extend(step(command).err().map(|failed| failed.0));
    }
    if measured == 0 {
        failures.push(format!("no scenario matches {}", word.unwrap_or_default()));
    }
    Failed::unless_empty(failures)
}

fn select(command: &mut Command, is_quick: bool, word: Option<&str>) {
    if is_quick {
        command.arg("--quick");
    }
    if let Some(word) = word {
        command.args(["--only", word]);
    }
}

/// Builds the Rust benchmarks: with the peers' crates where they can be fetched and built, else without.
fn build_rust() -> Step {
    let build = |features: &str| {
        let mut command = cargo(&[
            "build",
            "--release",
            "--manifest-path",
            "bench/rust/Cargo.toml",
        ]);
        command.args(["--no-default-features", "--features", features]);
        command.env("CARGO_TARGET_DIR", target().join("bench"));
        step(command)
    };
    build("procession,peers").or_else(|_| {
        println!("skipped: the peers of the Rust face can't be fetched or built here");
        build("procession")
    })
}
