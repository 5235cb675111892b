//! A stream given to the decoder, and messages given to both ends of a handshake, in every way there is; with what must hold whatever the
//! bytes are. Shared by the tests and the fuzz targets.

use procession_core::wire::auth::{MESSAGE_MAX, NONCE_BYTES};
use procession_core::wire::frame::AHEAD_MAX;
use procession_core::wire::{AuthError, Decoder, Digest, FrameError, Handshake, Role, Step, Terms};

/// What a stream turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Seen {
    Frame(Vec<u8>),
    Refused(FrameError),
    End(Result<(), FrameError>),
}

/// What a stream is, read at one go from the drawing in `docs/wire.md`.
pub(crate) fn expected(mut stream: &[u8], limit: u64) -> Vec<Seen> {
    let mut seen = Vec::new();
    loop {
        if stream.is_empty() {
            seen.push(Seen::End(Ok(())));
            return seen;
        }
        let cut = |arrived| Seen::End(Err(FrameError::NoHeader { arrived }));
        let Some(short) = stream.get(..4) else {
            seen.push(cut(stream.len()));
            return seen;
        };
        let (length, body) = match i32::from_be_bytes(short.try_into().unwrap()) {
            -1 => match stream.get(4..12) {
                Some(long) => (u64::from_be_bytes(long.try_into().unwrap()), &stream[12..]),
                None => {
                    seen.push(cut(stream.len()));
                    return seen;
                }
            },
            length if length < 0 => {
                seen.push(Seen::Refused(FrameError::Negative { length, limit }));
                return seen;
            }
            length => (u64::from(length.cast_unsigned()), &stream[4..]),
        };
        if length > limit {
            seen.push(Seen::Refused(FrameError::TooLong { length, limit }));
            return seen;
        }
        let arrived = body.len() as u64;
        if arrived < length {
            seen.push(Seen::End(Err(FrameError::NoBody { arrived, length })));
            return seen;
        }
        let (body, rest) = body.split_at(usize::try_from(length).unwrap());
        seen.push(Seen::Frame(body.into()));
        stream = rest;
    }
}

/// What the decoder makes of it, given in pieces of such lengths.
pub(crate) fn pushed(stream: &[u8], limit: u64, piece: &mut dyn FnMut() -> usize) -> Vec<Seen> {
    read(stream, limit, |decoder, rest| {
        let now = piece().max(1).min(rest.len());
        Ok((decoder.push(&rest[..now])?, decoder.frame()))
    })
}

/// The same by a reader that asks what is wanted, and gets at most so much at once.
pub(crate) fn pulled(stream: &[u8], limit: u64, piece: &mut dyn FnMut() -> usize) -> Vec<Seen> {
    read(stream, limit, |decoder, rest| {
        let mut now = 0;
        if let Some(wanted) = decoder.wanted()? {
            assert!(wanted.most > 0 && wanted.most <= AHEAD_MAX);
            let (length, capacity) = (wanted.into.len(), wanted.into.capacity());
            assert!(capacity - length >= wanted.most && capacity <= length + AHEAD_MAX);
            now = piece().max(1).min(wanted.most).min(rest.len());
            wanted.into.extend_from_slice(&rest[..now]);
        }
        Ok((now, decoder.frame()))
    })
}

/// The same by a reader with a buffer of its own, too short for some, which gives up and comes back now and then.
pub(crate) fn filled(stream: &[u8], limit: u64, piece: &mut dyn FnMut() -> usize) -> Vec<Seen> {
    let mut buffer = [0xee; 48];
    read(stream, limit, |decoder, rest| {
        let length = 1 + piece() % buffer.len();
        let Some(mut filling) = decoder.fill(&mut buffer[..length]) else {
            let now = piece().max(1).min(rest.len());
            // So that a body isn't begun before its buffer is tried.
            let now = now.min(decoder.wanted()?.map_or(0, |wanted| wanted.most));
            let taken = decoder.push(&rest[..now])?;
            return Ok((taken, decoder.frame()));
        };
        let room = filling.room();
        let now = piece().max(1).min(room.len()).min(rest.len());
        room[..now].copy_from_slice(&rest[..now]);
        filling.filled(now);
        let whole = filling.whole();
        drop(filling);
        Ok((now, whole.map(|length| buffer[..length].into())))
    })
}

/// Reads a stream to its end, or to where it is refused; `take` takes some bytes of the rest, and a frame when one is whole.
fn read(
    stream: &[u8],
    limit: u64,
    mut take: impl FnMut(&mut Decoder, &[u8]) -> Result<(usize, Option<Vec<u8>>), FrameError>,
) -> Vec<Seen> {
    let mut decoder = Decoder::new(limit);
    let mut seen = Vec::new();
    let mut rest = stream;
    loop {
        match take(&mut decoder, rest) {
            Err(error) => {
                assert_eq!(decoder.wanted().err(), Some(error), "it says so again");
                assert_eq!(decoder.end(), Err(error));
                assert!(decoder.frame().is_none());
                seen.push(Seen::Refused(error));
                return seen;
            }
            Ok((taken, frame)) => {
                let is_all = rest.is_empty() && frame.is_none();
                rest = &rest[taken..];
                seen.extend(frame.map(Seen::Frame));
                // Once more than there are bytes: the last ones may be all that a frame, or a refusal, needs.
                if is_all && decoder.wanted().is_ok() {
                    seen.push(Seen::End(decoder.end()));
                    return seen;
                }
            }
        }
    }
}

/// The key of whoever is attacked; the attacker hasn't got it.
const KEY: &[u8] = b"the attacked have it";
/// Longest answer: `{sha3_384}` and 48 bytes.
const ANSWER_MAX: usize = 58;
/// Longest text of an error: of a message a part is shown, escaped.
const TEXT_MAX: usize = 220;

/// In an attacker's program, the message that was heard last; those behind it are the ones before.
pub(crate) const LATEST: u8 = 0xf0;

/// Two ends of one role and one key, connected to one attacker, who knows all that they say.
///
/// `program` is what the attacker does, four bytes a step: to which of the two he speaks, which of the messages that he knows he
/// takes (those that he is given first, then what he was sent), and what he does to it. Neither may ever take him for one who
/// has the key. Says how many of the two came to an end.
pub(crate) fn attack(terms: Terms, known: &[Vec<u8>], program: &[u8]) -> usize {
    let mut known = known.to_vec();
    let nonces = [[0x11; NONCE_BYTES], [0x22; NONCE_BYTES]];
    let mut victims = nonces.map(|nonce| {
        let (handshake, first) = Handshake::begin(KEY, terms, nonce);
        known.extend(first);
        Victim {
            handshake,
            heard: 0,
            ended: false,
        }
    });
    for step in program.chunks_exact(4) {
        let message = change(&known, [step[1], step[2], step[3]], step[0] >> 1);
        let victim = &mut victims[usize::from(step[0] & 1)];
        known.extend(victim.hear(terms.role, &message));
        known.extend(victim.handshake.open_early());
    }
    // Whatever is still waited for doesn't come forever.
    for victim in &mut victims {
        while !victim.ended {
            victim.hear(terms.role, b"");
        }
    }
    victims.iter().filter(|victim| victim.ended).count()
}

/// One of the messages, changed.
fn change(known: &[Vec<u8>], [which, at, what]: [u8; 3], how: u8) -> Vec<u8> {
    let pick = |index: u8| match index.checked_sub(LATEST) {
        // What was heard last, and before.
        Some(back) => &known[known.len().saturating_sub(1 + usize::from(back))],
        None => &known[usize::from(index) % known.len()],
    };
    let mut message = pick(which).clone();
    let at = usize::from(at) % (message.len() + 1);
    match how % 8 {
        0..=2 => {}
        3 if at < message.len() => message[at] ^= 1 << (what % 8),
        4 => message.truncate(at),
        5 => message.insert(at, what),
        6 => {
            message.truncate(at);
            message.extend_from_slice(pick(what));
        }
        _ => {
            message.drain(..at);
        }
    }
    message.truncate(usize::try_from(MESSAGE_MAX).unwrap());
    message
}

struct Victim<'k> {
    handshake: Handshake<'k>,
    heard: usize,
    ended: bool,
}

impl Victim<'_> {
    /// What it says to that.
    fn hear(&mut self, role: Role, message: &[u8]) -> Option<Vec<u8>> {
        let Step { send, end } = self.handshake.receive(message);
        if self.ended {
            assert_eq!((send, end), (None, Some(Err(AuthError::Over))));
            return None;
        }
        self.heard += 1;
        self.ended = end.is_some();
        assert!(
            self.ended || self.heard < 3,
            "a handshake has three messages"
        );
        match &end {
            Some(Ok(_)) => assert_eq!(role, Role::Answer, "let in: {message:x?}"),
            Some(Err(error)) => {
                let text = error.to_string();
                assert!(!text.is_empty() && text.len() <= TEXT_MAX, "{text}");
                assert!(matches!(send.as_deref(), None | Some(b"#FAILURE#")));
            }
            None => {}
        }
        let send = send?.into_owned();
        assert_ne!(send, b"#WELCOME#", "{message:x?}");
        assert!(send.starts_with(b"#") || send.len() <= ANSWER_MAX);
        Some(send)
    }
}

/// The terms that there are: each role, MD5 allowed or not, and a digest to ask for.
pub(crate) fn terms(number: usize) -> Terms {
    let roles = [Role::Listener, Role::Client, Role::Deliver, Role::Answer];
    Terms {
        role: roles[number % 4],
        md5: (number / 4).is_multiple_of(2),
        digest: Digest::ALL[number / 8 % 5],
    }
}

/// A stream of bytes given to one end of a handshake, as a connection does it. Says how many messages that were.
pub(crate) fn converse(terms: Terms, stream: &[u8], piece: &mut dyn FnMut() -> usize) -> usize {
    let (handshake, _) = Handshake::begin(KEY, terms, [0x33; NONCE_BYTES]);
    let mut victim = Victim {
        handshake,
        heard: 0,
        ended: false,
    };
    for seen in pushed(stream, MESSAGE_MAX, piece) {
        if let Seen::Frame(message) = seen {
            victim.hear(terms.role, &message);
        }
    }
    victim.heard
}
