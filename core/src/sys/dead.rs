//! Processes that count as dead though they are not: a harness asks what others would do if they were.
//!
//! Compiled in by `--cfg crash_points` only. The set is this process' own; a forked child has a copy of it. Their
//! threads' ids exist on, as those of a process that was killed and that nobody has waited for.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

static DEAD: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());

/// Has this process take the process `pid` for dead from now on.
pub fn declare(pid: u32) {
    DEAD.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .insert(pid);
}

/// Forgets all that were declared: pids come again.
pub fn forget() {
    DEAD.lock().unwrap_or_else(PoisonError::into_inner).clear();
}

/// Whether the process of that id was declared dead.
pub(crate) fn is_declared(pid: u32) -> bool {
    DEAD.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .contains(&pid)
}
