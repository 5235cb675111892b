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

/// The bits that say who stands in the cell, and how.
const STANDING: u64 = 0b111 << 61 | 0x3ff << 31;
/// The bits of the free permits.
const FREE: u64 = (1 << 31) - 1;

impl Permit {
    /// One of them, where they are counted.
    const fn one(self) -> u64 {
        match self {
            Self::Held => 1 << 41,
            Self::Acquired => 1 << 50,
        }
    }

    /// The bits that count them; all set when there are as many as can be noted.
    const fn mask(self) -> u64 {
        match self {
            Self::Held => (HELD_MAX as u64) << 41,
            Self::Acquired => (ACQUIRED_MAX as u64) << 50,
        }
    }

    /// The bits after one was taken by the process in `slot`, if it stands there already and nothing else is to be
    /// thought of; else `None`, and [`Permits`] tells.
    #[inline]
    pub(super) fn quickly_taken(self, bits: u64, slot: u32) -> Option<u64> {
        let possible = stands_open(bits, slot) && bits & FREE != 0;
        (possible && bits & self.mask() != self.mask()).then(|| bits - 1 + self.one())
    }

    /// As [`quickly_taken`](Self::quickly_taken), after one was given.
    #[inline]
    pub(super) fn quickly_given(self, bits: u64, slot: u32, limit: u32) -> Option<u64> {
        let possible = stands_open(bits, slot) && bits & FREE < u64::from(limit);
        (possible && bits & self.mask() != 0).then(|| bits + 1 - self.one())
    }
}

/// Whether the process in `slot` stands in the cell, OPEN, and no signal was ever given.
#[inline]
fn stands_open(bits: u64, slot: u32) -> bool {
    bits & STANDING == 1 << 62 | u64::from(slot) << 31
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
    use super::{ACQUIRED_MAX, HELD_MAX, PERMITS_MAX, Permit, Permits, Phase, Taken};

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

    #[test]
    fn the_quick_way_is_the_long_one() {
        let mut quick = 0;
        for free in [0, 1, 5, PERMITS_MAX - 1, PERMITS_MAX] {
            for held in [0, 1, HELD_MAX - 1, HELD_MAX] {
                for acquired in [0, 1, ACQUIRED_MAX - 1, ACQUIRED_MAX] {
                    for (signal, phase) in [
                        (false, Phase::Open),
                        (true, Phase::Open),
                        (false, Phase::Frozen),
                        (false, Phase::Settled),
                    ] {
                        let permits = Permits {
                            free,
                            slot: 7,
                            taken: Taken { held, acquired },
                            signal,
                            phase,
                        };
                        for permit in [Permit::Held, Permit::Acquired] {
                            quick += compare(permits, permit);
                        }
                    }
                }
            }
        }
        assert!(quick > 100, "{quick}");
    }

    /// How many of both ways were quick; what they gave is what a change gives.
    fn compare(permits: Permits, permit: Permit) -> usize {
        let after = |free, taken| super::Change::Taken(free, taken).apply(permits, 7).bits();
        let (bits, limit) = (permits.bits(), PERMITS_MAX);
        let taken = permit.quickly_taken(bits, 7);
        if let Some(bits) = taken {
            let mine = permits.taken.take(permit).unwrap();
            assert_eq!(
                bits,
                after(permits.free - 1, mine),
                "{permits:?} {permit:?}"
            );
        }
        let given = permit.quickly_given(bits, 7, limit);
        if let Some(bits) = given {
            let mine = permits.taken.give(permit).unwrap();
            assert_eq!(
                bits,
                after(permits.free + 1, mine),
                "{permits:?} {permit:?}"
            );
        }
        let quick = taken.is_some() || given.is_some();
        assert!(!quick || (permits.phase == Phase::Open && !permits.signal));
        assert_eq!(permit.quickly_taken(bits, 6), None);
        assert_eq!(permit.quickly_given(bits, 6, limit), None);
        usize::from(taken.is_some()) + usize::from(given.is_some())
    }
}
