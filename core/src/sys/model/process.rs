//! Processes of a model: each is one thread, may die before a chosen step, and is mourned by the kernel.
//!
//! Steps are what others can see, or could have: stores to shared memory and to the list's pending entry, sleeps and wakes.

use super::super::robust::{OWNER_DIED, TID, WAITERS};
use super::memory::{Op, perform, region_end};
use super::{Now, World, now_in};
use loom::sync::atomic::AtomicBool;
use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

/// Processes that a scene can have, the one that sets it up included: loom's limit of threads.
const MOST: usize = 5;
/// From one robust list's head to the next, in bytes.
const HEAD: usize = 64;
/// From a head to the pending entry.
const PENDING: usize = 16;
/// From an entry's link to its word, backwards.
const LINK: usize = 32;
/// The id of the first process and of its thread.
const FIRST_ID: u32 = 100;

/// The last breath of a process: what its stack is unwound with.
struct Died;

/// One process.
#[derive(Default)]
pub(super) struct Process {
    /// Steps that it may still take; none: any number.
    left: Cell<Option<u64>>,
    /// Whoever asks the system is told that it is gone. Known to loom, since the system orders the two.
    gone: OnceCell<AtomicBool>,
    /// Deaths that its timed sleeps have heard of.
    heard: Cell<u64>,
    /// Its robust list, by address: its own thread's business, and the kernel's at its death.
    links: RefCell<HashMap<usize, usize>>,
}

/// The processes of one execution.
#[derive(Default)]
pub(super) struct Processes {
    all: [Rc<Process>; MOST],
    /// For which process the only thread acts, while there is one.
    acting: Cell<usize>,
    deaths: Cell<u64>,
    /// The doomed one has died.
    pub(super) was_killed: Cell<bool>,
    /// Those that ended before their parts did.
    died: RefCell<Vec<usize>>,
}

loom::thread_local! {
    /// Which process the thread is.
    static SELF: Cell<usize> = Cell::new(0);
}

impl Processes {
    /// The one thread acts for that process from now on.
    pub(super) fn act_for(&self, process: usize) {
        self.acting.set(process);
    }

    /// Lets a process die before its n-th step from now, counted from one.
    pub(super) fn doom(&self, process: usize, step: u64) {
        self.all[process].left.set(Some(step - 1));
    }

    /// Makes what loom must know, before threads begin.
    pub(super) fn share(&self) {
        for (number, process) in self.all.iter().enumerate() {
            let is_gone = self.died.borrow().contains(&number);
            let _ = process.gone.set(AtomicBool::new(is_gone));
        }
    }
}

impl Process {
    /// Whether a process has died since the caller's last timed sleep that ended so.
    pub(super) fn hears_of_death(&self, world: &World) -> bool {
        let processes = &world.processes;
        let deaths = processes.deaths.get();
        let hears = self.heard.replace(deaths) < deaths;
        if hears {
            // Whoever looks so much later sees all that the dead and the kernel have stored.
            processes.all.iter().for_each(|process| {
                process.is_gone();
            });
        }
        hears
    }

    /// What the system says at this moment.
    fn is_gone(&self) -> bool {
        let gone = |gone: &AtomicBool| gone.fetch_or(false, AcqRel);
        self.gone.get().is_some_and(gone)
    }

    fn link_at(&self, address: usize) -> usize {
        self.links.borrow().get(&address).copied().unwrap_or(0)
    }
}

impl World {
    /// The number of the calling process.
    pub(super) fn number(&self) -> usize {
        if self.memory.is_shared() {
            SELF.with(Cell::get)
        } else {
            self.processes.acting.get()
        }
    }

    /// The calling process.
    pub(super) fn current(&self) -> Rc<Process> {
        self.processes.all[self.number()].clone()
    }

    /// The calling process' id, and its thread's.
    pub(super) fn id(&self) -> u32 {
        FIRST_ID + u32::try_from(self.number()).unwrap_or(u32::MAX)
    }

    /// Where the head of the calling thread's robust list is.
    pub(super) fn head(&self) -> usize {
        let head = region_end() + self.number() * HEAD + 8;
        // An empty list is a head that names itself.
        let process = self.current();
        process.links.borrow_mut().entry(head).or_insert(head);
        head
    }

    /// Before a step of the calling process.
    pub(super) fn point(&self) {
        let process = self.current();
        match process.left.get() {
            None => {}
            Some(0) => {
                self.processes.was_killed.set(self.memory.is_shared());
                self.die();
            }
            Some(left) => process.left.set(Some(left - 1)),
        }
    }

    /// Ends the calling process as SIGKILL does, and its part.
    fn die(&self) -> ! {
        self.bury();
        resume_unwind(Box::new(Died));
    }

    /// The end of the calling process: the kernel walks its robust list, then it is gone, then time passes.
    pub(super) fn bury(&self) {
        let process = self.current();
        process.left.set(None);
        self.mourn(&process);
        if let (true, Some(gone)) = (self.memory.is_shared(), process.gone.get()) {
            gone.store(true, Release);
        }
        let processes = &self.processes;
        processes.died.borrow_mut().push(self.number());
        processes.deaths.set(processes.deaths.get() + 1);
        self.end_timeouts();
    }

    /// Source: `exit_robust_list` of the kernel's kernel/futex/core.c.
    fn mourn(&self, process: &Process) {
        let head = self.head();
        let (mut entry, pending) = (process.link_at(head), process.link_at(head + PENDING));
        while entry != head {
            let next = process.link_at(entry);
            if entry != pending {
                self.mark(entry - LINK, false);
            }
            entry = next;
        }
        if pending != 0 {
            self.mark(pending - LINK, true);
        }
    }

    /// Source: `handle_futex_death`, in the same file.
    fn mark(&self, word: usize, is_pending: bool) {
        loop {
            let value = self.kernels_view(word);
            if is_pending && value == 0 {
                self.wake_at(word, 1);
                return;
            }
            if value & TID != self.id() {
                return;
            }
            let marked = value & WAITERS | OWNER_DIED;
            let replace = Op::Replace(value.into(), marked.into(), Relaxed);
            if perform(word, 4, replace, AcqRel) == Some(value.into()) {
                if value & WAITERS != 0 {
                    self.wake_at(word, 1);
                }
                return;
            }
        }
    }

    fn kernels_view(&self, word: usize) -> u32 {
        if self.memory.is_shared() {
            return self.memory.newest(word);
        }
        let value = perform(word, 4, Op::Load, Acquire).unwrap_or(0);
        u32::try_from(value).unwrap_or(0)
    }

    /// Whether the process of that id is gone for whoever asks the system.
    pub(super) fn is_over(&self, id: u32) -> bool {
        let number = id.wrapping_sub(FIRST_ID) as usize;
        let Some(process) = self.processes.all.get(number) else {
            return true;
        };
        if self.memory.is_shared() {
            process.is_gone()
        } else {
            self.processes.died.borrow().contains(&number)
        }
    }
}

/// Runs `part` as that process; what it gives, or `None` if it died.
pub(super) fn run<T>(process: usize, part: impl FnOnce() -> T) -> Option<T> {
    SELF.with(|number| number.set(process));
    unless_dead(part)
}

/// What `part` gives, or `None` if the process died in it.
pub(super) fn unless_dead<T>(part: impl FnOnce() -> T) -> Option<T> {
    match catch_unwind(AssertUnwindSafe(part)) {
        Ok(result) => Some(result),
        Err(payload) if payload.is::<Died>() => None,
        Err(payload) => resume_unwind(payload),
    }
}

/// Ends the calling process in its part, as an exit does.
pub(crate) fn exit() -> ! {
    let Now::In(world) = now_in() else {
        unreachable!("a part is part of a model");
    };
    world.die()
}

/// Whether a model runs.
pub(in super::super) fn is_running() -> bool {
    !matches!(now_in(), Now::Real)
}

/// A link of the calling thread's robust list; `None` if no model runs.
pub(in super::super) fn peek(address: usize) -> Option<usize> {
    match now_in() {
        Now::Real => None,
        Now::Unwinding => Some(0),
        Now::In(world) => Some(world.current().link_at(address)),
    }
}

/// Changes one; false if no model runs. A step if it is the pending entry: a death between two stores to the links of the
/// list leaves what one before or after both does.
pub(in super::super) fn poke(address: usize, value: usize) -> bool {
    match now_in() {
        Now::Real => return false,
        Now::Unwinding => {}
        Now::In(world) => {
            if address == world.head() + PENDING {
                world.point();
            }
            note(address, value);
        }
    }
    true
}

/// Notes a link that is stored to shared memory as well.
pub(in super::super) fn note(address: usize, value: usize) {
    if let Now::In(world) = now_in() {
        world.current().links.borrow_mut().insert(address, value);
    }
}
