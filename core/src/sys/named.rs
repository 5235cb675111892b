//! Files of memory with a name, which the processes of a machine find by it. Source: shm_overview(7).

use super::mapping::{allocate, extent};
use super::{ask, failed};
use crate::{Error, Result};
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::shm::OFlags;
use std::os::fd::OwnedFd;

/// Makes a file of that name with memory for so many bytes, for this user only.
///
/// # Errors
/// `Os` with EEXIST when there is one, with ENOSPC or ENOMEM when there is no memory: then the name is free again.
pub(crate) fn create(name: &str, bytes: u64) -> Result<OwnedFd> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR;
    let file = open(name, flags)?;
    // What grows it is what gives it memory: no write can fail later.
    if let Err(error) = allocate(&file, 0, bytes) {
        unlink(name)?;
        return Err(error);
    }
    Ok(file)
}

/// Opens the file of that name, and tells its length in bytes.
///
/// # Errors
/// `Os` with ENOENT when there is none.
pub(crate) fn attach(name: &str) -> Result<(OwnedFd, u64)> {
    let file = open(name, OFlags::RDWR)?;
    let length = extent(&file)?.length;
    Ok((file, length))
}

fn open(name: &str, flags: OFlags) -> Result<OwnedFd> {
    let mode = Mode::RUSR | Mode::WUSR;
    ask("shm_open", || rustix::shm::open(name, flags, mode))
        .map_err(|errno| refused(name, "shm_open", errno))
}

/// Takes the name away; the memory goes with the last who has it open.
///
/// # Errors
/// `Os` with ENOENT when there is none.
pub(crate) fn unlink(name: &str) -> Result<()> {
    rustix::shm::unlink(name).map_err(|errno| refused(name, "shm_unlink", errno))
}

fn refused(name: &str, call: &'static str, errno: Errno) -> Error {
    if name.contains('\0') {
        return Error::Misuse {
            what: "a name can't have a zero in it",
        };
    }
    failed(call, errno)
}
