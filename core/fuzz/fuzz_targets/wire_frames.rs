//! A stream in any pieces, by every way to read it, against the drawing: the first byte is the limit, the second how wide the pieces
//! are. The same calls as in the test `any_stream_is_decoded`; here coverage chooses the bytes.
#![no_main]

#[path = "../../tests/wire/exercise.rs"]
#[allow(dead_code, reason = "the tests and the other targets use more of it")]
mod exercise;

use exercise::{expected, filled, pulled, pushed};
use libfuzzer_sys::fuzz_target;

const LIMITS: [u64; 5] = [0, 16, 256, 1 << 20, u64::MAX];

fuzz_target!(|bytes: &[u8]| {
    let [limit, width, stream @ ..] = bytes else {
        return;
    };
    let limit = LIMITS[usize::from(*limit) % LIMITS.len()];
    let expected = expected(stream, limit);
    for way in [pushed, pulled, filled] {
        // Pieces of one length, so that the same bytes are the same case.
        assert_eq!(way(stream, limit, &mut || usize::from(*width)), expected);
    }
});
