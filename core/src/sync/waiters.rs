//! Who waits, one entry each: so that a wake is for one certain waiter, and the dead aren't counted.
//!
//! ```text
//! word           meaning                                  who may leave this state, to where
//! 0              nobody's                                 any: CAS to its id, BROKEN
//! id, AWAKE      waits, and doesn't sleep yet             the waiter: to ASLEEP, or 0; a waker: to WOKEN or BROKEN
//! id, ASLEEP     waits, and may sleep on the word         the waiter: to 0; a waker: to WOKEN or BROKEN, and wakes it
//! id, WOKEN      what it waited for is there              the waiter: to 0; a barrier's next round: to 0
//! id, BROKEN     doesn't wait yet, or what it waited for   the waiter: to AWAKE once its ticket is there; to 0
//!                won't come
//! ```
//! Recovery of the waiter's process puts 0 into each. A word has 30 bits of id, as a lock's, and two of state; beside it
//! stands a ticket: the order of a condition's waiters, the round of a barrier's. Its owner stores it, before it waits.

use super::lock::id;
use super::more;
use super::patience::Patience;
use crate::shm::arena::Member;
use crate::shm::layout::SLOTS;
use crate::shm::recovery::{self, Gone};
use crate::shm::view::shared;
use crate::sys::word::{Acquire, Cell, Relaxed, Release, Wake, Word};
use crate::{Deadline, Error, Result};
use std::time::Duration;

shared! {
    /// One who waits.
    Waiter: 16 {
        word: Word,
        _pad: Word,
        /// Its place in the order, or its round.
        ticket: Cell,
    }
}

const ID: u32 = (1 << 30) - 1;
const STATE: u32 = 3 << 30;
const AWAKE: u32 = 0;
const ASLEEP: u32 = 1 << 30;
const WOKEN: u32 = 2 << 30;
const BROKEN: u32 = 3 << 30;

/// Entries of the run that is taken when those of the object itself are all in use.
const MORE: u32 = 4096;
const MORE_BYTES: u64 = MORE as u64 * size_of::<Waiter>() as u64;

/// What a waiter is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Woken,
    Broken,
}

impl Waiter {
    /// Whose it is; 0: nobody's.
    pub(super) fn owner(&self) -> u32 {
        self.word.load(Acquire) & ID
    }

    /// Whether its owner waits, and has been told nothing yet.
    pub(super) fn waits(&self) -> bool {
        let word = self.word.load(Acquire);
        word != 0 && matches!(word & STATE, AWAKE | ASLEEP)
    }

    /// What its owner has been told.
    pub(super) fn told(&self) -> Option<Outcome> {
        match self.word.load(Acquire) & STATE {
            WOKEN => Some(Outcome::Woken),
            BROKEN => Some(Outcome::Broken),
            _ => None,
        }
    }

    /// Tells its owner, who is woken; false if it doesn't wait.
    pub(super) fn tell(&self, outcome: Outcome) -> bool {
        let state = match outcome {
            Outcome::Woken => WOKEN,
            Outcome::Broken => BROKEN,
        };
        loop {
            let word = self.word.load(Acquire);
            if word == 0 || !matches!(word & STATE, AWAKE | ASLEEP) {
                return false;
            }
            if self.word.replace(word, word & ID | state) {
                if word & STATE == ASLEEP {
                    self.word.wake(1);
                }
                return true;
            }
        }
    }

    /// Makes it nobody's: by its owner, or for one that is gone.
    pub(super) fn free(&self) {
        self.word.store(0, Release);
    }

    /// Makes it nobody's if nothing was told yet; what was told otherwise.
    pub(super) fn withdraw(&self) -> Option<Outcome> {
        loop {
            let word = self.word.load(Acquire);
            let told = self.told();
            if told.is_some() || word == 0 || self.word.replace(word, 0) {
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
            let word = self.word.load(Acquire);
            if over() {
                return Ok(true);
            }
            if deadline.passed() {
                return Ok(false);
            }
            let asleep = word & ID | ASLEEP;
            if word & STATE == AWAKE && !self.word.replace(word, asleep) {
                continue;
            }
            match self.word.sleep_while(asleep, deadline.at_most(every)) {
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
    pub(super) fn enlist(&self, me: u32, ticket: u64) -> Result<&'a Waiter> {
        self.member.judged(self.find_free(me, ticket))
    }

    fn find_free(&self, me: u32, ticket: u64) -> Result<&'a Waiter> {
        for number in 0.. {
            let waiter = match self.at(number)? {
                Some(waiter) => waiter,
                None => self.grow(number)?,
            };
            if waiter.word.load(Relaxed) == 0 {
                // Counted first: recovery finds it, whatever follows.
                self.count(number + 1);
                // Taken first: the ticket of an entry that another has taken meanwhile is that one's.
                if waiter.word.replace(0, me | BROKEN) {
                    waiter.ticket.store(ticket, Relaxed);
                    waiter.word.store(me | AWAKE, Release);
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

    /// Every entry in use, and some that aren't.
    pub(super) fn iter(&self) -> Result<Vec<&'a Waiter>> {
        let used = self.used.load(Acquire);
        let limit = u32::try_from(self.inside.len()).unwrap_or(0) + MORE;
        let waiters = (0..used.min(limit)).map_while(|number| self.at(number).transpose());
        self.member.judged(waiters.collect())
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
        for waiter in self.iter()? {
            waiter.word.wake(u32::MAX);
        }
        Ok(())
    }

    /// For a process that is gone: gives the object the run that it was about to give it, and frees its entries.
    pub(super) fn forget(&self, gone: Gone) -> Result<()> {
        more::adopt(self.member, self.object, self.more, gone)?;
        let owner = id(gone.slot, gone.generation);
        for waiter in self.iter()? {
            if waiter.owner() == owner {
                waiter.free();
            } else if waiter.told().is_some() {
                // The dead may have told it, and not woken it.
                waiter.word.wake(1);
            }
        }
        Ok(())
    }

    /// Whether the process whose entry it is lives, as far as can be told without a wait.
    pub(super) fn lives(&self, waiter: &Waiter) -> Result<bool> {
        let owner = waiter.owner();
        let slot = owner & (SLOTS - 1);
        if slot == 0 {
            return Ok(false);
        }
        let now = id(slot, self.member.slot_at(slot)?.generation.load(Relaxed));
        Ok(now == owner && !self.member.judged(recovery::is_gone(self.member, slot))?)
    }
}
