//! The numbers of a semaphore: what its cells say, and how they change.

/// The most permits that a semaphore can have. As `SEM_VALUE_MAX`.
pub const PERMITS_MAX: u32 = (1 << 31) - 1;

/// Permits that one process holds: so many of a kind are noted, and no more.
pub(super) const HELD_MAX: u32 = (1 << 9) - 1;
pub(super) const ACQUIRED_MAX: u32 = (1 << 11) - 1;

/// How a permit is taken, and which one is given back first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Permit {
    /// It comes back when the process dies.
    Held,
    /// It comes back when the process dies, unless the semaphore is used for signals.
    Acquired,
}

/// Permits that a process holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Taken {
    pub(super) held: u32,
    pub(super) acquired: u32,
}

/// Whether the cell of the process that a [`Permits`] names is up to date.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Open,
    Frozen,
    Settled,
}

/// What the cell `permits` says.
///
/// ```text
/// bits    field
/// 0..31   free: permits that can be taken
/// 31..41  slot: of the process that holds the following
/// 41..50  held
/// 50..61  acquired
/// 61      signal
/// 62..64  phase: 0 SETTLED, 1 OPEN, 2 FROZEN
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Permits {
    pub(super) free: u32,
    pub(super) slot: u32,
    pub(super) taken: Taken,
    pub(super) signal: bool,
    pub(super) phase: Phase,
}

impl Taken {
    pub(super) fn take(self, permit: Permit) -> Option<Self> {
        match permit {
            Permit::Held if self.held < HELD_MAX => Some(Self {
                held: self.held + 1,
                ..self
            }),
            Permit::Acquired if self.acquired < ACQUIRED_MAX => Some(Self {
                acquired: self.acquired + 1,
                ..self
            }),
            _ => None,
        }
    }

    /// One less, of that kind if there is one, else of the other; `None` when there is none.
    pub(super) fn give(self, permit: Permit) -> Option<Self> {
        let fewer_held = self.held.checked_sub(1).map(|held| Self { held, ..self });
        let fewer_acquired = self
            .acquired
            .checked_sub(1)
            .map(|acquired| Self { acquired, ..self });
        match permit {
            Permit::Held => fewer_held.or(fewer_acquired),
            Permit::Acquired => fewer_acquired.or(fewer_held),
        }
    }

    /// What a cell `taken` says: bits 0..16 held, 16..32 acquired, 32..64 version.
    pub(super) fn from_cell(bits: u64) -> Self {
        let [held_low, held_high, acquired_low, acquired_high, ..] = bits.to_le_bytes();
        Self {
            held: u32::from(u16::from_le_bytes([held_low, held_high])).min(HELD_MAX),
            acquired: u32::from(u16::from_le_bytes([acquired_low, acquired_high]))
                .min(ACQUIRED_MAX),
        }
    }

    /// The cell's next value.
    pub(super) fn after(self, bits: u64) -> u64 {
        let version = (bits >> 32).wrapping_add(1) << 32;
        version | u64::from(self.acquired) << 16 | u64::from(self.held)
    }
}

impl Permits {
    #[inline]
    pub(super) fn from_bits(bits: u64) -> Self {
        let field = |from: u32, bits_of: u32| {
            u32::try_from(bits >> from & ((1 << bits_of) - 1)).unwrap_or(0)
        };
        Self {
            free: field(0, 31),
            slot: field(31, 10),
            taken: Taken {
                held: field(41, 9),
                acquired: field(50, 11),
            },
            signal: field(61, 1) != 0,
            phase: match field(62, 2) {
                0 => Phase::Settled,
                1 => Phase::Open,
                _ => Phase::Frozen,
            },
        }
    }

    #[inline]
    pub(super) fn bits(self) -> u64 {
        let phase: u64 = match self.phase {
            Phase::Settled => 0,
            Phase::Open => 1,
            Phase::Frozen => 2,
        };
        phase << 62
            | u64::from(self.signal) << 61
            | u64::from(self.taken.acquired) << 50
            | u64::from(self.taken.held) << 41
            | u64::from(self.slot) << 31
            | u64::from(self.free)
    }
}

/// What becomes of a semaphore's permits: how many are free then, and what the process holds that does it.
#[derive(Debug, Clone, Copy)]
pub(super) enum Change {
    /// As many as before.
    Free(u32),
    /// As many as before, and a process has given one that it didn't hold.
    Signal(u32),
    /// So many.
    Taken(u32, Taken),
}

impl Change {
    #[inline]
    pub(super) fn apply(self, permits: Permits, slot: u32) -> Permits {
        match self {
            Self::Free(free) => Permits { free, ..permits },
            Self::Signal(free) => Permits {
                free,
                signal: true,
                ..permits
            },
            Self::Taken(free, taken) => Permits {
                free,
                slot,
                taken,
                phase: Phase::Open,
                ..permits
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Permits, Phase, Taken};

    #[test]
    fn bits_mean_what_they_were_made_of() {
        let permits = Permits {
            free: 0x7fff_fffe,
            slot: 1023,
            taken: Taken {
                held: 511,
                acquired: 2046,
            },
            signal: true,
            phase: Phase::Frozen,
        };
        assert_eq!(Permits::from_bits(permits.bits()), permits);
        let taken = Taken {
            held: 3,
            acquired: 2047,
        };
        assert_eq!(Taken::from_cell(taken.after(u64::MAX)), taken);
    }
}
