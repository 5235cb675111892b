//! Planted bugs: deliberate mistakes, each of which some test must find. A harness that finds none of them is not one.
//!
//! Each is a patch in `core/tests/planted` that begins with two lines:
//!
//! ```text
//! # finds: the cheapest command that fails with it, a `cargo test` with what it needs in its environment
//! # what: the mistake, in a few words
//! ```
//!
//! They are applied to a copy of the sources, one at a time; the checkout stays as it is.

use crate::run::{Failed, Step, root, seconds, succeeds, target};
use std::collections::BTreeSet;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Where the patches are.
const FOLDER: &str = "core/tests/planted";
/// What the copy doesn't need.
const LEFT_OUT: [&str; 2] = ["target", ".git"];
/// How long a command may take before it counts as hanging, which is a way of finding something too.
const LIMIT: Duration = Duration::from_secs(240);
/// How long its build may take: the first one on a slow machine begins with nothing.
const BUILD_LIMIT: Duration = Duration::from_secs(1200);

/// A deliberate mistake.
#[derive(Debug)]
struct Planted {
    name: String,
    path: PathBuf,
    finds: String,
    what: String,
}

/// How a command ended.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    NotBuilt(String),
    Passed,
    /// Who failed.
    Failed(String),
}

/// Plants each mistake with `word` in its name, or all, and has its command find it.
pub(crate) fn perform(word: Option<&str>) -> Step {
    let copy = target().join("planted");
    synchronize(&root(), &copy).map_err(|error| Failed(format!("{}: {error}", copy.display())))?;
    // The copy's own: somebody may edit the checkout's meanwhile.
    let all = read(&copy)?;
    let chosen: Vec<_> = all
        .iter()
        .filter(|planted| word.is_none_or(|word| planted.name.contains(word)))
        .collect();
    if chosen.is_empty() {
        return Err(Failed::new("no planted bug has such a name"));
    }
    let mut failures = sound(&chosen, &copy)?;
    for planted in chosen {
        let begin = Instant::now();
        let found = plant(planted, &copy)?;
        let time = seconds(begin.elapsed());
        let (says, is_found) = match found {
            Outcome::Failed(who) => (format!("found by {who}"), true),
            Outcome::Passed => ("NOT found".to_owned(), false),
            Outcome::NotBuilt(why) => (format!("NOT built: {why}"), false),
        };
        println!("{}: {says} ({time}): {}", planted.name, planted.what);
        if !is_found {
            failures.push(format!("{}: {says}", planted.name));
        }
    }
    Failed::unless_empty(failures)
}

/// Whether every patch still fits the sources.
pub(crate) fn check() -> Step {
    if !succeeds(git(&root(), &["--version"])) {
        println!("skipped: git isn't installed on this machine");
        return Ok(());
    }
    let all = read(&root())?;
    println!("planted: {} patches", all.len());
    let stale = all
        .iter()
        .filter(|planted| !apply(&root(), planted, &["--check"]));
    Failed::unless_empty(stale.map(|planted| format!("{} doesn't apply any more", planted.name)))
}

/// The patches of a tree.
fn read(tree: &Path) -> Step<Vec<Planted>> {
    let folder = tree.join(FOLDER);
    let failed = |error| Failed(format!("{}: {error}", folder.display()));
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(&folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|end| end == "patch") {
            paths.push(path);
        }
    }
    paths.sort();
    paths
        .into_iter()
        .map(|path| {
            let text = std::fs::read_to_string(&path).map_err(failed)?;
            let name = path.file_stem().unwrap_or_default().to_string_lossy();
            let (finds, what) =
                head(&text).map_err(|Failed(why)| Failed(format!("{name}: {why}")))?;
            Ok(Planted {
                name: name.into_owned(),
                path,
                finds,
                what,
            })
        })
        .collect()
}

/// The two lines that a patch begins with.
fn head(text: &str) -> Step<(String, String)> {
    let mut lines = text.lines();
    let mut value = |key: &str| {
        let line = lines.next().and_then(|line| line.strip_prefix(key));
        line.map(|value| value.trim().to_owned()).ok_or_else(|| {
            Failed(format!(
                "a patch begins with the lines {:?} and {:?}",
                "# finds:", "# what:"
            ))
        })
    };
    let (finds, what) = (value("# finds:")?, value("# what:")?);
    if !finds.contains("cargo test ") {
        return Err(Failed(format!("{finds:?} isn't a cargo test")));
    }
    Ok((finds, what))
}

/// Runs each command without a mistake: one that fails anyway finds nothing.
fn sound(chosen: &[&Planted], copy: &Path) -> Step<Vec<String>> {
    let commands: BTreeSet<&str> = chosen.iter().map(|planted| &*planted.finds).collect();
    let mut failures = Vec::new();
    for line in commands {
        let outcome = run(line, copy)?;
        if outcome != Outcome::Passed {
            failures.push(format!("without a mistake, {line}: {outcome:?}"));
        }
    }
    Ok(failures)
}

fn plant(planted: &Planted, copy: &Path) -> Step<Outcome> {
    if !apply(copy, planted, &[]) {
        return Ok(Outcome::NotBuilt("it doesn't apply".to_owned()));
    }
    let outcome = run(&planted.finds, copy);
    if !apply(copy, planted, &["--reverse"]) {
        return Err(Failed(format!("{} can't be taken back", planted.name)));
    }
    outcome
}

/// Applies a patch to a tree; false when it doesn't fit.
fn apply(tree: &Path, planted: &Planted, options: &[&str]) -> bool {
    let mut command = git(tree, &["apply", "--whitespace=nowarn"]);
    command.args(options).arg(&planted.path);
    succeeds(command)
}

/// Git in a tree as in any folder: the copy lies in a checkout, and isn't a part of it.
fn git(tree: &Path, words: &[&str]) -> Command {
    let mut command = Command::new("git");
    command.args(words).current_dir(tree);
    command.env("GIT_CEILING_DIRECTORIES", tree.parent().unwrap_or(tree));
    command
}

/// Builds what a command tests, then runs it: what can't be built isn't found.
fn run(line: &str, copy: &Path) -> Step<Outcome> {
    let build = line.replacen("cargo test ", "cargo test --no-run ", 1);
    let (built, said) = shell(&build, copy, BUILD_LIMIT)?;
    if !built {
        let why = said.lines().find(|line| line.starts_with("error"));
        return Ok(Outcome::NotBuilt(
            why.unwrap_or("it said nothing").to_owned(),
        ));
    }
    let (passed, said) = shell(line, copy, LIMIT)?;
    if passed {
        return Ok(Outcome::Passed);
    }
    Ok(Outcome::Failed(who_failed(&said)))
}

/// The first test that failed; else how the program died.
fn who_failed(said: &str) -> String {
    let test = said.lines().find_map(|line| {
        let name = line.strip_prefix("test ")?.strip_suffix(" ... FAILED")?;
        Some(name.to_owned())
    });
    test.unwrap_or_else(|| {
        let died = said
            .lines()
            .find(|line| line.contains("(signal: ") || line.contains("hang"));
        died.unwrap_or("a failure that names no test")
            .trim()
            .to_owned()
    })
}

/// Runs a line of shell in the copy, with build folders of the copy's own; whether it succeeded, and what it said.
fn shell(line: &str, copy: &Path, limit: Duration) -> Step<(bool, String)> {
    println!("$ {line}");
    let failed = |error| Failed(format!("{line}: {error}"));
    let (mut reader, writer) = std::io::pipe().map_err(failed)?;
    let mut command = Command::new("sh");
    command.args(["-c", line]).current_dir(copy);
    command
        .env_remove("CARGO_TARGET_DIR")
        .env_remove("RUSTFLAGS");
    // A group of its own, so that one that hangs can be ended with all that it started.
    command.stdin(Stdio::null()).process_group(0);
    command
        .stdout(writer.try_clone().map_err(failed)?)
        .stderr(writer);
    let mut child = command.spawn().map_err(failed)?;
    drop(command);
    let listener = std::thread::spawn(move || {
        let mut said = Vec::new();
        // What can't be read wasn't said.
        let _ = reader.read_to_end(&mut said);
        String::from_utf8_lossy(&said).into_owned()
    });
    let begin = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().map_err(failed)? {
            break status;
        }
        if begin.elapsed() > limit {
            println!("(killed, since it didn't end within {})", seconds(limit));
            let group = format!("-{}", child.id());
            // It fails only if all of them have ended meanwhile.
            let mut kill = Command::new("kill");
            kill.args(["-KILL", "--", &group]);
            let _ = succeeds(kill);
            return Ok((false, format!("it hangs for {}", seconds(limit))));
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let said = listener.join().unwrap_or_default();
    Ok((status.success(), said))
}

/// Makes `copy` the same tree as `from`. Files that are the same stay as they are, so that builds go on from the last.
fn synchronize(from: &Path, copy: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(copy)?;
    let mut names = BTreeSet::new();
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        if LEFT_OUT.iter().any(|name| entry.file_name() == *name) {
            continue;
        }
        names.insert(entry.file_name());
        let (one, other, kind) = (
            entry.path(),
            copy.join(entry.file_name()),
            entry.file_type()?,
        );
        if kind.is_dir() {
            synchronize(&one, &other)?;
        } else if kind.is_file() {
            let new = std::fs::read(&one)?;
            if std::fs::read(&other).ok().as_ref() != Some(&new) {
                std::fs::write(&other, new)?;
            }
        }
    }
    for entry in std::fs::read_dir(copy)? {
        let entry = entry?;
        if names.contains(&entry.file_name()) || entry.file_name() == "target" {
            continue;
        }
        if entry.file_type()?.is_dir() {
            std::fs::remove_dir_all(entry.path())?;
        } else {
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{head, who_failed};

    #[test]
    fn a_patch_says_who_finds_it() {
        let text = "# finds: A=1 cargo test -p x word\n# what: too few\n\n--- a/x\n";
        let expected = ("A=1 cargo test -p x word".to_owned(), "too few".to_owned());
        assert_eq!(head(text), Ok(expected));
        assert!(head("--- a/x\n").is_err());
        assert!(head("# finds: make\n# what: too few\n").is_err());
    }

    #[test]
    fn whoever_failed_first_is_named() {
        let said = "test a ... ok\ntest b::c ... FAILED\ntest d ... FAILED\n";
        assert_eq!(who_failed(said), "b::c");
        let died =
            "error: test failed\n  process didn't exit successfully: `it` (signal: 6, SIGABRT)\n";
        assert!(who_failed(died).contains("signal: 6"));
    }
}
