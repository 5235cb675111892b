//! An attacker without the key, connected twice to a client: his program is the fuzzer's bytes, four a step behind one for the
//! terms, as in the test `no_client_lets_in_who_has_no_key`.
#![no_main]

#[path = "../../tests/wire/captures.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod captures;
#[path = "../../tests/wire/exercise.rs"]
#[allow(dead_code, reason = "the tests and the other targets use more of it")]
mod exercise;

use exercise::{attack, converse, terms};
use libfuzzer_sys::fuzz_target;
use procession_core::wire::{Role, Terms};
use std::sync::OnceLock;

fn known() -> &'static [Vec<u8>] {
    static KNOWN: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    KNOWN.get_or_init(captures::messages)
}

fuzz_target!(|bytes: &[u8]| {
    let [number, program @ ..] = bytes else {
        return;
    };
    let terms = Terms {
        role: Role::Client,
        ..terms(usize::from(*number))
    };
    assert_eq!(attack(terms, known(), program), 2);
    converse(terms, program, &mut || 7);
});
