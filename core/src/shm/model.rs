//! The allocator against a set of intervals, while whoever allocates is killed.
//!
//! A kill is a panic at a chosen step, after which the allocator's lock is as the kernel leaves it. `SEED=n` makes other
//! programs, `CASES=n` more of them.

use super::arena::{Arena, Member};
use super::layout::{OBJECT_HEADER, PAGE, kind, window_bytes};
use super::object::ObjectName;
use super::pages::{self, Kind};
use super::{blocks, robust};
use crate::Deadline;
use crate::sys::robust::OWNER_DIED;
use crate::sys::simulation::{System, enter};
use crate::sys::word::Relaxed;
use proptest::prelude::{Strategy, any, prop_oneof};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, Location, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

const CASES: u32 = 400;
/// A slot that no process has: its recovery gives back nothing but what nobody holds.
const NOBODY: u32 = 900;

#[derive(Debug, Clone, Copy)]
enum Deed {
    /// A run of so many pages; aligned as slabs are, or not.
    Take {
        pages: u64,
        aligned: bool,
    },
    /// The run of that place among those there are.
    Free(usize),
    /// An object with so many bytes of state.
    Create(u64),
    LetGo(usize),
}

#[derive(Debug, Clone, Copy)]
struct Step {
    deed: Deed,
    /// The step before which the process is killed; 0: it isn't.
    killed_at: u64,
}

/// A system whose only process dies at a step.
struct Fuse(Cell<u64>);

/// What is thrown by a kill.
struct Killed;

impl System for Fuse {
    fn step(&self, _site: &'static Location<'static>) {
        let left = self.0.get();
        self.0.set(left.saturating_sub(1));
        if left == 1 && !std::thread::panicking() {
            resume_unwind(Box::new(Killed));
        }
    }
    fn offer(&self) {}
    fn several_processors(&self) -> bool {
        false
    }
    fn sleep(&self, _word: &AtomicU32, _value: u32, _timeout: Option<Duration>) -> i32 {
        panic!("nobody else is there to sleep for")
    }
    fn wake(&self, _word: &AtomicU32, _count: u32) -> usize {
        0
    }
    fn pid(&self) -> u32 {
        1
    }
    fn started(&self) -> u64 {
        1
    }
    fn robust_list(&self) -> usize {
        0
    }
    fn is_gone(&self, _pid: u32, _started: u64) -> bool {
        false
    }
    fn thread_exists(&self, _tid: u32) -> bool {
        true
    }
    fn is_stopped(&self, _tid: u32) -> bool {
        false
    }

    fn mapped(&self, _address: usize, _bytes: usize, _offset: u64) {}
    fn unmapped(&self, _address: usize) {}
}

/// What there should be.
#[derive(Default)]
struct Model {
    /// First page and length.
    runs: BTreeMap<u64, u64>,
    /// Serial number, and bytes of state, by offset.
    objects: BTreeMap<u64, (u64, u64)>,
}

/// What there is.
struct Found {
    runs: BTreeMap<u64, u64>,
    objects: BTreeSet<u64>,
}

/// Bytes that nothing else has.
fn pattern(at: u64, length: u64) -> Vec<u8> {
    let words = (0..length / 8).flat_map(|word| (at ^ word << 40 ^ 0x5A5A).to_le_bytes());
    words.collect()
}

struct Allocator {
    arena: Arena,
    model: Model,
}

impl Allocator {
    fn member(&self) -> &Member {
        &self.arena.inner
    }

    fn perform(&self, deed: Deed) -> Option<(u64, u64)> {
        let member = self.member();
        let held = blocks::lock_untimed(member).unwrap();
        match deed {
            Deed::Take { pages, aligned } => {
                let align = if aligned { 16 } else { 1 };
                let page = pages::take(member, pages, align, member.slot()).unwrap();
                assert!(page.is_multiple_of(align));
                Some((page, pages))
            }
            Deed::Free(place) => {
                let page = self.model.runs.keys().nth(place).unwrap();
                pages::free(member, *page).unwrap();
                None
            }
            Deed::Create(bytes) => {
                drop(held);
                let name = blocks::create(member, kind::CLAIM, bytes).unwrap();
                Some((name.offset, name.serial))
            }
            Deed::LetGo(place) => {
                let (offset, (serial, _)) = self.model.objects.iter().nth(place).unwrap();
                let (offset, serial) = (*offset, *serial);
                blocks::let_go(member, ObjectName { offset, serial }).unwrap();
                None
            }
        }
    }

    /// The deed with a place that exists; none when there is nothing to give back.
    fn fitting(&self, deed: Deed) -> Option<Deed> {
        let (runs, objects) = (self.model.runs.len(), self.model.objects.len());
        match deed {
            Deed::Free(place) => (runs > 0).then(|| Deed::Free(place % runs)),
            Deed::LetGo(place) => (objects > 0).then(|| Deed::LetGo(place % objects)),
            other => Some(other),
        }
    }

    fn step(&mut self, step: Step) {
        let Some(deed) = self.fitting(step.deed) else {
            return;
        };
        self.check_contents(deed);
        let fuse = Rc::new(Fuse(Cell::new(step.killed_at)));
        let entered = enter(fuse);
        let done = catch_unwind(AssertUnwindSafe(|| self.perform(deed)));
        drop(entered);
        match done {
            Ok(made) => self.note(deed, made),
            Err(panic) if panic.is::<Killed>() => self.recover(deed),
            Err(panic) => resume_unwind(panic),
        }
        let found = self.look();
        assert_eq!(found.runs, self.model.runs, "runs after {step:?}");
        let objects: BTreeSet<u64> = self.model.objects.keys().copied().collect();
        assert_eq!(found.objects, objects, "objects after {step:?}");
    }

    /// Follows a deed that was done.
    fn note(&mut self, deed: Deed, made: Option<(u64, u64)>) {
        match (deed, made) {
            (Deed::Take { .. }, Some((page, pages))) => {
                self.model.runs.insert(page, pages);
                self.fill(page * PAGE, pages * PAGE);
            }
            (Deed::Create(bytes), Some((offset, serial))) => {
                self.model.objects.insert(offset, (serial, bytes));
                let state = pattern_of_zero(bytes);
                assert_eq!(self.read(offset + OBJECT_HEADER, bytes), state, "not zero");
                self.fill(offset + OBJECT_HEADER, bytes);
            }
            (Deed::Free(place), _) => {
                let page = *self.model.runs.keys().nth(place).unwrap();
                self.model.runs.remove(&page);
            }
            (Deed::LetGo(place), _) => {
                let offset = *self.model.objects.keys().nth(place).unwrap();
                self.model.objects.remove(&offset);
            }
            _ => panic!("{deed:?} made nothing"),
        }
    }

    /// What the next process does after a death, and what recovery of the dead does; then whether it was done or not.
    fn recover(&mut self, deed: Deed) {
        let member = self.member();
        let lock: &robust::RobustLock = &member.header().unwrap().allocator;
        lock.node.word.store(OWNER_DIED, Relaxed);
        assert!(blocks::give_back(member, NOBODY, Deadline::NEVER).unwrap());
        let found = self.look();
        // What a dead process was given and hadn't noted, its recovery takes back.
        for (page, pages) in &found.runs {
            if !self.model.runs.contains_key(page) {
                let wanted = matches!(deed, Deed::Take { pages: taken, .. } if taken == *pages)
                    || matches!(deed, Deed::Create(_));
                assert!(wanted, "{deed:?} left {pages} pages");
                pages::free(member, *page).unwrap();
            }
        }
        for offset in &found.objects {
            if !self.model.objects.contains_key(offset) {
                assert!(matches!(deed, Deed::Create(_)), "{deed:?} left an object");
                let object: &super::layout::ObjectHeader = member.at(*offset).unwrap();
                let serial = object.serial.load(Relaxed);
                let name = ObjectName {
                    offset: *offset,
                    serial,
                };
                let _held = blocks::lock_untimed(member).unwrap();
                blocks::let_go(member, name).unwrap();
            }
        }
        match deed {
            Deed::Free(place) => {
                let page = *self.model.runs.keys().nth(place).unwrap();
                if !found.runs.contains_key(&page) {
                    self.model.runs.remove(&page);
                }
            }
            Deed::LetGo(place) => {
                let offset = *self.model.objects.keys().nth(place).unwrap();
                if !found.objects.contains(&offset) {
                    self.model.objects.remove(&offset);
                }
            }
            Deed::Take { .. } | Deed::Create(_) => {}
        }
    }

    /// Walks the tables: every page is in one run, and what is warm is counted.
    fn look(&self) -> Found {
        let member = self.member();
        let (mut runs, mut all, mut warm) = (BTreeMap::new(), 0, 0);
        member
            .runs(|page, entry| {
                all += entry.pages;
                match entry.kind {
                    Kind::Used => drop(runs.insert(page, entry.pages)),
                    Kind::Warm => warm += entry.pages,
                    _ => {}
                }
                Ok(None::<()>)
            })
            .unwrap();
        let windows = 0..member.window_count().unwrap();
        let pages: u64 = windows.map(|window| window_bytes(window) / PAGE).sum();
        assert_eq!(all, pages, "pages in runs, and pages");
        let counted = member.header().unwrap().warm_pages.load(Relaxed);
        assert_eq!(counted, warm, "warm pages");
        let mut objects = BTreeSet::new();
        blocks::objects(member, |offset, object| {
            assert!(object.is_wanted(), "nobody holds {offset}");
            objects.insert(offset);
            Ok(())
        })
        .unwrap();
        Found { runs, objects }
    }

    fn fill(&self, at: u64, length: u64) {
        let windows = self.member().windows();
        windows.write(at, &pattern(at, length)).unwrap();
    }

    fn read(&self, at: u64, length: u64) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(length).unwrap()];
        self.member().windows().read(at, &mut bytes).unwrap();
        bytes
    }

    /// What is given back is as it was filled: nobody else was given any of it.
    fn check_contents(&self, deed: Deed) {
        let (at, length) = match deed {
            Deed::Free(place) => {
                let (page, pages) = self.model.runs.iter().nth(place).unwrap();
                (page * PAGE, pages * PAGE)
            }
            Deed::LetGo(place) => {
                let (offset, (_, bytes)) = self.model.objects.iter().nth(place).unwrap();
                (offset + OBJECT_HEADER, *bytes)
            }
            Deed::Take { .. } | Deed::Create(_) => return,
        };
        assert!(
            self.read(at, length) == pattern(at, length),
            "{deed:?}: overwritten"
        );
    }

    /// Gives all back, after which all is free, and making the tables whole changes nothing.
    fn end(mut self) {
        let step = |deed| Step { deed, killed_at: 0 };
        while !self.model.runs.is_empty() {
            self.step(step(Deed::Free(0)));
        }
        while !self.model.objects.is_empty() {
            self.step(step(Deed::LetGo(0)));
        }
        let entries = || {
            let mut entries = Vec::new();
            let member = self.member();
            let visit = |page, entry| {
                entries.push((page, entry));
                Ok(None::<()>)
            };
            member.runs(visit).unwrap();
            entries
        };
        let before = entries();
        pages::normalize(self.member()).unwrap();
        assert_eq!(entries(), before);
    }
}

fn pattern_of_zero(length: u64) -> Vec<u8> {
    vec![0; usize::try_from(length).unwrap()]
}

fn steps() -> impl Strategy<Value = Step> {
    let pages = prop_oneof![6 => 1..40_u64, 2 => 40..300_u64, 1 => 300..800_u64];
    // All size classes, and whole cells.
    let bytes = prop_oneof![1..9_u64, 9..40_u64, 40..100_u64, 100..230_u64, 230..480_u64];
    let deed = prop_oneof![
        4 => (pages, any::<bool>()).prop_map(|(pages, aligned)| Deed::Take { pages, aligned }),
        3 => any::<usize>().prop_map(Deed::Free),
        3 => bytes.prop_map(|cells| Deed::Create(cells * 8)),
        2 => any::<usize>().prop_map(Deed::LetGo),
    ];
    let killed_at = prop_oneof![1..60_u64, 60..400_u64, 400..2000_u64];
    (deed, killed_at).prop_map(|(deed, killed_at)| Step { deed, killed_at })
}

#[test]
fn no_two_own_a_page_whoever_is_killed() {
    let number = |name| {
        std::env::var(name)
            .ok()
            .and_then(|text| text.parse::<u64>().ok())
    };
    let seed = number("SEED").unwrap_or(1);
    let cases = number("CASES").map_or(CASES, |cases| u32::try_from(cases).unwrap());
    let config = Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    };
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let chance = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(config, chance);
    let programs = proptest::collection::vec(steps(), 1..60);
    let run = runner.run(&programs, |steps| {
        let mut allocator = Allocator {
            arena: Arena::found(&[]).unwrap(),
            model: Model::default(),
        };
        for step in steps {
            allocator.step(step);
        }
        allocator.end();
        Ok(())
    });
    if let Err(failure) = run {
        panic!("SEED={seed}: {failure}");
    }
}
