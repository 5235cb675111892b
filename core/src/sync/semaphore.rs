//! Permits that processes take and give back.
//!
//! Who holds how many permits must be known when a process dies. So the count of free permits stands in one cell
//! together with the permits that *one* process holds, the last who took or gave one. All of that changes by one
//! compare-exchange, which a death can't divide. Before another process may stand there, the numbers of the one before
//! are written to its own cell, `taken`, by whoever comes next:
//!
//! ```text
//! phase      the cell `taken` of the process named     who may leave it, to where
//! OPEN       is old                                    that process: to OPEN; any: to FROZEN
//! FROZEN     is being brought up to date               any, once it is: to SETTLED
//! SETTLED    is up to date                             that process: to OPEN; another: to OPEN, under its own name
//! ```
//! Each step can be done by any process, and twice. `taken` carries a version, so one who was slow changes nothing.
//!
//! Permits are taken in two ways. One that is *held*, by a guard or Python's `with`, comes back when its process dies. One
//! that is just *acquired* may be a signal, for another process to answer: it comes back only as long as every release
//! came from a process that held a permit. The first release that didn't sets SIGNAL, for good, and such permits aren't
//! noted any more.

use super::event::LOOK;
use super::more;
use super::patience::Patience;
use super::permits::{ACQUIRED_MAX, Change, PERMITS_MAX, Permit, Permits, Phase, Taken};
use crate::shm::Arena;
use crate::shm::arena::Member;
use crate::shm::layout::{OBJECT_HEADER, kind};
use crate::shm::object::{Handle, ObjectName};
use crate::shm::recovery::{self, Gone, Recovery};
use crate::shm::robust::LOOK_AGAIN;
use crate::shm::view::shared;
use crate::sys::word::{Acquire, Cell, Relaxed, SeqCst, Wake, Word, fence};
use crate::{Deadline, Error, Result};

/// Slots that have their cell in the object itself.
const INSIDE: usize = 64;
/// Slots that have theirs in a run of its own, taken when the first of them needs it.
const OUTSIDE: usize = crate::shm::layout::SLOTS as usize - INSIDE;

shared! {
    /// A semaphore's state.
    SemaphoreState: 576 {
        /// The free permits, and what one process holds.
        permits: Cell,
        /// The most permits that can be free.
        limit: Word,
        /// Bit 0: somebody may sleep. Slept on; each wake adds 2.
        asleep: Word,
        /// Offset of the run with the cells of the other slots; 0: none.
        more: Cell,
        _unused: [Cell; 5],
        /// What each process holds, by its slot.
        taken: [Cell; INSIDE],
    }
}

/// Permits that processes and threads take, and give back.
///
/// # Across processes
/// A process that dies gives back what it held (see [`Permit`]); one that leaves normally keeps it. A waiter that dies
/// takes nothing with it. What one process holds beyond 511 held and 2047 acquired permits doesn't come back.
///
/// # After fork
/// The child holds the same semaphore, and none of its parent's permits.
///
/// Python: `Semaphore`, `BoundedSemaphore`.
#[derive(Debug)]
pub struct Semaphore {
    handle: Handle<SemaphoreState>,
    patience: Patience,
}

impl Clone for Semaphore {
    fn clone(&self) -> Self {
        Self {
            handle: self.handle.clone(),
            patience: Patience::default(),
        }
    }
}

impl Semaphore {
    /// Makes a semaphore with `free` permits, and never more than `limit`. 1 KiB of the arena, no descriptor.
    ///
    /// # Errors
    /// `Misuse` for a limit of none or beyond [`PERMITS_MAX`], or more permits than that; `Os` or `Exhausted` when there
    /// is no memory.
    pub fn new(arena: &Arena, free: u32, limit: u32) -> Result<Self> {
        if limit > PERMITS_MAX || free > limit {
            return Err(Error::Misuse {
                what: "a semaphore has at most 2147483647 permits, and at first no more than its limit",
            });
        }
        let handle: Handle<SemaphoreState> = Handle::new(arena, kind::SEMAPHORE)?;
        let permits = Permits {
            free,
            ..Permits::from_bits(0)
        };
        handle.state().limit.store(limit, Relaxed);
        handle.state().permits.store(permits.bits(), Relaxed);
        Ok(Self {
            handle,
            patience: Patience::default(),
        })
    }

    /// Holds the semaphore of that name.
    ///
    /// # Errors
    /// `Closed` when it is gone, `Malformed` when the name is not a semaphore's.
    pub fn open(arena: &Arena, name: ObjectName) -> Result<Self> {
        Ok(Self {
            handle: Handle::open(arena, kind::SEMAPHORE, name)?,
            patience: Patience::default(),
        })
    }

    /// Its name, for a process that is given a hold on it.
    #[must_use]
    pub fn name(&self) -> ObjectName {
        self.handle.name()
    }

    /// Its name, for bytes that go elsewhere than into a queue: from now on the semaphore lives until the tree ends.
    ///
    /// # Errors
    /// `Poisoned` when the arena contradicts itself.
    pub fn escape(&self) -> Result<ObjectName> {
        self.handle.escape()?;
        Ok(self.handle.name())
    }

    /// Takes a permit; false once the deadline has passed.
    ///
    /// By the process that used it last: one compare-exchange, about 6 ns; by another a few more. Without a free permit
    /// some pauses and yields, then sleep in the kernel until one is given, one of its holders dies, or the deadline
    /// passes.
    ///
    /// # Errors
    /// `Interrupted` when a signal handler ran while it slept; call again with the same deadline. `Misuse` in a forked
    /// child for which the tree had no place.
    #[inline]
    pub fn acquire(&self, permit: Permit, deadline: Deadline) -> Result<bool> {
        match self.try_acquire(permit) {
            Ok(false) => self.acquire_slow(permit, deadline),
            // There is no cell for this process yet, and whoever holds the allocator's lock is stopped.
            Err(Error::Interrupted) if deadline.passed() => Ok(false),
            taken => taken,
        }
    }

    /// Takes a permit if one is free, as far as can be told without a look at who is alive.
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire).
    #[inline]
    pub fn try_acquire(&self, permit: Permit) -> Result<bool> {
        let me = self.handle.member().place()?;
        let cell = &self.handle.state().permits;
        let bits = cell.load(Acquire);
        if let Some(taken) = permit.quickly_taken(bits, me)
            && cell.replace(bits, taken)
        {
            return Ok(true);
        }
        if Permits::from_bits(bits).free == 0 {
            // Who stands there needn't be settled for that.
            return Ok(false);
        }
        self.take(permit)
    }

    fn take(&self, permit: Permit) -> Result<bool> {
        self.change(|permits, mine| {
            let free = permits.free.checked_sub(1)?;
            if permits.signal && permit == Permit::Acquired {
                return Some(Change::Free(free));
            }
            // What is too much to be noted doesn't come back.
            Some(Change::Taken(free, mine.take(permit).unwrap_or(mine)))
        })
    }

    /// Gives a permit back: one that this process holds, of that kind rather than the other, or a new one. Wakes one
    /// waiter. Never sleeps.
    ///
    /// # Errors
    /// `Misuse` when all of its limit are free.
    #[inline]
    pub fn release(&self, permit: Permit) -> Result<()> {
        let state = self.handle.state();
        let limit = state.limit.load(Relaxed);
        let me = self.handle.member().place()?;
        let bits = state.permits.load(Acquire);
        let quick = permit.quickly_given(bits, me, limit);
        if quick.is_some_and(|given| state.permits.replace(bits, given))
            || self.give(permit, limit)?
        {
            state.wake();
            return Ok(());
        }
        Err(Error::Misuse {
            what: "semaphore released too many times",
        })
    }

    fn give(&self, permit: Permit, limit: u32) -> Result<bool> {
        self.change(|permits, mine| {
            let free = Some(permits.free + 1).filter(|free| *free <= limit)?;
            if permits.signal && permit == Permit::Acquired {
                return Some(Change::Free(free));
            }
            Some(match mine.give(permit) {
                Some(mine) => Change::Taken(free, mine),
                None => Change::Signal(free),
            })
        })
    }

    /// Turns a permit that this process holds into one that it has just acquired, for another to answer.
    ///
    /// # Errors
    /// `Misuse` in a forked child without a place in the tree.
    pub fn keep(&self) -> Result<()> {
        self.change(|permits, mine| {
            let held = mine.held.checked_sub(1)?;
            let acquired = (mine.acquired + u32::from(!permits.signal)).min(ACQUIRED_MAX);
            Some(Change::Taken(permits.free, Taken { held, acquired }))
        })?;
        Ok(())
    }

    /// Permits that this process holds and that are noted, of either kind.
    ///
    /// # Errors
    /// As [`acquire`](Self::acquire).
    pub fn taken(&self) -> Result<u32> {
        let seen = std::cell::Cell::new(Taken::default());
        self.change(|_, mine| {
            seen.set(mine);
            None
        })?;
        Ok(seen.get().held + seen.get().acquired)
    }

    /// Permits that are free, at this moment.
    ///
    /// # Errors
    /// `Poisoned` when the arena contradicts itself.
    pub fn value(&self) -> Result<u32> {
        self.handle.member().sound()?;
        Ok(Permits::from_bits(self.handle.state().permits.load(Acquire)).free)
    }

    /// The most permits that can be free.
    ///
    /// # Errors
    /// `Poisoned` when the arena contradicts itself.
    pub fn limit(&self) -> Result<u32> {
        self.handle.member().sound()?;
        Ok(self.handle.state().limit.load(Relaxed))
    }

    /// Changes the permits by what `decide` makes of them and of what this process holds; false when it declines.
    #[inline]
    fn change(&self, decide: impl Fn(Permits, Taken) -> Option<Change>) -> Result<bool> {
        let member = self.handle.member();
        let (me, state) = (member.place()?, self.handle.state());
        loop {
            let bits = state.permits.load(Acquire);
            let permits = Permits::from_bits(bits);
            let is_mine = permits.slot == me && permits.phase != Phase::Frozen;
            let mine = if is_mine {
                permits.taken
            } else {
                Taken::default()
            };
            let change = match decide(permits, mine) {
                // Signals are nobody's: whoever stands there may stay.
                Some(change) if is_mine || matches!(change, Change::Free(_)) => change,
                None if is_mine => return Ok(false),
                _ => return self.change_slow(me, decide),
            };
            if state
                .permits
                .replace(bits, change.apply(permits, me).bits())
            {
                return Ok(true);
            }
        }
    }

    /// As [`change`](Self::change), when another process stands in the cell.
    #[cold]
    fn change_slow(
        &self,
        me: u32,
        decide: impl Fn(Permits, Taken) -> Option<Change>,
    ) -> Result<bool> {
        let member = self.handle.member();
        let cells = Cells {
            member,
            object: self.name().offset,
            state: self.handle.state(),
        };
        // A cell of this process changes only once a thread of it has put its name into `permits`: one at a time does.
        let _through = member.windows().gate().pass();
        member.judged(cells.change(me, decide))
    }

    #[cold]
    fn acquire_slow(&self, permit: Permit, deadline: Deadline) -> Result<bool> {
        let (member, state) = (self.handle.member(), self.handle.state());
        let permits = || Permits::from_bits(state.permits.load(Acquire));
        let ready = || Ok(permits().free != 0);
        let mut awake = !deadline.passed();
        loop {
            if self.try_acquire(permit)? {
                return Ok(true);
            }
            if deadline.passed() {
                return Ok(false);
            }
            if std::mem::take(&mut awake) && self.patience.wait(ready)? {
                continue;
            }
            let asleep = state.asleep.set_bits(1) | 1;
            // The other half of `wake`'s fence: what is loaded now is loaded after the bit is there.
            fence(SeqCst);
            if ready()? {
                continue;
            }
            let look = if permits().signal { LOOK } else { LOOK_AGAIN };
            match state.asleep.sleep_while(asleep, deadline.at_most(look)) {
                Wake::Interrupted => return Err(Error::Interrupted),
                // One who holds a permit may have died.
                Wake::TimedOut => member.judged(recovery::reap(member))?,
                Wake::Look => {}
            }
        }
    }
}

impl SemaphoreState {
    /// Wakes one who sleeps, after a permit was given.
    #[inline]
    fn wake(&self) {
        // Orders the permit against the bit; the sleeper's bit is followed by a look.
        fence(SeqCst);
        loop {
            let asleep = self.asleep.load(Relaxed);
            if asleep & 1 == 0 {
                return;
            }
            let next = asleep.wrapping_add(2);
            if self.asleep.replace(asleep, next) {
                if self.asleep.wake(1) == 0 {
                    // Nobody slept. One who is about to finds the word changed, and looks.
                    self.asleep.replace(next, next.wrapping_add(2) & !1);
                }
                return;
            }
        }
    }
}

/// A semaphore's cells, for who may have to settle them.
struct Cells<'a> {
    member: &'a Member,
    object: u64,
    state: &'a SemaphoreState,
}

impl Cells<'_> {
    /// Changes the permits in the name of a slot. Nobody else does in that name meanwhile.
    fn change(&self, slot: u32, decide: impl Fn(Permits, Taken) -> Option<Change>) -> Result<bool> {
        loop {
            let bits = self.state.permits.load(Acquire);
            let permits = Permits::from_bits(bits);
            if permits.phase == Phase::Frozen
                || permits.slot != slot && permits.phase == Phase::Open
            {
                self.settle(bits)?;
                continue;
            }
            let mine = if permits.slot == slot {
                permits.taken
            } else {
                Taken::from_cell(self.cell(slot)?.map_or(0, |cell| cell.load(Acquire)))
            };
            let Some(change) = decide(permits, mine) else {
                return Ok(false);
            };
            if let Change::Taken(..) = change
                && self.cell(slot)?.is_none()
            {
                more::add(
                    self.member,
                    self.object,
                    &self.state.more,
                    OUTSIDE as u64 * 8,
                )?;
            }
            if self
                .state
                .permits
                .replace(bits, change.apply(permits, slot).bits())
            {
                return Ok(true);
            }
        }
    }

    /// Brings the cell of the process that stands in `permits` up to date, which are `bits`, if they still are.
    fn settle(&self, bits: u64) -> Result<()> {
        let permits = Permits::from_bits(bits);
        if permits.bits() != bits {
            // Only the phase has bits that nobody stores.
            return Err(Error::Broken {
                what: "a semaphore's phase",
            });
        }
        let frozen = Permits {
            phase: Phase::Frozen,
            ..permits
        };
        if permits.phase == Phase::Open && !self.state.permits.replace(bits, frozen.bits()) {
            return Ok(());
        }
        let Some(cell) = self.cell(permits.slot)? else {
            return Err(Error::Broken {
                what: "a semaphore's cells",
            });
        };
        let before = cell.load(Acquire);
        // Only now is it known that `before` isn't from a later time.
        if self.state.permits.load(Acquire) != frozen.bits() {
            return Ok(());
        }
        // One who is slower finds another version, and changes nothing.
        if Taken::from_cell(before) == permits.taken
            || cell.replace(before, permits.taken.after(before))
        {
            let settled = Permits {
                phase: Phase::Settled,
                ..permits
            };
            self.state.permits.replace(frozen.bits(), settled.bits());
        }
        Ok(())
    }

    /// The cell of a slot; `None` when the run that it would lie in isn't there yet.
    fn cell(&self, slot: u32) -> Result<Option<&Cell>> {
        let slot = slot as usize;
        if let Some(cell) = self.state.taken.get(slot) {
            return Ok(Some(cell));
        }
        match self.state.more.load(Acquire) {
            0 => Ok(None),
            run if slot < INSIDE + OUTSIDE => {
                self.member.at(run + (slot - INSIDE) as u64 * 8).map(Some)
            }
            _ => Err(Error::Broken {
                what: "the number of a slot",
            }),
        }
    }
}

/// Gives back what a process held that is gone.
pub(crate) const RECOVERY: Recovery = Recovery {
    kind: kind::SEMAPHORE,
    repair: give_back,
    wake,
    locks: false,
    names: None,
};

fn wake(member: &Member, offset: u64) -> Result<()> {
    let state: &SemaphoreState = member.at(offset + OBJECT_HEADER)?;
    state.asleep.add(2);
    state.asleep.wake(u32::MAX);
    Ok(())
}

fn give_back(member: &Member, offset: u64, gone: Gone) -> Result<()> {
    let state: &SemaphoreState = member.at(offset + OBJECT_HEADER)?;
    let cells = Cells {
        member,
        object: offset,
        state,
    };
    more::adopt(member, offset, &state.more, gone)?;
    if cells.cell(gone.slot)?.is_none() {
        // Nothing was ever noted for that slot: its cell comes first.
        return Ok(());
    }
    let limit = state.limit.load(Relaxed);
    // Begun again after a death, it finds that the process holds nothing.
    let changed = cells.change(gone.slot, |permits, taken| {
        if taken == Taken::default() {
            return None;
        }
        let back = match (gone.left, permits.signal) {
            (true, _) => 0,
            (false, true) => taken.held,
            (false, false) => taken.held + taken.acquired,
        };
        let free = permits.free.saturating_add(back).min(limit);
        Some(Change::Taken(free, Taken::default()))
    })?;
    loop {
        // The slot's next process finds its cell empty.
        let bits = state.permits.load(Acquire);
        let permits = Permits::from_bits(bits);
        if permits.slot != gone.slot || permits.phase == Phase::Settled {
            break;
        }
        cells.settle(bits)?;
    }
    if changed || state.asleep.load(Relaxed) & 1 != 0 {
        // The dead may have given a permit, too, and not woken anybody.
        wake(member, offset)?;
    }
    Ok(())
}
