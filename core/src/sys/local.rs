//! Packet sockets under a name, where processes of a machine find each other. Source: unix(7), "Abstract sockets"; accept(2).
//!
//! The name is the kernel's, in no folder: it is gone with the last descriptor of the socket that listens, however its process
//! ends.

use super::descriptor::above_streams;
use super::{ask, demand, failed};
use crate::Result;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, Shutdown, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect,
    listen, shutdown, socket_with,
};
use std::os::fd::{AsFd, OwnedFd};

/// Who have connected, and weren't accepted yet: the kernel cuts it to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// What came of an attempt to connect.
#[derive(Debug)]
pub(crate) enum Reached {
    /// The other end, which may not have been accepted yet.
    End(OwnedFd),
    /// Too many wait there at this moment.
    Crowded,
    /// Nobody listens under that name.
    Nobody,
}

/// What came of a look for who has connected.
#[derive(Debug)]
pub(crate) enum Accepted {
    End(OwnedFd),
    Nobody,
    /// There is one, and no descriptor or no memory for it at this moment.
    NoRoom,
}

fn socket() -> Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let made = demand("socket", || {
        socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
    })?;
    above_streams(made)
}

/// A socket that listens under that name. It is closed on exec, and never waits.
///
/// # Errors
/// `Os` with EADDRINUSE when another one does, and without descriptors.
pub(crate) fn listen_at(name: &[u8]) -> Result<OwnedFd> {
    let socket = socket()?;
    let address = demand("bind", || SocketAddrUnix::new_abstract_name(name))?;
    demand("bind", || bind(&socket, &address))?;
    demand("listen", || listen(&socket, BACKLOG))?;
    Ok(socket)
}

/// Connects to whoever listens under that name, without waiting.
pub(crate) fn reach(name: &[u8]) -> Result<Reached> {
    let socket = socket()?;
    let address = demand("connect", || SocketAddrUnix::new_abstract_name(name))?;
    match ask("connect", || connect(&socket, &address)) {
        Ok(()) => Ok(Reached::End(socket)),
        Err(Errno::AGAIN) => Ok(Reached::Crowded),
        Err(Errno::CONNREFUSED) => Ok(Reached::Nobody),
        Err(errno) => Err(failed("connect", errno)),
    }
}

/// Takes the next of those who have connected, without waiting.
pub(crate) fn accept(listener: impl AsFd) -> Accepted {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    loop {
        let accepted = ask("accept4", || accept_with(&listener, flags));
        match accepted.map(above_streams) {
            Ok(Ok(end)) => return Accepted::End(end),
            Err(Errno::AGAIN | Errno::INVAL) => return Accepted::Nobody,
            Err(Errno::INTR | Errno::CONNABORTED) => {}
            Ok(Err(_)) | Err(_) => return Accepted::NoRoom,
        }
    }
}

/// Ends a conversation for both sides, whoever has copies of this end.
pub(crate) fn hang_up(socket: impl AsFd) {
    // One that the other side has ended says so; then there is nothing to do.
    let _ = shutdown(socket, Shutdown::Both);
}
