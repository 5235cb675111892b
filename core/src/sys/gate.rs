//! A lock of this process' own that can be held across a fork: taken in one handler, opened in another.
//!
//! A guard would have to borrow from what the handlers keep; so this lock has none, and protects no data by itself.
//! It is taken before any `std` mutex whose state a child will need, which is therefore free at every fork.

#[cfg(test)]
use super::word::Relaxed;
use super::word::{AcqRel, Acquire, Wake, Word};
use crate::Deadline;

/// 0: open; 1: closed; 2: closed, and somebody sleeps.
#[derive(Debug, Default)]
pub(crate) struct Gate(Word);

/// The gate is closed for others until this is dropped.
#[derive(Debug)]
pub(crate) struct Through<'a>(&'a Gate);

impl Gate {
    /// Goes through, once nobody else is inside.
    pub(crate) fn pass(&self) -> Through<'_> {
        self.close();
        Through(self)
    }

    /// Goes through, if nobody else is inside.
    pub(crate) fn try_pass(&self) -> Option<Through<'_>> {
        self.0.replace(0, 1).then(|| Through(self))
    }

    /// Closes it, until [`open`](Self::open).
    pub(crate) fn close(&self) {
        if self.0.replace(0, 1) {
            return;
        }
        while self.0.swap(2, Acquire) != 0 {
            // Whoever is inside waits for a moment there at most; a signal handler runs when we are through.
            let (Wake::Look | Wake::TimedOut | Wake::Interrupted) =
                self.0.sleep_while(2, Deadline::NEVER);
        }
    }

    /// Opens it: by whoever closed it, or by the child of the process that did.
    pub(crate) fn open(&self) {
        if self.0.swap(0, AcqRel) == 2 {
            self.0.wake(1);
        }
    }

    /// Whether nobody is inside, at this moment.
    #[cfg(test)]
    fn is_open(&self) -> bool {
        self.0.load(Relaxed) == 0
    }
}

impl Drop for Through<'_> {
    fn drop(&mut self) {
        self.0.open();
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
                        assert_eq!(inside.fetch_add(1, std::sync::atomic::Ordering::Relaxed), 0);
                        inside.fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
                    }
                });
            }
        });
        assert!(gate.is_open());
    }
}
