//! Hostile bytes: whatever a peer sends, neither the decoder nor an end of a handshake panics, hangs, allocates for what didn't
//! come, or takes a peer without the key for one that has it.
//!
//! The bytes are real exchanges, changed as a seed has it; it is printed, and `SEED` and `CASE` replay. `CASES` is how many, or `SECONDS`
//! how long.

use crate::captures::{Exchange, exchanges, messages};
use crate::counting::peak_of;
use crate::exercise::{LATEST, attack, converse, expected, filled, pulled, pushed, terms};
use crate::random::Random;
use procession_core::wire::frame::AHEAD_MAX;
use procession_core::wire::{Role, Terms};
use std::time::{Duration, Instant};

/// Cases in a usual run, of each.
const CASES: u64 = 50_000;
/// What an attack allocates beside what the attacker knows, in bytes, at the most.
const ATTACK_BYTES: usize = 64 << 10;

/// Runs cases from a seed; after a failure this says which one it was.
fn run(name: &str, mut case: impl FnMut(&mut Random)) {
    let seed = number("SEED").unwrap_or(6);
    let first = number("CASE");
    let usual = if first.is_some() { 1 } else { CASES };
    let most = number("CASES").unwrap_or(usual);
    let time = number("SECONDS").map(Duration::from_secs);
    let begin = Instant::now();
    let is_enough = |cases| time.map_or(cases == most, |time| begin.elapsed() >= time);
    let mut cases = 0;
    while !is_enough(cases) {
        let number = first.unwrap_or(0) + cases;
        let told = Told { seed, number };
        case(&mut Random::of_case(seed, number));
        std::mem::forget(told);
        cases += 1;
    }
    println!("{name}: SEED={seed}, {cases} cases");
}

/// A number of the environment's.
fn number(name: &str) -> Option<u64> {
    Some(std::env::var(name).ok()?.parse().expect("a number"))
}

/// Says on the way out of a panic what to set.
struct Told {
    seed: u64,
    number: u64,
}

impl Drop for Told {
    fn drop(&mut self) {
        println!("SEED={} CASE={}", self.seed, self.number);
    }
}

#[test]
fn any_stream_is_decoded() {
    let streams: Vec<_> = streams();
    run("any stream", |random| {
        let mut stream = random.pick(&streams.iter().collect::<Vec<_>>()).clone();
        spoil(&mut stream, random);
        let limit = random.pick(&[0, 16, 256, 1 << 20, u64::MAX]);
        let expected = expected(&stream, limit);
        let widest = random.pick(&[1, 4, 13, 300]);
        let most = stream.len() + AHEAD_MAX;
        for way in [pushed, pulled, filled] {
            let mut piece = || random.below(widest);
            let (seen, peak) = peak_of(|| way(&stream, limit, &mut piece));
            assert_eq!(seen, expected);
            // What was seen is allocated, too, and a vector grows by doubling.
            assert!(peak <= most + 3 * stream.len() + 4096, "{peak}");
        }
    });
}

#[test]
fn no_stream_is_let_in() {
    let streams = streams();
    let mut heard = 0;
    run("no stream", |random| {
        let mut stream = random.pick(&streams.iter().collect::<Vec<_>>()).clone();
        spoil(&mut stream, random);
        let terms = terms(random.below(40));
        let widest = random.pick(&[1, 4, 13, 300]);
        heard += converse(terms, &stream, &mut || random.below(widest));
    });
    println!("{heard} messages");
    assert!(heard > 0);
}

#[test]
fn no_client_lets_in_who_has_no_key() {
    attacks("attacks on clients", Role::Client);
}

#[test]
fn no_listener_lets_in_who_has_no_key() {
    attacks("attacks on listeners", Role::Listener);
}

#[test]
fn no_half_of_a_handshake_is_taken_by_surprise() {
    attacks("attacks on whoever delivers", Role::Deliver);
    attacks("attacks on whoever answers", Role::Answer);
}

fn attacks(name: &str, role: Role) {
    let known = messages();
    run(name, |random| {
        let terms = Terms {
            role,
            ..terms(random.below(40))
        };
        let program = program(known.len(), random);
        let (ended, peak) = peak_of(|| attack(terms, &known, &program));
        assert_eq!(ended, 2, "each comes to an end");
        assert!(peak < ATTACK_BYTES, "{peak}");
    });
}

/// Steps of an attacker, who often begins as an honest peer does; then he mostly sends on what he heard last, or what he
/// knows, as it is.
fn program(known: usize, random: &mut Random) -> Vec<u8> {
    let welcome = u8::try_from(known - 1).unwrap();
    let mut program = Vec::new();
    if random.below(2) == 0 {
        program.extend([0, random.byte() % LATEST, 0, 0]);
        program.extend([0, welcome, 0, 0]);
    }
    for _ in 0..1 + random.below(8) {
        let which = match random.below(4) {
            0 | 1 => LATEST + random.byte() % 4,
            2 => welcome - random.byte() % 2,
            _ => random.byte(),
        };
        let victim = random.byte() & 1;
        let how = random.byte() & !1 & if random.below(3) == 0 { 0xff } else { 0 };
        program.extend([victim | how, which, random.byte(), random.byte()]);
    }
    program
}

/// What each side of each exchange sent.
fn streams() -> Vec<Vec<u8>> {
    let exchanges = exchanges();
    let of = |of_server| {
        exchanges
            .iter()
            .map(move |one: &Exchange| one.stream(of_server))
    };
    of(true).chain(of(false)).collect()
}

/// Changes a stream in some places: bits, lengths, pieces left out, doubled or put in.
fn spoil(stream: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..random.below(4) {
        let at = random.below(stream.len() + 1);
        let rest = stream.len() - at;
        match random.below(6) {
            0 if rest > 0 => stream[at] ^= 1 << random.below(8),
            1 => stream.truncate(at),
            2 => {
                let length = random.below(rest + 1).min(40);
                let doubled = stream[at..at + length].to_vec();
                stream.splice(at..at, doubled);
            }
            3 => {
                let length = random.below(rest + 1).min(12);
                stream.drain(at..at + length);
            }
            4 => {
                let lengths = [
                    0,
                    1,
                    0xff,
                    0x100,
                    0x101,
                    0x7fff_ffff,
                    0x8000_0000,
                    0xffff_fffe,
                    u32::MAX,
                ];
                put(
                    stream,
                    frame_or(at, stream, random),
                    &random.pick(&lengths).to_be_bytes(),
                );
            }
            _ => {
                let long = random.pick(&[0, 3, 256, 1 << 31, 1 << 40, 1 << 63, u64::MAX]);
                let bytes = [&[0xff; 4][..], &long.to_be_bytes()].concat();
                put(stream, frame_or(at, stream, random), &bytes);
            }
        }
    }
}

/// Mostly the beginning of the stream, where a header is.
fn frame_or(at: usize, stream: &[u8], random: &mut Random) -> usize {
    // Behind the first frame there is another one.
    let second = 4 + usize::from(stream.get(3).copied().unwrap_or(0));
    random.pick(&[0, second.min(stream.len()), at])
}

fn put(stream: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    let end = stream.len().min(at + bytes.len());
    stream.splice(at..end, bytes.iter().copied());
}
