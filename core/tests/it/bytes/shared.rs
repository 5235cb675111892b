//! The primitives of synchronisation and plain memory: in many states, and every call there is.

use super::said;
use procession_core::{
    Arena, Barrier, Condition, Deadline, Event, Memory, Permit, RLock, Semaphore,
};
use std::time::Duration;

/// One of each, and a second one where another state is worth a look.
#[derive(Debug)]
pub(crate) struct Shared {
    rlocks: [RLock; 2],
    semaphores: [Semaphore; 2],
    conditions: [Condition; 2],
    event: Event,
    barriers: [Barrier; 2],
    memory: Memory,
}

/// More than have room in a condition itself.
const MANY: usize = 50;
/// More than a page.
const BYTES: usize = 5_000;

impl Shared {
    /// In many states; `die_in` leaves a process dead in the middle of what it is given.
    pub(crate) fn new(arena: &Arena, die_in: impl Fn(&dyn Fn())) -> Self {
        let never = Deadline::NEVER;
        let all = Self {
            rlocks: [(); 2].map(|()| RLock::new(arena).unwrap()),
            semaphores: [3, 0].map(|free| Semaphore::new(arena, free, 100).unwrap()),
            conditions: [(); 2].map(|()| Condition::new(arena).unwrap()),
            event: Event::new(arena).unwrap(),
            barriers: [3, 1].map(|parties| Barrier::new(arena, parties).unwrap()),
            memory: Memory::new(arena, BYTES).unwrap(),
        };
        for _ in 0..3 {
            all.rlocks[0].acquire(never).unwrap();
        }
        let [permits, signals] = &all.semaphores;
        permits.acquire(Permit::Held, never).unwrap();
        signals.release(Permit::Acquired).unwrap();
        // They wait, for ever.
        std::mem::forget(all.conditions[0].enlist(never).unwrap());
        for _ in 0..MANY {
            std::mem::forget(all.conditions[1].enlist(never).unwrap());
        }
        all.conditions[1].notify(1).unwrap();
        all.event.set().unwrap();
        std::mem::forget(all.barriers[0].come(never).unwrap());
        std::mem::forget(all.barriers[1].come(never).unwrap());
        all.memory.bytes().write(0, b"bytes").unwrap();
        die_in(&|| {
            all.rlocks[1].acquire(never).unwrap();
            all.rlocks[1].acquire(never).unwrap();
            permits.acquire(Permit::Acquired, never).unwrap();
            std::mem::forget(all.conditions[0].enlist(never).unwrap());
        });
        die_in(&|| std::mem::forget(all.barriers[0].come(never)));
        die_in(&|| drop(Memory::new(arena, BYTES)));
        all
    }

    /// Makes every call on those of the same names in another arena.
    pub(crate) fn exercise(&self, arena: &Arena) {
        let locks = self.rlocks.iter();
        locks.for_each(|it| use_rlock(RLock::open(arena, it.name())));
        let semaphores = self.semaphores.iter();
        semaphores.for_each(|it| use_semaphore(Semaphore::open(arena, it.name())));
        let conditions = self.conditions.iter();
        conditions.for_each(|it| use_condition(Condition::open(arena, it.name())));
        use_event(Event::open(arena, self.event.name()));
        let barriers = self.barriers.iter();
        barriers.for_each(|it| use_barrier(Barrier::open(arena, it.name())));
        use_memory(Memory::open(arena, self.memory.name()));
        use_memory(Memory::new(arena, BYTES));
    }
}

/// Most of these calls wait for what doesn't come.
fn soon() -> Deadline {
    Deadline::after(Duration::from_micros(50))
}

type Opened<T> = procession_core::Result<T>;

fn use_rlock(lock: Opened<RLock>) {
    let Some(lock) = said(lock) else { return };
    said(lock.count());
    said(lock.is_held());
    said(lock.is_in_this_process());
    said(lock.acquire(soon()));
    said(lock.try_acquire());
    said(lock.briefly(|| ()));
    said(lock.release());
    if let Some(times) = said(lock.release_all()) {
        said(lock.acquire_times(times, soon()));
        said(lock.release_all());
    }
    said(lock.escape());
}

fn use_semaphore(semaphore: Opened<Semaphore>) {
    let Some(semaphore) = said(semaphore) else {
        return;
    };
    said(semaphore.value());
    said(semaphore.limit());
    said(semaphore.taken());
    for permit in [Permit::Held, Permit::Acquired] {
        said(semaphore.acquire(permit, soon()));
        said(semaphore.try_acquire(permit));
        said(semaphore.keep());
        said(semaphore.release(permit));
        said(semaphore.release(permit));
    }
    said(semaphore.escape());
}

fn use_condition(condition: Opened<Condition>) {
    let Some(condition) = said(condition) else {
        return;
    };
    said(condition.waiting());
    let waiting = said(condition.enlist(soon())).flatten();
    said(condition.notify(2));
    if let Some(waiting) = waiting {
        said(waiting.wait(soon()));
        let _ = waiting.leave();
    }
    drop(said(condition.enlist(soon())));
    said(condition.notify(usize::MAX));
    said(condition.escape());
}

fn use_event(event: Opened<Event>) {
    let Some(event) = said(event) else { return };
    said(event.is_set());
    let count = said(event.count()).unwrap_or(0);
    said(event.clear());
    said(event.wait(count, soon()));
    said(event.set());
    said(event.wait(count, soon()));
    said(event.escape());
}

fn use_barrier(barrier: Opened<Barrier>) {
    let Some(barrier) = said(barrier) else { return };
    said(barrier.parties());
    said(barrier.waiting());
    said(barrier.is_broken());
    for _ in 0..2 {
        if let Some(party) = said(barrier.come(soon())).flatten() {
            if party.acts() {
                said(party.end());
            } else {
                said(party.wait(soon()));
                said(party.give_up());
            }
        }
        said(barrier.reset());
    }
    drop(said(barrier.come(soon())));
    said(barrier.abort());
    said(barrier.escape());
}

fn use_memory(memory: Opened<Memory>) {
    let Some(memory) = said(memory) else { return };
    let bytes = memory.bytes();
    // As long as it says, but no more than there is.
    let mut all = vec![0; bytes.len()];
    said(bytes.read(0, &mut all));
    said(bytes.write(bytes.len().saturating_sub(5), b"bytes"));
    let last = bytes.len().wrapping_sub(8);
    let _ = (bytes.u64_at(last), bytes.u8_at(last), bytes.i32_at(0));
    said(memory.escape());
}
