//! What a pool does next. PURE: no system, no thread, no clock; the present time is passed in.
//!
//! The face reports what happened (a task was submitted, an answer came, a worker started, said it is ready, retires,
//! exited) and carries out the actions that come back. The queues share the tasks out, so the scheduler doesn't
//! choose a worker; it knows which tasks are unanswered and, from a dead worker's claim, which one died with it.
//!
//! ```text
//! phase        tasks accepted  dead workers replaced     leaves to
//! Running      yes             yes                       Closing, Broken, Terminated
//! Closing      from feeds      while work is left        Stopping when nothing is left; Broken, Terminated
//! Stopping     no              no                        Terminated
//! Broken       no              no                        Terminated
//! Terminated   no              no                        (the end)
//!
//! worker       meaning                                   an exit then is
//! Starting     started, hasn't said that it is ready     a failed start
//! Ready        takes tasks                               the death of its task, or an idle death
//! Leaving      has done its share of tasks               expected
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

/// Names a task of one pool; never zero, and never used twice.
///
/// The low half is a place in the table of unanswered tasks, the high half counts how often that place was used: an
/// answer to a task that was answered before finds a newer count, and is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskId(u64);

impl TaskId {
    /// Reads an id from a message or a claim; zero is none.
    #[must_use]
    pub fn from_bits(bits: u64) -> Option<Self> {
        (bits != 0).then_some(Self(bits))
    }

    /// The id as it stands in messages and claims.
    #[must_use]
    pub fn to_bits(self) -> u64 {
        self.0
    }

    fn at(index: u32, turn: u32) -> Self {
        Self(u64::from(turn) << 32 | u64::from(index))
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "the two halves are taken apart"
    )]
    fn parts(self) -> (u32, u32) {
        (self.0 as u32, (self.0 >> 32) as u32)
    }
}

/// Names a worker of one pool; counts from one, and is never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkerId(pub u32);

/// What the face must do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action<T, X> {
    /// Start a worker under this name, and report [`Scheduler::start_failed`] if that can't be done.
    Start(WorkerId),
    /// Answer this task with an error: no worker will.
    Fail(T, Failure<X>),
    /// Nothing is left to do and nothing will come: let the workers leave.
    Stop,
    /// End the workers.
    Kill,
}

/// Why a task that was accepted has no result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure<X> {
    /// The worker that ran it ended so.
    Lost(X),
    /// The pool was terminated.
    Terminated,
    /// Workers died again and again without doing anything, the last one so.
    Broken(X),
}

/// Why a task wasn't accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// The pool was closed.
    Closed,
    /// The pool was terminated.
    Terminated,
    /// The pool broke: its workers die as they start.
    Broken,
    /// More tasks are unanswered than ids can name.
    Full,
}

impl Refused {
    fn by(phase: Phase) -> Self {
        match phase {
            Phase::Broken => Self::Broken,
            Phase::Terminated => Self::Terminated,
            Phase::Running | Phase::Closing | Phase::Stopping => Self::Closed,
        }
    }
}

/// What a pool is up to; the table stands at the top of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Takes tasks and runs them.
    Running,
    /// Takes no new jobs; runs what it has.
    Closing,
    /// Has run everything; the workers leave.
    Stopping,
    /// Gave up: the workers die as they start.
    Broken,
    /// Ended by force.
    Terminated,
}

/// How many deaths without any work done a pool bears before it breaks.
///
/// Erlang's supervisors call it the restart intensity: more than so many restarts in so much time, and the supervisor
/// gives up. Deaths with a task don't count, since each costs its task: there are no more of them than tasks.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Starts that fail one after the other, with no worker becoming ready in between.
    pub failed_starts: u32,
    /// Deaths of idle workers within `period`, with no task answered in between.
    pub idle_deaths: usize,
    /// See `idle_deaths`.
    pub period: Duration,
}

impl Limits {
    /// The limits for so many workers: all of them may fail twice, and all may be killed idle a few times over.
    #[must_use]
    pub fn for_workers(workers: u32) -> Self {
        Self {
            failed_starts: workers.saturating_mul(2).saturating_add(4),
            idle_deaths: (workers as usize).saturating_mul(5).saturating_add(10),
            period: Duration::from_secs(5),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Worker {
    Starting,
    Ready,
    Leaving,
}

/// Decides for a pool. `T` is what the face wants back with a task's answer, `X` says how a worker ended.
///
/// Submitting and answering are a few nanoseconds and never allocate once the table has grown to the largest number
/// of unanswered tasks.
#[derive(Debug, Clone)]
pub struct Scheduler<T, X> {
    tasks: Tasks<T>,
    workers: BTreeMap<WorkerId, Worker>,
    last_worker: u32,
    size: u32,
    phase: Phase,
    feeds: u32,
    limits: Limits,
    failed_starts: u32,
    idle_deaths: VecDeque<Instant>,
    actions: VecDeque<Action<T, X>>,
}

impl<T, X: Clone> Scheduler<T, X> {
    /// A pool of `size` workers; the actions to start them are the first ones.
    #[must_use]
    pub fn new(size: u32, limits: Limits) -> Self {
        let mut new = Self {
            tasks: Tasks::new(),
            workers: BTreeMap::new(),
            last_worker: 0,
            size,
            phase: Phase::Running,
            feeds: 0,
            limits,
            failed_starts: 0,
            idle_deaths: VecDeque::new(),
            actions: VecDeque::new(),
        };
        new.refill();
        new
    }

    /// The next thing to do; `None` when there is nothing until the next event.
    pub fn next_action(&mut self) -> Option<Action<T, X>> {
        self.actions.pop_front()
    }

    /// Whether actions wait to be carried out.
    #[must_use]
    pub fn has_actions(&self) -> bool {
        !self.actions.is_empty()
    }

    /// What the pool is up to.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// How many tasks are unanswered.
    #[must_use]
    pub fn unanswered(&self) -> usize {
        self.tasks.count
    }

    /// How many sources are still to submit tasks.
    #[must_use]
    pub fn feeds(&self) -> u32 {
        self.feeds
    }

    /// Whether nothing is left to do: no task unanswered, no feed open.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.tasks.count == 0 && self.feeds == 0
    }

    /// How many workers haven't exited, those that are leaving included.
    #[must_use]
    pub fn workers(&self) -> usize {
        self.workers.len()
    }

    /// The workers that haven't exited.
    pub fn worker_ids(&self) -> impl Iterator<Item = WorkerId> {
        self.workers.keys().copied()
    }

    /// The tickets of the tasks that are unanswered, in no order.
    pub fn tickets(&self) -> impl Iterator<Item = &T> {
        self.tasks
            .places
            .iter()
            .filter_map(|place| place.ticket.as_ref())
    }

    /// Accepts a task; it will be answered exactly once.
    ///
    /// # Errors
    /// The ticket comes back when the pool takes no tasks: it was closed (while a feed is open, that may still
    /// submit), it broke or was terminated.
    pub fn submit(&mut self, ticket: T) -> Result<TaskId, (T, Refused)> {
        match self.phase {
            Phase::Running => self.tasks.insert(ticket),
            Phase::Closing if self.feeds > 0 => self.tasks.insert(ticket),
            phase => Err((ticket, Refused::by(phase))),
        }
    }

    /// Takes a task back whose message couldn't be stored; `None` if it has been failed meanwhile.
    pub fn withdraw(&mut self, task: TaskId) -> Option<T> {
        let ticket = self.tasks.remove(task);
        self.settle();
        ticket
    }

    /// An answer came. `None` for a task that was answered before: the answer is to be dropped.
    pub fn answered(&mut self, task: TaskId) -> Option<T> {
        let ticket = self.tasks.remove(task)?;
        self.idle_deaths.clear();
        self.settle();
        Some(ticket)
    }

    /// A job begins that will submit its tasks bit by bit; until [`Self::feed_ended`] the pool isn't idle.
    ///
    /// # Errors
    /// As [`Self::submit`].
    pub fn feed_began(&mut self) -> Result<(), Refused> {
        match self.phase {
            Phase::Running => {
                self.feeds += 1;
                Ok(())
            }
            phase => Err(Refused::by(phase)),
        }
    }

    /// A job has submitted the last of its tasks, or gives up.
    pub fn feed_ended(&mut self) {
        self.feeds = self.feeds.saturating_sub(1);
        self.settle();
    }

    /// A worker has run its initializer and takes tasks from now on.
    pub fn ready(&mut self, worker: WorkerId) {
        if let Some(state @ Worker::Starting) = self.workers.get_mut(&worker) {
            *state = Worker::Ready;
            self.failed_starts = 0;
        }
    }

    /// A worker has done its share of tasks, takes no more and is about to exit: its place is filled at once.
    pub fn retired(&mut self, worker: WorkerId) {
        if let Some(state) = self.workers.get_mut(&worker) {
            *state = Worker::Leaving;
            self.failed_starts = 0;
            self.refill();
        }
    }

    /// A worker couldn't be started.
    pub fn start_failed(&mut self, worker: WorkerId, how: X) {
        if self.workers.remove(&worker).is_some() {
            self.failed_starts += 1;
            self.replace(how);
        }
    }

    /// A worker's process is gone. `claim` is the task it took last, answered or not; every answer that it gave
    /// must have been reported before.
    pub fn exited(&mut self, worker: WorkerId, claim: Option<TaskId>, how: X, now: Instant) {
        let Some(state) = self.workers.remove(&worker) else {
            return;
        };
        if let Some(ticket) = claim.and_then(|task| self.tasks.remove(task)) {
            self.actions
                .push_back(Action::Fail(ticket, Failure::Lost(how.clone())));
        } else {
            match state {
                Worker::Starting => self.failed_starts += 1,
                Worker::Ready => self.idle_deaths.push_back(now),
                Worker::Leaving => {}
            }
        }
        let period = self.limits.period;
        while self
            .idle_deaths
            .front()
            .is_some_and(|&then| now.saturating_duration_since(then) > period)
        {
            self.idle_deaths.pop_front();
        }
        self.replace(how);
        self.settle();
    }

    /// No more jobs: the workers leave when all that was submitted is answered.
    pub fn close(&mut self) {
        if self.phase == Phase::Running {
            self.phase = Phase::Closing;
            self.settle();
        }
    }

    /// Ends the pool: every unanswered task fails, the workers are killed. Again does nothing.
    pub fn terminate(&mut self) {
        if self.phase != Phase::Terminated {
            self.phase = Phase::Terminated;
            self.fail_all(&Failure::Terminated);
            self.actions.push_back(Action::Kill);
        }
    }

    /// Fills the places that are free, unless too many workers died for nothing.
    fn replace(&mut self, how: X) {
        let living = matches!(self.phase, Phase::Running | Phase::Closing);
        let hopeless = self.failed_starts >= self.limits.failed_starts
            || self.idle_deaths.len() >= self.limits.idle_deaths;
        if living && hopeless {
            self.phase = Phase::Broken;
            self.fail_all(&Failure::Broken(how));
            self.actions.push_back(Action::Kill);
        } else {
            self.refill();
        }
    }

    fn refill(&mut self) {
        let wanted = match self.phase {
            Phase::Running => self.size as usize,
            Phase::Closing if self.feeds > 0 => self.size as usize,
            Phase::Closing => self.tasks.count.min(self.size as usize),
            _ => 0,
        };
        let here = self
            .workers
            .values()
            .filter(|state| **state != Worker::Leaving)
            .count();
        for _ in here..wanted {
            self.last_worker += 1;
            let worker = WorkerId(self.last_worker);
            self.workers.insert(worker, Worker::Starting);
            self.actions.push_back(Action::Start(worker));
        }
    }

    /// Once everything is answered after a close, the workers may go.
    fn settle(&mut self) {
        if self.phase == Phase::Closing && self.is_idle() {
            self.phase = Phase::Stopping;
            self.actions.push_back(Action::Stop);
        }
    }

    /// Starts that weren't begun yet are forgotten, so that nobody waits for those workers to exit.
    fn fail_all(&mut self, why: &Failure<X>) {
        let workers = &mut self.workers;
        self.actions.retain(|action| match action {
            Action::Start(worker) => {
                workers.remove(worker);
                false
            }
            _ => true,
        });
        for ticket in self.tasks.drain() {
            self.actions.push_back(Action::Fail(ticket, why.clone()));
        }
    }
}

/// The unanswered tasks: a table of places with a list of the free ones.
#[derive(Debug, Clone)]
struct Tasks<T> {
    places: Vec<Place<T>>,
    free: Vec<u32>,
    count: usize,
}

/// One place of the table.
#[derive(Debug, Clone)]
struct Place<T> {
    /// How often the place was used; an id with another count is stale.
    turn: u32,
    ticket: Option<T>,
}

impl<T> Tasks<T> {
    fn new() -> Self {
        Self {
            places: Vec::new(),
            free: Vec::new(),
            count: 0,
        }
    }

    fn insert(&mut self, ticket: T) -> Result<TaskId, (T, Refused)> {
        let index = match self.free.pop() {
            Some(index) => index,
            None => match u32::try_from(self.places.len()) {
                Ok(index) => {
                    self.places.push(Place {
                        turn: 0,
                        ticket: None,
                    });
                    index
                }
                Err(_) => return Err((ticket, Refused::Full)),
            },
        };
        let place = &mut self.places[index as usize];
        // Zero is skipped: an id is never zero.
        place.turn = place.turn.checked_add(1).unwrap_or(1);
        place.ticket = Some(ticket);
        self.count += 1;
        Ok(TaskId::at(index, place.turn))
    }

    fn remove(&mut self, task: TaskId) -> Option<T> {
        let (index, turn) = task.parts();
        let place = self
            .places
            .get_mut(index as usize)
            .filter(|place| place.turn == turn)?;
        let ticket = place.ticket.take()?;
        self.free.push(index);
        self.count -= 1;
        Some(ticket)
    }

    fn drain(&mut self) -> Vec<T> {
        let mut tickets = Vec::with_capacity(self.count);
        for (index, place) in (0u32..).zip(self.places.iter_mut()) {
            if let Some(ticket) = place.ticket.take() {
                self.free.push(index);
                tickets.push(ticket);
            }
        }
        self.count = 0;
        tickets
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(size: u32) -> Scheduler<u32, i32> {
        let mut pool = Scheduler::new(size, Limits::for_workers(size));
        for worker in started(&mut pool) {
            pool.ready(worker);
        }
        pool
    }

    fn actions(pool: &mut Scheduler<u32, i32>) -> Vec<Action<u32, i32>> {
        std::iter::from_fn(|| pool.next_action()).collect()
    }

    fn started(pool: &mut Scheduler<u32, i32>) -> Vec<WorkerId> {
        actions(pool)
            .into_iter()
            .filter_map(|action| match action {
                Action::Start(worker) => Some(worker),
                _ => None,
            })
            .collect()
    }

    #[test]
    fn an_answer_is_delivered_once() {
        let mut pool = pool(1);
        let first = pool.submit(7).unwrap();
        assert_eq!(pool.answered(first), Some(7));
        assert_eq!(pool.answered(first), None);
        let second = pool.submit(8).unwrap();
        assert_ne!(first, second, "the place is used again, the id is not");
        assert_eq!(
            pool.answered(first),
            None,
            "a late answer doesn't answer the newer task"
        );
        assert_eq!(pool.answered(second), Some(8));
        assert_eq!(pool.answered(TaskId(99)), None);
    }

    #[test]
    fn a_death_costs_the_claimed_task_alone() {
        let mut pool = pool(2);
        let tasks: Vec<_> = (0..4).map(|n| pool.submit(n).unwrap()).collect();
        pool.exited(WorkerId(1), Some(tasks[2]), -9, Instant::now());
        assert_eq!(
            actions(&mut pool),
            [
                Action::Fail(2, Failure::Lost(-9)),
                Action::Start(WorkerId(3))
            ]
        );
        assert_eq!(pool.unanswered(), 3);
        assert_eq!(pool.answered(tasks[2]), None);
        pool.exited(WorkerId(1), Some(tasks[0]), -9, Instant::now());
        assert_eq!(
            actions(&mut pool),
            [],
            "a second exit of the same worker is no news"
        );
    }

    #[test]
    fn a_claim_that_was_answered_costs_nothing() {
        let mut pool = pool(1);
        let task = pool.submit(1).unwrap();
        assert_eq!(pool.answered(task), Some(1));
        pool.exited(WorkerId(1), Some(task), -9, Instant::now());
        assert_eq!(actions(&mut pool), [Action::Start(WorkerId(2))]);
    }

    #[test]
    fn workers_that_never_become_ready_break_the_pool() {
        let mut pool: Scheduler<u32, i32> = Scheduler::new(2, Limits::for_workers(2));
        pool.submit(5).unwrap();
        let (mut starts, mut failed) = (0, Vec::new());
        while let Some(action) = pool.next_action() {
            match action {
                Action::Start(worker) => {
                    starts += 1;
                    pool.exited(worker, None, 1, Instant::now());
                }
                Action::Fail(ticket, why) => failed.push((ticket, why)),
                Action::Kill | Action::Stop => {}
            }
        }
        assert!(starts <= 20, "{starts} workers were started");
        assert_eq!(failed, [(5, Failure::Broken(1))]);
        assert_eq!(pool.phase(), Phase::Broken);
        assert_eq!(pool.submit(6), Err((6, Refused::Broken)));
        assert_eq!(pool.workers(), 0);
    }

    #[test]
    fn idle_deaths_far_apart_dont_break_the_pool() {
        let mut pool = pool(1);
        let mut now = Instant::now();
        for n in 1..100 {
            pool.exited(WorkerId(n), None, -9, now);
            assert_eq!(actions(&mut pool), [Action::Start(WorkerId(n + 1))]);
            pool.ready(WorkerId(n + 1));
            now += Duration::from_secs(1);
        }
        for n in 100.. {
            pool.exited(WorkerId(n), None, -9, now);
            if pool.phase() == Phase::Broken {
                break;
            }
            assert!(n < 200, "deaths at once must break it");
            pool.ready(WorkerId(n + 1));
        }
    }

    #[test]
    fn tasks_that_kill_dont_break_the_pool() {
        let mut pool = pool(1);
        for n in 1..500 {
            let task = pool.submit(n).unwrap();
            pool.exited(WorkerId(n), Some(task), -11, Instant::now());
            assert_eq!(actions(&mut pool).len(), 2);
            pool.ready(WorkerId(n + 1));
        }
        assert_eq!(pool.phase(), Phase::Running);
    }

    #[test]
    fn closing_waits_for_tasks_and_feeds() {
        let mut pool = pool(3);
        pool.feed_began().unwrap();
        let task = pool.submit(1).unwrap();
        pool.close();
        assert_eq!(actions(&mut pool), []);
        let fed = pool.submit(2).unwrap();
        pool.feed_ended();
        assert_eq!(pool.submit(3), Err((3, Refused::Closed)));
        assert_eq!(pool.answered(task), Some(1));
        pool.exited(WorkerId(1), Some(fed), 3, Instant::now());
        assert_eq!(
            actions(&mut pool),
            [Action::Fail(2, Failure::Lost(3)), Action::Stop]
        );
        assert_eq!(pool.phase(), Phase::Stopping);
        pool.exited(WorkerId(2), None, 0, Instant::now());
        assert_eq!(actions(&mut pool), [], "nobody is replaced any more");
    }

    #[test]
    fn a_retired_worker_is_replaced_before_it_is_gone() {
        let mut pool = pool(1);
        pool.retired(WorkerId(1));
        assert_eq!(actions(&mut pool), [Action::Start(WorkerId(2))]);
        pool.exited(WorkerId(1), None, 0, Instant::now());
        assert_eq!(actions(&mut pool), []);
    }

    #[test]
    fn terminate_answers_everything_and_starts_nothing() {
        let mut pool: Scheduler<u32, i32> = Scheduler::new(2, Limits::for_workers(2));
        let Some(Action::Start(first)) = pool.next_action() else {
            panic!("no start")
        };
        let task = pool.submit(1).unwrap();
        pool.terminate();
        pool.terminate();
        assert_eq!(
            actions(&mut pool),
            [Action::Fail(1, Failure::Terminated), Action::Kill]
        );
        assert_eq!(pool.answered(task), None);
        pool.exited(first, None, -15, Instant::now());
        assert_eq!((actions(&mut pool).len(), pool.workers()), (0, 0));
    }
}
