//! Linux. The only module that names rustix or libc: everything above it can be read without knowing a flag.
//!
//! Each file wraps one thing of the kernel's or the C library's, and gives back owned handles, [`Error`]
//! with the name of the call, or a plain value.

pub(crate) mod clock;
#[cfg(crash_points)]
pub mod crash;
#[cfg(crash_points)]
pub mod dead;
pub(crate) mod fork;
pub(crate) mod gate;
pub(crate) mod identity;
pub mod image;
pub mod launch;
pub(crate) mod mapping;
pub mod pidfd;
pub(crate) mod robust;
#[cfg(crash_points)]
pub mod simulation;
pub(crate) mod word;

use crate::Error;

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
