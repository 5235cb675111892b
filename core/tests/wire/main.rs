//! CPython's wire, without a wire: real exchanges replayed, every way to deviate from them, and hostile bytes from a seed.
//!
//! A program of its own, since it counts what is allocated. It forks nothing and opens nothing.
#![allow(unsafe_code, reason = "an allocator that counts")]
#![allow(missing_docs, reason = "tests")]
#![allow(
    clippy::print_stdout,
    reason = "seeds and counts, for whoever reads a failure"
)]

mod captures;
mod counting;
mod deviations;
mod exchanges;
mod exercise;
mod frames;
mod hostile;
mod random;
