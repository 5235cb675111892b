//! Primitives whose whole state is words in shared memory.

pub(crate) mod lock;

pub use lock::{Acquired, Lock};
