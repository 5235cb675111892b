//! How a model is set up, played in every order, and counted.

use super::super::robust;
use super::super::simulation::{Entered, enter};
use super::super::word::Wake;
use super::{WORLD, World, process};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::Write as _;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tracing_subscriber::EnvFilter;

/// Operations of loom in one execution, at most: an algorithm that goes in circles ends there.
const BRANCHES: usize = 100_000;
/// Words of a thread's stack.
const STACK: usize = 0x8000;

/// One execution of a model: set up by one thread, then played by several, then looked at by one.
pub(crate) struct Scene {
    world: Rc<World>,
    /// The step before which the doomed process dies.
    doom: Option<u64>,
    doomed: Cell<Option<usize>>,
    spare: Cell<usize>,
    old_loads: Cell<usize>,
    parts: RefCell<VecDeque<(usize, Part)>>,
    reached: Arc<AtomicBool>,
    _entered: Entered,
}

type Part = Box<dyn FnOnce() + Send>;

impl Scene {
    /// From now on the set-up, or the look at the end, is the doing of that process.
    pub(crate) fn act_for(&self, process: usize) {
        self.world.processes.act_for(process);
    }

    /// That process is the one that dies, in a model of deaths.
    pub(crate) fn doom(&self, process: usize) {
        self.doomed.set(Some(process));
    }

    /// Gives the parts more memory than the usual: eights that the set-up didn't write.
    pub(crate) fn spare(&self, eights: usize) {
        self.spare.set(eights);
    }

    /// At most so many loads find something older than what was stored last: for what looks so often at one cell that
    /// the orders are too many. What shows only if more do isn't found.
    pub(crate) fn old_loads(&self, most: usize) {
        self.old_loads.set(most);
    }

    /// Lets a process die before its n-th step of `part`, before the parts begin: nobody has noticed yet.
    pub(crate) fn kill(&self, process: usize, step: u64, part: impl FnOnce()) {
        self.act_for(process);
        self.world.processes.doom(process, step);
        let end = process::unless_dead(part);
        assert!(end.is_none(), "it has fewer steps");
        self.act_for(0);
    }

    /// Ends a process before the parts begin: nobody has noticed yet.
    pub(crate) fn bury(&self, process: usize) {
        self.act_for(process);
        self.world.bury();
        self.act_for(0);
    }

    /// What a process does, once [`play`](Self::play) is called; each on a thread of its own.
    pub(crate) fn part(&self, process: usize, part: impl FnOnce() + Send + 'static) {
        self.parts.borrow_mut().push_back((process, Box::new(part)));
    }

    /// Plays the parts to their ends.
    pub(crate) fn play(&self) {
        self.world
            .memory
            .share(self.spare.get(), self.old_loads.get());
        self.world.processes.share();
        if let (Some(process), Some(step)) = (self.doomed.get(), self.doom) {
            self.world.processes.doom(process, step);
        }
        let threads: Vec<_> = self
            .parts
            .take()
            .into_iter()
            .map(|(number, part)| {
                let thread = loom::thread::Builder::new().stack_size(STACK);
                thread.spawn(move || {
                    process::run(number, part);
                })
            })
            .collect();
        for thread in threads {
            let joined = thread
                .and_then(|thread| thread.join().map_err(|_| std::io::ErrorKind::Other.into()));
            joined.expect("a part ends, or its process dies");
        }
        self.world.memory.unshare(self.was_killed());
        if self.was_killed() || self.world.futexes.was_disturbed.get() {
            self.reached.store(true, Relaxed);
        }
    }

    /// Whether the doomed process died.
    pub(crate) fn was_killed(&self) -> bool {
        self.world.processes.was_killed.get()
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        WORLD.set(None);
    }
}

/// What differs between two explorations of one model.
#[derive(Clone, Copy, Default)]
struct Variant {
    doom: Option<u64>,
    disturbed: Option<(u64, Wake)>,
}

/// Plays a scene in every order that has at most `preemptions` switches away from a thread that could go on.
///
/// Prints how many executions that took. `LOOM_MAX_PREEMPTIONS` overrides the bound.
pub(crate) fn explore(preemptions: usize, scene: impl Fn(&Scene) + Send + Sync + 'static) {
    let total = Arc::new(AtomicU64::new(0));
    let begin = Instant::now();
    check(preemptions, Variant::default(), &Arc::new(scene), &total);
    report(begin, &total, "");
}

/// As [`explore`], once for each step of the process that the scene [dooms](Scene::doom): it dies before it.
///
/// `PROCESSION_DOOM=N` plays only the death before the N-th.
pub(crate) fn explore_deaths(preemptions: usize, scene: impl Fn(&Scene) + Send + Sync + 'static) {
    let only = std::env::var("PROCESSION_DOOM")
        .ok()
        .and_then(|text| text.parse().ok());
    let (total, scene, begin) = (Arc::default(), Arc::new(scene), Instant::now());
    let mut deaths = 0;
    for step in only.unwrap_or(1).. {
        let variant = Variant {
            doom: Some(step),
            ..Variant::default()
        };
        let blame = Blame(format!(
            "the death before step {step}: PROCESSION_DOOM={step} plays only it"
        ));
        let reached = check(preemptions, variant, &scene, &total);
        drop(blame);
        if !reached || only.is_some() {
            break;
        }
        deaths += 1;
    }
    assert!(
        deaths > 0 || only.is_some(),
        "the doomed process took no step"
    );
    report(begin, &total, &format!(", {deaths} deaths"));
}

/// As [`explore`], then once for each sleep of the scene: it ends for no reason, or by a deadline that was early.
pub(crate) fn explore_disturbed(
    preemptions: usize,
    scene: impl Fn(&Scene) + Send + Sync + 'static,
) {
    let (total, scene, begin) = (Arc::default(), Arc::new(scene), Instant::now());
    check(preemptions, Variant::default(), &scene, &total);
    let mut sleeps = 0;
    for how in [Wake::Look, Wake::TimedOut] {
        for sleep in 1.. {
            let variant = Variant {
                disturbed: Some((sleep, how)),
                ..Variant::default()
            };
            let blame = Blame(format!("sleep {sleep}, which ended at once with {how:?}"));
            let reached = check(preemptions, variant, &scene, &total);
            drop(blame);
            if !reached {
                break;
            }
            sleeps += 1;
        }
    }
    report(begin, &total, &format!(", {sleeps} sleeps disturbed"));
}

/// Explores one variant; true if its death or its disturbance came to be in some execution.
fn check(
    preemptions: usize,
    variant: Variant,
    scene: &Arc<impl Fn(&Scene) + Send + Sync + 'static>,
    total: &Arc<AtomicU64>,
) -> bool {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound.get_or_insert(preemptions);
    builder.max_branches = builder.max_branches.max(BRANCHES);
    let reached = Arc::new(AtomicBool::new(false));
    let (told, scene, total) = (reached.clone(), scene.clone(), total.clone());
    let log = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::from_env("LOOM_LOG"))
        .with_test_writer()
        .without_time()
        .finish();
    tracing::subscriber::with_default(log, || {
        builder.check(move || {
            total.fetch_add(1, Relaxed);
            let world = World::new();
            world.futexes.disturbed.set(variant.disturbed);
            WORLD.set(Some(world.clone()));
            let entered = enter(world.clone());
            world.pass(Duration::ZERO);
            // What an earlier execution left of its robust lists.
            robust::forked();
            scene(&Scene {
                world,
                doom: variant.doom,
                doomed: Cell::new(None),
                spare: Cell::new(SPARE),
                old_loads: Cell::new(usize::MAX),
                parts: RefCell::default(),
                reached: told.clone(),
                _entered: entered,
            });
        });
    });
    reached.load(Relaxed)
}

/// Eights that parts may touch beyond those of the set-up.
const SPARE: usize = 64;

fn report(begin: Instant, total: &AtomicU64, more: &str) {
    let test = std::thread::current()
        .name()
        .unwrap_or("a model")
        .to_owned();
    let (executions, seconds) = (total.load(Relaxed), begin.elapsed().as_secs_f64());
    // Past what a test's harness keeps back: the counts say how much was explored.
    let line = format!("{test}: {executions} executions{more}, {seconds:.1} s\n");
    let _ = std::io::stdout().write_all(line.as_bytes());
}

/// Says, if the model fails, in which variant.
struct Blame(String);

impl Drop for Blame {
    #[allow(clippy::print_stderr, reason = "how to replay a failure")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("failed in {}", self.0);
        }
    }
}
