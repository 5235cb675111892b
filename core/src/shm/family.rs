//! What a fork does to this process' arenas.
//!
//! The one static of the core: the handlers of pthread_atfork take no argument. `prepare` claims a slot for the
//! child and has it hold whatever this process holds; the child takes it over; the parent gives it back if the fork
//! failed. The gates of the arenas are closed across the fork, so the child finds none of their mutexes locked.

use super::arena::Member;
use super::{object, slots};
use crate::sys::{fork, robust};
use std::cell::RefCell;
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError, Weak};

static ARENAS: Mutex<Vec<Weak<Member>>> = Mutex::new(Vec::new());
static REGISTERED: Once = Once::new();

/// An arena between `prepare` and what follows it.
struct Crossing {
    member: Arc<Member>,
    /// The child's slot and its generation; none when there was no place for it.
    child: Option<(u32, u32)>,
}

/// The forking thread's arenas, and the table of them, held still.
type Crossings = (Vec<Crossing>, MutexGuard<'static, Vec<Weak<Member>>>);

thread_local! {
    static CROSSING: RefCell<Option<Crossings>> = const { RefCell::new(None) };
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
    let slot = slots::claim(&member, member.slot());
    member.windows().gate().close();
    let child = slot.ok().and_then(|slot| {
        // An object that can't be held for the child now can't be used by it either: it says so there.
        let _ = object::hold_all(&member, &member.references_inside(), slot.0);
        Some(slot)
    });
    Crossing { member, child }
}

extern "C" fn parent() {
    let failed = fork::fork_failed();
    let Some((crossings, arenas)) = CROSSING.take() else {
        return;
    };
    for crossing in &crossings {
        crossing.member.windows().gate().open();
    }
    // Before the arenas may be dropped, which their owners may have done meanwhile.
    drop(arenas);
    for Crossing { member, child } in crossings {
        if let (true, Some((slot, generation))) = (failed, child) {
            // What can't be given back now is when this process is gone.
            let _ = slots::give_back(&member, slot, generation);
        }
    }
}

extern "C" fn child() {
    robust::forked();
    let Some((crossings, arenas)) = CROSSING.take() else {
        return;
    };
    drop(arenas);
    for Crossing { member, child } in crossings {
        member.windows().gate().open();
        let settled = child.and_then(|(slot, generation)| member.settle_in(slot, generation).ok());
        if settled.is_none() {
            // Its place was taken for abandoned, or there was none: a new one, holding the same objects.
            if let Ok((slot, generation)) = slots::claim(&member, 0) {
                let (_through, references) = member.references();
                let _ = object::hold_all(&member, &references, slot);
                let _ = member.settle_in(slot, generation);
            }
        }
    }
}
