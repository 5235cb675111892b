//! A child as whoever started it sees it, whatever its function gives.

use crate::error::Result;
use crate::launch::Launched;
use procession_core::{Deadline, ExitStatus};
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

const INTERRUPT: i32 = 2;
const KILL: i32 = 9;
const TERMINATE: i32 = 15;

/// A child of this process, without the value of its function: what [`Process`](crate::Process) derefs to, and
/// [`active_children`](crate::active_children) gives. A clone is the same child.
///
/// As an [`AsFd`] it is its [sentinel](Self::sentinel).
///
/// ```standalone_crate
/// # fn main() -> procession::Result<()> {
/// procession::init();
/// let sleep = |seconds| std::thread::sleep(std::time::Duration::from_secs(seconds));
/// let child = procession::Process::spawn(sleep, 600)?;
/// let handle = (*child).clone();
/// std::thread::spawn(move || handle.terminate());
/// procession::wait([&child])?;
/// assert_eq!(child.exit_code()?, Some(-15));
/// # Ok(())
/// # }
/// ```
///
/// # After fork
/// It is the parent's child: the forked process can ask for its id and its name, and everything else is an error that
/// says whose it is.
#[derive(Clone)]
pub struct ChildHandle(pub(crate) Arc<Launched>);

impl ChildHandle {
    /// Its process id: its own until its end was seen here.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.0.child.pid()
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Whether it is killed when this process is gone.
    #[must_use]
    pub fn is_daemon(&self) -> bool {
        self.0.daemon
    }

    /// Whether it runs, at this moment. One system call.
    ///
    /// # Errors
    /// `Misuse` when it is another process' child; `Os` when there is no memory for the call.
    pub fn is_alive(&self) -> Result<bool> {
        self.0.mine("ask for")?;
        Ok(!self.0.wait_for_end(Deadline::now())?)
    }

    /// How it ended; `None` while it runs. Never waits.
    ///
    /// # Errors
    /// `Misuse` when it is another process' child; `Os` when it has ended and somebody else has waited for it, or this process
    /// ignores SIGCHLD, on a kernel that doesn't tell (before Linux 6.15): nobody knows how it ended.
    pub fn exit_status(&self) -> Result<Option<ExitStatus>> {
        self.0.wait(Deadline::now())
    }

    /// Its exit code, or minus the signal that ended it; `None` while it runs.
    ///
    /// # Errors
    /// As [`exit_status`](Self::exit_status).
    ///
    /// Python: `Process.exitcode`.
    pub fn exit_code(&self) -> Result<Option<i32>> {
        Ok(self.exit_status()?.map(ExitStatus::number))
    }

    /// Waits until it has ended, and says how. Sleeps in the kernel; any number of threads may.
    ///
    /// # Errors
    /// As [`exit_status`](Self::exit_status).
    pub fn join(&self) -> Result<ExitStatus> {
        loop {
            if let Some(status) = self.0.wait(Deadline::NEVER)? {
                return Ok(status);
            }
        }
    }

    /// As [`join`](Self::join), for at most so long; `None` if it still runs then.
    ///
    /// # Errors
    /// As [`exit_status`](Self::exit_status).
    pub fn join_timeout(&self, timeout: Duration) -> Result<Option<ExitStatus>> {
        self.0.wait(Deadline::after(timeout))
    }

    /// A descriptor that can be read from when it has ended: for [`wait`](crate::wait()), poll(2) or an event loop.
    /// It is closed with the last handle.
    ///
    /// Python: `Process.sentinel`. Source: pidfd_open(2).
    #[must_use]
    pub fn sentinel(&self) -> BorrowedFd<'_> {
        self.0.child.as_fd()
    }

    /// Asks it to end, with SIGTERM. Nothing happens if it has ended.
    ///
    /// # Errors
    /// `Misuse` when it is another process' child; `Os` when the system forbids it.
    pub fn terminate(&self) -> Result<()> {
        self.0.signal(TERMINATE)
    }

    /// Ends it, with SIGKILL. Nothing happens if it has ended.
    ///
    /// # Errors
    /// As [`terminate`](Self::terminate).
    pub fn kill(&self) -> Result<()> {
        self.0.signal(KILL)
    }

    /// Interrupts it, with SIGINT, as the terminal does by Ctrl-C. Nothing happens if it has ended.
    ///
    /// # Errors
    /// As [`terminate`](Self::terminate).
    pub fn interrupt(&self) -> Result<()> {
        self.0.signal(INTERRUPT)
    }
}

impl AsFd for ChildHandle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.sentinel()
    }
}

impl fmt::Debug for ChildHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChildHandle")
            .field("name", &self.name())
            .field("pid", &self.pid())
            .field("daemon", &self.is_daemon())
            .field("exit_status", &self.exit_status().ok().flatten())
            .finish()
    }
}
