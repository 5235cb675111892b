//! What to start.

use super::Child;
use super::setting::{Setting, string};
use crate::sys::descriptor::FIRST_DESCRIPTOR;
use crate::sys::launch::{self, Plan};
use crate::{Error, Result};
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::path::Path;

/// The executable of this process, whatever has become of its file.
const MYSELF: &str = "/proc/self/exe";

/// A program to be started as a child of this process.
///
/// It gets this process' environment, current directory and standard streams as the [`Setting`] changes them, and beside
/// those exactly the descriptors that were [passed](Self::pass).
#[derive(Debug)]
pub struct Spec {
    program: OsString,
    arguments: Vec<OsString>,
    setting: Setting,
    descriptors: Vec<OwnedFd>,
}

impl Spec {
    /// The program at that path, with no arguments: not even its own name, which is the first one.
    pub fn new(program: impl AsRef<Path>) -> Self {
        Self {
            program: program.as_ref().as_os_str().to_owned(),
            arguments: Vec::new(),
            setting: Setting::default(),
            descriptors: Vec::new(),
        }
    }

    /// This program again, whatever has become of its file since, under the name that it was called by.
    #[must_use]
    pub fn myself() -> Self {
        let name = std::env::args_os().next().unwrap_or_default();
        Self::new(MYSELF).argument(name)
    }

    /// Adds an argument.
    #[must_use]
    pub fn argument(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// Sets a variable of the environment.
    #[must_use]
    pub fn variable(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        let (name, value) = (name.as_ref().to_owned(), value.as_ref().to_owned());
        self.setting.put(name, value);
        self
    }

    /// What it finds when it begins, instead of anything that was set before.
    #[must_use]
    pub fn setting(mut self, setting: Setting) -> Self {
        self.setting = setting;
        self
    }

    /// Passes a descriptor on, and says which number it has in the child, which [`inherited`](crate::inherited) takes.
    ///
    /// # Errors
    /// `Os` when there is no descriptor for a copy.
    pub fn pass(&mut self, descriptor: impl AsFd) -> Result<RawFd> {
        let copy = descriptor.as_fd().try_clone_to_owned();
        let copy = copy.map_err(|error| Error::Os {
            call: "fcntl(F_DUPFD_CLOEXEC)",
            errno: error.raw_os_error().unwrap_or_default(),
        })?;
        let number = FIRST_DESCRIPTOR + RawFd::try_from(self.descriptors.len()).unwrap_or(0);
        self.descriptors.push(copy);
        Ok(number)
    }

    /// Starts it. About a millisecond, whatever this process has in memory.
    ///
    /// # Errors
    /// `Os` when it can't be started; `Misuse` for a zero byte in a string.
    pub fn start(&self) -> Result<Child> {
        let path = string(&self.program)?;
        let arguments = self.arguments.iter().map(string);
        let arguments = arguments.collect::<Result<Vec<_>>>()?;
        let descriptors: Vec<_> = self.descriptors.iter().map(AsFd::as_fd).collect();
        let (streams, directory) = self.setting.descriptors();
        let started = launch::start(&Plan {
            path: &path,
            arguments: &arguments,
            environment: &self.setting.environment()?,
            streams,
            directory,
            descriptors: &descriptors,
        });
        let (pid, pidfd) = started.map_err(|error| match error {
            // Where /proc isn't mounted: it says what isn't there.
            Error::Os {
                call: "posix_spawn",
                errno,
            } if self.program == MYSELF => Error::Os {
                call: "posix_spawn of /proc/self/exe",
                errno,
            },
            error => error,
        })?;
        Ok(Child::new(pid, pidfd))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStringExt;

    #[test]
    fn a_zero_byte_is_refused() {
        let name = OsString::from_vec(b"a\0b".to_vec());
        let started = Spec::new("/bin/true").argument(name).start();
        assert!(matches!(started, Err(Error::Misuse { .. })));
    }
}
