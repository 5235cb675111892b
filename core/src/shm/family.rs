//! What a fork does to this process' arenas.
//!
//! A static: the handlers of pthread_atfork take no argument. `prepare` claims a slot for the child and has it hold
//! whatever this process holds; the child takes it over; the parent gives it back if the fork failed. A child without
//! a place shares nothing: its calls fail, rather than act in its parent's name. The gates of the arenas are closed
//! across the fork, so the child finds none of their mutexes locked.

use super::arena::Member;
use super::lamps::Lamps;
use super::slots::Place;
use super::{ObjectName, object, slots};
use crate::sys::fork::{self, Sign};
use crate::sys::robust;
use crate::{Deadline, Error, Result};
use std::cell::{Cell, RefCell};
use std::marker::PhantomData;
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError, Weak};
use std::time::Duration;

/// How long a fork waits for the registry, on either side: a process may be stopped that holds it. A child that finds
/// no place in that time has none.
const PATIENCE: Duration = Duration::from_secs(1);

static ARENAS: Mutex<Vec<Weak<Member>>> = Mutex::new(Vec::new());
static REGISTERED: Once = Once::new();

/// An arena between `prepare` and what follows it.
struct Crossing {
    member: Arc<Member>,
    /// The child's slot and its generation; none when there was no place for it, or it is to have none yet.
    child: Option<(u32, u32)>,
    /// Until when the parent would have waited for the registry.
    end: Deadline,
    /// Let go of by the parent at once, by the child when it has settled.
    _sign: Option<Sign>,
}

/// The forking thread's arenas, and the table of them, held still.
type Crossings = (Vec<Crossing>, MutexGuard<'static, Vec<Weak<Member>>>);

thread_local! {
    static CROSSING: RefCell<Option<Crossings>> = const { RefCell::new(None) };
    /// Children that this thread forks get no place in this arena.
    static PLACELESS: Cell<*const Member> = const { Cell::new(ptr::null()) };
}

/// Children that the calling thread forks have no place, as long as this lives: see
/// [`Arena::placeless`](super::Arena::placeless).
#[derive(Debug)]
pub struct Placeless {
    /// It is the thread's.
    _here: PhantomData<*const ()>,
}

impl Drop for Placeless {
    fn drop(&mut self) {
        PLACELESS.set(ptr::null());
    }
}

/// What ties a place in the tree to a child that was forked without one: this process and the child have it, the child
/// until it has [taken](super::Arena::take_place) the place. A descriptor.
#[derive(Debug)]
pub struct Adoption(Option<Sign>);

/// Gives the children of the calling thread no place.
pub(super) fn placeless(member: &Member) -> Placeless {
    PLACELESS.set(member);
    Placeless { _here: PhantomData }
}

/// Without a descriptor for it, or without `/proc`, the tie is none: the place is its keeper's until the child has taken it.
pub(super) fn adoption(member: &Member) -> Adoption {
    Adoption(Sign::new(member.windows().file()).ok())
}

/// Ties that place to the child that has the other copy of the adoption, and holds for it what this process holds.
pub(super) fn adopt(member: &Member, place: Place, adoption: &Adoption) -> Result<()> {
    let end = Deadline::after(PATIENCE);
    let kept = (place.slot, place.generation);
    again(end, || slots::adopt(member, kept, adoption.0.as_ref(), end))?;
    object::hold_all(member, &member.references().1, place.slot)
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
    let members = arenas.iter().filter_map(Weak::upgrade);
    let crossings = members.map(cross).collect();
    CROSSING.set(Some((crossings, arenas)));
    fork::forget_error();
}

fn cross(member: Arc<Member>) -> Crossing {
    if ptr::eq(PLACELESS.get(), &raw const *member) {
        member.windows().gate().close();
        return Crossing {
            member,
            child: None,
            end: Deadline::NEVER,
            _sign: None,
        };
    }
    let sign = Sign::new(member.windows().file()).ok();
    let end = Deadline::after(PATIENCE);
    let slot = member
        .place()
        .and_then(|place| again(end, || slots::claim(&member, place, sign.as_ref(), end)));
    member.windows().gate().close();
    let child = slot.ok();
    if let Some((slot, _)) = child {
        // An object that can't be held for the child now can't be used by it either: it says so there.
        let _ = object::hold_all(&member, &member.references_inside(), slot);
    }
    Crossing {
        member,
        child,
        end,
        _sign: sign,
    }
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
    for Crossing {
        member,
        child,
        _sign,
        ..
    } in crossings
    {
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
    for Crossing {
        member,
        child,
        end: at_once,
        _sign,
    } in crossings
    {
        // The parent's, whose thread isn't here.
        *member.lamps_inside() = Lamps::default();
        member.windows().gate().open();
        member.forget_place();
        if ptr::eq(PLACELESS.get(), &raw const *member) {
            continue;
        }
        // At once by the parent's deadline, which is asked about only if the registry isn't free: to read a clock, a child
        // first has to fault in three pages of code.
        let settle = |end| child.map(|(slot, generation)| member.settle_in(slot, generation, end));
        if matches!(settle(at_once), Some(Ok(()))) {
            continue;
        }
        let end = Deadline::after(PATIENCE);
        if !matches!(again(end, || settle(end).transpose()), Ok(Some(()))) {
            // Its place was taken for abandoned, or there was none.
            let _ = join_anew(&member, end);
        }
    }
}

/// Makes a call again after each interruption, until the deadline has passed: nobody hears of one in a fork.
fn again<T>(deadline: Deadline, mut call: impl FnMut() -> Result<T>) -> Result<T> {
    loop {
        match call() {
            Err(Error::Interrupted) if !deadline.passed() => {}
            other => return other,
        }
    }
}

/// A place of this process' own, holding what its parent held, if all of that is there still.
fn join_anew(member: &Member, end: Deadline) -> Result<()> {
    let (slot, generation) = again(end, || slots::claim(member, 0, None, end))?;
    let held = hold_inherited(member, slot, end);
    let joined = held.and_then(|()| again(end, || member.settle_in(slot, generation, end)));
    if joined.is_err() {
        slots::give_back(member, slot, generation)?;
    }
    joined
}

/// Holds for `slot` what this process' parent held when it forked it.
///
/// # Errors
/// `Closed` when some of that is gone.
fn hold_inherited(member: &Member, slot: u32, end: Deadline) -> Result<()> {
    let (_through, references) = member.references();
    let mut objects = references.objects.iter();
    objects.try_for_each(|(offset, (serial, _))| {
        let name = ObjectName {
            offset: *offset,
            serial: *serial,
        };
        again(end, || {
            let held = object::hold(member, name, slot, end)?;
            held.then_some(()).ok_or(Error::Interrupted)
        })
    })
}

/// In a child that was forked [without a place](Placeless): the one that was adopted for it, or one of its own if that is gone,
/// which holds what its parent holds.
pub(super) fn take_place(member: &Member, place: Place) -> Result<()> {
    let end = Deadline::after(PATIENCE);
    again(end, || member.settle_at(place, end))?;
    if (member.slot(), member.generation()) == (place.slot, place.generation) {
        return Ok(());
    }
    hold_inherited(member, member.slot(), end)
}
