//! A place where a number of processes wait for each other, again and again.
//!
//! One cell, `turn`, says which round it is, how many have come, and what goes on; each change of it is one
//! compare-exchange. A party that waits has an entry (`sync::waiters`) with the number of its round, made before it is
//! counted: so whoever was counted and dies is found by its entry. The entry stays after its party has gone on, until the
//! next round has ended: if one of those who were there dies, the barrier breaks, since it won't come any more.
//!
//! ```text
//! state     meaning                         to                          by
//! FILLING   parties come                    ACTING                      the last of them, as it is counted
//!                                           BROKEN                      abort, timeout, death of a party
//! ACTING    the last one acts               FILLING of the next round   it, when it is done
//!                                           BROKEN                      it, if its action failed; abort, timeout, death
//! BROKEN    nobody gets through             FILLING of the next round   reset
//! ```
//! Who ends a round then tells its parties, one by one. If it dies before, they see it themselves, from `turn`: within the
//! time of a look, or told by whoever ends the next round.

use super::patience::Patience;
use super::waiters::{Entry, Outcome, Waiter, Waiters, low};
use crate::shm::Arena;
use crate::shm::arena::Member;
use crate::shm::layout::{OBJECT_HEADER, kind};
use crate::shm::object::{Handle, ObjectName};
use crate::shm::recovery::{self, Gone, Recovery};
use crate::shm::robust::LOOK_AGAIN;
use crate::shm::view::shared;
use crate::sys::word::{Acquire, Cell, Relaxed, Release, SeqCst, Wake, Word, fence};
use crate::{Deadline, Error, Result};

/// Parties for whom there is room in the object itself: twice as many as wait at once.
const INSIDE: usize = 44;
/// The most parties that a barrier can have: each may have an entry of this round, and one of the last.
const PARTIES_MAX: u32 = 2048;

shared! {
    /// A barrier's state.
    BarrierState: 768 {
        /// The round, and what goes on in it.
        turn: Cell,
        /// Offset of the run with more entries; 0: none.
        more: Cell,
        /// How many wait for each other.
        parties: Word,
        /// Entries ever used are below this number.
        used: Word,
        /// Bit 0: somebody may sleep until the one who acts is done. Each wake adds 2.
        actor: Word,
        _pad: Word,
        _unused: [Cell; 4],
        waiters: [Waiter; INSIDE],
    }
}

/// What the cell `turn` says.
///
/// ```text
/// bits    field
/// 0..2    state: 0 FILLING, 1 ACTING, 2 BROKEN
/// 2       reset: the round before was ended by a reset
/// 3..16   come: parties that have come in this round
/// 16..64  round
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Turn {
    state: State,
    reset: bool,
    come: u32,
    round: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Filling,
    Acting,
    Broken,
}

impl Turn {
    fn from_bits(bits: u64) -> Self {
        Self {
            state: match bits & 3 {
                0 => State::Filling,
                1 => State::Acting,
                _ => State::Broken,
            },
            reset: bits & 4 != 0,
            come: u32::try_from(bits >> 3 & 0x1fff).unwrap_or(0),
            round: bits >> 16,
        }
    }

    fn bits(self) -> u64 {
        let state: u64 = match self.state {
            State::Filling => 0,
            State::Acting => 1,
            State::Broken => 2,
        };
        state | u64::from(self.reset) << 2 | u64::from(self.come) << 3 | self.round << 16
    }

    /// The next round, empty.
    fn next(self, reset: bool) -> Self {
        Self {
            state: State::Filling,
            reset,
            come: 0,
            round: self.round.wrapping_add(1) & (u64::MAX >> 16),
        }
    }

    /// How the round before ended.
    fn before(self) -> Outcome {
        if self.reset {
            Outcome::Broken
        } else {
            Outcome::Woken
        }
    }
}

/// A place where a number of processes and threads wait until all of them are there, again and again.
///
/// # Across processes
/// It breaks when one who waits ends, or one who was in the last completed round dies outside of it: those who wait then,
/// and all who come, are told. One who leaves normally after a round may be replaced by another.
///
/// # After fork
/// The child holds the same barrier; it doesn't wait where its parent's threads do.
///
/// Python: `Barrier`. Source: CPython's `threading.Barrier`.
#[derive(Debug)]
pub struct Barrier {
    handle: Handle<BarrierState>,
    patience: Patience,
}

/// A party of a barrier that has come, and hasn't gone on. Dropped before that, it breaks the barrier.
#[derive(Debug)]
pub struct Party<'a> {
    barrier: &'a Barrier,
    waiter: &'a Waiter,
    entry: Entry,
    round: u64,
    index: u32,
    acts: bool,
}

/// How a wait at a barrier ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Passed {
    /// All were there.
    Through,
    /// The barrier is broken, or was reset.
    Broken,
}

impl From<Outcome> for Passed {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Woken => Self::Through,
            Outcome::Broken => Self::Broken,
        }
    }
}

impl Clone for Barrier {
    fn clone(&self) -> Self {
        Self {
            handle: self.handle.clone(),
            patience: Patience::default(),
        }
    }
}

impl Barrier {
    /// Makes a barrier for so many parties. 1 KiB of the arena, no descriptor.
    ///
    /// # Errors
    /// `Misuse` for no parties, or more than 2048; `Os` or `Exhausted` when there is no memory.
    pub fn new(arena: &Arena, parties: u32) -> Result<Self> {
        if !(1..=PARTIES_MAX).contains(&parties) {
            return Err(Error::Misuse {
                what: "a barrier has from 1 to 2048 parties",
            });
        }
        let handle: Handle<BarrierState> = Handle::new(arena, kind::BARRIER)?;
        handle.state().parties.store(parties, Relaxed);
        let first = Turn {
            round: 1,
            ..Turn::from_bits(0)
        };
        handle.state().turn.store(first.bits(), Release);
        Ok(Self {
            handle,
            patience: Patience::default(),
        })
    }

    /// Holds the barrier of that name.
    ///
    /// # Errors
    /// `Closed` when it is gone, `Malformed` when the name is not a barrier's.
    pub fn open(arena: &Arena, name: ObjectName) -> Result<Self> {
        Ok(Self {
            handle: Handle::open(arena, kind::BARRIER, name)?,
            patience: Patience::default(),
        })
    }

    /// Its name, for a process that is given a hold on it.
    #[must_use]
    pub fn name(&self) -> ObjectName {
        self.handle.name()
    }

    /// Its name, for bytes that go elsewhere than into a queue: from now on the barrier lives until the tree ends.
    ///
    /// # Errors
    /// `Poisoned` when the arena contradicts itself.
    pub fn escape(&self) -> Result<ObjectName> {
        self.handle.escape()?;
        Ok(self.handle.name())
    }

    /// How many wait for each other.
    ///
    /// # Errors
    /// `Poisoned` when the arena contradicts itself.
    pub fn parties(&self) -> Result<u32> {
        self.handle.member().sound()?;
        Ok(self.handle.state().parties.load(Relaxed))
    }

    /// How many wait now, of those who are alive.
    ///
    /// # Errors
    /// `Poisoned` when the arena contradicts itself.
    pub fn waiting(&self) -> Result<u32> {
        self.handle.member().sound()?;
        let (waiters, round) = (self.waiters(), self.turn().1.round);
        let mut waiting = 0;
        for (_, entry) in waiters.iter()? {
            waiting += u32::from(is_of(entry, round) && waiters.lives(entry)?);
        }
        Ok(waiting)
    }

    /// Whether it is broken.
    ///
    /// # Errors
    /// `Poisoned` when the arena contradicts itself.
    pub fn is_broken(&self) -> Result<bool> {
        self.handle.member().sound()?;
        Ok(self.turn().1.state == State::Broken)
    }

    /// Breaks it: all who wait, and all who come until it is [reset](Self::reset), are told. Never sleeps.
    ///
    /// # Errors
    /// `Misuse` in a forked child without a place in the tree.
    pub fn abort(&self) -> Result<()> {
        self.handle.member().place()?;
        give_up(&self.waiters(), self.handle.state())
    }

    /// Makes it whole and empty: those who wait are told that it is broken. Never sleeps.
    ///
    /// # Errors
    /// `Misuse` in a forked child without a place in the tree.
    pub fn reset(&self) -> Result<()> {
        self.handle.member().place()?;
        let (waiters, state) = (self.waiters(), self.handle.state());
        let ended = loop {
            let (bits, turn) = self.turn();
            tell(&waiters, turn.round.wrapping_sub(1), turn.before())?;
            if state.turn.replace(bits, turn.next(true).bits()) {
                break turn.round;
            }
        };
        tell(&waiters, ended, Outcome::Broken)?;
        forget_until(&waiters, ended)?;
        state.wake_comers();
        Ok(())
    }

    /// Comes to the barrier, as a party that is to [act](Party::acts), if it is the last one, or to
    /// [wait](Party::wait). `None` once the deadline has passed while the last one of a round acts, or a stopped process
    /// keeps it from memory for more parties.
    ///
    /// # Errors
    /// `Closed` when the barrier is broken; `Interrupted` when a signal handler ran while it slept, or memory can't be had
    /// soon: call again.
    pub fn come(&self, deadline: Deadline) -> Result<Option<Party<'_>>> {
        let (member, state) = (self.handle.member(), self.handle.state());
        let me = member.owner_id()?;
        loop {
            let turn = self.turn().1;
            match turn.state {
                State::Broken => return Err(Error::Closed { what: "barrier" }),
                State::Acting if deadline.passed() => return Ok(None),
                State::Acting => state.wait_for_actor(member, deadline)?,
                State::Filling => {
                    let (waiter, entry) = match self.waiters().enlist(me, low(turn.round)) {
                        Err(Error::Interrupted) if deadline.passed() => return Ok(None),
                        enlisted => enlisted?,
                    };
                    if let Some((index, acts)) = self.count(turn.round) {
                        return Ok(Some(Party {
                            barrier: self,
                            waiter,
                            entry,
                            round: turn.round,
                            index,
                            acts,
                        }));
                    }
                    waiter.free(entry);
                }
            }
        }
    }

    /// Counts a party that has its entry: how many had come before, and whether it is the last one. `None` if the round
    /// has filled or ended meanwhile.
    fn count(&self, round: u64) -> Option<(u32, bool)> {
        let state = self.handle.state();
        loop {
            let (bits, turn) = self.turn();
            if turn.round != round || turn.state != State::Filling {
                return None;
            }
            let come = turn.come + 1;
            let acts = come >= state.parties.load(Relaxed);
            let next = Turn {
                come,
                state: if acts { State::Acting } else { State::Filling },
                ..turn
            };
            if state.turn.replace(bits, next.bits()) {
                return Some((turn.come, acts));
            }
        }
    }

    fn turn(&self) -> (u64, Turn) {
        let bits = self.handle.state().turn.load(Acquire);
        (bits, Turn::from_bits(bits))
    }

    fn waiters(&self) -> Waiters<'_> {
        waiters(
            self.handle.member(),
            self.name().offset,
            self.handle.state(),
        )
    }
}

impl Party<'_> {
    /// How many had come before it: the last one has the highest number.
    #[must_use]
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Whether it is the last one, which ends the round by [`end`](Self::end), after its action if there is one.
    #[must_use]
    pub fn acts(&self) -> bool {
        self.acts
    }

    /// Ends the round: all go on. False if the barrier was reset or broken meanwhile. Never sleeps.
    ///
    /// # Errors
    /// `Poisoned` when the arena contradicts itself.
    pub fn end(self) -> Result<bool> {
        let (waiters, state) = (self.barrier.waiters(), self.barrier.handle.state());
        loop {
            let (bits, turn) = self.barrier.turn();
            if turn.round != self.round || turn.state != State::Acting {
                return Ok(false);
            }
            tell(&waiters, turn.round.wrapping_sub(1), turn.before())?;
            if state.turn.replace(bits, turn.next(false).bits()) {
                break;
            }
        }
        tell(&waiters, self.round, Outcome::Woken)?;
        forget_until(&waiters, self.round.wrapping_sub(1))?;
        state.wake_comers();
        Ok(true)
    }

    /// Waits until all are there; `None` once the deadline has passed. Not for the one that acts.
    ///
    /// # Errors
    /// `Interrupted` when a signal handler ran while it slept: call again with the same deadline.
    pub fn wait(&self, deadline: Deadline) -> Result<Option<Passed>> {
        let member = self.barrier.handle.member();
        let over = || self.outcome().is_some();
        // One of the others may have died.
        let look = || recovery::reap(member);
        let patience = &self.barrier.patience;
        self.waiter
            .wait(member, patience, deadline, LOOK_AGAIN, over, look)?;
        Ok(self.outcome().map(Passed::from))
    }

    /// Waits no longer, which breaks the barrier, unless all were there by now.
    ///
    /// # Errors
    /// `Poisoned` when the arena contradicts itself.
    pub fn give_up(self) -> Result<Passed> {
        if self.outcome().is_none() {
            self.barrier.abort()?;
        }
        Ok(self.outcome().map_or(Passed::Broken, Passed::from))
    }

    /// How its round ended; `None`: not yet.
    fn outcome(&self) -> Option<Outcome> {
        let turn = self.barrier.turn().1;
        let entry = self.waiter.look();
        if !entry.is_of(self.entry) {
            // Only the entries of those who went on are taken away.
            return Some(Outcome::Woken);
        }
        if let Some(told) = entry.told() {
            return Some(told);
        }
        if turn.round == self.round {
            return (turn.state == State::Broken).then_some(Outcome::Broken);
        }
        // Whoever ends the next round tells those of this one first.
        Some(turn.before())
    }
}

impl Drop for Party<'_> {
    fn drop(&mut self) {
        if self.outcome().is_none() {
            // It goes without waiting, or without ending the round: nobody would get through.
            let _ = self.barrier.abort();
        }
        if self.outcome() == Some(Outcome::Broken) {
            self.waiter.free(self.entry);
        }
    }
}

impl BarrierState {
    /// Sleeps while the last party of a round acts.
    fn wait_for_actor(&self, member: &Member, deadline: Deadline) -> Result<()> {
        let value = self.actor.set_bits(1) | 1;
        // The other half of the fence in `wake_comers`.
        fence(SeqCst);
        if Turn::from_bits(self.turn.load(Acquire)).state != State::Acting {
            return Ok(());
        }
        match self.actor.sleep_while(value, deadline.at_most(LOOK_AGAIN)) {
            Wake::Interrupted => Err(Error::Interrupted),
            Wake::TimedOut => member.judged(recovery::reap(member)),
            Wake::Look => Ok(()),
        }
    }

    /// Wakes those who have come while the last party of a round acted.
    fn wake_comers(&self) {
        fence(SeqCst);
        let value = self.actor.load(Relaxed);
        if value & 1 != 0 && self.actor.replace(value, value.wrapping_add(2) & !1) {
            self.actor.wake(u32::MAX);
        }
    }
}

/// Whether it waits in that round, and has been told nothing yet.
fn is_of(entry: Entry, round: u64) -> bool {
    entry.waits() && entry.ticket() == low(round)
}

fn waiters<'a>(member: &'a Member, object: u64, state: &'a BarrierState) -> Waiters<'a> {
    Waiters {
        member,
        object,
        inside: &state.waiters,
        more: &state.more,
        used: &state.used,
    }
}

/// Tells all who wait in a round how it ended.
fn tell(waiters: &Waiters<'_>, round: u64, outcome: Outcome) -> Result<()> {
    for (waiter, entry) in waiters.iter()? {
        if is_of(entry, round) {
            waiter.tell(entry, outcome);
        }
    }
    Ok(())
}

/// Forgets who went through up to a round.
fn forget_until(waiters: &Waiters<'_>, round: u64) -> Result<()> {
    for (waiter, entry) in waiters.iter()? {
        // Rounds go round in a ticket; none is half of that old.
        let is_past = low(round).wrapping_sub(entry.ticket()) < u32::MAX / 2;
        if entry.told() == Some(Outcome::Woken) && is_past {
            waiter.free_as(entry);
        }
    }
    Ok(())
}

/// Breaks the barrier, and tells all who wait.
fn give_up(waiters: &Waiters<'_>, state: &BarrierState) -> Result<()> {
    loop {
        let bits = state.turn.load(Acquire);
        let turn = Turn::from_bits(bits);
        let broken = Turn {
            state: State::Broken,
            ..turn
        };
        if turn == broken || state.turn.replace(bits, broken.bits()) {
            tell(waiters, turn.round, Outcome::Broken)?;
            state.wake_comers();
            return Ok(());
        }
    }
}

/// Breaks a barrier that a process belonged to which is gone.
pub(crate) const RECOVERY: Recovery = Recovery {
    kind: kind::BARRIER,
    repair: bereave,
    wake,
    locks: false,
    names: None,
};

fn wake(member: &Member, offset: u64) -> Result<()> {
    let state: &BarrierState = member.at(offset + OBJECT_HEADER)?;
    state.wake_comers();
    waiters(member, offset, state).wake()
}

fn bereave(member: &Member, offset: u64, gone: Gone) -> Result<()> {
    let state: &BarrierState = member.at(offset + OBJECT_HEADER)?;
    let waiters = waiters(member, offset, state);
    let turn = Turn::from_bits(state.turn.load(Acquire));
    let owner = super::lock::id(gone.slot, gone.generation);
    let mut breaks = false;
    for (_, entry) in waiters.iter()? {
        let was_there = entry.told() != Some(Outcome::Broken)
            && entry.ticket().wrapping_add(1) == low(turn.round)
            && !turn.reset;
        let matters = is_of(entry, turn.round) || was_there && !gone.left;
        breaks |= entry.owner() == owner && matters;
    }
    // Before its entries go: begun again after a death, it must find them.
    if breaks {
        give_up(&waiters, state)?;
    }
    state.wake_comers();
    waiters.forget(gone)
}

#[cfg(test)]
mod tests {
    use super::{State, Turn};

    #[test]
    fn bits_mean_what_they_were_made_of() {
        let turn = Turn {
            state: State::Broken,
            reset: true,
            come: 2048,
            round: (1 << 48) - 1,
        };
        assert_eq!(Turn::from_bits(turn.bits()), turn);
        assert_eq!(turn.next(false).round, 0);
    }
}
