//! Processes as easily as threads.
#![forbid(unsafe_code)]
