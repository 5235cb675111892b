//! Starting a process of this program that runs one function.
//!
//! Child and parent share a *mailbox*, a queue of the arena: the parent puts the call into it before the child is
//! started, the child takes it and puts the answer. So a call or a value of any length waits in shared memory, and
//! neither side waits for the other; what a child that dies leaves in it goes with it.
//!
//! The child learns who it is from its last argument, [`Ticket`]: unlike a variable of the environment, programs that
//! it starts don't inherit it. Its descriptor 3 is the arena's.

use crate::child::{self, Mode};
use crate::error::{Error, ErrorKind, Result, retry};
use crate::function::Named;
use crate::names;
use crate::tree;
use procession_core::{Child, ChildSlot, Deadline, ExitStatus, Message, ObjectName, Queue, Spec};
use std::os::fd::RawFd;
use std::sync::{Mutex, PoisonError};

/// In a mailbox: a call. Answers have tags of their own below this.
pub(crate) const CALL: u8 = 0xff;

/// What the last argument of a child begins with.
const MARK: &str = "procession-child=";

/// A process that runs a function.
#[derive(Debug)]
pub(crate) struct Launched {
    pub(crate) child: Child,
    mailbox: Queue,
    /// Kept until it has ended: it may not have attached yet.
    _slot: ChildSlot,
}

/// What a child is told on its command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ticket {
    /// What it attaches to the arena with.
    pub(crate) token: String,
    pub(crate) mailbox: ObjectName,
    /// For one that dies with its parent: the parent's id, and whether its first thread started it.
    pub(crate) parent: Option<(u32, bool)>,
}

/// Processes that nobody will join, kept until they end.
static DETACHED: Mutex<Vec<Launched>> = Mutex::new(Vec::new());

/// Starts a process that runs `function` with one argument, which `encode` appends to the call.
pub(crate) fn start(
    encode: impl FnOnce(&mut Vec<u8>) -> Result<()>,
    daemon: bool,
) -> Result<Launched> {
    let failed = |error| Error::at("start a process", error);
    collect_detached();
    let mode = child::mode()?;
    let arena = tree::arena()?;
    let slot = retry(|| arena.reserve()).map_err(failed)?;
    let mailbox = retry(|| Queue::new(arena, None)).map_err(failed)?;
    let mut call = Vec::new();
    let names = names::naming(|| encode(&mut call))?;
    retry(|| slot.give(mailbox.name())).map_err(failed)?;
    retry(|| mailbox.put_naming(CALL, &[&call], &names, Deadline::NEVER)).map_err(failed)?;
    drop((call, names));
    let mut spec = Spec::myself();
    if let Mode::Test(entry) = mode {
        spec = [entry, "--exact", "--nocapture", "--test-threads=1"]
            .into_iter()
            .fold(spec, Spec::argument);
    }
    let descriptor: RawFd = spec.pass(arena.descriptor()).map_err(failed)?;
    let ticket = Ticket {
        token: slot.token(descriptor),
        mailbox: mailbox.name(),
        parent: daemon.then(|| (std::process::id(), procession_core::is_main_thread())),
    };
    let child = spec.argument(ticket.text()).start().map_err(failed)?;
    Ok(Launched {
        child,
        mailbox,
        _slot: slot,
    })
}

/// As [`start`], of a function and its one argument.
pub(crate) fn start_call<A: serde::Serialize>(
    function: Named,
    argument: &A,
    daemon: bool,
) -> Result<Launched> {
    start(|call| function.call_one(argument, call), daemon)
}

impl Launched {
    /// Waits until it has ended; `None` once the deadline has passed.
    pub(crate) fn wait(&self, deadline: Deadline) -> Result<Option<ExitStatus>> {
        retry(|| self.child.wait(deadline)).map_err(|error| Error::at("wait for a process", error))
    }

    /// Takes its answer out of the mailbox, once it has ended: none if it died before it gave one.
    pub(crate) fn answer(&self) -> Result<Option<Message>> {
        let failed = |error| Error::at("take a process' value", error);
        self.reap()?;
        self.mailbox.settle().map_err(failed)?;
        while let Some(message) = retry(|| self.mailbox.get(Deadline::now())).map_err(failed)? {
            if message.tag != CALL {
                return Ok(Some(message));
            }
        }
        Ok(None)
    }

    /// Gives back what it held, once it has ended.
    pub(crate) fn reap(&self) -> Result<()> {
        let arena = tree::arena()?;
        retry(|| arena.reap()).map_err(|error| Error::at("give back what a process held", error))
    }

    pub(crate) fn signal(&self, signal: i32) -> Result<()> {
        self.child
            .signal(signal)
            .map_err(|error| Error::at("signal a process", error))
    }

    /// Lets it run on by itself. It is collected when it has ended, at the next start of a process.
    pub(crate) fn detach(self) {
        let running = matches!(self.child.wait(Deadline::now()), Ok(None));
        if running {
            let mut detached = DETACHED.lock().unwrap_or_else(PoisonError::into_inner);
            detached.push(self);
        }
    }
}

fn collect_detached() {
    let mut detached = DETACHED.lock().unwrap_or_else(PoisonError::into_inner);
    detached.retain(|launched| matches!(launched.child.wait(Deadline::now()), Ok(None)));
}

impl Ticket {
    /// `procession-child=TOKEN/OFFSET/SERIAL/PARENT`, or `-` for no parent, or with an `m` behind it for its first
    /// thread.
    fn text(&self) -> String {
        let ObjectName { offset, serial } = self.mailbox;
        let parent = match self.parent {
            None => "-".to_owned(),
            Some((pid, first)) => format!("{pid}{}", if first { "m" } else { "" }),
        };
        format!("{MARK}{}/{offset:x}/{serial:x}/{parent}", self.token)
    }

    /// Reads an argument; `None` if it is no ticket at all.
    pub(crate) fn read(argument: &str) -> Option<Result<Self>> {
        let text = argument.strip_prefix(MARK)?;
        Some(Self::parse(text).ok_or_else(|| {
            Error::new(
                ErrorKind::Malformed,
                format!("begin as a child: malformed {argument:?}"),
            )
        }))
    }

    fn parse(text: &str) -> Option<Self> {
        let mut fields = text.split('/');
        let mut field = || fields.next();
        let token = field()?.to_owned();
        let offset = u64::from_str_radix(field()?, 16).ok()?;
        let serial = u64::from_str_radix(field()?, 16).ok()?;
        let parent = match field()? {
            "-" => None,
            text => {
                let digits = text.trim_end_matches('m');
                Some((digits.parse().ok()?, digits.len() < text.len()))
            }
        };
        fields.next().is_none().then_some(Self {
            token,
            mailbox: ObjectName { offset, serial },
            parent,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tickets_come_back() {
        for parent in [None, Some((77, false)), Some((78, true))] {
            let ticket = Ticket {
                token: "3:2:1:ab:cd".to_owned(),
                mailbox: ObjectName {
                    offset: 4096,
                    serial: 17,
                },
                parent,
            };
            assert_eq!(Ticket::read(&ticket.text()).unwrap().unwrap(), ticket);
        }
        assert!(Ticket::read("something").is_none());
        for wrong in ["", "t/1/1", "t/x/1/-", "t/1/1/-/", "t/1/1/m"] {
            assert!(
                Ticket::read(&format!("{MARK}{wrong}")).unwrap().is_err(),
                "{wrong}"
            );
        }
    }
}
