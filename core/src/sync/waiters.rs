//! Who waits, one entry each: so that a wake is for one certain waiter, and the dead aren't counted.
//!
//! ```text
//! state               meaning                                  who may leave this state, to where
//! 0                   nobody's                                 any: CAS to its id, AWAKE, with its ticket
//! id, AWAKE, ticket   waits, and doesn't sleep yet             the waiter: to ASLEEP, or 0; a waker: to WOKEN or BROKEN
//! id, ASLEEP, ticket  waits, and may sleep on the bell         the waiter: to 0; a waker: to WOKEN or BROKEN, and rings
//! id, WOKEN, ticket   what it waited for is there              the waiter: to 0; a barrier's next round: to 0
//! id, BROKEN, ticket  what it waited for won't come            the waiter: to 0
//! ```
//! Recovery of the waiter's process puts 0 into each. The id has 30 bits, as a lock's, the state two, and the ticket 32: the
//! order of a condition's waiters, the round of a barrier's. They change in one step, so a waker that was stopped since it
//! looked changes nothing for the next one who has the entry: that has another ticket.

use super::lock::id;
use super::more;
use super::patience::Patience;
use crate::shm::arena::Member;
use crate::shm::layout::SLOTS;
use crate::shm::recovery::{self, Gone};
use crate::shm::view::shared;
use crate::sys::word::{Acquire, Cell, Relaxed, Wake, Word};
use crate::{Deadline, Error, Result};
use std::time::Duration;

shared! {
    /// One who waits.
    Waiter: 16 {
        /// Whose it is, what it was told, its ticket.
        state: Cell,
        /// Slept on; each ring adds 1.
        bell: Word,
        _pad: Word,
    }
}

const ID: u64 = (1 << 30) - 1;
const STATE: u64 = 3 << 30;
const AWAKE: u64 = 0;
const ASLEEP: u64 = 1 << 30;
const WOKEN: u64 = 2 << 30;
const BROKEN: u64 = 3 << 30;
const TICKET_AT: u32 = 32;

/// Entries of the run that is taken when those of the object itself are all in use.
const MORE: u32 = 4096;
const MORE_BYTES: u64 = MORE as u64 * size_of::<Waiter>() as u64;

/// What a waiter is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Woken,
    Broken,
}

/// What an entry said at one look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry(u64);

impl Entry {
    fn new(owner: u32, ticket: u32) -> Self {
        Self(u64::from(ticket) << TICKET_AT | u64::from(owner) | AWAKE)
    }

    fn is_free(self) -> bool {
        self.0 & ID == 0
    }

    /// Whose it is; 0: nobody's.
    pub(super) fn owner(self) -> u32 {
        low(self.0 & ID)
    }

    /// Its place in the order, or its round.
    pub(super) fn ticket(self) -> u32 {
        low(self.0 >> TICKET_AT)
    }

    /// Whether its owner waits, and has been told nothing yet.
    pub(super) fn waits(self) -> bool {
        !self.is_free() && matches!(self.0 & STATE, AWAKE | ASLEEP)
    }

    /// What its owner has been told.
    pub(super) fn told(self) -> Option<Outcome> {
        match self.0 & STATE {
            WOKEN => Some(Outcome::Woken),
            BROKEN => Some(Outcome::Broken),
            _ => None,
        }
    }

    /// Whether it is the same waiter's, and the same wait.
    pub(super) fn is_of(self, other: Self) -> bool {
        self.0 & !STATE == other.0 & !STATE
    }

    fn with(self, state: u64) -> Self {
        Self(self.0 & !STATE | state)
    }
}

/// The low bits of a number that counts on and on, as a ticket has them.
pub(super) fn low(number: u64) -> u32 {
    u32::try_from(number & u64::from(u32::MAX)).unwrap_or(0)
}

impl Waiter {
    /// What it says now.
    pub(super) fn look(&self) -> Entry {
        Entry(self.state.load(Acquire))
    }

    /// Tells the one who was seen there, who is woken; false if it doesn't wait any more.
    pub(super) fn tell(&self, seen: Entry, outcome: Outcome) -> bool {
        let state = match outcome {
            Outcome::Woken => WOKEN,
            Outcome::Broken => BROKEN,
        };
        loop {
            let entry = self.look();
            if !entry.is_of(seen) || !entry.waits() {
                return false;
            }
            if self.state.replace(entry.0, entry.with(state).0) {
                if entry.0 & STATE == ASLEEP {
                    self.bell.add(1);
                    self.bell.wake(1);
                }
                return true;
            }
        }
    }

    /// Makes it nobody's if it is still that waiter's, whatever that was told.
    pub(super) fn free(&self, seen: Entry) {
        loop {
            let entry = self.look();
            if !entry.is_of(seen) || self.state.replace(entry.0, 0) {
                return;
            }
        }
    }

    /// Makes it nobody's if it says still the same.
    pub(super) fn free_as(&self, seen: Entry) {
        self.state.replace(seen.0, 0);
    }

    /// Makes it nobody's if nothing was told yet; what was told otherwise.
    pub(super) fn withdraw(&self) -> Option<Outcome> {
        loop {
            let entry = self.look();
            let told = entry.told();
            if told.is_some() || entry.is_free() || self.state.replace(entry.0, 0) {
                return told;
            }
        }
    }

    /// Waits, awake and then asleep, until `over`; false once the deadline has passed. `look` is called before each sleep
    /// and each time that one has lasted for `every`.
    ///
    /// # Errors
    /// `Interrupted` when a signal handler ran while it slept; what `look` fails with.
    pub(super) fn wait(
        &self,
        member: &Member,
        patience: &Patience,
        deadline: Deadline,
        every: Duration,
        over: impl Fn() -> bool,
        look: impl Fn() -> Result<()>,
    ) -> Result<bool> {
        if over() {
            return Ok(true);
        }
        if !deadline.passed() && patience.wait(|| Ok(over()))? {
            return Ok(true);
        }
        loop {
            member.sound()?;
            // Before the entry is seen: whoever tells this waiter afterwards rings afterwards.
            let bell = self.bell.load(Acquire);
            let entry = self.look();
            if over() {
                return Ok(true);
            }
            if deadline.passed() {
                return Ok(false);
            }
            if entry.0 & STATE == AWAKE && !self.state.replace(entry.0, entry.with(ASLEEP).0) {
                continue;
            }
            match self.bell.sleep_while(bell, deadline.at_most(every)) {
                Wake::Interrupted if !over() => return Err(Error::Interrupted),
                Wake::TimedOut => member.judged(look())?,
                Wake::Interrupted | Wake::Look => {}
            }
        }
    }
}

/// The entries of one object: a few in it, and a run with more once they are all in use.
#[derive(Debug, Clone, Copy)]
pub(super) struct Waiters<'a> {
    pub(super) member: &'a Member,
    /// Offset of the object.
    pub(super) object: u64,
    pub(super) inside: &'a [Waiter],
    /// Offset of the run with more of them; 0: none.
    pub(super) more: &'a Cell,
    /// Entries ever used are below this number.
    pub(super) used: &'a Word,
}

impl<'a> Waiters<'a> {
    /// An entry for this process, which waits from now on.
    ///
    /// # Errors
    /// `Exhausted` when thousands wait already, `Os` when there is no memory for more.
    pub(super) fn enlist(&self, me: u32, ticket: u32) -> Result<(&'a Waiter, Entry)> {
        let entry = Entry::new(me, ticket);
        let waiter = self.member.judged(self.put(entry))?;
        Ok((waiter, entry))
    }

    fn put(&self, entry: Entry) -> Result<&'a Waiter> {
        for number in 0.. {
            let waiter = match self.at(number)? {
                Some(waiter) => waiter,
                None => self.grow(number)?,
            };
            let free = waiter.look();
            if free.is_free() {
                // Counted first: recovery finds it, whatever follows.
                self.count(number + 1);
                if waiter.state.replace(free.0, entry.0) {
                    return Ok(waiter);
                }
            }
        }
        Err(Error::Broken {
            what: "the entries of those who wait",
        })
    }

    /// Says that entries below a number are in use.
    fn count(&self, number: u32) {
        loop {
            let used = self.used.load(Relaxed);
            if used >= number || self.used.replace(used, number) {
                return;
            }
        }
    }

    /// Every entry in use, and some that aren't, with what each says.
    pub(super) fn iter(&self) -> Result<Vec<(&'a Waiter, Entry)>> {
        let used = self.used.load(Acquire);
        let limit = u32::try_from(self.inside.len()).unwrap_or(0) + MORE;
        let waiters = (0..used.min(limit)).map_while(|number| self.at(number).transpose());
        let looked = waiters.map(|waiter| waiter.map(|waiter| (waiter, waiter.look())));
        self.member.judged(looked.collect())
    }

    /// The entry of a number, if there is memory for it.
    fn at(&self, number: u32) -> Result<Option<&'a Waiter>> {
        let number = number as usize;
        if let Some(waiter) = self.inside.get(number) {
            return Ok(Some(waiter));
        }
        let (run, number) = (self.more.load(Acquire), (number - self.inside.len()) as u64);
        if run == 0 || number >= u64::from(MORE) {
            return Ok(None);
        }
        self.member
            .at(run + number * size_of::<Waiter>() as u64)
            .map(Some)
    }

    /// Takes a run for more entries, and gives the first of them.
    #[cold]
    fn grow(&self, number: u32) -> Result<&'a Waiter> {
        if self.more.load(Acquire) == 0 {
            more::add(self.member, self.object, self.more, MORE_BYTES)?;
        }
        self.at(number)?.ok_or(Error::Exhausted {
            what: "entries for those who wait",
            limit: self.inside.len() as u64 + u64::from(MORE),
        })
    }

    /// Wakes all who wait, for good.
    pub(super) fn wake(&self) -> Result<()> {
        for (waiter, _) in self.iter()? {
            waiter.bell.wake(u32::MAX);
        }
        Ok(())
    }

    /// For a process that is gone: gives the object the run that it was about to give it, and frees its entries.
    pub(super) fn forget(&self, gone: Gone) -> Result<()> {
        more::adopt(self.member, self.object, self.more, gone)?;
        let owner = id(gone.slot, gone.generation);
        for (waiter, entry) in self.iter()? {
            if entry.owner() == owner {
                waiter.free(entry);
            } else if entry.told().is_some() {
                // The dead may have told it, and not rung.
                waiter.bell.add(1);
                waiter.bell.wake(1);
            }
        }
        Ok(())
    }

    /// Whether the process whose entry it is lives, as far as can be told without a wait.
    pub(super) fn lives(&self, entry: Entry) -> Result<bool> {
        let owner = entry.owner();
        let slot = owner & (SLOTS - 1);
        if slot == 0 {
            return Ok(false);
        }
        let now = id(slot, self.member.slot_at(slot)?.generation.load(Relaxed));
        Ok(now == owner && !self.member.judged(recovery::is_gone(self.member, slot))?)
    }
}
