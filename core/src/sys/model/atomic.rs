//! Atomics that are loom's in a model and the processor's elsewhere, with the part of std's interface that is used.

use super::memory::{Op, perform};
use super::{Now, now_in};
use std::ops::Deref;
use std::sync::atomic::{self, Ordering};

macro_rules! atomic {
    ($name:ident, $number:ty) => {
        /// At the address of the real one: in a model only the address is used.
        #[derive(Debug, Default)]
        #[repr(transparent)]
        pub(crate) struct $name(atomic::$name);

        impl $name {
            #[allow(
                clippy::cast_possible_truncation,
                reason = "a value of as many bits went in"
            )]
            fn perform(&self, op: Op, order: Ordering) -> Option<$number> {
                let address = std::ptr::from_ref(self).addr();
                perform(address, size_of::<Self>(), op, order).map(|value| value as $number)
            }

            pub(crate) fn load(&self, order: Ordering) -> $number {
                self.perform(Op::Load, order)
                    .unwrap_or_else(|| self.0.load(order))
            }

            pub(crate) fn store(&self, value: $number, order: Ordering) {
                if self.perform(Op::Store(value.into()), order).is_none() {
                    self.0.store(value, order);
                }
            }

            pub(crate) fn swap(&self, value: $number, order: Ordering) -> $number {
                self.perform(Op::Swap(value.into()), order)
                    .unwrap_or_else(|| self.0.swap(value, order))
            }

            pub(crate) fn compare_exchange(
                &self,
                current: $number,
                new: $number,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$number, $number> {
                let op = Op::Replace(current.into(), new.into(), failure);
                match self.perform(op, success) {
                    Some(found) if found == current => Ok(found),
                    Some(found) => Err(found),
                    None => self.0.compare_exchange(current, new, success, failure),
                }
            }

            pub(crate) fn fetch_add(&self, more: $number, order: Ordering) -> $number {
                self.perform(Op::Add(more.into()), order)
                    .unwrap_or_else(|| self.0.fetch_add(more, order))
            }

            pub(crate) fn fetch_or(&self, bits: $number, order: Ordering) -> $number {
                self.perform(Op::Or(bits.into()), order)
                    .unwrap_or_else(|| self.0.fetch_or(bits, order))
            }

            pub(crate) fn fetch_and(&self, bits: $number, order: Ordering) -> $number {
                self.perform(Op::And(bits.into()), order)
                    .unwrap_or_else(|| self.0.fetch_and(bits, order))
            }
        }
    };
}

atomic!(AtomicU32, u32);
atomic!(AtomicU64, u64);

/// The real one, for the real futex.
impl Deref for AtomicU32 {
    type Target = atomic::AtomicU32;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

/// A fence: loom's in a model.
pub(crate) fn fence(order: Ordering) {
    match now_in() {
        Now::Real => atomic::fence(order),
        Now::In(world) if world.memory.is_shared() => loom::sync::atomic::fence(order),
        Now::In(_) | Now::Unwinding => {}
    }
}
