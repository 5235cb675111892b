//! Every call on an arena whose words were changed as the fuzzer has it: eight bytes of offset, eight of word, again and
//! again. The same calls as in the test `any_bytes_are_survived`, which runs in CI; here coverage chooses the bytes.
#![no_main]

#[path = "../../tests/it/bytes/exercise.rs"]
#[allow(dead_code, reason = "the test uses more of it")]
mod exercise;

use exercise::{Change, Target};
use libfuzzer_sys::fuzz_target;
use std::sync::OnceLock;

/// Words that one case changes, at most.
const CHANGES: usize = 8;

fn target() -> &'static Target {
    static TARGET: OnceLock<Target> = OnceLock::new();
    // Nobody dies here, and below there are no children: the fuzzer's process mustn't fork.
    TARGET.get_or_init(|| Target::new(|_| {}))
}

fuzz_target!(|bytes: &[u8]| {
    let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap());
    let changes: Vec<_> = bytes
        .chunks_exact(16)
        .take(CHANGES)
        .map(|chunk| Change {
            offset: number(&chunk[..8]),
            word: number(&chunk[8..]),
        })
        .collect();
    target().exercise(&changes, &|_| {});
});
