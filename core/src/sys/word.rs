//! The two kinds of cell that shared memory is made of, and the one way to store to them.
//!
//! [`Word`] is 32 bits and can be slept on; [`Cell`] is 64 bits. Every store of theirs passes [`point`], so that a
//! build with `--cfg crash_points` can end the process before any of them: a crash point sits at every store by
//! construction, and no other code stores to shared memory but the byte copies of `shm::view`, which pass it too, and whoever
//! writes to the user's bytes, which mean nothing to the engine.

#[cfg(all(loom, test))]
use super::model::{AtomicU32, AtomicU64};
use crate::Deadline;
use rustix::thread::futex;
use std::sync::atomic::Ordering;
#[cfg(not(all(loom, test)))]
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::time::Duration;

#[cfg(all(loom, test))]
pub(crate) use super::model::fence;
pub(crate) use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
#[cfg(not(all(loom, test)))]
pub(crate) use std::sync::atomic::fence;

/// The place before a store to shared memory. Nothing, unless crash points are compiled in.
#[inline(always)]
#[track_caller]
pub(crate) fn point() {
    #[cfg(crash_points)]
    super::crash::point(std::panic::Location::caller());
    #[cfg(all(loom, test))]
    super::simulation::step(std::panic::Location::caller());
}

/// The place before a load of shared memory. Nothing, unless crash points are compiled in: then a simulated process may
/// lose its turn.
#[inline(always)]
#[track_caller]
pub(crate) fn before_load() {
    #[cfg(crash_points)]
    super::simulation::step(std::panic::Location::caller());
}

/// How a sleep on a [`Word`] ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wake {
    /// Somebody woke us, the word had changed before we slept, or for no reason: look again.
    Look,
    /// The deadline passed.
    TimedOut,
    /// A signal handler ran.
    Interrupted,
}

macro_rules! cell {
    ($(#[$doc:meta])* $name:ident, $atomic:ty, $number:ty) => {
        $(#[$doc])*
        #[derive(Debug, Default)]
        #[repr(transparent)]
        pub(crate) struct $name($atomic);

        #[allow(dead_code, reason = "both kinds of cell offer the same operations")]
        impl $name {
            #[inline]
            #[track_caller]
            pub(crate) fn load(&self, order: Ordering) -> $number {
                before_load();
                self.0.load(order)
            }

            #[inline]
            #[track_caller]
            pub(crate) fn store(&self, value: $number, order: Ordering) {
                point();
                self.0.store(value, order);
            }

            #[inline]
            #[track_caller]
            pub(crate) fn swap(&self, value: $number, order: Ordering) -> $number {
                point();
                self.0.swap(value, order)
            }

            /// Stores `new` where `current` stands; true when it did.
            #[inline]
            #[track_caller]
            pub(crate) fn replace(&self, current: $number, new: $number) -> bool {
                point();
                self.0.compare_exchange(current, new, Ordering::AcqRel, Ordering::Relaxed).is_ok()
            }

            /// Adds, wrapping; gives what stood there before.
            #[inline]
            #[track_caller]
            pub(crate) fn add(&self, more: $number) -> $number {
                point();
                self.0.fetch_add(more, Ordering::AcqRel)
            }

            #[inline]
            #[track_caller]
            pub(crate) fn set_bits(&self, bits: $number) -> $number {
                point();
                self.0.fetch_or(bits, Ordering::AcqRel)
            }

            #[inline]
            #[track_caller]
            pub(crate) fn clear_bits(&self, bits: $number) -> $number {
                point();
                self.0.fetch_and(!bits, Ordering::AcqRel)
            }
        }
    };
}

cell!(
    /// 64 bits of shared memory.
    Cell,
    AtomicU64,
    u64
);
cell!(
    /// 32 bits of shared memory that a process can sleep on. Source: futex(2).
    Word,
    AtomicU32,
    u32
);

impl Word {
    /// Sleeps while the word is `value`, until a wake, a signal or the deadline.
    ///
    /// Shared futexes throughout: the kernel's wake at a holder's death uses the shared key.
    pub(crate) fn sleep_while(&self, value: u32, deadline: Deadline) -> Wake {
        let timeout = match deadline.remaining() {
            Some(Duration::ZERO) => return Wake::TimedOut,
            left => left,
        };
        match wait(&self.0, value, timeout) {
            Err(rustix::io::Errno::TIMEDOUT) => Wake::TimedOut,
            Err(rustix::io::Errno::INTR) => Wake::Interrupted,
            Ok(()) | Err(_) => Wake::Look,
        }
    }

    /// Wakes at most `count` sleepers, and tells how many. A system call, whether anybody sleeps or not.
    pub(crate) fn wake(&self, count: u32) -> usize {
        #[cfg(simulated)]
        if let Some(system) = super::simulation::system() {
            return system.wake(&self.0, count);
        }
        // It can fail only for an address that isn't mapped, and a reference is.
        futex::wake(&self.0, futex::Flags::empty(), count).unwrap_or(0)
    }

    /// Where the word lies in this process: what the kernel's robust list wants to know.
    pub(crate) fn address(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }
}

fn wait(word: &AtomicU32, value: u32, timeout: Option<Duration>) -> rustix::io::Result<()> {
    #[cfg(simulated)]
    if let Some(system) = super::simulation::system() {
        return match system.sleep(word, value, timeout) {
            0 => Ok(()),
            errno => Err(rustix::io::Errno::from_raw_os_error(errno)),
        };
    }
    // What the kernel's clock can't count is as good as for ever.
    let timeout = timeout.and_then(|left| rustix::fs::Timespec::try_from(left).ok());
    futex::wait(word, futex::Flags::empty(), value, timeout.as_ref())
}
