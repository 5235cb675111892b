//! One case: a stage, a victim that is killed or stopped, and what must hold then.

use super::acts::{Act, Companion, RECOVERER, Role};
use super::companion::{Other, start, until};
use super::ledger::{Ledger, On, Who};
use super::sites::Store;
use super::stage::{LARGE, RETURNED, SMALL, Stage};
use crate::child::{Change, Child};
use crate::scene::Sync;
use procession_core::Deadline;
use procession_core::sys::crash::{self, Action, Site, Trigger, Whose};
use std::collections::BTreeMap;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

/// What is done to the victim.
#[derive(Clone, Copy)]
pub(crate) enum Plan<'a> {
    /// Nothing; what it passes is told.
    Note(&'a dyn Fn(&BTreeMap<Site, u64>)),
    /// It is killed or stopped at the n-th passage of a site.
    Strike(&'a Store, u64, Action),
}

/// Calls of others get this long while the victim is stopped: beyond the engine's own patience of 50 ms.
const TIMEOUT: Duration = Duration::from_millis(60);
/// Plays one case; false when the victim didn't come to the store at which it was to be struck. `sites` are what
/// companions die at, by their number.
pub(crate) fn play(act: &Act, plan: Plan<'_>, sites: &[Site], ledger: &'static Ledger) -> bool {
    let before = descriptors();
    let mut stage = Stage::new(ledger);
    (act.before)(&mut stage);
    let mut other = Other::new(&stage, act.companion, sites);
    let stops = matches!(plan, Plan::Strike(_, _, Action::Stop));
    let mut prober = stops.then(|| {
        let prober = start(|| {
            ledger.pass(Who::Prober);
            probe(&stage, act.role);
        });
        until(|| ledger.has_come(Who::Prober));
        prober
    });
    let struck_by_birth = act.role == Role::Child;
    let victim = if struck_by_birth {
        other.begin();
        born(&stage, act, plan)
    } else {
        let victim = start(|| {
            ledger.pass(Who::Victim);
            begin(plan, Whose::Own);
            (act.run)(&stage);
            end(plan);
        });
        // It has its place in the arena before anybody stops who keeps others from taking theirs.
        until(|| ledger.has_come(Who::Victim));
        other.begin();
        ledger.open(Who::Victim);
        victim
    };
    let (finished, stopped) = watch(&stage, victim, &mut other, &mut prober);
    let struck = stopped || !finished;
    if let Some(prober) = prober {
        ledger.open(Who::Prober);
        prober.join();
    }
    let counts = matches!(plan, Plan::Strike(store, ..) if store.counts);
    conclude(&stage, act, other, finished, counts);
    stage.clear_away();
    nothing_left(before);
    struck
}

/// Forks a victim that is struck in the very fork.
fn born(stage: &Stage, act: &Act, plan: Plan<'_>) -> Child {
    begin(plan, Whose::Child);
    let victim = start(|| {
        stage.ledger.pass(Who::Victim);
        (act.run)(stage);
        end(plan);
    });
    crash::disarm();
    stage.ledger.open(Who::Victim);
    victim
}

fn begin(plan: Plan<'_>, whose: Whose) {
    match plan {
        Plan::Note(_) => crash::note(whose),
        Plan::Strike(store, passage, action) => {
            crash::arm_at(Trigger::Site(store.site, passage), action, whose);
        }
    }
}

fn end(plan: Plan<'_>) {
    match plan {
        Plan::Note(tell) => tell(&crash::noted()),
        Plan::Strike(..) => drop(crash::disarm()),
    }
}

/// Watches the victim to its end: whether it finished, and whether it was stopped on the way.
fn watch(
    stage: &Stage,
    victim: Child,
    other: &mut Other<'_>,
    prober: &mut Option<Child>,
) -> (bool, bool) {
    let mut stopped = false;
    loop {
        match victim.look(!other.waits()) {
            Change::Nothing => {
                if other.is_due(&victim) {
                    other.go_on();
                }
                std::thread::sleep(Duration::from_micros(50));
            }
            Change::Stopped => {
                stopped = true;
                stage.ledger.open(Who::Prober);
                if let Some(prober) = prober.take() {
                    let status = prober.wait();
                    assert_ne!(status, -libc::SIGALRM, "calls with deadlines hang");
                    assert_eq!(status, 0, "the prober failed");
                }
                victim.signal(libc::SIGCONT);
            }
            Change::Ended(status) => {
                victim.forget();
                assert_ne!(status, -libc::SIGALRM, "the victim hangs");
                assert!(
                    status == 0 || status == -libc::SIGKILL,
                    "it ends with {status}"
                );
                return (status == 0, stopped);
            }
        }
    }
}

/// After the victim's end: the living find out, and everything is used. `counts`: it died where a queue counts what it
/// loses.
fn conclude(stage: &Stage, act: &Act, mut other: Other<'_>, finished: bool, counts: bool) {
    let ledger = stage.ledger;
    other.go_on();
    if act.role == Role::Parent {
        wait_for_orphans();
    }
    let is_alone = matches!(act.companion, Companion::None);
    // Before anybody recovers: then a lock that is held is the dead one's.
    let bereaves = is_alone && !finished && stage.lock.is_held().unwrap();
    if !finished && !is_alone {
        stage.arena.reap().unwrap();
    }
    ledger.ask();
    (act.after)(stage, finished);
    let deaths = u32::from(!finished) + u32::from(other.dies());
    start(|| stage.use_first()).join();
    other.join();
    // Of a companion that died.
    wait_for_orphans();
    start(|| stage.use_second()).join();
    let told = ledger.bereaved.load(SeqCst);
    if is_alone && act.role != Role::Parent {
        assert_eq!(told, u32::from(bereaves), "the lock's owner died");
    }
    assert!(told <= deaths, "{told} told of {deaths} deaths");
    stage.account(counts && is_alone);
}

/// What others do while the victim is stopped, all at once: everything with a deadline ends, and nothing is stolen.
fn probe(stage: &Stage, role: Role) {
    let who = Who::Prober;
    let victim = if role == Role::Recoverer {
        RECOVERER
    } else {
        Who::Victim
    };
    let held = stage.ledger.is_inside(victim);
    let timed = |number, call: &dyn Fn(Deadline) -> bool| {
        // Whatever it gives: the ledger knows what was put and got.
        for timeout in [TIMEOUT, Duration::ZERO] {
            let begin = Instant::now();
            call(Deadline::after(timeout));
            let returned = RETURNED.take().unwrap_or_else(Instant::now);
            let over = (returned - begin).saturating_sub(timeout);
            stage.ledger.overran(over, number);
        }
    };
    let on_sync = |number, call: fn(&Sync, Deadline)| {
        timed(number, &|deadline| {
            stage
                .sync
                .as_ref()
                .inspect(|sync| call(sync, deadline))
                .is_some()
        });
    };
    let calls: [&(dyn Fn() + std::marker::Sync); 12] = [
        &|| timed(0, &|deadline| stage.put(who, On::Queue, SMALL, deadline)),
        &|| timed(1, &|deadline| stage.get(who, On::Queue, deadline)),
        &|| {
            timed(2, &|deadline| {
                let entered = stage.pass_lock(who, deadline);
                assert!(
                    !(entered && held),
                    "the lock was stolen from a stopped process"
                );
                entered
            });
        },
        &|| {
            timed(3, &|deadline| stage.get(who, On::Bounded, deadline));
            timed(5, &|deadline| stage.put(who, On::Bounded, SMALL, deadline));
        },
        &|| timed(4, &|deadline| stage.put(who, On::Other, LARGE, deadline)),
        &|| {
            stage.try_put(who, On::Queue);
            stage.try_get(who, On::Queue);
            let (queue, lock) = (&stage.queue, &stage.lock);
            let _ = (
                queue.len().unwrap(),
                queue.lost().unwrap(),
                lock.is_held().unwrap(),
            );
            assert!(stage.other_lock.try_acquire().unwrap());
            stage.other_lock.release().unwrap();
        },
        &|| on_sync(6, Sync::try_rlock),
        &|| on_sync(7, Sync::try_permits),
        &|| on_sync(8, Sync::try_wait),
        &|| on_sync(9, Sync::try_event),
        &|| on_sync(10, Sync::try_pass),
        &|| on_sync(11, Sync::try_tasks),
    ];
    std::thread::scope(|scope| {
        for call in calls {
            scope.spawn(call);
        }
    });
}

/// Children of a parent that was killed come to the harness, and must end well.
fn wait_for_orphans() {
    let mut status = 0;
    // SAFETY: writes one status.
    while unsafe { libc::waitpid(-1, &raw mut status, 0) } > 0 {
        assert_eq!(status, 0, "a child of the dead failed");
    }
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// No descriptor more than before, and no child, dead or alive.
fn nothing_left(before: usize) {
    assert_eq!(descriptors(), before, "descriptors left");
    // SAFETY: no status wanted.
    let left = unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) };
    assert_eq!(left, -1, "a child left");
}
