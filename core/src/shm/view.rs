//! References into windows, and copies of bytes: the only code that turns an offset into an address.
//!
//! Named invariants, which the SAFETY notes here and in `sys` cite:
//! - *map-outlives-view*: a window stays mapped as long as the arena that a view borrows.
//! - *offset-in-bounds*: an offset is checked against its window before it becomes an address.
//! - *aligned*: windows are page-aligned, and the offset is checked against the type's alignment.
//! - *any-bits*: a [`Shared`] type is made of atomics, so any bits that another process writes are a valid value, and
//!   no reference ever sees a plain store.
#![allow(
    unsafe_code,
    reason = "offsets become references here and nowhere else"
)]

use super::Arena;
use super::layout::{Header, PAGE, WINDOWS, index, window_bytes, window_of, window_start};
use crate::sys::gate::Gate;
use crate::sys::mapping::{self, Mapping};
#[cfg(all(loom, test))]
use crate::sys::model;
use crate::sys::robust::Node;
use crate::sys::word::{Cell, Word, before_load, point};
use crate::{Error, Result};
use std::mem::MaybeUninit;
use std::ops::Deref;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{
    AtomicI8, AtomicI16, AtomicI32, AtomicI64, AtomicPtr, AtomicU8, AtomicU16, AtomicU32,
    AtomicU64, Ordering,
};

/// Types that may lie in shared memory: made of [`Word`]s and [`Cell`]s only, or bare atomics in the user's bytes.
///
/// # Safety
/// *any-bits*: every bit pattern is a valid value, and all access is atomic.
pub(crate) unsafe trait Shared: Sized {}

// SAFETY: any-bits.
unsafe impl Shared for Word {}
// SAFETY: any-bits.
unsafe impl Shared for Cell {}
// SAFETY: any-bits: a word and cells.
unsafe impl Shared for Node {}
// SAFETY: any-bits.
unsafe impl Shared for AtomicU8 {}
// SAFETY: any-bits.
unsafe impl Shared for AtomicU16 {}
// SAFETY: any-bits.
unsafe impl Shared for AtomicU32 {}
// SAFETY: any-bits.
unsafe impl Shared for AtomicU64 {}
// SAFETY: any-bits.
unsafe impl Shared for AtomicI8 {}
// SAFETY: any-bits.
unsafe impl Shared for AtomicI16 {}
// SAFETY: any-bits.
unsafe impl Shared for AtomicI32 {}
// SAFETY: any-bits.
unsafe impl Shared for AtomicI64 {}
// SAFETY: any-bits, if each element has it.
unsafe impl<T: Shared, const N: usize> Shared for [T; N] {}

/// Declares a struct of shared memory: its fields in order, each [`Shared`], and its size in bytes, checked.
macro_rules! shared {
    ($(#[$doc:meta])* $name:ident: $bytes:literal { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Debug)]
        #[repr(C)]
        pub(crate) struct $name { $($(#[$field_doc])* pub(crate) $field: $type,)* }

        const _: () = {
            const fn fields<T: $crate::shm::view::Shared>() {}
            $(fields::<$type>();)*
            assert!(size_of::<$name>() == $bytes);
        };

        #[allow(unsafe_code, reason = "checked field by field above")]
        // SAFETY: any-bits: each field has it, and the size leaves no room for anything else.
        unsafe impl $crate::shm::view::Shared for $name {}

        #[cfg(test)]
        #[test]
        #[allow(non_snake_case, reason = "named as the struct whose drawing it checks")]
        fn $name() {
            let fields = [$((
                stringify!($field),
                std::mem::offset_of!($name, $field),
                size_of::<$type>(),
            )),*];
            $crate::shm::drawing::compare(stringify!($name), size_of::<$name>(), &fields);
        }
    };
}
pub(crate) use shared;

/// The windows of one arena that this process has mapped so far.
#[derive(Debug)]
pub(crate) struct Windows {
    /// For each window its base address less its start, so that adding an offset gives an address; null: not mapped.
    /// No lock: one can be mapped at any time, also by who holds any lock of this process or of the arena.
    bases: [AtomicPtr<u8>; WINDOWS],
    /// Taken before any mutex of this membership: closed across a fork.
    gate: Gate,
    file: OwnedFd,
}

impl Windows {
    pub(crate) fn new(file: OwnedFd) -> Self {
        Self {
            bases: [const { AtomicPtr::new(std::ptr::null_mut()) }; WINDOWS],
            gate: Gate::default(),
            file,
        }
    }

    /// Leaves the windows mapped for the rest of the process' life.
    pub(crate) fn keep_mapped(&mut self) {
        for base in &mut self.bases {
            *base.get_mut() = std::ptr::null_mut();
        }
    }

    /// What the arena begins with: two loads, once its window is mapped.
    #[inline]
    pub(crate) fn header(&self) -> Result<&Header> {
        let base = self.bases[0].load(Ordering::Acquire);
        if base.is_null() {
            return self.at(0);
        }
        // SAFETY: offset-in-bounds and aligned: a window begins there, and is longer; map-outlives-view; any-bits.
        Ok(unsafe { &*base.cast::<Header>() })
    }

    /// Windows that exist, by the file's length, which no byte of the arena can change. Past its end a touch is a SIGBUS.
    pub(crate) fn existing(&self) -> Result<usize> {
        let length = mapping::extent(&self.file)?.length;
        let fits = |window: &usize| window_start(*window) + window_bytes(*window) <= length;
        Ok((0..WINDOWS).take_while(fits).count())
    }

    /// What keeps this membership's mutexes free at a fork.
    pub(crate) fn gate(&self) -> &Gate {
        &self.gate
    }

    pub(crate) fn file(&self) -> &OwnedFd {
        &self.file
    }

    /// The value of type `T` at `offset`.
    ///
    /// # Errors
    /// `Broken` when no such value can lie there; `Os` when the window can't be mapped.
    #[inline]
    pub(crate) fn at<T: Shared>(&self, offset: u64) -> Result<&T> {
        let address = self.address(offset, size_of::<T>())?;
        if !offset.is_multiple_of(align_of::<T>() as u64) {
            return Err(Error::Broken {
                what: "the alignment of an offset",
            });
        }
        // SAFETY: offset-in-bounds and aligned, checked above; map-outlives-view; any-bits.
        Ok(unsafe { &*address.cast::<T>() })
    }

    /// Copies bytes out of shared memory.
    #[inline]
    pub(crate) fn read(&self, offset: u64, to: &mut [u8]) -> Result<()> {
        before_load();
        let from = self.address(offset, to.len())?;
        #[cfg(all(loom, test))]
        if model::read(from.addr(), to) {
            return Ok(());
        }
        // SAFETY: offset-in-bounds, map-outlives-view; `to` is this process' own, so they don't overlap.
        unsafe { std::ptr::copy_nonoverlapping(from, to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    /// Copies bytes out of shared memory into memory that needn't be filled first, and gives it filled.
    #[inline]
    pub(crate) fn fill<'a>(&self, offset: u64, to: &'a mut [MaybeUninit<u8>]) -> Result<&'a [u8]> {
        before_load();
        let from = self.address(offset, to.len())?;
        let (base, length) = (to.as_mut_ptr().cast::<u8>(), to.len());
        #[cfg(all(loom, test))]
        {
            to.fill(MaybeUninit::new(0));
            // SAFETY: the bytes have just been written.
            let filled = unsafe { std::slice::from_raw_parts_mut(base, length) };
            if model::read(from.addr(), filled) {
                return Ok(filled);
            }
        }
        // SAFETY: offset-in-bounds, map-outlives-view; `to` is this process' own, so they don't overlap.
        unsafe { std::ptr::copy_nonoverlapping(from, base, length) };
        // SAFETY: the bytes have just been written, and `to` is borrowed as long as they are.
        Ok(unsafe { std::slice::from_raw_parts(base, length) })
    }

    /// Appends bytes of shared memory to a vector, without filling it first.
    #[inline]
    pub(crate) fn append(&self, offset: u64, length: usize, to: &mut Vec<u8>) -> Result<()> {
        before_load();
        let from = self.address(offset, length)?;
        #[cfg(all(loom, test))]
        if model::append(from.addr(), length, to) {
            return Ok(());
        }
        crate::sys::reserve(to, length)?;
        // SAFETY: the vector has room for them, just reserved.
        let end = unsafe { to.as_mut_ptr().add(to.len()) };
        // SAFETY: offset-in-bounds, map-outlives-view; the vector is this process' own, so they don't overlap.
        unsafe { std::ptr::copy_nonoverlapping(from, end, length) };
        // SAFETY: the bytes up to there have just been written.
        unsafe { to.set_len(to.len() + length) };
        Ok(())
    }

    /// Copies bytes into shared memory that belongs to the caller until it publishes them.
    #[inline]
    #[track_caller]
    pub(crate) fn write(&self, offset: u64, from: &[u8]) -> Result<()> {
        point();
        let to = self.address(offset, from.len())?;
        #[cfg(all(loom, test))]
        if model::write(to.addr(), from) {
            return Ok(());
        }
        // SAFETY: offset-in-bounds, map-outlives-view; `from` is this process' own, so they don't overlap.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), to, from.len()) };
        Ok(())
    }

    /// Fills shared memory that belongs to the caller with zeros.
    #[track_caller]
    pub(crate) fn clear(&self, offset: u64, bytes: usize) -> Result<()> {
        point();
        let to = self.address(offset, bytes)?;
        // SAFETY: offset-in-bounds, map-outlives-view; nobody else refers to these bytes.
        unsafe { std::ptr::write_bytes(to, 0, bytes) };
        Ok(())
    }

    #[inline]
    fn address(&self, offset: u64, bytes: usize) -> Result<*mut u8> {
        let window = window_of(offset);
        let Some(slot) = self.bases.get(window) else {
            return Err(Error::Broken {
                what: "an offset beyond the arena",
            });
        };
        let left = window_start(window) + window_bytes(window) - offset;
        if bytes as u64 > left {
            return Err(Error::Broken {
                what: "an extent across windows",
            });
        }
        let mut base = slot.load(Ordering::Acquire);
        if base.is_null() {
            base = self.map(window)?;
        }
        Ok(base.wrapping_add(index(offset)))
    }

    #[cold]
    fn map(&self, window: usize) -> Result<*mut u8> {
        #[cfg(all(loom, test))]
        if let Some(base) = model::window(window) {
            return Ok(base);
        }
        let start = window_start(window);
        if window >= self.existing()? {
            return Err(Error::Broken {
                what: "an offset in a window that isn't there",
            });
        }
        let mapping = Mapping::new(self.file.as_fd(), start, index(window_bytes(window)))?;
        let base = mapping.base().as_ptr().wrapping_sub(index(start));
        let null = std::ptr::null_mut();
        let slot = &self.bases[window];
        match slot.compare_exchange(null, base, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => {
                // Unmapped when this is dropped.
                std::mem::forget(mapping);
                Ok(base)
            }
            // Another thread was quicker: its mapping stays, and this one goes.
            Err(theirs) => Ok(theirs),
        }
    }
}

/// A value of shared memory that is found once and used often: one load, where an offset takes ten.
#[derive(Debug)]
pub(crate) struct Found<T> {
    place: NonNull<T>,
    arena: Arena,
}

impl<T: Shared> Found<T> {
    /// The value at an offset.
    ///
    /// # Errors
    /// As [`Windows::at`].
    pub(crate) fn new(arena: &Arena, offset: u64) -> Result<Self> {
        Ok(Self {
            place: NonNull::from(arena.inner.at::<T>(offset)?),
            arena: arena.clone(),
        })
    }
}

impl<T> Found<T> {
    /// The arena that it lies in.
    #[inline]
    pub(crate) fn arena(&self) -> &Arena {
        &self.arena
    }
}

impl<T: Shared> Deref for Found<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: map-outlives-view: windows stay mapped as long as the arena, which this holds; any-bits.
        unsafe { self.place.as_ref() }
    }
}

impl<T> Clone for Found<T> {
    fn clone(&self) -> Self {
        Self {
            place: self.place,
            arena: self.arena.clone(),
        }
    }
}

// SAFETY: any-bits: made of atomics, which any thread may use.
unsafe impl<T: Shared> Send for Found<T> {}
// SAFETY: any-bits, as above.
unsafe impl<T: Shared> Sync for Found<T> {}

/// A stretch of memory that is found once and used often, by this process and others, at any time.
#[derive(Debug, Clone)]
pub(crate) struct Span {
    base: NonNull<u8>,
    bytes: usize,
    /// Keeps it mapped.
    _keeper: Keeper,
}

#[derive(Debug, Clone)]
#[allow(dead_code, reason = "held")]
enum Keeper {
    Arena(Arena),
    Mapping(Arc<Mapping>),
}

impl Span {
    /// The `bytes` at `offset`, where a page begins.
    ///
    /// # Errors
    /// As [`Windows::at`].
    pub(crate) fn new(arena: &Arena, offset: u64, bytes: usize) -> Result<Self> {
        const WHAT: Error = Error::Broken {
            what: "the alignment of a run",
        };
        let base = NonNull::new(arena.inner.windows().address(offset, bytes)?).ok_or(WHAT)?;
        if !offset.is_multiple_of(PAGE) {
            return Err(WHAT);
        }
        Ok(Self {
            base,
            bytes,
            _keeper: Keeper::Arena(arena.clone()),
        })
    }

    /// All of a mapping.
    pub(crate) fn of(mapping: Mapping) -> Self {
        Self {
            base: mapping.base(),
            bytes: mapping.bytes(),
            _keeper: Keeper::Mapping(Arc::new(mapping)),
        }
    }

    /// The value of type `T` that many bytes behind its start; `None` when it isn't aligned there or ends outside.
    #[inline]
    pub(crate) fn at<T: Shared>(&self, at: usize) -> Option<&T> {
        let end = at.checked_add(size_of::<T>())?;
        if end > self.bytes || !at.is_multiple_of(align_of::<T>()) {
            return None;
        }
        let place = self.base.as_ptr().wrapping_add(at);
        // SAFETY: offset-in-bounds, checked above, and aligned, since it begins with a page; map-outlives-view: what this
        // holds keeps it mapped; any-bits.
        Some(unsafe { &*place.cast::<T>() })
    }

    /// Where it begins in this process.
    pub(crate) fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Its length in bytes.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.bytes
    }
}

// SAFETY: any-bits: it gives out atomics, which any thread may use.
unsafe impl Send for Span {}
// SAFETY: any-bits, as above.
unsafe impl Sync for Span {}

impl Drop for Windows {
    fn drop(&mut self) {
        for (window, base) in self.bases.iter_mut().enumerate() {
            let base = *base.get_mut();
            if !base.is_null() {
                let start = base.wrapping_add(index(window_start(window)));
                // SAFETY: map-outlives-view: made by `map`, which forgot it, and nothing borrows these windows now.
                drop(unsafe { Mapping::from_parts(start, index(window_bytes(window))) });
            }
        }
    }
}
