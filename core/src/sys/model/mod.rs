//! What stands under the engine in a model: loom's objects for shared memory, and a small kernel.
//!
//! A model runs the engine's own code. Only here, below everything that shared memory is read and written through, a
//! [`Word`](super::word::Word) becomes one of loom's atomics ([`memory`]), a sleep becomes a futex whose every order of
//! events is explored ([`futex`]), and a thread is a process that can die before any of its steps ([`process`]), after
//! which the kernel's work is done: its robust list is walked, and it is gone for whoever asks. What the engine asks the
//! system for goes through the seam that simulations use, too ([`system`]).
//!
//! Outside a model the same build uses the real memory and the real kernel, so the other tests run in it unchanged.
//! Source: the documentation of loom; futex(2); Documentation/locking/robust-futexes.rst.

mod atomic;
mod futex;
mod memory;
mod process;
mod scene;
mod system;

pub(crate) use atomic::fence;
pub(super) use atomic::{AtomicU32, AtomicU64};
pub(crate) use memory::{append, read, window, write};
pub(crate) use process::exit;
pub(super) use process::{is_running, note, peek, poke};
pub(crate) use scene::{Scene, explore, explore_deaths, explore_disturbed};

use futex::Futexes;
use memory::Memory;
use process::Processes;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// One execution of a model. Loom runs all of its threads on one thread of the system.
struct World {
    memory: Memory,
    futexes: Futexes,
    processes: Processes,
    time: Cell<Instant>,
}

impl World {
    fn new() -> Rc<Self> {
        Rc::new(Self {
            memory: Memory::default(),
            futexes: Futexes::default(),
            processes: Processes::default(),
            time: Cell::new(Instant::now()),
        })
    }

    /// Time passes when a scene says so, and while somebody waits awake.
    fn pass(&self, time: Duration) {
        self.time.set(self.time.get() + time);
        crate::deadline::pretend(Some(self.time.get()));
    }
}

thread_local! {
    static WORLD: RefCell<Option<Rc<World>>> = const { RefCell::new(None) };
}

/// What a model's thread finds when it touches something.
enum Now {
    /// No model runs on this thread: everything is real.
    Real,
    /// A panic, or the death of a process, unwinds the stack: nothing is touched any more.
    Unwinding,
    /// A model runs.
    In(Rc<World>),
}

fn now_in() -> Now {
    match WORLD.with_borrow(Clone::clone) {
        None => Now::Real,
        Some(_) if std::thread::panicking() => Now::Unwinding,
        Some(world) => Now::In(world),
    }
}
