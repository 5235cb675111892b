//! What a process is to be like, before it is started.

use super::{ChildHandle, Process, Stdio};
use crate::error::{Error, Result};
use crate::function::{Named, Whole};
use crate::launch::{self, Plan};
use procession_core::Setting;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::PathBuf;

/// How a process comes to be.
///
/// | | `Spawn` | `Fork` |
/// |---|---|---|
/// | it is | this program, started again | a copy of this process, as it is |
/// | memory of this process | nothing but the argument | all of it |
/// | descriptors | standard streams | all |
/// | may be started | anywhere | while this process has one thread |
/// | `main` must call [`init`](crate::init) | yes | no |
/// | costs | about a millisecond | 0.3 ms, and more the more memory this process has |
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
}

impl fmt::Display for StartMethod {
    /// As Python has it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Fork => "fork",
            Self::Spawn => "spawn",
        })
    }
}

/// A change of the environment.
#[derive(Debug)]
enum Change {
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
        let mut setting = Setting::default();
        for change in self.environment {
            change.make(&mut setting)?;
        }
        if let Some(path) = self.directory {
            setting.directory(&path).map_err(|error| {
                Error::at(&format!("start a process in the directory {path:?}"), error)
            })?;
        }
        let mut ends = [None, None, None];
        for (number, (stream, end)) in self.streams.into_iter().zip(&mut ends).enumerate() {
            let (theirs, mine) = stream.open(number)?;
            if let Some(theirs) = theirs {
                setting.stream(number, theirs);
            }
            *end = mine;
        }
        Ok(Plan {
            name: self.name,
            kind: "Process",
            daemon: self.daemon,
            method: self.method,
            setting,
            ends,
        })
    }
}

impl Change {
    fn make(self, setting: &mut Setting) -> Result<()> {
        let (name, value) = match self {
            Self::Clear => {
                setting.clear_environment();
                return Ok(());
            }
            Self::Set(name, value) => (name, Some(value)),
            Self::Remove(name) => (name, None),
        };
        setting.variable(&name, value.as_deref()).map_err(|error| {
            let value = value.map_or_else(String::new, |value| format!(" to {value:?}"));
            Error::at(
                &format!("set the variable {name:?}{value} for a process"),
                error,
            )
        })
    }
}
