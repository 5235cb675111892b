//! A pool in the storm: its workers are killed, too, and each task has exactly one answer.

use super::roles::{length, message, number_of};
use super::{again, assert_ended, kill, start};
use crate::child::Random;
use procession_core::pool::{Action, Driver, Failure, News, Seat, Submitted, WorkerId};
use procession_core::{Arena, Carried, Deadline, Error, Taken};
use std::collections::{BTreeMap, BTreeSet};

const WORKERS: u32 = 2;
/// Tasks that are unanswered at a time.
const OPEN: usize = 20;
/// A worker leaves after at most so many tasks.
const SHARE: u64 = 3000;
/// Answers have tags below this: the worker's number, as far as that goes.
const TAGS: u32 = 200;

/// How a worker ended: its number, and what waitpid said.
type Exit = (WorkerId, i32);

/// The pool, and the processes of its workers.
pub(crate) struct Pool {
    arena: Arena,
    driver: Driver<u64, Exit>,
    processes: BTreeMap<WorkerId, libc::pid_t>,
    /// Workers to be started once that is allowed again.
    to_start: Vec<WorkerId>,
    /// Tasks without an answer.
    open: BTreeSet<u64>,
    /// Tasks that died with a worker.
    lost: BTreeMap<u64, WorkerId>,
    random: Random,
    may_start: bool,
    may_submit: bool,
    pub(crate) told: Told,
}

/// For the line at the end.
#[derive(Debug, Default)]
pub(crate) struct Told {
    tasks: u64,
    answered: u64,
    lost: u64,
    workers: u64,
}

impl Pool {
    /// Its queues, which are all of its objects when it has no workers.
    pub(crate) const QUEUES: u64 = 2;

    pub(crate) fn new(arena: &Arena, seed: u64) -> Self {
        Self {
            arena: arena.clone(),
            driver: Driver::new(arena, WORKERS).unwrap(),
            processes: BTreeMap::new(),
            to_start: Vec::new(),
            open: BTreeSet::new(),
            lost: BTreeMap::new(),
            random: Random::new(seed),
            may_start: false,
            may_submit: false,
            told: Told::default(),
        }
    }

    /// Workers are started, and get tasks.
    pub(crate) fn begin(&mut self) {
        (self.may_start, self.may_submit) = (true, true);
    }

    /// No more tasks for now.
    pub(crate) fn rest(&mut self) {
        self.may_submit = false;
    }

    /// No task, nobody whose end wasn't told, and nobody to be started.
    pub(crate) fn is_idle(&self) -> bool {
        self.open.is_empty() && !self.driver.note_ends([]) && self.to_start.is_empty()
    }

    pub(crate) fn pids(&self) -> Vec<libc::pid_t> {
        self.processes.values().copied().collect()
    }

    /// A child of this process has ended; false when it wasn't a worker.
    pub(crate) fn ended(&mut self, pid: libc::pid_t, status: i32) -> bool {
        let found = self.processes.iter().find(|(_, process)| **process == pid);
        let Some((&worker, _)) = found else {
            return false;
        };
        assert_ended(status, "a worker");
        self.processes.remove(&worker);
        self.driver.note_ends([(worker, (worker, status))]);
        true
    }

    /// Kills all that are there, and starts none until [`begin`](Self::begin); how many it were.
    pub(crate) fn kill_all(&mut self) -> u64 {
        self.may_start = false;
        let pids = self.pids();
        for pid in &pids {
            kill(*pid, libc::SIGKILL);
            let mut status = 0;
            // SAFETY: writes one status.
            assert_eq!(unsafe { libc::waitpid(*pid, &raw mut status, 0) }, *pid);
            assert!(self.ended(*pid, status));
        }
        // Nobody is left who could be at a repair.
        self.work(Deadline::now());
        while self.driver.note_ends([]) {
            std::thread::yield_now();
            self.work(Deadline::now());
        }
        pids.len() as u64
    }

    pub(crate) fn close(&mut self) {
        self.driver.with(|scheduler| scheduler.close());
    }

    /// Gives out tasks and hears of answers until the deadline.
    pub(crate) fn work(&mut self, deadline: Deadline) {
        loop {
            self.tell_of_ends();
            self.act();
            while self.may_submit && self.open.len() < OPEN {
                self.submit();
            }
            let mut buffer = Vec::new();
            match again(|| self.driver.next(&mut buffer, deadline)) {
                Some(taken) => self.hear(&taken, buffer),
                None => break,
            }
            if deadline.passed() {
                break;
            }
        }
    }

    fn submit(&mut self) {
        self.told.tasks += 1;
        let number = self.told.tasks;
        let body = message(number, length(&mut self.random));
        self.open.insert(number);
        let submitted = self.driver.submit(number, 1, &[&body], &Carried::new());
        assert!(matches!(submitted, Submitted::Accepted(_)), "{submitted:?}");
    }

    fn hear(&mut self, taken: &Taken, mut buffer: Vec<u8>) {
        let news = self.driver.hear(taken, &buffer).unwrap();
        if let Some(extent) = &taken.extent {
            extent.append_to(&mut buffer).unwrap();
        }
        match news {
            News::Answer(ticket) => {
                assert_eq!(number_of(&buffer[Driver::<u64, Exit>::START..]), ticket);
                assert!(self.open.remove(&ticket), "task {ticket} has two answers");
                self.told.answered += 1;
            }
            News::Nothing if u32::from(taken.tag) < TAGS => {
                // The last word of one that died as it said it.
                let number = number_of(&buffer[Driver::<u64, Exit>::START..]);
                let worker = self.lost.get(&number).map(|worker| worker.0 % TAGS);
                assert_eq!(
                    worker,
                    Some(taken.tag.into()),
                    "task {number} was lost, and run by another"
                );
            }
            News::Nothing => {}
            News::Faulty(worker) => panic!("{worker:?} is faulty"),
        }
    }

    fn tell_of_ends(&mut self) {
        if !self.driver.note_ends([]) {
            return;
        }
        let mut buffer = Vec::new();
        while let Some(taken) = again(|| self.driver.next(&mut buffer, Deadline::now())) {
            self.hear(&taken, std::mem::take(&mut buffer));
        }
        again(|| self.driver.tell_of_ends());
    }

    fn act(&mut self) {
        while let Some(action) = self.driver.next_action().unwrap() {
            match action {
                Action::Start(worker) => self.to_start.push(worker),
                Action::Fail(number, Failure::Lost((worker, status))) => {
                    assert!(
                        libc::WIFSIGNALED(status),
                        "{worker:?} left with task {number}"
                    );
                    assert!(
                        self.open.remove(&number),
                        "task {number} was answered, and is lost"
                    );
                    self.lost.insert(number, worker);
                    self.told.lost += 1;
                }
                Action::Stop => {}
                Action::Fail(..) | Action::Kill => panic!("{action:?}"),
            }
        }
        if self.may_start {
            for worker in std::mem::take(&mut self.to_start) {
                self.start(worker);
            }
        }
    }

    fn start(&mut self, worker: WorkerId) {
        let seat = again(|| self.driver.seat(&self.arena, worker));
        let share = 1 + self.random.below(SHARE);
        self.told.workers += 1;
        let pid = start(|| serve(&seat, share, &self.arena));
        self.processes.insert(worker, pid);
    }
}

/// What a worker does.
fn serve(seat: &Seat, share: u64, arena: &Arena) {
    again(|| seat.ready());
    let tag = u8::try_from(seat.worker().0 % TAGS).unwrap();
    for _ in 0..share {
        let mut buffer = Vec::new();
        let task = match seat.take(&mut buffer, Deadline::NEVER) {
            Ok(task) => task.expect("a task"),
            Err(Error::Interrupted) => continue,
            Err(Error::Closed { .. }) => return arena.leave(),
            Err(error) => panic!("{error:?}"),
        };
        if let Some(extent) = &task.extent {
            extent.append_to(&mut buffer).unwrap();
        }
        let body = &buffer[procession_core::pool::Task::START..];
        number_of(body);
        again(|| seat.answer(task.id, tag, &[body], &task.carried));
    }
    again(|| seat.retire());
    arena.leave();
}
