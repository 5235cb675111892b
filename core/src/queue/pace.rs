//! How far producers of large messages run ahead of the consumers.

use super::layout::QueueState;
use crate::deadline::now;
use crate::sys::clock;
use crate::sys::word::Relaxed;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

/// Bytes in flight that both sides' caches still have: 1 MiB.
const IN_FLIGHT: u64 = 1 << 20;
/// Bytes that a consumer copies in a nanosecond, if it is slow.
const BYTES_A_NANOSECOND: u64 = 4;
/// The longest wait: what a consumer takes for a message of 1 MiB.
const LONGEST: Duration = Duration::from_micros(250);

/// Keeps the bytes in flight few while consumers are at work.
///
/// A producer that runs ahead of them puts each large message into fresh memory, which the kernel has to clear and map,
/// and they find it in none of their caches: both sides take twice as long from then on, and never meet again. So one
/// that is a megabyte ahead waits awake, about as long as a copy takes, until one more message is gone. It never
/// sleeps; and where a wait was in vain there is no other before something is got: putting into a queue without a limit
/// depends on nobody.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// How many messages had been got when a wait was in vain; at first, none.
    in_vain: AtomicU64,
}

impl Pace {
    /// Before a message of so many bytes is put.
    pub(super) fn keep(&self, state: &QueueState, length: u64) {
        let got = || state.get.count.load(Relaxed);
        let before = got();
        let waiting = state.put.count.load(Relaxed).saturating_sub(before);
        if before == self.in_vain.load(Relaxed) || waiting.saturating_mul(length) <= IN_FLIGHT {
            return;
        }
        let longest = Duration::from_nanos(length / BYTES_A_NANOSECOND).min(LONGEST);
        let begin = now();
        while got() == before {
            if now() - begin > longest {
                self.in_vain.store(before, Relaxed);
                return;
            }
            clock::yield_now();
        }
    }
}
