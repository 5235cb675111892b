//! Sockets that listen, accept and connect. Source: socket(7), unix(7), ip(7), accept(2), connect(2).

use super::descriptor::above_streams;
use super::{ask, demand, failed, launch};
use crate::{Deadline, Error, Result};
use rustix::io::Errno;
use rustix::net::addr::SocketAddrArg;
use rustix::net::sockopt::{self, Timeout};
use rustix::net::{
    AddressFamily, SocketAddrAny, SocketAddrUnix, SocketFlags, SocketType, acceptfrom_with, bind,
    connect, getsockname, listen, socket_with,
};
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Bytes of `sockaddr_un`.
const SUN_BYTES: u32 = 110;

/// Where a listener listens. Python: the address of `Listener` and `Client`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A number of a machine and a port. Python: `AF_INET`, `AF_INET6`.
    Inet(SocketAddr),
    /// A file, of any length that the file system takes. Python: `AF_UNIX`.
    Path(PathBuf),
    /// A name that no file system has, without the zero byte that it begins with. Python: `AF_UNIX`, `'\0name'`.
    Abstract(Vec<u8>),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Inet(address) => address.fmt(f),
            Self::Path(path) => path.display().fmt(f),
            Self::Abstract(name) => write!(f, "@{}", name.escape_ascii()),
        }
    }
}

impl Address {
    fn family(&self) -> AddressFamily {
        match self {
            Self::Inet(SocketAddr::V4(_)) => AddressFamily::INET,
            Self::Inet(SocketAddr::V6(_)) => AddressFamily::INET6,
            Self::Path(_) | Self::Abstract(_) => AddressFamily::UNIX,
        }
    }

    fn is_inet(&self) -> bool {
        matches!(self, Self::Inet(_))
    }

    /// What the system says; `None` for a socket without a name.
    fn of(name: SocketAddrAny) -> Option<Self> {
        match name.address_family() {
            AddressFamily::INET => Some(Self::Inet(SocketAddrV4::try_from(name).ok()?.into())),
            AddressFamily::INET6 => Some(Self::Inet(SocketAddrV6::try_from(name).ok()?.into())),
            // A path may fill `sun_path` and be told with the zero byte behind it, which rustix trips over.
            AddressFamily::UNIX if name.addr_len() > SUN_BYTES => None,
            AddressFamily::UNIX => {
                let name = SocketAddrUnix::try_from(name).ok()?;
                if let Some(name) = name.abstract_name() {
                    // So rustix has those without a name.
                    let is_named = !name.is_empty();
                    return is_named.then(|| Self::Abstract(name.to_vec()));
                }
                let path = name.path()?.into_owned().into_bytes();
                Some(Self::Path(OsString::from_vec(path).into()))
            }
            _ => None,
        }
    }
}

/// An address as the system takes it.
struct Name {
    name: SocketAddrAny,
    /// The folder that the name goes through, which has to be open meanwhile.
    _folder: Option<OwnedFd>,
}

impl Name {
    /// A path may be longer than `sun_path`: then its folder is opened, and the name goes through /proc.
    fn of(address: &Address) -> Result<Self> {
        let name = match address {
            Address::Inet(address) => return Ok(Self::short(address.as_any())),
            Address::Abstract(name) => SocketAddrUnix::new_abstract_name(name),
            Address::Path(path) => match SocketAddrUnix::new(path.as_path()) {
                Err(Errno::NAMETOOLONG) => return Self::long(path),
                name => name,
            },
        };
        name.map(|name| Self::short(name.as_any()))
            .map_err(|errno| failed("bind or connect", errno))
    }

    fn short(name: SocketAddrAny) -> Self {
        Self {
            name,
            _folder: None,
        }
    }

    fn long(path: &Path) -> Result<Self> {
        let (Some(folder), Some(file)) = (path.parent(), path.file_name()) else {
            return Err(failed("bind or connect", Errno::INVAL));
        };
        let here = folder.as_os_str().is_empty();
        let folder = launch::directory(if here { Path::new(".") } else { folder })?;
        let mut short = format!("/proc/self/fd/{}/", folder.as_raw_fd()).into_bytes();
        short.extend_from_slice(file.as_bytes());
        let name = SocketAddrUnix::new(Path::new(OsStr::from_bytes(&short)))
            .map_err(|errno| failed("bind or connect", errno))?;
        Ok(Self {
            name: name.as_any(),
            _folder: Some(folder),
        })
    }
}

/// A socket that listens at an address, and doesn't wait in [`accept`]; and where it listens: the port, if the system was to choose it.
pub(crate) fn listener(address: &Address, backlog: u32) -> Result<(OwnedFd, Address)> {
    let name = Name::of(address)?;
    let socket = stream_socket(address, SocketFlags::NONBLOCK)?;
    demand("setsockopt(SO_REUSEADDR)", || {
        sockopt::set_socket_reuseaddr(&socket, true)
    })?;
    demand("bind", || bind(&socket, &name.name))?;
    let backlog = i32::try_from(backlog).unwrap_or(i32::MAX);
    let listening = demand("listen", || listen(&socket, backlog));
    let named = listening.and_then(|()| match address {
        Address::Inet(_) => demand("getsockname", || getsockname(&socket)).map(Address::of),
        // A long one is known by another name here.
        Address::Path(_) | Address::Abstract(_) => Ok(Some(address.clone())),
    });
    match named {
        Ok(named) => Ok((socket, named.unwrap_or_else(|| address.clone()))),
        Err(error) => {
            if let Address::Path(path) = address {
                // It was made just now, and nobody knows it.
                let _ = rustix::fs::unlink(path.as_path());
            }
            Err(error)
        }
    }
}

fn stream_socket(address: &Address, flags: SocketFlags) -> Result<OwnedFd> {
    let flags = flags | SocketFlags::CLOEXEC;
    let socket = demand("socket", || {
        socket_with(address.family(), SocketType::STREAM, flags, None)
    })?;
    let socket = above_streams(socket)?;
    if address.is_inet() {
        // A message goes at once, though the one before wasn't acknowledged yet. What a listener accepts inherits it.
        demand("setsockopt(TCP_NODELAY)", || {
            sockopt::set_tcp_nodelay(&socket, true)
        })?;
    }
    Ok(socket)
}

/// What came of a look for a connection.
#[derive(Debug)]
pub(crate) enum Came {
    /// One, and where it comes from, if that has a name.
    Connection(OwnedFd, Option<Address>),
    /// None at the moment.
    Nobody,
    /// One, which waits on: there is no descriptor or no memory for it at the moment.
    NoRoom(Error),
}

/// Takes a connection from a listener, without waiting. One that was given up meanwhile is passed over.
pub(crate) fn accept(listener: BorrowedFd<'_>) -> Result<Came> {
    loop {
        let came = ask("accept4", || {
            acceptfrom_with(listener, SocketFlags::CLOEXEC)
        });
        return match came {
            Ok((socket, from)) => match above_streams(socket) {
                Ok(socket) => Ok(Came::Connection(socket, from.and_then(Address::of))),
                Err(error) => Ok(Came::NoRoom(error)),
            },
            Err(Errno::AGAIN) => Ok(Came::Nobody),
            Err(errno @ (Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM)) => {
                Ok(Came::NoRoom(failed("accept", errno)))
            }
            // What happened to that one before it was accepted; the next one has its own fate.
            Err(
                Errno::CONNABORTED
                | Errno::PROTO
                | Errno::NETDOWN
                | Errno::NOPROTOOPT
                | Errno::HOSTDOWN
                | Errno::NONET
                | Errno::HOSTUNREACH
                | Errno::NETUNREACH,
            ) => continue,
            Err(errno) => Err(failed("accept", errno)),
        };
    }
}

/// A connection that is being made.
///
/// Python: `SocketClient`; with a handshake behind it, `Client`.
pub struct Connecting {
    socket: OwnedFd,
    name: Name,
    /// The socket gives up by itself after a while.
    limited: bool,
}

impl fmt::Debug for Connecting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connecting")
            .field("socket", &self.socket)
            .finish_non_exhaustive()
    }
}

impl Connecting {
    /// Prepares one to that address.
    ///
    /// # Errors
    /// `Os`, when there is no descriptor, or a path leads nowhere.
    pub fn begin(address: &Address) -> Result<Self> {
        Ok(Self {
            name: Name::of(address)?,
            socket: stream_socket(address, SocketFlags::empty())?,
            limited: false,
        })
    }

    /// Waits until a listener has it in its backlog; false once the deadline has passed. Called again it waits on, and so it
    /// does after an interruption.
    ///
    /// # Errors
    /// `Os` with what connect(2) says; `Interrupted`.
    pub fn run(&mut self, deadline: Deadline) -> Result<bool> {
        // The socket's own time limit does the waiting, since nothing else ends a wait for a listener whose backlog is full.
        /// Nothing is no limit to a socket.
        const LEAST: Duration = Duration::from_millis(1);
        loop {
            if let Some(left) = deadline.remaining() {
                self.limit(Some(left.max(LEAST)))?;
            }
            match ask("connect", || connect(&self.socket, &self.name.name)) {
                // It has been on its way since the call that was interrupted, and arrived.
                Ok(()) | Err(Errno::ISCONN) => {
                    if self.limited {
                        self.limit(None)?;
                    }
                    return Ok(true);
                }
                Err(Errno::AGAIN | Errno::INPROGRESS | Errno::ALREADY) => {
                    if deadline.passed() {
                        return Ok(false);
                    }
                }
                Err(errno) => return Err(failed("connect", errno)),
            }
        }
    }

    fn limit(&mut self, most: Option<Duration>) -> Result<()> {
        self.limited = true;
        demand("setsockopt(SO_SNDTIMEO)", || {
            sockopt::set_socket_timeout(&self.socket, Timeout::Send, most)
        })
    }

    /// The stream, once [`run`](Self::run) has said that it is there.
    #[must_use]
    pub fn into_stream(self) -> OwnedFd {
        self.socket
    }
}

/// Which file it is: a path may lead to another one by now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileIdentity(u64, u64);

/// The file at a path, if there is one.
pub(crate) fn file_at(path: &Path) -> Option<FileIdentity> {
    let stat = rustix::fs::lstat(path).ok()?;
    Some(FileIdentity(stat.st_dev, stat.st_ino))
}

/// Removes a file, if it is still that one.
pub(crate) fn remove(path: &Path, file: FileIdentity) {
    if file_at(path) == Some(file) {
        let _ = rustix::fs::unlink(path);
    }
}
