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

#[cfg(all(loom, test))]
use super::model;
use super::word::{Cell, Word, before_load};
use std::cell::{Cell as Local, RefCell};
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
    /// The nodes that the thread has linked, each with the address that it was given as the next one. Nodes lie in shared
    /// memory, where any address may come to stand: none is followed that isn't the one that was put there.
    static LINKED: RefCell<Vec<(usize, usize)>> = const { RefCell::new(Vec::new()) };
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
    #[cfg(simulated)]
    if let Some(system) = super::simulation::system() {
        return Thread {
            tid: system.pid(),
            head: system.robust_list(),
        };
    }
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
    let _ = LINKED.try_with(|linked| linked.borrow_mut().clear());
    // The C library empties the list in the child, but leaves what was pending.
    this_thread().set_pending(0);
}

/// Forgets what the calling thread has linked: the processes of a simulation share it, and leave entries behind.
#[cfg(simulated)]
pub(super) fn forget_links() {
    let _ = LINKED.try_with(|linked| linked.borrow_mut().clear());
}

#[cold]
fn look() -> Thread {
    let tid = rustix::thread::gettid()
        .as_raw_nonzero()
        .get()
        .cast_unsigned();
    let mut head: *mut Head = std::ptr::null_mut();
    let mut bytes: usize = 0;
    let allowed = super::allow("get_robust_list").is_ok();
    // SAFETY: the kernel writes one pointer and one length to the two places given.
    let result =
        unsafe { libc::syscall(libc::SYS_get_robust_list, 0, &raw mut head, &raw mut bytes) };
    let head = head.expose_provenance();
    let usable = result == 0
        && allowed
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
            before_load();
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
            // Whoever had it in a list before has it no more.
            node.next.put(0);
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
        let _ = LINKED.try_with(|linked| linked.borrow_mut().push((link, first)));
        self.withdraw();
    }

    /// Takes `node` out of the thread's list again; false when it isn't in it, since another thread's list may have it, or
    /// when the way to it can't be trusted.
    pub(crate) fn unlink(self, node: &Node) -> bool {
        self.unlink_if(node, follow)
    }

    /// As [`unlink`](Self::unlink), of one behind which nothing was taken out since it was linked: what was noted then
    /// is right, whatever its memory says by now.
    pub(crate) fn unlink_soon(self, node: &Node) -> bool {
        self.unlink_if(node, |link, linked| {
            let mut newest_first = linked.iter().rev();
            newest_first
                .find(|(it, _)| *it == link)
                .map(|(_, next)| *next)
        })
    }

    fn unlink_if(
        self,
        node: &Node,
        next: impl Fn(usize, &[(usize, usize)]) -> Option<usize>,
    ) -> bool {
        if self.head == 0 {
            return !node.is_linked();
        }
        let link = node.next.address();
        // Past the end of the thread-local state nothing is known of what it linked.
        LINKED.try_with(|linked| self.unlink_from(link, &mut linked.borrow_mut(), next)) == Ok(true)
    }

    fn unlink_from(
        self,
        link: usize,
        linked: &mut Vec<(usize, usize)>,
        next_of: impl Fn(usize, &[(usize, usize)]) -> Option<usize>,
    ) -> bool {
        let mut at = self.head;
        // The kernel follows no more than this many entries either.
        for _ in 0..2048 {
            let Some(next) = follow(at, linked) else {
                return false;
            };
            if next == link {
                let Some(after) = next_of(link, linked) else {
                    return false;
                };
                poke(at, after);
                poke(after - PREVIOUS_FROM_LINK, at);
                linked.retain(|(node, _)| *node != link);
                let before = linked.iter_mut().find(|(node, _)| *node == at);
                before.into_iter().for_each(|(_, next)| *next = after);
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

/// The entry after one of the thread's list. `None` when that one is ours and says another than the one that was put
/// there: somebody wrote over it, or a robust mutex of the program's own that stood behind it is unlocked by now.
fn follow(at: usize, linked: &[(usize, usize)]) -> Option<usize> {
    let next = peek(at);
    let ours = linked.iter().rev().find(|(node, _)| *node == at);
    ours.is_none_or(|(_, given)| *given == next).then_some(next)
}

/// The word of the thread's list at an address that the list, or the kernel, told.
#[inline]
fn peek(address: usize) -> usize {
    #[cfg(all(loom, test))]
    if let Some(value) = model::peek(address) {
        return value;
    }
    let place = std::ptr::with_exposed_provenance::<usize>(address);
    // SAFETY: list-is-the-thread's: reached from the head over entries that this thread, or its C library, made; one in
    // shared memory is followed only where it still says what was put there (`follow`).
    unsafe { place.read_volatile() }
}

#[inline]
fn poke(address: usize, value: usize) {
    #[cfg(all(loom, test))]
    if model::poke(address, value) {
        return;
    }
    let place = std::ptr::with_exposed_provenance_mut::<usize>(address);
    // SAFETY: list-is-the-thread's: only this thread, and the kernel at its death, use it.
    unsafe { place.write_volatile(value) };
}

impl Cell {
    fn address(&self) -> usize {
        std::ptr::from_ref(self).expose_provenance()
    }

    fn put(&self, address: usize) {
        #[cfg(all(loom, test))]
        model::note(self.address(), address);
        self.store(address as u64, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::{Node, Word, this_thread};
    use crate::sys::word::{Cell, Relaxed};

    fn node() -> Node {
        Node {
            word: Word::default(),
            _unused: Default::default(),
            previous: Cell::default(),
            next: Cell::default(),
        }
    }

    #[test]
    fn a_link_that_was_written_over_is_not_followed() {
        let thread = this_thread();
        let [first, second, third] = [(); 3].map(|()| Box::new(node()));
        for node in [&first, &second, &third] {
            thread.link(node);
        }
        let right = second.next.load(Relaxed);
        for wrong in [0, 1, 8, right ^ 1 << 40, u64::MAX, right + 8] {
            second.next.store(wrong, Relaxed);
            assert!(
                !thread.unlink(&second) && !thread.unlink(&first),
                "{wrong:x}"
            );
        }
        // What is sure of its place believes what was noted.
        assert!(thread.unlink_soon(&second));
        assert!(thread.unlink(&first) && thread.unlink(&third));
        assert!(!thread.unlink(&third));
    }
}
