//! Stock CPython's own exchanges, with one side of each played by ours: byte by byte what CPython said.

use crate::captures::{Exchange, KEY, WRONG, exchanges};
use procession_core::wire::auth::NONCE_BYTES;
use procession_core::wire::{
    AuthError, Authenticated, Digest, Handshake, Header, Role, Step, Terms,
};

const CHALLENGE: &[u8] = b"#CHALLENGE#";

/// One half of a handshake as it was seen: a challenge, its answer, the verdict.
struct Half<'a> {
    challenge: &'a [u8],
    answer: &'a [u8],
    verdict: &'a [u8],
    /// What the one who answers has.
    key: &'static [u8],
}

impl Half<'_> {
    /// The nonce of whoever delivered the challenge as ours would; `None` for CPython up to 3.11.
    fn nonce(&self) -> Option<[u8; NONCE_BYTES]> {
        let rest = self.challenge.strip_prefix(b"#CHALLENGE#{sha256}")?;
        rest.try_into().ok()
    }

    fn has_md5(&self) -> bool {
        self.answer.len() == Digest::Md5.size_bytes()
    }
}

fn halves(exchange: &Exchange) -> Vec<Half<'_>> {
    let bodies: Vec<&[u8]> = exchange.frames.iter().map(|frame| &*frame.body).collect();
    bodies
        .chunks_exact(3)
        .filter(|three| three[0].starts_with(CHALLENGE))
        .map(|three| Half {
            challenge: three[0],
            answer: three[1],
            verdict: three[2],
            key: if exchange.is_right { KEY } else { WRONG },
        })
        .collect()
}

fn terms(role: Role) -> Terms {
    Terms {
        role,
        digest: Digest::Sha256,
        md5: true,
    }
}

fn step(send: Option<&[u8]>, end: Option<Result<bool, AuthError>>) -> Step {
    Step {
        send: send.map(|bytes| bytes.to_vec().into()),
        end: end.map(|end| end.map(|with_md5| Authenticated { with_md5 })),
    }
}

#[test]
fn every_pair_of_versions_is_there() {
    let all = exchanges();
    let versions = ["3.11.7", "3.12.1", "3.13.0"];
    for is_right in [true, false] {
        for server in versions {
            for client in versions {
                let found = all.iter().filter(|one| {
                    (one.server, one.client, one.is_right) == (server, client, is_right)
                });
                assert_eq!(found.count(), 1, "{server} {client}");
            }
        }
    }
    let count = |is_right| {
        let of_key = all.iter().filter(|one| one.is_right == is_right);
        of_key.map(|one| halves(one).len()).sum::<usize>()
    };
    assert_eq!((count(true), count(false)), (18, 9));
}

#[test]
fn frames_are_cpythons() {
    for frame in exchanges().iter().flat_map(|one| &one.frames) {
        assert_eq!(Header::of(frame.body.len() as u64).bytes(), frame.header);
    }
}

#[test]
fn challenges_are_answered_as_cpython_did() {
    let mut compared = 0;
    for exchange in exchanges() {
        for half in halves(&exchange) {
            let (mut handshake, first) =
                Handshake::begin(half.key, terms(Role::Answer), [7; NONCE_BYTES]);
            assert_eq!(first, None);
            let said = handshake.receive(half.challenge);
            // CPython up to 3.11 doesn't know what such a challenge asks for; ours does.
            let is_newer = half.nonce().is_some() && half.has_md5();
            if is_newer {
                assert!(said.send.unwrap().starts_with(b"{sha256}"));
            } else {
                assert_eq!(said, step(Some(half.answer), None), "{exchange:?}");
                compared += 1;
            }
            let end = if exchange.is_right {
                Ok(half.has_md5() && !is_newer)
            } else {
                Err(AuthError::Rejected)
            };
            assert_eq!(handshake.receive(half.verdict), step(None, Some(end)));
        }
    }
    assert_eq!(compared, 21, "all answers but those of 3.11 to later ones");
}

#[test]
fn answers_are_judged_as_cpython_did() {
    let mut judged = 0;
    for exchange in exchanges() {
        for half in halves(&exchange) {
            let Some(nonce) = half.nonce() else { continue };
            let (mut handshake, first) = Handshake::begin(KEY, terms(Role::Deliver), nonce);
            assert_eq!(first.as_deref(), Some(half.challenge));
            let end = if exchange.is_right {
                Ok(half.has_md5())
            } else {
                Err(AuthError::WrongDigest)
            };
            let said = handshake.receive(half.answer);
            assert_eq!(said, step(Some(half.verdict), Some(end)), "{exchange:?}");
            judged += 1;
        }
    }
    assert_eq!(judged, 12 + 6, "all challenges but those of 3.11");
}

/// What one end says to the other, until both have ended or one says nothing that is waited for.
fn talk(
    listener: (&[u8], Terms),
    client: (&[u8], Terms),
    mut on_the_way: impl FnMut(usize, &mut Vec<u8>),
) -> [Option<Result<Authenticated, AuthError>>; 2] {
    let (listener, first) = Handshake::begin(listener.0, listener.1, [1; NONCE_BYTES]);
    let (client, nothing) = Handshake::begin(client.0, client.1, [2; NONCE_BYTES]);
    assert_eq!(nothing, None);
    let mut ends = [(listener, None), (client, None)];
    let mut under_way = vec![(1, first.unwrap())];
    let mut count = 0;
    while let Some((to, mut message)) = under_way.pop() {
        on_the_way(count, &mut message);
        count += 1;
        let least = ends[to].0.least_to_come();
        let said = ends[to].0.receive(&message);
        if !matches!(said.end, Some(Err(_))) {
            let frame = 4 + message.len();
            assert!(least <= frame + ends[to].0.least_to_come(), "{message:?}");
        }
        if ends[to].1.is_none() {
            ends[to].1 = said.end;
        }
        if let Some(send) = said.send {
            under_way.insert(0, (1 - to, send.into_owned()));
        }
    }
    ends.map(|end| end.1)
}

#[test]
fn our_two_ends_understand_each_other() {
    for digest in Digest::ALL {
        let with = |role, md5| Terms { role, digest, md5 };
        let is_md5 = digest == Digest::Md5;
        let welcome = Some(Ok(Authenticated { with_md5: is_md5 }));
        for key in [b"k".to_vec(), Vec::new(), vec![0xff; 300]] {
            let ends = talk(
                (&key, with(Role::Listener, is_md5)),
                (&key, with(Role::Client, is_md5)),
                |_, _| {},
            );
            assert_eq!(ends, [welcome.clone(), welcome.clone()], "{digest:?}");
        }
        let ends = talk(
            (b"right", with(Role::Listener, true)),
            (b"wrong", with(Role::Client, true)),
            |_, _| {},
        );
        let refused = [
            Some(Err(AuthError::WrongDigest)),
            Some(Err(AuthError::Rejected)),
        ];
        assert_eq!(ends, refused);
    }
}

#[test]
fn no_bit_can_be_changed_on_the_way() {
    let both = |role| (KEY, terms(role));
    let mut lengths = Vec::new();
    talk(both(Role::Listener), both(Role::Client), |_, message| {
        lengths.push(message.len());
    });
    assert_eq!(lengths, [59, 40, 9, 59, 40, 9]);
    for (which, length) in lengths.into_iter().enumerate() {
        for bit in 0..length * 8 {
            let [listener, client] = talk(
                both(Role::Listener),
                both(Role::Client),
                |count, message| {
                    if count == which {
                        message[bit / 8] ^= 1 << (bit % 8);
                    }
                },
            );
            // Whoever is told a lie fails, and so does whoever waits for it. The last word is heard by the listener alone.
            assert!(!matches!(listener, Some(Ok(_))), "{which} {bit}");
            assert!(
                which == 5 || !matches!(client, Some(Ok(_))),
                "{which} {bit}"
            );
        }
    }
}
