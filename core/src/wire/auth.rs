//! The handshake: each end shows the other that it knows the key, and neither sends it.
//!
//! One end delivers a challenge, the other answers with a digest of it under the key, the first says whether that was right; then
//! the same the other way round. A listener delivers first, a client answers first. Each message is a frame of at most
//! [`MESSAGE_MAX`] bytes. Between two ends of ours, a client's challenge goes out with its answer ([`Handshake::open_early`]).
//!
//! | message | bytes |
//! |---|---|
//! | challenge | `#CHALLENGE#`, then what is to be digested: `{name}` of the digest that is wanted and 40 others; from CPython up to 3.11: 20 bytes |
//! | answer | `{name}` and the digest of all that followed `#CHALLENGE#`, `{name}` included; from CPython up to 3.11, and to a challenge of 20 bytes: HMAC-MD5 alone |
//! | verdict | `#WELCOME#` or `#FAILURE#` |
//!
//! Who answers any challenge can be made to answer its own: a false listener that is connected to twice sends on the second connection
//! what it was challenged with on the first (reflection). So the first 16 of our 40 bytes tell who challenges, which means nothing to CPython,
//! and neither of our roles answers what its own role would have sent.
//!
//! Python: `multiprocessing.connection.deliver_challenge`, `answer_challenge`, of 3.13. `docs/wire.md` has the history.

use super::digest::Digest;
use std::borrow::Cow;
use std::fmt;

/// Longest message of a handshake, in bytes: what the receiver's decoder is limited to until it is over.
pub const MESSAGE_MAX: u64 = 256;
/// Bytes that nobody can guess, which a handshake needs from its caller.
pub const NONCE_BYTES: usize = 40;

/// Bytes of a message's length on the stream: all of them are short.
const HEADER_BYTES: usize = 4;

const CHALLENGE: &[u8] = b"#CHALLENGE#";
const WELCOME: &[u8] = b"#WELCOME#";
const FAILURE: &[u8] = b"#FAILURE#";

/// Who challenged: in front of a challenge's other bytes. What is left of those is 24, and can't be guessed either.
const TAG_BYTES: usize = 16;
const CLIENT_TAG: &[u8; TAG_BYTES] = b"procession-clt\0\x01";
const LISTENER_TAG: &[u8; TAG_BYTES] = b"procession-srv\0\x01";

/// A challenge of CPython up to 3.11, and the shortest that is answered.
const LEGACY_CHALLENGE: usize = 20;
/// How much of an odd message an error shows.
const SHOWN_BYTES: usize = 24;

/// What one end does, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Delivers a challenge, then answers one. Python: `Listener.accept`.
    Listener,
    /// Answers a challenge, then delivers one. Python: `Client`.
    Client,
    /// Delivers a challenge, and that is all. Python: `deliver_challenge`.
    Deliver,
    /// Answers a challenge, and that is all. Without a side of its own it can't tell a challenge that is thrown back. Python:
    /// `answer_challenge`.
    Answer,
}

/// What a handshake is to reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// This end's part.
    pub role: Role,
    /// The digest that our challenge asks for. A peer may choose another one.
    pub digest: Digest,
    /// Whether HMAC-MD5 will do, from the peer and for it: CPython up to 3.11 knows nothing else.
    pub md5: bool,
}

/// How the peer was authenticated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Authenticated {
    /// HMAC-MD5 was part of it.
    pub with_md5: bool,
}

/// Why the peer wasn't authenticated. Python: `AuthenticationError`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuthError {
    /// The peer's answer is not what the key makes of our challenge: it has another key.
    WrongDigest,
    /// The peer says that of our answer.
    Rejected,
    /// The peer said something else of our answer than that it is right or wrong: its first bytes.
    NoVerdict(Box<[u8]>),
    /// There should have been a challenge: the first bytes of what came.
    NoChallenge(Box<[u8]>),
    /// The challenge has so few bytes.
    ShortChallenge(usize),
    /// A challenge or an answer doesn't say which digest, or one that isn't known: its first bytes.
    UnknownDigest(Box<[u8]>),
    /// The answer's digest has another length than it should.
    WrongLength {
        /// Which digest it is said to be.
        digest: Digest,
        /// How many bytes came.
        length: usize,
    },
    /// The peer asks for MD5, or answers with it, and that isn't in the terms.
    Md5,
    /// The challenge is one of our own role's: somebody sends back what he should have answered himself.
    Reflected,
    /// The handshake was over before this message.
    Over,
}

impl fmt::Display for AuthError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::WrongDigest => f.write_str("digest received was wrong"),
            Self::Rejected => f.write_str("digest sent was rejected"),
            Self::NoVerdict(start) => write!(
                f,
                "digest sent was rejected: neither welcome nor failure, but '{}'",
                start.escape_ascii()
            ),
            Self::NoChallenge(start) => write!(
                f,
                "Protocol error, expected challenge: message='{}'",
                start.escape_ascii()
            ),
            Self::ShortChallenge(length) => write!(f, "challenge too short: {length} bytes"),
            Self::UnknownDigest(start) => write!(
                f,
                "unsupported message length, missing digest prefix, or unsupported digest: message='{}'",
                start.escape_ascii()
            ),
            Self::WrongLength { digest, length } => write!(
                f,
                "expected '{}' of length {} got {length}",
                digest.name(),
                digest.size_bytes()
            ),
            Self::Md5 => f.write_str("the peer wants HMAC-MD5, which isn't allowed here"),
            Self::Reflected => f.write_str("the peer sent back a challenge of our own"),
            Self::Over => f.write_str("the handshake is over"),
        }
    }
}

impl std::error::Error for AuthError {}

/// What a message from the peer leads to.
#[derive(Debug, PartialEq, Eq)]
pub struct Step {
    /// The message that is to be sent now, before anything else.
    pub send: Option<Cow<'static, [u8]>>,
    /// How the handshake ended; `None` while another message is needed.
    pub end: Option<Result<Authenticated, AuthError>>,
}

/// A message that is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Awaited {
    /// The answer to our challenge, which goes out when the wait for its answer begins.
    Answer,
    /// A challenge, which we answer.
    Challenge,
    /// What the peer says of our answer.
    Verdict,
}

impl Role {
    /// The messages that it waits for.
    fn plan(self) -> &'static [Awaited] {
        use Awaited::{Answer, Challenge, Verdict};
        match self {
            Self::Listener => &[Answer, Challenge, Verdict],
            Self::Client => &[Challenge, Verdict, Answer],
            Self::Deliver => &[Answer],
            Self::Answer => &[Challenge, Verdict],
        }
    }

    fn tag(self) -> Option<&'static [u8; TAG_BYTES]> {
        match self {
            Self::Listener => Some(LISTENER_TAG),
            Self::Client => Some(CLIENT_TAG),
            Self::Deliver | Self::Answer => None,
        }
    }
}

/// One end of a handshake: takes the peer's messages, one after the other, and says what to send.
///
/// It ends after at most three of them. After a failure nothing is sent but `#FAILURE#`, and that only to whoever answered wrong: there
/// is nothing a stranger could learn. The stream is to be closed then.
///
/// An empty key is a key; whether to authenticate at all is the caller's decision.
///
/// Python: `deliver_challenge`, `answer_challenge`.
pub struct Handshake<'k> {
    key: Cow<'k, [u8]>,
    terms: Terms,
    /// What the peer has to digest.
    challenge: Vec<u8>,
    /// The messages that are still to come, the next one first.
    plan: &'static [Awaited],
    /// The peer's challenge was one of our listener's.
    is_among_ours: bool,
    /// Our challenge has gone out, or is about to.
    has_opened: bool,
    with_md5: bool,
}

impl fmt::Debug for Handshake<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handshake")
            .field("terms", &self.terms)
            .field("plan", &self.plan)
            .finish_non_exhaustive()
    }
}

impl<'k> Handshake<'k> {
    /// A handshake, and the message it begins with, if this end is the one that begins. The nonce must come from the system's
    /// random numbers, and serve once.
    #[must_use]
    pub fn begin(
        key: impl Into<Cow<'k, [u8]>>,
        terms: Terms,
        mut nonce: [u8; NONCE_BYTES],
    ) -> (Self, Option<Vec<u8>>) {
        if let Some(tag) = terms.role.tag() {
            nonce[..TAG_BYTES].copy_from_slice(tag);
        }
        let mut handshake = Self {
            key: key.into(),
            terms,
            challenge: [&prefix(terms.digest), &nonce[..]].concat(),
            plan: terms.role.plan(),
            is_among_ours: false,
            has_opened: false,
            with_md5: false,
        };
        let first = handshake.opening();
        (handshake, first)
    }

    /// Takes the peer's next message.
    #[must_use]
    pub fn receive(&mut self, message: &[u8]) -> Step {
        let Some((awaited, rest)) = self.plan.split_first() else {
            return Step {
                send: None,
                end: Some(Err(AuthError::Over)),
            };
        };
        self.plan = rest;
        let reply = match awaited {
            Awaited::Answer => self.judge(message).map(|()| Some(WELCOME.into())),
            Awaited::Challenge => self.answer(message).map(|answer| Some(answer.into())),
            Awaited::Verdict => is_welcome(message).map(|()| self.opening().map(Cow::from)),
        };
        match reply {
            Ok(send) => Step {
                send,
                end: self.plan.is_empty().then_some(Ok(Authenticated {
                    with_md5: self.with_md5,
                })),
            },
            Err(error) => {
                self.plan = &[];
                let is_judge = *awaited == Awaited::Answer;
                Step {
                    send: is_judge.then_some(FAILURE.into()),
                    end: Some(Err(error)),
                }
            }
        }
    }

    /// A client's challenge, which may go out together with its answer to a listener of ours; once. Where it isn't asked for, it comes
    /// behind the welcome, which is where CPython has it.
    ///
    /// Nobody learns anything by it: whoever welcomes any answer gets it too. It saves two of six waits.
    #[must_use]
    pub fn open_early(&mut self) -> Option<Vec<u8>> {
        let may = self.is_among_ours && self.plan == [Awaited::Verdict, Awaited::Answer];
        may.then(|| self.challenge()).flatten()
    }

    /// The peer's messages that are still to come are no shorter than this together, as frames: whoever reads so many bytes at once
    /// takes none of what follows the handshake.
    #[must_use]
    pub fn least_to_come(&self) -> usize {
        let body = |awaited: &Awaited| match awaited {
            Awaited::Answer if self.is_among_ours => answer_bytes(self.terms.digest),
            Awaited::Answer if self.terms.md5 => Digest::Md5.size_bytes(),
            Awaited::Answer => answer_bytes(Digest::Sha256),
            Awaited::Challenge => CHALLENGE.len() + LEGACY_CHALLENGE,
            Awaited::Verdict => WELCOME.len(),
        };
        let frames = self.plan.iter().map(|awaited| HEADER_BYTES + body(awaited));
        frames.sum()
    }

    /// Our challenge, if its answer is what comes next.
    fn opening(&mut self) -> Option<Vec<u8>> {
        let begins = self.plan.first() == Some(&Awaited::Answer);
        begins.then(|| self.challenge()).flatten()
    }

    /// Our challenge, the first time.
    fn challenge(&mut self) -> Option<Vec<u8>> {
        let is_first = !std::mem::replace(&mut self.has_opened, true);
        is_first.then(|| [CHALLENGE, &self.challenge].concat())
    }

    /// Whether that is what the key makes of our challenge.
    fn judge(&mut self, answer: &[u8]) -> Result<(), AuthError> {
        let (digest, claimed) = digest_and_claim(answer)?;
        self.allow(digest)?;
        check(&self.key, &self.challenge, digest, claimed)
    }

    /// What the key makes of the peer's challenge.
    fn answer(&mut self, message: &[u8]) -> Result<Vec<u8>, AuthError> {
        let challenge = message
            .strip_prefix(CHALLENGE)
            .ok_or_else(|| AuthError::NoChallenge(start(message)))?;
        if challenge.len() < LEGACY_CHALLENGE {
            return Err(AuthError::ShortChallenge(challenge.len()));
        }
        let own = self.terms.role.tag();
        // Anywhere: no honest peer has it by chance.
        if own.is_some_and(|tag| has_tag(challenge, tag)) {
            return Err(AuthError::Reflected);
        }
        self.is_among_ours = has_tag(challenge, LISTENER_TAG);
        self.allow(digest_and_claim(challenge)?.0)?;
        respond(&self.key, challenge)
    }

    fn allow(&mut self, digest: Digest) -> Result<(), AuthError> {
        if digest == Digest::Md5 {
            self.with_md5 = true;
            return self.terms.md5.then_some(()).ok_or(AuthError::Md5);
        }
        Ok(())
    }
}

/// What the key makes of a challenge, without the handshake around it.
///
/// # Errors
/// `UnknownDigest`.
///
/// Python: `connection._create_response`.
pub fn respond(key: &[u8], challenge: &[u8]) -> Result<Vec<u8>, AuthError> {
    let (digest, _) = digest_and_claim(challenge)?;
    let made = digest.of(key, challenge);
    Ok(if is_legacy(challenge) {
        made
    } else {
        [prefix(digest), made].concat()
    })
}

/// Whether an answer is what the key makes of a challenge, without the handshake around it.
///
/// # Errors
/// `UnknownDigest`, `WrongLength`, `WrongDigest`.
///
/// Python: `connection._verify_challenge`.
pub fn verify(key: &[u8], challenge: &[u8], answer: &[u8]) -> Result<(), AuthError> {
    let (digest, claimed) = digest_and_claim(answer)?;
    check(key, challenge, digest, claimed)
}

fn check(key: &[u8], challenge: &[u8], digest: Digest, claimed: &[u8]) -> Result<(), AuthError> {
    let length = claimed.len();
    if length != digest.size_bytes() {
        return Err(AuthError::WrongLength { digest, length });
    }
    let is_right = digest.is(claimed, key, challenge);
    is_right.then_some(()).ok_or(AuthError::WrongDigest)
}

/// The digest that a challenge asks for or an answer is made with, and what follows its name: all of it, when there is none.
fn digest_and_claim(message: &[u8]) -> Result<(Digest, &[u8]), AuthError> {
    if is_legacy(message) {
        return Ok((Digest::Md5, message));
    }
    digest_and_rest(message)
}

/// Whether a challenge or an answer is one of CPython up to 3.11. By its length alone: those of later versions are longer, since they
/// begin with a prefix.
fn is_legacy(message: &[u8]) -> bool {
    message.len() == LEGACY_CHALLENGE || message.len() == Digest::Md5.size_bytes()
}

fn has_tag(challenge: &[u8], tag: &[u8]) -> bool {
    challenge.windows(TAG_BYTES).any(|part| part == tag)
}

/// Bytes of an answer that says which digest it is.
fn answer_bytes(digest: Digest) -> usize {
    prefix(digest).len() + digest.size_bytes()
}

fn prefix(digest: Digest) -> Vec<u8> {
    format!("{{{}}}", digest.name()).into_bytes()
}

/// The digest that a message begins with, and what follows.
fn digest_and_rest(message: &[u8]) -> Result<(Digest, &[u8]), AuthError> {
    let behind = |digest: Digest| {
        let name = message.strip_prefix(b"{")?;
        name.strip_prefix(digest.name().as_bytes())?
            .strip_prefix(b"}")
    };
    let mut all = Digest::ALL.into_iter();
    all.find_map(|digest| Some((digest, behind(digest)?)))
        .ok_or_else(|| AuthError::UnknownDigest(start(message)))
}

fn is_welcome(message: &[u8]) -> Result<(), AuthError> {
    match message {
        WELCOME => Ok(()),
        FAILURE => Err(AuthError::Rejected),
        other => Err(AuthError::NoVerdict(start(other))),
    }
}

/// As much of a message as an error shows.
fn start(message: &[u8]) -> Box<[u8]> {
    message[..message.len().min(SHOWN_BYTES)].into()
}
