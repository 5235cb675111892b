//! This process and its parent.

use crate::descriptor;
use crate::error::{Error, ErrorKind, Result, retry};
use crate::launch::Plan;
use procession_core::handoff::Invitation;
use procession_core::{Deadline, Parent};
use serde::{Deserialize, Serialize};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// As Python calls it.
const MAIN: &str = "MainProcess";

/// Who a process is, as its parent tells it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Birth {
    name: String,
    daemon: bool,
    /// Which child it is of its parent, after the same of its parent: 2, 1 is the first one of the second one.
    numbers: Vec<u32>,
    parent: u32,
    parent_name: String,
    /// Where the parent takes descriptors that this process returns.
    invitation: Option<[u8; 32]>,
}

/// Who this process is.
#[derive(Debug, Default)]
pub(crate) struct Me {
    birth: Birth,
    /// Its process id; 0: its parent was none of ours.
    pid: u32,
    /// The pidfd of its parent, if that isn't the system's.
    requester: Option<OwnedFd>,
    /// Names given to children so far.
    children: AtomicU32,
}

static ME: Mutex<Option<Arc<Me>>> = Mutex::new(None);

pub(crate) fn me() -> Arc<Me> {
    let mut me = ME.lock().unwrap_or_else(PoisonError::into_inner);
    let first = || {
        let mut first = Me::default();
        MAIN.clone_into(&mut first.birth.name);
        Arc::new(first)
    };
    me.get_or_insert_with(first).clone()
}

/// Says who this process is, which has just begun.
pub(crate) fn be(birth: Birth, requester: Option<OwnedFd>) {
    let me = Arc::new(Me {
        birth,
        pid: std::process::id(),
        requester,
        children: AtomicU32::new(0),
    });
    *ME.lock().unwrap_or_else(PoisonError::into_inner) = Some(me);
}

impl Me {
    pub(crate) fn is_daemon(&self) -> bool {
        self.birth.daemon
    }

    /// The next child's name and number: `Process-2:1` is the first child's of the second one.
    fn number(&self) -> Vec<u32> {
        let mut numbers = self.birth.numbers.clone();
        numbers.push(self.children.fetch_add(1, Relaxed) + 1);
        numbers
    }

    /// What a child is told.
    pub(crate) fn child(&self, plan: &mut Plan) -> Birth {
        let numbers = self.number();
        if plan.name.is_empty() {
            let numbers: Vec<_> = numbers.iter().map(u32::to_string).collect();
            plan.name = format!("{}-{}", plan.kind, numbers.join(":"));
        }
        plan.invited = descriptor::invite();
        let invited = plan.invited.as_ref();
        Birth {
            name: plan.name.clone(),
            daemon: plan.daemon,
            numbers,
            parent: std::process::id(),
            parent_name: self.birth.name.clone(),
            invitation: invited.map(|invited| invited.invitation().to_bytes()),
        }
    }

    /// Where its parent takes descriptors, if it was started by one.
    pub(crate) fn invitation(&self) -> Option<Invitation> {
        let invited = self.pid == std::process::id();
        let bytes = self.birth.invitation.filter(|_| invited)?;
        Some(Invitation::from_bytes(bytes))
    }
}

/// The process that calls [`current_process`].
#[derive(Debug, Clone)]
pub struct CurrentProcess(Arc<Me>);

/// Who this process is.
///
/// ```standalone_crate
/// # fn main() -> procession::Result<()> {
/// procession::init();
/// let name = |(): ()| procession::current_process().name().to_owned();
/// let child = procession::Process::builder().name("heart").spawn(name, ())?;
/// assert_eq!(child.join()?, "heart");
/// assert_eq!(procession::current_process().name(), "MainProcess");
/// # Ok(())
/// # }
/// ```
///
/// Python: `current_process`.
#[must_use]
pub fn current_process() -> CurrentProcess {
    CurrentProcess(me())
}

impl CurrentProcess {
    /// The name that its parent gave it; `MainProcess` for one that was started otherwise.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.birth.name
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        std::process::id()
    }

    /// Whether it dies with its parent, and so may not have children.
    #[must_use]
    pub fn is_daemon(&self) -> bool {
        self.0.is_daemon()
    }
}

/// The process that started this one; `None` if that was none of this crate's doing.
///
/// Opens a descriptor for it, which is closed with the result.
///
/// ```standalone_crate
/// # fn main() -> procession::Result<()> {
/// procession::init();
/// let work = |(): ()| {
///     let parent = procession::parent_process().unwrap().expect("it was started by one");
///     parent.join().unwrap();
///     println!("{} is gone", parent.name());
/// };
/// drop(procession::Process::spawn(work, ())?);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// `Os` when there is no descriptor.
///
/// # After fork
/// A process that was forked otherwise than by [`StartMethod::Fork`](crate::StartMethod) has none.
///
/// Python: `parent_process`.
pub fn parent_process() -> Result<Option<ParentProcess>> {
    let me = me();
    if me.pid != std::process::id() {
        return Ok(None);
    }
    let pid = me.birth.parent;
    let parent = match &me.requester {
        Some(requester) => Parent::of(pid, copy(requester)?),
        None => Parent::new(pid).map_err(|error| Error::at("open the parent process", error))?,
    };
    let name = me.birth.parent_name.clone();
    Ok(Some(ParentProcess { name, parent }))
}

/// One more descriptor of the same process.
pub(crate) fn copy(pidfd: &OwnedFd) -> Result<OwnedFd> {
    let copied = pidfd.try_clone();
    copied.map_err(|error| Error::new(ErrorKind::Os, format!("open the parent process: {error}")))
}

/// The process that started this one, alive or gone.
///
/// As an [`AsFd`] it is its sentinel: a descriptor that can be read from when it is gone, for [`wait`](crate::wait()) or poll(2).
#[derive(Debug)]
pub struct ParentProcess {
    name: String,
    parent: Parent,
}

impl ParentProcess {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its process id: its own as long as it is alive.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.parent.pid()
    }

    /// Whether it runs, at this moment. One system call.
    ///
    /// # Errors
    /// `Os` when there is no memory for the call.
    pub fn is_alive(&self) -> Result<bool> {
        Ok(!self.join_timeout(Duration::ZERO)?)
    }

    /// Waits until it is gone. Sleeps in the kernel.
    ///
    /// # Errors
    /// As [`is_alive`](Self::is_alive).
    pub fn join(&self) -> Result<()> {
        self.wait(Deadline::NEVER).map(drop)
    }

    /// As [`join`](Self::join), for at most so long; whether it is gone.
    ///
    /// # Errors
    /// As [`is_alive`](Self::is_alive).
    pub fn join_timeout(&self, timeout: Duration) -> Result<bool> {
        self.wait(Deadline::after(timeout))
    }

    fn wait(&self, deadline: Deadline) -> Result<bool> {
        retry(|| self.parent.wait(deadline))
            .map_err(|error| Error::at("wait for the parent process", error))
    }
}

impl AsFd for ParentProcess {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.parent.as_fd()
    }
}
