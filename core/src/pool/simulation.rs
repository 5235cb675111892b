//! The scheduler and the jobs it serves, among workers that die, stall, answer late and twice, from a seed.
//!
//! A run prints nothing unless it fails; then the panic names its seed, and `SEED=n cargo test simulation` repeats
//! that one. `SEEDS=n` runs as many as you have time for.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::batch::{Gather, Stream};
use super::{Action, Failure, Limits, Phase, Scheduler, TaskId, WorkerId};

const SEEDS: u64 = 10_000;
/// More than any run needs: a run that takes longer hangs.
const STEPS_MAX: usize = 20_000;

#[test]
fn every_task_is_answered_once_whoever_dies() {
    let number = |name| {
        std::env::var(name)
            .ok()
            .and_then(|text| text.parse::<u64>().ok())
    };
    let seeds = match number("SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SEEDS").unwrap_or(SEEDS),
    };
    for seed in seeds {
        let run = std::panic::catch_unwind(|| World::new(seed).run());
        assert!(run.is_ok(), "the simulation failed with SEED={seed}");
    }
}

/// xorshift64*, by Vigna: enough chance for a simulation, the same on every machine.
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % limit
    }

    fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Stage {
    Starting,
    Idle,
    Running(TaskId),
    Gone,
}

struct Process {
    stage: Stage,
    /// It is stopped, or slow, until then.
    stalled: Option<Instant>,
    claim: Option<TaskId>,
    done: u64,
}

#[derive(Clone, Copy)]
enum Message {
    Ready(WorkerId),
    Retired(WorkerId),
    Answer(TaskId),
    /// Says nothing; whoever hears looks around.
    Nudge,
}

/// The most tasks of a job, and what a ticket counts its jobs in.
const BATCH: u64 = 16;

/// What a user asked for at once, and how its results come together: all at the end, and one by one in both orders.
struct Job {
    tasks: u64,
    ended: u64,
    first_error: Option<i32>,
    gather: Gather<u64, i32>,
    ordered: Stream<u64>,
    unordered: Stream<u64>,
    /// Results in the order in which they came out of the streams.
    taken: [Vec<u64>; 2],
}

impl Job {
    fn new() -> Self {
        Self {
            tasks: 0,
            ended: 0,
            first_error: None,
            gather: Gather::new(usize::try_from(BATCH).unwrap()),
            ordered: Stream::ordered(),
            unordered: Stream::unordered(),
            taken: [Vec::new(), Vec::new()],
        }
    }

    /// All of its tasks were submitted, or refused.
    fn settle(&mut self) {
        self.gather.resize(usize::try_from(self.tasks).unwrap());
        self.ordered.set_tasks(self.tasks);
        self.unordered.set_tasks(self.tasks);
    }

    fn end(&mut self, index: u64, end: Result<u64, i32>) {
        self.ended += 1;
        let is_known = self.ordered.tasks().is_some();
        if self.first_error.is_none() {
            self.first_error = end.err();
        }
        let (complete, _) = self.gather.put(usize::try_from(index).unwrap(), end);
        assert_eq!(complete, is_known && self.ended == self.tasks);
        self.ordered.put(index, index);
        self.unordered.put(index, index);
        let streams = [&mut self.ordered, &mut self.unordered];
        for (stream, taken) in streams.into_iter().zip(&mut self.taken) {
            taken.extend(std::iter::from_fn(|| stream.take()));
        }
    }

    fn check(&mut self) {
        assert_eq!(self.ended, self.tasks);
        assert!(self.ordered.is_over() && self.unordered.is_over());
        let all: Vec<u64> = (0..self.tasks).collect();
        let finished = self.gather.finish();
        assert_eq!(finished, self.first_error.map_or(Ok(all.clone()), Err));
        let [ordered, unordered] = &mut self.taken;
        assert_eq!(*ordered, all);
        unordered.sort_unstable();
        assert_eq!(*unordered, all);
    }
}

/// Everything around the scheduler: queues, processes, and a user who counts the answers.
struct World {
    chance: Chance,
    now: Instant,
    scheduler: Scheduler<u64, i32>,
    tasks: VecDeque<TaskId>,
    tasks_closed: bool,
    answers: VecDeque<Message>,
    /// Answers of the dead that weren't counted when they were looked for, and come out later.
    late: VecDeque<Message>,
    jobs: BTreeMap<u64, Job>,
    processes: BTreeMap<WorkerId, Process>,
    /// What each job of the user got: answers and failures.
    ends: HashMap<u64, u32>,
    submitted: u64,
    to_submit: u64,
    old: Vec<TaskId>,
    /// Of a hundred steps of a worker, how many kill it.
    deadly: u64,
    failing_starts: u64,
    tasks_max: Option<u64>,
    feed_open: bool,
    starts: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut chance = Chance(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        for _ in 0..8 {
            chance.below(2);
        }
        let size = u32::try_from(1 + chance.below(4)).unwrap();
        let deadly = [0, 1, 5, 20][usize::try_from(chance.below(4)).unwrap()];
        let failing_starts = [0, 0, 30, 100][usize::try_from(chance.below(4)).unwrap()];
        let tasks_max = chance.percent(30).then(|| 1 + chance.below(5));
        let to_submit = chance.below(60);
        Self {
            now: Instant::now(),
            scheduler: Scheduler::new(size, Limits::for_workers(size)),
            tasks: VecDeque::new(),
            tasks_closed: false,
            answers: VecDeque::new(),
            late: VecDeque::new(),
            jobs: BTreeMap::new(),
            processes: BTreeMap::new(),
            ends: HashMap::new(),
            submitted: 0,
            to_submit,
            old: Vec::new(),
            deadly,
            failing_starts,
            tasks_max,
            feed_open: false,
            starts: 0,
            chance,
        }
    }

    fn run(mut self) {
        self.carry_out();
        let end_by_force = self.chance.percent(20);
        if self.chance.percent(30) {
            self.feed_open = self.scheduler.feed_began().is_ok();
        }
        let mut steps = 0;
        while !self.is_over() {
            steps += 1;
            assert!(steps < STEPS_MAX, "no end: {:?}", self.scheduler);
            self.now += Duration::from_millis(self.chance.below(200));
            match self.chance.below(10) {
                0 | 1 if self.to_submit > 0 => self.submit(),
                0 if self.feed_open => self.end_feed(),
                1 => self.finish(end_by_force),
                2 | 3 => self.take_answers(),
                4 => self.notice_exits(),
                5 if self.chance.percent(20) => self.lie(),
                5 => {
                    self.answers.extend(self.late.pop_front());
                    self.answers.push_back(Message::Nudge);
                }
                _ => self.let_one_work(),
            }
            self.carry_out();
        }
        self.check();
    }

    fn is_over(&self) -> bool {
        self.to_submit == 0
            && matches!(
                self.scheduler.phase(),
                Phase::Stopping | Phase::Terminated | Phase::Broken
            )
            && self.processes.is_empty()
    }

    /// Submits a job: some tasks, of which the pool may refuse the last ones.
    fn submit(&mut self) {
        self.to_submit -= 1;
        let number = self.submitted;
        self.submitted += 1;
        self.jobs.insert(number, Job::new());
        for index in 0..self.chance.below(BATCH / 2) {
            let ticket = number * BATCH + index;
            let Ok(task) = self.scheduler.submit(ticket) else {
                break;
            };
            self.ends.insert(ticket, 0);
            self.jobs.get_mut(&number).unwrap().tasks += 1;
            self.old.push(task);
            if self.chance.percent(97) {
                self.tasks.push_back(task);
            } else if let Some(ticket) = self.scheduler.withdraw(task) {
                // Its message couldn't be stored: the caller hears of it, and nobody else.
                self.end(ticket, Err(-1));
            }
        }
        self.jobs.get_mut(&number).unwrap().settle();
    }

    /// A task was answered, or failed.
    fn end(&mut self, ticket: u64, end: Result<u64, i32>) {
        *self.ends.get_mut(&ticket).unwrap() += 1;
        let job = self.jobs.get_mut(&(ticket / BATCH)).unwrap();
        job.end(ticket % BATCH, end);
    }

    fn end_feed(&mut self) {
        self.feed_open = false;
        self.scheduler.feed_ended();
    }

    fn finish(&mut self, by_force: bool) {
        if by_force && self.chance.percent(5) {
            self.scheduler.terminate();
        } else if self.to_submit == 0 || self.chance.percent(2) {
            self.scheduler.close();
        }
    }

    /// Answers of nobody, of tasks answered long ago, and exits of workers that are gone.
    fn lie(&mut self) {
        let answered = self.ends.get(&0).is_some_and(|&ends| ends > 0);
        if let Some(&task) = self.old.first().filter(|_| answered) {
            self.answers.push_back(Message::Answer(task));
        }
        self.answers
            .extend(TaskId::from_bits(1 << 63).map(Message::Answer));
        self.scheduler.exited(WorkerId(9_999), None, 0, self.now);
        self.scheduler.retired(WorkerId(9_999));
        self.scheduler.ready(WorkerId(9_998));
    }

    fn let_one_work(&mut self) {
        let awake = self
            .processes
            .iter()
            .filter(|(_, process)| process.stage != Stage::Gone)
            .filter(|(_, process)| process.stalled.is_none_or(|until| until <= self.now));
        let awake: Vec<WorkerId> = awake.map(|(worker, _)| *worker).collect();
        if awake.is_empty() {
            return;
        }
        let count = u64::try_from(awake.len()).unwrap();
        let worker = awake[usize::try_from(self.chance.below(count)).unwrap()];
        let killed = self.chance.percent(self.deadly);
        let fails = self.chance.percent(self.failing_starts);
        let answers_first = self.chance.percent(50);
        let is_seen_late = self.chance.percent(30);
        let stall = Duration::from_millis(self.chance.below(5_000));
        let stalled = self.chance.percent(3).then(|| self.now + stall);
        let process = self.processes.get_mut(&worker).unwrap();
        process.stalled = stalled;
        match process.stage {
            Stage::Starting if fails => process.stage = Stage::Gone,
            Stage::Starting => {
                process.stage = Stage::Idle;
                self.answers.push_back(Message::Ready(worker));
            }
            Stage::Idle if killed => process.stage = Stage::Gone,
            Stage::Idle => match self.tasks.pop_front() {
                Some(task) => {
                    process.claim = Some(task);
                    process.stage = Stage::Running(task);
                }
                None if self.tasks_closed => process.stage = Stage::Gone,
                None => {}
            },
            Stage::Running(task) => {
                if !killed || answers_first {
                    let answers = if killed && is_seen_late {
                        &mut self.late
                    } else {
                        &mut self.answers
                    };
                    answers.push_back(Message::Answer(task));
                    process.done += 1;
                    process.stage = Stage::Idle;
                }
                if killed {
                    process.stage = Stage::Gone;
                } else if self.tasks_max.is_some_and(|most| process.done >= most) {
                    self.answers.push_back(Message::Retired(worker));
                    process.stage = Stage::Gone;
                }
            }
            Stage::Gone => {}
        }
    }

    fn take_answers(&mut self) {
        for _ in 0..self.chance.below(8) {
            self.take_answer();
        }
    }

    fn take_answer(&mut self) -> bool {
        match self.answers.pop_front() {
            Some(Message::Ready(worker)) => self.scheduler.ready(worker),
            Some(Message::Retired(worker)) => self.scheduler.retired(worker),
            Some(Message::Answer(task)) => {
                if let Some(ticket) = self.scheduler.answered(task) {
                    self.end(ticket, Ok(ticket % BATCH));
                }
            }
            Some(Message::Nudge) => {}
            None => return false,
        }
        true
    }

    /// As the driver does: who is gone, then all answers, then the claims.
    fn notice_exits(&mut self) {
        let gone = self
            .processes
            .iter()
            .filter(|(_, process)| process.stage == Stage::Gone);
        let gone: Vec<_> = gone
            .map(|(worker, process)| (*worker, process.claim))
            .collect();
        if gone.is_empty() {
            return;
        }
        while self.take_answer() {}
        for (worker, claim) in gone {
            self.processes.remove(&worker);
            self.scheduler.exited(worker, claim, -9, self.now);
            if self.chance.percent(10) {
                self.scheduler.exited(worker, claim, -9, self.now);
            }
        }
    }

    fn carry_out(&mut self) {
        while let Some(action) = self.scheduler.next_action() {
            match action {
                Action::Start(worker) if self.chance.percent(3) => {
                    self.starts += 1;
                    self.scheduler.start_failed(worker, 11);
                }
                Action::Start(worker) => {
                    self.starts += 1;
                    let process = Process {
                        stage: Stage::Starting,
                        stalled: None,
                        claim: None,
                        done: 0,
                    };
                    assert!(self.processes.insert(worker, process).is_none());
                }
                Action::Fail(ticket, failure) => {
                    let how = match failure {
                        Failure::Lost(how) | Failure::Broken(how) => how,
                        Failure::Terminated => 0,
                    };
                    self.end(ticket, Err(how));
                }
                Action::Stop => self.tasks_closed = true,
                Action::Kill => {
                    for process in self.processes.values_mut() {
                        process.stage = Stage::Gone;
                    }
                }
            }
        }
    }

    fn check(&mut self) {
        self.answers.append(&mut self.late);
        while self.take_answer() {}
        self.carry_out();
        for job in self.jobs.values_mut() {
            job.check();
        }
        for (job, ends) in &self.ends {
            assert_eq!(*ends, 1, "job {job} was answered {ends} times");
        }
        assert_eq!(self.scheduler.workers(), 0, "workers are left");
        assert_eq!(self.scheduler.unanswered(), 0);
        if self.failing_starts == 100 && self.tasks_max.is_none() {
            assert!(
                self.starts <= 40,
                "{} starts though none can succeed",
                self.starts
            );
        }
    }
}
