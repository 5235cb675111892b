//! The main job on real input, side by side: an ordinary `multiprocessing` program on the standard library and on
//! procession, and its streaming half in Rust. Their digests must agree.

use crate::arguments::Arguments;
use crate::python::{self, Interpreter};
use crate::report::{number, value};
use crate::run::{Failed, Step, cargo, root, step, step_within, target};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const METHODS: [&str; 2] = ["fork", "spawn"];
/// How long one run may take: a hundred times what it takes on a small machine is a hang.
const LIMIT: Duration = Duration::from_secs(15 * 60);

/// One run of the program.
#[derive(Debug)]
struct Run {
    /// The start method, or a dash in Rust, whose processes are all started by exec.
    method: &'static str,
    /// What it ran on.
    on: &'static str,
    /// What it wrote down: a JSON document.
    document: String,
}

impl Run {
    /// The name of what it writes.
    fn report(method: &str, on: &str) -> String {
        let name = format!("{on}-{method}").replace(' ', "-");
        format!("{}.json", name.trim_end_matches('-'))
    }
}

/// Builds both faces, and runs the job with the interpreter that was asked for.
pub(crate) fn perform(arguments: &Arguments) -> Step {
    let interpreter = Interpreter::chosen(arguments.python.as_deref())?;
    build()?;
    compare(&interpreter, arguments.quick)
}

/// Builds both faces, and runs a small job with each interpreter that is found.
pub(crate) fn quick_on_each() -> Step {
    let interpreters = Interpreter::all()?;
    build()?;
    let failures = interpreters.iter().filter_map(|interpreter| {
        let Failed(why) = compare(interpreter, true).err()?;
        Some(format!("Python {}: {why}", interpreter.version))
    });
    Failed::unless_empty(failures)
}

fn build() -> Step {
    python::build()?;
    step(cargo(&[
        "build",
        "--release",
        "--package",
        "procession",
        "--example",
        "census",
    ]))
}

/// Runs the job on the standard library, on procession and in Rust, compares the digests and prints the times.
fn compare(interpreter: &Interpreter, is_quick: bool) -> Step {
    let reports = target().join("demo").join(&interpreter.version);
    fresh(&reports)?;
    let folder = folder(interpreter, is_quick, &reports)?;
    println!("Python {}, {}", interpreter.version, folder.display());

    let mut runs = Vec::new();
    let mut failures = Vec::new();
    let mut run = |method, on, mut command: Command| {
        let report = reports.join(Run::report(method, on));
        command.arg("--json").arg(&report);
        let done = step_within(command, LIMIT).and_then(|()| read(&report));
        match done {
            Ok(document) => runs.push(Run {
                method,
                on,
                document,
            }),
            Err(Failed(why)) => failures.push(why),
        }
    };
    for method in METHODS {
        run(
            method,
            "multiprocessing",
            census(interpreter, &folder, method, false),
        );
        run(
            method,
            "procession",
            census(interpreter, &folder, method, true),
        );
    }
    let mut rust = Command::new(target().join("release/examples/census"));
    rust.arg(&folder).current_dir(root());
    run("-", "procession in Rust", rust);

    print!("\n{}", table(&runs));
    match agreement(&runs) {
        Ok(line) => println!("{line}"),
        Err(line) => failures.push(line),
    }
    Failed::unless_empty(failures)
}

/// The Python program: as it is, or on procession.
fn census(interpreter: &Interpreter, folder: &Path, method: &str, on_procession: bool) -> Command {
    let mut command = interpreter.command();
    if on_procession {
        command.args(["-m", "procession"]);
    }
    command
        .arg(root().join("python/examples/census.py"))
        .arg(folder)
        .args(["--start-method", method]);
    command
}

/// The folder to take a census of: the interpreter's own standard library, or a copy of two of its packages.
fn folder(interpreter: &Interpreter, is_quick: bool, reports: &Path) -> Step<PathBuf> {
    let ask = "import sysconfig; print(sysconfig.get_path('stdlib'))";
    let library = PathBuf::from(interpreter.evaluate(ask)?);
    if !is_quick {
        return Ok(library);
    }
    let folder = reports.join("sources");
    for package in ["json", "email"] {
        copy(&library.join(package), &folder.join(package))
            .map_err(|error| Failed(format!("{package} of {}: {error}", library.display())))?;
    }
    Ok(folder)
}

/// Copies a package's Python files, not what was compiled from them.
fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let path = entry?.path();
        let place = to.join(path.file_name().unwrap_or_default());
        if path.is_dir() && !path.ends_with("__pycache__") {
            copy(&path, &place)?;
        } else if path.extension().is_some_and(|extension| extension == "py") {
            std::fs::copy(&path, &place)?;
        }
    }
    Ok(())
}

/// An empty folder, whatever an earlier run left.
fn fresh(folder: &Path) -> Step {
    if folder.exists() {
        std::fs::remove_dir_all(folder).map_err(|error| Failed(error.to_string()))?;
    }
    std::fs::create_dir_all(folder)
        .map_err(|error| Failed(format!("{}: {error}", folder.display())))
}

fn read(path: &Path) -> Step<String> {
    std::fs::read_to_string(path).map_err(|error| Failed(format!("{}: {error}", path.display())))
}

/// The times, the standard library's beside ours for each start method.
fn table(runs: &[Run]) -> String {
    let mut table = String::new();
    let head = ["", "start", "parse", "stream", "total"];
    let _ = writeln!(
        table,
        "{:<20}{:<8}{:>18}{:>18}{:>18}",
        head[0], head[1], head[2], head[3], head[4]
    );
    for run in runs {
        let base = runs
            .iter()
            .find(|other| other.on == "multiprocessing" && other.method == run.method);
        let base = base.filter(|base| base.on != run.on);
        let _ = write!(table, "{:<20}{:<8}", run.on, run.method);
        for part in ["parse", "stream", "total"] {
            let seconds = number(&run.document, part);
            let base = base.and_then(|base| number(&base.document, part));
            let _ = write!(table, "{:>18}", cell(seconds, base));
        }
        table.push('\n');
    }
    table
}

/// A time, and how many times faster than the standard library it is.
fn cell(seconds: Option<f64>, base: Option<f64>) -> String {
    match (seconds, base) {
        (None, _) => "-".to_owned(),
        (Some(seconds), Some(base)) if seconds > 0.0 => {
            format!("{seconds:.2} s ({:.1}x)", base / seconds)
        }
        (Some(seconds), _) => format!("{seconds:.2} s"),
    }
}

/// The line that says that all runs came to the same results, or which of them didn't.
fn agreement(runs: &[Run]) -> Result<String, String> {
    let Some(first) = runs
        .iter()
        .find(|run| value(&run.document, "digest").is_some())
    else {
        return Err("no run wrote a digest".to_owned());
    };
    for run in runs {
        // Rust does the streaming half only.
        let keys: &[&str] = match run.method {
            "-" => &["words_digest", "lines"],
            _ => &["digest", "words_digest", "files", "lines"],
        };
        for key in keys {
            let (expected, found) = (value(&first.document, key), value(&run.document, key));
            if expected.is_none() || expected != found {
                return Err(format!(
                    "digests disagree: {key} is {} with {} ({}) and {} with {} ({})",
                    expected.unwrap_or("missing"),
                    first.on,
                    first.method,
                    found.unwrap_or("missing"),
                    run.on,
                    run.method
                ));
            }
        }
    }
    let say = |key| value(&first.document, key).unwrap_or_default();
    Ok(format!(
        "digests agree: {} over {} files and {} lines, in {} runs",
        say("digest"),
        say("files"),
        say("lines"),
        runs.len()
    ))
}

#[cfg(test)]
mod tests {
    use super::{Run, agreement, cell, table};

    fn python(on: &'static str, digest: &str, total: f64) -> Run {
        let document = format!(
            r#"{{"digest": "{digest}", "words_digest": "w", "files": 2, "lines": 9,
                "seconds": {{"parse": 1.0, "stream": 1.0, "total": {total}}}}}"#
        );
        let method = "fork";
        Run {
            method,
            on,
            document,
        }
    }

    fn rust(words_digest: &str) -> Run {
        Run {
            method: "-",
            on: "procession in Rust",
            document: format!(
                r#"{{"words_digest": "{words_digest}", "lines": 9, "seconds": {{"stream": 0.25}}}}"#
            ),
        }
    }

    #[test]
    fn agreement_is_over_all_runs() {
        let runs = [
            python("multiprocessing", "d", 8.0),
            python("procession", "d", 2.0),
            rust("w"),
        ];
        assert_eq!(
            agreement(&runs).unwrap(),
            "digests agree: d over 2 files and 9 lines, in 3 runs"
        );
    }

    #[test]
    fn one_that_differs_is_named() {
        let runs = [
            python("multiprocessing", "d", 8.0),
            python("procession", "e", 2.0),
        ];
        let said = agreement(&runs).unwrap_err();
        assert!(
            said.contains("digest is d with multiprocessing (fork) and e with procession"),
            "{said}"
        );
        let runs = [python("multiprocessing", "d", 8.0), rust("v")];
        assert!(agreement(&runs).unwrap_err().contains("words_digest"));
        assert!(agreement(&[rust("w")]).is_err());
    }

    #[test]
    fn each_run_has_a_report_of_its_own() {
        assert_eq!(Run::report("fork", "procession"), "procession-fork.json");
        assert_eq!(
            Run::report("-", "procession in Rust"),
            "procession-in-Rust.json"
        );
    }

    #[test]
    fn times_stand_beside_the_standard_librarys() {
        let runs = [
            python("multiprocessing", "d", 8.0),
            python("procession", "d", 2.0),
            rust("w"),
        ];
        let table = table(&runs);
        assert!(table.contains("2.00 s (4.0x)"), "{table}");
        assert!(
            table.contains("0.25 s\n") || table.contains("0.25 s "),
            "{table}"
        );
        assert_eq!(cell(None, Some(1.0)), "-");
    }
}
