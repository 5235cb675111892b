//! Running commands: each is printed as a person would type it, and how long it took.

use crate::tally::Tally;
use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, PipeReader};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

/// How long output is still awaited from what a command left behind, once the command itself has ended.
const AFTERMATH: Duration = Duration::from_secs(2);

/// How long one command's tests may take, what it compiles first included: the whole of CI has an hour, of which each of
/// them takes a few minutes. Tests have watchdogs of their own, which also say where they hang.
const TESTS_LIMIT: Duration = Duration::from_secs(20 * 60);

/// What failed, as a line for a person.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Failed(pub(crate) String);

/// The result of a step.
pub(crate) type Step<T = ()> = Result<T, Failed>;

impl Failed {
    /// A failure, described without a full stop.
    pub(crate) fn new(why: impl Into<String>) -> Self {
        Self(why.into())
    }

    /// All failures as one, or success when there are none.
    pub(crate) fn unless_empty(failures: impl IntoIterator<Item = String>) -> Step {
        let failures: Vec<String> = failures.into_iter().collect();
        if failures.is_empty() {
            Ok(())
        } else {
            Err(Self(failures.join("; ")))
        }
    }
}

/// The root of the checkout.
pub(crate) fn root() -> PathBuf {
    let manifest = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().map_or(manifest.clone(), PathBuf::from)
}

/// The folder that cargo builds into.
pub(crate) fn target() -> PathBuf {
    let named = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    root().join(named)
}

/// The cargo that runs us, at the root.
pub(crate) fn cargo(words: &[&str]) -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(program);
    command.args(words).current_dir(root());
    command
}

/// Adds to the flags that the caller's environment already gives the compiler.
pub(crate) fn with_flags(command: &mut Command, variable: &str, flags: &str) {
    let mut all = std::env::var_os(variable).unwrap_or_default();
    if !all.is_empty() {
        all.push(" ");
    }
    all.push(flags);
    command.env(variable, all);
}

/// Whether a command can be run at all; what it says is not shown.
pub(crate) fn succeeds(mut command: Command) -> bool {
    let quiet = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    quiet.status().is_ok_and(|status| status.success())
}

/// Runs a command to its end.
pub(crate) fn step(mut command: Command) -> Step {
    let shown = show(&command);
    println!("$ {shown}");
    let begin = Instant::now();
    let status = command.status();
    conclude(&shown, begin, status)
}

/// Runs a command to its end, or kills it after so long: what hangs doesn't hang us.
pub(crate) fn step_within(mut command: Command, limit: Duration) -> Step {
    let shown = show(&command);
    println!("$ {shown}");
    let begin = Instant::now();
    let status = command.spawn().and_then(|mut child| {
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            if begin.elapsed() > limit {
                stop(&mut child, limit);
                return child.wait();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    conclude(&shown, begin, status)
}

/// Kills a command that takes too long. What it started may outlive it.
fn stop(child: &mut Child, limit: Duration) {
    println!("(killed, since it didn't end within {})", seconds(limit));
    // It fails only if the child has ended meanwhile.
    let _ = child.kill();
}

/// Starts a command without input, whose output and errors come in order from one pipe.
pub(crate) fn piped(mut command: Command) -> io::Result<(PipeReader, Child)> {
    let (reader, writer) = io::pipe()?;
    command.stdin(Stdio::null()).stdout(writer.try_clone()?);
    // The command keeps its ends of the pipe until it is dropped.
    Ok((reader, command.stderr(writer).spawn()?))
}

/// Runs a command to its end and shows what it says, each line behind a mark, counting the tests in it.
///
/// Standard output and standard error share a pipe, so that they stay in order. A process that the command left
/// behind may hold that pipe open for ever: it is listened to for two more seconds. A command that doesn't end is killed.
pub(crate) fn counted(command: Command, mark: &str) -> (Tally, Step) {
    let shown = show(&command);
    println!("{mark}$ {shown}");
    let begin = Instant::now();
    let mut tally = Tally::default();
    let (reader, mut child) = match piped(command) {
        Ok(spawned) => spawned,
        Err(error) => return (tally, conclude(&shown, begin, Err(error))),
    };
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(reader).split(b'\n').map_while(Result::ok) {
            if sender.send(line).is_err() {
                break;
            }
        }
    });
    let mut ended = None;
    let mut limit = Some(TESTS_LIMIT);
    loop {
        if let Some(limit) = limit.take_if(|limit| begin.elapsed() > *limit) {
            stop(&mut child, limit);
        }
        match lines.recv_timeout(Duration::from_millis(100)) {
            Ok(line) => {
                let line = String::from_utf8_lossy(&line);
                println!("{mark}{line}");
                tally.read(&line);
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                if ended.is_none() && !matches!(child.try_wait(), Ok(None)) {
                    ended = Some(Instant::now());
                }
                if ended.is_some_and(|end| end.elapsed() > AFTERMATH) {
                    println!("(a process that it started still holds its output)");
                    break;
                }
            }
        }
    }
    (tally, conclude(&shown, begin, child.wait()))
}

/// What a command prints; a line about why when it fails.
pub(crate) fn output(mut command: Command) -> Step<String> {
    let shown = show(&command);
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| Failed(format!("{shown}: {error}")))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    } else {
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.trim().lines().last().unwrap_or("it said nothing");
        Err(Failed(format!("{shown}: {}: {last}", output.status)))
    }
}

fn conclude(shown: &str, begin: Instant, status: io::Result<ExitStatus>) -> Step {
    println!("  {}", seconds(begin.elapsed()));
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(Failed(format!("{shown}: {status}"))),
        Err(error) => Err(Failed(format!("{shown}: {error}"))),
    }
}

/// A time as people say it.
pub(crate) fn seconds(time: Duration) -> String {
    let whole = time.as_secs();
    if whole >= 100 {
        format!("{} min {} s", whole / 60, whole % 60)
    } else {
        format!("{:.1} s", time.as_secs_f64())
    }
}

/// A command as a person would type it at the root.
pub(crate) fn show(command: &Command) -> String {
    let set = command.get_envs().filter_map(|(name, value)| {
        let mut pair = name.to_owned();
        pair.push("=");
        pair.push(value?);
        Some(pair)
    });
    let program = command.get_program();
    let program = match program.to_str() {
        Some(path) if path.ends_with("/cargo") => "cargo".into(),
        _ => program.to_owned(),
    };
    let words = set
        .chain([program])
        .chain(command.get_args().map(OsString::from));
    let words: Vec<String> = words.map(|word| quoted(&word.to_string_lossy())).collect();
    words
        .join(" ")
        .replace(&format!("{}/", root().display()), "")
}

fn quoted(word: &str) -> String {
    match word.split_once('=') {
        Some((name, value)) if value.contains(' ') && !name.contains(' ') => {
            format!("{name}='{value}'")
        }
        _ if word.is_empty() || word.contains([' ', '*', '(', ';', '"']) => format!("'{word}'"),
        _ => word.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::{Command, Duration, counted, output, root, seconds, show, step, step_within};

    #[test]
    fn a_command_is_shown_as_it_would_be_typed() {
        let mut command = Command::new("/opt/bin/cargo");
        command.args(["test", "two words"]).env("FLAGS", "--cfg x");
        command.arg(root().join("python/tests"));
        assert_eq!(
            show(&command),
            "FLAGS='--cfg x' cargo test 'two words' python/tests"
        );
    }

    #[test]
    fn failures_name_the_command_and_the_status() {
        let failure = step(Command::new("false")).unwrap_err().0;
        assert_eq!(failure, "false: exit status: 1");
        assert!(step(Command::new("/nowhere/program")).is_err());
        assert!(output(Command::new("false")).is_err());
    }

    #[test]
    fn what_hangs_is_killed() {
        let mut command = Command::new("sleep");
        command.arg("600");
        let failure = step_within(command, Duration::from_millis(50)).unwrap_err();
        assert_eq!(failure.0, "sleep 600: signal: 9 (SIGKILL)");
        assert_eq!(
            step_within(Command::new("true"), Duration::from_secs(600)),
            Ok(())
        );
    }

    #[test]
    fn both_streams_are_counted() {
        let mut command = Command::new("sh");
        command.args([
            "-c",
            "echo 'Ran 3 tests in 0.1s' >&2; echo 'FAILED (failures=1)'",
        ]);
        let (tally, result) = counted(command, "");
        assert_eq!((tally.passed, tally.failed), (2, 1));
        assert_eq!(result, Ok(()));
    }

    #[test]
    fn a_process_left_behind_does_not_hold_us_up() {
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 5 & echo 'Ran 1 test in 0.1s'"]);
        assert_eq!(counted(command, "").0.passed, 1);
    }

    #[test]
    fn long_times_are_in_minutes() {
        assert_eq!(seconds(Duration::from_millis(1250)), "1.2 s");
        assert_eq!(seconds(Duration::from_secs(125)), "2 min 5 s");
    }
}
