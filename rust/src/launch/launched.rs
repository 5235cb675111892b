//! A process that was started.

use super::{CALL, Plan};
use crate::error::{Error, ErrorKind, JoinError, Result, retry};
use crate::function::end;
use crate::process::children;
use crate::tree;
use procession_core::handoff::Invited;
use procession_core::{Child, ChildSlot, Deadline, ExitStatus, Message, Queue};
use std::fmt;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

/// A process that runs a function.
#[derive(Debug)]
pub(crate) struct Launched {
    pub(crate) child: Child,
    pub(crate) name: String,
    pub(crate) daemon: bool,
    /// The process that started it.
    creator: u32,
    mailbox: Queue,
    /// Kept until it has ended: it may not have attached yet.
    _slot: Option<ChildSlot>,
    /// Until its value was taken.
    _invited: Option<Invited>,
    /// This process has sent it a signal, so an end by one is no surprise.
    signalled: AtomicBool,
    /// Its end was logged.
    logged: AtomicBool,
}

impl Launched {
    pub(super) fn new(
        child: Child,
        mailbox: Queue,
        slot: Option<ChildSlot>,
        plan: &mut Plan,
    ) -> Self {
        Self {
            child,
            name: plan.name.clone(),
            daemon: plan.daemon,
            creator: std::process::id(),
            mailbox,
            _slot: slot,
            _invited: plan.invited.take(),
            signalled: AtomicBool::new(false),
            logged: AtomicBool::new(false),
        }
    }

    /// Whether it is a child of this process, and not of one that this process was forked from.
    ///
    /// # Errors
    /// `Misuse` if it isn't; `doing` says what was to be done, as "join".
    pub(crate) fn mine(&self, doing: &str) -> Result<()> {
        if self.creator == std::process::id() {
            return Ok(());
        }
        let creator = self.creator;
        Err(Error::new(
            ErrorKind::Misuse,
            format!("{doing} a process: {self} is a child of process {creator}, not of this one"),
        ))
    }

    /// Waits until it has ended, and says how; `None` once the deadline has passed.
    pub(crate) fn wait(&self, deadline: Deadline) -> Result<Option<ExitStatus>> {
        self.mine("wait for")?;
        let waited = retry(|| self.child.wait(deadline));
        match &waited {
            Ok(None) => return Ok(None),
            Ok(Some(status)) => self.log(format_args!("{status}"), status.success()),
            Err(_) => {}
        }
        children::forget(self);
        waited.map_err(|error| Error::at("wait for a process", error))
    }

    /// Waits until it has ended; false once the deadline has passed.
    pub(crate) fn wait_for_end(&self, deadline: Deadline) -> Result<bool> {
        retry(|| self.child.wait_for_end(deadline))
            .map_err(|error| Error::at("wait for a process", error))
    }

    /// Lets go of one that has ended, and whose answer with this tag is there. A fork server's may be asked for its status
    /// later, and isn't waited for now: that comes a moment after the end.
    pub(crate) fn answered(&self, tag: u8) {
        if !self.child.is_served() {
            // Somebody else may have waited for it: the answer is there all the same.
            let _ = self.wait(Deadline::now());
            return;
        }
        match tag {
            end::RETURNED => self.log(format_args!("its function's return"), true),
            end::PANICKED => self.log(format_args!("a panic of its function"), false),
            _ => self.log(format_args!("a failure to answer"), false),
        }
        children::forget(self);
    }

    /// Why one that has ended gave no answer.
    pub(crate) fn lost(&self) -> JoinError {
        loop {
            match self.wait(Deadline::NEVER) {
                Ok(Some(status)) => return JoinError::Lost(status),
                Ok(None) => {}
                Err(error) => return error.into(),
            }
        }
    }

    fn log(&self, how: fmt::Arguments<'_>, is_good: bool) {
        if self.logged.swap(true, Relaxed) {
            return;
        }
        if is_good || self.signalled.load(Relaxed) {
            log::debug!("{self} ended by {how}");
        } else {
            log::warn!("{self} died by {how}");
        }
    }

    /// Takes its answer out of the mailbox, once it has ended: none if it died before it gave one.
    pub(crate) fn answer(&self) -> Result<Option<Message>> {
        let failed = |error| Error::at("take a process' value", error);
        reap()?;
        self.mailbox.settle().map_err(failed)?;
        while let Some(message) = retry(|| self.mailbox.get(Deadline::now())).map_err(failed)? {
            if message.tag != CALL {
                return Ok(Some(message));
            }
        }
        Ok(None)
    }

    pub(crate) fn signal(&self, signal: i32) -> Result<()> {
        self.mine("signal")?;
        self.signalled.store(true, Relaxed);
        self.child
            .signal(signal)
            .map_err(|error| Error::at("signal a process", error))
    }
}

/// Gives back what processes held that have ended.
pub(crate) fn reap() -> Result<()> {
    let arena = tree::arena()?;
    retry(|| arena.reap()).map_err(|error| Error::at("give back what a process held", error))
}

impl fmt::Display for Launched {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (process {})", self.name, self.child.pid())
    }
}
