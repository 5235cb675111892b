//! The internal lock: short critical sections that survive their holder.
//!
//! ```text
//! word                 meaning                                  who may leave this state, to where
//! 0                    free                                     any: CAS to its thread id
//! tid                  held, nobody sleeps                      holder: to 0; any other: sets WAITERS, sleeps
//! tid | WAITERS        held, somebody may sleep                 holder: to 0 and wakes one
//! OWNER_DIED (|WAIT.)  its holder died inside; kernel's mark    any: CAS to OWNER_DIED | tid | WAITERS
//! OWNER_DIED | tid     held by who repairs                      holder: to 0 and wakes one
//! ```
//! Whoever gets it after a death gets it with `recovered` set, and repairs what the lock guards before anything else;
//! if it dies doing so, the next one does. A thread announces one lock at a time to the kernel, so these locks don't
//! nest, but for the registry's, which is linked into the thread's list instead (`sys::robust`).
//! Source: Drepper, "Futexes Are Tricky"; Documentation/locking/robust-futexes.rst.

use super::view::shared;
use crate::sys::clock;
use crate::sys::identity::{is_stopped, thread_exists};
use crate::sys::robust::{Node, OWNER_DIED, TID, Thread, WAITERS, this_thread};
use crate::sys::word::{Cell, Relaxed, Release, Wake};
use crate::{Deadline, Error, Result};
use std::time::Duration;

/// How long a sleeper trusts the kernel to tell of the owner's death before it looks itself.
pub(crate) const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// How long a call without a timeout waits for an internal lock before its caller hears of it as of an interruption,
/// runs what handlers there are, and calls again.
const TURN: Duration = Duration::from_secs(1);
/// Pauses before the first sleep: about as long as an uncontended critical section.
const PAUSES: u32 = 60;

shared! {
    /// The lock's word, with the links that the kernel's list needs.
    RobustLock: 64 {
        node: Node,
        _unused: [Cell; 3],
    }
}

/// How long a call that doesn't wait, or whose deadline has passed, waits for a lock whose holder isn't stopped: as long as a
/// critical section may take if its holder has not got the processor for a while.
const BUSY: Duration = LOOK_AGAIN;
/// How often it looks whether that one is stopped by now.
const MOMENT: Duration = Duration::from_millis(2);

/// How long an internal lock is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limit {
    /// Until then, whoever holds it.
    firm: Deadline,
    /// Until then, a holder that isn't stopped.
    busy: Deadline,
}

impl Limit {
    /// For the locks of one call with that deadline: one that doesn't wait takes them from nobody who is about to let go of them,
    /// and gives up at once on one that is stopped.
    pub(crate) fn of_call(deadline: Deadline) -> Self {
        let busy = match deadline.remaining() {
            // From the deadline on, not from now: a call that signals interrupt is made again with the same one.
            Some(left) if left < BUSY => deadline.later(BUSY),
            _ => deadline,
        };
        Self {
            firm: deadline,
            busy,
        }
    }

    /// When the holder of that word is to be looked at again; `None` when it isn't waited for any longer.
    fn next_look(self, tid: u32) -> Option<Deadline> {
        if !self.firm.passed() {
            return Some(self.firm.at_most(LOOK_AGAIN));
        }
        if self.busy.passed() || is_stopped(tid) {
            return None;
        }
        Some(self.busy.at_most(MOMENT))
    }
}

impl From<Deadline> for Limit {
    /// Until then, whoever holds it.
    fn from(deadline: Deadline) -> Self {
        Self {
            firm: deadline,
            busy: deadline,
        }
    }
}

/// For the internal locks that a call without a timeout takes: where the deadline has passed, the call was
/// `Interrupted`.
pub(crate) fn turn() -> Deadline {
    Deadline::after(TURN)
}

/// For what can be done later as well: as long as a critical section may take if its holder is preempted, and not at all if
/// that is stopped.
pub(crate) fn in_passing() -> Limit {
    Limit {
        firm: Deadline::now(),
        busy: Deadline::after(Duration::from_millis(20)),
    }
}

/// The word of a lock that the thread took from the dead: others see until its release that it isn't repaired yet.
fn repairing(tid: u32) -> u32 {
    OWNER_DIED | WAITERS | tid
}

/// A lock that the calling thread holds until this is dropped.
#[derive(Debug)]
pub(crate) struct Held<'a> {
    lock: &'a RobustLock,
    /// Who holds it: asking again would cost as much as the rest of letting go.
    thread: Thread,
    linked: bool,
    /// Its last holder died: what it guards may be half changed. Who has repaired that clears this; a lock that is
    /// let go of with it set is as its dead holder left it, for the next one to repair.
    pub(crate) recovered: bool,
}

impl RobustLock {
    /// Takes the lock, or gives `None` once the limit is reached.
    ///
    /// Uncontended: one compare-exchange and two plain stores, about 6 ns.
    ///
    /// # Errors
    /// `Interrupted` when a signal handler ran while it slept.
    #[inline]
    pub(crate) fn lock(&self, limit: impl Into<Limit>) -> Result<Option<Held<'_>>> {
        let thread = this_thread();
        thread.announce(&self.node.word);
        if self.node.word.replace(0, thread.tid()) {
            return Ok(Some(Held {
                lock: self,
                thread,
                linked: false,
                recovered: false,
            }));
        }
        let taken = self.lock_slow(thread.tid(), limit.into());
        if !matches!(taken, Ok(Some(_))) {
            thread.withdraw();
        }
        Ok(taken?.map(|recovered| Held {
            lock: self,
            thread,
            linked: false,
            recovered,
        }))
    }

    /// Takes the lock if nobody holds it; nothing otherwise, whoever does.
    #[inline]
    pub(crate) fn try_lock(&self) -> Option<Held<'_>> {
        let thread = this_thread();
        thread.announce(&self.node.word);
        if self.node.word.replace(0, thread.tid()) {
            return Some(Held {
                lock: self,
                thread,
                linked: false,
                recovered: false,
            });
        }
        thread.withdraw();
        None
    }

    /// Takes the lock for a section in which others are taken: linked into the thread's list.
    ///
    /// # Errors
    /// As [`lock`](Self::lock).
    pub(crate) fn lock_outer(&self, deadline: Deadline) -> Result<Option<Held<'_>>> {
        let held = self.lock(deadline)?;
        Ok(held.map(|mut held| {
            held.thread.link(&self.node);
            held.linked = true;
            held
        }))
    }

    /// Takes the lock if its holder died and nobody has taken it since. Who else took it repairs.
    pub(crate) fn lock_abandoned(&self) -> Option<Held<'_>> {
        let thread = this_thread();
        let value = self.node.word.load(Relaxed);
        if value & OWNER_DIED == 0 || value & TID != 0 {
            return None;
        }
        thread.announce(&self.node.word);
        // Others may sleep here still, so it is taken as if they did.
        if !self.node.word.replace(value, repairing(thread.tid())) {
            thread.withdraw();
            return None;
        }
        Some(Held {
            lock: self,
            thread,
            linked: false,
            recovered: true,
        })
    }

    /// Whether its holder died and nobody has repaired since what it left.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.node.word.load(Relaxed) & OWNER_DIED != 0
    }

    #[cold]
    fn lock_slow(&self, tid: u32, limit: Limit) -> Result<Option<bool>> {
        let word = &self.node.word;
        if clock::several_processors() {
            for _ in 0..PAUSES {
                std::hint::spin_loop();
                if word.load(Relaxed) == 0 && word.replace(0, tid) {
                    return Ok(Some(false));
                }
            }
        }
        loop {
            let value = word.load(Relaxed);
            if value & TID == 0 {
                // Others may sleep here still, so it is taken as if they did.
                let died = value & OWNER_DIED != 0;
                if word.replace(value, if died { repairing(tid) } else { tid | WAITERS }) {
                    return Ok(Some(died));
                }
                continue;
            }
            let Some(look) = limit.next_look(value & TID) else {
                return Ok(None);
            };
            if value & WAITERS == 0 && !word.replace(value, value | WAITERS) {
                continue;
            }
            match word.sleep_while(value | WAITERS, look) {
                Wake::Interrupted => return Err(Error::Interrupted),
                Wake::TimedOut if !thread_exists(value & TID) => {
                    // The kernel didn't mark it: no robust list there, or a lock held inside another.
                    if word.replace(value | WAITERS, repairing(tid)) {
                        return Ok(Some(true));
                    }
                }
                Wake::TimedOut | Wake::Look => {}
            }
        }
    }
}

impl Drop for Held<'_> {
    #[inline]
    fn drop(&mut self) {
        let thread = self.thread;
        let word = &self.lock.node.word;
        if self.linked {
            thread.announce(word);
            // If it can't be found, since the way to it was written over, the list keeps a lock that others may hold: the
            // kernel marks words of the thread's own only.
            let _ = thread.unlink_soon(&self.lock.node);
        }
        let free = if self.recovered { OWNER_DIED } else { 0 };
        if word.swap(free, Release) & WAITERS != 0 {
            word.wake(1);
        }
        thread.withdraw();
    }
}

#[cfg(test)]
mod tests {
    use super::{BUSY, Limit};
    use crate::Deadline;

    #[test]
    fn a_call_that_is_made_again_is_no_more_patient() {
        let deadline = Deadline::now();
        let first = Limit::of_call(deadline);
        assert!(first.firm.passed() && !first.busy.passed());
        std::thread::sleep(BUSY);
        assert_eq!(Limit::of_call(deadline), first);
        assert!(first.busy.passed());
    }
}
