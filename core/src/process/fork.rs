//! A child that goes on in a copy of this process' memory.

use super::Child;
use super::setting::Setting;
use crate::handoff;
use crate::sys::{fork as system, identity, pidfd};
use crate::{Error, Result};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// Exit code of a child whose work panicked: as of a Rust program whose `main` does.
const PANICKED: i32 = 101;
/// Exit code of a child that can't enter its setting: as of a program that can't be executed, to a shell.
const UNABLE: i32 = 126;
/// How long a thread that is about to end or to sleep may take to get there.
const PATIENCE: Duration = Duration::from_secs(1);

/// Which threads a process that forks may have, beside the calling one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Others {
    /// None: what such a thread was at would stay half done in the child, and what it had locked, locked.
    None,
    /// The first one, asleep until the calling one is done: libtest's, where a test begins as a child.
    ParkedFirst,
}

/// Threads of this process beside the calling one that keep it from forking. Some system calls; a thread of
/// [`Others::ParkedFirst`] that is about to sleep is waited for.
///
/// # Errors
/// `Os` where /proc isn't mounted.
pub fn other_threads(allowed: Others) -> Result<usize> {
    let parked_first = allowed == Others::ParkedFirst;
    let begin = Instant::now();
    loop {
        match identity::other_threads(parked_first)? {
            1 if parked_first && begin.elapsed() < PATIENCE => std::thread::yield_now(),
            others => return Ok(others),
        }
    }
}

/// Forks this process: the child enters the setting, does `work` with its copy of `mine`, and ends with the code that this
/// gives. It returns to nobody, drops nothing else of its parent's, and runs none of its parent's exit hooks. A panic ends
/// it with 101. The parent gets `mine` back, and the child.
///
/// As long as the copy of the page tables takes, about 0.3 ms, and 2 ms more a GiB. Handlers of pthread_atfork(3) run,
/// so the child is a member of each arena of this process, and holds what this process holds.
///
/// # Errors
/// `Misuse` when this process has other threads than those allowed; `Os` when there are no processes, no descriptors
/// or no memory.
pub fn fork<T>(
    allowed: Others,
    setting: Setting,
    mine: T,
    work: impl FnOnce(T) -> i32,
) -> (T, Result<Child>) {
    match divide(allowed) {
        Ok(Some(child)) => (mine, Ok(child)),
        Err(error) => (mine, Err(error)),
        Ok(None) => {
            let code = catch_unwind(AssertUnwindSafe(|| match setting.enter() {
                Ok(()) => work(mine),
                Err(_) => UNABLE,
            }));
            system::end(code.unwrap_or(PANICKED));
        }
    }
}

/// Forks, and gives the child; nothing in the child itself.
fn divide(allowed: Others) -> Result<Option<Child>> {
    let _paused = handoff::pause();
    if other_threads(allowed)? > 0 {
        return Err(Error::Misuse {
            what: "a process with several threads can't be forked",
        });
    }
    // As in `launch`: a child without a pidfd couldn't be waited for. Nobody takes its place, since no thread can.
    let place = pidfd::own_pidfd()?;
    let forked = system::fork()?;
    drop(place);
    let Some(pid) = forked else {
        return Ok(None);
    };
    pidfd::open_child(pid).map(|pidfd| Some(Child::new(pid, pidfd)))
}
