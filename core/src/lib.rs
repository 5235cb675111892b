//! The engine of procession: bytes, handles, memory and processes, and no language's values.
#![deny(unsafe_code)]

pub mod deadline;
pub mod error;
pub mod pool;

pub use deadline::Deadline;
pub use error::{Error, Result};
