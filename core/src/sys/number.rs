//! Descriptors that a face's language knows as numbers.
#![allow(
    unsafe_code,
    reason = "a number that a program gave is no descriptor that anybody could borrow or own"
)]

use std::os::fd::{AsFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// A descriptor that a program gave by its number and knows by it from then on, as Python's programs do. Dropped, it is closed.
///
/// It may not be open at all, or be closed by somebody else: then each call says EBADF, or goes to whatever has the number by then. That
/// is the program's affair, as in its own language; no memory depends on it.
#[derive(Debug)]
pub struct Numbered {
    number: RawFd,
    is_owned: AtomicBool,
}

impl Numbered {
    /// The descriptor of that number; `None` for one that none can have.
    #[must_use]
    pub fn new(number: RawFd) -> Option<Self> {
        (number >= 0).then(|| Self {
            number,
            is_owned: AtomicBool::new(true),
        })
    }

    /// Its number.
    #[must_use]
    pub fn number(&self) -> RawFd {
        self.number
    }

    /// Leaves it open when this is dropped: somebody else has it.
    pub fn disown(&self) {
        self.is_owned.store(false, Ordering::Relaxed);
    }
}

impl From<OwnedFd> for Numbered {
    fn from(descriptor: OwnedFd) -> Self {
        Self {
            number: descriptor.into_raw_fd(),
            is_owned: AtomicBool::new(true),
        }
    }
}

impl AsFd for Numbered {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: descriptor-lent: borrowed for calls that fail cleanly for a number that isn't open; it isn't -1.
        unsafe { BorrowedFd::borrow_raw(self.number) }
    }
}

impl Drop for Numbered {
    fn drop(&mut self) {
        if *self.is_owned.get_mut() {
            // SAFETY: descriptor-given: the program gave it away, and no other value closes it.
            drop(unsafe { OwnedFd::from_raw_fd(self.number) });
        }
    }
}
