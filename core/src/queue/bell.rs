//! How one side of a queue sleeps until the other has done something, at the price of one wake a sleep.
//!
//! ```text
//! ticket        meaning                                   who may leave this state, to where
//! 0             nobody sleeps                             the sleeper: to its ticket, seq + 1
//! seq + 1       one sleeps on `seq`, or is about to       the ringer: adds 2 to seq, wakes, then 0; the sleeper: 0
//! ```
//! Only the holder of a side's lock sleeps, so one ticket is enough. The ringer clears the ticket *after* the wake: a
//! ringer killed between would otherwise leave a sleeper whom later ringers take for woken. It clears only the ticket
//! that it saw, so a sleeper that went round meanwhile keeps its new one.

use crate::shm::view::shared;
use crate::sys::clock;
use crate::sys::word::{Acquire, Cell, SeqCst, Wake, Word};
use crate::{Deadline, Result};
use std::sync::atomic::{AtomicU32, Ordering, fence};
use std::time::{Duration, Instant};

shared! {
    /// A bell, on a line of its own.
    Bell: 64 {
        seq: Word,
        ticket: Word,
        _unused: [Cell; 7],
    }
}

/// How a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rung {
    /// What was waited for is there, or may be: look.
    Look,
    /// The deadline passed.
    TimedOut,
}

impl Bell {
    /// Wakes the sleeper, if there is one. Two loads and a fence when there is none.
    #[inline]
    pub(super) fn ring(&self) {
        // Orders what was published before this against the ticket; the sleeper's store of it is followed by a look.
        fence(SeqCst);
        let ticket = self.ticket.load(SeqCst);
        if ticket != 0 {
            self.seq.add(2);
            self.seq.wake(1);
            self.ticket.replace(ticket, 0);
        }
    }

    /// Wakes whoever sleeps now, for good.
    pub(super) fn ring_for_all(&self) {
        fence(SeqCst);
        self.seq.add(2);
        self.seq.wake(u32::MAX);
    }

    /// Sleeps until it rings, unless `ready` says that there is no need.
    pub(super) fn sleep_unless(
        &self,
        ready: impl Fn() -> Result<bool>,
        deadline: Deadline,
    ) -> Result<Rung> {
        let seq = self.seq.load(Acquire);
        self.ticket.store(seq.wrapping_add(1), SeqCst);
        let slept = if ready()? {
            Wake::Look
        } else {
            self.seq.sleep_while(seq, deadline)
        };
        self.ticket.store(0, SeqCst);
        match slept {
            Wake::Look => Ok(Rung::Look),
            Wake::TimedOut => Ok(Rung::TimedOut),
            Wake::Interrupted => Err(crate::Error::Interrupted),
        }
    }
}

/// Most pauses before the first yield.
const PAUSES: u32 = 64;
/// Most times that the processor is offered to others before a sleep.
const YIELDS: u32 = 10;
/// One in so many waits tries everything, whatever failed before.
const TRIAL: u32 = 16;
/// How long a trial lasts: a peer on another processor that sleeps needs 15 to 40 µs to wake up and answer.
const LONG: Duration = Duration::from_micros(50);

/// How long to wait awake before a sleep: some pauses, then some yields, more of each the better that has gone.
///
/// A peer on another processor answers within the pauses and yields, at a tenth of what a sleep and a wake cost. One
/// on the same processor gets it at the first yield, so pauses before it are lost time. On a busy machine all of that
/// fails, so failures shorten the wait.
///
/// Two peers that have both come to sleep would go on so for ever, since each wakes up too late for the other's short
/// wait. So now and then one waits longer; if the answer comes within that, both stay awake from then on.
#[derive(Debug)]
pub(super) struct Patience {
    pauses: AtomicU32,
    yields: AtomicU32,
    waits: AtomicU32,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            pauses: AtomicU32::new(PAUSES),
            yields: AtomicU32::new(YIELDS),
            waits: AtomicU32::new(0),
        }
    }
}

impl Patience {
    /// Waits awake until `ready`; false when it gave up.
    pub(super) fn wait(&self, ready: impl Fn() -> Result<bool>) -> Result<bool> {
        let trial = self.waits.fetch_add(1, Ordering::Relaxed) % TRIAL == TRIAL - 1;
        let pauses = if trial {
            PAUSES
        } else {
            self.pauses.load(Ordering::Relaxed)
        };
        // Bound to one processor it can't tell whether the peer is bound to another: a yield is right for both.
        if pauses > 0 && clock::several_processors() {
            for _ in 0..pauses {
                if ready()? {
                    self.pauses.store(PAUSES, Ordering::Relaxed);
                    return Ok(true);
                }
                std::hint::spin_loop();
            }
        }
        let yields = self.yields.load(Ordering::Relaxed);
        for _ in 0..yields {
            clock::yield_now();
            if ready()? {
                self.pauses.store(pauses / 2, Ordering::Relaxed);
                let more = (yields * 2).min(YIELDS);
                self.yields.store(more, Ordering::Relaxed);
                return Ok(true);
            }
        }
        if trial && wait_long(&ready)? {
            self.yields.store(YIELDS, Ordering::Relaxed);
            return Ok(true);
        }
        let fewer = (yields - yields / 4).max(1);
        self.yields.store(fewer, Ordering::Relaxed);
        Ok(false)
    }
}

/// Offers the processor to others until `ready`; false after [`LONG`], which on a busy machine is one offer.
#[cold]
fn wait_long(ready: impl Fn() -> Result<bool>) -> Result<bool> {
    let begin = Instant::now();
    while begin.elapsed() < LONG {
        clock::yield_now();
        if ready()? {
            return Ok(true);
        }
    }
    Ok(false)
}
