//! Waiting awake, between looks, before a sleep that costs 20 µs to be woken from.
//!
//! A queue's own patience is a few yields, since a getter waits there with the queue's lock. A pool can do better:
//! its workers and its driver wait *outside* the queue, for long enough that a call and its answer fit in, so a
//! program that calls `apply` in a loop finds everybody awake. Several workers may wait so at a time, and whoever
//! looks first takes the task.

use crate::sys::clock;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Longest wait awake. Several calls with their answers fit in, on two processors shared by three threads.
const BUDGET: Duration = Duration::from_micros(60);
/// An offered processor that comes back later than this was wanted by somebody: the machine is busy.
const BUSY: Duration = Duration::from_micros(100);
/// Looks between two offers of the processor.
const LOOKS: u32 = 16;
/// Most waits that go straight to sleep after one awake was of no use, on a quiet machine and on a busy one.
const SKIPS_QUIET: u32 = 16;
const SKIPS_BUSY: u32 = 256;

/// How it went so far: the less use it was, the rarer it is tried.
#[derive(Debug, Default)]
pub(super) struct Awake {
    /// Waits to go straight to sleep.
    skips: AtomicU32,
    /// What `skips` was set to last.
    penalty: AtomicU32,
}

impl Clone for Awake {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl Awake {
    /// Waits awake until `ready`; false when it is better to sleep.
    pub(super) fn wait(&self, ready: impl Fn() -> bool) -> bool {
        let skips = self.skips.load(Relaxed);
        if skips > 0 {
            self.skips.store(skips - 1, Relaxed);
            return false;
        }
        if !clock::several_processors() {
            return false;
        }
        let begin = Instant::now();
        let mut offered = begin;
        let most = loop {
            for _ in 0..LOOKS {
                if ready() {
                    self.penalty.store(0, Relaxed);
                    return true;
                }
                std::hint::spin_loop();
            }
            clock::yield_now();
            let now = Instant::now();
            if now.duration_since(offered) > BUSY {
                break SKIPS_BUSY;
            }
            if now.duration_since(begin) > BUDGET {
                break SKIPS_QUIET;
            }
            offered = now;
        };
        let penalty = (self.penalty.load(Relaxed) * 2 + 1).min(most);
        self.penalty.store(penalty, Relaxed);
        self.skips.store(penalty, Relaxed);
        ready()
    }
}
