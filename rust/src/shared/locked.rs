//! Values and arrays, each with its lock.

use super::raw::{RawArray, RawValue};
use crate::error::Result;
use crate::sync::{Lock, LockError, LockGuard};
use bytemuck::Pod;
use serde::{Deserialize, Serialize};
use std::ops::{Deref, DerefMut};
use std::time::Duration;

/// A value of plain data that processes share, with its lock.
///
/// What `T` may be, and how it is sent, is as [`RawValue`] says.
///
/// # Across processes
/// When a process dies while it has the guard, the next one gets it with [`LockError::OwnerDied`]. The value is the old
/// one then, or the new one: it changes when the guard is dropped; only one longer than 8 bytes may be half changed.
///
/// # Examples
/// ```
/// # fn main() -> procession::Result<()> {
/// let counter = procession::Value::new(0u64)?;
/// *counter.acquire()? += 1;
/// assert_eq!(counter.get()?, 1);
/// # Ok(())
/// # }
/// ```
///
/// A struct, if it is plain data:
/// ```
/// use procession::bytemuck::{Pod, Zeroable};
///
/// #[derive(Clone, Copy, Pod, Zeroable)]
/// #[repr(C)]
/// struct Point {
///     x: f64,
///     y: f64,
/// }
///
/// # fn main() -> procession::Result<()> {
/// let point = procession::Value::new(Point { x: 1.0, y: 2.0 })?;
/// point.acquire()?.x = 5.0;
/// let copy = point.get()?;
/// assert_eq!((copy.x, copy.y), (5.0, 2.0));
/// # Ok(())
/// # }
/// ```
///
/// What isn't doesn't compile:
/// ```compile_fail
/// let flag = procession::Value::new(true);
/// ```
///
/// Python: `Value`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(bound = "T: Pod")]
pub struct Value<T> {
    raw: RawValue<T>,
    lock: Lock,
}

/// A value, locked: a copy, which is written back when this is dropped, if it was touched.
#[must_use = "dropped at once, it releases the lock at once"]
#[derive(Debug)]
pub struct ValueGuard<'a, T: Pod> {
    value: &'a RawValue<T>,
    copy: T,
    touched: bool,
    /// Dropped last.
    _lock: LockGuard<'a>,
}

/// An array of plain data that processes share, with its lock. Its length is fixed.
///
/// # Examples
/// ```
/// # fn main() -> procession::Result<()> {
/// let array = procession::Array::from_slice(&[1, 2, 3])?;
/// let locked = array.acquire()?;
/// for index in 0..locked.len() {
///     locked.set(index, locked.get(index).unwrap_or(0) * 10);
/// }
/// drop(locked);
/// assert_eq!(array.acquire()?.to_vec(), [10, 20, 30]);
/// # Ok(())
/// # }
/// ```
///
/// Python: `Array`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(bound = "T: Pod")]
pub struct Array<T> {
    raw: RawArray<T>,
    lock: Lock,
}

/// An array, locked until this is dropped.
#[must_use = "dropped at once, it releases the lock at once"]
#[derive(Debug)]
pub struct ArrayGuard<'a, T> {
    array: &'a RawArray<T>,
    _lock: LockGuard<'a>,
}

impl<T: Pod> Value<T> {
    /// Puts a value into shared memory, with a lock of its own.
    ///
    /// # Errors
    /// `Os` or `Exhausted` when there is no memory.
    pub fn new(value: T) -> Result<Self> {
        Ok(Self::with_lock(RawValue::new(value)?, Lock::new()?))
    }

    /// A value with a lock that others may share.
    #[must_use]
    pub fn with_lock(raw: RawValue<T>, lock: Lock) -> Self {
        Self { raw, lock }
    }

    fn guard<'a>(&'a self, lock: LockGuard<'a>) -> ValueGuard<'a, T> {
        ValueGuard {
            value: &self.raw,
            copy: self.raw.get(),
            touched: false,
            _lock: lock,
        }
    }

    /// A copy, made while the lock is held.
    ///
    /// # Errors
    /// `OwnerDied` when the last who had the lock died; the next call succeeds.
    pub fn get(&self) -> Result<T> {
        Ok(*self.acquire()?)
    }

    /// Replaces it while the lock is held.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn set(&self, value: T) -> Result<()> {
        *self.acquire()? = value;
        Ok(())
    }

    /// The value without its lock.
    #[must_use]
    pub fn raw(&self) -> &RawValue<T> {
        &self.raw
    }
}

impl<T: Pod> Array<T> {
    /// Makes an array of so many elements, all bits zero, with a lock of its own.
    ///
    /// # Errors
    /// `Os` or `Exhausted` when there is no memory.
    pub fn new(length: usize) -> Result<Self> {
        Ok(Self::with_lock(RawArray::new(length)?, Lock::new()?))
    }

    /// Makes an array with a slice's elements.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn from_slice(elements: &[T]) -> Result<Self> {
        let raw = RawArray::from_slice(elements)?;
        Ok(Self::with_lock(raw, Lock::new()?))
    }

    /// An array with a lock that others may share.
    #[must_use]
    pub fn with_lock(raw: RawArray<T>, lock: Lock) -> Self {
        Self { raw, lock }
    }

    fn guard<'a>(&'a self, lock: LockGuard<'a>) -> ArrayGuard<'a, T> {
        ArrayGuard {
            array: &self.raw,
            _lock: lock,
        }
    }

    /// How many elements it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.raw.len()
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.raw.is_empty()
    }

    /// The array without its lock.
    #[must_use]
    pub fn raw(&self) -> &RawArray<T> {
        &self.raw
    }
}

/// What a `Value` and an `Array` do with their locks.
macro_rules! locked {
    ($type:ident, $guard:ident) => {
        impl<T: Pod> $type<T> {
            /// Waits for its lock and takes it.
            ///
            /// # Errors
            /// [`LockError::OwnerDied`] with the guard when the last who had the lock died.
            pub fn acquire(&self) -> Result<$guard<'_, T>, LockError<$guard<'_, T>>> {
                let taken = self.lock.acquire();
                taken
                    .map(|lock| self.guard(lock))
                    .map_err(|error| self.refused(error))
            }

            /// Takes its lock if that is free; `None` if it is held.
            ///
            /// # Errors
            /// As [`acquire`](Self::acquire).
            pub fn try_acquire(&self) -> Result<Option<$guard<'_, T>>, LockError<$guard<'_, T>>> {
                let taken = self.lock.try_acquire();
                taken
                    .map(|lock| lock.map(|lock| self.guard(lock)))
                    .map_err(|error| self.refused(error))
            }

            /// As [`acquire`](Self::acquire), for at most so long; `None` if the lock is still held then.
            ///
            /// # Errors
            /// As [`acquire`](Self::acquire).
            pub fn acquire_timeout(
                &self,
                timeout: Duration,
            ) -> Result<Option<$guard<'_, T>>, LockError<$guard<'_, T>>> {
                let taken = self.lock.acquire_timeout(timeout);
                taken
                    .map(|lock| lock.map(|lock| self.guard(lock)))
                    .map_err(|error| self.refused(error))
            }

            fn refused<'a>(&'a self, error: LockError<LockGuard<'a>>) -> LockError<$guard<'a, T>> {
                match error {
                    LockError::OwnerDied(lock) => LockError::OwnerDied(self.guard(lock)),
                    LockError::Failed(error) => LockError::Failed(error),
                }
            }

            /// Its lock, for what takes more than one guard.
            #[must_use]
            pub fn lock(&self) -> &Lock {
                &self.lock
            }
        }

        impl<T> Clone for $type<T> {
            fn clone(&self) -> Self {
                Self {
                    raw: self.raw.clone(),
                    lock: self.lock.clone(),
                }
            }
        }
    };
}

locked!(Value, ValueGuard);
locked!(Array, ArrayGuard);

impl<T: Pod> Deref for ValueGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.copy
    }
}

impl<T: Pod> DerefMut for ValueGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.touched = true;
        &mut self.copy
    }
}

impl<T: Pod> Drop for ValueGuard<'_, T> {
    fn drop(&mut self) {
        if self.touched {
            self.value.set(self.copy);
        }
    }
}

impl<T> Deref for ArrayGuard<'_, T> {
    type Target = RawArray<T>;

    fn deref(&self) -> &RawArray<T> {
        self.array
    }
}
