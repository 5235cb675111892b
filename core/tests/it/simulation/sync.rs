//! Programs over one primitive of synchronisation, in a simulated tree, each against an oracle of a few numbers.
//!
//! The auditor makes the primitive, is never killed, and recovers the dead. When it has become calm, whoever sleeps must
//! have a reason to; then all reasons are taken away, all end, and the numbers must fit. `SEED=n` runs that case
//! alone, `SEEDS=n` as many.

mod barrier;
mod condition;
mod event;
mod rlock;
mod semaphore;

use super::actor::again;
use super::world::{Name, World};
use super::{
    BUSY, CHUNK, GRACE, MILLISECOND, REST, SECOND, StopsAll, WIND_DOWN, apart, number, roughness,
};
use crate::child::{Random, alone};
use procession_core::{Arena, ChildSlot, Deadline, Error, ObjectName, Result};
use std::cell::{Cell, RefCell};
use std::os::fd::IntoRawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Cases of each primitive in a run of the tests.
const SEEDS: u64 = 5_000;
/// In one of so many cases the processes have places beyond those for which a semaphore has room in itself.
const LATE_EVERY: u64 = 16;
/// So many places come before those.
const EARLY: u64 = 63;

/// A primitive, as a process holds it, and what is done to it.
trait Subject: Sized + 'static {
    /// What the processes note, outside of the arena.
    type Notes: 'static;

    fn make(arena: &Arena, world: &Rc<World>) -> (Self, Self::Notes);
    fn names(&self) -> Vec<ObjectName>;
    fn open(arena: &Arena, names: &[ObjectName]) -> Self;

    /// One step of a process' program.
    fn act(&self, me: &Actor<Self>);

    /// The end of a process, which may die there.
    fn end(&self, me: &Actor<Self>, arena: &Arena);

    /// Who sleeps for what is there, when it is calm and the dead are recovered.
    fn without_reason(&self, case: &Case<Self>) -> Option<String>;

    /// Takes reasons to wait away.
    fn wind_down(&self, case: &Case<Self>);

    /// All others are gone and recovered.
    fn judge(&self, case: &Case<Self>);
}

/// What all processes of a case know without shared memory.
struct Case<S: Subject> {
    world: Rc<World>,
    notes: RefCell<S::Notes>,
    /// The processes, and whether each waits without a deadline.
    staff: RefCell<Vec<(Name, bool)>>,
    /// Steps of a program, at most.
    length: u64,
    /// Things that came to an end: as long as that goes on, nobody is stuck.
    progress: Cell<u64>,
}

/// A process.
struct Actor<S: Subject> {
    case: Rc<Case<S>>,
    name: Name,
}

impl<S: Subject> Case<S> {
    fn below(&self, limit: u64) -> u64 {
        self.world.below(limit)
    }

    fn living(&self) -> usize {
        let staff = self.staff.borrow();
        let mut names = staff.iter();
        names
            .by_ref()
            .filter(|(name, _)| !self.world.is_seen_dead(*name))
            .count()
    }

    /// The processes that sleep without a deadline.
    fn sleepers(&self) -> Vec<Name> {
        let staff = self.staff.borrow();
        staff
            .iter()
            .filter(|(name, waits)| {
                *waits && self.world.sleeps(*name) && !self.world.is_dead(*name)
            })
            .map(|(name, _)| *name)
            .collect()
    }
}

impl<S: Subject> Actor<S> {
    fn below(&self, limit: u64) -> u64 {
        self.case.below(limit)
    }

    /// Milliseconds, or `None` for a wait without a deadline, where that may be.
    fn timeout(&self, may_wait: bool) -> Option<u64> {
        match self.below(6) {
            0 => Some(0),
            1..4 if may_wait => None,
            1..5 => Some(self.below(20)),
            _ => Some(self.below(400)),
        }
    }

    /// Makes a call that waits, and sees that it ends in time.
    fn timed<T>(
        &self,
        timeout: Option<u64>,
        mut call: impl FnMut(Deadline) -> Result<T>,
    ) -> Result<T> {
        let world = &self.case.world;
        let (begin, kept) = (world.now(), world.kept());
        let deadline = timeout.map_or(Deadline::NEVER, |timeout| {
            Deadline::after(Duration::from_millis(timeout))
        });
        self.note_wait(timeout.is_none());
        let result = again(|| call(deadline));
        self.note_wait(false);
        self.case.progress.set(self.case.progress.get() + 1);
        if let Some(timeout) = timeout {
            let took = (world.now() - begin).saturating_sub(world.kept() - kept);
            assert!(
                took <= timeout * MILLISECOND + GRACE,
                "{}: a timeout of {timeout} ms took {took} ns",
                self.name
            );
        }
        result
    }

    fn note_wait(&self, waits: bool) {
        let mut staff = self.case.staff.borrow_mut();
        let mine = staff.iter_mut().find(|(name, _)| *name == self.name);
        mine.unwrap().1 = waits;
    }

    fn pause(&self) {
        let world = &self.case.world;
        world.pause(world.below(5 * MILLISECOND));
    }
}

/// Starts a process on a place.
fn start<S: Subject>(case: &Rc<Case<S>>, arena: &Arena, place: &ChildSlot, names: &[ObjectName]) {
    let token = place.token(0);
    let rest = token.split_once(':').unwrap().1.to_owned();
    let file = arena.descriptor().try_clone_to_owned().unwrap();
    let (names, inside) = (names.to_vec(), Rc::clone(case));
    let name = case.world.start(true, move |name| {
        let token = format!("{}:{rest}", file.into_raw_fd());
        let arena = again(|| Arena::attach(&token)).unwrap();
        let subject = S::open(&arena, &names);
        let me = Actor { case: inside, name };
        for _ in 0..=me.below(me.case.length) {
            subject.act(&me);
        }
        subject.end(&me, &arena);
    });
    case.staff.borrow_mut().push((name, false));
}

/// What the first process does.
fn audit<S: Subject>(world: Rc<World>, length: u64, count: u64, is_late: bool) {
    let arena = Arena::create().unwrap();
    let (subject, notes) = S::make(&arena, &world);
    let names = subject.names();
    let case = Rc::new(Case {
        world,
        notes: RefCell::new(notes),
        staff: RefCell::default(),
        length,
        progress: Cell::new(0),
    });
    let early: Vec<_> = (0..if is_late { EARLY } else { 0 })
        .map(|_| again(|| arena.reserve()).unwrap())
        .collect();
    let mut places = Vec::new();
    for _ in 0..count {
        let place = again(|| arena.reserve()).unwrap();
        for name in &names {
            again(|| place.give(*name)).unwrap();
        }
        start::<S>(&case, &arena, &place, &names);
        places.push(place);
    }
    let world = &case.world;
    let is_stuck = || case.living() == case.sleepers().len();
    while case.living() > 0 && world.now() < BUSY && !is_stuck() {
        world.pause(world.below(50 * MILLISECOND));
        if world.below(4) == 0 {
            again(|| arena.reap()).unwrap();
        }
    }
    drop((early, places));
    world.calm();
    world.pause(REST);
    again(|| arena.reap()).unwrap();
    let (before, progress) = (subject.without_reason(&case), case.progress.get());
    world.pause(SECOND);
    let after = subject.without_reason(&case);
    if let (Some(why), true) = (after, before.is_some() && case.progress.get() == progress) {
        panic!("they sleep without a reason: {why}");
    }
    let end = world.now() + WIND_DOWN;
    while case.living() > 0 {
        assert!(world.now() < end, "somebody waits for ever");
        subject.wind_down(&case);
        world.pause(10 * MILLISECOND);
        again(|| arena.reap()).unwrap();
    }
    again(|| arena.reap()).unwrap();
    subject.judge(&case);
    let own = names.len() as u64;
    let census = arena.census().unwrap();
    let found = (census.objects, census.processes, census.owned_bytes);
    assert_eq!(found, (own, 1, 0), "{census:?}");
    drop(subject);
    let census = arena.census().unwrap();
    let found = (census.objects, census.linked_bytes, census.owned_bytes);
    assert_eq!(found, (0, 0, 0), "{census:?}");
}

/// Runs one case: its steps and kills.
fn case<S: Subject>(seed: u64) -> (u64, u64) {
    let mut random = Random::new(seed.wrapping_mul(0xD134_2543_DE82_EF95));
    random.below(2);
    let world = World::new(seed, roughness(&mut random));
    let length = [4, 12, 40][usize::try_from(random.below(3)).unwrap()];
    let (count, is_late) = (1 + random.below(5), random.below(LATE_EVERY) == 0);
    let inside = Rc::clone(&world);
    world.start(false, move |_| audit::<S>(inside, length, count, is_late));
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| world.run())) {
        println!("SEED={seed} at {} ns", world.now());
        world.abandon();
        std::panic::resume_unwind(panic);
    }
    let (_, steps, kills) = world.trace();
    (steps, kills)
}

/// Runs cases on all processors; a case is alone in its thread.
fn run<S: Subject>(what: &str, seeds: std::ops::Range<u64>) {
    let next = AtomicU64::new(seeds.start);
    let sums = [const { AtomicU64::new(0) }; 2];
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        break;
                    }
                    let last = StopsAll(&next, seeds.end);
                    let (steps, kills) = case::<S>(seed);
                    std::mem::forget(last);
                    sums[0].fetch_add(steps, Ordering::Relaxed);
                    sums[1].fetch_add(kills, Ordering::Relaxed);
                }
            });
        }
    });
    let [steps, kills] = sums.map(AtomicU64::into_inner);
    let count = seeds.end - seeds.start;
    println!("{what}: {count} cases: {steps} steps, {kills} kills");
}

/// Runs what is asked for of one primitive.
fn all<S: Subject>(what: &str) {
    let (first, count) = (number("SEED"), number("SEEDS"));
    let begin = first.unwrap_or(0);
    let end = begin + count.unwrap_or(if first.is_some() { 1 } else { SEEDS });
    println!("SEED={begin}..{end}");
    for chunk in (begin..end).step_by(usize::try_from(CHUNK).unwrap()) {
        let _alone = alone();
        let chunk = chunk..end.min(chunk + CHUNK);
        let (first, count) = (chunk.start, chunk.end - chunk.start);
        let shows = format!("SEED={first} SEEDS={count}, with --nocapture, shows which");
        apart(&shows, || run::<S>(what, chunk));
    }
}

/// Whether a call says that its object, a barrier, is broken.
fn is_closed<T>(result: &Result<T>) -> bool {
    matches!(result, Err(Error::Closed { .. }))
}
