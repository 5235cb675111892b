//! What a child finds when it begins, where that isn't as its parent has it.

use super::fork::{Others, other_threads};
use crate::sys::{descriptor, fork, launch};
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::ffi::{CString, OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// The environment, the current directory and the standard streams of a child, where they differ from its parent's.
#[derive(Debug, Default)]
pub struct Setting {
    clear: bool,
    /// Without a value: removed.
    variables: BTreeMap<OsString, Option<OsString>>,
    directory: Option<OwnedFd>,
    streams: [Option<OwnedFd>; 3],
}

impl Setting {
    /// Sets a variable of the environment, or removes it.
    ///
    /// # Errors
    /// `Misuse` for a name that is empty or holds `=` or a zero byte, and for a value that holds a zero byte.
    pub fn variable(&mut self, name: &OsStr, value: Option<&OsStr>) -> Result<()> {
        let bytes = name.as_bytes();
        if bytes.is_empty() || bytes.contains(&b'=') || bytes.contains(&0) {
            return Err(Error::Misuse {
                what: "the name of a variable is not empty and has neither `=` nor zero bytes",
            });
        }
        if value.is_some_and(|value| value.as_bytes().contains(&0)) {
            return Err(Error::Misuse {
                what: "the value of a variable has no zero bytes",
            });
        }
        let value = value.map(OsStr::to_owned);
        self.variables.insert(name.to_owned(), value);
        Ok(())
    }

    /// Forgets the environment, what was set so far included.
    pub fn clear_environment(&mut self) {
        self.clear = true;
        self.variables.clear();
    }

    /// Begins in this directory, which is opened now, whatever becomes of its name.
    ///
    /// # Errors
    /// `Os` when it can't be a process' current directory.
    pub fn directory(&mut self, path: &Path) -> Result<()> {
        self.directory = Some(launch::directory(path)?);
        Ok(())
    }

    /// Has a descriptor for standard input, output or error: 0, 1 or 2.
    pub fn stream(&mut self, number: usize, descriptor: OwnedFd) {
        if let Some(stream) = self.streams.get_mut(number) {
            *stream = Some(descriptor);
        }
    }

    /// As [`directory`](Self::directory), of one that is open.
    pub fn open_directory(&mut self, directory: OwnedFd) {
        self.directory = Some(directory);
    }

    /// The descriptors of the streams and the directory that were set.
    #[must_use]
    pub fn descriptors(&self) -> ([Option<BorrowedFd<'_>>; 3], Option<BorrowedFd<'_>>) {
        let streams = self.streams.each_ref();
        let streams = streams.map(|stream| stream.as_ref().map(AsFd::as_fd));
        (streams, self.directory.as_ref().map(AsFd::as_fd))
    }

    /// Sets a variable unseen: a wrong one is found when the program is started.
    pub(super) fn put(&mut self, name: OsString, value: OsString) {
        self.variables.insert(name, Some(value));
    }

    /// This process' environment, changed.
    pub(super) fn environment(&self) -> Result<Vec<CString>> {
        let inherited = std::env::vars_os()
            .filter(|(name, _)| !self.clear && !self.variables.contains_key(name));
        let set = self.variables.iter();
        let set = set.filter_map(|(name, value)| Some((name.clone(), value.clone()?)));
        let lines = inherited.chain(set).map(|(mut line, value)| {
            line.push("=");
            line.push(value);
            string(&line)
        });
        lines.collect()
    }

    /// Makes all of it so in this process; what was passed for it is closed.
    ///
    /// # Errors
    /// `Misuse` for variables, in a process with several threads; `Os` when the directory was closed to this process since
    /// it was opened.
    pub fn enter(self) -> Result<()> {
        if self.clear || !self.variables.is_empty() {
            self.change_environment()?;
        }
        if let Some(directory) = &self.directory {
            fork::set_directory(directory.as_fd())?;
        }
        // Out of the way first: one of them may be in the place of another.
        let (streams, _) = self.descriptors();
        let away = streams.map(|stream| {
            let stream = stream.filter(|stream| descriptor::is_stream(*stream));
            stream.map(descriptor::copy_above_streams)
        });
        for (number, (stream, away)) in streams.into_iter().zip(away).enumerate() {
            let away = away.transpose()?;
            if let Some(stream) = away.as_ref().map(AsFd::as_fd).or(stream) {
                fork::set_stream(number, stream)?;
            }
        }
        Ok(())
    }

    fn change_environment(&self) -> Result<()> {
        if other_threads(Others::None)? > 0 {
            return Err(Error::Misuse {
                what: "the environment of a process with several threads can't be changed",
            });
        }
        if self.clear {
            fork::clear_environment();
        }
        for (name, value) in &self.variables {
            fork::set_variable(name, value.as_ref());
        }
        Ok(())
    }
}

pub(super) fn string(text: &OsString) -> Result<CString> {
    CString::new(text.as_bytes().to_vec()).map_err(|_| Error::Misuse {
        what: "a program's path, arguments and environment have no zero bytes",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_no_variable_has_are_refused() {
        let mut setting = Setting::default();
        for name in ["", "a=b", "=", "a\0"] {
            let set = setting.variable(OsStr::new(name), None);
            assert!(matches!(set, Err(Error::Misuse { .. })), "{name:?}");
        }
        let value = Some(OsStr::new("a\0b"));
        assert!(setting.variable(OsStr::new("A"), value).is_err());
        assert!(setting.variables.is_empty());
    }

    #[test]
    fn a_cleared_environment_has_what_was_set_since() {
        let mut setting = Setting::default();
        setting
            .variable("BEFORE".as_ref(), Some("1".as_ref()))
            .unwrap();
        let with = setting.environment().unwrap();
        assert!(with.len() > 1 && with.contains(&c"BEFORE=1".to_owned()));
        setting.clear_environment();
        setting
            .variable("AFTER".as_ref(), Some("=".as_ref()))
            .unwrap();
        setting.variable("GONE".as_ref(), None).unwrap();
        assert_eq!(setting.environment().unwrap(), [c"AFTER==".to_owned()]);
    }

    #[test]
    fn a_directory_that_is_none_is_refused() {
        let mut setting = Setting::default();
        for path in ["", "/nowhere/at/all", "/dev/null"] {
            let opened = setting.directory(Path::new(path));
            assert!(matches!(opened, Err(Error::Os { .. })), "{path}");
        }
        assert!(setting.descriptors().1.is_none());
    }
}
