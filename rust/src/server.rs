//! This program as its own fork server.
//!
//! It has run the preload hook, has a single thread, and forks a child for each request; the child goes on as any other
//! one of ours does, with the call that it finds in its mailbox.

use crate::child;
use crate::codec;
use crate::error::{Error, ErrorKind, Result, retry};
use crate::launch::forkserver::{self, Asked};
use crate::process::me;
use crate::tree;
use procession_core::process::{self, Fork, Server, Waiting, other_threads};
use procession_core::{Arena, ObjectName, Queue, Setting};
use std::fs::OpenOptions;
use std::os::fd::RawFd;

/// Serves until nobody is left who could ask; gives the exit code.
pub(crate) fn serve(token: &str, requests: RawFd, preload: impl FnOnce()) -> Result<i32> {
    let requests = procession_core::inherited(requests).map_err(failed)?;
    let arena = tree::attach(token)?;
    preload();
    let others = other_threads(child::others()).map_err(failed)?;
    if others > 0 {
        let text = format!(
            "begin as the fork server: the preload has left {others} threads running, and a process with several threads \
             can't be forked"
        );
        return Err(Error::new(ErrorKind::Misuse, text));
    }
    // What the preload has printed comes once.
    child::flush();
    let_go_of_streams()?;
    let mut server = Server::new(requests).map_err(failed)?;
    // What was made so far doesn't change any more, so a child may be forked ahead.
    while let Some(fork) = retry(|| server.next_fork(arena, true)).map_err(failed)? {
        server = make(server, fork, arena);
    }
    Ok(0)
}

/// Nothing is read here, and whoever reads what this process could write isn't kept waiting for the end of that.
fn let_go_of_streams() -> Result<()> {
    let null = OpenOptions::new().read(true).write(true).open("/dev/null");
    let mut setting = Setting::default();
    if let Ok(null) = null
        && let Ok(copy) = null.try_clone()
    {
        setting.stream(0, null.into());
        setting.stream(1, copy.into());
    }
    setting.enter().map_err(failed)
}

/// Forks a child, or says why there is none.
fn make(server: Server, fork: Fork, arena: &Arena) -> Server {
    let placeless = arena.placeless();
    let mine = (server, fork);
    let ((mut server, fork), forked) =
        process::fork(child::others(), Setting::default(), mine, |mine| {
            child::go_on(|| begin(mine.0.become_child(mine.1), arena))
        });
    drop(placeless);
    match forked {
        Ok(child) => server.forked(fork, child.pid()),
        Err(error) => server.could_not(fork, &error),
    }
    server
}

/// What a child of the server does; gives the exit code.
fn begin(waiting: Waiting, arena: &Arena) -> Result<i32> {
    let Some(inherited) = waiting.request(arena).map_err(failed)? else {
        return Ok(0);
    };
    forkserver::know(inherited.server);
    let asked: Asked = codec::decode_all(&inherited.body)?;
    let (setting, passed) = asked.setting(inherited.passed);
    setting.enter().map_err(failed)?;
    let (offset, serial) = asked.mailbox;
    let name = ObjectName { offset, serial };
    let mailbox = retry(|| Queue::open(arena, name)).map_err(failed)?;
    let call = child::Call::take(&mailbox)?;
    // Before there is a second thread.
    call.enter()?;
    if asked.daemon {
        let requester = me::copy(&inherited.requester)?;
        procession_core::die_with(requester).map_err(failed)?;
    }
    call.run(&mailbox, Some(inherited.requester), passed)
}

fn failed(error: procession_core::Error) -> Error {
    Error::at("serve as the fork server", error)
}
