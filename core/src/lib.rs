//! The engine of procession: bytes, handles, memory and processes, and no language's values.
//!
//! From below: [`shm`] is the memory that a tree of processes shares, [`sync`] and [`queue`] live in it. Everything
//! above `sys` can be read without knowing a system call. `ARCHITECTURE.md` has the map, `docs/shm.md` every byte.
#![deny(unsafe_code)]
#![allow(
    rustdoc::private_intra_doc_links,
    reason = "the map of a layer names its private files; they are documented too"
)]

pub mod connection;
pub mod deadline;
pub mod error;
pub mod handoff;
pub mod pool;
pub mod process;
pub mod queue;
pub mod shm;
pub mod sync;
pub mod sys;
mod tree;
pub mod wire;

pub use deadline::Deadline;
pub use error::{Error, Result};
pub use process::{Child, ExitStatus, ForkServer, Parent, Setting, Spec, Starting};
pub use queue::{Claim, Message, Parcel, Put, Queue, Readiness, Taken};
pub use shm::{
    Adoption, Arena, Bytes, Carried, Census, ChildSlot, Extent, Memory, NamedMemory, Naming,
    ObjectName, Place, Placeless,
};
pub use sync::{
    Acquired, Barrier, Condition, Event, Lock, PERMITS_MAX, Party, Passed, Permit, RLock,
    Semaphore, Waiting,
};
pub use sys::image::{Body, Function, FunctionName, text_behind};
pub use sys::launch::{at_exit, copy_of, inherited, is_null_device};
pub use sys::pidfd::{die_with, die_with_parent, is_main_thread, own_pidfd};
