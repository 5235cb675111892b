//! Who is let in, and how much a message may have: what listeners and clients have in common.

use crate::error::{Error, ErrorKind, Result};
use procession_core::wire::{Authenticated, Digest, Role, Terms};
use std::fmt;

/// The longest message that is received, unless another limit is set: as much memory as one peer may take without anybody's
/// having said so.
const LIMIT: u64 = 1 << 30;

/// What a peer must have, and may send.
#[derive(Clone)]
pub(super) struct Access {
    pub(super) key: Option<Vec<u8>>,
    pub(super) md5: bool,
    pub(super) limit: u64,
}

impl Default for Access {
    fn default() -> Self {
        Self {
            key: None,
            md5: false,
            limit: LIMIT,
        }
    }
}

/// Without the key.
impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access")
            .field("has_key", &self.key.is_some())
            .field("md5", &self.md5)
            .field("limit", &self.limit)
            .finish()
    }
}

impl Access {
    /// # Errors
    /// `Misuse` for an empty key, which everybody knows.
    pub(super) fn check(&self, doing: &str) -> Result<()> {
        if self.key.as_ref().is_some_and(Vec::is_empty) {
            let text = format!("{doing}: an empty key keeps nobody out");
            return Err(Error::new(ErrorKind::Misuse, text));
        }
        Ok(())
    }

    pub(super) fn handshake(&self, role: Role) -> Terms {
        Terms {
            role,
            digest: Digest::Sha256,
            md5: self.md5,
        }
    }
}

/// Says so when the peer is one that knows nothing better than MD5.
pub(super) fn note(authenticated: Authenticated, peer: &dyn fmt::Display) {
    if authenticated.with_md5 {
        log::warn!("{peer} was authenticated with HMAC-MD5, as CPython's up to 3.11 are");
    }
}
