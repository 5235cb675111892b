//! Operations on the primitives of synchronisation and on plain memory.

use super::{Member, Operation};
use procession_core::{
    Arena, Barrier, Condition, Deadline, Error, Event, Memory, NamedMemory, Permit, RLock, Result,
    Semaphore,
};
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};

/// More than have room in a condition or a barrier itself.
const MANY: u32 = 50;
/// Semaphores have room in themselves for what the processes of so many places hold.
const PLACES: usize = 64;
/// Beyond what is warm in any window.
const LARGE: usize = 3 << 20;

/// One of each.
pub(super) struct Shared {
    rlock: RLock,
    semaphore: Semaphore,
    condition: Condition,
    event: Event,
    barrier: Barrier,
    memory: Memory,
}

impl Shared {
    pub(super) fn new(arena: &Arena) -> Result<Self> {
        Ok(Self {
            rlock: RLock::new(arena)?,
            semaphore: Semaphore::new(arena, 2, 2)?,
            condition: Condition::new(arena)?,
            event: Event::new(arena)?,
            barrier: Barrier::new(arena, MANY)?,
            memory: Memory::new(arena, 5_000)?,
        })
    }

    pub(super) fn open(&self, arena: &Arena) -> Result<Self> {
        Ok(Self {
            rlock: RLock::open(arena, self.rlock.name())?,
            semaphore: Semaphore::open(arena, self.semaphore.name())?,
            condition: Condition::open(arena, self.condition.name())?,
            event: Event::open(arena, self.event.name())?,
            barrier: Barrier::open(arena, self.barrier.name())?,
            memory: Memory::open(arena, self.memory.name())?,
        })
    }

    fn use_each(&self) -> Result<()> {
        self.rlock.acquire(Deadline::NEVER)?;
        self.rlock.release()?;
        self.semaphore.acquire(Permit::Held, Deadline::NEVER)?;
        self.semaphore.release(Permit::Held)?;
        self.event.set()?;
        self.event.clear()?;
        self.memory.bytes().write(0, b"bytes")?;
        self.wait(2)?;
        self.come(2)
    }

    fn wait(&self, many: u32) -> Result<()> {
        let waiting = (0..many).map(|_| self.condition.enlist(Deadline::NEVER));
        let waiting: Vec<_> = waiting.collect::<Result<_>>()?;
        assert_eq!(self.condition.notify(1)?, 1);
        drop(waiting);
        assert_eq!(self.condition.waiting(), Ok(0));
        Ok(())
    }

    fn come(&self, many: u32) -> Result<()> {
        let come = (0..many).map(|_| self.barrier.come(Deadline::NEVER));
        let come = come.collect::<Result<Vec<_>>>().map(drop);
        // They went without waiting, which broke it.
        self.barrier.reset()?;
        match come {
            // One of those who had come before is dead.
            Err(Error::Closed { .. }) => Ok(()),
            come => come,
        }
    }

    /// Nothing that was refused has left anything held or counted.
    pub(super) fn check(&self, what: &str) {
        assert_eq!(self.rlock.is_held(), Ok(false), "{what}");
        assert_eq!(self.semaphore.value(), Ok(2), "{what}");
        assert_eq!(self.condition.waiting(), Ok(0), "{what}");
        assert_eq!(self.barrier.waiting(), Ok(0), "{what}");
    }

    /// Where nobody died.
    pub(super) fn check_unbroken(&self, what: &str) {
        assert_eq!(self.barrier.is_broken(), Ok(false), "{what}");
    }

    /// Holds one of each, for a process that is about to die.
    pub(super) fn hold(&self) {
        self.rlock.acquire(Deadline::NEVER).unwrap();
        assert!(
            self.semaphore
                .acquire(Permit::Held, Deadline::NEVER)
                .unwrap()
        );
        std::mem::forget(self.condition.enlist(Deadline::NEVER).unwrap());
    }
}

pub(super) const OPERATIONS: &[Operation] = &[
    Operation {
        name: "make one of each primitive",
        lengths: &[],
        run: |m| Shared::new(&m.arena).map(drop),
    },
    Operation {
        name: "open one of each primitive",
        lengths: &[],
        run: |m| m.shared.open(&m.arena).map(drop),
    },
    Operation {
        name: "use one of each primitive",
        lengths: &[],
        run: |m| m.shared.use_each(),
    },
    Operation {
        name: "wait with many",
        lengths: &[],
        run: |m| m.shared.wait(MANY),
    },
    Operation {
        name: "come with many",
        lengths: &[],
        run: |m| m.shared.come(MANY - 1),
    },
    Operation {
        name: "take a permit in a late place",
        lengths: &[],
        run: take_a_permit_late,
    },
    Operation {
        name: "make and drop a memory",
        lengths: &[],
        run: |m| {
            let memory = Memory::new(&m.arena, LARGE)?;
            memory.bytes().write(LARGE - 5, b"bytes")
        },
    },
    Operation {
        name: "make and find a named memory",
        lengths: &[],
        run: make_and_find,
    },
];

/// As a process whose place has no cell in the semaphore itself.
fn take_a_permit_late(member: &Member) -> Result<()> {
    let places = (0..PLACES).map(|_| member.arena.reserve());
    let places: Vec<_> = places.collect::<Result<_>>()?;
    let copy = member.arena.descriptor().try_clone_to_owned().unwrap();
    let number = copy.into_raw_fd();
    let joined = Arena::attach(&places[PLACES - 1].token(number));
    // SAFETY: asks whether the number made above is open.
    if joined.is_err() && unsafe { libc::fcntl(number, libc::F_GETFD) } >= 0 {
        // It wasn't known for the arena's.
        // SAFETY: made above, and open still, so nobody has taken it over.
        drop(unsafe { OwnedFd::from_raw_fd(number) });
    }
    let semaphore = Semaphore::open(&joined?, member.shared.semaphore.name())?;
    assert!(semaphore.acquire(Permit::Held, Deadline::NEVER)?);
    semaphore.release(Permit::Held)
}

/// A name that is left behind is in the way of the next.
fn make_and_find(_: &Member) -> Result<()> {
    let name = format!("procession-refused-{}", std::process::id());
    let made = NamedMemory::create(Some(&name), 5_000)?;
    let found = NamedMemory::open(&name);
    made.unlink()?;
    assert_eq!(found?.bytes().len(), 5_000);
    Ok(())
}
