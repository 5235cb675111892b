//! Where listeners are.

use procession_core::connection::Address as Core;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::path::{Path, PathBuf};

/// Where a [`Listener`](crate::Listener) listens, and a [`Client`](crate::Client) finds it.
///
/// A value like others, so that it can be sent to whoever is to connect.
///
/// ```
/// use procession::Address;
/// use std::net::Ipv4Addr;
/// let machine = Address::from((Ipv4Addr::LOCALHOST, 50_000));
/// let file = Address::from(std::path::Path::new("/run/heart.socket"));
/// let name = Address::Abstract(b"heart".to_vec());
/// assert_eq!(format!("{machine} {file} {name}"), "127.0.0.1:50000 /run/heart.socket @heart");
/// ```
///
/// Python: the address and the family of `Listener` and `Client`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Address {
    /// A machine and a port; port 0 is any that is free. Python: `AF_INET`; `AF_INET6`, which there has no client.
    Inet(SocketAddr),
    /// A file, whose path may be longer than what a system call takes. Python: `AF_UNIX`.
    Path(PathBuf),
    /// A name that no file system has, of this machine's network namespace: without the zero byte in front. Python:
    /// `AF_UNIX`, `'\0name'`.
    Abstract(Vec<u8>),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.core().fmt(f)
    }
}

impl Address {
    pub(super) fn core(&self) -> Core {
        match self {
            Self::Inet(address) => Core::Inet(*address),
            Self::Path(path) => Core::Path(path.clone()),
            Self::Abstract(name) => Core::Abstract(name.clone()),
        }
    }

    pub(super) fn of(core: Core) -> Self {
        match core {
            Core::Inet(address) => Self::Inet(address),
            Core::Path(path) => Self::Path(path),
            Core::Abstract(name) => Self::Abstract(name),
        }
    }
}

macro_rules! from {
    ($($type:ty),*) => {$(
        impl From<$type> for Address {
            fn from(address: $type) -> Self {
                Self::Inet(address.into())
            }
        }
    )*};
}

from!(
    SocketAddr,
    SocketAddrV4,
    SocketAddrV6,
    (IpAddr, u16),
    (Ipv4Addr, u16),
    (Ipv6Addr, u16)
);

impl From<PathBuf> for Address {
    fn from(path: PathBuf) -> Self {
        Self::Path(path)
    }
}

impl From<&Path> for Address {
    fn from(path: &Path) -> Self {
        Self::Path(path.to_owned())
    }
}

impl From<&Self> for Address {
    fn from(address: &Self) -> Self {
        address.clone()
    }
}
