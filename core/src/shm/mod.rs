//! Memory that several processes see: one arena a process tree, and who lives in it.
//!
//! From below: [`view`] turns offsets into references and copies bytes; [`layout`] draws what lies where;
//! [`robust`] is the lock that survives its holder; [`arena`] is this process' membership; [`pages`] and [`blocks`]
//! give memory out, [`extent`] is a large message there; [`object`] counts who holds what, [`memory`] is the user's bytes; [`carried`] holds what a message
//! names, [`naming`] collects it, and [`trace`] ends what no message names any more; [`recovery`] gives back what a dead process held. Their states
//! and crash tables are in `docs/shm.md`.

pub(crate) mod arena;
pub(crate) mod bell;
pub(crate) mod blocks;
mod bytes;
mod carried;
pub(crate) mod check;
#[cfg(test)]
pub(crate) mod drawing;
pub(crate) mod extent;
mod family;
pub(crate) mod lamps;
pub(crate) mod layout;
mod memory;
#[cfg(all(test, crash_points))]
mod model;
mod named;
mod naming;
pub(crate) mod object;
#[cfg(all(loom, test))]
pub(crate) mod orders;
mod pages;
mod poison;
pub(crate) mod recovery;
pub(crate) mod robust;
mod slots;
mod trace;
#[cfg(crash_points)]
mod twin;
pub(crate) mod view;

pub use arena::Arena;
pub use bytes::Bytes;
pub use carried::Carried;
pub use check::Census;
pub use extent::Extent;
pub use family::{Adoption, Placeless};
pub use memory::Memory;
pub use named::NamedMemory;
pub use naming::Naming;
pub use object::ObjectName;
pub use slots::{ChildSlot, Place};
#[cfg(crash_points)]
pub use twin::Snapshot;
