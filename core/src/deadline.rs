//! When a call stops waiting.

use std::time::{Duration, Instant};

/// The moment at which a call that waits gives up: an instant, or never.
///
/// A deadline, not a timeout, so that a wait that is interrupted and begun again ends when the first one would have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline(Option<Instant>);

impl Deadline {
    /// Waits as long as it takes.
    pub const NEVER: Self = Self(None);

    /// Gives up once `timeout` has passed from now; a timeout beyond what the clock can count never passes.
    #[must_use]
    pub fn after(timeout: Duration) -> Self {
        Self(now().checked_add(timeout))
    }

    /// Gives up at the first moment at which it would have to wait.
    #[must_use]
    pub fn now() -> Self {
        Self::after(Duration::ZERO)
    }

    /// The earlier of this deadline and `timeout` from now.
    #[must_use]
    pub fn at_most(self, timeout: Duration) -> Self {
        match (self.0, Self::after(timeout).0) {
            (Some(mine), Some(other)) => Self(Some(mine.min(other))),
            (mine, other) => Self(mine.or(other)),
        }
    }

    /// This deadline, and `more` time beyond it.
    #[must_use]
    pub fn later(self, more: Duration) -> Self {
        Self(self.0.and_then(|end| end.checked_add(more)))
    }

    /// The time left: `None` without an end, zero once it has passed.
    #[must_use]
    pub fn remaining(self) -> Option<Duration> {
        self.0.map(|end| end.saturating_duration_since(now()))
    }

    /// Whether it has passed.
    #[must_use]
    pub fn passed(self) -> bool {
        self.remaining() == Some(Duration::ZERO)
    }
}

/// The present time.
#[inline]
pub(crate) fn now() -> Instant {
    #[cfg(simulated)]
    if let Some(now) = PRETENDED.get() {
        return now;
    }
    Instant::now()
}

#[cfg(simulated)]
thread_local! {
    static PRETENDED: std::cell::Cell<Option<Instant>> = const { std::cell::Cell::new(None) };
}

/// Has the calling thread take `now` for the present time, until told otherwise: for simulations.
#[cfg(simulated)]
pub fn pretend(now: Option<Instant>) {
    PRETENDED.set(now);
}
