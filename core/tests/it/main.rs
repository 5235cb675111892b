//! The engine, with real processes: forked, killed, stopped and stepped.
#![allow(
    unsafe_code,
    reason = "fork, ptrace and waitpid, which a test of processes needs bare"
)]
#![allow(missing_docs, reason = "tests")]
#![allow(
    clippy::print_stdout,
    reason = "seeds and counts, for whoever reads a failure"
)]

mod attach;
#[cfg(crash_points)]
mod bytes;
mod carried;
mod child;
mod connection;
#[cfg(crash_points)]
mod crash;
mod fork;
#[cfg(crash_points)]
mod getter;
mod handoff;
mod listener;
mod lock;
mod memory;
mod pipe;
mod process;
#[cfg(crash_points)]
mod properties;
mod queue;
#[cfg(crash_points)]
mod refuse;
#[cfg(crash_points)]
mod scene;
mod server;
#[cfg(crash_points)]
mod simulation;
mod starve;
#[cfg(crash_points)]
mod steps;
#[cfg(crash_points)]
mod stopped;
#[cfg(not(crash_points))]
mod storm;
mod sync;
mod tasks;
mod watch;
