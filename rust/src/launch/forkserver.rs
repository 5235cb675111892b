//! A child of the fork server: this program, started again once, which forks whenever it is asked to.
//!
//! [`crate::server`] is the other side. The server is started on demand; a child of it asks the same one, and it lives
//! until nobody is left who could ask. One that died is replaced at the next start.

use super::{CALL, Plan, Role, failed, spawn};
use crate::child;
use crate::codec;
use crate::error::{Error, ErrorKind, Result, retry};
use crate::tree;
use procession_core::{Child, ChildSlot, Deadline, Error as Core, ForkServer, Queue, Setting};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Servers, or children that wait there, that may die, one after the other, in one start of a process.
const ATTEMPTS: usize = 3;
/// How long a server that closed its socket may take to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a request says; the descriptors come with it, in this order.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Asked {
    /// Offset and serial number.
    pub(crate) mailbox: (u64, u64),
    pub(crate) daemon: bool,
    streams: [bool; 3],
    directory: bool,
}

/// A server, as this process knows it.
#[derive(Debug)]
struct Known {
    way: ForkServer,
    /// It had a child, so it can begin.
    works: AtomicBool,
    /// Of whoever started it: its process, and its place in the tree.
    started: Option<(Child, ChildSlot)>,
}

static SERVER: Mutex<Option<Arc<Known>>> = Mutex::new(None);

/// Has a child forked that finds its call in the mailbox; in another one, if the server died over the first.
pub(super) fn start(plan: &mut Plan, mailbox: &mut Queue) -> Result<(Child, ChildSlot)> {
    let setting = setting(std::mem::take(&mut plan.setting));
    let (streams, directory) = setting.descriptors();
    for _ in 0..ATTEMPTS {
        let known = known()?;
        let slot = spawn::reserve(mailbox)?;
        let name = mailbox.name();
        let mut body = Vec::new();
        let asked = Asked {
            mailbox: (name.offset, name.serial),
            daemon: plan.daemon,
            streams: streams.map(|stream| stream.is_some()),
            directory: directory.is_some(),
        };
        codec::encode(&asked, &mut body)?;
        let said = streams.into_iter().chain([directory]).flatten();
        let passed: Vec<_> = said.chain(plan.passed.iter().map(AsFd::as_fd)).collect();
        match ask(&known.way, &slot, &body, &passed) {
            Ok(child) => {
                known.works.store(true, Relaxed);
                return Ok((child, slot));
            }
            Err(Core::Closed { .. }) => {}
            Err(error) => return Err(failed(error)),
        }
        if !known.works.load(Relaxed) && !known.way.is_alive() {
            return Err(known.unable());
        }
        *mailbox = take_back(mailbox)?;
    }
    let text = "start a process: one fork server after the other died over it";
    Err(Error::new(ErrorKind::Lost, text))
}

/// With this process' standard streams and current directory, where nothing else was said: the server has its own.
fn setting(mut setting: Setting) -> Setting {
    let mine = [
        std::io::stdin().as_fd().try_clone_to_owned(),
        std::io::stdout().as_fd().try_clone_to_owned(),
        std::io::stderr().as_fd().try_clone_to_owned(),
    ];
    let (said, directory) = setting.descriptors();
    let (said, is_here) = (said.map(|stream| stream.is_some()), directory.is_none());
    for (number, (stream, said)) in mine.into_iter().zip(said).enumerate() {
        // One that is closed here can't be handed over.
        if let (Ok(stream), false) = (stream, said) {
            setting.stream(number, stream);
        }
    }
    if is_here {
        // One that can't be opened any more is no place to begin in: then it is the server's.
        let _ = setting.directory(Path::new("."));
    }
    setting
}

fn ask(
    way: &ForkServer,
    slot: &ChildSlot,
    body: &[u8],
    passed: &[BorrowedFd<'_>],
) -> procession_core::Result<Child> {
    const GONE: Core = Core::Closed {
        what: "fork server",
    };
    let starting = retry(|| way.start(slot, body, passed, Deadline::NEVER))?;
    let mut starting = starting.ok_or(GONE)?;
    retry(|| starting.wait(Deadline::NEVER))?.ok_or(GONE)
}

/// Takes the call out of the mailbox again and puts it into another: a child that came to life in the server's last
/// instant has it, or will never have it.
fn take_back(mailbox: &Queue) -> Result<Queue> {
    let call = retry(|| mailbox.get(Deadline::now())).map_err(failed)?;
    // It may have run already, and answered.
    let call = call.filter(|call| call.tag == CALL).ok_or_else(|| {
        let text = "start a process: the fork server died over it, and can't tell of the process, which runs or did";
        Error::new(ErrorKind::Lost, text)
    })?;
    let arena = tree::arena()?;
    let other = retry(|| Queue::new(arena, None)).map_err(failed)?;
    retry(|| other.put_naming(CALL, &[&call.bytes], &call.carried, Deadline::NEVER))
        .map_err(failed)?;
    Ok(other)
}

/// The server; started, if there is none that lives.
fn known() -> Result<Arc<Known>> {
    let mut server = lock();
    if let Some(known) = &*server
        && known.way.is_alive()
    {
        return Ok(known.clone());
    }
    let died = server.take();
    if let Some((child, _)) = died.as_ref().and_then(|died| died.started.as_ref()) {
        let ended = retry(|| child.wait(Deadline::after(PATIENCE)));
        log::warn!(
            "the fork server (process {}) is gone: {ended:?}",
            child.pid()
        );
    }
    let known = Arc::new(begin()?);
    *server = Some(known.clone());
    Ok(known)
}

/// Starts a server.
fn begin() -> Result<Known> {
    let failed = |error| Error::at("start the fork server", error);
    let mut spec = spawn::myself(child::mode()?);
    let arena = tree::arena()?;
    let slot = retry(|| arena.reserve()).map_err(failed)?;
    let (way, end) = ForkServer::new().map_err(failed)?;
    let descriptor = spec.pass(arena.descriptor()).map_err(failed)?;
    let requests = spec.pass(&end).map_err(failed)?;
    let ticket = Role::server_text(requests, &slot.token(descriptor));
    let child = spec.argument(ticket).start().map_err(failed)?;
    log::debug!("the fork server was started, as process {}", child.pid());
    Ok(Known {
        way,
        works: AtomicBool::new(false),
        started: Some((child, slot)),
    })
}

impl Known {
    /// Why there is no server.
    fn unable(&self) -> Error {
        let child = self.started.as_ref().map(|(child, _)| child);
        let ended = child.map(|child| retry(|| child.wait(Deadline::after(PATIENCE))));
        let how = match ended {
            Some(Ok(Some(status))) => format!(" by {status}"),
            _ => String::new(),
        };
        let text = format!(
            "start a process: the fork server ended{how} before it could have a child: what its preload said is on standard \
             error"
        );
        Error::new(ErrorKind::Lost, text)
    }
}

/// In a child of the server: asks the same one.
pub(crate) fn know(way: ForkServer) {
    *lock() = Some(Arc::new(Known {
        way,
        works: AtomicBool::new(true),
        started: None,
    }));
}

/// Waits for a server that has ended, so that nothing is left of it.
pub(crate) fn collect() {
    let server = &mut *lock();
    let started = server.as_ref().and_then(|known| known.started.as_ref());
    let ended = started.map(|(child, _)| retry(|| child.wait(Deadline::now())));
    // Interrupted or short of memory: it is looked at again the next time.
    if let Some(Ok(Some(status))) = ended {
        log::warn!("the fork server ended by {status}");
        *server = None;
    }
}

impl Asked {
    /// What the child begins with, of the descriptors that came with the request; and the rest of them.
    pub(crate) fn setting(&self, passed: Vec<OwnedFd>) -> (Setting, Vec<OwnedFd>) {
        let mut setting = Setting::default();
        let mut passed = passed.into_iter();
        for (number, is_there) in self.streams.into_iter().enumerate() {
            if is_there && let Some(stream) = passed.next() {
                setting.stream(number, stream);
            }
        }
        if self.directory
            && let Some(directory) = passed.next()
        {
            setting.open_directory(directory);
        }
        (setting, passed.collect())
    }
}

fn lock() -> MutexGuard<'static, Option<Arc<Known>>> {
    SERVER.lock().unwrap_or_else(PoisonError::into_inner)
}
