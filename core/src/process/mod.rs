//! Processes that we start: what to start ([`Spec`]), or go on in a copy of this one ([`fork()`]), and what was
//! started ([`Child`]); or a fork server does it, which has two ends: [`ForkServer`] is the one that asks, [`Server`] the
//! one that forks.
//!
//! The invariant: a child is named by its pidfd, so nothing that is done to it can hit another process, and its
//! status is collected once. What a child is told to do is the face's affair, and travels through the arena.

mod child;
mod fork;
mod forkserver;
mod parent;
mod protocol;
mod report;
mod server;
mod setting;
mod spec;
mod status;
mod wait;

pub use child::Child;
pub use fork::{Others, fork, other_threads};
pub use forkserver::{ForkServer, Starting};
pub use parent::Parent;
pub use protocol::{BODY_MAX, PASSED_MAX};
pub use server::{Fork, Inherited, Server, Waiting};
pub use setting::Setting;
pub use spec::Spec;
pub use status::ExitStatus;
pub use wait::wait_for_any;
