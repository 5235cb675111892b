//! Every instruction of every operation: what if the process died here?
//!
//! A forked child is stepped through an operation. After each instruction the arena's memory and the child's robust
//! list are compared with what they were: as long as both are the same, it is the same to everybody else whether the
//! child died here or an instruction before. So what follows from a death is asked once for each *state*; no
//! instruction is left out by that. Of each state a copy is made, in which the words are marked that the kernel would
//! mark, and the child counts as dead. There this process recovers, checks and uses everything; and in another copy it
//! uses everything without recovering first. Of some states a recovery is itself stepped in the same way.

mod memory;
mod stepper;
mod tracee;

use crate::child::{Random, alone, fork};
use crate::crash::ledger::shared;
use crate::crash::workers::Crew;
use crate::scene::{Effect, Found, OPERATIONS, Operation, Scene, Users};
use memory::Memory;
use procession_core::shm::Snapshot;
use procession_core::sys::dead;
use std::fmt;
use std::ops::AddAssign;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::time::Instant;
use stepper::{Stepper, Who};

/// So many states of each operation have their recovery stepped, unless RECOVERIES says otherwise.
const RECOVERIES: u64 = 1;
/// A replay begins so many instructions before the one that it is given: their numbers vary a little from run to run.
const BEFORE: u64 = 500;
/// Kills for real come within so many instructions.
const MARKED_WITHIN: u64 = 3_000;
/// The operation that has two ends.
const FORK: &str = "fork";
/// One for each of two processors: whoever steps never sleeps. An operation takes seconds.
const CREW: Crew = Crew {
    workers: 2,
    job_seconds: 500,
};
/// Room for the counts of so many operations.
const OPERATIONS_MAX: usize = 128;

/// What to step, from which instruction on; from the environment.
#[derive(Debug)]
struct Plan {
    operation: Option<String>,
    /// The instruction, of the operation or of the recovery, from which on states are looked at.
    step: u64,
    /// Only the recovery of the state after this instruction of the operation is of interest.
    recovery: Option<u64>,
    /// Chooses the states whose recovery is stepped.
    seed: u64,
    /// How many those are, of each operation.
    recoveries: usize,
}

/// A state whose recovery is to be stepped: the instruction, the bytes, and what must be found there ever after.
type Kept = (u64, Snapshot, Found);

/// What was done: instructions and states of operations; recoveries, and their instructions and states.
#[derive(Debug, Default, Clone, Copy)]
struct Counts([u64; Self::COUNT]);

#[test]
fn a_death_after_any_instruction_is_survived() {
    let _alone = alone();
    let plan = Plan::from_environment();
    println!("SEED={}", plan.seed);
    let began = Instant::now();
    let operations = plan.operations();
    assert!(!operations.is_empty(), "no operation has that name");
    let counted: &'static [[AtomicU64; Counts::COUNT]; OPERATIONS_MAX] = shared();
    let name = |at: usize| operations[at].name.to_owned();
    let failures = CREW.perform(operations.len(), &name, &|at, _| {
        let mut counts = plan.walk(operations[at], Who::Itself);
        if operations[at].name == FORK {
            counts += plan.walk(operations[at], Who::ItsChild);
        }
        for (shared, count) in counted[at].iter().zip(counts.0) {
            shared.store(count, SeqCst);
        }
    });
    let mut total = Counts::default();
    for (operation, counts) in operations.iter().zip(counted) {
        let counts = Counts(counts.each_ref().map(|count| count.load(SeqCst)));
        println!("{}: {counts}", operation.name);
        total += counts;
    }
    for failure in &failures {
        println!("FAILED {failure}");
    }
    assert!(failures.is_empty(), "{} failures, above", failures.len());
    let seconds = began.elapsed().as_secs();
    println!("{} operations, {total}; {seconds} s", operations.len());
}

#[test]
fn the_kernel_marks_what_the_harness_marks() {
    let _alone = alone();
    let plan = Plan::from_environment();
    println!("SEED={}", plan.seed);
    let mut random = Random::new(plan.seed);
    for operation in plan.operations() {
        let scene = Scene::new(operation);
        let mut stepper = Stepper::new(&scene, Who::Itself, || (operation.run)(&scene));
        let steps = random.below(MARKED_WITHIN);
        while stepper.instructions < steps && !stepper.done {
            stepper.step();
        }
        let when = format!("killed after {} instructions", stepper.instructions);
        let mut marked = Memory::new(stepper.snapshot());
        stepper.kill();
        let mut killed = Memory::new(scene.arena.descriptor());
        marked.has_changed();
        killed.has_changed();
        let differences = marked.differences(&killed);
        assert_eq!(differences, [], "{}, {when}", operation.name);
        dead::forget();
        scene.check(operation, &when);
    }
}

impl Plan {
    fn from_environment() -> Self {
        let number = |name| {
            let text = std::env::var(name).ok()?;
            let number = text.parse::<u64>();
            Some(number.unwrap_or_else(|_| panic!("{name} is a number")))
        };
        Self {
            operation: std::env::var("OPERATION").ok(),
            step: number("STEP").unwrap_or(0).saturating_sub(BEFORE),
            recovery: number("RECOVERY"),
            seed: number("SEED").unwrap_or(7),
            recoveries: index(number("RECOVERIES").unwrap_or(RECOVERIES)),
        }
    }

    /// The operation of the wanted name, or all that have it in theirs.
    fn operations(&self) -> Vec<&'static Operation> {
        let wanted = self.operation.as_deref().unwrap_or_default();
        let mut found: Vec<_> = OPERATIONS.iter().collect();
        if found.iter().any(|operation| operation.name == wanted) {
            found.retain(|operation| operation.name == wanted);
        }
        found.retain(|operation| operation.name.contains(wanted));
        found
    }

    /// Steps an operation, then the recovery of some of its states.
    fn walk(&self, operation: &Operation, who: Who) -> Counts {
        let scene = Scene::new(operation);
        let mut stepper = match who {
            Who::Itself => Stepper::new(&scene, who, || (operation.run)(&scene)),
            Who::ItsChild => Stepper::new(&scene, who, || drop(fork(stop))),
        };
        let mut random = Random::new(self.seed);
        let mut kept: Vec<Kept> = Vec::new();
        let mut history: Vec<Found> = Vec::new();
        stepper.walk(|stepper| {
            let at = stepper.instructions;
            let wanted = match self.recovery {
                Some(last) => at <= last,
                // The first one is what the others are compared with.
                None => at >= self.step || stepper.states == 1,
            };
            if !wanted {
                return;
            }
            let replay = format!("OPERATION='{}' STEP={at}", operation.name);
            let found = reported(stepper, &replay, || {
                let found = judge(&scene, stepper, operation, stepper.done, &replay);
                // What an operation did is never undone, and it leaves nothing behind.
                if history.last() != Some(&found) {
                    let first = history.first().unwrap_or(&found);
                    assert_eq!(found.linked_bytes, first.linked_bytes);
                    assert!(!history.contains(&found), "{found:?} again");
                    history.push(found.clone());
                }
                found
            });
            let nth = index(random.below(stepper.states));
            if self.recovery.is_some() {
                kept.clear();
            }
            // Each state is as likely to be kept as any other; in a replay it's the last.
            if kept.len() < self.recoveries {
                kept.push((at, stepper.snapshot(), found));
            } else if let Some(old) = kept.get_mut(nth) {
                *old = (at, stepper.snapshot(), found);
            }
        });
        let mut counts = Counts([stepper.instructions, stepper.states, 0, 0, 0]);
        stepper.kill();
        for state in kept {
            counts += self.walk_recovery(operation, &scene, state);
        }
        dead::forget();
        scene.judge(operation, "killed at its end", true, Users::HereRecovered);
        counts
    }

    /// Steps a process that recovers what another one left, which died in an operation.
    fn walk_recovery(&self, operation: &Operation, scene: &Scene, state: Kept) -> Counts {
        let (at, snapshot, expected) = state;
        let scene = scene.twin(snapshot);
        let mut stepper = Stepper::new(&scene, Who::Itself, || {
            // As a pool does, which asks a claim; or what it leaves is repaired within the recovery.
            if at % 2 == 1 {
                scene.queue.settle().unwrap();
            }
            scene.arena.reap().unwrap();
        });
        stepper.walk(|stepper| {
            let step = stepper.instructions;
            if self.recovery.is_none() || step >= self.step {
                let replay = format!("OPERATION='{}' RECOVERY={at} STEP={step}", operation.name);
                reported(stepper, &replay, || {
                    let found = judge(&scene, stepper, operation, false, &replay);
                    assert_eq!(found, expected);
                });
            }
        });
        let counts = Counts([0, 0, 1, stepper.instructions, stepper.states]);
        stepper.kill();
        let when = format!("dead after {at} instructions, recovered");
        let found = scene.judge(operation, &when, false, Users::HereRecovered);
        assert_eq!(found, expected, "{}, {when}", operation.name);
        counts
    }
}

/// What would follow if the process that is stepped died now: the same, whether others recover it first or not.
fn judge(scene: &Scene, stepper: &Stepper<'_>, op: &Operation, done: bool, when: &str) -> Found {
    let [recovered, used] = [Users::HereRecovered, Users::Here].map(|users| {
        let twin = scene.twin(stepper.snapshot());
        twin.judge(op, when, done, users)
    });
    // An answer that isn't counted yet can be heard only once its worker is recovered (docs/shm.md, 5.13).
    if op.effect != Effect::Answers {
        assert_eq!(recovered, used, "recovered first, or used first");
    }
    recovered
}

/// Makes a check; if it fails, says where and how to come there again.
fn reported<R>(stepper: &Stepper<'_>, replay: &str, check: impl FnOnce() -> R) -> R {
    catch_unwind(AssertUnwindSafe(check)).unwrap_or_else(|_| {
        panic!(
            "state {}, before {}\n  replay, as docs/testing.md has it: {replay} cargo test any_instruction\n ",
            stepper.states,
            stepper.place()
        )
    })
}

/// Stops this process.
fn stop() {
    // SAFETY: to this process.
    unsafe { libc::raise(libc::SIGSTOP) };
}

fn index(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

impl Counts {
    const COUNT: usize = 5;
}

impl AddAssign for Counts {
    fn add_assign(&mut self, more: Self) {
        for (sum, more) in self.0.iter_mut().zip(more.0) {
            *sum += more;
        }
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [instructions, states, recoveries, more, more_states] = self.0;
        write!(
            f,
            "{instructions} instructions, {states} states; {recoveries} recoveries, \
             {more} instructions, {more_states} states"
        )
    }
}
