//! The children of this process that haven't been waited for.

use super::ChildHandle;
use crate::launch::{self, Launched};
use procession_core::Deadline;
use procession_core::process::wait_for_any;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

struct Children {
    /// The process whose children they are: a forked one finds a list that isn't its own.
    parent: u32,
    list: Vec<Arc<Launched>>,
}

/// Locked for moments only, in which nothing is called that waits or starts anything.
static CHILDREN: Mutex<Children> = Mutex::new(Children {
    parent: 0,
    list: Vec::new(),
});

/// The children of this process that are running, each by a handle; those that have ended are waited for, as by
/// [`join`](ChildHandle::join), so that nothing of them is left in the system.
///
/// A [`Process`](crate::Process) that was dropped is among them for as long as it runs, and so are a pool's workers. One
/// system call, and two for each that has ended. Starting a process waits for the ended as well.
///
/// ```standalone_crate
/// # fn main() -> procession::Result<()> {
/// procession::init();
/// drop(procession::Process::builder().name("left alone").spawn(|(): ()| (), ())?);
/// for child in procession::active_children() {
///     println!("{} is still there, as process {}", child.name(), child.pid());
///     child.join()?;
/// }
/// # Ok(())
/// # }
/// ```
///
/// # After fork
/// The forked process has none yet.
///
/// Python: `active_children`.
#[must_use]
pub fn active_children() -> Vec<ChildHandle> {
    collect();
    mine().list.iter().cloned().map(ChildHandle).collect()
}

pub(crate) fn add(child: &Arc<Launched>) {
    mine().list.push(child.clone());
}

/// Takes one off the list, which has ended.
pub(crate) fn forget(child: &Launched) {
    let forgotten = {
        let list = &mut mine().list;
        let place = list
            .iter()
            .position(|it| std::ptr::eq(&raw const **it, child));
        place.map(|place| list.swap_remove(place))
    };
    // The last holder's drop gives back what it held: without the lock.
    drop(forgotten);
}

/// Waits for those that have ended.
pub(crate) fn collect() {
    launch::forkserver::collect();
    let list = mine().list.clone();
    if list.is_empty() {
        return;
    }
    let sentinels: Vec<_> = list.iter().map(|child| child.child.as_fd()).collect();
    // Too little memory for it now: it is done the next time.
    let ended = wait_for_any(&sentinels, Deadline::now()).unwrap_or_default();
    for child in ended.iter().filter_map(|place| list.get(*place)) {
        // Somebody else has waited for it: it is gone as well.
        let _ = child.wait(Deadline::now());
    }
    if !ended.is_empty() {
        // What fails here fails again for whoever asks for something in the arena.
        let _ = launch::reap();
    }
}

fn mine() -> MutexGuard<'static, Children> {
    let mut children = CHILDREN.lock().unwrap_or_else(PoisonError::into_inner);
    let me = std::process::id();
    if children.parent != me {
        children.parent = me;
        // Its parent's: they aren't waited for here, and the copies of their descriptors go.
        children.list.clear();
    }
    children
}
