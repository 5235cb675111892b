//! What a process is to be like, before it is started.

use super::{ChildHandle, Process, Stdio};
use crate::error::{Error, Result};
use crate::function::{Named, Whole};
use crate::launch::{self, Plan};
use procession_core::Setting;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::PathBuf;

/// How a process comes to be.
///
/// | | `Spawn` | `Fork` | `Forkserver` |
/// |---|---|---|---|
/// | it is | this program, started again | a copy of this process, as it is | a copy of the fork server: this program, started again once |
/// | memory of this process | nothing but the argument | all of it | nothing but the argument; what the server has [preloaded](crate::init_with) |
/// | descriptors | standard streams | all | standard streams |
/// | environment | this process' | this process' | the server's: as it was at its start |
/// | may be started | anywhere | while this process has one thread | anywhere |
/// | `main` must call [`init`](crate::init) | yes | no | yes |
/// | costs | about a millisecond | 0.3 ms, and more the more memory this process has | 0.5 ms, whatever this process has; 2 ms more the first time |
///
/// ```standalone_crate
/// # fn main() -> procession::Result<()> {
/// procession::init();
/// use procession::{Process, StartMethod};
/// for method in [StartMethod::Spawn, StartMethod::Fork, StartMethod::Forkserver] {
///     let child = Process::builder().start_method(method).spawn(|number: u32| number + 1, 41)?;
///     assert_eq!(child.join()?, 42);
/// }
/// # Ok(())
/// # }
/// ```
///
/// Python: the names of its contexts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StartMethod {
    /// By fork(2), through the C library, so that handlers of pthread_atfork(3) run.
    ///
    /// Only from a process that has a single thread: what others were at would stay half done in the child, and what
    /// they had locked, locked. The child drops nothing of its parent's and runs none of its exit hooks. What C
    /// libraries have in buffers of stdio(3), both may write.
    Fork,
    /// By exec of this program.
    #[default]
    Spawn,
    /// By a fork of the fork server, which is this program, started again at the first use: it has run the hook of
    /// [`init_with`](crate::init_with), and nothing else of `main`.
    ///
    /// The server's child is this process' in all but the system's tables: it is killed with this process if it is a
    /// [daemon](Builder::daemon), its sentinel and its exit status are as exact, and children of its own ask the same
    /// server. The server ends with the last process that could ask it. One that was killed is replaced; children of it
    /// run on.
    Forkserver,
}

impl fmt::Display for StartMethod {
    /// As Python has it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fork => "fork",
            Self::Spawn => "spawn",
            Self::Forkserver => "forkserver",
        })
    }
}

/// A change of the environment.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Change {
    Set(OsString, OsString),
    Remove(OsString),
    Clear,
}

/// What a process is to be like, before it is started: made by [`Process::builder`].
///
/// As [`std::process::Command`], it has errors wait until [`spawn`](Self::spawn).
///
/// ```standalone_crate
/// # fn main() -> procession::Result<()> {
/// procession::init();
/// use std::io::Read;
/// let mut child = procession::Process::builder()
///     .name("heart")
///     .daemon(true)
///     .env("RHYTHM", "sinus")
///     .current_dir("/")
///     .stdout(procession::Stdio::piped())
///     .spawn(|(): ()| print!("{}", std::env::var("RHYTHM").unwrap()), ())?;
/// assert_eq!(child.name(), "heart");
/// let mut text = String::new();
/// child.take_stdout().unwrap().read_to_string(&mut text).unwrap();
/// assert_eq!(text, "sinus");
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Default)]
pub struct Builder {
    name: String,
    daemon: bool,
    method: StartMethod,
    environment: Vec<Change>,
    directory: Option<PathBuf>,
    streams: [Stdio; 3],
}

impl Builder {
    /// Names it, for logs and for itself: [`current_process`](crate::current_process). Else it is `Process-` and the number
    /// of the child, after that of this process.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Has it killed when this process is gone, however that goes. A daemonic process may not start processes itself, so
    /// that nothing of it is left.
    #[must_use]
    pub fn daemon(mut self, daemon: bool) -> Self {
        self.daemon = daemon;
        self
    }

    /// Starts it in another way than by [`Spawn`](StartMethod::Spawn).
    #[must_use]
    pub fn start_method(mut self, method: StartMethod) -> Self {
        self.method = method;
        self
    }

    /// Sets a variable of its environment, which else is this process'.
    #[must_use]
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        let (name, value) = (name.as_ref().to_owned(), value.as_ref().to_owned());
        self.environment.push(Change::Set(name, value));
        self
    }

    /// Sets variables of its environment.
    #[must_use]
    pub fn envs<N: AsRef<OsStr>, V: AsRef<OsStr>>(
        self,
        variables: impl IntoIterator<Item = (N, V)>,
    ) -> Self {
        let variables = variables.into_iter();
        variables.fold(self, |this, (name, value)| this.env(name, value))
    }

    /// Removes a variable from its environment.
    #[must_use]
    pub fn env_remove(mut self, name: impl AsRef<OsStr>) -> Self {
        let name = name.as_ref().to_owned();
        self.environment.push(Change::Remove(name));
        self
    }

    /// Has it begin with an empty environment, but for what is set after this.
    #[must_use]
    pub fn env_clear(mut self) -> Self {
        self.environment.push(Change::Clear);
        self
    }

    /// The directory that it begins in: this process', if it isn't said.
    #[must_use]
    pub fn current_dir(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = Some(directory.into());
        self
    }

    /// Its standard input: this process', if it isn't said. The other end of a [pipe](Stdio::piped) is the handle's:
    /// [`take_stdin`](Process::take_stdin).
    #[must_use]
    pub fn stdin(self, stream: impl Into<Stdio>) -> Self {
        self.stream(0, stream.into())
    }

    /// Its standard output, as [`stdin`](Self::stdin).
    #[must_use]
    pub fn stdout(self, stream: impl Into<Stdio>) -> Self {
        self.stream(1, stream.into())
    }

    /// Its standard error, as [`stdin`](Self::stdin).
    #[must_use]
    pub fn stderr(self, stream: impl Into<Stdio>) -> Self {
        self.stream(2, stream.into())
    }

    fn stream(mut self, number: usize, stream: Stdio) -> Self {
        if let Some(place) = self.streams.get_mut(number) {
            *place = stream;
        }
        self
    }

    /// Starts it, as [`Process::spawn`] does.
    ///
    /// # Errors
    /// As [`Process::spawn`]; `Misuse` for a variable that can't be in an environment, and for a fork of a process that has
    /// several threads; `Os` for a directory that can't be entered.
    pub fn spawn<F, A, T>(self, function: F, argument: A) -> Result<Process<T>>
    where
        F: Fn(A) -> T + Copy + 'static,
        A: Serialize + DeserializeOwned + 'static,
        T: Serialize + DeserializeOwned + 'static,
    {
        let named = Named::of::<Whole, F, A, T>(function)?;
        let (launched, [stdin, stdout, stderr]) = launch::start(self.plan()?, named, &argument)?;
        Ok(Process {
            handle: ChildHandle(launched),
            stdin: stdin.map(Into::into),
            stdout: stdout.map(Into::into),
            stderr: stderr.map(Into::into),
            given: false,
            value: std::marker::PhantomData,
        })
    }

    fn plan(self) -> Result<Plan> {
        let mut plan = Plan::of("Process", self.method);
        for change in &self.environment {
            change.make(&mut plan.setting)?;
        }
        if let Some(path) = self.directory {
            plan.setting.directory(&path).map_err(|error| {
                Error::at(&format!("start a process in the directory {path:?}"), error)
            })?;
        }
        let streams = self.streams.into_iter().zip(&mut plan.ends);
        for (number, (stream, end)) in streams.enumerate() {
            let (theirs, mine) = stream.open(number)?;
            if let Some(theirs) = theirs {
                plan.setting.stream(number, theirs);
            }
            *end = mine;
        }
        if self.method == StartMethod::Forkserver {
            plan.changes = self.environment;
        }
        Ok(Plan {
            name: self.name,
            daemon: self.daemon,
            ..plan
        })
    }
}

impl Change {
    pub(crate) fn make(&self, setting: &mut Setting) -> Result<()> {
        let (name, value) = match self {
            Self::Clear => {
                setting.clear_environment();
                return Ok(());
            }
            Self::Set(name, value) => (name, Some(value)),
            Self::Remove(name) => (name, None),
        };
        let set = setting.variable(name, value.map(OsString::as_os_str));
        set.map_err(|error| {
            let value = value.map_or_else(String::new, |value| format!(" to {value:?}"));
            let doing = format!("set the variable {name:?}{value} for a process");
            Error::at(&doing, error)
        })
    }
}
