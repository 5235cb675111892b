//! Every kind of peer with every other, as client and as server: our Rust face, our Python face, and stock Pythons.
//!
//! Each pair talks four times, at an address of each family with a wrong key and then with the right one, and says so line by
//! line: `rust/examples/peer.rs` and `python/tests/interop/peer.py`.

use crate::python::{self, Interpreter};
use crate::run::{Failed, Step, cargo, piped, root, seconds, show, step, target};
use crate::tally::Tally;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

/// What speaks for Python: the standard library, and the package.
const PACKAGES: [&str; 2] = ["multiprocessing", "procession"];

/// What both ends say, one line a talk: a wrong key, the right one, and the same at the other address.
const EXPECTED: [&str; 4] = ["refused", TALK, "refused", TALK];
const TALK: &str = "4081347 bytes";

/// A pair that isn't done after so long hangs, however busy the machine is.
const LIMIT: Duration = Duration::from_secs(90);

/// A kind of program.
#[derive(Debug)]
enum Peer {
    Rust,
    Python(&'static str, Interpreter),
}

impl Peer {
    fn name(&self) -> String {
        match self {
            Self::Rust => "rust".to_owned(),
            Self::Python("multiprocessing", python) => format!("stock {}", python.version),
            Self::Python(_, python) => format!("python {}", python.version),
        }
    }

    fn is_python(&self) -> bool {
        matches!(self, Self::Python(..))
    }

    fn command(&self) -> Command {
        match self {
            Self::Rust => Command::new(target().join("debug/examples/peer")),
            Self::Python(package, python) => {
                let mut command = python.command();
                command.arg(root().join("python/tests/interop/peer.py"));
                command.arg(package);
                command
            }
        }
    }
}

/// Has all of them talk, prints the table of pairs, and counts the talks.
pub(crate) fn perform() -> (Tally, Step) {
    let mut tally = Tally::default();
    let peers = match prepare() {
        Ok(peers) => peers,
        Err(failed) => {
            tally.failed += 1;
            return (tally, Err(failed));
        }
    };
    let begin = Instant::now();
    println!("talks of each client (a line) with each server (a column), of 4:");
    println!("{:>12} {}", "", line(peers.iter().map(Peer::name)));
    let mut failures = Vec::new();
    for client in &peers {
        let mut talks = Vec::new();
        for server in &peers {
            let good = match talk(server, client) {
                Ok(()) => EXPECTED.len(),
                Err((good, why)) => {
                    failures.push(format!("{} to {}: {why}", client.name(), server.name()));
                    good
                }
            };
            tally.passed += good as u64;
            tally.failed += (EXPECTED.len() - good) as u64;
            talks.push(good.to_string());
        }
        println!("{:>12} {}", client.name(), line(talks.into_iter()));
    }
    println!("  {}", seconds(begin.elapsed()));
    (tally, Failed::unless_empty(failures))
}

fn line(cells: impl Iterator<Item = String>) -> String {
    cells.map(|cell| format!("{cell:>12}")).collect()
}

/// Builds what is to be built, and finds out who there is.
fn prepare() -> Step<Vec<Peer>> {
    step(cargo(&[
        "build",
        "--package",
        "procession",
        "--example",
        "peer",
    ]))?;
    python::build()?;
    let interpreters = Interpreter::all()?;
    let pythons = PACKAGES.into_iter().flat_map(|package| {
        let interpreters = interpreters.iter().cloned();
        interpreters.map(move |interpreter| Peer::Python(package, interpreter))
    });
    Ok([Peer::Rust].into_iter().chain(pythons).collect())
}

/// One pair's talks; how many were right, and what went wrong, if not all were.
fn talk(server: &Peer, client: &Peer) -> Result<(), (usize, String)> {
    let folder = Folder::new().map_err(|error| (0, format!("a folder: {error}")))?;
    let end = Instant::now() + LIMIT;
    let objects = (server.is_python() && client.is_python()).then_some("objects");
    let mut command = server.command();
    command.arg("listen").arg(&folder.0).args(objects);
    let mut listening = Running::start(command).map_err(|why| (0, why))?;
    let addresses = listening.line(end);
    let Some((inet, unix)) = addresses.as_ref().and_then(|line| line.split_once(' ')) else {
        return Err((
            0,
            listening.complaint("it doesn't say where it listens", end),
        ));
    };
    let mut command = client.command();
    command.arg("connect").args([inet, unix]).args(objects);
    let mut connecting = Running::start(command).map_err(|why| (0, why))?;
    for (good, expected) in EXPECTED.into_iter().enumerate() {
        // The client first: when it has failed, the server waits for another.
        for running in [&mut connecting, &mut listening] {
            let said = running.line(end);
            if said.as_deref() != Some(expected) {
                let what = format!("{said:?} instead of {expected:?}");
                return Err((good, running.complaint(&what, end)));
            }
        }
    }
    for running in [connecting, listening] {
        if let Some(more) = running.line(end) {
            return Err((EXPECTED.len() - 1, running.complaint(&more, end)));
        }
    }
    Ok(())
}

/// A program that talks, and what it says. It is killed when this is dropped.
struct Running {
    shown: String,
    child: Child,
    lines: Receiver<String>,
}

impl Running {
    fn start(command: Command) -> Result<Self, String> {
        let shown = show(&command);
        let started = piped(command);
        let (reader, child) = started.map_err(|error| format!("{shown}: {error}"))?;
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            let mut lines = BufReader::new(reader).lines().map_while(Result::ok);
            lines.all(|line| sender.send(line).is_ok())
        });
        Ok(Self {
            shown,
            child,
            lines,
        })
    }

    /// The next line that it says; `None` when it has ended, or takes too long.
    fn line(&self, end: Instant) -> Option<String> {
        let left = end.saturating_duration_since(Instant::now());
        self.lines.recv_timeout(left).ok()
    }

    /// What went wrong, with all else that it says.
    fn complaint(&self, what: &str, end: Instant) -> String {
        let soon = end.min(Instant::now() + Duration::from_secs(2));
        let rest: Vec<String> = std::iter::from_fn(|| self.line(soon)).collect();
        format!("{}: {what} {}", self.shown, rest.join(" | "))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It fails only if the child has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A folder for the sockets of a pair, which goes with it.
struct Folder(std::path::PathBuf);

impl Folder {
    fn new() -> std::io::Result<Self> {
        let name = format!("procession-interop-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::{Command, Duration, Instant, Running};

    #[test]
    fn what_it_says_comes_line_by_line_and_its_silence_ends() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo one; echo two >&2; exec sleep 600"]);
        let running = Running::start(command).unwrap();
        let end = Instant::now() + Duration::from_secs(60);
        assert_eq!(running.line(end).as_deref(), Some("one"));
        assert_eq!(running.line(end).as_deref(), Some("two"));
        let soon = Instant::now() + Duration::from_millis(30);
        assert_eq!(running.line(soon), None);
        assert!(running.complaint("silence", soon).contains("silence"));
    }
}
