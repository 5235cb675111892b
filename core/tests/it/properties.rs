//! A queue against the simplest model of one, while its users are killed.
//!
//! One thing happens after the other, each in a process of its own, in a world without chance
//! ([`simulation`](crate::simulation)). A process that is killed on the way leaves the queue as it was or as it would
//! have been, and the model follows both, until what others see tells them apart. `SEED=n` makes other programs,
//! `CASES=n` more of them.

use crate::child::alone;
use crate::simulation::actor::{again, body, number_of};
use crate::simulation::number;
use crate::simulation::world::{Roughness, World};
use procession_core::{Arena, ChildSlot, Claim, Deadline, Error, ObjectName, Put, Queue};
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::os::fd::{IntoRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

/// Programs of a run of the tests.
const CASES: u32 = 2_000;
/// The processes of a program end within this many looks at them.
const LOOKS: u32 = 10_000;

/// Something that a process does to the queue.
#[derive(Debug, Clone, Copy)]
enum Deed {
    Put(u64),
    Get { claims: bool },
    Close,
    Settle,
    Reap,
}

/// A deed, and the step of it at which its process is killed; 0: never.
#[derive(Debug, Clone, Copy)]
struct Step {
    deed: Deed,
    killed_at: u64,
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Result {
    Stored,
    Full,
    Got(u64),
    Nothing,
    Closed,
    Done,
    /// Its process was killed first.
    Killed,
}

/// What the queue may be.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Model {
    messages: VecDeque<u64>,
    closed: bool,
    lost: u64,
    /// The message of a put that was killed before it counted it: a get that doesn't wait may not see it yet.
    uncounted: Option<u64>,
    /// A get was killed before it counted what it took: a put that doesn't wait may not see the room yet.
    unmissed: bool,
}

impl Model {
    /// Repaired by whoever came next.
    fn repaired(&self) -> Self {
        Self {
            uncounted: None,
            unmissed: false,
            ..self.clone()
        }
    }

    /// What the queue may be after a deed with that result; nothing when it can't have that result.
    fn after(&self, deed: Deed, message: u64, result: Result, capacity: Option<u32>) -> Vec<Self> {
        let full = capacity.is_some_and(|capacity| self.messages.len() >= capacity as usize);
        let seems_full = self.unmissed
            && capacity.is_some_and(|capacity| self.messages.len() + 1 >= capacity as usize);
        let put = |uncounted| {
            let mut model = self.clone();
            model.messages.push_back(message);
            model.uncounted = uncounted;
            model
        };
        let got = |lost| {
            let mut model = self.clone();
            model.messages.pop_front();
            model.lost += lost;
            model.unmissed = result == Result::Killed;
            model
        };
        let closed = || Self {
            closed: true,
            ..self.clone()
        };
        let same = || vec![self.clone()];
        let front = self.messages.front().copied();
        match (deed, result) {
            (Deed::Put(_), Result::Killed) if !full && !self.closed => {
                vec![self.clone(), put(Some(message))]
            }
            (Deed::Put(_), Result::Stored) if !full && !self.closed => vec![put(None)],
            (Deed::Put(_), Result::Full) if (full || seems_full) && !self.closed => same(),
            (Deed::Put(_), Result::Closed) if self.closed => same(),
            // Killed after the queue had let it go, it is lost, and the queue can't know.
            (Deed::Get { .. }, Result::Killed) => {
                let mut after = vec![self.clone()];
                if front.is_some() {
                    after.extend([got(1), got(0)]);
                }
                after
            }
            (Deed::Get { .. }, Result::Got(number)) if front == Some(number) => vec![got(0)],
            (Deed::Get { .. }, Result::Nothing)
                if (front.is_none() || front == self.uncounted) && !self.closed =>
            {
                same()
            }
            (Deed::Get { .. }, Result::Closed) if front.is_none() && self.closed => same(),
            (Deed::Close, Result::Killed) => vec![self.clone(), closed()],
            (Deed::Close, Result::Done) => vec![closed()],
            (Deed::Settle | Deed::Reap, Result::Done) => vec![self.repaired()],
            (_, Result::Killed) => same(),
            _ => Vec::new(),
        }
    }
}

/// Does it. The message's number is `message`.
fn perform(arena: &Arena, queue: &Queue, claim: &Claim, deed: Deed, message: u64) -> Result {
    let now = Deadline::now();
    match deed {
        Deed::Put(length) => match again(|| queue.put(0, &[&body(message, length)], now)) {
            Ok(Put::Stored) => Result::Stored,
            Ok(Put::Full) => Result::Full,
            Err(Error::Closed { .. }) => Result::Closed,
            Err(error) => panic!("{error:?}"),
        },
        Deed::Get { claims } => {
            let mut bytes = Vec::new();
            let got = again(|| match claims {
                true => queue.get_claiming(claim, &mut bytes, now),
                false => queue.get_into(&mut bytes, now),
            });
            match got {
                Ok(Some(taken)) => {
                    if let Some(extent) = taken.extent {
                        extent.append_to(&mut bytes).unwrap();
                    }
                    Result::Got(number_of(&bytes))
                }
                Ok(None) => Result::Nothing,
                Err(Error::Closed { .. }) => Result::Closed,
                Err(error) => panic!("{error:?}"),
            }
        }
        Deed::Close => {
            queue.close().unwrap();
            Result::Done
        }
        Deed::Settle => {
            again(|| queue.settle()).unwrap();
            Result::Done
        }
        Deed::Reap => {
            again(|| arena.reap()).unwrap();
            Result::Done
        }
    }
}

/// The process that watches, and follows the queue with a model.
struct Watcher {
    world: Rc<World>,
    arena: Arena,
    queue: Queue,
    capacity: Option<u32>,
    models: Vec<Model>,
    message: u64,
}

impl Watcher {
    fn run(world: Rc<World>, capacity: Option<u32>, steps: &[Step]) {
        let arena = Arena::create().unwrap();
        let queue = Queue::new(&arena, capacity).unwrap();
        let models = vec![Model {
            messages: VecDeque::new(),
            closed: false,
            lost: 0,
            uncounted: None,
            unmissed: false,
        }];
        let mut watcher = Self {
            world,
            arena,
            queue,
            capacity,
            models,
            message: 0,
        };
        for step in steps {
            watcher.step(*step);
        }
        watcher.end();
    }

    fn step(&mut self, step: Step) {
        self.message += 1;
        let claim = Claim::new(&self.arena).unwrap();
        let place = self.arena.reserve().unwrap();
        place.give(self.queue.name()).unwrap();
        place.give(claim.name()).unwrap();
        let result = self.in_child(place, claim.name(), step);
        let before = std::mem::take(&mut self.models);
        let may_be = before.iter().flat_map(|model| {
            let after = model.after(step.deed, self.message, result, self.capacity);
            after.into_iter().map(move |after| (model, after))
        });
        let claims = matches!(step.deed, Deed::Get { claims: true });
        let claimed = if claims && result == Result::Killed {
            self.queue.settle().unwrap();
            Some(claim.value().unwrap())
        } else {
            None
        };
        for (model, after) in may_be {
            // A claim that is asked after a repair says which of the two happened.
            let fits = claimed.is_none_or(|claimed| {
                let front = model.messages.front().copied().unwrap_or(0);
                let taken = model.messages.len() > after.messages.len();
                claimed == if taken { front } else { 0 }
            });
            if fits && !self.models.contains(&after) {
                self.models.push(after);
            }
        }
        let told = format!("{step:?} gave {result:?} and claimed {claimed:?}");
        assert!(!self.models.is_empty(), "{told}: {before:?}");
        if matches!(step.deed, Deed::Settle | Deed::Reap) && result == Result::Done {
            self.compare();
        }
    }

    /// Does something in a child, and waits until it is gone.
    fn in_child(&self, place: ChildSlot, claim: ObjectName, step: Step) -> Result {
        let result = Rc::new(RefCell::new(Result::Killed));
        let told = Rc::clone(&result);
        let token = place.token(0);
        let rest = token.split_once(':').unwrap().1.to_owned();
        let file: OwnedFd = self.arena.descriptor().try_clone_to_owned().unwrap();
        let (queue, message, world) = (self.queue.name(), self.message, Rc::clone(&self.world));
        let name = self.world.start(true, move |_| {
            let arena = Arena::attach(&format!("{}:{rest}", file.into_raw_fd())).unwrap();
            let queue = Queue::open(&arena, queue).unwrap();
            let claim = Claim::open(&arena, claim).unwrap();
            world.arm(step.killed_at);
            let result = perform(&arena, &queue, &claim, step.deed, message);
            world.arm(0);
            *told.borrow_mut() = result;
            // And ends without giving anything back, as most do.
            world.kill_me();
        });
        for _ in 0..LOOKS {
            if self.world.is_seen_dead(name) {
                return *result.borrow();
            }
            self.world.pause(1_000_000);
        }
        panic!("{step:?} doesn't end");
    }

    /// What the queue says of itself once it is repaired leaves some of the models.
    fn compare(&mut self) {
        let (length, lost) = (self.queue.len().unwrap(), self.queue.lost().unwrap());
        let closed = self.queue.is_closed().unwrap();
        assert_eq!(self.queue.capacity().unwrap(), self.capacity);
        let before = self.models.clone();
        self.models.retain(|model| {
            model.messages.len() as u64 == length && model.lost == lost && model.closed == closed
        });
        let says = format!("{length} messages, {lost} lost, closed {closed}");
        assert!(!self.models.is_empty(), "{says}: {before:?}");
    }

    /// Gets what is left, and sees that nothing else is.
    fn end(mut self) {
        again(|| self.arena.reap()).unwrap();
        self.compare();
        let mut left = VecDeque::new();
        while let Ok(Some(message)) = self.queue.get(Deadline::now()) {
            left.push_back(number_of(&message.bytes));
        }
        assert!(
            self.models.iter().any(|model| model.messages == left),
            "{left:?} was left, and not one of {:?}",
            self.models
        );
        drop(self.queue);
        let census = self.arena.census().unwrap();
        assert_eq!(
            (
                census.objects,
                census.processes,
                census.linked_bytes,
                census.owned_bytes
            ),
            (0, 1, 0, 0),
            "{census:?}"
        );
    }
}

fn steps() -> impl Strategy<Value = Step> {
    let length = prop_oneof![
        6 => 8..300_u64,
        2 => 14_000..16_384_u64,
        1 => 16_385..70_000_u64,
    ];
    let deed = prop_oneof![
        8 => length.prop_map(Deed::Put),
        8 => any::<bool>().prop_map(|claims| Deed::Get { claims }),
        1 => Just(Deed::Close),
        2 => Just(Deed::Settle),
        2 => Just(Deed::Reap),
    ];
    let killed_at = prop_oneof![1 => Just(0), 2 => 1..40_u64, 2 => 40..160_u64];
    (deed, killed_at).prop_map(|(deed, killed_at)| Step { deed, killed_at })
}

fn programs() -> impl Strategy<Value = (Option<u32>, Vec<Step>)> {
    let capacity = prop_oneof![Just(None), (1..5_u32).prop_map(Some)];
    (capacity, proptest::collection::vec(steps(), 1..25))
}

#[test]
fn a_queue_is_as_its_model_whoever_is_killed() {
    let _alone = alone();
    let seed = number("SEED").unwrap_or(1);
    let cases = number("CASES").map_or(CASES, |cases| u32::try_from(cases).unwrap());
    println!("SEED={seed}");
    let config = Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    };
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let chance = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(config, chance);
    let run = runner.run(&programs(), |(capacity, steps)| {
        let world = World::new(seed, Roughness::default());
        let inside = Rc::clone(&world);
        world.start(false, move |_| Watcher::run(inside, capacity, &steps));
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| world.run())) {
            world.abandon();
            std::panic::resume_unwind(panic);
        }
        Ok(())
    });
    if let Err(failure) = run {
        panic!("SEED={seed}: {failure}");
    }
}
