//! Values and arrays without a lock.

use crate::error::{Error, Result, retry};
use crate::names;
use crate::tree;
use bytemuck::Pod;
use procession_core::{Bytes, Memory};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::fmt;
use std::marker::PhantomData;
use std::sync::atomic;

/// A value of plain data that processes share, without a lock.
///
/// `T` is plain data by [`bytemuck`]'s word, [`Pod`]: any bits are a valid one, and none is padding. So numbers, arrays
/// of them, and structs that derive it; no `bool`, no reference.
///
/// A clone is the same value. It can be sent wherever values go: as an argument of a process or a task, through a queue.
///
/// # Across processes
/// A value of 1, 2, 4 or 8 bytes is read and written whole; a longer one may be seen half written: use a
/// [`Value`](super::Value). It goes with its last holder, however that ends: a process that has it, or a message
/// that names it.
///
/// # After fork
/// The child holds the same value.
///
/// # Examples
/// ```
/// use std::sync::atomic::Ordering::Relaxed;
///
/// # fn main() -> procession::Result<()> {
/// let hits = procession::RawValue::new(0u64)?;
/// hits.atomic().fetch_add(2, Relaxed);
/// assert_eq!(hits.get(), 2);
/// hits.set(7);
/// assert_eq!(hits.get(), 7);
/// # Ok(())
/// # }
/// ```
///
/// Python: `RawValue`.
pub struct RawValue<T>(RawArray<T>);

/// An array of plain data that processes share, without a lock. Its length is fixed.
///
/// What [`RawValue`] says of a value is so for each element.
///
/// # Examples
/// ```
/// # fn main() -> procession::Result<()> {
/// let array = procession::RawArray::from_slice(&[1.5, 2.5, 3.5])?;
/// array.set(1, 4.0);
/// assert_eq!(array.get(1), Some(4.0));
/// assert_eq!(array.get(3), None);
/// assert_eq!(array.to_vec(), [1.5, 4.0, 3.5]);
/// array.write(1, &[0.0, 0.0]);
/// assert_eq!(array.to_vec(), [1.5, 0.0, 0.0]);
/// # Ok(())
/// # }
/// ```
///
/// Python: `RawArray`.
pub struct RawArray<T> {
    memory: Memory,
    elements: PhantomData<fn() -> T>,
}

/// Numbers that processes can change in one step.
///
/// Implemented for the integers of 8 to 64 bits, and sealed.
pub trait Atomic: Pod + sealed::Sealed {
    /// The standard library's type for such a number.
    type Atom: 'static;

    #[doc(hidden)]
    fn atom(bytes: &Bytes, at: usize) -> Option<&Self::Atom>;
}

mod sealed {
    #[allow(unnameable_types, reason = "so that nobody else can implement it")]
    pub trait Sealed {}
}

macro_rules! atomic {
    ($($number:ident, $atom:ident, $at:ident;)*) => {$(
        impl sealed::Sealed for $number {}

        impl Atomic for $number {
            type Atom = atomic::$atom;

            #[inline]
            fn atom(bytes: &Bytes, at: usize) -> Option<&Self::Atom> {
                bytes.$at(at)
            }
        }
    )*};
}

atomic! {
    u8, AtomicU8, u8_at;
    u16, AtomicU16, u16_at;
    u32, AtomicU32, u32_at;
    u64, AtomicU64, u64_at;
    i8, AtomicI8, i8_at;
    i16, AtomicI16, i16_at;
    i32, AtomicI32, i32_at;
    i64, AtomicI64, i64_at;
}

impl<T: Pod> RawValue<T> {
    /// Puts a value into memory of its own: a page, and 256 bytes of the arena.
    ///
    /// # Errors
    /// `Os` or `Exhausted` when there is no memory.
    pub fn new(value: T) -> Result<Self> {
        RawArray::from_slice(&[value]).map(Self)
    }

    /// A copy of it.
    #[must_use]
    #[inline]
    pub fn get(&self) -> T {
        self.0.get(0).unwrap_or_else(T::zeroed)
    }

    /// Replaces it.
    #[inline]
    pub fn set(&self, value: T) {
        self.0.set(0, value);
    }
}

impl<T: Atomic> RawValue<T> {
    /// The number as the standard library's atomic.
    ///
    /// # Panics
    /// Never: a value lies where its memory begins, aligned for any number.
    #[must_use]
    pub fn atomic(&self) -> &T::Atom {
        let atom = self.0.atomic(0);
        atom.expect("a value is at the start of its memory")
    }
}

impl<T: Pod> RawArray<T> {
    /// Makes an array of so many elements, all bits zero: whole pages, and 256 bytes of the arena.
    ///
    /// # Errors
    /// `Os` or `Exhausted` when there is no memory.
    pub fn new(length: usize) -> Result<Self> {
        const { assert!(size_of::<T>() > 0, "elements need a byte at least") };
        let arena = tree::arena()?;
        let bytes = length.saturating_mul(size_of::<T>());
        let memory = retry(|| Memory::new(arena, bytes));
        let memory = memory.map_err(|error| Error::at("make shared data", error))?;
        Ok(Self {
            memory,
            elements: PhantomData,
        })
    }

    /// Makes an array with a slice's elements.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn from_slice(elements: &[T]) -> Result<Self> {
        let array = Self::new(elements.len())?;
        array.write(0, elements);
        Ok(array)
    }

    /// How many elements it has.
    #[must_use]
    #[inline]
    pub fn len(&self) -> usize {
        self.memory.bytes().len() / size_of::<T>()
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A copy of an element; `None` behind the end.
    #[must_use]
    #[inline]
    pub fn get(&self, index: usize) -> Option<T> {
        let at = index.checked_mul(size_of::<T>())?;
        let mut element = T::zeroed();
        let to = bytemuck::bytes_of_mut(&mut element);
        self.memory.bytes().read(at, to).ok()?;
        Some(element)
    }

    /// Replaces an element.
    ///
    /// # Panics
    /// Behind the end.
    #[inline]
    pub fn set(&self, index: usize, element: T) {
        self.write(index, std::slice::from_ref(&element));
    }

    /// Copies elements out, from `start` on.
    ///
    /// # Panics
    /// When they end behind the array's end.
    pub fn read(&self, start: usize, elements: &mut [T]) {
        let at = start.saturating_mul(size_of::<T>());
        let read = self
            .memory
            .bytes()
            .read(at, bytemuck::cast_slice_mut(elements));
        assert!(read.is_ok(), "{start} and more elements of {}", self.len());
    }

    /// Copies elements in, from `start` on.
    ///
    /// # Panics
    /// When they end behind the array's end.
    #[inline]
    pub fn write(&self, start: usize, elements: &[T]) {
        let at = start.saturating_mul(size_of::<T>());
        let written = self
            .memory
            .bytes()
            .write(at, bytemuck::cast_slice(elements));
        assert!(
            written.is_ok(),
            "{start} and more elements of {}",
            self.len()
        );
    }

    /// A copy of all elements.
    #[must_use]
    pub fn to_vec(&self) -> Vec<T> {
        let mut elements = vec![T::zeroed(); self.len()];
        self.read(0, &mut elements);
        elements
    }
}

impl<T: Atomic> RawArray<T> {
    /// An element as the standard library's atomic; `None` behind the end.
    #[must_use]
    pub fn atomic(&self, index: usize) -> Option<&T::Atom> {
        T::atom(self.memory.bytes(), index.checked_mul(size_of::<T>())?)
    }
}

impl<T> Clone for RawArray<T> {
    fn clone(&self) -> Self {
        Self {
            memory: self.memory.clone(),
            elements: PhantomData,
        }
    }
}

impl<T> Clone for RawValue<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// By name, since others may be changing what is in it.
impl<T> fmt::Debug for RawArray<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RawArray")
            .field(&self.memory.name())
            .finish()
    }
}

impl<T> fmt::Debug for RawValue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RawValue")
            .field(&self.0.memory.name())
            .finish()
    }
}

impl<T> Serialize for RawArray<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        names::serialize(serializer, self.memory.name(), || self.memory.escape())
    }
}

impl<'de, T: Pod> Deserialize<'de> for RawArray<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let memory = names::deserialize(deserializer, Memory::open)?;
        if memory.bytes().len().is_multiple_of(size_of::<T>()) {
            Ok(Self {
                memory,
                elements: PhantomData,
            })
        } else {
            Err(de::Error::custom("shared data of another type"))
        }
    }
}

impl<T> Serialize for RawValue<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<'de, T: Pod> Deserialize<'de> for RawValue<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let array = RawArray::deserialize(deserializer)?;
        if array.len() == 1 {
            Ok(Self(array))
        } else {
            Err(de::Error::custom("shared data of another type"))
        }
    }
}
