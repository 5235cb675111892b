//! Which messages of a joinable queue aren't finished, and who owes them.
//!
//! A message is unfinished from the store that makes it a message of the queue until somebody says that its task is done.
//! How many were put is counted anyway, so only the finished ones are counted here, in `done`. Who dies must not leave
//! the others to wait, so each slot has a [`Debt`]: what its process has taken, changed together with the consumers'
//! position, under their lock; and what was paid of it, changed together with `done`, under the lock of [`Tasks`].
//!
//! | call | debts before | whose debt gets smaller |
//! |---|---|---|
//! | `task_done` | the caller owes some | the caller's |
//! | | it owes none, others do | the one's who owes most: the caller has their message, or speaks for them |
//! | | nobody owes any | nobody's: the message wasn't got yet, or by one that has left |
//! | recovery of one that died | it owes some | its own, down to nothing, each message as done and lost |
//! | recovery of one that left normally | it owes some | nobody's: `join` waits for who speaks for it |
//!
//! No more are ever done than were put. Both halves of a debt name the generation of their slot, so that a slot's next
//! process begins with none, whatever the one before left.
//!
//! A change of `done` first notes where it is going, beginning with `next_done`; then it stores `done`, and then brings
//! the other cells up to it: as on a queue's sides (`layout`), so that a repair can tell one that happened from one that didn't.

use super::Queue;
use super::layout::QueueState;
use crate::shm::arena::Member;
use crate::shm::extent::Run;
use crate::shm::layout::{OBJECT_HEADER, SLOTS};
use crate::shm::recovery::{self, Gone};
use crate::shm::robust::{Held, LOOK_AGAIN, Limit, RobustLock, in_passing, turn};
use crate::shm::view::shared;
use crate::shm::{Arena, ObjectName};
use crate::sys::word::{Acquire, Cell, Relaxed, Release, SeqCst, Wake, Word, fence};
use crate::{Deadline, Error, Result};

/// Slots that have a debt; fewer in a model, where each byte costs.
const DEBTORS: u32 = if cfg!(all(loom, test)) { 8 } else { SLOTS };
/// Of a half of a debt: where the slot's generation begins, above the count.
const GENERATION: u32 = 32;

shared! {
    /// What a queue counts of its messages' tasks.
    Tasks: 192 {
        /// Held by who changes what follows.
        lock: RobustLock,
        /// Messages whose tasks were done, or lost with who had got them.
        done: Cell,
        /// What `done` will be.
        next_done: Cell,
        /// The slot whose debt gets smaller with that; 0: none.
        debtor: Cell,
        /// What its `paid` will be.
        next_paid: Cell,
        /// Messages that count as done since their getter died.
        lost: Cell,
        /// What `lost` will be.
        next_lost: Cell,
        /// The count of messages when all of them were done, the last time.
        finished: Cell,
        /// How many of the lost ones a `join` has told of.
        told: Cell,
        /// Consumers: the slot whose process takes a message; 0: none does.
        taker: Cell,
        /// Consumers: what its `taken` will be.
        next_taken: Cell,
        /// Bit 0: somebody may sleep until all is done. Slept on; each wake adds 2.
        asleep: Word,
        _pad: Word,
        _unused: [Cell; 5],
    }
}

shared! {
    /// What the process of a slot owes: both halves with the slot's generation in bits 32..64.
    Debt: 16 {
        /// How many messages it has taken.
        taken: Cell,
        /// How many of them are done. Of another generation: none.
        paid: Cell,
    }
}

impl Debt {
    /// What that generation of the slot owes; any, if none is given.
    fn owed(&self, generation: Option<u32>) -> u32 {
        let (paid, taken) = (self.paid.load(Acquire), self.taken.load(Acquire));
        let of = taken >> GENERATION;
        if generation.is_some_and(|generation| u64::from(generation) != of) {
            return 0;
        }
        let paid = if paid >> GENERATION == of {
            count(paid)
        } else {
            0
        };
        // More paid than taken: some other process has written here.
        let owed = count(taken).wrapping_sub(paid);
        if owed > u32::MAX / 2 { 0 } else { owed }
    }

    /// What `paid` says once so much more is.
    fn paid_with(&self, more: u32) -> u64 {
        let (paid, taken) = (self.paid.load(Relaxed), self.taken.load(Acquire));
        let of = taken >> GENERATION;
        let before = if paid >> GENERATION == of {
            count(paid)
        } else {
            0
        };
        of << GENERATION | u64::from(before.wrapping_add(more))
    }
}

/// The count in a half of a debt.
fn count(bits: u64) -> u32 {
    u32::try_from(bits & u64::from(u32::MAX)).unwrap_or(0)
}

impl Queue {
    /// Makes an empty queue that counts unfinished messages, for at most `capacity` messages, or any number.
    ///
    /// As [`new`](Self::new), and 16 KiB of the arena more, in which is who owes how many.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn joinable(arena: &Arena, capacity: Option<u32>) -> Result<Self> {
        let queue = Self::new(arena, capacity)?;
        let made = queue.count_tasks();
        queue.handle.member().judged(made)?;
        Ok(queue)
    }

    fn count_tasks(&self) -> Result<()> {
        let (member, state) = (self.handle.member(), self.state());
        let bytes = u64::from(DEBTORS) * size_of::<Debt>() as u64;
        let run = Run::take(member, bytes, turn())?.ok_or(Error::Interrupted)?;
        let zeros = [0; size_of::<Debt>() * DEBTORS as usize];
        member.windows().write(run.offset, &zeros)?;
        state.debts.store(run.offset, Relaxed);
        run.link(self.handle.name().offset)
    }

    /// Holds the joinable queue of that name.
    ///
    /// # Errors
    /// As [`open`](Self::open); `Malformed` for one that counts no tasks, too.
    pub fn open_joinable(arena: &Arena, name: ObjectName) -> Result<Self> {
        let queue = Self::open(arena, name)?;
        if queue.state().debts.load(Relaxed) == 0 {
            return Err(Error::Malformed {
                what: "name of a joinable queue",
                at: name.offset,
            });
        }
        Ok(queue)
    }

    /// Messages that were put and whose tasks aren't done, at this moment.
    ///
    /// # Errors
    /// `Misuse` for a queue that isn't joinable; `Poisoned` when the arena contradicts itself.
    pub fn unfinished(&self) -> Result<u64> {
        self.handle.member().sound()?;
        Ok(self.counting()?.unfinished())
    }

    /// Says that what was to be done with a message is done: one that this process has got, if there is one, else another's.
    ///
    /// Never sleeps, unless another process is just at the same.
    ///
    /// # Errors
    /// `Misuse` when all messages are done, and for a queue that isn't joinable; `Interrupted` when a process is stopped
    /// that is at the same.
    pub fn task_done(&self) -> Result<()> {
        let me = self.handle.member().place()?;
        let state = self.counting()?;
        let member = self.handle.member();
        let held = member.judged(lock(member, state, turn()))?;
        member.judged(self.finish_one(state, me, held.ok_or(Error::Interrupted)?))
    }

    /// As [`task_done`](Self::task_done) if nobody else is at the same: never sleeps, and so may be called by a thread that holds
    /// what others wait for, such as an interpreter's lock. False says that only [`task_done`](Self::task_done) can do it.
    ///
    /// # Errors
    /// `Misuse` as [`task_done`](Self::task_done).
    pub fn try_task_done(&self) -> Result<bool> {
        let me = self.handle.member().place()?;
        let state = self.counting()?;
        let Some(held) = state.tasks.lock.try_lock() else {
            return Ok(false);
        };
        let done = self.finish_one(state, me, held);
        self.handle.member().judged(done).map(|()| true)
    }

    /// Under the tasks' lock, of which it lets go.
    fn finish_one(&self, state: &QueueState, me: u32, held: Held<'_>) -> Result<()> {
        let member = self.handle.member();
        if state.unfinished() == 0 {
            return Err(Error::Misuse {
                what: "task_done() called too many times",
            });
        }
        let debtor = debtor(member, state, me)?;
        let paid = state.debt(member, debtor.into())?.paid_with(1);
        let finished = change(member, state, 1, (debtor, paid), 0)?;
        drop(held);
        if finished {
            state.tasks.wake_sleepers();
        }
        Ok(())
    }

    /// Waits until all messages are done that have been put so far, and says how many of them were lost: they count as done
    /// since the process died that had got them, and no other `join` has told. `None` once the deadline has passed.
    ///
    /// Sleeps in the kernel, and looks every 50 ms whether a process that owes something has died.
    ///
    /// # Errors
    /// `Interrupted` when a signal handler ran while it slept; `Misuse` for a queue that isn't joinable.
    pub fn join(&self, deadline: Deadline) -> Result<Option<u64>> {
        let member = self.handle.member();
        member.place()?;
        let state = self.counting()?;
        let (tasks, put) = (&state.tasks, state.total());
        // All that were put before are done: now, or at some moment since.
        let ready = || state.unfinished() == 0 || tasks.finished.load(Acquire) >= put;
        loop {
            member.sound()?;
            if ready() {
                return Ok(Some(tasks.tell()));
            }
            if deadline.passed() {
                return Ok(None);
            }
            let asleep = tasks.asleep.set_bits(1) | 1;
            // The other half of the waker's fence: what is loaded now is loaded after the bit is there.
            fence(SeqCst);
            if ready() {
                continue;
            }
            match tasks
                .asleep
                .sleep_while(asleep, deadline.at_most(LOOK_AGAIN))
            {
                Wake::Interrupted => return Err(Error::Interrupted),
                Wake::TimedOut => member.judged(recovery::reap(member))?,
                Wake::Look => {}
            }
        }
    }

    /// The state of a queue that counts tasks.
    fn counting(&self) -> Result<&QueueState> {
        let state = self.state();
        if state.debts.load(Relaxed) == 0 {
            return Err(Error::Misuse {
                what: "this queue doesn't count unfinished tasks",
            });
        }
        Ok(state)
    }
}

impl QueueState {
    /// Messages that were put so far. One that was got has been put, whether its producer has come to count it or not.
    fn total(&self) -> u64 {
        let got = self.get.count.load(Acquire);
        self.put.count.load(Acquire).max(got)
    }

    /// Messages that aren't done. `done` first: it never gets ahead of what is loaded later.
    fn unfinished(&self) -> u64 {
        let done = self.tasks.done.load(Acquire);
        self.total().saturating_sub(done)
    }

    fn debt<'a>(&self, member: &'a Member, slot: u64) -> Result<&'a Debt> {
        if slot >= u64::from(DEBTORS) {
            return Err(Error::Broken {
                what: "the number of a slot",
            });
        }
        let debts = self.debts.load(Relaxed);
        let debt = debts.checked_add(slot * size_of::<Debt>() as u64);
        member.at(debt.ok_or(Error::Broken {
            what: "where a queue counts who owes what",
        })?)
    }
}

impl Tasks {
    /// Wakes who waits for the end of all tasks, if anybody does. Who calls this has let go of a lock since it was reached.
    pub(super) fn wake_sleepers(&self) {
        fence(SeqCst);
        if self.asleep.load(Relaxed) & 1 != 0 {
            self.wake();
        }
    }

    /// Wakes whoever sleeps, for good.
    pub(super) fn wake(&self) {
        // Who sets the bit meanwhile finds another word, and looks.
        self.asleep.clear_bits(1);
        self.asleep.add(2);
        self.asleep.wake(u32::MAX);
    }

    /// How many lost messages nobody was told of, once.
    fn tell(&self) -> u64 {
        loop {
            let (told, lost) = (self.told.load(Acquire), self.lost.load(Acquire));
            if told == lost || self.told.replace(told, lost) {
                return lost.saturating_sub(told);
            }
        }
    }
}

/// The lock of a queue's tasks, with everything repaired; `None` once the limit is reached.
fn lock<'a>(
    member: &Member,
    state: &'a QueueState,
    limit: impl Into<Limit>,
) -> Result<Option<Held<'a>>> {
    let Some(mut held) = state.tasks.lock.lock(limit)? else {
        return Ok(None);
    };
    if held.recovered {
        repair(member, state)?;
        held.recovered = false;
    }
    Ok(Some(held))
}

/// Whose debt gets smaller when a process says that a task is done. Under the tasks' lock.
fn debtor(member: &Member, state: &QueueState, me: u32) -> Result<u32> {
    let generation = Some(member.generation());
    if state.debt(member, me.into())?.owed(generation) > 0 {
        return Ok(me);
    }
    let mut most = (0, 0);
    for slot in 1..member.header()?.slots_used.load(Acquire).min(DEBTORS) {
        let owed = state.debt(member, slot.into())?.owed(None);
        if slot != me && owed > most.0 {
            most = (owed, slot);
        }
    }
    Ok(most.1)
}

/// Makes some more done, with a slot's debt paid to that half, some of them lost. Says whether now all are. Under the
/// tasks' lock; some are more than none.
fn change(
    member: &Member,
    state: &QueueState,
    done: u64,
    (debtor, paid): (u32, u64),
    lost: u64,
) -> Result<bool> {
    let tasks = &state.tasks;
    let done = tasks.done.load(Relaxed).wrapping_add(done);
    let lost = tasks.lost.load(Relaxed).wrapping_add(lost);
    tasks.next_done.store(done, Relaxed);
    tasks.debtor.store(debtor.into(), Relaxed);
    tasks.next_paid.store(paid, Relaxed);
    tasks.next_lost.store(lost, Relaxed);
    tasks.done.store(done, Release);
    follow(member, state)
}

/// Brings everything up to `done`. Says whether all are done.
fn follow(member: &Member, state: &QueueState) -> Result<bool> {
    let tasks = &state.tasks;
    let debtor = tasks.debtor.load(Relaxed);
    if debtor != 0 {
        let paid = tasks.next_paid.load(Relaxed);
        state.debt(member, debtor)?.paid.store(paid, Release);
    }
    tasks.lost.store(tasks.next_lost.load(Relaxed), Release);
    let finished = state.unfinished() == 0;
    if finished {
        let done = tasks.done.load(Relaxed);
        tasks.finished.store(done, Release);
    }
    Ok(finished)
}

/// Finishes or undoes what a dead process was changing. Under the tasks' lock.
pub(super) fn repair(member: &Member, state: &QueueState) -> Result<()> {
    let tasks = &state.tasks;
    let changed = tasks.done.load(Relaxed) == tasks.next_done.load(Relaxed);
    if state.debts.load(Relaxed) != 0 && changed {
        follow(member, state)?;
    }
    Ok(())
}

/// Makes done what a process owed that is gone, if it didn't leave normally.
///
/// # Errors
/// `Interrupted` when another process is stopped in the middle of what must come first.
pub(super) fn give_back(member: &Member, offset: u64, gone: Gone) -> Result<()> {
    let state: &QueueState = member.at(offset + OBJECT_HEADER)?;
    if state.debts.load(Relaxed) == 0 || gone.left {
        return Ok(());
    }
    if state.get_lock.is_abandoned() {
        // What it took as it died it owes, too, once that is repaired.
        return Err(Error::Interrupted);
    }
    let held = lock(member, state, in_passing())?.ok_or(Error::Interrupted)?;
    let debt = state.debt(member, gone.slot.into())?;
    let owed = debt.owed(Some(gone.generation));
    let paid = debt.paid_with(owed);
    // Others may have said before the get that a message is done.
    let lost = u64::from(owed).min(state.unfinished());
    if lost != 0 {
        change(member, state, lost, (gone.slot, paid), lost)?;
    } else if owed != 0 {
        // `done` stays, so nothing that was noted for it may come after this.
        state.tasks.debtor.store(0, Relaxed);
        debt.paid.store(paid, Release);
    }
    drop(held);
    state.tasks.wake_sleepers();
    Ok(())
}

/// Notes what this process will owe once it has taken one more message. Under the get lock.
#[cold]
pub(super) fn note_taker(member: &Member, state: &QueueState) -> Result<()> {
    let (slot, of) = (u64::from(member.slot()), u64::from(member.generation()));
    let taken = state.debt(member, slot)?.taken.load(Relaxed);
    let before = if taken >> GENERATION == of {
        count(taken)
    } else {
        0
    };
    let next = of << GENERATION | u64::from(before.wrapping_add(1));
    state.tasks.taker.store(slot, Relaxed);
    state.tasks.next_taken.store(next, Relaxed);
    Ok(())
}

/// Brings the debt of whoever took the last message up to the consumers' position. Under the get lock.
#[cold]
pub(super) fn charge(member: &Member, state: &QueueState) -> Result<()> {
    let taker = state.tasks.taker.load(Relaxed);
    if taker != 0 {
        let taken = state.tasks.next_taken.load(Relaxed);
        state.debt(member, taker)?.taken.store(taken, Release);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Debt, GENERATION};
    use crate::sys::word::{Cell, Relaxed};
    use crate::{Arena, Deadline, Error, Queue};

    #[test]
    fn debts_that_lie_nowhere_are_an_error() {
        let arena = Arena::create().unwrap();
        let queue = Queue::joinable(&arena, None).unwrap();
        queue.put(0, &[b"task"], Deadline::NEVER).unwrap();
        queue.state().debts.store(u64::MAX - 7, Relaxed);
        let got = queue.get(Deadline::now());
        assert!(matches!(got, Err(Error::Poisoned { .. })), "{got:?}");
    }

    #[test]
    fn a_debt_is_its_generations_own() {
        let [taken, paid] = [(); 2].map(|()| Cell::default());
        let debt = Debt { taken, paid };
        let of = |generation: u64, count: u64| generation << GENERATION | count;
        debt.taken.store(of(7, 5), Relaxed);
        debt.paid.store(of(6, 4), Relaxed);
        assert_eq!([None, Some(7), Some(6)].map(|it| debt.owed(it)), [5, 5, 0]);
        debt.paid.store(debt.paid_with(2), Relaxed);
        assert_eq!(debt.paid.load(Relaxed), of(7, 2));
        assert_eq!(debt.owed(None), 3);
        debt.paid.store(of(7, 6), Relaxed);
        assert_eq!(debt.owed(None), 0, "more paid than taken");
        debt.taken.store(of(7, 1), Relaxed);
        debt.paid.store(of(7, u64::from(u32::MAX)), Relaxed);
        assert_eq!(debt.owed(None), 2, "counts go round");
        assert_eq!(debt.paid_with(2), of(7, 1));
    }
}
