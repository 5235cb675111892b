//! Where a child begins.

use crate::codec;
use crate::connection::passing::{self, Kind};
use crate::error::{Error, ErrorKind, Result, retry};
use crate::function::{Runner, end};
use crate::launch::{CALL, Role, Ticket};
use crate::process::{Birth, Change, me};
use crate::server;
use crate::tree;
use procession_core::process::Others;
use procession_core::{Deadline, Message, Queue, Setting};
use std::io::Write;
use std::os::fd::{OwnedFd, RawFd};
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

/// Exit code of a child whose function panicked: as of a Rust program whose `main` does.
const PANICKED: i32 = 101;

/// The number of the first descriptor that is passed to a spawned child behind the arena's.
const FIRST_PASSED: RawFd = 4;

/// How the children of this process begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// In `main`, by its call of [`init`].
    Main,
    /// In the test of this name.
    Test(&'static str),
}

static MODE: OnceLock<Mode> = OnceLock::new();
/// This process, or one that it was forked from, began as a child in a test.
static IN_TEST: AtomicBool = AtomicBool::new(false);

/// Makes this program's own processes work: to be called in the first line of `main`.
///
/// In a process that the user started it takes about a microsecond and returns. In a process that was started by
/// this crate it runs that process' function and ends the process; what `main` does after it happens only once in a
/// tree. In tests, where `main` isn't yours, [`test_support!`](crate::test_support) takes its place.
///
/// A child is this program started again with one more argument, `procession-child=…`, behind which its place in
/// the tree stands; a program started by the child doesn't inherit it, as it would a variable of the environment. The
/// fork server has `procession-server=…`.
///
/// ```standalone_crate
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
    begin(Mode::Main, || {});
}

/// As [`init`], with a hook for the fork server: what it makes, all children by
/// [`Forkserver`](crate::StartMethod::Forkserver) begin with.
///
/// It runs once, in the server only, which begins at the first such start. It must leave no thread running. If it panics, or
/// leaves a thread, the server says so on standard error and ends, and the start is an error.
///
/// ```standalone_crate
/// use procession::{Process, StartMethod};
/// use std::sync::OnceLock;
///
/// static TABLE: OnceLock<Vec<u64>> = OnceLock::new();
///
/// fn main() -> procession::Result<()> {
///     procession::init_with(|| drop(TABLE.set((0..1000).map(|number| number * number).collect())));
///     let look_up = |place: usize| TABLE.get().expect("it was preloaded")[place];
///     let child = Process::builder().start_method(StartMethod::Forkserver).spawn(look_up, 12)?;
///     assert_eq!(child.join()?, 144);
///     assert!(TABLE.get().is_none());
///     Ok(())
/// }
/// ```
///
/// Python: `set_forkserver_preload`.
pub fn init_with(preload: impl FnOnce()) {
    begin(Mode::Main, preload);
}

/// What [`test_support!`](crate::test_support) calls: `mark` ends with the test's path, its crate first, and a zero.
pub fn test_entry(mark: &'static str, preload: impl FnOnce()) {
    // The parent looks for it among the program's constants, so it must be one.
    let mark = std::hint::black_box(mark);
    let path = mark.trim_end_matches('\0').rsplit(' ').next();
    if let Some(name) = path.and_then(name_of) {
        begin(Mode::Test(name), preload);
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

/// Which threads this process may have when it forks: libtest's first one waits for the test that a child begins in.
pub(crate) fn others() -> Others {
    if IN_TEST.load(Relaxed) {
        Others::ParkedFirst
    } else {
        Others::None
    }
}

/// Becomes a child or the fork server if this process was started as one.
fn begin(mode: Mode, preload: impl FnOnce()) {
    let last = std::env::args_os().next_back();
    let role = last.and_then(|last| Role::read(last.to_str()?));
    let _ = MODE.set(mode);
    let Some(role) = role else {
        return;
    };
    IN_TEST.store(mode != Mode::Main, Relaxed);
    let code = role.and_then(|role| match role {
        Role::Child(ticket) => run(ticket),
        Role::Server { requests, token } => server::serve(&token, requests, preload),
    });
    std::process::exit(code.unwrap_or_else(complain));
}

/// Says why this process can't be what it was started for; gives its exit code.
fn complain(error: Error) -> i32 {
    // Nobody else can be told; without standard error nobody at all.
    let _ = writeln!(std::io::stderr(), "procession: {error}");
    1
}

/// Attaches, then runs the call in the mailbox; gives the exit code.
fn run(ticket: Ticket) -> Result<i32> {
    depend(ticket.parent)?;
    let arena = tree::attach(&ticket.token)?;
    let mailbox = retry(|| Queue::open(arena, ticket.mailbox)).map_err(failed)?;
    let call = Call::take(&mailbox)?;
    let passed = (FIRST_PASSED..).take(call.kinds.len());
    let passed = passed.map(procession_core::inherited);
    let passed = passed.collect::<Result<_, _>>().map_err(failed)?;
    call.run(&mailbox, None, passed)
}

/// What a forked child does, which ends without the exit hooks of its parent; gives the exit code.
pub(crate) fn go_on(work: impl FnOnce() -> Result<i32>) -> i32 {
    let code = work().unwrap_or_else(complain);
    flush();
    if let Ok(arena) = tree::arena() {
        arena.leave();
    }
    code
}

/// Writes what is buffered for standard output.
pub(crate) fn flush() {
    // Nobody to tell: whoever writes next to the same stream is told.
    let _ = std::io::stdout().flush();
}

/// Has this process die with its parent, if it is a daemon.
pub(crate) fn depend(parent: Option<(u32, bool)>) -> Result<()> {
    let Some((parent, by_main_thread)) = parent else {
        return Ok(());
    };
    procession_core::die_with_parent(parent, by_main_thread).map_err(failed)
}

/// Runs the call in the mailbox, with what was passed for it, and answers it; gives the exit code.
pub(crate) fn answer(mailbox: &Queue, passed: Vec<OwnedFd>) -> Result<i32> {
    Call::take(mailbox)?.run(mailbox, None, passed)
}

/// What a child is to do, and who it is.
#[derive(Debug)]
pub(crate) struct Call {
    message: Message,
    birth: Birth,
    changes: Vec<Change>,
    /// Of the connections in the argument.
    kinds: Vec<Kind>,
    /// Where the function's own part of the message begins.
    start: usize,
}

impl Call {
    /// Takes it out of the mailbox.
    pub(crate) fn take(mailbox: &Queue) -> Result<Self> {
        let message = retry(|| mailbox.get(Deadline::now())).map_err(failed)?;
        let message = message.filter(|it| it.tag == CALL).ok_or_else(|| {
            let text = "begin as a child: there is nothing to do";
            Error::new(ErrorKind::Malformed, text)
        })?;
        let mut rest: &[u8] = &message.bytes;
        let (birth, changes, kinds) = codec::decode(&mut rest)?;
        let start = message.bytes.len() - rest.len();
        Ok(Self {
            message,
            birth,
            changes,
            kinds,
            start,
        })
    }

    /// Changes the environment as it says.
    pub(crate) fn enter(&self) -> Result<()> {
        let mut setting = Setting::default();
        for change in &self.changes {
            change.make(&mut setting)?;
        }
        setting.enter().map_err(failed)
    }

    /// Runs it, and puts the answer into the mailbox; gives the exit code. `requester`: the pidfd of the parent, if that
    /// isn't the system's. `passed`: the descriptors of the connections in the argument.
    pub(crate) fn run(
        self,
        mailbox: &Queue,
        requester: Option<OwnedFd>,
        passed: Vec<OwnedFd>,
    ) -> Result<i32> {
        me::be(self.birth, requester);
        let mut output = Vec::new();
        let bytes = self.message.bytes.get(self.start..).unwrap_or_default();
        let run = || Runner::default().run(bytes, &mut output);
        let (tag, names) = passing::having(passed, self.kinds, run);
        drop(self.message);
        retry(|| mailbox.put_naming(tag, &[&output], &names, Deadline::NEVER))
            .map_err(|error| Error::at("give a value back", error))?;
        Ok(match tag {
            end::RETURNED => 0,
            end::PANICKED => PANICKED,
            _ => 1,
        })
    }
}

fn failed(error: procession_core::Error) -> Error {
    Error::at("begin as a child", error)
}
