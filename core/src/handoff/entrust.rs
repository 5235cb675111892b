//! Descriptors kept by another process than their sender, which may end before they are redeemed: what a child returns, its parent
//! keeps.

use super::office::{is_own, offer};
use super::protocol::{Name, Request, Secret, Ticket};
use crate::Result;
use crate::sys::local::{self, Reached};
use crate::sys::{identity, packet};
use std::os::fd::{AsRawFd, BorrowedFd};

/// Where another process of this user may have something [kept](entrust), by 32 bytes that are a secret.
#[derive(Debug, Clone, Copy)]
pub struct Invitation {
    pub(super) name: Name,
    pub(super) secret: Secret,
}

impl Invitation {
    /// As it goes to the other process.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; 32] {
        let mut bytes = [0; 32];
        let (name, secret) = bytes.split_at_mut(16);
        name.copy_from_slice(&self.name.0);
        secret.copy_from_slice(&self.secret.0);
        bytes
    }

    /// Reads it; any bytes will do, but nobody may answer to them.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        let (mut name, mut secret) = ([0; 16], [0; 16]);
        name.copy_from_slice(&bytes[..16]);
        secret.copy_from_slice(&bytes[16..]);
        Self {
            name: Name(name),
            secret: Secret(secret),
        }
    }
}

/// As [`offer`], with the copy kept by the process of the invitation, so that this one may end before it is redeemed. If that one can't
/// be reached, this one keeps it.
///
/// # Errors
/// As [`offer`].
pub fn entrust(descriptor: BorrowedFd<'_>, to: &Invitation) -> Result<Ticket> {
    let secret = Secret(identity::secret()?);
    // Beyond those that the office counts itself.
    let number = u64::from_le_bytes(identity::secret()?) | 1 << 63;
    let request = Request::Keep {
        number,
        secret,
        invitation: to.secret,
    };
    let sent = match local::reach(&to.name.address()) {
        Ok(Reached::End(end)) if is_own(&end) => {
            packet::send(&end, &request.to_bytes(), &[descriptor]).unwrap_or(false)
        }
        _ => false,
    };
    if !sent {
        return offer(descriptor);
    }
    Ok(Ticket {
        office: to.name,
        number,
        secret,
        started: identity::origin().started,
        pid: identity::pid(),
        descriptor: descriptor.as_raw_fd(),
    })
}
