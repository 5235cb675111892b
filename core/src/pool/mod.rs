//! Pools: many tasks, few workers, one answer for each task.
//!
//! Two queues a pool: tasks go to whichever worker is free, answers come back. What to do next is decided by the
//! [`Scheduler`], which is pure: no memory of several processes, no thread, no clock. What chunks are and how their
//! results come together again is in [`batch`], pure as well. [`Driver`] carries the one's decisions to the arena's
//! queues; [`Seat`] is a worker's end of them. Starting and reaping processes is the face's.
//!
//! The invariant: each task that was accepted gets exactly one answer, whoever dies meanwhile.

pub mod batch;
pub mod driver;
pub mod scheduler;
pub mod seat;

pub use driver::{Driver, LOOK, News, Submitted};
pub use scheduler::{Action, Failure, Limits, Phase, Refused, Scheduler, TaskId, WorkerId};
pub use seat::{Seat, Task};

#[cfg(test)]
mod simulation;
