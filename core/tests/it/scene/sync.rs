//! The primitives of synchronisation in a scene, and what must hold of them after a death.

use super::soon;
use crate::crash::again;
use procession_core::{
    Acquired, Arena, Barrier, Condition, Deadline, Error, Event, Permit, Put, Queue, RLock,
    Semaphore,
};

const PERMITS: u32 = 3;
/// Messages in the queue of tasks.
const TASKS: u64 = 3;

/// One of each.
#[derive(Debug)]
pub(crate) struct Sync {
    pub(crate) rlock: RLock,
    pub(crate) semaphore: Semaphore,
    /// Used for signals.
    pub(crate) signal: Semaphore,
    pub(crate) condition: Condition,
    pub(crate) event: Event,
    /// For one, who is the last to come.
    pub(crate) single: Barrier,
    /// For two, of whom one comes.
    pub(crate) pair: Barrier,
    /// A joinable queue.
    pub(crate) tasks: Queue,
    /// Tasks that are done in advance: before somebody gets them.
    pub(crate) ahead: u64,
}

impl Sync {
    pub(crate) fn new(arena: &Arena) -> Self {
        let sync = Self {
            rlock: RLock::new(arena).unwrap(),
            semaphore: Semaphore::new(arena, PERMITS, PERMITS).unwrap(),
            signal: Semaphore::new(arena, 0, 100).unwrap(),
            condition: Condition::new(arena).unwrap(),
            event: Event::new(arena).unwrap(),
            single: Barrier::new(arena, 1).unwrap(),
            pair: Barrier::new(arena, 2).unwrap(),
            tasks: Queue::joinable(arena, None).unwrap(),
            ahead: 0,
        };
        // Whoever comes next finds this process named.
        assert!(
            sync.semaphore
                .acquire(Permit::Held, Deadline::now())
                .unwrap()
        );
        sync.semaphore.release(Permit::Held).unwrap();
        sync.signal.release(Permit::Acquired).unwrap();
        sync.pass();
        (0..TASKS).for_each(|_| sync.put_task(8));
        sync
    }

    pub(crate) fn twin(&self, arena: &Arena) -> Self {
        Self {
            rlock: RLock::open(arena, self.rlock.name()).unwrap(),
            semaphore: Semaphore::open(arena, self.semaphore.name()).unwrap(),
            signal: Semaphore::open(arena, self.signal.name()).unwrap(),
            condition: Condition::open(arena, self.condition.name()).unwrap(),
            event: Event::open(arena, self.event.name()).unwrap(),
            single: Barrier::open(arena, self.single.name()).unwrap(),
            pair: Barrier::open(arena, self.pair.name()).unwrap(),
            tasks: Queue::open_joinable(arena, self.tasks.name()).unwrap(),
            ahead: self.ahead,
        }
    }

    pub(crate) fn lock_twice(&self) {
        for _ in 0..2 {
            assert_eq!(
                self.rlock.acquire(Deadline::NEVER).unwrap(),
                Acquired::Clean
            );
        }
        self.rlock.release().unwrap();
        self.rlock.release().unwrap();
    }

    /// As a wait does with a condition's lock.
    pub(crate) fn unlock_for_a_wait(&self) {
        self.rlock.acquire(Deadline::NEVER).unwrap();
        let times = self.rlock.release_all().unwrap();
        let acquired = self.rlock.acquire_times(times, Deadline::NEVER).unwrap();
        assert_eq!((times, acquired), (1, Acquired::Clean));
        self.rlock.release().unwrap();
    }

    pub(crate) fn lock_briefly(&self) {
        assert_eq!(self.rlock.briefly(|| ()).unwrap(), Some(()));
    }

    pub(crate) fn take_permits(&self) {
        for permit in [Permit::Held, Permit::Acquired] {
            assert!(self.semaphore.acquire(permit, Deadline::NEVER).unwrap());
        }
        self.semaphore.keep().unwrap();
        for _ in 0..2 {
            self.semaphore.release(Permit::Acquired).unwrap();
        }
    }

    pub(crate) fn signal(&self) {
        assert!(
            self.signal
                .acquire(Permit::Acquired, Deadline::NEVER)
                .unwrap()
        );
        self.signal.release(Permit::Acquired).unwrap();
    }

    pub(crate) fn wait_and_notify(&self) {
        let [first, second] =
            [(); 2].map(|()| self.condition.enlist(Deadline::NEVER).unwrap().unwrap());
        assert_eq!(self.condition.notify(1).unwrap(), 1);
        assert!(first.wait(Deadline::now()).unwrap());
        assert!(first.leave());
        assert!(!second.leave());
    }

    pub(crate) fn set_and_clear(&self) {
        self.event.set().unwrap();
        assert!(self.event.wait(0, Deadline::NEVER).unwrap());
        self.event.clear().unwrap();
    }

    /// Goes through a barrier alone.
    pub(crate) fn pass(&self) {
        let party = self.single.come(Deadline::NEVER).unwrap().unwrap();
        assert!(party.acts() && party.end().unwrap());
    }

    /// Comes to a barrier where nobody else comes, and mends it.
    pub(crate) fn give_up(&self) {
        let party = self.pair.come(Deadline::NEVER).unwrap().unwrap();
        assert_eq!(party.wait(Deadline::now()).unwrap(), None);
        party.give_up().unwrap();
        self.pair.reset().unwrap();
    }

    pub(crate) fn put_task(&self, bytes: usize) {
        let put = again(|| self.tasks.put(0, &[&vec![7; bytes]], Deadline::NEVER));
        assert_eq!(put, Put::Stored);
    }

    pub(crate) fn get_task(&self) {
        assert!(again(|| self.tasks.get(Deadline::now())).is_some());
    }

    pub(crate) fn do_task(&self) {
        self.get_task();
        again(|| self.tasks.task_done());
    }

    /// Does all tasks that nobody has got.
    pub(crate) fn do_tasks(&self) {
        while again(|| self.tasks.get(Deadline::now())).is_some() {
            again(|| self.tasks.task_done());
        }
    }

    /// Waits until all tasks are done; gives how many were lost.
    pub(crate) fn join_tasks(&self) -> u64 {
        again(|| self.tasks.join(Deadline::NEVER)).unwrap()
    }

    /// Waits for the tasks, and takes one.
    pub(crate) fn try_tasks(&self, deadline: Deadline) {
        again(|| self.tasks.join(deadline));
        again(|| self.tasks.get(deadline));
    }

    /// Has the recursive lock, if nobody else has it until then.
    pub(crate) fn try_rlock(&self, deadline: Deadline) {
        if again(|| self.rlock.acquire(deadline)) != Acquired::TimedOut {
            self.rlock.release().unwrap();
        }
    }

    /// Takes a permit and a signal, and gives them back.
    pub(crate) fn try_permits(&self, deadline: Deadline) {
        let both = [
            (&self.semaphore, Permit::Held),
            (&self.signal, Permit::Acquired),
        ];
        for (semaphore, permit) in both {
            if again(|| semaphore.acquire(permit, deadline)) {
                again(|| semaphore.release(permit));
            }
        }
    }

    /// Waits for a notification.
    pub(crate) fn try_wait(&self, deadline: Deadline) {
        if let Some(waiting) = again(|| self.condition.enlist(deadline)) {
            again(|| waiting.wait(deadline));
            let _ = waiting.leave();
        }
    }

    pub(crate) fn try_event(&self, deadline: Deadline) {
        again(|| self.event.wait(self.event.count()?, deadline));
    }

    /// Goes through the barrier for one, if nobody is inside or it breaks.
    pub(crate) fn try_pass(&self, deadline: Deadline) {
        let come = again(|| match self.single.come(deadline) {
            Err(Error::Closed { .. }) => Ok(None),
            come => come,
        });
        if let Some(party) = come {
            let _ = party.end().unwrap();
        }
    }

    /// Everything can be used, and nothing is the dead's. All dead processes have been recovered.
    pub(crate) fn judge(&self) -> Result<(), &'static str> {
        if self.rlock.acquire(soon()).unwrap() == Acquired::TimedOut || self.rlock.count() != Ok(1)
        {
            return Err("the recursive lock is held");
        }
        self.rlock.release().unwrap();
        self.lock_twice();
        if self.semaphore.value().unwrap() != PERMITS {
            return Err("permits are gone");
        }
        if self.signal.value().unwrap() > 2 {
            return Err("a signal came from nowhere");
        }
        if self.condition.waiting().unwrap() != 0 {
            return Err("a dead process waits");
        }
        self.take_permits();
        self.wait_and_notify();
        self.set_and_clear();
        for barrier in [&self.single, &self.pair] {
            if barrier.waiting().unwrap() != 0 {
                return Err("a dead party waits");
            }
            barrier.reset().unwrap();
        }
        self.pass();
        self.give_up();
        self.judge_tasks()
    }

    /// What is unfinished waits in the queue; nobody who owes a task lives.
    fn judge_tasks(&self) -> Result<(), &'static str> {
        let (unfinished, waiting) = (self.tasks.unfinished().unwrap(), self.tasks.len().unwrap());
        if unfinished > waiting || waiting > unfinished + self.ahead {
            return Err("tasks of the dead aren't done, or others are");
        }
        for _ in 0..waiting - unfinished {
            self.get_task();
        }
        self.do_tasks();
        let Some(lost) = self.tasks.join(soon()).unwrap() else {
            return Err("a join waits for the dead");
        };
        if lost > TASKS || self.tasks.join(soon()) != Ok(Some(0)) {
            return Err("more tasks are lost than there were");
        }
        if self.tasks.task_done().is_ok() {
            return Err("more tasks are done than there were");
        }
        self.put_task(8);
        self.do_task();
        Ok(())
    }
}
