//! What a fork does to this process' arenas.
//!
//! The one static of the core: the handlers of pthread_atfork take no argument. `prepare` claims a slot for the
//! child and has it hold whatever this process holds; the child takes it over; the parent gives it back if the fork
//! failed. Locks of this process that the child will need are held across the fork, so none is copied half-way.

use super::arena::Member;
use super::object::References;
use super::{object, slots};
use crate::sys::mapping::Mapping;
use crate::sys::word::Relaxed;
use crate::sys::{fork, robust};
use std::cell::RefCell;
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError, Weak};

static ARENAS: Mutex<Vec<Weak<Member>>> = Mutex::new(Vec::new());
static REGISTERED: Once = Once::new();

/// An arena's state between `prepare` and what follows it.
struct Crossing {
    // Declared first, dropped first: the guards borrow from `member`.
    _references: MutexGuard<'static, References>,
    _mappings: MutexGuard<'static, Vec<Mapping>>,
    member: &'static Arc<Member>,
    /// The child's slot and its generation; none when there was no place for it.
    child: Option<(u32, u32)>,
}

thread_local! {
    /// The forking thread's arenas, and the table of them, which nobody else may change meanwhile.
    static CROSSING: RefCell<Option<(Vec<Crossing>, MutexGuard<'static, Vec<Weak<Member>>>)>> =
        const { RefCell::new(None) };
}

/// Takes care of `member` in forks from now on.
pub(super) fn enter(member: &Arc<Member>) {
    REGISTERED.call_once(|| fork::around(prepare, parent, child));
    let mut arenas = ARENAS.lock().unwrap_or_else(PoisonError::into_inner);
    arenas.retain(|arena| arena.strong_count() > 0);
    arenas.push(Arc::downgrade(member));
}

extern "C" fn prepare() {
    let arenas = ARENAS.lock().unwrap_or_else(PoisonError::into_inner);
    let crossings = arenas.iter().filter_map(Weak::upgrade).map(cross).collect();
    CROSSING.set(Some((crossings, arenas)));
    fork::forget_error();
}

fn cross(member: Arc<Member>) -> Crossing {
    // Leaked, so that the guards can live in a thread-local; taken back by `land`.
    let member: &'static Arc<Member> = Box::leak(Box::new(member));
    let references = member
        .references
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    let mappings = member.windows().freeze();
    let child = slots::claim(member, member.slot()).ok().and_then(|slot| {
        let generation = member.slot_at(slot).ok()?.generation.load(Relaxed);
        // An object that can't be held for the child now can't be used by it either: it says so there.
        let _ = object::hold_all(member, &references, slot);
        Some((slot, generation))
    });
    Crossing {
        _references: references,
        _mappings: mappings,
        member,
        child,
    }
}

extern "C" fn parent() {
    let failed = fork::fork_failed();
    let Some((crossings, arenas)) = CROSSING.take() else {
        return;
    };
    for crossing in crossings {
        let (member, child) = (crossing.member, crossing.child);
        drop(crossing);
        if let (true, Some((slot, generation))) = (failed, child) {
            // What can't be given back now is when this process is gone.
            let _ = slots::give_back(member, slot, generation);
        }
    }
    drop(arenas);
}

extern "C" fn child() {
    robust::forked();
    let Some((crossings, arenas)) = CROSSING.take() else {
        return;
    };
    for crossing in crossings {
        let settled = crossing
            .child
            .and_then(|(slot, _)| crossing.member.settle_in(slot).ok());
        if settled.is_none() {
            // Its place was taken for abandoned, or there was none: a new one, holding the same objects.
            if let Ok(slot) = slots::claim(crossing.member, 0) {
                let _ = object::hold_all(crossing.member, &crossing._references, slot);
                let _ = crossing.member.settle_in(slot);
            }
        }
    }
    drop(arenas);
}
