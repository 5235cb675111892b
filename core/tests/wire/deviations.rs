//! Each way to deviate from the wire that CPython is known to meet, and what ours says: the tables of `docs/wire.md`.

use crate::captures::KEY;
use procession_core::wire::auth::{MESSAGE_MAX, NONCE_BYTES};
use procession_core::wire::{AuthError, Digest, Handshake, Role, Step, Terms};

const WITH_MD5: bool = true;

fn terms(role: Role, md5: bool) -> Terms {
    Terms {
        role,
        digest: Digest::Sha256,
        md5,
    }
}

fn begin(role: Role, md5: bool) -> (Handshake<'static>, Option<Vec<u8>>) {
    Handshake::begin(KEY, terms(role, md5), [9; NONCE_BYTES])
}

/// What a client says to a first message.
fn to_challenge(message: &[u8], md5: bool) -> Step {
    begin(Role::Client, md5).0.receive(message)
}

/// What a listener says to an answer.
fn to_answer(answer: &[u8], md5: bool) -> Step {
    begin(Role::Listener, md5).0.receive(answer)
}

fn challenge(rest: &[u8]) -> Vec<u8> {
    [b"#CHALLENGE#", rest].concat()
}

fn refusal(step: Step) -> AuthError {
    step.end.unwrap().unwrap_err()
}

#[test]
fn challenges_that_are_answered() {
    let by_digest = Digest::ALL.map(|digest| {
        let rest = [format!("{{{}}}", digest.name()).as_bytes(), &[5; 40]].concat();
        let length = digest.name().len() + 2 + digest.size_bytes();
        (rest, length)
    });
    assert_eq!(by_digest.each_ref().map(|it| it.1), [21, 40, 56, 42, 58]);
    let more = [
        // Of CPython up to 3.11; so is one that happens to begin with a prefix.
        (vec![5; 20], 16),
        ([b"{sha256}", &[5; 12][..]].concat(), 16),
        ([b"{sha256}", &[5; 13][..]].concat(), 40),
        // As long as a message may be.
        ([b"{sha256}", &[5; 237][..]].concat(), 40),
    ];
    for (rest, length) in by_digest.into_iter().chain(more) {
        let message = challenge(&rest);
        assert!(message.len() as u64 <= MESSAGE_MAX);
        let step = to_challenge(&message, WITH_MD5);
        assert_eq!(step.send.unwrap().len(), length, "{rest:x?}");
        assert_eq!(step.end, None);
    }
}

#[test]
fn challenges_that_are_refused_without_a_word() {
    let long = [&[b'x'; 100][..]].concat();
    let table: &[(Vec<u8>, AuthError)] = &[
        (b"".to_vec(), AuthError::NoChallenge([].into())),
        (
            b"#CHALLENGE".to_vec(),
            AuthError::NoChallenge((*b"#CHALLENGE").into()),
        ),
        (
            b"#WELCOME#".to_vec(),
            AuthError::NoChallenge((*b"#WELCOME#").into()),
        ),
        (
            b"#FAILURE#".to_vec(),
            AuthError::NoChallenge((*b"#FAILURE#").into()),
        ),
        (long.clone(), AuthError::NoChallenge([b'x'; 24].into())),
        (challenge(b""), AuthError::ShortChallenge(0)),
        (challenge(&[1]), AuthError::ShortChallenge(1)),
        (challenge(&[1; 16]), AuthError::ShortChallenge(16)),
        (challenge(&[1; 19]), AuthError::ShortChallenge(19)),
        (
            challenge(&[1; 21]),
            AuthError::UnknownDigest([1; 21].into()),
        ),
        (
            challenge(&[1; 40]),
            AuthError::UnknownDigest([1; 24].into()),
        ),
        (
            challenge(b"{sha1}ooooooooooooooo"),
            AuthError::UnknownDigest((*b"{sha1}ooooooooooooooo").into()),
        ),
        (
            challenge(b"{SHA256}ooooooooooooo"),
            AuthError::UnknownDigest((*b"{SHA256}ooooooooooooo").into()),
        ),
        (
            challenge(b"{sha256ooooooooooooooo"),
            AuthError::UnknownDigest((*b"{sha256ooooooooooooooo").into()),
        ),
        (
            challenge(b" {sha256}ooooooooooooo"),
            AuthError::UnknownDigest((*b" {sha256}ooooooooooooo").into()),
        ),
    ];
    for (message, error) in table {
        let step = to_challenge(message, WITH_MD5);
        assert_eq!((step.send.clone(), refusal(step)), (None, error.clone()));
    }
}

#[test]
fn answers_that_are_refused_with_failure() {
    let table: &[(Vec<u8>, AuthError)] = &[
        (b"".to_vec(), AuthError::UnknownDigest([].into())),
        (vec![1; 15], AuthError::UnknownDigest([1; 15].into())),
        (vec![1; 16], AuthError::WrongDigest),
        (vec![1; 17], AuthError::UnknownDigest([1; 17].into())),
        // A patched CPython's: SHA-256, and it doesn't say so.
        (vec![1; 32], AuthError::UnknownDigest([1; 24].into())),
        (
            vec![1; 20],
            AuthError::WrongLength {
                digest: Digest::Md5,
                length: 20,
            },
        ),
        ([b"{sha256}", &[1; 32][..]].concat(), AuthError::WrongDigest),
        (
            [b"{sha256}", &[1; 31][..]].concat(),
            AuthError::WrongLength {
                digest: Digest::Sha256,
                length: 31,
            },
        ),
        (
            [b"{sha384}", &[1; 32][..]].concat(),
            AuthError::WrongLength {
                digest: Digest::Sha384,
                length: 32,
            },
        ),
        (
            [b"{sha3_384}", &[1; 246][..]].concat(),
            AuthError::WrongLength {
                digest: Digest::Sha3_384,
                length: 246,
            },
        ),
        ([b"{md5}", &[1; 16][..]].concat(), AuthError::WrongDigest),
        (
            b"#WELCOME#".to_vec(),
            AuthError::UnknownDigest((*b"#WELCOME#").into()),
        ),
    ];
    for (answer, error) in table {
        let step = to_answer(answer, WITH_MD5);
        assert_eq!(step.send.as_deref(), Some(&b"#FAILURE#"[..]));
        assert_eq!(refusal(step), *error);
    }
}

#[test]
fn md5_is_refused_where_it_is_not_in_the_terms() {
    for rest in [vec![1; 20], [b"{md5}", &[1; 40][..]].concat()] {
        let step = to_challenge(&challenge(&rest), !WITH_MD5);
        assert_eq!((step.send.clone(), refusal(step)), (None, AuthError::Md5));
    }
    for answer in [vec![1; 16], [b"{md5}", &[1; 16][..]].concat()] {
        let step = to_answer(&answer, !WITH_MD5);
        assert_eq!(step.send.as_deref(), Some(&b"#FAILURE#"[..]));
        assert_eq!(refusal(step), AuthError::Md5);
    }
}

#[test]
fn only_welcome_is_a_welcome() {
    for (verdict, error) in [
        (&b"#FAILURE#"[..], AuthError::Rejected),
        (b"", AuthError::NoVerdict([].into())),
        (b"#WELCOME", AuthError::NoVerdict((*b"#WELCOME").into())),
        (b"#WELCOME# ", AuthError::NoVerdict((*b"#WELCOME# ").into())),
        (b"#welcome#", AuthError::NoVerdict((*b"#welcome#").into())),
    ] {
        let (mut client, _) = begin(Role::Client, WITH_MD5);
        client.receive(&challenge(&[1; 20])).send.unwrap();
        let step = client.receive(verdict);
        assert_eq!((step.send.clone(), refusal(step)), (None, error));
        let after = client.receive(b"#WELCOME#");
        assert_eq!(
            (after.send.clone(), refusal(after)),
            (None, AuthError::Over)
        );
    }
}

#[test]
fn nobody_answers_a_challenge_of_his_own_role() {
    let (_, listeners) = begin(Role::Listener, WITH_MD5);
    let listeners = listeners.unwrap();
    // A client shows its own once it has been welcomed.
    let (mut client, _) = begin(Role::Client, WITH_MD5);
    client.receive(&listeners).send.unwrap();
    let clients = client.receive(b"#WELCOME#").send.unwrap();
    assert!(clients.starts_with(b"#CHALLENGE#{sha256}procession-clt\0\x01"));
    assert!(listeners.starts_with(b"#CHALLENGE#{sha256}procession-srv\0\x01"));
    assert_eq!(
        refusal(to_challenge(&clients, WITH_MD5)),
        AuthError::Reflected
    );
    assert_eq!(to_challenge(&listeners, WITH_MD5).end, None);
    // Behind another prefix, too, or behind none.
    let tail = &clients[b"#CHALLENGE#{sha256}".len()..];
    for rest in [&b"{sha384}"[..], b"{md5}oooooooo", b"oooo"] {
        let message = challenge(&[rest, tail].concat());
        assert_eq!(
            refusal(to_challenge(&message, WITH_MD5)),
            AuthError::Reflected
        );
    }
    // Without a side there is no challenge of one's own side.
    let (mut answer, _) = begin(Role::Answer, WITH_MD5);
    assert_eq!(answer.receive(&clients).end, None);
}

#[test]
fn only_a_listener_of_ours_is_challenged_before_it_has_welcomed() {
    let nonce = [8; NONCE_BYTES];
    let (_, ours) = Handshake::begin(KEY, terms(Role::Listener, WITH_MD5), nonce);
    let (_, theirs) = Handshake::begin(KEY, terms(Role::Deliver, WITH_MD5), nonce);
    for (first, is_ours) in [(ours, true), (theirs, false)] {
        let (mut client, _) = begin(Role::Client, WITH_MD5);
        assert_eq!(client.open_early(), None);
        client.receive(&first.unwrap()).send.unwrap();
        let early = client.open_early();
        assert_eq!(early.is_some(), is_ours);
        assert_eq!(client.open_early(), None, "it challenges once");
        let late = client.receive(b"#WELCOME#");
        assert_eq!((late.send.is_none(), late.end), (is_ours, None));
        assert_eq!(client.open_early(), None);
    }
}

#[test]
fn a_listener_does_not_answer_a_listener() {
    // Its client knows the key, and then sends it the challenge of another listener.
    let (mut listener, first) = begin(Role::Listener, WITH_MD5);
    let (mut client, _) = begin(Role::Client, WITH_MD5);
    let answer = client.receive(&first.unwrap()).send.unwrap();
    assert_eq!(
        listener.receive(&answer).send.as_deref(),
        Some(&b"#WELCOME#"[..])
    );
    let (_, others) = Handshake::begin(KEY, terms(Role::Listener, WITH_MD5), [8; NONCE_BYTES]);
    let step = listener.receive(&others.unwrap());
    assert_eq!(
        (step.send.clone(), refusal(step)),
        (None, AuthError::Reflected)
    );
}

#[test]
fn errors_say_what_cpython_says() {
    for (error, text) in [
        (AuthError::WrongDigest, "digest received was wrong"),
        (AuthError::Rejected, "digest sent was rejected"),
        (AuthError::ShortChallenge(7), "challenge too short: 7 bytes"),
        (
            AuthError::WrongLength {
                digest: Digest::Sha256,
                length: 3,
            },
            "expected 'sha256' of length 32 got 3",
        ),
        (
            AuthError::NoChallenge((*b"GET / \xff").into()),
            "Protocol error, expected challenge: message='GET / \\xff'",
        ),
    ] {
        assert_eq!(error.to_string(), text);
    }
}

#[test]
fn the_key_is_not_shown() {
    let (handshake, _) = begin(Role::Listener, WITH_MD5);
    assert!(
        !format!("{handshake:?}").contains("115"),
        "bytes of the key"
    );
}
