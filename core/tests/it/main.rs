//! The engine, with real processes: forked, killed, stopped and stepped.
#![allow(
    unsafe_code,
    reason = "fork, ptrace and waitpid, which a test of processes needs bare"
)]
#![allow(missing_docs, reason = "tests")]

mod child;
mod lock;
mod queue;
