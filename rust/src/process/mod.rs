//! Processes that run one function.
//!
//! [`Builder`] says what one is to be like, [`Process`] is one that was started, with its function's value to come, and
//! [`ChildHandle`] the same without the value. Who this process is, and who started it: [`me`].

mod builder;
pub(crate) mod children;
mod handle;
pub(crate) mod me;
mod stdio;
mod wait;

pub(crate) use builder::Change;
pub use builder::{Builder, StartMethod};
pub use children::active_children;
pub use handle::ChildHandle;
pub(crate) use me::Birth;
pub use me::{CurrentProcess, ParentProcess, current_process, parent_process};
pub use stdio::Stdio;
pub use wait::{wait, wait_timeout};

use crate::error::{Error, ErrorKind, JoinError, Result};
use crate::function;
use procession_core::Deadline;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd};
use std::process::{ChildStderr, ChildStdin, ChildStdout};
use std::time::Duration;

/// A process that runs a function of this program, and gives its value back.
///
/// It is this program, started again: nothing of this process' memory is in it but the argument; environment, current
/// directory and standard streams are inherited, unless the [builder](Self::builder) says otherwise, which also knows
/// [other ways](StartMethod) to start it. The function is a plain one, or a closure that captures nothing:
///
/// ```compile_fail,E0080
/// let captured = 5;
/// procession::Process::spawn(move |number: i32| number + captured, 1).unwrap();
/// ```
///
/// Argument and value are of types that serde can encode; another one doesn't compile either:
///
/// ```compile_fail,E0277
/// let thread = std::thread::spawn(|| 1);
/// procession::Process::spawn(|thread: std::thread::JoinHandle<i32>| thread.join().unwrap(), thread).unwrap();
/// ```
///
/// What doesn't concern the value is done by its [`ChildHandle`], which this derefs to: `is_alive`, `exit_code`,
/// `terminate`, `kill`, `interrupt`, `sentinel` and more.
///
/// Dropping it lets the process run on, as with a thread, and nobody waits for it when this process ends. Once it has
/// ended, what is left of it in the system goes when this process next starts or joins a process, or asks for its
/// [`active_children`], where it is found until then.
///
/// # Across processes
/// It ends with this process only as a [`daemon`](Builder::daemon).
///
/// # After fork
/// As its [`ChildHandle`]: it can't be joined.
///
/// Python: `Process`.
pub struct Process<T> {
    handle: ChildHandle,
    stdin: Option<ChildStdin>,
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
    given: bool,
    value: PhantomData<fn() -> T>,
}

impl Process<()> {
    /// What a process is to be like, step by step.
    #[must_use]
    pub fn builder() -> Builder {
        Builder::default()
    }
}

impl<T> Process<T> {
    /// Starts a process that runs `function` with `argument`.
    ///
    /// About a millisecond, whatever this process has in memory. The argument may have any length and name queues and
    /// locks, which the child holds from now on; for several arguments pass a tuple.
    ///
    /// # Errors
    /// `Misuse` when [`init`](crate::init) wasn't called, or in a daemonic process; `Encoding` when the argument can't be
    /// encoded; `Os` or `Exhausted` when there are no processes, descriptors or memory.
    ///
    /// # Examples
    /// ```standalone_crate
    /// # fn main() -> procession::Result<()> {
    /// procession::init();
    /// let child = procession::Process::spawn(|(a, b): (u32, u32)| a + b, (40, 2))?;
    /// assert_eq!(child.join()?, 42);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// Python: `Process(target=…, args=…).start()`.
    pub fn spawn<F, A>(function: F, argument: A) -> Result<Self>
    where
        F: Fn(A) -> T + Copy + 'static,
        A: Serialize + DeserializeOwned + 'static,
        T: Serialize + DeserializeOwned + 'static,
    {
        Builder::default().spawn(function, argument)
    }

    /// Waits until it has ended, and gives what its function returned. Sleeps in the kernel. A pipe to its standard input
    /// that wasn't taken is closed first.
    ///
    /// # Errors
    /// [`Panicked`](JoinError::Panicked) with the message of a panic; [`Lost`](JoinError::Lost) with the exit status
    /// when the process ended, was killed or called [`exit`](std::process::exit) before the function returned;
    /// `Misuse` when it is another process' child.
    ///
    /// Python: `Process.join`, and the value, for which Python needs a queue.
    pub fn join(mut self) -> Result<T, JoinError>
    where
        T: DeserializeOwned,
    {
        drop(self.stdin.take());
        self.end(Deadline::NEVER)
            .unwrap_or_else(|| Err(joined().into()))
    }

    /// As [`join`](Self::join), for at most so long; `None` if it still runs then. The value is given once, and the pipe
    /// to its standard input stays open.
    ///
    /// # Errors
    /// As [`join`](Self::join), and `Misuse` when the value was given before.
    pub fn join_timeout(&mut self, timeout: Duration) -> Option<Result<T, JoinError>>
    where
        T: DeserializeOwned,
    {
        self.end(Deadline::after(timeout))
    }

    fn end(&mut self, deadline: Deadline) -> Option<Result<T, JoinError>>
    where
        T: DeserializeOwned,
    {
        let launched = &self.handle.0;
        if let Err(error) = launched.mine("join") {
            return Some(Err(error.into()));
        }
        match launched.wait_for_end(deadline) {
            Ok(true) => {}
            Ok(false) => return None,
            Err(error) => return Some(Err(error.into())),
        }
        if self.given {
            return Some(Err(joined().into()));
        }
        let end = match launched.answer() {
            Ok(Some(answer)) => {
                launched.answered(answer.tag);
                function::value(answer.tag, &answer.bytes)
            }
            Ok(None) => Err(launched.lost()),
            Err(error) => Err(error.into()),
        };
        self.given = true;
        children::collect();
        Some(end)
    }

    /// This process' end of the [pipe](Stdio::piped) to its standard input, the first time. The child's input ends when it
    /// is dropped.
    pub fn take_stdin(&mut self) -> Option<ChildStdin> {
        self.stdin.take()
    }

    /// This process' end of the pipe from its standard output, the first time.
    pub fn take_stdout(&mut self) -> Option<ChildStdout> {
        self.stdout.take()
    }

    /// This process' end of the pipe from its standard error, the first time.
    pub fn take_stderr(&mut self) -> Option<ChildStderr> {
        self.stderr.take()
    }
}

fn joined() -> Error {
    Error::new(
        ErrorKind::Misuse,
        "join a process: its end was given before",
    )
}

impl<T> Deref for Process<T> {
    type Target = ChildHandle;

    fn deref(&self) -> &ChildHandle {
        &self.handle
    }
}

impl<T> AsFd for Process<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }
}

impl<T> fmt::Debug for Process<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Process").field(&self.handle).finish()
    }
}
