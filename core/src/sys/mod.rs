//! Linux. The only module that names rustix or libc: everything above it can be read without knowing a flag.
//!
//! Each file wraps one thing of the kernel's or the C library's, and gives back owned handles, [`Error`]
//! with the name of the call, or a plain value.

pub(crate) mod clock;
#[cfg(crash_points)]
pub mod crash;
#[cfg(crash_points)]
pub mod dead;
pub(crate) mod descriptor;
pub(crate) mod eventfd;
pub mod fork;
pub(crate) mod fork_safe;
pub(crate) mod gate;
pub(crate) mod identity;
pub mod image;
pub mod launch;
pub(crate) mod local;
pub(crate) mod mapping;
#[cfg(all(loom, test))]
pub(crate) mod model;
pub(crate) mod named;
pub mod number;
pub(crate) mod packet;
pub mod pidfd;
#[cfg(crash_points)]
pub mod refuse;
pub(crate) mod robust;
#[cfg(simulated)]
pub mod simulation;
pub mod socket;
pub(crate) mod stream;
pub(crate) mod thread;
pub(crate) mod word;

use crate::{Error, Result};

/// Makes the system call of that name, unless a test refuses it.
#[inline]
pub(crate) fn ask<T>(
    name: &'static str,
    call: impl FnOnce() -> rustix::io::Result<T>,
) -> rustix::io::Result<T> {
    allow(name)?;
    call()
}

/// As [`ask`], with the core's error.
#[inline]
pub(crate) fn demand<T>(
    name: &'static str,
    call: impl FnOnce() -> rustix::io::Result<T>,
) -> Result<T> {
    ask(name, call).map_err(|errno| failed(name, errno))
}

/// The place before a system call that may be refused. Nothing, unless crash points are compiled in.
#[inline(always)]
#[cfg_attr(
    not(crash_points),
    expect(clippy::unnecessary_wraps, reason = "a test refuses")
)]
pub(crate) fn allow(name: &'static str) -> rustix::io::Result<()> {
    #[cfg(crash_points)]
    refuse::point(name)?;
    #[cfg(not(crash_points))]
    let _ = name;
    Ok(())
}

/// Makes room in a buffer for so many more bytes: what a message is long isn't ours to choose, so a lack of memory is
/// an error here, where it ends the process elsewhere.
pub(crate) fn reserve(buffer: &mut Vec<u8>, bytes: usize) -> Result<()> {
    buffer
        .try_reserve(bytes)
        .map_err(|_| failed("malloc", rustix::io::Errno::NOMEM))
}

/// The core's error for a system call that failed: `Interrupted` for EINTR, which callers wait again after.
pub(crate) fn failed(call: &'static str, errno: rustix::io::Errno) -> Error {
    if errno == rustix::io::Errno::INTR {
        Error::Interrupted
    } else {
        Error::Os {
            call,
            errno: errno.raw_os_error(),
        }
    }
}
