//! What a process has for standard input, output and error.

use crate::error::{Error, ErrorKind, Result};
use std::fs::{File, OpenOptions};
use std::io::{PipeReader, PipeWriter};
use std::os::fd::OwnedFd;
use std::process::{ChildStderr, ChildStdin, ChildStdout};

/// What a process has for standard input, output or error: as [`std::process::Stdio`], for [`Builder`](crate::Builder).
///
/// std's own can't be used: what is in it can't be taken out again. Files, pipes and descriptors become one by
/// [`From`], and so does what was taken from another process:
///
/// ```standalone_crate
/// # fn main() -> procession::Result<()> {
/// procession::init();
/// use procession::{Process, Stdio};
/// use std::io::Read;
/// let mut first = Process::builder().stdout(Stdio::piped()).spawn(|(): ()| print!("hello"), ())?;
/// let shout = |(): ()| {
///     let mut text = String::new();
///     std::io::stdin().read_to_string(&mut text).unwrap();
///     text.to_uppercase()
/// };
/// let second = Process::builder().stdin(first.take_stdout().unwrap()).spawn(shout, ())?;
/// first.join()?;
/// assert_eq!(second.join()?, "HELLO");
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Default)]
pub struct Stdio(Source);

#[derive(Debug, Default)]
enum Source {
    #[default]
    Inherited,
    Null,
    Piped,
    Descriptor(OwnedFd),
}

impl Stdio {
    /// This process' own.
    #[must_use]
    pub fn inherit() -> Self {
        Self(Source::Inherited)
    }

    /// `/dev/null`: nothing to read, and what is written is forgotten.
    #[must_use]
    pub fn null() -> Self {
        Self(Source::Null)
    }

    /// A pipe whose other end this process takes from its handle, as by [`take_stdin`](crate::Process::take_stdin).
    #[must_use]
    pub fn piped() -> Self {
        Self(Source::Piped)
    }

    /// The child's descriptor for its stream of this number, and this process' end of a pipe; none: inherited.
    pub(super) fn open(self, number: usize) -> Result<(Option<OwnedFd>, Option<OwnedFd>)> {
        let failed = |what: &str, error: std::io::Error| {
            let stream = ["input", "output", "error"]
                .get(number)
                .unwrap_or(&"stream");
            let text = format!("start a process: {what} for its standard {stream}: {error}");
            Error::new(ErrorKind::Os, text)
        };
        match self.0 {
            Source::Inherited => Ok((None, None)),
            Source::Descriptor(descriptor) => Ok((Some(descriptor), None)),
            Source::Null => {
                let mut options = OpenOptions::new();
                let null = options
                    .read(number == 0)
                    .write(number != 0)
                    .open("/dev/null");
                let null = null.map_err(|error| failed("open /dev/null", error))?;
                Ok((Some(null.into()), None))
            }
            Source::Piped => {
                let (reader, writer) = std::io::pipe().map_err(|error| failed("a pipe", error))?;
                let (reader, writer) = (OwnedFd::from(reader), OwnedFd::from(writer));
                Ok(match number {
                    0 => (Some(reader), Some(writer)),
                    _ => (Some(writer), Some(reader)),
                })
            }
        }
    }
}

macro_rules! from {
    ($($type:ty),*) => {$(
        impl From<$type> for Stdio {
            fn from(stream: $type) -> Self {
                Self(Source::Descriptor(stream.into()))
            }
        }
    )*};
}

from!(
    OwnedFd,
    File,
    PipeReader,
    PipeWriter,
    ChildStdin,
    ChildStdout,
    ChildStderr
);
