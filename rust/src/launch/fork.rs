//! A copy of this process.

use super::{Plan, failed, spawn};
use crate::child;
use crate::error::{Error, ErrorKind, Result};
use procession_core::process::{Others, fork, other_threads};
use procession_core::{Child, Error as Core, Queue};

/// Forks a child that takes its call out of the mailbox.
pub(super) fn start(plan: &mut Plan, mailbox: &Queue) -> Result<Child> {
    let allowed = child::others();
    // What is buffered would be written by both.
    child::flush();
    let parent = plan.daemon.then(spawn::me);
    let setting = std::mem::take(&mut plan.setting);
    let mine = (
        std::mem::take(&mut plan.ends),
        std::mem::take(&mut plan.passed),
    );
    let ((ends, passed), forked) = fork(allowed, setting, mine, |(ends, passed)| {
        // The pipes would never end for the child while it has this process' ends of them itself.
        drop(ends);
        child::go_on(|| {
            child::depend(parent)?;
            child::answer(mailbox, passed)
        })
    });
    drop(passed);
    plan.ends = ends;
    forked.map_err(|error| match (&error, other_threads(allowed)) {
        (Core::Misuse { .. }, Ok(others)) if others > 0 => threads(others, allowed),
        _ => failed(error),
    })
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
