//! The robust list of the calling thread: how the kernel learns which words to mark when the thread dies.
//!
//! The list belongs to the C library, which made it for robust mutexes; its layout is part of the kernel's
//! interface, and where the C library keeps it is asked, not assumed. A thread has a *pending* entry, good for the
//! one internal lock that it takes or holds, set by two plain stores; and the list itself, for words that are held
//! longer. At the thread's exit, kill or exec the kernel marks each word that still has the thread's id with
//! `OWNER_DIED` and wakes one sleeper. Source: get_robust_list(2), Documentation/locking/robust-futex-ABI.rst.
#![allow(
    unsafe_code,
    reason = "the list is the C library's memory, at addresses that the kernel tells"
)]

use super::word::{Cell, Word};
use std::cell::Cell as Local;
use std::sync::atomic::{Ordering, compiler_fence};

/// In a word of the kernel's format: somebody sleeps on it.
pub(crate) const WAITERS: u32 = 0x8000_0000;
/// The thread whose id stood here died.
pub(crate) const OWNER_DIED: u32 = 0x4000_0000;
/// The thread's id.
pub(crate) const TID: u32 = 0x3fff_ffff;

/// From an entry of the list to its word, in bytes: the C library's mutex has its word 32 bytes before its link.
const WORD_FROM_LINK: isize = -32;

/// The kernel's `struct robust_list_head`.
#[repr(C)]
struct Head {
    next: usize,
    word_from_link: isize,
    pending: usize,
}

/// A word with the links that the list needs behind it, at the distances that the C library chose.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Node {
    /// The word that the kernel marks.
    pub(crate) word: Word,
    _unused: [Word; 5],
    previous: Cell,
    next: Cell,
}

const _: () = assert!(size_of::<Node>() == 40);
const _: () = assert!(std::mem::offset_of!(Node, next) == WORD_FROM_LINK.unsigned_abs());

thread_local! {
    /// The thread's id and the address of its list's head; zero where there is no list that we can use.
    static THREAD: Local<(u32, usize)> = const { Local::new((0, 0)) };
}

impl Node {
    /// Makes it one that no thread has linked.
    pub(crate) fn clear(&self) {
        self.word.store(0, Ordering::Relaxed);
        self.next.store(0, Ordering::Relaxed);
    }

    /// Whether a thread has it, or had it, in a list: the kernel will mark it, or has.
    pub(crate) fn is_linked(&self) -> bool {
        self.next.load(Ordering::Relaxed) != 0
    }
}

/// The calling thread, as the kernel knows it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Thread {
    tid: u32,
    head: usize,
}

/// The calling thread; two loads after the first call.
#[inline]
pub(crate) fn this_thread() -> Thread {
    let (tid, head) = THREAD.get();
    if tid != 0 {
        Thread { tid, head }
    } else {
        look()
    }
}

/// Forgets what is known of the calling thread, which has become another one: the first of a forked child.
pub(crate) fn forked() {
    THREAD.set((0, 0));
    // The C library empties the list in the child, but leaves what was pending.
    this_thread().set_pending(0);
}

#[cold]
fn look() -> Thread {
    let tid = rustix::thread::gettid()
        .as_raw_nonzero()
        .get()
        .cast_unsigned();
    let mut head: *mut Head = std::ptr::null_mut();
    let mut bytes: usize = 0;
    // SAFETY: the kernel writes one pointer and one length to the two places given.
    let result =
        unsafe { libc::syscall(libc::SYS_get_robust_list, 0, &raw mut head, &raw mut bytes) };
    let usable = result == 0
        && bytes == size_of::<Head>()
        && !head.is_null()
        // SAFETY: list-is-the-thread's: a head of that size, registered for this thread, lives as long as it does.
        && unsafe { (*head).word_from_link } == WORD_FROM_LINK;
    let head = if usable { head.addr() } else { 0 };
    THREAD.set((tid, head));
    Thread { tid, head }
}

impl Thread {
    /// The thread's id.
    #[inline]
    pub(crate) fn tid(self) -> u32 {
        self.tid
    }

    /// Says that this thread is about to take, holds or is about to free `word`.
    #[inline]
    pub(crate) fn announce(self, word: &Word) {
        self.set_pending(word.address().wrapping_add_signed(-WORD_FROM_LINK));
    }

    /// Says that it no longer does.
    #[inline]
    pub(crate) fn withdraw(self) {
        self.set_pending(0);
    }

    #[inline]
    fn set_pending(self, link: usize) {
        if self.head != 0 {
            // The kernel reads the list at the thread's death, when all its stores are visible in program order:
            // only the compiler must keep that order.
            compiler_fence(Ordering::SeqCst);
            let head = std::ptr::with_exposed_provenance_mut::<Head>(self.head);
            // SAFETY: list-is-the-thread's: only this thread and the kernel at its death use the head.
            unsafe { (&raw mut (*head).pending).write_volatile(link) };
            compiler_fence(Ordering::SeqCst);
        }
    }

    /// Puts `node`, whose word holds this thread's id, at the front of the thread's list. It stays mapped and in the
    /// list until the thread ends or [`unlink`](Self::unlink) takes it out.
    pub(crate) fn link(self, node: &Node) {
        if self.head == 0 {
            return;
        }
        let head = std::ptr::with_exposed_provenance_mut::<Head>(self.head);
        let link = node.next.address();
        self.announce(&node.word);
        // SAFETY: list-is-the-thread's.
        let first = unsafe { (&raw const (*head).next).read_volatile() };
        node.next.put(first);
        node.previous.put(self.head);
        compiler_fence(Ordering::SeqCst);
        // SAFETY: list-is-the-thread's: the entry is whole before the kernel can reach it.
        unsafe { (&raw mut (*head).next).write_volatile(link) };
        write_previous(first, link);
        self.withdraw();
    }

    /// Takes `node` out of the thread's list again.
    pub(crate) fn unlink(self, node: &Node) {
        if self.head == 0 {
            return;
        }
        let link = node.next.address();
        let mut at = self.head;
        // The kernel follows no more than this many entries either.
        for _ in 0..2048 {
            let here = std::ptr::with_exposed_provenance_mut::<usize>(at);
            // SAFETY: list-is-the-thread's: reached from the head, entry by entry, by the thread that made them.
            let next = unsafe { here.read_volatile() };
            if next == link {
                let after = node.next.address_in_it();
                // SAFETY: list-is-the-thread's, as above.
                unsafe { here.write_volatile(after) };
                write_previous(after, at);
                return;
            }
            if next == self.head || next == 0 {
                return;
            }
            at = next;
        }
    }
}

/// The C library's lists are linked both ways, with the backward link before the forward one, in its head as well.
fn write_previous(link: usize, previous: usize) {
    let place = std::ptr::with_exposed_provenance_mut::<usize>(link - size_of::<usize>());
    // SAFETY: list-is-the-thread's: every entry, and the head, has the backward link there.
    unsafe { place.write_volatile(previous) };
}

impl Cell {
    fn address(&self) -> usize {
        std::ptr::from_ref(self).expose_provenance()
    }

    fn put(&self, address: usize) {
        self.store(address as u64, Ordering::Relaxed);
    }

    fn address_in_it(&self) -> usize {
        usize::try_from(self.load(Ordering::Relaxed)).unwrap_or(0)
    }
}
