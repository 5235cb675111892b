//! The keyed digests that a handshake may use: HMAC over one of five hash functions, which the wire names.

use hmac::digest::Digest as Hash;
use hmac::digest::common::BlockSizeUser;
use hmac::{KeyInit, Mac, SimpleHmac};
use md5::Md5;
use sha2::{Sha256, Sha384};
use sha3::{Sha3_256, Sha3_384};

/// A keyed digest, by the hash function in it. Python: `multiprocessing.connection._ALLOWED_DIGESTS`.
///
/// | name | bytes |
/// |---|---|
/// | `md5` | 16 |
/// | `sha256` | 32 |
/// | `sha384` | 48 |
/// | `sha3_256` | 32 |
/// | `sha3_384` | 48 |
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[expect(missing_docs, reason = "each is what its name says")]
pub enum Digest {
    Md5,
    #[default]
    Sha256,
    Sha384,
    Sha3_256,
    Sha3_384,
}

impl Digest {
    /// All there are.
    pub const ALL: [Self; 5] = [
        Self::Md5,
        Self::Sha256,
        Self::Sha384,
        Self::Sha3_256,
        Self::Sha3_384,
    ];

    /// The name on the wire, and in Python.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Md5 => "md5",
            Self::Sha256 => "sha256",
            Self::Sha384 => "sha384",
            Self::Sha3_256 => "sha3_256",
            Self::Sha3_384 => "sha3_384",
        }
    }

    /// The digest of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.name() == name)
    }

    /// How many bytes it gives.
    #[must_use]
    pub fn size_bytes(self) -> usize {
        match self {
            Self::Md5 => 16,
            Self::Sha256 | Self::Sha3_256 => 32,
            Self::Sha384 | Self::Sha3_384 => 48,
        }
    }

    /// The digest of a message under a key.
    pub(super) fn of(self, key: &[u8], message: &[u8]) -> Vec<u8> {
        match self {
            Self::Md5 => of::<Md5>(key, message),
            Self::Sha256 => of::<Sha256>(key, message),
            Self::Sha384 => of::<Sha384>(key, message),
            Self::Sha3_256 => of::<Sha3_256>(key, message),
            Self::Sha3_384 => of::<Sha3_384>(key, message),
        }
    }

    /// Whether `claimed` is the digest of the message under the key. Takes as long for a first byte that is wrong as for the
    /// last, so that nobody finds the digest byte by byte.
    pub(super) fn is(self, claimed: &[u8], key: &[u8], message: &[u8]) -> bool {
        match self {
            Self::Md5 => is::<Md5>(claimed, key, message),
            Self::Sha256 => is::<Sha256>(claimed, key, message),
            Self::Sha384 => is::<Sha384>(claimed, key, message),
            Self::Sha3_256 => is::<Sha3_256>(claimed, key, message),
            Self::Sha3_384 => is::<Sha3_384>(claimed, key, message),
        }
    }
}

/// HMAC, fed with the message; keys may have any length.
fn hmac<H: Hash + BlockSizeUser>(key: &[u8], message: &[u8]) -> SimpleHmac<H> {
    let hmac = SimpleHmac::new_from_slice(key).expect("HMAC takes keys of any length");
    Mac::chain_update(hmac, message)
}

fn of<H: Hash + BlockSizeUser>(key: &[u8], message: &[u8]) -> Vec<u8> {
    hmac::<H>(key, message).finalize().into_bytes().to_vec()
}

fn is<H: Hash + BlockSizeUser>(claimed: &[u8], key: &[u8], message: &[u8]) -> bool {
    hmac::<H>(key, message).verify_slice(claimed).is_ok()
}
