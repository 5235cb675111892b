//! Processes that we start: what to start ([`Spec`]), and what was started ([`Child`]); by exec, or by a fork server, which
//! has two ends: [`ForkServer`] is the one that asks, [`Server`] the one that forks.
//!
//! The invariant: a child is named by its pidfd, so nothing that is done to it can hit another process, and its
//! status is collected once. What a child is told to do is the face's affair, and travels through the arena.

mod child;
mod forkserver;
mod protocol;
mod report;
mod server;
mod spec;
mod status;

pub use child::Child;
pub use forkserver::{ForkServer, Starting};
pub use protocol::{BODY_MAX, PASSED_MAX};
pub use server::{Inherited, Request, Server};
pub use spec::Spec;
pub use status::ExitStatus;
