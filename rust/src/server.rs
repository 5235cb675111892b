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
use procession_core::process::{Interrupts, Request, Server, fork, hold_interrupts, other_threads};
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
    let interrupts = hold_interrupts();
    let mut server = Server::new(requests).map_err(failed)?;
    loop {
        match retry(|| server.next_request()).map_err(failed)? {
            Some(request) => server = answer(server, request, arena, &interrupts),
            None => return Ok(0),
        }
    }
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

/// Forks a child for a request, or says why there is none.
fn answer(server: Server, request: Request, arena: &Arena, interrupts: &Interrupts) -> Server {
    let adoption = match request.adopt(arena) {
        Ok(adoption) => adoption,
        Err(error) => {
            Server::refuse(request, &error);
            return server;
        }
    };
    let mine = (server, request);
    let setting = Setting::default();
    let ((mut server, request), forked) = fork(child::others(), setting, mine, |mine| {
        interrupts.meet();
        child::go_on(|| begin(mine.0, mine.1, arena))
    });
    drop(adoption);
    match forked {
        Ok(child) => server.started(request, child.pid()),
        Err(error) => Server::refuse(request, &error),
    }
    server
}

/// What a child of the server does; gives the exit code.
fn begin(server: Server, request: Request, arena: &Arena) -> Result<i32> {
    let inherited = server.become_child(request);
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
