//! A descriptor whose readiness is this process' own say. Source: eventfd(2).

use super::{ask, demand, descriptor, failed};
use crate::Result;
use rustix::event::EventfdFlags;
use rustix::io::Errno;
use std::os::fd::{BorrowedFd, OwnedFd};

/// The largest count: the descriptor can be read from, and not written to.
pub(crate) const FULL: u64 = u64::MAX - 1;

/// A new one, whose count is 0: it can be written to, and not read from.
pub(crate) fn create() -> Result<OwnedFd> {
    let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
    let made = demand("eventfd", || rustix::event::eventfd(0, flags))?;
    descriptor::above_streams(made)
}

/// Makes its count, which is 0, another one: not 0, so it can be read from.
pub(crate) fn set(descriptor: BorrowedFd<'_>, count: u64) -> Result<()> {
    let bytes = count.to_ne_bytes();
    lenient("write", || rustix::io::write(descriptor, &bytes))
}

/// Makes its count 0.
pub(crate) fn clear(descriptor: BorrowedFd<'_>) -> Result<()> {
    let mut bytes = [0; 8];
    lenient("read", || rustix::io::read(descriptor, &mut bytes))
}

/// It is what it was to become already if the call would wait: somebody else has read from it or written to it.
fn lenient(name: &'static str, call: impl FnOnce() -> rustix::io::Result<usize>) -> Result<()> {
    match ask(name, call) {
        Ok(_) | Err(Errno::AGAIN) => Ok(()),
        Err(errno) => Err(failed(name, errno)),
    }
}
