//! This process' membership in the arena of its tree.

use super::bell::Bell;
use super::family::{self, Adoption, Placeless};
use super::lamps::Lamps;
use super::layout::{
    FIRST_ALLOCATED, FIRST_RESERVED, Header, LAYOUT, MAGIC, PAGE, SLOTS, Slot, WINDOWS, build,
    state, window_bytes,
};
use super::object::References;
use super::pages::Entry;
use super::recovery::Recovery;
use super::robust::{Held, turn};
use super::slots::{self, Place};
use super::view::{Shared, Windows};
use crate::sys::gate::Through;
use crate::sys::word::{Acquire, Relaxed, Release};
use crate::sys::{identity, mapping, robust};
use crate::{Deadline, Error, Result};
use std::os::fd::{AsFd, BorrowedFd, IntoRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// What [`settle_in`](Member::settle_in) says of a place that isn't kept any more.
const GONE: Error = Error::Misuse {
    what: "the place kept for this process is gone",
};

/// The memory that a tree of processes shares, and this process' place among them.
///
/// One sealed memfd a tree; everything in it is named by an offset, so an object costs no descriptor and no name in
/// a file system. A clone is one more reference to the same membership.
///
/// # Across processes
/// A child that is started by exec attaches with the token of a [`ChildSlot`](super::ChildSlot).
///
/// # After fork
/// The child of any fork(2) that goes through the C library is a member of its own, and holds what its parent held.
///
/// Source: memfd_create(2); `docs/shm.md`.
#[derive(Debug, Clone)]
pub struct Arena {
    pub(crate) inner: Arc<Member>,
}

/// What an [`Arena`] refers to.
#[derive(Debug)]
pub(crate) struct Member {
    windows: Windows,
    /// What the layers above do to their objects when a process dies.
    recoveries: &'static [Recovery],
    /// This process' slot.
    slot: AtomicU32,
    /// The slot's generation.
    generation: AtomicU32,
    /// What this process refers to.
    references: Mutex<References>,
    /// Its descriptors that tell of objects.
    lamps: Mutex<Lamps>,
    /// Some of that is to be given back, as soon as the allocator's lock can be had.
    owes: AtomicBool,
    /// What has poisoned the arena, once this process has noticed.
    poison: OnceLock<&'static str>,
}

impl Arena {
    /// Makes a new arena, with this process as its first member; `recoveries` are what the layers above do to their
    /// objects when a process dies.
    pub(crate) fn found(recoveries: &'static [Recovery]) -> Result<Self> {
        let arena = Self::lay_out(recoveries)?;
        // Nobody else is there yet, so nobody is waited for.
        let (slot, generation) = slots::claim(&arena.inner, 0, None, Deadline::NEVER)?;
        arena.inner.settle_in(slot, generation, Deadline::NEVER)?;
        family::enter(&arena.inner);
        Ok(arena)
    }

    /// Makes the memory of a new arena, which has no member yet.
    pub(super) fn lay_out(recoveries: &'static [Recovery]) -> Result<Self> {
        let file = mapping::create()?;
        mapping::lengthen(&file, window_bytes(0))?;
        mapping::allocate(&file, 0, FIRST_ALLOCATED * PAGE)?;
        let member = Member::new(file, recoveries);
        let header = member.header()?;
        let pages = window_bytes(0) / PAGE;
        member
            .entry(FIRST_ALLOCATED)?
            .store(Entry::cold(pages - FIRST_ALLOCATED).bits(), Relaxed);
        member.entry(FIRST_RESERVED)?.store(
            Entry::warm(FIRST_ALLOCATED - FIRST_RESERVED).bits(),
            Relaxed,
        );
        member
            .entry(0)?
            .store(Entry::reserved(FIRST_RESERVED).bits(), Relaxed);
        header
            .warm_pages
            .store(FIRST_ALLOCATED - FIRST_RESERVED, Relaxed);
        header.windows.store(1, Relaxed);
        let [low, high] = identity::random();
        header.id[0].store(low, Relaxed);
        header.id[1].store(high, Relaxed);
        header.layout.store(LAYOUT, Relaxed);
        header.build.store(build(), Relaxed);
        header.magic.store(MAGIC, Release);
        Ok(Self {
            inner: Arc::new(member),
        })
    }

    /// Joins the arena that a token names, as [`attach`](Self::attach) says.
    pub(crate) fn join(token: &str, recoveries: &'static [Recovery]) -> Result<Self> {
        const TOKEN: Error = Error::Malformed {
            what: "token of an arena",
            at: 0,
        };
        const OTHER: Error = Error::Misuse {
            what: "the inherited descriptor is not the arena that the token names",
        };
        let (descriptor, place) = token.split_once(':').ok_or(TOKEN)?;
        let descriptor = descriptor.parse().map_err(|_| TOKEN)?;
        let place = Place::parse(place).ok_or(TOKEN)?;
        let file = mapping::inherit(descriptor)?;
        if mapping::extent(&file)?.length < window_bytes(0) {
            return Err(OTHER);
        }
        let arena = Self {
            inner: Arc::new(Member::new(mapping::copy(&file)?, recoveries)),
        };
        let header = arena.inner.header()?;
        if header.magic.load(Acquire) != MAGIC || arena.inner.id()? != place.id {
            return Err(OTHER);
        }
        if header.layout.load(Relaxed) != LAYOUT || header.build.load(Relaxed) != build() {
            return Err(Error::Misuse {
                what: "the inherited arena was made by another build of procession",
            });
        }
        arena.inner.sound()?;
        let settled = arena.inner.settle_at(place, turn());
        if settled == Err(Error::Interrupted) {
            // The call is to be made again with the same token, so the descriptor stays open.
            let _ = file.into_raw_fd();
        }
        settled?;
        family::enter(&arena.inner);
        Ok(arena)
    }

    /// Has the calling thread fork children that have no place in the tree, as long as what this returns lives: they can use
    /// nothing of the tree's memory before they [take](Self::take_place) a place that somebody keeps for them.
    #[must_use]
    pub fn placeless(&self) -> Placeless {
        family::placeless(&self.inner)
    }

    /// What will tie a place to the next child that this process forks, which gets a copy.
    #[must_use]
    pub fn adoption(&self) -> Adoption {
        family::adoption(&self.inner)
    }

    /// Gives a place that another process of the tree [keeps](super::ChildSlot::place) to a child of this one, with all that is
    /// held for it there, and with what this process holds now. From now on the place is the child's as long as that lives, whatever
    /// becomes of its keeper.
    ///
    /// # Errors
    /// `Misuse` for a place in another arena, or one that isn't kept any more.
    pub fn adopt(&self, place: Place, adoption: &Adoption) -> Result<()> {
        self.inner.is_here(place)?;
        family::adopt(&self.inner, place, adoption)
    }

    /// In a child that was forked [without a place](Self::placeless): takes the one that was [adopted](Self::adopt) for it.
    ///
    /// If that is gone, since who kept it was gone first, this process gets one of its own, and holds what its parent holds.
    ///
    /// # Errors
    /// `Misuse` for a place in another arena, or one that somebody else has taken; `Closed` when its parent has let go of
    /// something since; `Exhausted` when there is no place; `Interrupted` when the tree's memory can't be had for a second.
    pub fn take_place(&self, place: Place) -> Result<()> {
        self.inner.is_here(place)?;
        family::take_place(&self.inner, place)
    }

    /// A random number of the tree's, the same in all its processes: what names of objects are good in.
    ///
    /// # Errors
    /// `Os` when its window can't be mapped.
    pub fn id(&self) -> Result<u64> {
        let [low, _] = self.inner.id()?;
        Ok(low)
    }

    /// The memfd, for a child that is to inherit it. Closed on exec.
    #[must_use]
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.inner.windows.file().as_fd()
    }

    /// Marks this process as leaving normally: locks that it holds stay held, as the standard has it; every other
    /// end is a death. Called by an exit hook; what it holds is given back once it is gone.
    pub fn leave(&self) {
        if let Ok(slot) = self.inner.slot_at(self.inner.slot()) {
            slot.state.replace(state::LIVE, state::LEFT);
        }
    }

    /// Gives back what processes held that are gone by now, and frees their slots. Whoever waits for something does
    /// this by itself; a parent that has just reaped a child calls it so that memory doesn't wait for the next one.
    ///
    /// While another process is stopped in the middle of the same it gives up after 50 ms: that one, or who comes
    /// next, goes on with it.
    ///
    /// # Errors
    /// `Poisoned` when the arena contradicts itself, `Interrupted` when a signal handler ran while it waited.
    pub fn reap(&self) -> Result<()> {
        self.inner.sound()?;
        self.inner.judged(super::recovery::reap(&self.inner))
    }
}

impl Member {
    pub(super) fn new(file: OwnedFd, recoveries: &'static [Recovery]) -> Self {
        Self {
            windows: Windows::new(file),
            recoveries,
            slot: AtomicU32::new(0),
            generation: AtomicU32::new(0),
            references: Mutex::default(),
            lamps: Mutex::default(),
            owes: AtomicBool::new(false),
            poison: OnceLock::new(),
        }
    }

    pub(super) fn poison_text(&self) -> &OnceLock<&'static str> {
        &self.poison
    }

    pub(super) fn recoveries(&self) -> &'static [Recovery] {
        self.recoveries
    }

    /// What this process refers to, for as long as both are kept.
    pub(super) fn references(&self) -> (Through<'_>, MutexGuard<'_, References>) {
        let through = self.windows.gate().pass();
        (through, self.references_inside())
    }

    /// As [`references`](Self::references), if nobody else is at them.
    pub(super) fn try_references(&self) -> Option<(Through<'_>, MutexGuard<'_, References>)> {
        let through = self.windows.gate().try_pass()?;
        Some((through, self.references_inside()))
    }

    /// This process' lamps, for as long as both are kept.
    pub(crate) fn lamps(&self) -> (Through<'_>, MutexGuard<'_, Lamps>) {
        let through = self.windows.gate().pass();
        (through, self.lamps_inside())
    }

    /// As [`lamps`](Self::lamps), for who has closed the gate already.
    pub(super) fn lamps_inside(&self) -> MutexGuard<'_, Lamps> {
        self.lamps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What wakes the thread that keeps them right.
    pub(crate) fn watcher(&self) -> Result<&Bell> {
        Ok(&self.slot_at(self.slot())?.watcher)
    }

    /// Whether this process has something to give back.
    #[inline]
    pub(super) fn owes(&self) -> bool {
        self.owes.load(Relaxed)
    }

    pub(super) fn owe(&self, owes: bool) {
        self.owes.store(owes, Relaxed);
    }

    /// As [`references`](Self::references), for who has closed the gate already.
    pub(super) fn references_inside(&self) -> MutexGuard<'_, References> {
        self.references
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn windows(&self) -> &Windows {
        &self.windows
    }

    /// The value of type `T` at `offset`.
    #[inline]
    pub(crate) fn at<T: Shared>(&self, offset: u64) -> Result<&T> {
        self.windows.at(offset)
    }

    #[inline]
    pub(crate) fn header(&self) -> Result<&Header> {
        self.windows.header()
    }

    /// The registry's lock, inside which others may be taken; `None` once the deadline has passed. A death inside
    /// leaves nothing to repair: a slot changes hands by one store, and a recovery is begun again.
    pub(super) fn registry(&self, deadline: Deadline) -> Result<Option<Held<'_>>> {
        let mut held = self.header()?.registry.lock_outer(deadline)?;
        if let Some(held) = &mut held {
            held.recovered = false;
        }
        Ok(held)
    }

    /// The arena's random number.
    pub(super) fn id(&self) -> Result<[u64; 2]> {
        let [low, high] = &self.header()?.id;
        Ok([low.load(Relaxed), high.load(Relaxed)])
    }

    /// The number of this process' slot.
    #[inline]
    pub(crate) fn slot(&self) -> u32 {
        self.slot.load(Relaxed)
    }

    /// The number of this process' slot, for what only a member may do.
    ///
    /// # Errors
    /// `Misuse` in a forked child for which the tree had no place: it shares nothing with its parent. `Poisoned` once the
    /// arena has contradicted itself.
    #[inline]
    pub(crate) fn place(&self) -> Result<u32> {
        self.sound()?;
        match self.slot() {
            0 => Err(Error::Misuse {
                what: "this forked process has no place in the tree of its parent",
            }),
            slot => Ok(slot),
        }
    }

    /// Forgets the slot, which is the parent's: in a forked child, before it takes one over.
    pub(super) fn forget_place(&self) {
        self.slot.store(0, Relaxed);
        self.generation.store(0, Relaxed);
    }

    /// The generation of this process' slot.
    #[inline]
    pub(crate) fn generation(&self) -> u32 {
        self.generation.load(Relaxed)
    }

    pub(crate) fn slot_at(&self, slot: u32) -> Result<&Slot> {
        if slot >= SLOTS {
            return Err(Error::Broken {
                what: "the number of a slot",
            });
        }
        self.windows.at(slots::place(slot))
    }

    /// Windows that exist now.
    pub(crate) fn window_count(&self) -> Result<usize> {
        let count = self.header()?.windows.load(Acquire);
        usize::try_from(count)
            .ok()
            .filter(|count| (1..=WINDOWS).contains(count))
            .ok_or(Error::Broken {
                what: "the number of windows",
            })
    }

    /// Whether a place is one of this arena's.
    fn is_here(&self, place: Place) -> Result<()> {
        if self.id()? == place.id {
            return Ok(());
        }
        Err(Error::Misuse {
            what: "the place that a child is to take lies in another tree",
        })
    }

    /// Takes over the place that was kept for this process. If that is gone, since who kept it is, this process gets one of
    /// its own, and what was held for it there may be gone.
    pub(super) fn settle_at(&self, place: Place, deadline: Deadline) -> Result<()> {
        match self.settle_in(place.slot, place.generation, deadline) {
            Err(GONE) if !self.was_taken(place)? => {}
            settled => return settled,
        }
        let (slot, generation) = slots::claim(self, 0, None, deadline)?;
        let settled = self.settle_in(slot, generation, deadline);
        if settled.is_err() {
            slots::give_back(self, slot, generation)?;
        }
        settled
    }

    /// Whether a process has taken over that place, and still has it.
    fn was_taken(&self, place: Place) -> Result<bool> {
        let slot = self.slot_at(place.slot)?;
        let is_taken = [state::LIVE, state::LEFT].contains(&slot.state.load(Acquire));
        Ok(is_taken && slot.generation.load(Relaxed) == place.generation)
    }

    /// Takes over a slot that was reserved for this process: from now on it lives as long as the calling thread's
    /// process does. Under the registry's lock, so that the reservation can't go, and the slot to another, meanwhile.
    ///
    /// # Errors
    /// `Misuse` when the reservation is gone; `Interrupted` when the deadline has passed, or a signal handler ran.
    pub(crate) fn settle_in(&self, number: u32, generation: u32, deadline: Deadline) -> Result<()> {
        let thread = robust::this_thread();
        let slot = self.slot_at(number)?;
        let origin = identity::origin();
        let _held = self.registry(deadline)?.ok_or(Error::Interrupted)?;
        if slot.state.load(Acquire) != state::RESERVED
            || slot.generation.load(Relaxed) != generation
        {
            // Somebody has it, perhaps: nothing of it is touched.
            return Err(GONE);
        }
        slot.be(origin);
        slot.live_by(thread);
        if !slot.state.replace(state::RESERVED, state::LIVE) {
            thread.unlink(&slot.life);
            return Err(GONE);
        }
        self.have_place(number, generation);
        Ok(())
    }

    /// Says that the slot is this process'.
    pub(super) fn have_place(&self, number: u32, generation: u32) {
        self.slot.store(number, Relaxed);
        self.generation.store(generation, Relaxed);
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        if self.slot() == 0 {
            return;
        }
        let Ok(slot) = self.slot_at(self.slot()) else {
            return;
        };
        // The kernel must not follow a link into a window that is gone. One in the list of another thread stays
        // there until that thread ends, so its window stays too.
        let thread = robust::this_thread();
        // Out of the list and not marked yet, the word would say for ever that this process lives.
        thread.announce(&slot.life.word);
        let unlinked = thread.unlink(&slot.life);
        slot.state.replace(state::LIVE, state::LEFT);
        if unlinked {
            slot.life.word.store(robust::OWNER_DIED, Release);
        }
        thread.withdraw();
        if !unlinked {
            // Nor may the slot go to another process, which would write its own links there.
            self.windows.keep_mapped();
        }
    }
}
