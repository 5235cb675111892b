//! Processes that run one function.

use crate::error::{Error, ErrorKind, JoinError, Result};
use crate::function::{self, Named, Whole};
use crate::launch::{self, Launched};
use procession_core::{Deadline, ExitStatus};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

const TERMINATE: i32 = 15;
const KILL: i32 = 9;

/// A process that runs a function of this program, and gives its value back.
///
/// It is this program, started again: nothing of this process' memory is in it but the argument, and standard streams
/// and environment are inherited. The function is a plain one, or a closure that captures nothing:
///
/// ```compile_fail,E0080
/// let captured = 5;
/// procession::Process::spawn(move |number: i32| number + captured, 1).unwrap();
/// ```
///
/// Dropping it lets the process run on, as with a thread, and nobody waits for it when this process ends.
///
/// # Across processes
/// It ends with this process only as a [`daemon`](Builder::daemon).
///
/// # After fork
/// The forked process can ask for its id and signal it, and not join it.
///
/// Python: `Process`.
pub struct Process<T> {
    launched: Option<Launched>,
    name: String,
    given: bool,
    value: PhantomData<fn() -> T>,
}

/// What a process is to be like, before it is started.
///
/// ```no_run
/// # fn main() -> procession::Result<()> {
/// let child = procession::Process::<()>::builder()
///     .name("heart")
///     .daemon(true)
///     .spawn(|seconds: u64| std::thread::sleep(std::time::Duration::from_secs(seconds)), 60)?;
/// assert_eq!(child.name(), "heart");
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Default)]
pub struct Builder {
    name: Option<String>,
    daemon: bool,
}

impl Builder {
    /// Names it, for logs: in this process only.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Has it killed when this process is gone, however that goes.
    #[must_use]
    pub fn daemon(mut self, daemon: bool) -> Self {
        self.daemon = daemon;
        self
    }

    /// Starts it, as [`Process::spawn`] does.
    ///
    /// # Errors
    /// As [`Process::spawn`].
    pub fn spawn<F, A, T>(self, function: F, argument: A) -> Result<Process<T>>
    where
        F: Fn(A) -> T + Copy + 'static,
        A: Serialize + DeserializeOwned + 'static,
        T: Serialize + DeserializeOwned + 'static,
    {
        let named = Named::of::<Whole, F, A, T>(function)?;
        let launched = launch::start_call(named, &argument, self.daemon)?;
        let pid = launched.child.pid();
        Ok(Process {
            launched: Some(launched),
            name: self.name.unwrap_or_else(|| format!("Process-{pid}")),
            given: false,
            value: PhantomData,
        })
    }
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
    /// `Misuse` when [`init`](crate::init) wasn't called; `Encoding` when the argument can't be encoded; `Os` or
    /// `Exhausted` when there are no processes, descriptors or memory.
    ///
    /// # Examples
    /// ```no_run
    /// # fn main() -> procession::Result<()> {
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

    /// Waits until it has ended, and gives what its function returned. Sleeps in the kernel.
    ///
    /// # Errors
    /// [`Panicked`](JoinError::Panicked) with the message of a panic; [`Lost`](JoinError::Lost) with the exit status
    /// when the process ended, was killed or called [`exit`](std::process::exit) before the function returned.
    ///
    /// Python: `Process.join`, and the value, for which Python needs a queue.
    pub fn join(mut self) -> Result<T, JoinError>
    where
        T: DeserializeOwned,
    {
        self.end(Deadline::NEVER)
            .unwrap_or_else(|| Err(joined().into()))
    }

    /// As [`join`](Self::join), for at most so long; `None` if it still runs then. The value is given once.
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
        let launched = self.launched()?;
        let status = match launched.wait(deadline) {
            Ok(status) => status?,
            Err(error) => return Some(Err(error.into())),
        };
        if self.given {
            return Some(Err(joined().into()));
        }
        let end = match launched.answer() {
            Ok(Some(answer)) => function::value(answer.tag, &answer.bytes),
            Ok(None) => Err(JoinError::Lost(status)),
            Err(error) => Err(error.into()),
        };
        self.given = true;
        Some(end)
    }

    /// Whether it runs, at this moment.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        self.exit_status().is_none()
    }

    /// How it ended; `None` while it runs. Never waits.
    #[must_use]
    pub fn exit_status(&self) -> Option<ExitStatus> {
        self.launched()?.wait(Deadline::now()).ok().flatten()
    }

    /// Its exit code, or minus the signal that ended it; `None` while it runs.
    ///
    /// Python: `Process.exitcode`.
    #[must_use]
    pub fn exit_code(&self) -> Option<i32> {
        self.exit_status().map(ExitStatus::number)
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.launched().map_or(0, |launched| launched.child.pid())
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Asks it to end, with SIGTERM. Nothing happens if it has ended.
    ///
    /// # Errors
    /// `Os` when the system forbids it.
    pub fn terminate(&self) -> Result<()> {
        self.signal(TERMINATE)
    }

    /// Ends it, with SIGKILL. Nothing happens if it has ended.
    ///
    /// # Errors
    /// `Os` when the system forbids it.
    pub fn kill(&self) -> Result<()> {
        self.signal(KILL)
    }

    fn signal(&self, signal: i32) -> Result<()> {
        self.launched()
            .map_or(Ok(()), |launched| launched.signal(signal))
    }

    /// There is one until the drop.
    fn launched(&self) -> Option<&Launched> {
        self.launched.as_ref()
    }
}

fn joined() -> Error {
    Error::new(
        ErrorKind::Misuse,
        "join a process: its end was given before",
    )
}

impl<T> Drop for Process<T> {
    fn drop(&mut self) {
        if let Some(launched) = self.launched.take() {
            launched.detach();
        }
    }
}

impl<T> fmt::Debug for Process<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process")
            .field("name", &self.name)
            .field("pid", &self.pid())
            .field("exit_status", &self.exit_status())
            .finish()
    }
}
