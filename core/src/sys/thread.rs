//! Threads that the engine starts beside those of its program.

use super::{allow, failed, fork};
use crate::{Error, Result};
use std::thread::JoinHandle;

/// What such a thread needs: it calls the system, with room for all the descriptors that one packet has.
const STACK: usize = 128 << 10;

/// Starts a thread that hears no signal, from its first instruction on: each goes to one of the program's own threads, which expect
/// them.
///
/// # Errors
/// `Os` when the system refuses the thread.
pub(crate) fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    allow("pthread_create").map_err(|errno| failed("pthread_create", errno))?;
    let held = fork::hold_signals();
    let thread = std::thread::Builder::new()
        .name(name.into())
        .stack_size(STACK)
        .spawn(body);
    held.meet();
    thread.map_err(|error| Error::Os {
        call: "pthread_create",
        errno: error.raw_os_error().unwrap_or_default(),
    })
}
