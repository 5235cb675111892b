//! Threads that the engine starts beside those of its program.

use super::{allow, failed, fork};
use crate::{Error, Result};

/// What such a thread needs: it calls the system, and little else.
const STACK: usize = 64 << 10;

/// Starts a thread that hears no signal: each goes to one of the program's own threads, which expect them.
///
/// # Errors
/// `Os` when the system refuses the thread.
pub(crate) fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<()> {
    allow("pthread_create").map_err(|errno| failed("pthread_create", errno))?;
    let held = fork::hold_signals();
    let thread = std::thread::Builder::new()
        .name(name.into())
        .stack_size(STACK)
        .spawn(body);
    held.meet();
    thread.map(drop).map_err(|error| Error::Os {
        call: "pthread_create",
        errno: error.raw_os_error().unwrap_or_default(),
    })
}
