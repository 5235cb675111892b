//! Acts on recursive locks, semaphores, conditions, events and barriers.

use super::super::companion::start;
use super::super::stage::{QUARTER, Stage, again};
use super::{Act, Companion, NEVER, NOW, Role, act};
use crate::scene::Sync;
use procession_core::{Deadline, Passed, Permit};
use std::time::Duration;

/// All of them.
pub(super) fn acts() -> Vec<Act> {
    [alone(), woken(), waking_one(), waking_parties(), tasks()].concat()
}

fn with(stage: &mut Stage) {
    stage.sync = Some(Sync::new(&stage.arena));
}

/// A sleeper was here, and has gone: the semaphore still thinks that somebody sleeps.
fn with_a_sleeper_gone(stage: &mut Stage) {
    with(stage);
    let signal = &stage.sync().signal;
    assert!(again(|| signal.acquire(Permit::Acquired, NEVER)));
    let soon = Deadline::after(Duration::from_millis(1));
    assert!(!again(|| signal.acquire(Permit::Acquired, soon)));
}

/// No signal is there.
fn without_signal(stage: &mut Stage) {
    with(stage);
    assert!(again(|| stage
        .sync()
        .signal
        .acquire(Permit::Acquired, NEVER)));
}

/// The harness stands in the semaphore's cell, and its own cell says that it holds a permit, which it has given back.
fn with_an_old_cell(stage: &mut Stage) {
    with(stage);
    let semaphore = &stage.sync().semaphore;
    assert!(again(|| semaphore.acquire(Permit::Held, NEVER)));
    start(|| stage.sync().take_permits()).join();
    // Recovery settles, too: only what is changed after it stays old.
    again(|| stage.arena.reap());
    again(|| semaphore.release(Permit::Held));
}

/// The last party of a round acts, and nobody ends it.
fn with_an_actor(stage: &mut Stage) {
    with(stage);
    let party = again(|| stage.sync().single.come(NEVER)).unwrap();
    assert!(party.acts());
    std::mem::forget(party);
}

fn alone() -> Vec<Act> {
    let alone = |name, run| act(Role::Alone, name, with, Companion::None, run);
    vec![
        alone("take a recursive lock twice", |s| s.sync().lock_twice()),
        alone("free a recursive lock for a wait", |s| {
            s.sync().unlock_for_a_wait()
        }),
        alone("have a recursive lock briefly", |s| s.sync().lock_briefly()),
        alone("take permits, and give them", |s| s.sync().take_permits()),
        alone("answer a signal", |s| s.sync().signal()),
        alone("wait and notify", |s| s.sync().wait_and_notify()),
        alone("wait with many", |s| {
            let condition = &s.sync().condition;
            let all: Vec<_> = (0..50)
                .map(|_| again(|| condition.enlist(NEVER)).unwrap())
                .collect();
            drop(all);
        }),
        alone("set and clear an event", |s| s.sync().set_and_clear()),
        alone("pass a barrier", |s| s.sync().pass()),
        alone("give a barrier up", |s| s.sync().give_up()),
        alone("make one of each, and drop them", |s| {
            drop(Sync::new(&s.arena))
        }),
        act(
            Role::Alone,
            "signal, for one who has gone",
            with_a_sleeper_gone,
            Companion::None,
            |s| again(|| s.sync().signal.release(Permit::Acquired)),
        ),
        act(
            Role::Alone,
            "take permits, after another",
            with_an_old_cell,
            Companion::None,
            |s| s.sync().take_permits(),
        ),
        act(
            Role::Alone,
            "hold what comes back, and leave it",
            with,
            Companion::None,
            |s| {
                let sync = s.sync();
                again(|| sync.rlock.acquire(NEVER));
                std::mem::forget(again(|| sync.condition.enlist(NEVER)).unwrap());
                std::mem::forget(again(|| sync.pair.come(NEVER)));
                s.arena.leave();
                // SAFETY: ends this process, which has left.
                unsafe { libc::_exit(0) };
            },
        ),
    ]
}

/// The victim sleeps, until another wakes it.
fn woken() -> Vec<Act> {
    let woken =
        |name, before, wake, run| act(Role::Sleeper, name, before, Companion::Wakes(wake), run);
    vec![
        woken(
            "sleep for a signal",
            without_signal,
            |s| again(|| s.sync().signal.release(Permit::Acquired)),
            |s| {
                assert!(again(|| s.sync().signal.acquire(Permit::Acquired, NEVER)));
                again(|| s.sync().signal.release(Permit::Acquired));
            },
        ),
        woken(
            "sleep for an event",
            with,
            |s| s.sync().event.set().unwrap(),
            |s| {
                assert!(again(|| s.sync().event.wait(0, NEVER)));
            },
        ),
        woken(
            "sleep for a notification",
            with,
            |s| {
                let _ = s.sync().condition.notify(1).unwrap();
            },
            |s| {
                let waiting = again(|| s.sync().condition.enlist(NEVER)).unwrap();
                assert!(again(|| waiting.wait(NEVER)));
                assert!(waiting.leave());
            },
        ),
        woken(
            "sleep at a barrier",
            with,
            |s| {
                // If the victim is dead by now, this one is the first, and nobody will come: it goes, which breaks the barrier.
                if let Ok(Some(party)) = s.sync().pair.come(NEVER)
                    && party.acts()
                {
                    party.end().unwrap();
                }
            },
            |s| {
                let party = again(|| s.sync().pair.come(NEVER)).unwrap();
                assert!(!party.acts());
                assert_eq!(again(|| party.wait(NEVER)), Some(Passed::Through));
            },
        ),
        woken(
            "come while another acts",
            with_an_actor,
            |s| s.sync().single.reset().unwrap(),
            |s| s.sync().pass(),
        ),
    ]
}

/// The victim wakes another, which the harness does if it dies.
fn waking(
    name: &str,
    before: fn(&mut Stage),
    sleep: fn(&Stage),
    run: fn(&Stage),
    rescue: fn(&Stage, bool),
) -> Act {
    Act {
        after: rescue,
        ..act(Role::Sleeper, name, before, Companion::Sleeps(sleep), run)
    }
}

fn waking_one() -> Vec<Act> {
    vec![
        waking(
            "signal, for a sleeper",
            without_signal,
            |s| assert!(again(|| s.sync().signal.acquire(Permit::Acquired, NEVER))),
            |s| again(|| s.sync().signal.release(Permit::Acquired)),
            |s, finished| {
                if !finished {
                    again(|| s.sync().signal.release(Permit::Acquired));
                }
            },
        ),
        waking(
            "set an event, for a sleeper",
            with,
            |s| assert!(again(|| s.sync().event.wait(0, NEVER))),
            |s| s.sync().event.set().unwrap(),
            |s, finished| {
                if !finished {
                    s.sync().event.set().unwrap();
                }
            },
        ),
        waking(
            "notify a sleeper",
            with,
            |s| {
                let waiting = again(|| s.sync().condition.enlist(NEVER)).unwrap();
                assert!(again(|| waiting.wait(NEVER)));
            },
            |s| {
                let _ = s.sync().condition.notify(1).unwrap();
            },
            |s, finished| {
                if !finished {
                    s.sync().condition.notify(1).unwrap();
                }
            },
        ),
    ]
}

/// The same, at barriers.
fn waking_parties() -> Vec<Act> {
    vec![
        waking(
            "end a round, for a sleeper",
            with,
            |s| {
                let party = again(|| s.sync().pair.come(NEVER)).unwrap();
                again(|| party.wait(NEVER));
            },
            |s| {
                let party = again(|| s.sync().pair.come(NEVER)).unwrap();
                assert!(party.acts() && party.end().unwrap());
            },
            |s, finished| {
                if !finished {
                    s.sync().pair.abort().unwrap();
                }
            },
        ),
        waking(
            "break a barrier, for one who comes",
            with_an_actor,
            |s| assert!(s.sync().single.come(NEVER).is_err()),
            |s| s.sync().single.abort().unwrap(),
            |s, finished| {
                if !finished {
                    s.sync().single.abort().unwrap();
                }
            },
        ),
    ]
}

/// A process that had taken a task is dead, and was recovered.
fn with_a_lost_task(stage: &mut Stage) {
    with(stage);
    start(|| stage.sync().get_task()).join();
    again(|| stage.arena.reap());
}

/// One message waits, whose task is done already.
fn with_a_task_ahead(stage: &mut Stage) {
    with(stage);
    stage.sync().do_tasks();
    stage.sync().put_task(8);
    again(|| stage.sync().tasks.task_done());
    stage.sync.as_mut().expect("primitives").ahead = 1;
}

/// With a joinable queue.
fn tasks() -> Vec<Act> {
    let alone = |name, before, run| act(Role::Alone, name, before, Companion::None, run);
    vec![
        alone("do a task", with, |s| s.sync().do_task()),
        Act {
            after: |s, _| {
                let tasks = &s.sync().tasks;
                if tasks.unfinished() != tasks.len() {
                    again(|| tasks.task_done());
                }
            },
            ..alone(
                "do a task that another has",
                |s| {
                    with(s);
                    s.sync().get_task();
                },
                |s| again(|| s.sync().tasks.task_done()),
            )
        },
        alone("take a task that is done", with_a_task_ahead, |s| {
            drop(again(|| s.sync().tasks.get(NOW())))
        }),
        alone(
            "recover one that took a task that is done",
            |s| {
                with_a_task_ahead(s);
                start(|| s.sync().get_task()).join();
            },
            |s| again(|| s.arena.reap()),
        ),
        alone(
            "take tasks, over a segment's end",
            |s| {
                with(s);
                s.sync().do_tasks();
                (0..5).for_each(|_| s.sync().put_task(QUARTER));
            },
            |s| s.sync().do_tasks(),
        ),
        alone("hear of a lost task", with_a_lost_task, |s| {
            s.sync().do_tasks();
            // Another one may have heard of it, or have died with a task, too.
            s.sync().join_tasks();
        }),
        act(
            Role::Sleeper,
            "sleep until all tasks are done",
            with,
            Companion::Wakes(|s| s.sync().do_tasks()),
            |s| {
                s.sync().join_tasks();
            },
        ),
        waking(
            "do the tasks, for a sleeper",
            with,
            |s| {
                s.sync().join_tasks();
            },
            |s| s.sync().do_tasks(),
            |s, finished| {
                if !finished {
                    s.sync().do_tasks();
                }
            },
        ),
    ]
}
