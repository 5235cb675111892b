//! The walk: at each store of the sources, in each role, a process is killed and another time stopped.

use super::acts::{self, Act, Companion, Role};
use super::case::{Plan, play};
use super::ledger::{Ledger, shared};
use super::sites::{self, Except, Store};
use super::workers::Crew;
use crate::child::alone;
use procession_core::sys::crash::{Action, Site};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::SeqCst};
use std::time::Instant;

/// Passages of a site at which a victim is struck: the first ones.
const PASSAGES: u8 = 3;
/// A case whose victim doesn't come to its store, since a neighbour was quicker, is played again so often.
const TRIES: u32 = 4;
/// How often racers are noted: what they pass is chance.
const RACES: u32 = 5;
/// Room for this many sites and acts.
const SITES: usize = 512;
const ACTS: usize = 1024;

/// Most of a stop's time is spent asleep.
const CREW: Crew = Crew {
    workers: 32,
    job_seconds: 90,
};

const ACTIONS: [Action; 2] = [Action::Kill, Action::Stop];
const ROLES: usize = Role::ALL.len();

/// What the workers found, in memory that all share.
#[repr(C)]
struct Tally {
    /// How often each act passes each site, at most [`PASSAGES`].
    passages: [[AtomicU8; SITES]; ACTS],
    /// How often a victim was struck, by action, role and site.
    struck: [[[AtomicU32; SITES]; ROLES]; 2],
    /// Cases whose victim didn't come to its store.
    missed: [AtomicU32; ROLES],
    /// The worst: microseconds, the call and the case.
    overrun_us: AtomicU64,
}

/// A case of the walk.
#[derive(Debug, Clone, Copy)]
struct Case {
    act: usize,
    site: usize,
    passage: u8,
    action: Action,
}

struct Walk {
    stores: Vec<Store>,
    sites: Vec<Site>,
    acts: Vec<Act>,
    tally: &'static Tally,
    failures: Vec<String>,
}

#[test]
fn a_kill_and_a_stop_at_each_store_in_each_role_are_survived() {
    let _alone = alone();
    let begin = Instant::now();
    let mut walk = Walk::new();
    let first = walk.acts.len();
    walk.note(0);
    // Where nobody died, a recoverer's way has no repair in it; the last two acts are those.
    walk.acts.extend(acts::recoverers(None));
    walk.add_recoverers(first);
    walk.note(first);
    let noted = begin.elapsed();
    let cases = walk.cases(first);
    let wanted = cases.iter().filter(|case| walk.is_wanted(case)).copied();
    let wanted: Vec<Case> = wanted.collect();
    walk.strike(&wanted);
    walk.show(&wanted, noted.as_secs_f64(), begin.elapsed().as_secs_f64());
    assert!(walk.failures.is_empty(), "{} failures", walk.failures.len());
    if wanted.len() == cases.len() {
        walk.assert_complete();
    }
}

impl Walk {
    fn new() -> Self {
        let stores = sites::all();
        let sites: Vec<Site> = stores.iter().map(|store| store.site).collect();
        assert!(sites.len() <= SITES);
        Self {
            stores,
            sites,
            acts: acts::all(),
            tally: shared(),
            failures: Vec::new(),
        }
    }

    /// Plays the acts from `from` on with nobody struck, and notes what each passes.
    fn note(&mut self, from: usize) {
        let (sites, acts, tally) = (&self.sites, &self.acts[from..], self.tally);
        assert!(self.acts.len() <= ACTS);
        let name = |at: usize| format!("{}, with nobody struck", acts[at].name);
        let failures = CREW.perform(acts.len(), &name, &|at, ledger| {
            let tell = |noted: &BTreeMap<Site, u64>| {
                for (site, count) in noted {
                    let known = sites.binary_search(site);
                    let count = u8::try_from(*count).unwrap_or(PASSAGES).min(PASSAGES);
                    match known {
                        Ok(site) => drop(tally.passages[from + at][site].fetch_max(count, SeqCst)),
                        Err(_) => panic!("{site:?} isn't found in the sources"),
                    }
                }
            };
            let races = matches!(acts[at].companion, Companion::Races);
            for _ in 0..if races { RACES } else { 1 } {
                play(&acts[at], Plan::Note(&tell), sites, ledger);
            }
        });
        self.failures.extend(failures);
        self.show_failures();
    }

    fn passages(&self, act: usize, site: usize) -> u8 {
        self.tally.passages[act][site].load(SeqCst)
    }

    /// For each site a recoverer of one that died there, in the first act that passes it.
    fn add_recoverers(&mut self, acts: usize) {
        for site in 0..self.sites.len() {
            if matches!(self.stores[site].except, Some(Except::Beside(_))) {
                continue;
            }
            let died_in = (0..acts).find(|act| {
                let role = self.acts[*act].role;
                let possible = matches!(role, Role::Alone | Role::Attacher | Role::Parent);
                possible && self.passages(*act, site) > 0
            });
            if let Some(act) = died_in {
                let place = place(self.sites[site]);
                let dead = Some((&self.acts[act], site, &*place));
                let recoverers = acts::recoverers(dead);
                self.acts.extend(recoverers);
            }
        }
    }

    /// Each act at each site and passage, killed and stopped; recoverers only at what they pass more often than
    /// without a dead one, by the two acts from `plain` on.
    fn cases(&self, plain: usize) -> Vec<Case> {
        let mut cases = Vec::new();
        for act in 0..self.acts.len() {
            for site in 0..self.sites.len() {
                let usual = if act >= plain + 2 {
                    self.passages(plain + (act - plain) % 2, site)
                } else {
                    0
                };
                // Racers are there for what a neighbour leads to by chance only.
                let races = matches!(self.acts[act].companion, Companion::Races);
                let usual_site = matches!(self.stores[site].except, None | Some(Except::Beside(_)));
                if races && usual_site {
                    continue;
                }
                for passage in usual + 1..=self.passages(act, site) {
                    cases.extend(ACTIONS.map(|action| Case {
                        act,
                        site,
                        passage,
                        action,
                    }));
                }
            }
        }
        cases
    }

    /// Whether the environment asks for a case: by words in the names of act, site, passage and action.
    fn is_wanted(&self, case: &Case) -> bool {
        let asked = |variable: &str, name: String| {
            std::env::var(variable).map_or(true, |wanted| name.ends_with(&wanted))
        };
        asked("ACT", self.acts[case.act].name.clone())
            && asked("SITE", place(self.sites[case.site]))
            && asked("PASSAGE", case.passage.to_string())
            && asked("ACTION", verb(case.action).to_owned())
    }

    fn strike(&mut self, cases: &[Case]) {
        let name = |at: usize| self.describe(cases[at]);
        let failures = CREW.perform(cases.len(), &name, &|at, ledger| {
            self.strike_one(at, cases[at], ledger);
        });
        self.failures.extend(failures);
        self.show_failures();
    }

    fn strike_one(&self, at: usize, case: Case, ledger: &'static Ledger) {
        let act = &self.acts[case.act];
        let plan = Plan::Strike(&self.stores[case.site], case.passage.into(), case.action);
        let struck = (0..TRIES).any(|_| play(act, plan, &self.sites, ledger));
        let count = if struck {
            &self.tally.struck[case.action as usize][act.role as usize][case.site]
        } else {
            &self.tally.missed[act.role as usize]
        };
        count.fetch_add(1, SeqCst);
        let overrun = ledger.overrun_us.load(SeqCst);
        self.tally
            .overrun_us
            .fetch_max(overrun << 20 | at as u64, SeqCst);
    }

    fn describe(&self, case: Case) -> String {
        let act = &self.acts[case.act];
        let (site, verb) = (place(self.sites[case.site]), verb(case.action));
        format!(
            "{:?}: {}: {verb} at {site}, passage {}\n  replay: ACT='{}' SITE={site} PASSAGE={} ACTION={verb} \
             RUSTFLAGS='--cfg crash_points' CARGO_TARGET_DIR=target/crash_points \
             cargo test -p procession-core a_kill_and_a_stop -- --nocapture\n ",
            act.role, act.name, case.passage, act.name, case.passage
        )
    }

    fn show_failures(&self) {
        for failure in &self.failures {
            println!("FAILED {failure}");
        }
        assert!(
            self.failures.is_empty(),
            "{} failures, above",
            self.failures.len()
        );
    }

    fn struck(&self, action: Action, role: Role) -> impl Iterator<Item = u32> {
        self.tally.struck[action as usize][role as usize]
            .iter()
            .map(|count| count.load(SeqCst))
    }

    fn show(&self, cases: &[Case], noted: f64, all: f64) {
        println!("role        sites killed at   kills   sites stopped at   stops   missed");
        for role in Role::ALL {
            let sites = |action| self.struck(action, role).filter(|count| *count > 0).count();
            let sum = |action| self.struck(action, role).sum::<u32>();
            println!(
                "{:<11} {:>15} {:>7} {:>18} {:>7} {:>8}",
                format!("{role:?}"),
                sites(Action::Kill),
                sum(Action::Kill),
                sites(Action::Stop),
                sum(Action::Stop),
                self.tally.missed[role as usize].load(SeqCst),
            );
        }
        let total = |action| {
            Role::ALL
                .iter()
                .flat_map(|role| self.struck(action, *role))
                .sum::<u32>()
        };
        println!(
            "{} sites in the sources, {} reached; {} acts, {} cases: {} kills, {} stops; {all:.1} s, {noted:.1} s \
             of them to note",
            self.sites.len(),
            (0..self.sites.len())
                .filter(|site| self.is_reached(*site))
                .count(),
            self.acts.len(),
            cases.len(),
            total(Action::Kill),
            total(Action::Stop),
        );
        let overrun = self.tally.overrun_us.load(SeqCst);
        let (us, call) = (overrun >> 28, overrun >> 20 & 255);
        let at = self.describe(cases[usize::try_from(overrun & 0xf_ffff).unwrap()]);
        println!(
            "the worst overrun of a deadline while a process was stopped: {us} µs, by call {call}, in {at}"
        );
        for (site, store) in self.stores.iter().enumerate() {
            if !self.is_reached(site) {
                let why = match store.except {
                    Some(Except::Never(why) | Except::Perhaps(why) | Except::Beside(why)) => why,
                    None => "no act comes here",
                };
                println!("not reached: {}: {why}", place(store.site));
            }
        }
    }

    fn is_struck(&self, action: Action, site: usize) -> bool {
        let roles = &self.tally.struck[action as usize];
        roles.iter().any(|role| role[site].load(SeqCst) > 0)
    }

    fn is_reached(&self, site: usize) -> bool {
        ACTIONS.iter().all(|action| self.is_struck(*action, site))
    }

    /// Every store was reached but those that can't be.
    fn assert_complete(&self) {
        for (site, store) in self.stores.iter().enumerate() {
            let fits = match store.except {
                None | Some(Except::Beside(_)) => self.is_reached(site),
                Some(Except::Never(_)) => !self.is_reached(site),
                Some(Except::Perhaps(_)) => true,
            };
            assert!(
                fits,
                "reached, against what is expected, or not: {}",
                place(store.site)
            );
        }
        let missed = self.tally.missed[Role::Alone as usize].load(SeqCst);
        assert_eq!(missed, 0, "alone, a process comes where it came before");
    }
}

fn place((file, line): Site) -> String {
    format!("{}:{line}", file.trim_start_matches("core/src/"))
}

fn verb(action: Action) -> &'static str {
    match action {
        Action::Kill => "kill",
        Action::Stop => "stop",
    }
}
