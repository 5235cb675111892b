//! The Rust face, with real processes.
#![allow(missing_docs, reason = "tests")]
#![allow(
    clippy::print_stderr,
    reason = "the watchdog, for whoever reads a failure"
)]

mod connection;
mod each;
mod handoff;
mod listener;
mod lock;
mod methods;
mod pool;
mod process;
mod queue;
mod shared;
mod signals;
mod starve;
mod sync;
mod watchdog;

procession::test_support!(methods::preload);
