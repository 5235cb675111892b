//! An attacker without the key, connected twice to one end of a handshake: his program is the fuzzer's bytes, four a step
//! behind one for the terms, as in the tests `no_client_lets_in_who_has_no_key` and the listener's.

#[path = "../../tests/wire/captures.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod captures;
#[path = "../../tests/wire/exercise.rs"]
#[allow(dead_code, reason = "the tests and the other targets use more of it")]
mod exercise;

use exercise::{attack, converse, terms};
use procession_core::wire::{Role, Terms};
use std::sync::OnceLock;

fn known() -> &'static [Vec<u8>] {
    static KNOWN: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    KNOWN.get_or_init(captures::messages)
}

/// Nobody without the key is let in by that role.
pub fn attacked(role: Role, bytes: &[u8]) {
    let [number, program @ ..] = bytes else {
        return;
    };
    let terms = Terms {
        role,
        ..terms(usize::from(*number))
    };
    assert_eq!(attack(terms, known(), program), 2);
    converse(terms, program, &mut || 7);
}
