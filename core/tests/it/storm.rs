//! A storm: eight processes use objects of all kinds while they are killed and stopped at random instants, then every
//! message, lock, page, place, descriptor and process is accounted for.
//!
//! It comes in rounds, since a process that hangs would be killed like any other: at the end of a round makers rest, getters
//! must find all that was put, and a lost wake shows. Then all are killed where they sleep, and nothing may be left.

mod ledger;
mod pool;
mod roles;

use crate::child::{Random, alone, show_stacks, until_empty};
use ledger::{Ledger, MAKERS, QUEUES, SEATS, UNCLAIMED};
use pool::Pool;
use procession_core::{Arena, Census, Deadline, Error};
use roles::World;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::{Duration, Instant};

/// Kills in a plain run of the tests; `KILLS=10000` for a long one.
const KILLS: u64 = 1_000;
/// Kills of a round, and then one more of each process.
const ROUND: u64 = 120;
/// Longer than anything takes on a loaded machine.
const HANG: Duration = Duration::from_secs(60);
/// Bytes of a queue's segment.
const SEGMENT: u64 = 64 << 10;
/// Children that a tree has room for beside one process.
const PLACES: usize = 1022;

#[test]
fn a_storm_of_kills_loses_tears_and_leaks_nothing() {
    let _alone = alone();
    let number = |name, otherwise| {
        let value = std::env::var(name)
            .ok()
            .and_then(|value| value.parse().ok());
        value.unwrap_or(otherwise)
    };
    let (seed, kills) = (number("SEED", 20_261_125), number("KILLS", KILLS));
    println!("SEED={seed} KILLS={kills}");
    adopt_orphans(true);
    let descriptors = descriptors();
    let mut storm = Storm::new(seed);
    while storm.kills < kills {
        storm.round(ROUND.min(kills - storm.kills));
    }
    storm.end();
    assert_eq!(self::descriptors(), descriptors, "descriptors");
    // SAFETY: no status wanted.
    let other = unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) };
    assert_eq!(other, -1, "a child is left");
    adopt_orphans(false);
}

/// Has the system give us the children of children that died, to wait for.
fn adopt_orphans(on: bool) {
    let on = libc::c_ulong::from(on);
    // SAFETY: sets a flag of this process.
    let set = unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, on, 0, 0, 0) };
    assert_eq!(set, 0);
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Children of this process, those of dead children included, from their first instant on.
fn children() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let of_each = tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("children")));
    // A thread that has ended meanwhile has none.
    of_each
        .map(|list| list.unwrap_or_default().split_whitespace().count())
        .sum()
}

/// Forks a child that does `work` and dies with this thread; its id.
fn start(work: impl FnOnce()) -> libc::pid_t {
    // SAFETY: as in `child::fork`.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0);
    if pid == 0 {
        // SAFETY: sets a flag of this process.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) };
        end_with(work);
    }
    pid
}

/// Does it and ends this process, a child; a panic is told on the real standard error, which the tests' harness doesn't hold.
fn end_with(work: impl FnOnce()) -> ! {
    std::panic::set_hook(Box::new(|panic| {
        let _ = writeln!(std::io::stderr(), "process {}: {panic}", std::process::id());
    }));
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
    // SAFETY: ends the process.
    unsafe { libc::_exit(if result.is_ok() { 0 } else { 101 }) }
}

/// Calls until the call isn't interrupted, as a face does; its result.
pub(crate) fn again<T>(mut call: impl FnMut() -> procession_core::Result<T>) -> T {
    loop {
        match call() {
            Err(Error::Interrupted) => {}
            result => return result.unwrap(),
        }
    }
}

/// It may have been killed, or have ended well.
fn assert_ended(status: i32, who: &str) {
    let killed = libc::WIFSIGNALED(status)
        && [libc::SIGKILL, libc::SIGALRM].contains(&libc::WTERMSIG(status));
    let well = libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0;
    assert!(killed || well, "{who} ended with status {status:#x}");
}

fn kill(pid: libc::pid_t, signal: i32) {
    // SAFETY: a child of ours, which nobody else waits for.
    unsafe { libc::kill(pid, signal) };
}

/// The storm, as the process sees it that kills.
struct Storm {
    world: World,
    pool: Pool,
    /// Processes of the seats; 0: nobody.
    seats: [libc::pid_t; SEATS],
    random: Random,
    kills: u64,
    stops: u64,
    /// In this round: getters that died inside a get, by queue.
    inside: [u64; QUEUES],
    /// In this round: messages that dead getters had claimed and not noted.
    hands: [Vec<u64>; QUEUES],
    /// What the queues said that they lost, when the round began.
    lost: [u64; QUEUES],
    told: Told,
    watched: Arc<AtomicBool>,
}

/// For the line at the end.
#[derive(Debug, Default)]
struct Told {
    rounds: u64,
    messages: u64,
    lost_and_counted: u64,
    lost_uncounted: u64,
}

impl Storm {
    fn new(seed: u64) -> Self {
        let ledger = Ledger::new();
        let watched = watch(ledger);
        let world = World::new(ledger);
        let pool = Pool::new(&world.arena, seed);
        // Seeds next to each other take other ways from the first step.
        let random = Random::new(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        Self {
            world,
            pool,
            seats: [0; SEATS],
            random,
            kills: 0,
            stops: 0,
            inside: [0; QUEUES],
            hands: Default::default(),
            lost: [0; QUEUES],
            told: Told::default(),
            watched,
        }
    }

    /// So many kills, then a rest, in which everything is accounted for.
    fn round(&mut self, kills: u64) {
        self.world.ledger.paused.store(false, SeqCst);
        self.pool.begin();
        let until = self.kills + kills;
        while self.kills < until {
            self.fill_seats();
            self.pool.work(Deadline::after(Duration::from_micros(
                1000 + self.random.below(19_000),
            )));
            self.world.ledger.beats.fetch_add(1, SeqCst);
            self.strike();
        }
        self.fill_seats();
        self.rest();
        for index in 0..SEATS {
            self.kills += 1;
            self.end_seat(index);
        }
        self.kills += self.pool.kill_all();
        self.settle_accounts();
    }

    fn fill_seats(&mut self) {
        for index in 0..SEATS {
            if self.seats[index] == 0 {
                let seed = self.random.below(u64::MAX);
                // What the last one said of itself isn't true of the next.
                let record = &self.world.ledger.seats[index];
                record.getting.store(0, SeqCst);
                record.resting.store(false, SeqCst);
                self.seats[index] = start(|| self.world.work(index, seed));
            }
        }
    }

    /// Kills one, or stops one for a while.
    fn strike(&mut self) {
        self.collect();
        let workers = self.pool.pids();
        let choice = usize::try_from(self.random.below((SEATS + workers.len()) as u64)).unwrap();
        let pid = if choice < SEATS {
            self.seats[choice]
        } else {
            workers[choice - SEATS]
        };
        if self.random.below(10) == 0 && pid != 0 {
            self.stops += 1;
            kill(pid, libc::SIGSTOP);
            let time = Duration::from_micros(self.random.below(20_000));
            // By a thread: this one may wait for what the stopped process has.
            std::thread::spawn(move || {
                std::thread::sleep(time);
                kill(pid, libc::SIGCONT);
            });
            return;
        }
        self.kills += 1;
        if choice < SEATS {
            self.end_seat(choice);
        } else {
            kill(pid, libc::SIGKILL);
        }
        if self.random.below(2) == 0 {
            again(|| self.world.arena.reap());
        }
    }

    fn end_seat(&mut self, index: usize) {
        kill(self.seats[index], libc::SIGKILL);
        while self.seats[index] != 0 {
            self.collect_one(0);
        }
    }

    /// Takes note of all that have ended.
    fn collect(&mut self) {
        while self.collect_one(libc::WNOHANG) {}
    }

    fn collect_one(&mut self, options: i32) -> bool {
        let mut status = 0;
        // SAFETY: writes one status.
        let pid = unsafe { libc::waitpid(-1, &raw mut status, options) };
        if pid <= 0 {
            return false;
        }
        if let Some(index) = self.seats.iter().position(|seat| *seat == pid) {
            assert_ended(status, &format!("seat {index}"));
            self.seats[index] = 0;
            self.note_death(index);
        } else if !self.pool.ended(pid, status) {
            assert_ended(status, "an orphan");
        }
        true
    }

    /// What the process of a seat may have taken with it.
    fn note_death(&mut self, index: usize) {
        let Some(own) = index.checked_sub(MAKERS) else {
            return;
        };
        let getting = self.world.ledger.seats[index].getting.load(SeqCst) as usize;
        if let Some(queue) = getting.checked_sub(1) {
            self.inside[queue] += 1;
            // Another process may be at it, and be stopped, which doesn't last.
            while !again(|| self.world.queues[queue].settle()) {
                std::thread::yield_now();
            }
            let claim = &self.world.claims[own];
            let value = claim.value().unwrap();
            if queue != UNCLAIMED && value != 0 && !self.world.ledger.is_got(value) {
                self.hands[queue].push(value);
            }
            claim.clear().unwrap();
        }
    }

    /// Waits until makers rest, all that was put was got, and nobody holds anything but what is there all the time.
    fn rest(&mut self) {
        let ledger = self.world.ledger;
        ledger.paused.store(true, SeqCst);
        self.pool.rest();
        let end = Instant::now() + HANG;
        loop {
            self.collect();
            self.pool.work(Deadline::after(Duration::from_millis(2)));
            ledger.beats.fetch_add(1, SeqCst);
            self.fill_seats();
            let resting = ledger.seats[..MAKERS]
                .iter()
                .all(|seat| seat.resting.load(SeqCst));
            let drained = self
                .world
                .queues
                .iter()
                .all(|queue| queue.is_empty().unwrap());
            let others = SEATS + self.pool.pids().len();
            let alone = children() == others;
            if resting
                && alone
                && drained
                && self.pool.is_idle()
                && self.census().processes == 1 + others as u64
            {
                return;
            }
            if Instant::now() > end {
                self.show();
                panic!(
                    "makers rest: {resting}; queues empty: {drained}; pool idle: {}",
                    self.pool.is_idle()
                );
            }
        }
    }

    /// What is there, once the dead are recovered.
    fn census(&self) -> Census {
        again(|| self.world.arena.reap());
        again(|| self.world.arena.census())
    }

    /// Waits until the dead are recovered and only that is there which is there all the time.
    fn nothing_is_left(&self) -> Census {
        let end = Instant::now() + HANG;
        loop {
            let census = self.census();
            let objects = World::OBJECTS + Pool::QUEUES;
            if (census.processes, census.objects, census.owned_bytes) == (1, objects, 0) {
                return census;
            }
            assert!(
                Instant::now() < end,
                "{objects} objects and nobody else: {census:?}"
            );
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// After all have been killed.
    fn settle_accounts(&mut self) {
        for (index, queue) in self.world.queues.iter().enumerate() {
            let mut buffer = Vec::new();
            // It looks, whatever the queue counts.
            let taken = queue.try_get_into(&mut buffer).unwrap();
            let what = format!("queue {index} says that it has {:?}", queue.len());
            assert!(
                taken.is_none(),
                "{what}, and gives {:?}",
                &buffer[..buffer.len().min(8)]
            );
        }
        let told = &mut self.told;
        let hands = self.hands.concat();
        let (stories, missing) = self.world.ledger.stories(&hands);
        for (queue, story) in stories.iter().enumerate() {
            let what = format!(
                "queue {queue}: {story:?}, {} getters died inside, {:?} in dead hands, {missing:?} missing",
                self.inside[queue], self.hands[queue]
            );
            let all_lost = self.world.queues[queue].lost().unwrap();
            let lost = all_lost - std::mem::replace(&mut self.lost[queue], all_lost);
            let gone = if queue == UNCLAIMED {
                assert!(story.missing <= self.inside[queue], "{what}");
                story.missing + story.unfinished
            } else {
                assert_eq!(story.missing, 0, "{what}");
                for number in &self.hands[queue] {
                    assert!(
                        !self.world.ledger.is_got(*number),
                        "{number} was got after all; {what}"
                    );
                }
                self.hands[queue].len() as u64
            };
            assert!(lost <= gone, "{lost} lost; {what}");
            told.messages += story.got;
            told.lost_and_counted += lost;
            told.lost_uncounted += gone - lost;
        }
        told.rounds += 1;
        self.inside = [0; QUEUES];
        self.hands = Default::default();
        self.world.ledger.next_round();
        let census = self.nothing_is_left();
        // A segment that is in use, and one to come.
        let segments = 2 * (QUEUES as u64 + Pool::QUEUES);
        assert!(census.linked_bytes <= segments * SEGMENT, "{census:?}");
        assert!(
            self.world.locks.iter().all(|lock| !lock.is_held().unwrap()),
            "a lock is held by the dead"
        );
    }

    /// A last time, without kills: all leave when they are told to.
    fn end(mut self) {
        self.world.ledger.paused.store(false, SeqCst);
        self.fill_seats();
        self.pool.begin();
        self.pool.work(Deadline::after(Duration::from_millis(50)));
        self.rest();
        self.world.ledger.ended.store(true, SeqCst);
        self.world
            .queues
            .iter()
            .for_each(|queue| queue.close().unwrap());
        self.pool.close();
        let end = Instant::now() + HANG;
        while self.seats != [0; SEATS] || !self.pool.pids().is_empty() {
            self.collect();
            self.pool.work(Deadline::after(Duration::from_millis(2)));
            if Instant::now() > end {
                self.show();
                panic!("some don't leave");
            }
        }
        let tally = &self.world.ledger.tally;
        println!(
            "{} kills, {} stops; {:?}; {tally:?}; {:?}",
            self.kills, self.stops, self.told, self.pool.told
        );
        let arena = self.world.arena.clone();
        drop(self);
        until_empty(&arena);
        assert_eq!(free_places(&arena), PLACES);
    }

    /// For whoever reads of a hang.
    fn show(&self) {
        let mut out = std::io::stderr();
        for (index, pid) in self.seats.iter().enumerate() {
            let seat = &self.world.ledger.seats[index];
            let (line, steps) = (seat.line.load(SeqCst), seat.steps.load(SeqCst));
            let _ = writeln!(
                out,
                "seat {index}, process {pid}, {steps} steps, at line {line} of roles.rs"
            );
        }
        for queue in &self.world.queues {
            let _ = writeln!(out, "{:?}: {:?} messages", queue.name(), queue.len());
        }
        let _ = writeln!(out, "{:?}", self.world.arena.census());
        self.seats
            .iter()
            .chain(&self.pool.pids())
            .filter(|pid| **pid != 0)
            .for_each(|pid| show_stacks(*pid));
    }
}

impl Drop for Storm {
    fn drop(&mut self) {
        self.watched.store(false, SeqCst);
        for pid in self
            .seats
            .iter()
            .chain(&self.pool.pids())
            .filter(|pid| **pid != 0)
        {
            kill(*pid, libc::SIGKILL);
            // SAFETY: no status wanted.
            unsafe { libc::waitpid(*pid, std::ptr::null_mut(), 0) };
        }
    }
}

fn free_places(arena: &Arena) -> usize {
    let places: Vec<_> = std::iter::from_fn(|| arena.reserve().ok()).collect();
    places.len()
}

/// Ends the program, with its stacks, when the one who kills hangs itself.
fn watch(ledger: &'static Ledger) -> Arc<AtomicBool> {
    let watched = Arc::new(AtomicBool::new(true));
    let on = watched.clone();
    std::thread::spawn(move || {
        let mut last = (0, Instant::now());
        while on.load(SeqCst) {
            std::thread::sleep(Duration::from_millis(100));
            let beats = ledger.beats.load(SeqCst);
            if beats != last.0 {
                last = (beats, Instant::now());
            } else if last.1.elapsed() > HANG {
                let _ = writeln!(std::io::stderr(), "the storm itself hangs");
                show_stacks(std::process::id().cast_signed());
                std::process::abort();
            }
        }
    });
    watched
}
