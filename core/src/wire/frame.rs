//! Frames: the length of a message, then the message. What `multiprocessing.connection.Connection` puts on a stream.
//!
//! | offset | size | field | meaning |
//! |---|---|---|---|
//! | 0 | 4 | length | big-endian, signed: 0 to 2^31 - 1; or -1, and the length follows |
//! | 4 | 8 | long length | big-endian, unsigned; only after -1 |
//! | 4 or 12 | length | body | |
//!
//! A length says what a peer wants to send, not what it will. So the decoder never has more memory than has arrived and
//! [`AHEAD_MAX`] bytes more, and it looks at the limit before there is a body at all.

use std::fmt;

/// How many bytes a body's buffer may be ahead of what has arrived: large enough that a usual message is one buffer from the
/// start, small enough that a peer gains nothing by announcing more.
pub const AHEAD_MAX: usize = 1 << 20;

/// Bytes of the short length, and of the long one behind it.
const SHORT: usize = 4;
const LONG: usize = 8;
/// A short length that says: a long one follows.
const LONG_FOLLOWS: i32 = -1;
/// Longest body with a short length.
const SHORT_MAX: u64 = i32::MAX as u64;

/// The bytes before a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    bytes: [u8; SHORT + LONG],
    size_bytes: usize,
}

impl Header {
    /// The header of a body of so many bytes: four, or twelve for a body of 2 GiB and more. A sender writes it and the body
    /// with one call, so that no other sender's bytes come between.
    ///
    /// Python: `Connection._send_bytes`.
    #[must_use]
    pub fn of(length: u64) -> Self {
        let mut bytes = [0; SHORT + LONG];
        let short = i32::try_from(length).unwrap_or(LONG_FOLLOWS);
        bytes[..SHORT].copy_from_slice(&short.to_be_bytes());
        bytes[SHORT..].copy_from_slice(&length.to_be_bytes());
        let size_bytes = if length > SHORT_MAX {
            SHORT + LONG
        } else {
            SHORT
        };
        Self { bytes, size_bytes }
    }

    /// What is sent.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.size_bytes]
    }
}

/// Why a stream can't be read any further. The same answer comes again until the decoder is dropped: nothing says where
/// the next frame would begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameError {
    /// The length is below zero, and isn't the mark of a long one.
    Negative {
        /// What was sent.
        length: i32,
        /// The longest body that would have been taken.
        limit: u64,
    },
    /// The body is longer than the limit.
    TooLong {
        /// What was sent.
        length: u64,
        /// The longest body that would have been taken.
        limit: u64,
    },
    /// The stream ended inside a header.
    NoHeader {
        /// How many bytes of it came.
        arrived: usize,
    },
    /// The stream ended inside a body.
    NoBody {
        /// How many bytes of it came.
        arrived: u64,
        /// How many there should be.
        length: u64,
    },
    /// There is no memory for what arrived.
    NoMemory {
        /// How many bytes of the body are there.
        arrived: u64,
        /// How many there will be.
        length: u64,
    },
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Negative { length, limit } => write!(
                f,
                "bad message length: {length}, where 0 to {limit} bytes may be announced"
            ),
            Self::TooLong { length, limit } => write!(
                f,
                "bad message length: {length} bytes exceed the limit of {limit}"
            ),
            Self::NoHeader { arrived } => write!(
                f,
                "got end of file during message: after {arrived} bytes of its length"
            ),
            Self::NoBody { arrived, length } => write!(
                f,
                "got end of file during message: after {arrived} of {length} bytes"
            ),
            Self::NoMemory { arrived, length } => write!(
                f,
                "no memory for a message of {length} bytes, of which {arrived} have arrived"
            ),
        }
    }
}

impl std::error::Error for FrameError {}

/// Where the next bytes of the stream belong.
#[derive(Debug)]
pub struct Wanted<'a> {
    /// The bytes are appended to these, which have room for them already.
    pub into: &'a mut Vec<u8>,
    /// No more than so many, since what comes after them isn't this frame's: another reader of the same stream may want them.
    pub most: usize,
}

/// Puts messages together from a stream that comes in any pieces.
///
/// A frame is read in two or three steps, each of which asks for the bytes that are certain to come; nothing is read ahead
/// of the frame, so that a stream can be handed on between any two, and whether it is readable is whether there is
/// a message. A body's bytes are read where they stay: into the message that [`frame`](Self::frame) gives, or into the
/// caller's buffer with [`fill`](Self::fill).
///
/// Python: `Connection._recv_bytes`.
#[derive(Debug)]
pub struct Decoder {
    limit: u64,
    header: Vec<u8>,
    body: Vec<u8>,
    /// Bytes arrived, and there was no memory to keep them.
    lost: bool,
}

/// What is known of the frame that is being read.
enum Head {
    /// So many bytes of the header are missing.
    Missing(usize),
    /// The body's length.
    Length(u64),
}

impl Decoder {
    /// A decoder at the beginning of a frame, which takes bodies of at most `limit` bytes.
    #[must_use]
    pub fn new(limit: u64) -> Self {
        Self {
            limit,
            header: Vec::with_capacity(SHORT + LONG),
            body: Vec::new(),
            lost: false,
        }
    }

    /// Changes the longest body that is taken, from the frame on whose body hasn't arrived yet.
    pub fn set_limit(&mut self, limit: u64) {
        self.limit = limit;
    }

    /// Where the next bytes belong; `None` once the frame is whole.
    ///
    /// # Errors
    /// `Negative` and `TooLong` for what the header says, before any byte of the body is wanted; `NoMemory`.
    ///
    /// # Panics
    /// When more bytes were appended than were wanted.
    pub fn wanted(&mut self) -> Result<Option<Wanted<'_>>, FrameError> {
        let length = match self.head()? {
            Head::Missing(most) => {
                let into = &mut self.header;
                return Ok(Some(Wanted { into, most }));
            }
            Head::Length(length) => length,
        };
        let arrived = self.body.len() as u64;
        assert!(arrived <= length, "more bytes than were wanted");
        if arrived == length {
            return Ok(None);
        }
        // Room is made when the last is used up, not at each piece: a buffer that grows may have to move.
        let rest = usize::try_from(length - arrived).unwrap_or(usize::MAX);
        if self.body.capacity() == self.body.len() {
            self.body
                .try_reserve_exact(rest.min(AHEAD_MAX))
                .map_err(|_| FrameError::NoMemory { arrived, length })?;
        }
        let most = rest.min(self.body.capacity() - self.body.len());
        let into = &mut self.body;
        Ok(Some(Wanted { into, most }))
    }

    /// Takes bytes that came some other way, up to the end of the frame, and says how many those were.
    ///
    /// # Errors
    /// As [`wanted`](Self::wanted).
    pub fn push(&mut self, bytes: &[u8]) -> Result<usize, FrameError> {
        let mut taken = 0;
        while let Some(wanted) = self.wanted()? {
            let rest = &bytes[taken..];
            if rest.is_empty() {
                break;
            }
            let now = &rest[..wanted.most.min(rest.len())];
            wanted.into.extend_from_slice(now);
            taken += now.len();
        }
        Ok(taken)
    }

    /// The body of the frame, if that is whole. Another frame begins behind it.
    pub fn frame(&mut self) -> Option<Vec<u8>> {
        let length = self.length()?;
        if (self.body.len() as u64) < length || self.lost {
            return None;
        }
        self.header.clear();
        Some(std::mem::take(&mut self.body))
    }

    /// How long the body is: known once its header is there, and only of one that may be received.
    #[must_use]
    pub fn length(&self) -> Option<u64> {
        match self.head() {
            Ok(Head::Length(length)) => Some(length),
            _ => None,
        }
    }

    /// What has arrived of the body, which the decoder has no more: whoever takes it gets the rest without the decoder, too.
    #[must_use]
    pub fn take_body(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.body)
    }

    /// Goes on to the next frame: somebody else got the rest of this one.
    pub fn pass(&mut self) {
        self.header.clear();
        self.body.clear();
    }

    /// Has the body arrive in a buffer of the caller's; `None` when its length isn't known yet, or it is too long for that.
    ///
    /// Python: `Connection.recv_bytes_into`.
    pub fn fill<'a>(&'a mut self, buffer: &'a mut [u8]) -> Option<Filling<'a>> {
        let length = usize::try_from(self.length()?).ok()?;
        let buffer = buffer.get_mut(..length)?;
        let arrived = self.body.len();
        buffer.get_mut(..arrived)?.copy_from_slice(&self.body);
        self.body.clear();
        Some(Filling {
            decoder: self,
            buffer,
            arrived,
        })
    }

    /// Whether the stream may end here: `Ok` where a frame would begin.
    ///
    /// # Errors
    /// `NoHeader` and `NoBody` inside a frame; what [`wanted`](Self::wanted) says for one that is refused.
    pub fn end(&self) -> Result<(), FrameError> {
        let arrived = self.header.len();
        match self.head()? {
            Head::Missing(_) if arrived == 0 => Ok(()),
            Head::Missing(_) => Err(FrameError::NoHeader { arrived }),
            Head::Length(length) if self.body.len() as u64 == length => Ok(()),
            Head::Length(length) => Err(FrameError::NoBody {
                arrived: self.body.len() as u64,
                length,
            }),
        }
    }

    /// Reads what there is of the header.
    fn head(&self) -> Result<Head, FrameError> {
        let Some((short, rest)) = self.header.split_first_chunk() else {
            return Ok(Head::Missing(SHORT - self.header.len()));
        };
        let limit = self.limit;
        let length = match i32::from_be_bytes(*short) {
            LONG_FOLLOWS => match rest.first_chunk() {
                Some(long) => u64::from_be_bytes(*long),
                None => return Ok(Head::Missing(LONG - rest.len())),
            },
            length => u64::try_from(length).map_err(|_| FrameError::Negative { length, limit })?,
        };
        if length > limit {
            return Err(FrameError::TooLong { length, limit });
        }
        if self.lost {
            let arrived = self.body.len() as u64;
            return Err(FrameError::NoMemory { arrived, length });
        }
        Ok(Head::Length(length))
    }
}

/// A body on its way into the caller's buffer.
///
/// Dropped before it is whole, it leaves with the decoder what has arrived: an interrupted call loses nothing.
#[derive(Debug)]
pub struct Filling<'a> {
    decoder: &'a mut Decoder,
    buffer: &'a mut [u8],
    arrived: usize,
}

impl Filling<'_> {
    /// The part of the buffer that waits for bytes; empty once the body is whole.
    pub fn room(&mut self) -> &mut [u8] {
        &mut self.buffer[self.arrived..]
    }

    /// The body's length, once all of it is in the buffer; the decoder is at the next frame when this is dropped.
    #[must_use]
    pub fn whole(&self) -> Option<usize> {
        let length = self.buffer.len();
        (self.arrived == length).then_some(length)
    }

    /// Notes that so many bytes are in the room now.
    ///
    /// # Panics
    /// When the room has fewer.
    pub fn filled(&mut self, bytes: usize) {
        assert!(
            bytes <= self.room().len(),
            "more bytes than there was room for"
        );
        self.arrived += bytes;
    }
}

impl Drop for Filling<'_> {
    fn drop(&mut self) {
        let decoder = &mut *self.decoder;
        if self.arrived == self.buffer.len() {
            // Nothing of it is in the decoder: `fill` took what was.
            decoder.header.clear();
            return;
        }
        let arrived = &self.buffer[..self.arrived];
        match decoder.body.try_reserve_exact(arrived.len()) {
            Ok(()) => decoder.body.extend_from_slice(arrived),
            Err(_) => decoder.lost = true,
        }
    }
}
