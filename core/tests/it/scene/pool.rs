//! A pool to die in: its owner submits, its worker answers.

use super::{body, number_of};
use procession_core::pool::{Action, Driver, Failure, News, Seat, Submitted, Task, WorkerId};
use procession_core::{Arena, Carried, Deadline};

const SMALL: usize = 24;
/// Tasks that were submitted before.
const BEFORE: [u64; 2] = [1, 2];
/// How the worker ended.
const KILLED: i32 = -9;

/// A pool with one worker, and what that worker has.
#[derive(Debug)]
pub(crate) struct Pool {
    driver: Driver<u64, i32>,
    seat: Seat,
}

impl Pool {
    pub(super) fn new(arena: &Arena) -> Self {
        let driver = Driver::new(arena, 1).unwrap();
        let seat = start(&driver, arena);
        let pool = Self { driver, seat };
        BEFORE.iter().for_each(|number| pool.submit(*number));
        pool
    }

    pub(super) fn twin(&self, arena: &Arena) -> Self {
        Self {
            driver: self.driver.twin(arena).unwrap(),
            seat: Seat::open(arena, self.seat.worker(), self.seat.names()).unwrap(),
        }
    }

    pub(super) fn submit(&self, number: u64) {
        let (body, names) = (body(number, SMALL), Carried::new());
        let submitted = self.driver.submit(number, 0, &[&body], &names);
        assert!(matches!(submitted, Submitted::Accepted(_)), "{submitted:?}");
    }

    /// As the worker: takes the first task and answers it.
    pub(super) fn answer(&self) {
        assert!(answer_one(&self.seat));
    }

    /// The tasks that are left for another worker, each of them whole.
    pub(super) fn tasks(&self) -> Vec<u64> {
        let mut buffer = Vec::new();
        let mut numbers = Vec::new();
        while self
            .seat
            .take(&mut buffer, Deadline::now())
            .unwrap()
            .is_some()
        {
            numbers.push(number_of(&buffer[Task::START..]));
            buffer.clear();
        }
        numbers
    }

    /// The worker died: every task gets one answer, from it, from the next worker or from the pool. Gives the tasks
    /// that the dead one answered, and those that were lost with it.
    pub(super) fn bury(&self, arena: &Arena) -> [Vec<u64>; 2] {
        let answered = self.hear();
        assert!(self.driver.note_ends([(self.seat.worker(), KILLED)]));
        self.driver.tell_of_ends().unwrap();
        let mut lost = Vec::new();
        let mut next = None;
        while let Some(action) = self.driver.next_action().unwrap() {
            match action {
                Action::Fail(number, Failure::Lost(KILLED)) => lost.push(number),
                Action::Start(worker) => next = Some(seat(&self.driver, arena, worker)),
                other => panic!("{other:?}"),
            }
        }
        let next = next.expect("a new worker");
        while answer_one(&next) {}
        let mut all = [&answered[..], &lost, &self.hear()].concat();
        all.sort_unstable();
        assert_eq!(all, BEFORE, "answered {answered:?}, lost {lost:?}");
        assert_eq!(self.driver.with(|scheduler| scheduler.unanswered()), 0);
        [answered, lost]
    }

    fn hear(&self) -> Vec<u64> {
        let mut buffer = Vec::new();
        let mut numbers = Vec::new();
        while let Some(taken) = self.driver.next(&mut buffer, Deadline::now()).unwrap() {
            let news = self.driver.hear(&taken, &buffer).unwrap();
            let number = number_of(&buffer[Driver::<u64, i32>::START..]);
            buffer.clear();
            match news {
                News::Answer(ticket) => {
                    assert_eq!(ticket, number);
                    numbers.push(number);
                }
                // Reported as lost before its answer could be heard.
                News::Nothing => {}
                News::Faulty(worker) => panic!("{worker:?}"),
            }
        }
        numbers
    }
}

/// Starts the pool's first worker.
fn start(driver: &Driver<u64, i32>, arena: &Arena) -> Seat {
    let Ok(Some(Action::Start(worker))) = driver.next_action() else {
        panic!("a pool begins with starting its workers");
    };
    seat(driver, arena, worker)
}

fn seat(driver: &Driver<u64, i32>, arena: &Arena, worker: WorkerId) -> Seat {
    let seat = driver.seat(arena, worker).unwrap();
    driver.with(|scheduler| scheduler.ready(worker));
    seat
}

/// Takes a task and answers it with its own bytes; false when there is none.
fn answer_one(seat: &Seat) -> bool {
    let mut buffer = Vec::new();
    let Some(task) = seat.take(&mut buffer, Deadline::now()).unwrap() else {
        return false;
    };
    let answer = &buffer[Task::START..];
    seat.answer(task.id, 0, &[answer], &task.carried).unwrap();
    true
}
