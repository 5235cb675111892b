//! A lock of this process' own that can be held across a fork: taken in one handler, opened in another.
//!
//! A guard would have to borrow from what the handlers keep; so this lock has none, and protects no data by itself.
//! It is taken before any `std` mutex whose state a child will need, which is therefore free at every fork.

use super::robust::this_thread;
#[cfg(test)]
use super::word::Relaxed;
use super::word::{AcqRel, Acquire, Wake, Word};
use crate::Deadline;
use std::sync::atomic::{AtomicU32, Ordering};

/// Lets one thread through at a time.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    /// 0: open; 1: closed; 2: closed, and somebody sleeps.
    word: Word,
    /// The thread that is inside. Only that thread ever finds itself here.
    inside: AtomicU32,
}

/// The gate is closed for others until this is dropped.
#[derive(Debug)]
pub(crate) struct Through<'a> {
    gate: &'a Gate,
    /// The thread was inside before.
    again: bool,
}

impl Gate {
    /// Goes through, once nobody else is inside. Who is inside goes through at once: a window is mapped where it is
    /// touched first, which may be there.
    pub(crate) fn pass(&self) -> Through<'_> {
        let again = self.inside.load(Ordering::Relaxed) == this_thread().tid();
        if !again {
            self.close();
        }
        Through { gate: self, again }
    }

    /// Closes it, until [`open`](Self::open).
    pub(crate) fn close(&self) {
        if !self.word.replace(0, 1) {
            while self.word.swap(2, Acquire) != 0 {
                // Whoever is inside doesn't wait for anything there; a signal handler runs when we are through.
                let (Wake::Look | Wake::TimedOut | Wake::Interrupted) =
                    self.word.sleep_while(2, Deadline::NEVER);
            }
        }
        self.inside.store(this_thread().tid(), Ordering::Relaxed);
    }

    /// Opens it: by whoever closed it, or by the child of the process that did.
    pub(crate) fn open(&self) {
        self.inside.store(0, Ordering::Relaxed);
        if self.word.swap(0, AcqRel) == 2 {
            self.word.wake(1);
        }
    }

    /// Whether nobody is inside, at this moment.
    #[cfg(test)]
    fn is_open(&self) -> bool {
        self.word.load(Relaxed) == 0
    }
}

impl Drop for Through<'_> {
    fn drop(&mut self) {
        if !self.again {
            self.gate.open();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Gate;

    #[test]
    fn lets_one_through_at_a_time() {
        let gate = Gate::default();
        let inside = std::sync::atomic::AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        let _through = gate.pass();
                        drop(gate.pass());
                        assert_eq!(inside.fetch_add(1, std::sync::atomic::Ordering::Relaxed), 0);
                        inside.fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
                    }
                });
            }
        });
        assert!(gate.is_open());
    }
}
