//! What lies where in the arena. `docs/shm.md` draws it; the sizes are checked here.

use super::bell::Bell;
use super::robust::RobustLock;
use super::view::shared;
use crate::sys::robust::Node;
use crate::sys::word::{Cell, Word};

const _: () = assert!(
    size_of::<usize>() == 8,
    "offsets are 64 bits, and so must addresses be"
);

/// A number of shared memory as an index or a length of this process'.
#[inline]
#[allow(
    clippy::cast_possible_truncation,
    reason = "both are 64 bits, checked above"
)]
pub(crate) fn index(number: u64) -> usize {
    number as usize
}

/// `processn`, as the first eight bytes of an arena.
pub(crate) const MAGIC: u64 = u64::from_le_bytes(*b"processn");
/// Changes with any change of what `docs/shm.md` draws.
pub(crate) const LAYOUT: u32 = 5;

/// A number for the sources of this build: processes of another one may mean other things by the same bytes.
pub(crate) fn build() -> u64 {
    env!("PROCESSION_BUILD").parse().unwrap_or(0)
}

/// Bytes of a page, the unit in which memory is given out.
pub(crate) const PAGE: u64 = 4096;
/// Bytes of the first window; the next has as many, and each one after that twice as many as the one before.
const WINDOW_FIRST: u64 = 1 << 20;
/// Windows that an arena can have: one TiB in all.
pub(crate) const WINDOWS: usize = 21;

/// The window that an offset lies in.
#[inline]
pub(crate) fn window_of(offset: u64) -> usize {
    (u64::BITS - (offset / WINDOW_FIRST).leading_zeros()) as usize
}

/// The offset at which a window begins.
#[inline]
pub(crate) fn window_start(window: usize) -> u64 {
    if window == 0 {
        0
    } else {
        WINDOW_FIRST << (window - 1)
    }
}

/// The bytes of a window.
#[inline]
pub(crate) fn window_bytes(window: usize) -> u64 {
    if window == 0 {
        WINDOW_FIRST
    } else {
        WINDOW_FIRST << (window - 1)
    }
}

/// Processes that can be in a tree at once, less one: slot 0 is nobody's.
pub(crate) const SLOTS: u32 = 1024;
/// Words of 64 bits in which each slot has a bit.
pub(crate) const HOLDER_CELLS: usize = (SLOTS / 64) as usize;
/// Freed runs that are remembered for those who want as many pages.
pub(crate) const RECENT: usize = 16;
/// Pages of a slab, which begins at a multiple of as many.
pub(crate) const SLAB_PAGES: u64 = 16;
/// Size classes of blocks: 256 bytes, and each one twice the one before.
pub(crate) const CLASSES: usize = 5;

/// Bytes of the text that says what has poisoned the arena.
pub(crate) const POISON_TEXT: usize = 64;

shared! {
    /// The first 2 KiB of the arena.
    Header: 2048 {
        /// [`MAGIC`].
        magic: Cell,
        /// [`LAYOUT`].
        layout: Word,
        _pad: Word,
        /// 128 random bits, by which a child knows its parent's arena.
        id: [Cell; 2],
        /// Slots ever taken are below this number.
        slots_used: Word,
        _pad_2: Word,
        /// [`build`].
        build: Cell,
        _unused: [Word; 4],
        /// Held by who claims or recovers slots.
        registry: RobustLock,
        /// Held by who changes the page tables, the slabs or what these cells say.
        allocator: RobustLock,
        /// Windows that exist.
        windows: Cell,
        /// The serial number of the object made last.
        serial: Cell,
        /// Offset of the object that is being destroyed; 0: none.
        destroying: Cell,
        /// Free pages that have memory. A hint: counted anew by repair.
        warm_pages: Cell,
        /// The page at which the next search begins. A hint.
        cursor: Cell,
        /// For each size class an offset of a slab that may have room. A hint.
        slab_hints: [Cell; CLASSES],
        /// Offsets of runs freed last, newest first from `recent_next` down. Hints.
        recent: [Cell; RECENT],
        recent_next: Cell,
        /// Not zero: the arena has contradicted itself.
        poison: Word,
        _pad_3: Word,
        /// What contradicted itself, in UTF-8, up to the first zero.
        poison_text: [Cell; POISON_TEXT / 8],
        /// Objects that may have become garbage since the last trace. A hint: repair has the next one look.
        loose: Cell,
        /// At so many of them whoever lets go of an object traces. A hint.
        loose_limit: Cell,
        _reserved: [Cell; 194],
    }
}

shared! {
    /// One process' place in the tree.
    Slot: 128 {
        /// Held, in the kernel's format, by the first thread of the process as long as it lives.
        life: Node,
        /// One of [`state`].
        state: Word,
        /// Counts the processes that had this slot, so that an owner is never mistaken for a later one.
        generation: Word,
        /// The process' id.
        pid: Word,
        /// The slot of the process that claimed this one for a child.
        parent: Word,
        /// When the process started, in clock ticks after boot.
        started: Cell,
        /// The id of the thread that holds the life word.
        thread: Word,
        /// One of [`signed`]: whether a forked child is to come, which holds a [sign](crate::sys::fork::Sign) until it has
        /// settled.
        signed: Word,
        /// Where the process' first stack begins; another one after exec. 0: not known.
        stack: Cell,
        /// Rung for the thread that keeps the process' [lamps](super::lamps) right.
        watcher: Bell,
        _unused: [Word; 10],
    }
}

/// What a slot's `state` says. `docs/shm.md` has the table of who may change it to what.
pub(crate) mod state {
    /// Nobody's.
    pub(crate) const FREE: u32 = 0;
    /// Claimed by a process for its child, which has not taken it over yet.
    pub(crate) const RESERVED: u32 = 1;
    /// A process has it.
    pub(crate) const LIVE: u32 = 2;
    /// Its process ran the exit hook: what it still holds, it leaves held.
    pub(crate) const LEFT: u32 = 3;
    /// What its process held is being given back.
    pub(crate) const DEAD: u32 = 4;
}

/// What a RESERVED slot's `signed` says: what its child's life hangs on until it has settled.
pub(crate) mod signed {
    /// On its parent, who starts it by exec.
    pub(crate) const NOT: u32 = 0;
    /// On the sign alone: it was forked.
    pub(crate) const FORKED: u32 = 1;
    /// On the sign, if anybody has it, else on who keeps the place: somebody else forks it.
    pub(crate) const ADOPTED: u32 = 2;
}

shared! {
    /// What every object begins with; its own state follows.
    ObjectHeader: 192 {
        /// One of [`kind`].
        kind: Word,
        /// Not zero: its name went where it can't be traced, so it lives on without a holder.
        escaped: Word,
        /// Its number among all objects ever made here: a name with another number is stale.
        serial: Cell,
        /// Not zero: runs may be linked to it, and go with it.
        runs: Word,
        /// Not zero: a message may name it, so that it lives on without a holder as long as one does.
        sent: Word,
        /// Not zero: messages in it may name objects.
        carries: Word,
        _pad: Word,
        _unused: [Cell; 4],
        /// A bit for each slot whose process holds the object.
        holders: [Cell; HOLDER_CELLS],
    }
}

/// Bytes before an object's own state.
pub(crate) const OBJECT_HEADER: u64 = size_of::<ObjectHeader>() as u64;

/// What an object is.
pub(crate) mod kind {
    pub(crate) const LOCK: u32 = 1;
    pub(crate) const QUEUE: u32 = 2;
    pub(crate) const CLAIM: u32 = 3;
    pub(crate) const RLOCK: u32 = 4;
    pub(crate) const SEMAPHORE: u32 = 5;
    pub(crate) const CONDITION: u32 = 6;
    pub(crate) const EVENT: u32 = 7;
    pub(crate) const BARRIER: u32 = 8;
    pub(crate) const MEMORY: u32 = 10;
    pub(crate) const PIPE: u32 = 11;
}

/// Where the slots begin.
pub(crate) const SLOTS_START: u64 = PAGE;
/// Where the page table of the first window begins: behind the header.
const FIRST_TABLE: u64 = size_of::<Header>() as u64;
/// Pages of the first window that are taken by the header, its page table and the slots.
pub(crate) const FIRST_RESERVED: u64 = 1 + SLOTS as u64 * size_of::<Slot>() as u64 / PAGE;
/// Pages of the first window that have memory from the start.
pub(crate) const FIRST_ALLOCATED: u64 = 64;

/// Where a window's page table begins: at its start, but for the first one, which has the header there.
pub(crate) fn table_start(window: usize) -> u64 {
    if window == 0 {
        FIRST_TABLE
    } else {
        window_start(window)
    }
}

/// Where the entry of a page lies, by the page's number in the arena.
pub(crate) fn entry_place(page: u64) -> u64 {
    let window = window_of(page * PAGE);
    table_start(window) + (page - window_start(window) / PAGE) * 8
}

/// Pages that a window's page table takes.
pub(crate) fn table_pages(window: usize) -> u64 {
    if window == 0 {
        FIRST_RESERVED
    } else {
        (window_bytes(window) / PAGE * 8).div_ceil(PAGE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_lie_side_by_side() {
        for window in 0..WINDOWS {
            let (start, bytes) = (window_start(window), window_bytes(window));
            assert_eq!(window_of(start), window);
            assert_eq!(window_of(start + bytes - 1), window);
            assert_eq!(window_start(window + 1), start + bytes);
        }
        assert!(window_of(window_start(WINDOWS)) >= WINDOWS && window_of(u64::MAX) >= WINDOWS);
    }

    #[test]
    fn each_table_has_an_entry_for_each_page_of_its_window() {
        for window in 0..WINDOWS {
            let (start, pages) = (window_start(window), table_pages(window));
            let end = table_start(window) + window_bytes(window) / PAGE * 8;
            assert!(end <= start + pages * PAGE && pages * PAGE < window_bytes(window));
        }
        assert!(table_start(0) + window_bytes(0) / PAGE * 8 <= SLOTS_START);
        const { assert!(FIRST_RESERVED < FIRST_ALLOCATED) };
    }
}
