//! Primitives whose whole state is words in shared memory.

pub(crate) mod barrier;
pub(crate) mod condition;
pub(crate) mod event;
pub(crate) mod lock;
mod more;
#[cfg(all(loom, test))]
mod orders;
pub(crate) mod patience;
mod permits;
pub(crate) mod rlock;
pub(crate) mod semaphore;
mod waiters;

pub use barrier::{Barrier, Party, Passed};
pub use condition::{Condition, Waiting};
pub use event::Event;
pub use lock::{Acquired, Lock};
pub use permits::{PERMITS_MAX, Permit};
pub use rlock::RLock;
pub use semaphore::Semaphore;
