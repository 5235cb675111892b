//! Whole trees of processes in one thread, from a seed: kills, stops, delays and false wakes anywhere.
//!
//! [`world`] is the machine, [`actor`] what a process does, [`oracle`] what must hold. A case that fails prints its
//! seed; `SEED=n` runs that one alone, `SEEDS=n` as many as you have time for,
//! both so many from that one on.

pub(crate) mod actor;
mod oracle;
mod sync;
pub(crate) mod world;

use crate::child::{Random, alone, fork};
use actor::{Common, GRACE, Waits, again, enlist, number_of};
use oracle::Oracle;
use procession_core::{Acquired, Arena, Claim, Deadline, Error, Lock, Queue};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use world::{Roughness, World};

/// Cases of a run of the tests.
const SEEDS: u64 = 15_000;
/// Cases between two lines of a long run.
const CHUNK: u64 = 10_000;
const MILLISECOND: u64 = 1_000_000;
const SECOND: u64 = 1_000 * MILLISECOND;
/// When a case becomes calm, and those who still wait are looked at.
const BUSY: u64 = 20 * SECOND;
/// Longer than any stop.
const REST: u64 = 4 * SECOND;
/// How long those who sleep may take to end once everything is closed and released.
const WIND_DOWN: u64 = 30 * SECOND;

/// The first process of a case: it makes the objects, recovers the dead, is never killed, and checks what is left.
struct Auditor {
    common: Common,
    arena: Arena,
    queues: Vec<Queue>,
    locks: Vec<Lock>,
    seen_dead: BTreeSet<usize>,
}

/// What a case came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Outcome {
    trace: u64,
    steps: u64,
    kills: u64,
    got: u64,
    told: u64,
}

fn roughness(random: &mut Random) -> Roughness {
    let mut one_of = |choices: [u64; 4]| choices[usize::try_from(random.below(4)).unwrap()];
    Roughness {
        switch: one_of([2, 8, 30, 100]),
        delay: one_of([0, 300, 1_000, 5_000]),
        stop: one_of([0, 0, 5_000, 20_000]),
        kill: one_of([0, 500, 2_000, 8_000]),
        spurious: one_of([0, 0, 300, 2_000]),
        several_processors: one_of([0, 1, 0, 1]) == 1,
    }
}

/// Runs one case.
fn case(seed: u64) -> Outcome {
    let mut random = Random::new(seed.wrapping_mul(0xD134_2543_DE82_EF95));
    random.below(2);
    let rough = roughness(&mut random);
    let world = World::new(seed, rough);
    let oracle = Oracle::new(&world);
    let length = [4, 12, 40][usize::try_from(random.below(3)).unwrap()];
    let shape = [random.below(3), random.below(3), random.below(5)];
    let common = Common {
        world: Rc::clone(&world),
        oracle: oracle.clone(),
        queues: Vec::new(),
        locks: Vec::new(),
        board: Rc::default(),
        staff: Rc::new(RefCell::new(Vec::new())),
        length,
        is_peaceful: rough.kill == 0,
        talks: [0, 0, 16, 30][usize::try_from(random.below(4)).unwrap()],
    };
    world.start(false, move |_| Auditor::run(common, shape));
    let ran = catch_unwind(AssertUnwindSafe(|| world.run()));
    if let Err(panic) = ran {
        println!("SEED={seed} at {} ns", world.now());
        world.abandon();
        std::panic::resume_unwind(panic);
    }
    let (trace, steps, kills) = world.trace();
    let (got, told) = oracle.counts();
    Outcome {
        trace,
        steps,
        kills,
        got,
        told,
    }
}

impl Auditor {
    fn run(mut common: Common, [queues, locks, children]: [u64; 3]) {
        let arena = Arena::create().unwrap();
        let queues: Vec<Queue> = (0..=queues)
            .map(|_| {
                common.oracle.new_queue(true);
                let bound = common.world.below(6);
                let bound = u32::try_from(bound).ok().filter(|bound| *bound > 0);
                Queue::new(&arena, bound).unwrap()
            })
            .collect();
        let locks: Vec<Lock> = (0..=locks)
            .map(|_| {
                common.oracle.new_lock();
                Lock::new(&arena).unwrap()
            })
            .collect();
        common.queues = queues.iter().map(Queue::name).collect();
        common.locks = locks.iter().map(Lock::name).collect();
        let mut auditor = Self {
            common,
            arena,
            queues,
            locks,
            seen_dead: BTreeSet::new(),
        };
        // Held until the children are there.
        let mut places = Vec::new();
        let mut claims = Vec::new();
        for _ in 0..children + 2 {
            let place = again(|| auditor.arena.reserve()).unwrap();
            let claim = again(|| Claim::new(&auditor.arena)).unwrap();
            let (queues, locks) = (&auditor.common.queues, &auditor.common.locks);
            for name in queues.iter().chain(locks).chain([&claim.name()]) {
                again(|| place.give(*name)).unwrap();
            }
            let file = auditor.arena.descriptor().try_clone_to_owned().unwrap();
            enlist(&auditor.common, &place, file, claim.name());
            places.push(place);
            claims.push(claim);
        }
        auditor.watch();
        drop((places, claims));
        auditor.rest();
        auditor.wind_down();
        auditor.close_the_books();
    }

    fn living(&self) -> usize {
        let staff = self.common.staff.borrow();
        staff
            .iter()
            .filter(|member| !self.common.world.is_seen_dead(member.name))
            .count()
    }

    /// Recovers the dead now and then, until all are, or time is up.
    fn watch(&mut self) {
        let world = Rc::clone(&self.common.world);
        while self.living() > 0 && world.now() < BUSY {
            world.pause(world.below(50 * MILLISECOND));
            self.look_at_the_dead();
            if world.below(4) == 0 && !self.common.is_peaceful {
                again(|| self.arena.reap()).unwrap();
            }
            if self.all_wait() {
                break;
            }
        }
    }

    /// Whether everybody who lives sleeps, and nothing but another process can end that.
    fn all_wait(&self) -> bool {
        let staff = self.common.staff.borrow();
        let world = &self.common.world;
        let mut living = staff.iter().filter(|one| !world.is_seen_dead(one.name));
        living.all(|one| one.waits.is_some() && world.sleeps(one.name))
    }

    /// Asks the claims of those who have died since, as a pool does.
    fn look_at_the_dead(&mut self) {
        if self.common.is_peaceful {
            return;
        }
        let staff = self.common.staff.borrow().clone();
        for member in staff {
            if !self.common.world.is_seen_dead(member.name) || self.seen_dead.contains(&member.name)
            {
                continue;
            }
            // One whose repair isn't through is asked again at the next look.
            let settled = |queue: &Queue| again(|| queue.settle()).unwrap();
            if !self.queues.iter().all(settled) {
                continue;
            }
            self.seen_dead.insert(member.name);
            match again(|| Claim::open(&self.arena, member.claim)) {
                Ok(claim) => {
                    let number = claim.value().unwrap();
                    let now = self.common.world.now();
                    let mut accounts = self.common.oracle.accounts();
                    accounts.claims.push((member.name, number, now));
                }
                // It was its only holder, and has been recovered.
                Err(Error::Closed { .. } | Error::Malformed { .. }) => {}
                Err(error) => panic!("claim: {error:?}"),
            }
        }
    }

    /// Nothing disturbs any more: whoever sleeps now must have a reason to.
    fn rest(&mut self) {
        let world = Rc::clone(&self.common.world);
        world.calm();
        world.pause(REST);
        if !self.common.is_peaceful {
            again(|| self.arena.reap()).unwrap();
        }
        self.look_at_the_dead();
        world.pause(SECOND);
        let before = self.without_reason();
        let counts = self.common.oracle.counts();
        world.pause(SECOND);
        if self.common.oracle.counts() == counts {
            let now = self.without_reason();
            let both: Vec<_> = before.intersection(&now).collect();
            assert!(both.is_empty(), "they sleep without a reason: {both:?}");
        }
    }

    /// Who sleeps for what is there.
    fn without_reason(&self) -> BTreeSet<(usize, String)> {
        let staff = self.common.staff.borrow();
        let mut found = BTreeSet::new();
        for member in staff.iter() {
            let (true, Some(waits)) = (self.common.world.sleeps(member.name), member.waits) else {
                continue;
            };
            let is_there = match waits {
                Waits::Message(queue) => self.queues[queue].len().unwrap() > 0,
                Waits::Room(queue) => {
                    let queue = &self.queues[queue];
                    let capacity = queue.capacity().unwrap().map_or(u64::MAX, u64::from);
                    queue.len().unwrap() < capacity
                }
                Waits::Lock(lock) => !self.locks[lock].is_held().unwrap(),
            };
            if is_there {
                found.insert((member.name, format!("{waits:?}")));
            }
        }
        found
    }

    /// Takes every reason to wait away; all must end.
    fn wind_down(&mut self) {
        let world = Rc::clone(&self.common.world);
        for queue in &self.queues {
            queue.close().unwrap();
        }
        let end = world.now() + WIND_DOWN;
        while self.living() > 0 {
            assert!(world.now() < end, "somebody waits for ever");
            world.pause(10 * MILLISECOND);
            self.look_at_the_dead();
            again(|| self.arena.reap()).unwrap();
            self.release_left();
        }
    }

    /// Releases locks that a process left held.
    fn release_left(&self) {
        for (number, lock) in self.locks.iter().enumerate() {
            if self.common.oracle.is_held(number) || !lock.is_held().unwrap() {
                continue;
            }
            self.common.oracle.acquires(number, 0);
            let timeout = Deadline::after(Duration::from_millis(200));
            match again(|| lock.acquire(timeout)).unwrap() {
                Acquired::TimedOut => {
                    self.common.oracle.gave_up(number, 0);
                    if !self.common.oracle.is_held(number) {
                        self.common.oracle.seizes(number, 0);
                        lock.release().unwrap();
                        self.common.oracle.released(number, 0);
                    }
                }
                acquired => {
                    let told = acquired == Acquired::OwnerDied;
                    self.common.oracle.acquired(number, 0, told);
                    self.common.oracle.releases(number, 0);
                    lock.release().unwrap();
                    self.common.oracle.released(number, 0);
                }
            }
        }
    }

    /// Everybody is gone. Gets what is left, and sees that everything is accounted for.
    fn close_the_books(self) {
        again(|| self.arena.reap()).unwrap();
        let mut lost = Vec::new();
        for (account, queue) in self.queues.iter().enumerate() {
            loop {
                let get = self.common.oracle.gets(account, 0, false);
                let got = match again(|| queue.get(Deadline::now())) {
                    Ok(got) => got.map(|message| number_of(&message.bytes)),
                    Err(Error::Closed { .. }) => None,
                    Err(error) => panic!("get: {error:?}"),
                };
                self.common.oracle.has_got(account, get, got);
                if got.is_none() {
                    break;
                }
            }
            assert_eq!(queue.len(), Ok(0));
            lost.push(queue.lost().unwrap());
        }
        self.common.oracle.judge(&lost);
        let census = self.arena.census().unwrap();
        let own = (self.queues.len() + self.locks.len()) as u64;
        assert_eq!(
            (census.objects, census.processes, census.owned_bytes),
            (own, 1, 0),
            "{census:?}"
        );
        // All places are free again, so the first ones are given out again.
        let places: Vec<_> = (0..4).map(|_| self.arena.reserve().unwrap()).collect();
        for (place, number) in places.iter().zip(2..) {
            let token = place.token(0);
            assert_eq!(
                token.split(':').nth(1),
                Some(&*format!("{number}")),
                "a place leaked"
            );
        }
        drop((places, self.queues, self.locks));
        let census = self.arena.census().unwrap();
        assert_eq!(
            (census.objects, census.linked_bytes, census.owned_bytes),
            (0, 0, 0),
            "{census:?}"
        );
    }
}

pub(crate) fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

/// Has nobody begin another case, when one has failed.
struct StopsAll<'a>(&'a AtomicU64, u64);

impl Drop for StopsAll<'_> {
    fn drop(&mut self) {
        self.0.store(self.1, Ordering::Relaxed);
    }
}

/// Runs cases on all processors; a case is alone in its thread.
fn run(seeds: std::ops::Range<u64>) {
    let next = AtomicU64::new(seeds.start);
    let sums = [const { AtomicU64::new(0) }; 4];
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
                    let outcome = case(seed);
                    std::mem::forget(last);
                    let all = [outcome.steps, outcome.kills, outcome.got, outcome.told];
                    for (sum, one) in sums.iter().zip(all) {
                        sum.fetch_add(one, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let [steps, kills, got, told] = sums.map(AtomicU64::into_inner);
    println!(
        "{} cases: {steps} steps, {kills} kills, {got} messages, {told} deaths of owners told",
        seeds.end - seeds.start
    );
    assert!(
        got > 0 || seeds.end - seeds.start < 100,
        "no messages at all"
    );
}

#[test]
fn a_tree_of_simulated_processes_survives_whatever_a_seed_has() {
    let (first, count) = (number("SEED"), number("SEEDS"));
    let begin = first.unwrap_or(0);
    let end = begin + count.unwrap_or(if first.is_some() { 1 } else { SEEDS });
    println!("SEED={begin}..{end}");
    for chunk in (begin..end).step_by(usize::try_from(CHUNK).unwrap()) {
        // The watchdog is for each chunk.
        let _alone = alone();
        let chunk = chunk..end.min(chunk + CHUNK);
        let (first, count) = (chunk.start, chunk.end - chunk.start);
        apart(
            &format!("SEED={first} SEEDS={count}, with --nocapture, shows which"),
            || run(chunk),
        );
    }
}

/// Runs trees in a child: what their dead leave, a fork of this process would take for its own.
fn apart(what: &str, work: impl FnOnce()) {
    let child = fork(|| {
        // SAFETY: sets a timer, for as long as the watchdog's.
        unsafe { libc::alarm(600) };
        work();
    });
    assert_eq!(child.wait(), 0, "{what}");
}

#[test]
fn a_seed_takes_the_same_way_twice() {
    let _alone = alone();
    apart("a seed that took two ways; --nocapture shows which", || {
        for seed in 0..20 {
            assert_eq!(case(seed), case(seed), "SEED={seed}");
        }
    });
}
