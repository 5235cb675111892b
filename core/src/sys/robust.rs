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
use std::mem::offset_of;
use std::sync::atomic::{Ordering, compiler_fence};

/// In a word of the kernel's format: somebody sleeps on it.
pub(crate) const WAITERS: u32 = 0x8000_0000;
/// The thread whose id stood here died.
pub(crate) const OWNER_DIED: u32 = 0x4000_0000;
/// The thread's id.
pub(crate) const TID: u32 = 0x3fff_ffff;

/// From an entry of the list to its word, in bytes: the C library's mutex has its word 32 bytes before its link.
const WORD_FROM_LINK: isize = -32;

/// From an entry's link to its backward link, in bytes: before it, in the head as well.
const PREVIOUS_FROM_LINK: usize = size_of::<usize>();

/// The kernel's `struct robust_list_head`: what lies at the address that it tells.
#[allow(dead_code, reason = "only its layout is used")]
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
const _: () = assert!(offset_of!(Node, next) == WORD_FROM_LINK.unsigned_abs());

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
    let head = head.expose_provenance();
    let usable = result == 0
        && bytes == size_of::<Head>()
        && head != 0
        && peek(head + offset_of!(Head, word_from_link)).cast_signed() == WORD_FROM_LINK;
    let head = if usable { head } else { 0 };
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
            poke(self.head + offset_of!(Head, pending), link);
            compiler_fence(Ordering::SeqCst);
        }
    }

    /// Puts `node`, whose word holds this thread's id, at the front of the thread's list. It stays mapped and in the
    /// list until the thread ends or [`unlink`](Self::unlink) takes it out.
    pub(crate) fn link(self, node: &Node) {
        if self.head == 0 {
            return;
        }
        let link = node.next.address();
        self.announce(&node.word);
        let first = peek(self.head);
        node.next.put(first);
        node.previous.put(self.head);
        // The entry is whole before the kernel can reach it.
        compiler_fence(Ordering::SeqCst);
        poke(self.head, link);
        poke(first - PREVIOUS_FROM_LINK, link);
        self.withdraw();
    }

    /// Takes `node` out of the thread's list again; false when it isn't in it: another thread's list may have it.
    pub(crate) fn unlink(self, node: &Node) -> bool {
        if self.head == 0 {
            return !node.is_linked();
        }
        let link = node.next.address();
        let mut at = self.head;
        // The kernel follows no more than this many entries either.
        for _ in 0..2048 {
            let next = peek(at);
            if next == link {
                let after = peek(link);
                poke(at, after);
                poke(after - PREVIOUS_FROM_LINK, at);
                return true;
            }
            if next == self.head || next == 0 {
                break;
            }
            at = next;
        }
        false
    }
}

/// The word of the thread's list at an address that the list, or the kernel, told.
#[inline]
fn peek(address: usize) -> usize {
    let place = std::ptr::with_exposed_provenance::<usize>(address);
    // SAFETY: list-is-the-thread's: reached from the head, by the thread that made every entry.
    unsafe { place.read_volatile() }
}

#[inline]
fn poke(address: usize, value: usize) {
    let place = std::ptr::with_exposed_provenance_mut::<usize>(address);
    // SAFETY: list-is-the-thread's: only this thread, and the kernel at its death, use it.
    unsafe { place.write_volatile(value) };
}

impl Cell {
    fn address(&self) -> usize {
        std::ptr::from_ref(self).expose_provenance()
    }

    fn put(&self, address: usize) {
        self.store(address as u64, Ordering::Relaxed);
    }
}
