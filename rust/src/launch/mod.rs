//! Starting a process of this program that runs one function.
//!
//! Child and parent share a *mailbox*, a queue of the arena: the parent puts the call into it before the child is
//! started, the child takes it and puts the answer. So a call or a value of any length waits in shared memory, and
//! neither side waits for the other; what a child that dies leaves in it goes with it. A call says first who the child is
//! ([`Birth`](me::Birth)), the same way for each start method.
//!
//! Descriptors that the argument has in it, those of connections, come to the child with its start, in the order in which the
//! argument has them.
//!
//! A spawned child learns where its mailbox is from its last argument, [`Ticket`]: unlike a variable of the environment,
//! programs that it starts don't inherit it. Its descriptor 3 is the arena's. A forked one knows already.

mod fork;
pub(crate) mod forkserver;
mod launched;
mod spawn;
mod ticket;

pub(crate) use launched::{Launched, reap};
pub(crate) use ticket::{Role, Ticket};

use crate::codec;
use crate::connection::passing::{self, Given};
use crate::error::{Error, ErrorKind, Result, retry};
use crate::function::Named;
use crate::names;
use crate::process::{Change, StartMethod, children, me};
use crate::tree;
use procession_core::handoff::Invited;
use procession_core::{Deadline, Queue, Setting};
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// In a mailbox: a call. Answers have tags of their own below this.
pub(crate) const CALL: u8 = 0xff;

/// What a process is to be like.
#[derive(Debug)]
pub(crate) struct Plan {
    /// Empty: the kind, and the number of the child.
    pub(crate) name: String,
    pub(crate) kind: &'static str,
    pub(crate) daemon: bool,
    pub(crate) method: StartMethod,
    pub(crate) setting: Setting,
    /// What the setting doesn't say of the environment: a fork server's child changes its own.
    pub(crate) changes: Vec<Change>,
    /// This process' ends of pipes to the child.
    pub(crate) ends: [Option<OwnedFd>; 3],
    /// It may leave here the descriptors that it returns.
    pub(crate) invited: Option<Invited>,
    /// Descriptors of connections in the argument.
    pub(crate) passed: Vec<OwnedFd>,
}

impl Plan {
    /// A process of that kind which is like this one.
    pub(crate) fn of(kind: &'static str, method: StartMethod) -> Self {
        Self {
            name: String::new(),
            kind,
            daemon: false,
            method,
            setting: Setting::default(),
            changes: Vec::new(),
            ends: [None, None, None],
            invited: None,
            passed: Vec::new(),
        }
    }
}

/// Starts a process that runs `function` with one argument; gives it and this process' ends of the pipes to it.
pub(crate) fn start<A: serde::Serialize>(
    mut plan: Plan,
    function: Named,
    argument: &A,
) -> Result<(Arc<Launched>, [Option<OwnedFd>; 3])> {
    let me = me::me();
    if me.is_daemon() {
        let text = "start a process: a daemonic process may not have children";
        return Err(Error::new(ErrorKind::Misuse, text));
    }
    children::collect();
    let arena = tree::arena()?;
    let mut mailbox = retry(|| Queue::new(arena, None)).map_err(failed)?;
    let birth = me.child(&mut plan);
    let (mut head, mut call) = (Vec::new(), Vec::new());
    let mut given = Given::default();
    let names = names::naming(|| {
        given = passing::giving(|| function.call_one(argument, &mut call))?;
        codec::encode(&(birth, &plan.changes, given.kinds()), &mut head)
    })?;
    plan.passed = given.descriptors()?;
    retry(|| mailbox.put_naming(CALL, &[&head, &call], &names, Deadline::NEVER)).map_err(failed)?;
    drop((call, names, given));
    let (child, slot) = match plan.method {
        StartMethod::Spawn => spawn::start(&mut plan, &mailbox)?,
        StartMethod::Fork => (fork::start(&mut plan, &mailbox)?, None),
        StartMethod::Forkserver => {
            let (child, slot) = forkserver::start(&mut plan, &mut mailbox)?;
            (child, Some(slot))
        }
    };
    let launched = Arc::new(Launched::new(child, mailbox, slot, &mut plan));
    children::add(&launched);
    log::debug!("{launched} was started by {}", plan.method);
    Ok((launched, plan.ends))
}

fn failed(error: procession_core::Error) -> Error {
    Error::at("start a process", error)
}
