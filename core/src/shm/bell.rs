//! How one sleeps until others have done something, at the price of one wake a sleep: a side of a queue, and the watcher of a
//! process.
//!
//! ```text
//! ticket        meaning                                   who may leave this state, to where
//! 0             nobody sleeps                             the sleeper: to its ticket, seq + 1
//! seq + 1       one sleeps on `seq`, or is about to       the ringer: adds 2 to seq, wakes, then 0; the sleeper: 0
//! ```
//! Only the holder of a side's lock sleeps, and a process has one watcher, so one ticket is enough. The ringer clears the ticket *after* the wake: a
//! ringer killed between would otherwise leave a sleeper whom later ringers take for woken. It clears only the ticket
//! that it saw, so a sleeper that went round meanwhile keeps its new one.

use super::view::shared;
use crate::sys::word::{Acquire, SeqCst, Wake, Word, fence};
use crate::{Deadline, Result};

shared! {
    /// A bell.
    Bell: 8 {
        seq: Word,
        ticket: Word,
    }
}

/// How a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rung {
    /// What was waited for is there, or may be: look.
    Look,
    /// The deadline passed.
    TimedOut,
}

impl Bell {
    /// Wakes the sleeper, if there is one. Two loads and a fence when there is none.
    #[inline]
    pub(crate) fn ring(&self) {
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
    pub(crate) fn ring_for_all(&self) {
        fence(SeqCst);
        self.seq.add(2);
        self.seq.wake(u32::MAX);
    }

    /// Sleeps until it rings or the deadline passes, unless `ready` says that there is no need.
    pub(crate) fn sleep_unless(
        &self,
        ready: impl FnOnce() -> Result<bool>,
        deadline: Deadline,
    ) -> Result<Rung> {
        let seq = self.seq.load(Acquire);
        self.ticket.store(seq.wrapping_add(1), SeqCst);
        // The other half of the ringer's fence: what `ready` loads, it loads after the ticket is there.
        fence(SeqCst);
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
