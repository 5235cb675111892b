//! Data that processes share: numbers and plain structs, with a lock or without, and named memory.

mod locked;
mod named;
mod raw;

pub use locked::{Array, ArrayGuard, Value, ValueGuard};
pub use named::SharedMemory;
pub use raw::{Atomic, RawArray, RawValue};
