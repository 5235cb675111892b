//! The Rust face, with real processes.
#![allow(missing_docs, reason = "tests")]

mod lock;
mod pool;
mod process;
mod queue;
mod watchdog;

procession::test_support!();
