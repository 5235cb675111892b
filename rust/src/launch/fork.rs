//! A copy of this process.

use super::{Plan, failed, spawn};
use crate::child;
use crate::error::{Error, ErrorKind, Result};
use crate::tree;
use procession_core::process::{Others, other_threads};
use procession_core::{Child, Queue};
use std::io::Write;

/// Forks a child that takes its call out of the mailbox.
pub(super) fn start(plan: &mut Plan, mailbox: &Queue) -> Result<Child> {
    let allowed = child::others();
    let others = other_threads(allowed).map_err(failed)?;
    if others > 0 {
        return Err(threads(others, allowed));
    }
    // What is buffered would be written by both.
    flush();
    let parent = plan.daemon.then(spawn::me);
    let ends = &mut plan.ends;
    let work = || {
        // The pipes would never end for the child while it has this process' ends of them itself.
        drop(std::mem::take(ends));
        let code = child::begin_in(parent, mailbox);
        flush();
        if let Ok(arena) = tree::arena() {
            arena.leave();
        }
        code
    };
    procession_core::process::fork(allowed, &plan.setting, work).map_err(failed)
}

fn threads(others: usize, allowed: Others) -> Error {
    let all = others + 1 + usize::from(allowed == Others::ParkedFirst);
    Error::new(
        ErrorKind::Misuse,
        format!(
            "start a process by fork: this process has {all} threads, and what the others are at would stay half \
             done in the child: start it before other threads are, or by spawn or forkserver"
        ),
    )
}

fn flush() {
    // Nobody to tell: whoever writes next to the same stream is told.
    let _ = std::io::stdout().flush();
}
