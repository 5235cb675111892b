//! What a ticket is in bytes, and what those say to each other who redeem and who keep: packets, and nothing that does anything.
//!
//! | bytes | is | descriptors |
//! |---|---|---|
//! | ticket | `prctick1`, office: 16, number: 8, secret: 16, sender's start: 8, its process id: 4, its descriptor: 4 | |
//! | request to give | `prcgive1`, number: 8, secret: 16 | |
//! | answer: given | `prcgave1` | the one |
//! | answer: there is none | `prcnone1` | |
//! | request to keep | `prckeep1`, number: 8, secret: 16, the office's invitation: 16 | the one |
//!
//! Numbers are little-endian. What isn't exactly so is none of ours.

use crate::sys::identity::is_same;
use crate::{Error, Result};
use std::fmt;

/// Bytes of a ticket.
pub const TICKET_BYTES: usize = 64;
/// Bytes of the longest request.
pub(super) const REQUEST_MAX: usize = 8 + 8 + SECRET + SECRET;
/// Bytes of an answer.
pub(super) const ANSWER: usize = 8;
pub(super) const GIVEN: &[u8; ANSWER] = b"prcgave1";
pub(super) const NONE: &[u8; ANSWER] = b"prcnone1";

const TICKET: &[u8; 8] = b"prctick1";
const GIVE: &[u8; 8] = b"prcgive1";
const KEEP: &[u8; 8] = b"prckeep1";
const SECRET: usize = 16;

/// The name of the socket at which a process gives what it keeps: random, so that nobody else's is ever the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Name(pub(super) [u8; 16]);

impl Name {
    /// As the system knows it.
    pub(super) fn address(self) -> Vec<u8> {
        let digits: String = self.0.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("procession-handoff-{digits}").into_bytes()
    }
}

/// What only those know who may have something.
#[derive(Clone, Copy)]
pub(super) struct Secret(pub(super) [u8; SECRET]);

impl Secret {
    /// Whether it is the same: it takes as long whatever the bytes are.
    pub(super) fn is(self, other: Self) -> bool {
        is_same(&self.0, &other.0)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// Who has the bytes of this may have one descriptor, once, as long as the process lives that keeps it.
///
/// Its bytes are a secret like a key's: they give whoever reads them the descriptor, if that is a process of the same user.
#[derive(Debug, Clone, Copy)]
pub struct Ticket {
    pub(super) office: Name,
    pub(super) number: u64,
    pub(super) secret: Secret,
    /// The sender's start, in clock ticks after boot; with its id it names the process for ever. 0: not known.
    pub(super) started: u64,
    pub(super) pid: u32,
    pub(super) descriptor: i32,
}

impl Ticket {
    /// As it goes into a message.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; TICKET_BYTES] {
        let mut bytes = [0; TICKET_BYTES];
        let fields: [&[u8]; 7] = [
            TICKET,
            &self.office.0,
            &self.number.to_le_bytes(),
            &self.secret.0,
            &self.started.to_le_bytes(),
            &self.pid.to_le_bytes(),
            &self.descriptor.to_le_bytes(),
        ];
        let mut rest = &mut bytes[..];
        for field in fields {
            let (place, behind) = rest.split_at_mut(field.len());
            place.copy_from_slice(field);
            rest = behind;
        }
        bytes
    }

    /// Reads it.
    ///
    /// # Errors
    /// `Malformed` for other bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        const WRONG: Error = Error::Malformed {
            what: "ticket of a descriptor",
            at: 0,
        };
        let rest = bytes.strip_prefix(TICKET).ok_or(WRONG)?;
        let mut fields = Fields(rest);
        let ticket = Self {
            office: Name(fields.next().ok_or(WRONG)?),
            number: u64::from_le_bytes(fields.next().ok_or(WRONG)?),
            secret: Secret(fields.next().ok_or(WRONG)?),
            started: u64::from_le_bytes(fields.next().ok_or(WRONG)?),
            pid: u32::from_le_bytes(fields.next().ok_or(WRONG)?),
            descriptor: i32::from_le_bytes(fields.next().ok_or(WRONG)?),
        };
        fields.0.is_empty().then_some(ticket).ok_or(WRONG)
    }

    /// The process that sent it, by its id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The number that the descriptor had there.
    #[must_use]
    pub fn descriptor(&self) -> i32 {
        self.descriptor
    }

    /// The error that says why its descriptor can't be had.
    pub(super) fn lost(&self, why: &'static str) -> Error {
        Error::Lost {
            descriptor: self.descriptor,
            pid: self.pid,
            why,
        }
    }
}

/// What a peer wants.
#[derive(Debug, Clone, Copy)]
pub(super) enum Request {
    Give {
        number: u64,
        secret: Secret,
    },
    Keep {
        number: u64,
        secret: Secret,
        invitation: Secret,
    },
}

impl Request {
    pub(super) fn to_bytes(self) -> Vec<u8> {
        match self {
            Self::Give { number, secret } => [&GIVE[..], &number.to_le_bytes(), &secret.0].concat(),
            Self::Keep {
                number,
                secret,
                invitation,
            } => [&KEEP[..], &number.to_le_bytes(), &secret.0, &invitation.0].concat(),
        }
    }

    pub(super) fn of(bytes: &[u8]) -> Option<Self> {
        let (magic, rest) = bytes.split_first_chunk::<8>()?;
        let mut fields = Fields(rest);
        let (number, secret) = (u64::from_le_bytes(fields.next()?), Secret(fields.next()?));
        let request = match magic {
            GIVE => Self::Give { number, secret },
            KEEP => Self::Keep {
                number,
                secret,
                invitation: Secret(fields.next()?),
            },
            _ => return None,
        };
        fields.0.is_empty().then_some(request)
    }
}

/// What is left to be read, field by field.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn next<const BYTES: usize>(&mut self) -> Option<[u8; BYTES]> {
        let (field, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*field)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticket() -> Ticket {
        Ticket {
            office: Name([1; 16]),
            number: 2,
            secret: Secret([3; 16]),
            started: 4,
            pid: 5,
            descriptor: 6,
        }
    }

    #[test]
    fn tickets_come_back() {
        let bytes = ticket().to_bytes();
        let back = Ticket::from_bytes(&bytes).unwrap();
        assert_eq!(back.to_bytes(), bytes);
        assert_eq!((back.pid(), back.descriptor(), back.number), (5, 6, 2));
        assert!(!format!("{back:?}").contains("3, 3"), "{back:?}");
        for wrong in [&bytes[1..], &bytes[..63], &[&bytes[..], &[0]].concat(), b""] {
            let read = Ticket::from_bytes(wrong);
            assert!(matches!(read, Err(Error::Malformed { .. })), "{wrong:?}");
        }
    }

    #[test]
    fn requests_come_back_and_others_are_none() {
        let (number, secret) = (7, Secret([8; 16]));
        let invitation = Secret([9; 16]);
        let give = Request::Give { number, secret }.to_bytes();
        let keep = Request::Keep {
            number,
            secret,
            invitation,
        }
        .to_bytes();
        assert_eq!(keep.len(), REQUEST_MAX);
        for bytes in [&give, &keep] {
            let back = Request::of(bytes).unwrap();
            assert_eq!(&back.to_bytes(), bytes);
            for length in 0..bytes.len() {
                assert!(Request::of(&bytes[..length]).is_none(), "{length}");
            }
            assert!(Request::of(&[&bytes[..], &[0]].concat()).is_none());
        }
        assert!(Request::of(&[b"prcgove1", &give[8..]].concat()).is_none());
    }

    #[test]
    fn a_secret_is_itself_only() {
        let secret = Secret([7; 16]);
        assert!(secret.is(Secret([7; 16])));
        for at in 0..SECRET {
            let mut other = secret.0;
            other[at] ^= 0x80;
            assert!(!secret.is(Secret(other)));
        }
    }
}
