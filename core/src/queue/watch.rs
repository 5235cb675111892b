//! Descriptors that say whether a queue has a message, or room, and the thread that keeps them right.
//!
//! A process that asks for one gets a [lamp](crate::shm::lamps), and has one thread for all of its lamps, its *watcher*,
//! which sleeps on the [bell](crate::shm::bell) of the process' slot. What it waits for it says in the queue's `watched`, so
//! that putters and getters whom nobody waits for pay one load of a cell that they touch anyway:
//!
//! ```text
//! bit of `watched`   some watcher's lamp   who rings the bells of the `watchers`, and then clears the bit
//! 1 MESSAGE          says: no message      who puts one, or closes
//! 2 EMPTY            says: a message       who gets the last one
//! 4 ROOM             says: no room         who gets one, or closes
//! 8 FULL             says: room            who puts the last one for which there is room
//! 16 and above       how often a watcher has said what it waits for
//! ```
//! A watcher stores its ticket in the bell, then sets its bits and counts, then looks once more, and sleeps if its lamps are
//! right. A ringer publishes, then loads `watched`: so it finds the bits, or the watcher finds what it published. It clears
//! bits only after it rang, and only if nobody has counted meanwhile: so a ringer that dies leaves them to the next one, and
//! none clears what it didn't ring for.
//!
//! A getter of a queue without a limit has no fence before that load, so where the processor lets loads go ahead it may miss
//! EMPTY: the lamp says that there is a message when there is none, until the watcher looks again, 50 ms after it lit a
//! lamp. What says that there is a message, or room, is never missed.

#[cfg(all(loom, test))]
mod orders;

use super::Queue;
use super::layout::QueueState;
use crate::shm::Arena;
use crate::shm::arena::Member;
use crate::shm::lamps::{Lamps, Tells};
use crate::shm::layout::OBJECT_HEADER;
use crate::shm::object;
use crate::shm::recovery::Gone;
use crate::shm::robust::LOOK_AGAIN;
use crate::sys::thread;
use crate::sys::word::{Acquire, Relaxed, SeqCst, fence};
use crate::{Deadline, Error, Result};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

const MESSAGE: u32 = 1;
const EMPTY: u32 = 2;
const ROOM: u32 = 4;
const FULL: u32 = 8;
/// One more time that a watcher says what it waits for.
const ONCE: u32 = 16;
/// Any of them.
pub(super) const ANY: u32 = ONCE - 1;

/// A descriptor of this process that says what a queue is ready for, for `poll`, `select`, `epoll` and what is built on
/// them.
///
/// It says nothing but that: nobody reads from it or writes to it. All that a process asks for of one queue are the same
/// descriptor. It holds the queue.
///
/// # Across processes
/// It is this process' own. Whoever puts or gets in whatever process, it is ready when the queue is; a moment later
/// than the queue, and for that moment it may be ready when the queue isn't any more.
///
/// # After fork
/// The child's copy tells of nothing that the child can rely on: it asks for its own.
///
/// Source: eventfd(2).
#[derive(Debug, Clone)]
pub struct Readiness {
    descriptor: Arc<OwnedFd>,
    _queue: Queue,
}

impl AsFd for Readiness {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl AsRawFd for Readiness {
    fn as_raw_fd(&self) -> RawFd {
        self.descriptor.as_raw_fd()
    }
}

impl Queue {
    /// A descriptor that can be read from while a message can be got, and once the queue is closed.
    ///
    /// Exact when this returns. The first call costs a descriptor, until this process lets go of the queue, and the first one
    /// of a process a thread, as long as it has such a descriptor. From then on whoever fills or empties the queue
    /// makes a system call or two.
    ///
    /// # Errors
    /// `Os` when the system refuses the descriptor or the thread.
    ///
    /// Python: `Queue._reader.fileno()`.
    pub fn readable(&self) -> Result<Readiness> {
        self.handle.member().judged(self.ask(Tells::Something))
    }

    /// A descriptor that can be written to while there is room for a message, and once the queue is closed.
    ///
    /// Costs and fails as [`readable`](Self::readable). For a queue without a limit, which always has room, it costs the
    /// descriptor and no more.
    ///
    /// # Errors
    /// As [`readable`](Self::readable).
    ///
    /// Python: `Queue._writer.fileno()`.
    pub fn writable(&self) -> Result<Readiness> {
        self.handle.member().judged(self.ask(Tells::Room))
    }

    fn ask(&self, tells: Tells) -> Result<Readiness> {
        let state = self.entered()?;
        let (member, offset) = (self.handle.member(), self.handle.name().offset);
        // Before anything of it stands in `watched`: who finds that there rings for it.
        let (cell, bit) = object::place(member.slot())?;
        state.watchers[cell].set_bits(bit);
        let queue = self.clone();
        let (_through, mut lamps) = member.lamps();
        let noted = offset + OBJECT_HEADER + QueueState::WATCHERS + 8 * cell as u64;
        let descriptor = lamps.descriptor(offset, noted, tells)?;
        let steady = set(state, offset, &mut lamps)?;
        if !lamps.watched && (tells == Tells::Something || state.is_bounded()) {
            let arena = self.handle.arena().clone();
            thread::spawn("queue-watch", move || watch(&arena))?;
            lamps.watched = true;
        } else if !steady {
            member.watcher()?.ring();
        }
        Ok(Readiness {
            descriptor,
            _queue: queue,
        })
    }

    /// Tells a consumer that sleeps, and watchers, of a message.
    #[inline]
    pub(super) fn ring_more(&self, state: &QueueState) {
        state.more.ring();
        // After the bell's fence, so that what was published is seen by a watcher whose bit isn't seen here.
        self.ring_watchers(state, MESSAGE | FULL);
    }

    /// Tells a producer that waits for room, and watchers, that a message is gone.
    #[inline]
    pub(super) fn ring_room(&self, state: &QueueState) {
        if state.is_bounded() {
            state.room.ring();
        }
        self.ring_watchers(state, EMPTY | ROOM);
    }

    #[inline]
    fn ring_watchers(&self, state: &QueueState, bits: u32) {
        if state.watched.load(Relaxed) & bits != 0 {
            let member = self.handle.member();
            // What was put is in the queue, and what was got is the caller's, whatever is wrong with the arena: the next call says so.
            let _ = member.judged(tell(member, self.handle.name().offset, state, bits));
        }
    }
}

impl QueueState {
    #[inline]
    fn is_bounded(&self) -> bool {
        self.capacity.load(Relaxed) != 0
    }

    fn has_message(&self) -> bool {
        self.put.count.load(Acquire) > self.get.count.load(Acquire)
            || self.closed.load(Acquire) != 0
    }

    /// What a lamp has to show.
    fn lights(&self, tells: Tells) -> bool {
        match tells {
            Tells::Something => self.has_message(),
            Tells::Room => self.has_room(),
        }
    }

    /// What a watcher waits for as long as a lamp shows that.
    fn awaited(&self, tells: Tells, lit: bool) -> u32 {
        match (tells, lit) {
            (Tells::Something, false) => MESSAGE,
            (Tells::Something, true) => EMPTY,
            (Tells::Room, _) if !self.is_bounded() => 0,
            (Tells::Room, false) => ROOM,
            (Tells::Room, true) => FULL,
        }
    }

    /// What has come that a watcher may wait for.
    fn come(&self) -> u32 {
        let message = if self.has_message() { MESSAGE } else { EMPTY };
        message | if self.has_room() { ROOM } else { FULL }
    }

    /// Says that a watcher waits for something.
    fn await_all(&self, bits: u32) {
        if bits == 0 {
            return;
        }
        loop {
            let before = self.watched.load(Relaxed);
            if self
                .watched
                .replace(before, before.wrapping_add(ONCE) | bits)
            {
                return;
            }
        }
    }

    /// Rings for each process that has asked, but one.
    fn ring_all(&self, member: &Member, but: u32) -> Result<()> {
        for (cell, first) in self.watchers.iter().zip((0..).step_by(64)) {
            let mut bits = cell.load(Acquire);
            while bits != 0 {
                let slot = first + bits.trailing_zeros();
                bits &= bits - 1;
                if slot != but {
                    member.slot_at(slot)?.watcher.ring();
                }
            }
        }
        Ok(())
    }
}

/// Tells watchers of what has come of these bits, if one waits for it.
#[cold]
pub(super) fn tell(member: &Member, offset: u64, state: &QueueState, bits: u32) -> Result<()> {
    let watched = state.watched.load(Acquire);
    let come = watched & bits & state.come();
    if come == 0 {
        return Ok(());
    }
    let me = member.slot();
    state.ring_all(member, me)?;
    state.watched.replace(watched, watched & !come);
    let is_asker = |(cell, bit): (usize, u64)| state.watchers[cell].load(Relaxed) & bit != 0;
    if !object::place(me).is_ok_and(is_asker) {
        return Ok(());
    }
    // Whoever looks in this process, right after the call that has led here, finds the lamp right.
    let (_through, mut lamps) = member.lamps();
    if !set(state, offset, &mut lamps)? {
        member.watcher()?.ring();
    }
    Ok(())
}

/// Rings for whoever watches the queue, for good.
pub(super) fn wake(member: &Member, state: &QueueState) -> Result<()> {
    state.ring_all(member, 0)
}

/// Forgets that a process that is gone has asked.
pub(super) fn forget(member: &Member, queue: u64, gone: Gone) -> Result<()> {
    let state: &QueueState = member.at(queue + OBJECT_HEADER)?;
    let (cell, bit) = object::place(gone.slot)?;
    state.watchers[cell].clear_bits(bit);
    Ok(())
}

/// Has this process' lamps of a queue show what is so, and says what is waited for from then on; false when the watcher must
/// look again.
fn set(state: &QueueState, offset: u64, lamps: &mut Lamps) -> Result<bool> {
    let Some(mine) = lamps.of(offset) else {
        return Ok(true);
    };
    let mut fresh = false;
    for lamp in &mut *mine {
        let lit = state.lights(lamp.tells);
        fresh |= lit && !lamp.is_lit;
        // Before it is lit: who gets because it is finds that somebody waits to hear of that.
        state.await_all(state.awaited(lamp.tells, lit));
        lamp.show(lit)?;
    }
    // The other half of the ringer's fence: what is looked at now is looked at after the bits are there.
    fence(SeqCst);
    let mut right = mine
        .iter()
        .map(|lamp| state.lights(lamp.tells) == lamp.is_lit);
    let steady = right.all(|right| right) && !fresh;
    lamps.fresh |= fresh;
    Ok(steady)
}

/// Keeps the lamps of this process right, until there are none.
fn watch(arena: &Arena) {
    let member = &*arena.inner;
    let mut again = false;
    while !is_over(member) {
        match watch_once(member, again) {
            Ok(found) => again = found,
            Err(_) => return give_up(member),
        }
    }
}

/// Whether there are no lamps any more. The last thing that a watcher does: whoever asks next starts another one, which has
/// the bell to itself.
fn is_over(member: &Member) -> bool {
    let (_through, mut lamps) = member.lamps();
    lamps.watched = !lamps.is_empty();
    !lamps.watched
}

/// One look, and one sleep if all lamps are right: for a moment only, if it is to look `again`. Says whether it is to look
/// again after this one.
fn watch_once(member: &Member, again: bool) -> Result<bool> {
    let deadline = if again {
        Deadline::after(LOOK_AGAIN)
    } else {
        Deadline::NEVER
    };
    let mut found = false;
    let look = || {
        found = !look(member)?;
        Ok(found)
    };
    match member.watcher()?.sleep_unless(look, deadline) {
        Ok(_) | Err(Error::Interrupted) => Ok(found),
        Err(error) => Err(error),
    }
}

/// Sets all lamps; false if one was lit, or went wrong meanwhile, or there are none.
fn look(member: &Member) -> Result<bool> {
    let (_through, mut lamps) = member.lamps();
    // Whoever poisons the arena rings after that.
    member.sound()?;
    let mut right = !std::mem::take(&mut lamps.fresh) && !lamps.is_empty();
    for offset in lamps.offsets() {
        let state: &QueueState = member.at(offset + OBJECT_HEADER)?;
        right &= set(state, offset, &mut lamps)?;
    }
    Ok(right)
}

/// Lights all lamps, since nobody keeps them right any more: whoever then puts or gets is told what is wrong.
fn give_up(member: &Member) {
    let (_through, mut lamps) = member.lamps();
    lamps.watched = false;
    lamps.light_all();
}
