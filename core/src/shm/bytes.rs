//! Bytes that others may write at any time: all access is atomic, in the largest numbers that the place allows.

use super::view::{Shared, Span};
use crate::{Error, Result};
use std::ptr::NonNull;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{
    AtomicI8, AtomicI16, AtomicI32, AtomicI64, AtomicU8, AtomicU16, AtomicU32, AtomicU64,
};

/// Bytes that processes share, at a page's start.
///
/// # Across processes
/// Others may read and write them at any time. A number of 1, 2, 4 or 8 bytes that lies at a multiple of its length is
/// never seen half written; longer things may be. What comes before what is for a lock to say, or for the orders that
/// the atomics are used with.
#[derive(Debug, Clone)]
pub struct Bytes(Span);

impl Bytes {
    pub(crate) fn new(span: Span) -> Self {
        Self(span)
    }

    /// How many they are.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where they begin in this process, for a face that hands the address on. Valid as long as this object or a clone
    /// of it lives.
    #[must_use]
    pub fn base(&self) -> NonNull<u8> {
        self.0.base()
    }

    /// Copies bytes out, from byte `at` on.
    ///
    /// # Errors
    /// `TooLong` when they end outside.
    pub fn read(&self, mut at: usize, mut to: &mut [u8]) -> Result<()> {
        self.check(at, to.len())?;
        while !to.is_empty() {
            let (part, rest) = to.split_at_mut(part(at, to.len()));
            match part.len() {
                1 => self.read_numbers::<AtomicU8, 1>(at, part),
                2 => self.read_numbers::<AtomicU16, 2>(at, part),
                4 => self.read_numbers::<AtomicU32, 4>(at, part),
                _ => self.read_numbers::<AtomicU64, 8>(at, part),
            }
            at += part.len();
            to = rest;
        }
        Ok(())
    }

    /// Copies bytes in, from byte `at` on.
    ///
    /// # Errors
    /// `TooLong` when they end outside.
    pub fn write(&self, mut at: usize, mut from: &[u8]) -> Result<()> {
        self.check(at, from.len())?;
        while !from.is_empty() {
            let (part, rest) = from.split_at(part(at, from.len()));
            match part.len() {
                1 => self.write_numbers::<AtomicU8, 1>(at, part),
                2 => self.write_numbers::<AtomicU16, 2>(at, part),
                4 => self.write_numbers::<AtomicU32, 4>(at, part),
                _ => self.write_numbers::<AtomicU64, 8>(at, part),
            }
            at += part.len();
            from = rest;
        }
        Ok(())
    }

    fn check(&self, at: usize, length: usize) -> Result<()> {
        match at.checked_add(length) {
            Some(end) if end <= self.len() => Ok(()),
            end => Err(Error::TooLong {
                length: end.unwrap_or(usize::MAX) as u64,
                limit: self.len() as u64,
            }),
        }
    }

    #[inline]
    fn read_numbers<T: Number<N>, const N: usize>(&self, at: usize, to: &mut [u8]) {
        for (to, at) in to.as_chunks_mut().0.iter_mut().zip((at..).step_by(N)) {
            if let Some(number) = self.0.at::<T>(at) {
                *to = number.bytes();
            }
        }
    }

    #[inline]
    fn write_numbers<T: Number<N>, const N: usize>(&self, at: usize, from: &[u8]) {
        for (from, at) in from.as_chunks().0.iter().zip((at..).step_by(N)) {
            if let Some(number) = self.0.at::<T>(at) {
                number.set_bytes(*from);
            }
        }
    }
}

/// How much of `length` bytes at `at` can be copied next in numbers of one size, the largest that the place allows: a
/// number of 1, 2 or 4 bytes, or a stretch of those of 8.
fn part(at: usize, length: usize) -> usize {
    let size = 1 << at.trailing_zeros().min(3);
    match length.min(size) {
        8 => length - length % 8,
        room => 1 << room.ilog2(),
    }
}

/// A number of `N` bytes.
trait Number<const N: usize>: Shared {
    fn bytes(&self) -> [u8; N];
    fn set_bytes(&self, bytes: [u8; N]);
}

macro_rules! numbers {
    ($($name:ident: $atom:ty, $number:ty, $size:literal;)*) => {
        impl Bytes {
            $(
                /// The number at byte `at`; `None` when it isn't aligned there or ends outside.
                #[inline]
                #[must_use]
                pub fn $name(&self, at: usize) -> Option<&$atom> {
                    self.0.at(at)
                }
            )*
        }

        $(
            impl Number<$size> for $atom {
                #[inline]
                fn bytes(&self) -> [u8; $size] {
                    self.load(Relaxed).to_ne_bytes()
                }

                #[inline]
                fn set_bytes(&self, bytes: [u8; $size]) {
                    self.store(<$number>::from_ne_bytes(bytes), Relaxed);
                }
            }
        )*
    };
}

numbers! {
    u8_at: AtomicU8, u8, 1;
    u16_at: AtomicU16, u16, 2;
    u32_at: AtomicU32, u32, 4;
    u64_at: AtomicU64, u64, 8;
    i8_at: AtomicI8, i8, 1;
    i16_at: AtomicI16, i16, 2;
    i32_at: AtomicI32, i32, 4;
    i64_at: AtomicI64, i64, 8;
}

#[cfg(test)]
mod tests {
    use super::part;
    use crate::{Arena, Memory};

    #[test]
    fn bytes_are_where_they_were_written() {
        let arena = Arena::create().unwrap();
        let memory = Memory::new(&arena, 100).unwrap();
        let bytes = memory.bytes();
        let pattern: Vec<u8> = (1..=100).collect();
        for at in 0..20 {
            for length in 0..40 {
                bytes.write(0, &[0; 100]).unwrap();
                bytes.write(at, &pattern[..length]).unwrap();
                let mut all = [0; 100];
                bytes.read(0, &mut all).unwrap();
                assert_eq!(all[at..at + length], pattern[..length]);
                let (before, behind) = (&all[..at], &all[at + length..]);
                assert!(before.iter().chain(behind).all(|byte| *byte == 0));
                let mut found = vec![0; length];
                bytes.read(at, &mut found).unwrap();
                assert_eq!(found, pattern[..length]);
            }
        }
    }

    #[test]
    fn no_number_is_split() {
        for at in 0..32 {
            for length in 1..40 {
                let part = part(at, length);
                assert!(part <= length);
                let size = part.min(8);
                assert!(
                    size.is_power_of_two() && at.is_multiple_of(size) && part.is_multiple_of(size)
                );
                // A number of any size that begins here and fits is copied at once.
                for whole in [1, 2, 4, 8] {
                    let begins = at % whole == 0 && whole <= length;
                    assert!(!begins || size >= whole);
                }
            }
        }
    }

    #[test]
    fn nothing_is_outside() {
        let arena = Arena::create().unwrap();
        let memory = Memory::new(&arena, 10).unwrap();
        let bytes = memory.bytes();
        assert!(bytes.read(3, &mut [0; 8]).is_err());
        assert!(bytes.write(usize::MAX, &[0; 8]).is_err());
        assert!(bytes.u32_at(4).is_some());
        assert!(bytes.u32_at(8).is_none());
        assert!(bytes.u32_at(2).is_none());
        assert!(bytes.u8_at(9).is_some() && bytes.u8_at(10).is_none());
        assert!(bytes.u64_at(usize::MAX - 7).is_none());
    }
}
