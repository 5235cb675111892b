//! A mutex that no forked child finds locked by a thread that isn't there.
//!
//! Every one that was ever locked is held by the thread that forks, from before the fork until after it, in both processes. One
//! list of them, since the handlers of pthread_atfork(3) take no argument.

use super::fork;
use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Those that forks hold, in the order in which they do.
static ALL: Mutex<Vec<Listed>> = Mutex::new(Vec::new());
/// The handlers are registered; perhaps twice, by threads that came at once, which does no harm.
static REGISTERED: AtomicBool = AtomicBool::new(false);

thread_local! {
    static CROSSING: RefCell<Option<Crossing>> = const { RefCell::new(None) };
}

struct Listed {
    before: fn(),
    hold: Box<dyn Fn() -> Release + Send>,
}

/// Lets go of one that a fork holds, in the child or in the parent.
type Release = Box<dyn FnOnce(Side)>;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Parent,
    Child,
}

/// What a thread that forks holds.
struct Crossing {
    held: Vec<Release>,
    _all: MutexGuard<'static, Vec<Listed>>,
}

/// A mutex that is held across forks; a static.
#[derive(Debug)]
pub(crate) struct ForkSafe<T> {
    value: Mutex<T>,
    is_listed: AtomicBool,
    before: fn(),
    in_child: fn(&mut T),
}

impl<T: Send + 'static> ForkSafe<T> {
    /// `before` runs at the beginning of each fork, before any of these mutexes is locked for it; `in_child` in the child, where no
    /// other thread is.
    pub(crate) const fn new(value: T, before: fn(), in_child: fn(&mut T)) -> Self {
        Self {
            value: Mutex::new(value),
            is_listed: AtomicBool::new(false),
            before,
            in_child,
        }
    }

    /// Locks it: some nanoseconds, and longer while another thread has it or forks.
    ///
    /// Who has one takes no other one that may not be listed yet: a fork would wait for the first, and this thread for the fork. A
    /// fork that another thread had begun before any was ever locked doesn't know of it: the C library calls no handler that comes
    /// so late.
    pub(crate) fn lock(&'static self) -> MutexGuard<'static, T> {
        // First: no fork may find it locked and not know it.
        if !self.is_listed.load(Ordering::Acquire) {
            self.list();
        }
        enter(&self.value)
    }

    #[cold]
    fn list(&'static self) {
        if !REGISTERED.load(Ordering::Acquire) {
            fork::around(prepare, parent, child);
            REGISTERED.store(true, Ordering::Release);
        }
        let mut all = enter(&ALL);
        // No `Once`: a child might find it begun by a thread that isn't there.
        if !self.is_listed.load(Ordering::Relaxed) {
            all.push(Listed {
                before: self.before,
                hold: Box::new(|| self.hold()),
            });
            self.is_listed.store(true, Ordering::Release);
        }
    }

    fn hold(&'static self) -> Release {
        let mut value = enter(&self.value);
        Box::new(move |side| {
            if side == Side::Child {
                (self.in_child)(&mut value);
            }
        })
    }
}

fn enter<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

extern "C" fn prepare() {
    if CROSSING.with_borrow(Option::is_some) {
        return;
    }
    // With nothing held: it may wait for a thread that is just coming to one of these.
    let before: Vec<fn()> = enter(&ALL).iter().map(|one| one.before).collect();
    before.iter().for_each(|run| run());
    let all = enter(&ALL);
    let held = all.iter().map(|one| (one.hold)()).collect();
    CROSSING.set(Some(Crossing { held, _all: all }));
}

extern "C" fn parent() {
    release(Side::Parent);
}

extern "C" fn child() {
    release(Side::Child);
}

fn release(side: Side) {
    if let Some(crossing) = CROSSING.take() {
        crossing.held.into_iter().for_each(|one| one(side));
    }
}

#[cfg(test)]
mod tests {
    use super::ForkSafe;
    use crate::sys::fork;
    use rustix::process::{WaitOptions, waitpid};
    use std::process::Command;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    static ONE: ForkSafe<u32> = ForkSafe::new(1, || {}, |value| *value = 0);
    static OTHER: ForkSafe<u32> = ForkSafe::new(1, || {}, |value| *value = 0);

    /// In a process of its own: a child holds what its parent does, and other tests count holders.
    #[test]
    fn a_child_finds_none_locked_and_all_settled() {
        const ALONE: &str = "PROCESSION_TEST_FORKS_ALONE";
        const NAME: &str = "sys::fork_safe::tests::a_child_finds_none_locked_and_all_settled";
        if std::env::var_os(ALONE).is_none() {
            let mut test = Command::new(std::env::current_exe().unwrap());
            let ended = test
                .args([NAME, "--exact"])
                .env(ALONE, "1")
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&ended.stdout);
            assert!(said.contains("1 passed"), "{said}");
            return;
        }
        // Says that it is over when it is dropped: when a check fails, too.
        struct Over(Arc<AtomicBool>);
        impl Drop for Over {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        // Listed, so that no fork has begun without knowing them.
        drop((ONE.lock(), OTHER.lock()));
        let is_over = Arc::new(AtomicBool::new(false));
        thread::scope(|scope| {
            let over = Over(is_over.clone());
            for _ in 0..2 {
                scope.spawn(|| {
                    while !is_over.load(Ordering::Relaxed) {
                        *ONE.lock() = 1;
                        *OTHER.lock() = 1;
                    }
                });
            }
            for _ in 0..50 {
                let Some(pid) = fork::fork().unwrap() else {
                    // Not `lock`: what is locked here stays that.
                    let is_settled =
                        |one: &ForkSafe<u32>| one.value.try_lock().is_ok_and(|value| *value == 0);
                    fork::end(i32::from(!is_settled(&ONE) || !is_settled(&OTHER)));
                };
                let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
                let (_, status) = waitpid(Some(pid), WaitOptions::empty()).unwrap().unwrap();
                assert_eq!(status.exit_status(), Some(0));
            }
            drop(over);
        });
    }
}
