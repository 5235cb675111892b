//! Processes that we start: what to start ([`Spec`]), and what was started ([`Child`]).
//!
//! The invariant: a child is named by its pidfd, so nothing that is done to it can hit another process, and its
//! status is collected once. What a child is told to do is the face's affair, and travels through the arena.

mod child;
mod spec;
mod status;

pub use child::Child;
pub use spec::Spec;
pub use status::ExitStatus;
