//! What a fork server and those who ask it say to each other: packets, and nothing that does anything.
//!
//! | packet | bytes | descriptors |
//! |---|---|---|
//! | first, to the server | `prcfkey1`, key: 32 | |
//! | request | `prcfork1`, key: 32, slot: 4, generation: 4, arena: 16, descriptors: 4, length: 4, body | reply's socket, the way to the server, requester's pidfd, then those of the caller |
//! | reply: started | 1: 4, process id: 4, 0: 8 | pidfd |
//! | reply: refused | 2: 4, call: 4, error: 4, 0: 4 | |
//! | reply: ended | 3: 4, by a signal: 4, signal or code: 4, 0: 4 | |
//!
//! Numbers are little-endian. What isn't exactly so is no packet of ours.

use super::ExitStatus;
use crate::shm::Place;
use crate::sys::identity::is_same;
use crate::sys::packet::DESCRIPTORS_MAX;
use std::fmt;

const KEY_MAGIC: &[u8; 8] = b"prcfkey1";
const REQUEST_MAGIC: &[u8; 8] = b"prcfork1";
const KEY: usize = 32;
/// The bytes of a request before its body.
const HEAD: usize = 8 + KEY + 4 + 4 + 16 + 4 + 4;
/// The bytes of a reply.
pub(super) const REPLY: usize = 16;
/// The bytes of the first packet.
pub(super) const FIRST: usize = 8 + KEY;
/// Descriptors of a request that are ours.
pub(super) const OURS: usize = 3;
/// Descriptors that a caller may add to a request.
pub const PASSED_MAX: usize = DESCRIPTORS_MAX - OURS;
/// Bytes of a request's body: a packet must fit into a socket's buffer as a whole.
pub const BODY_MAX: usize = 16 << 10;
/// The bytes of the longest request.
pub(super) const REQUEST_MAX: usize = HEAD + BODY_MAX;

/// What tells the server that who asks is one of its tree.
#[derive(Clone)]
pub(super) struct Key(pub(super) [u8; KEY]);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key")
    }
}

impl Key {
    /// The first packet.
    pub(super) fn first(&self) -> Vec<u8> {
        [&KEY_MAGIC[..], &self.0].concat()
    }

    pub(super) fn of_first(bytes: &[u8]) -> Option<Self> {
        let key = bytes.strip_prefix(KEY_MAGIC)?;
        key.try_into().ok().map(Self)
    }
}

/// A request, as bytes; `passed`: descriptors of the caller's.
pub(super) fn request(key: &Key, place: Place, passed: usize, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEAD + body.len());
    bytes.extend_from_slice(REQUEST_MAGIC);
    bytes.extend_from_slice(&key.0);
    bytes.extend_from_slice(&place.slot.to_le_bytes());
    bytes.extend_from_slice(&place.generation.to_le_bytes());
    bytes.extend(place.id.iter().flat_map(|half| half.to_le_bytes()));
    for count in [passed, body.len()] {
        bytes.extend_from_slice(&u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes());
    }
    bytes.extend_from_slice(body);
    bytes
}

/// What a request says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Asked<'a> {
    pub(super) place: Place,
    /// Descriptors of the caller's.
    pub(super) passed: usize,
    pub(super) body: &'a [u8],
}

/// Reads a request with that key; `None` for anything else.
pub(super) fn asked<'a>(key: &Key, bytes: &'a [u8]) -> Option<Asked<'a>> {
    let mut rest = Fields(bytes.strip_prefix(REQUEST_MAGIC)?);
    let has_key = is_same(&key.0, &rest.take()?);
    let place = Place {
        slot: rest.number()?,
        generation: rest.number()?,
        id: [rest.long()?, rest.long()?],
    };
    let (passed, length) = (rest.length()?, rest.length()?);
    let body = rest.0;
    let whole = passed <= PASSED_MAX && length <= BODY_MAX && body.len() == length;
    (has_key && whole).then_some(Asked {
        place,
        passed,
        body,
    })
}

/// What the server says of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reply {
    /// The child runs, under that process id; its pidfd comes with it.
    Started(u32),
    /// It doesn't: that call failed with that error number.
    Refused(Call, i32),
    /// It has ended.
    Ended(ExitStatus),
}

/// The calls of a server that may fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Call {
    Fork = 1,
    Pidfd = 2,
    Receive = 3,
    Watch = 4,
    Send = 5,
    Other = 6,
}

impl Call {
    const ALL: [Self; 6] = [
        Self::Fork,
        Self::Pidfd,
        Self::Receive,
        Self::Watch,
        Self::Send,
        Self::Other,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Fork => "fork",
            Self::Pidfd => "pidfd_open",
            Self::Receive => "recvmsg",
            Self::Watch => "epoll_ctl",
            Self::Send => "sendmsg",
            Self::Other => "fork server",
        }
    }

    pub(super) fn named(name: &str) -> Self {
        let known = Self::ALL.into_iter().find(|call| call.name() == name);
        known.unwrap_or(Self::Other)
    }
}

impl Reply {
    pub(super) fn bytes(self) -> [u8; REPLY] {
        let (kind, first, second) = match self {
            Self::Started(pid) => (1, pid, 0),
            Self::Refused(call, errno) => (2, call as u32, errno),
            Self::Ended(ExitStatus::Code(code)) => (3, 0, code),
            Self::Ended(ExitStatus::Signal(signal)) => (3, 1, signal),
        };
        let mut bytes = [0; REPLY];
        bytes[..4].copy_from_slice(&u32::to_le_bytes(kind));
        bytes[4..8].copy_from_slice(&first.to_le_bytes());
        bytes[8..12].copy_from_slice(&second.to_le_bytes());
        bytes
    }

    pub(super) fn of(bytes: &[u8]) -> Option<Self> {
        let mut rest = Fields(bytes);
        let (kind, first) = (rest.number()?, rest.number()?);
        let second = i32::from_le_bytes(rest.take()?);
        match (kind, first, rest.number()?, rest.0) {
            (1, pid, 0, []) if pid > 0 => Some(Self::Started(pid)),
            (2, call, 0, []) => {
                let call = Call::ALL.into_iter().find(|known| *known as u32 == call)?;
                Some(Self::Refused(call, second))
            }
            (3, 0, 0, []) => Some(Self::Ended(ExitStatus::Code(second))),
            (3, 1, 0, []) => Some(Self::Ended(ExitStatus::Signal(second))),
            _ => None,
        }
    }
}

/// Bytes that haven't been read yet.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*field)
    }

    fn number(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn long(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn length(&mut self) -> Option<usize> {
        usize::try_from(self.number()?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLACE: Place = Place {
        slot: 5,
        generation: 77,
        id: [1, u64::MAX],
    };

    fn key() -> Key {
        let mut next = 0;
        Key([(); KEY].map(|()| {
            next += 1;
            next
        }))
    }

    #[test]
    fn a_request_is_read_as_it_was_written() {
        for body in [&b""[..], b"body", &[7; BODY_MAX]] {
            let bytes = request(&key(), PLACE, 3, body);
            let expected = Asked {
                place: PLACE,
                passed: 3,
                body,
            };
            assert_eq!(asked(&key(), &bytes), Some(expected));
        }
    }

    #[test]
    fn any_other_bytes_are_no_request() {
        let whole = request(&key(), PLACE, 0, b"body");
        // The key, and what is counted; the place and the body may be anything.
        let checked = (0..8 + KEY).chain(HEAD - 4..HEAD);
        for at in checked {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            assert_eq!(asked(&key(), &bytes), None, "byte {at}");
        }
        for length in 0..whole.len() {
            assert_eq!(asked(&key(), &whole[..length]), None, "{length} bytes");
        }
        assert_eq!(asked(&key(), &[&whole[..], b"x"].concat()), None);
        let many = request(&key(), PLACE, PASSED_MAX + 1, b"");
        assert_eq!(asked(&key(), &many), None);
        let long = request(&key(), PLACE, 0, &[0; BODY_MAX + 1]);
        assert_eq!(asked(&key(), &long), None);
    }

    #[test]
    fn a_key_is_read_as_it_was_written() {
        let bytes = key().first();
        assert_eq!(bytes.len(), FIRST);
        assert_eq!(Key::of_first(&bytes).unwrap().0, key().0);
        assert!(Key::of_first(&bytes[..FIRST - 1]).is_none());
        assert!(Key::of_first(&request(&key(), PLACE, 0, b"")).is_none());
    }

    #[test]
    fn a_reply_is_read_as_it_was_written_and_nothing_else_is() {
        let replies = [
            Reply::Started(77),
            Reply::Refused(Call::Fork, 11),
            Reply::Refused(Call::named("anything"), 12),
            Reply::Ended(ExitStatus::Code(3)),
            Reply::Ended(ExitStatus::Signal(9)),
        ];
        for reply in replies {
            let bytes = reply.bytes();
            assert_eq!(Reply::of(&bytes), Some(reply));
            assert_eq!(Reply::of(&bytes[..REPLY - 1]), None);
            assert_eq!(Reply::of(&[&bytes[..], b"x"].concat()), None);
        }
        assert_eq!(Reply::of(&[4; REPLY]), None);
    }
}
