//! How long a wait goes on awake before it sleeps.

use crate::Result;
use crate::deadline::now;
use crate::sys::clock;
use crate::sys::word::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::time::Duration;

/// Pauses before the first yield: 1.5 µs or so.
const PAUSES: u32 = 64;
/// Pauses between two looks, at most: each look takes the other side's cache line away from it.
const GAP_MAX: u32 = 8;
/// The longest wait awake, if it isn't said: about 10 yields.
const LONGEST: Duration = Duration::from_micros(5);
/// The shortest: one yield.
const SHORTEST: Duration = Duration::from_nanos(500);
/// Every so many waits that end in a sleep, one is long enough for a peer that has to be woken first.
const PROBE_EVERY: u32 = 16;
/// As long as that takes: two processes that both sleep come back to answering each other awake.
const PROBE: Duration = Duration::from_micros(25);

/// A yield that takes longer has let somebody else run; one that finds nobody takes less than half of it.
const SWITCH: Duration = Duration::from_micros(1);
/// Answers in a row that came while this process had offered its processor, before it takes the peer to share it.
const SURE: u32 = 8;
/// Of those that share, every so many waits one pauses all the same, to see whether they still do.
const DOUBT_EVERY: u32 = 16;
/// Waits after which the number of processors is asked for again: it is a system call, and rarely changes.
const ASK_EVERY: u32 = 64;

/// How long to wait awake before a sleep: 64 pauses, then some yields, for longer the better that has gone.
///
/// A peer on another processor answers within the pauses and yields, at a tenth of what a sleep and a wake cost. One
/// on the same processor gets it at the first yield, so when that has happened often the next wait begins with a yield.
/// On a busy machine all fail, so failures shorten the wait, and a yield that let others run for long ends it.
#[derive(Debug)]
pub struct Patience {
    /// The usual wait, in nanoseconds.
    usual: AtomicU32,
    failures: AtomicU32,
    waits: AtomicU32,
    several_processors: AtomicBool,
    /// How often in a row the peer answered while it had this process' processor.
    together: AtomicU32,
    /// The longest usual wait.
    longest: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self::up_to(LONGEST)
    }
}

impl Patience {
    /// One whose waits are as long as that at first, and no longer unless the peer may have to be woken.
    #[must_use]
    pub fn up_to(longest: Duration) -> Self {
        Self {
            usual: AtomicU32::new(longest.subsec_nanos()),
            failures: AtomicU32::new(0),
            waits: AtomicU32::new(0),
            several_processors: AtomicBool::new(false),
            together: AtomicU32::new(0),
            longest,
        }
    }

    /// Waits awake until `ready`; false when it gave up.
    pub(crate) fn wait(&self, ready: impl Fn() -> Result<bool>) -> Result<bool> {
        let waits = self.waits.fetch_add(1, Relaxed);
        if waits.is_multiple_of(ASK_EVERY) {
            self.several_processors
                .store(clock::several_processors(), Relaxed);
        }
        // On one processor alone, the peer can only be on another one or wait for this one: a yield is right for both.
        let sure = self.together.load(Relaxed) >= SURE && !waits.is_multiple_of(DOUBT_EVERY);
        if self.several_processors.load(Relaxed) && !sure && pause(&ready)? {
            self.together.store(0, Relaxed);
            return Ok(true);
        }
        self.offer(&ready)
    }

    /// Offers the processor to others until `ready`; false when it gave up. Where a look costs a system call: pauses are too
    /// short for one.
    pub(crate) fn offer(&self, mut ready: impl FnMut() -> Result<bool>) -> Result<bool> {
        let usual = Duration::from_nanos(self.usual.load(Relaxed).into());
        let failures = self.failures.load(Relaxed);
        let is_probe = failures % PROBE_EVERY == PROBE_EVERY - 1;
        let longest = if is_probe {
            self.longest.max(PROBE)
        } else {
            usual
        };
        let begin = now();
        let mut before = begin;
        loop {
            clock::yield_now();
            let after = now();
            let switched = after - before > SWITCH;
            if ready()? {
                let together = self.together.load(Relaxed);
                self.together.store(
                    if switched {
                        together.saturating_add(1)
                    } else {
                        0
                    },
                    Relaxed,
                );
                self.set(if is_probe { self.longest } else { usual * 2 });
                return Ok(true);
            }
            if after - begin > longest {
                break;
            }
            before = after;
        }
        self.together.store(0, Relaxed);
        self.set(usual * 3 / 4);
        self.failures.store(failures.wrapping_add(1), Relaxed);
        Ok(false)
    }

    fn set(&self, usual: Duration) {
        let usual = usual.clamp(SHORTEST, self.longest).subsec_nanos();
        self.usual.store(usual, Relaxed);
    }
}

/// Pauses until `ready`; false when it gave up.
fn pause(ready: impl Fn() -> Result<bool>) -> Result<bool> {
    let (mut paused, mut gap) = (0, 1);
    while paused < PAUSES {
        if ready()? {
            return Ok(true);
        }
        for _ in 0..gap {
            std::hint::spin_loop();
        }
        paused += gap;
        gap = (gap * 2).min(GAP_MAX);
    }
    Ok(false)
}
