//! What descriptors of all kinds have in common. Source: dup(2), poll(2), socketpair(2).

use super::{ask, demand, failed};
use crate::{Deadline, Error, Result};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

/// The first number behind those of the standard streams.
pub(crate) const FIRST_DESCRIPTOR: RawFd = 3;

/// Whether a descriptor is in the place of a standard stream.
pub(crate) fn is_stream(descriptor: BorrowedFd<'_>) -> bool {
    descriptor.as_raw_fd() < FIRST_DESCRIPTOR
}

/// A copy of a descriptor whose number is none of the standard streams'.
pub(crate) fn copy_above_streams(descriptor: BorrowedFd<'_>) -> Result<OwnedFd> {
    demand("fcntl(F_DUPFD_CLOEXEC)", || {
        rustix::io::fcntl_dupfd_cloexec(descriptor, FIRST_DESCRIPTOR)
    })
}

/// The same descriptor under another number than those of the standard streams, one of which may be closed: whoever prints
/// or reports a crash there would write into what is ours.
pub(crate) fn above_streams(descriptor: OwnedFd) -> Result<OwnedFd> {
    if is_stream(descriptor.as_fd()) {
        copy_above_streams(descriptor.as_fd())
    } else {
        Ok(descriptor)
    }
}

/// Two unix sockets of a kind that are each other's peers, without a name, and closed on exec.
pub(crate) fn socket_pair(kind: SocketType) -> Result<(OwnedFd, OwnedFd)> {
    let (one, other) = demand("socketpair", || {
        rustix::net::socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)
    })?;
    Ok((above_streams(one)?, above_streams(other)?))
}

/// Waits until some of the descriptors are ready, or will say at once why not, and tells how many; none once the deadline has
/// passed.
pub(crate) fn poll(descriptors: &mut [PollFd<'_>], deadline: Deadline) -> Result<usize> {
    // What the kernel's clock can't count is as good as for ever.
    let left = deadline.remaining();
    let left = left.and_then(|left| Timespec::try_from(left).ok());
    demand("poll", || rustix::event::poll(descriptors, left.as_ref()))
}

/// Waits until some of the descriptors can be read, or will say at once why not, and tells which, by their places; none once the
/// deadline has passed.
pub(crate) fn readable<'fd>(
    descriptors: impl IntoIterator<Item = BorrowedFd<'fd>>,
    deadline: Deadline,
) -> Result<Vec<usize>> {
    let each = descriptors.into_iter();
    let mut polled: Vec<_> = each
        .map(|descriptor| PollFd::from_borrowed_fd(descriptor, PollFlags::IN))
        .collect();
    poll(&mut polled, deadline)?;
    let places = polled.iter().enumerate();
    let ready = places.filter(|(_, one)| !one.revents().is_empty());
    Ok(ready.map(|(place, _)| place).collect())
}

/// Whether the program has said that no call is to wait at it: `O_NONBLOCK`.
pub(crate) fn is_nonblocking(descriptor: BorrowedFd<'_>) -> Result<bool> {
    let flags = ask("fcntl(F_GETFL)", || rustix::fs::fcntl_getfl(descriptor));
    let flags = flags.map_err(|errno| failed("fcntl(F_GETFL)", errno))?;
    Ok(flags.contains(rustix::fs::OFlags::NONBLOCK))
}

/// The error of a call that would have waited there.
pub(crate) fn would_wait() -> Error {
    failed("poll", Errno::AGAIN)
}

/// Waits for nothing but the deadline, or a signal.
pub(crate) fn pause(deadline: Deadline) -> Result<()> {
    poll(&mut [], deadline).map(|_| ())
}
