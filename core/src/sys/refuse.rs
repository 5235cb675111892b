//! Refused system calls: the n-th one of this thread from now fails with a chosen error.
//!
//! Compiled in by `--cfg crash_points` only. Every call that asks the system for something passes [`point`] first, so a
//! test can refuse each of them, one after another, without knowing which they are. Waking, waiting on a word and
//! giving back (munmap, close) aren't asked: nothing that limits a process refuses them.

use rustix::io::{Errno, Result};
use std::cell::{Cell, RefCell};

thread_local! {
    static ARMED: Cell<Option<(u64, Errno)>> = const { Cell::new(None) };
    static PASSED: RefCell<Vec<&'static str>> = const { RefCell::new(Vec::new()) };
}

/// Refuses the `n`-th call of this thread from now, counted from one, with that error number of errno(3).
pub fn arm(n: u64, errno: i32) {
    PASSED.take();
    ARMED.set(Some((n, Errno::from_raw_os_error(errno))));
}

/// Refuses nothing any more, and tells the names of the calls that this thread made since it was armed.
pub fn disarm() -> Vec<&'static str> {
    ARMED.set(None);
    PASSED.take()
}

/// Whether the call of that name is made.
pub(crate) fn point(name: &'static str) -> Result<()> {
    let Some((n, errno)) = ARMED.get() else {
        return Ok(());
    };
    let passed = PASSED.with_borrow_mut(|passed| {
        passed.push(name);
        passed.len() as u64
    });
    if passed == n { Err(errno) } else { Ok(()) }
}
