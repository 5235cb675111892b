//! Where a child begins.

use crate::error::{Error, ErrorKind, Result};
use crate::function::{Runner, end};
use crate::launch::{CALL, Ticket};
use crate::tree;
use procession_core::{Deadline, Queue};
use std::io::Write;
use std::sync::OnceLock;

/// Exit code of a child whose function panicked: as of a Rust program whose `main` does.
const PANICKED: i32 = 101;

/// How the children of this process begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// In `main`, by its call of [`init`].
    Main,
    /// In the test of this name.
    Test(&'static str),
}

static MODE: OnceLock<Mode> = OnceLock::new();

/// Makes this program's own processes work: to be called in the first line of `main`.
///
/// In a process that the user started it takes about a microsecond and returns. In a process that was started by
/// this crate it runs that process' function and ends the process; what `main` does after it happens only once in a
/// tree. In tests, where `main` isn't yours, [`test_support!`](crate::test_support) takes its place.
///
/// A child is this program started again with one more argument, `procession-child=…`, behind which its place in
/// the tree stands; a program started by the child doesn't inherit it, as it would a variable of the environment.
///
/// ```no_run
/// fn main() -> procession::Result<()> {
///     procession::init();
///     let child = procession::Process::spawn(|name: String| println!("hello, {name}"), "you".to_owned())?;
///     child.join()?;
///     Ok(())
/// }
/// ```
///
/// Python: `if __name__ == "__main__"` and `freeze_support`, both in one.
pub fn init() {
    begin(Mode::Main);
}

/// What [`test_support!`](crate::test_support) calls: `mark` ends with the test's path, its crate first, and a zero.
pub fn test_entry(mark: &'static str) {
    // The parent looks for it among the program's constants, so it must be one.
    let mark = std::hint::black_box(mark);
    let path = mark.trim_end_matches('\0').rsplit(' ').next();
    if let Some(name) = path.and_then(name_of) {
        begin(Mode::Test(name));
    }
}

/// The name that libtest has for a test: its path without the crate.
fn name_of(path: &str) -> Option<&str> {
    path.split_once("::").map(|(_, name)| name)
}

/// How the children of this process begin.
///
/// # Errors
/// `Misuse` when they can't: `main` hasn't called [`init`], and there is no test for them.
pub(crate) fn mode() -> Result<Mode> {
    if let Some(mode) = MODE.get() {
        return Ok(*mode);
    }
    // Backwards, so that it isn't found here.
    let mark: &[u8] = std::hint::black_box(b" ni nigeb nerdlihc :noissecorp");
    let mark: Vec<u8> = mark.iter().rev().copied().collect();
    let found = procession_core::text_behind(&mark);
    let name = found.as_deref().and_then(name_of).map(str::to_owned);
    let name = name.ok_or_else(|| {
        Error::new(
            ErrorKind::Misuse,
            "start a process: call procession::init() in the first line of main; \
             in tests, write procession::test_support!() once",
        )
    })?;
    Ok(*MODE.get_or_init(|| Mode::Test(name.leak())))
}

/// Becomes a child if this process was started as one.
fn begin(mode: Mode) {
    let last = std::env::args_os().next_back();
    let ticket = last.and_then(|last| Ticket::read(last.to_str()?));
    let _ = MODE.set(mode);
    let Some(ticket) = ticket else {
        return;
    };
    let code = ticket.and_then(run).unwrap_or_else(|error| {
        // Nobody else can be told; without standard error nobody at all.
        let _ = writeln!(std::io::stderr(), "procession: {error}");
        1
    });
    std::process::exit(code);
}

/// Runs the call in the mailbox and answers it; gives the exit code.
fn run(ticket: Ticket) -> Result<i32> {
    let failed = |error| Error::at("begin as a child", error);
    if let Some((parent, by_main_thread)) = ticket.parent {
        procession_core::die_with_parent(parent, by_main_thread).map_err(failed)?;
    }
    let arena = tree::attach(&ticket.token)?;
    let mailbox = crate::error::retry(|| Queue::open(arena, ticket.mailbox)).map_err(failed)?;
    let call = crate::error::retry(|| mailbox.get(Deadline::now())).map_err(failed)?;
    let call = call.filter(|call| call.tag == CALL).ok_or_else(|| {
        Error::new(
            ErrorKind::Malformed,
            "begin as a child: there is nothing to do",
        )
    })?;
    let mut output = Vec::new();
    let (tag, names) = Runner::default().run(&call.bytes, &mut output);
    drop(call);
    crate::error::retry(|| mailbox.put_naming(tag, &[&output], &names, Deadline::NEVER))
        .map_err(|error| Error::at("give a value back", error))?;
    Ok(match tag {
        end::RETURNED => 0,
        end::PANICKED => PANICKED,
        _ => 1,
    })
}
