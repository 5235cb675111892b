//! This program, started again.

use super::{Plan, Ticket, failed};
use crate::child::{self, Mode};
use crate::error::{Result, retry};
use crate::tree;
use procession_core::{Child, ChildSlot, Queue, Spec};
use std::os::fd::RawFd;

/// Starts a child that finds its call in the mailbox. Its place is kept until it has ended: it may not have attached.
pub(super) fn start(plan: &mut Plan, mailbox: &Queue) -> Result<(Child, Option<ChildSlot>)> {
    let mut spec = myself(child::mode()?).setting(std::mem::take(&mut plan.setting));
    let arena = tree::arena()?;
    let slot = reserve(mailbox)?;
    let descriptor: RawFd = spec.pass(arena.descriptor()).map_err(failed)?;
    // Behind the arena's: the child knows how many.
    for descriptor in plan.passed.drain(..) {
        spec.pass(descriptor).map_err(failed)?;
    }
    let ticket = Ticket {
        token: slot.token(descriptor),
        mailbox: mailbox.name(),
        parent: plan.daemon.then(me),
    };
    let child = spec.argument(ticket.text()).start().map_err(failed)?;
    Ok((child, Some(slot)))
}

/// Keeps a place for a child, which holds the mailbox from now on.
pub(super) fn reserve(mailbox: &Queue) -> Result<ChildSlot> {
    let arena = tree::arena()?;
    let slot = retry(|| arena.reserve()).map_err(failed)?;
    retry(|| slot.give(mailbox.name())).map_err(failed)?;
    Ok(slot)
}

/// This program, with the arguments that bring it to where its children begin.
pub(super) fn myself(mode: Mode) -> Spec {
    match mode {
        Mode::Main => Spec::myself(),
        Mode::Test(entry) => [entry, "--exact", "--nocapture", "--test-threads=1"]
            .into_iter()
            .fold(Spec::myself(), Spec::argument),
    }
}

/// Whom a daemonic child dies with: this process, and whether it is its first thread that starts the child.
pub(super) fn me() -> (u32, bool) {
    (std::process::id(), procession_core::is_main_thread())
}
