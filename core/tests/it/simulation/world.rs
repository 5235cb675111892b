//! A machine in one thread: processes whose every step a seed decides, a clock of its own, futexes, and a kernel that
//! marks what the dead held.
//!
//! Each process is a coroutine. It loses its turn at hooks before its loads, stores and calls of the system, so the
//! engine is the real one, on real memory that each process has mapped for itself. A process that is killed never
//! runs again; what the kernel does at its death is done step by step, while others go on. Its stack is unwound when
//! the case is over, on memory that nobody looks at any more.

use crate::child::Random;
use corosensei::stack::DefaultStack;
use corosensei::{Coroutine, CoroutineResult, Yielder};
use procession_core::deadline::pretend;
use procession_core::sys::simulation::{Entered, System, enter};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::panic::Location;
use std::rc::Rc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

const MICROSECOND: u64 = 1_000;
const MILLISECOND: u64 = 1_000_000;
/// Nanoseconds that a step takes.
const TICK: u64 = 20;
/// Nanoseconds that an offer of the processor takes when nobody takes it up.
const OFFER: u64 = 300;
/// More steps than any case takes: one that takes more goes round for ever.
const STEPS_MAX: u64 = 4_000_000;
/// Bytes of a process' stack.
const STACK: usize = 512 << 10;
/// From a link of a robust list to its word.
const WORD_BEFORE_LINK: usize = 32;

/// In the key of a word that isn't in the arena.
const OWN_MEMORY: u64 = 1 << 63;

const OWNER_DIED: u32 = 0x4000_0000;
const WAITERS: u32 = 0x8000_0000;
const TID: u32 = 0x3fff_ffff;

/// How rough a world is. Each number is a mean of steps between two such events; 0: never.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Roughness {
    /// Another process gets the turn.
    pub(crate) switch: u64,
    /// A process isn't run for a while, as on a loaded machine.
    pub(crate) delay: u64,
    /// A process is stopped for up to three seconds.
    pub(crate) stop: u64,
    /// A process is killed.
    pub(crate) kill: u64,
    /// A sleeper wakes up for no reason, or for a signal.
    pub(crate) spurious: u64,
    /// Whether a process may wait awake for another.
    pub(crate) several_processors: bool,
}

/// Names a process of a world, in the order of their starts.
pub(crate) type Name = usize;

enum Event {
    Switch,
    Delay,
    Stop,
    Kill,
    Spurious,
}

/// Why a coroutine gave its turn up.
#[derive(Debug, Clone, Copy)]
enum Turn {
    Over,
    Killed,
}

/// What a process is up to.
#[derive(Debug, Clone, Copy)]
enum Phase {
    /// Runs, or may.
    Ready,
    /// Sleeps on a word, until woken or timed out.
    Sleeps(Sleep),
    /// Was stopped in its sleep: looks at the word again when it goes on, as the kernel has it.
    Restarts(Sleep),
    /// The kernel is at its end: the address of the link of its list that comes next.
    Dying(usize),
    /// Gone, as far as others can see.
    Gone,
}

#[derive(Debug, Clone, Copy)]
struct Sleep {
    /// Where the word lies in the arena, or in this process' own memory.
    key: u64,
    word: usize,
    value: u32,
    until: Option<u64>,
    /// Counts the sleeps of all: who slept first is woken first.
    turn: u64,
}

type Stack = Coroutine<(), Turn, (), DefaultStack>;

struct Process {
    pid: u32,
    started: u64,
    /// The robust list's head, as the C library and the kernel have it: the last link, the first link, the distance,
    /// the pending link.
    head: Box<[Cell<usize>; 4]>,
    phase: Phase,
    /// It doesn't run before this.
    not_before: u64,
    /// It is stopped until then.
    stopped: u64,
    /// What its sleep ended with.
    outcome: i32,
    /// It was killed, or stopped sleeping, or ended.
    dead: bool,
    mortal: bool,
    /// Nanoseconds for which others, or nobody, had its turn.
    kept: u64,
    /// Steps until it is killed; 0: not planned.
    fuse: u64,
    coroutine: Option<Stack>,
    yielder: *const Yielder<(), Turn>,
}

struct Mapping {
    address: usize,
    bytes: usize,
    offset: u64,
}

struct State {
    random: Random,
    roughness: Roughness,
    base: Instant,
    now: u64,
    steps: u64,
    /// Steps until the next event of each kind.
    until: [u64; 5],
    trace: u64,
    sleeps: u64,
    processes: Vec<Process>,
    running: Option<Name>,
    mappings: BTreeMap<usize, Mapping>,
    pids: u32,
    /// The case is over, and stacks are unwound.
    over: bool,
    kills: u64,
}

/// The machine.
pub(crate) struct World {
    state: RefCell<State>,
}

thread_local! {
    static STACKS: RefCell<Vec<DefaultStack>> = const { RefCell::new(Vec::new()) };
}

impl Random {
    /// A number whose magnitude is even between the two.
    fn magnitude(&mut self, from: u64, to: u64) -> u64 {
        let bits = u64::from((to / from).ilog2()) + 1;
        let scale = from << self.below(bits);
        (scale + self.below(scale)).min(to)
    }

    fn gap(&mut self, mean: u64) -> u64 {
        if mean == 0 {
            u64::MAX
        } else {
            1 + self.below(2 * mean)
        }
    }
}

impl State {
    fn gaps(&mut self) {
        let rough = self.roughness;
        let means = [
            rough.switch,
            rough.delay,
            rough.stop,
            rough.kill,
            rough.spurious,
        ];
        self.until = means.map(|mean| self.random.gap(mean));
    }

    fn advance(&mut self, nanoseconds: u64) {
        self.set_now(self.now + nanoseconds);
    }

    fn set_now(&mut self, now: u64) {
        self.now = now;
        pretend(Some(self.base + Duration::from_nanos(now)));
    }

    fn note(&mut self, what: u64) {
        self.trace = (self.trace ^ what).wrapping_mul(0x0100_0000_01b3);
    }

    /// What happens before the next step of the running process.
    fn event(&mut self) -> Option<Event> {
        let kinds = [
            Event::Switch,
            Event::Delay,
            Event::Stop,
            Event::Kill,
            Event::Spurious,
        ];
        let rough = self.roughness;
        let means = [
            rough.switch,
            rough.delay,
            rough.stop,
            rough.kill,
            rough.spurious,
        ];
        let mut happens = None;
        for ((until, kind), mean) in self.until.iter_mut().zip(kinds).zip(means) {
            *until -= 1;
            if *until == 0 {
                *until = self.random.gap(mean);
                happens = Some(kind);
            }
        }
        happens
    }

    fn key(&self, word: usize) -> u64 {
        let below = self.mappings.range(..=word).next_back();
        match below {
            Some((_, map)) if word < map.address + map.bytes => {
                map.offset + (word - map.address) as u64
            }
            // Not in the arena: the process' own.
            _ => OWN_MEMORY | word as u64,
        }
    }

    fn wake(&mut self, key: u64, count: u32) -> usize {
        let mut sleepers: Vec<(u64, Name)> = Vec::new();
        for (name, process) in self.processes.iter().enumerate() {
            if let Phase::Sleeps(sleep) = process.phase
                && sleep.key == key
            {
                sleepers.push((sleep.turn, name));
            }
        }
        sleepers.sort_unstable();
        sleepers.truncate(count as usize);
        let woken = sleepers.len();
        for (_, name) in sleepers {
            // Mostly at once; now and then as on a loaded machine.
            let most = if self.random.below(8) == 0 {
                20 * MILLISECOND
            } else {
                50 * MICROSECOND
            };
            let late = self.random.magnitude(MICROSECOND, most);
            self.rouse(name, 0, late);
        }
        woken
    }

    /// Ends the sleep of a process, which runs in a while.
    fn rouse(&mut self, name: Name, outcome: i32, late: u64) {
        self.note(0xA0 + name as u64);
        let now = self.now;
        let process = &mut self.processes[name];
        process.phase = Phase::Ready;
        process.outcome = outcome;
        process.not_before = process.not_before.max(now + late);
        process.kept += late;
    }

    fn is_mortal(&self, name: Name) -> bool {
        let process = &self.processes[name];
        process.mortal && !process.dead
    }

    /// An id for a new process: now and then one that was another's before, who has been waited for.
    fn free_pid(&mut self) -> u32 {
        let gone =
            |process: &&Process| matches!(process.phase, Phase::Gone) && process.is_waited_for();
        let old = self.processes.iter().find(gone).map(|process| process.pid);
        let is_taken = |pid: u32| {
            let mut others = self.processes.iter();
            others.any(|process| process.pid == pid && !matches!(process.phase, Phase::Gone))
        };
        if let Some(pid) = old.filter(|pid| !is_taken(*pid))
            && self.random.below(2) == 0
        {
            return pid;
        }
        self.pids += 1;
        self.pids
    }

    fn someone(&mut self, is_fit: impl Fn(&Self, Name) -> bool) -> Option<Name> {
        let fit: Vec<Name> = (0..self.processes.len())
            .filter(|name| is_fit(self, *name))
            .collect();
        let count = fit.len() as u64;
        (count > 0).then(|| fit[usize::try_from(self.random.below(count)).unwrap()])
    }

    /// Keeps a process from running, and has it look again if it sleeps.
    fn stop(&mut self, name: Name, nanoseconds: u64) {
        let now = self.now;
        let process = &mut self.processes[name];
        process.not_before = process.not_before.max(now + nanoseconds);
        process.kept += nanoseconds;
        if let Phase::Sleeps(sleep) = process.phase {
            process.phase = Phase::Restarts(sleep);
        }
    }

    /// Begins the end of a process, whether it runs, sleeps or is stopped.
    fn die(&mut self, name: Name) {
        self.note(0xDEAD + name as u64);
        let late = self.random.magnitude(MICROSECOND, 200 * MICROSECOND);
        let now = self.now;
        let process = &mut self.processes[name];
        process.dead = true;
        process.phase = Phase::Dying(process.head[1].get());
        process.not_before = now + late;
    }

    /// The kernel's next step at a process' end: a link of its list, then what was pending, then it is gone.
    fn end(&mut self, name: Name, link: usize) {
        let process = &self.processes[name];
        let head = process.head[1].as_ptr().addr();
        let (pid, pending) = (process.pid, process.head[3].get());
        let next = if link == head {
            if pending != 0 {
                self.mark(pending - WORD_BEFORE_LINK, pid, true);
            }
            Phase::Gone
        } else {
            // The kernel, too, reads where to go on before it marks.
            // SAFETY: the process' own list, in memory that stays mapped until the case is over.
            let next = unsafe { std::ptr::with_exposed_provenance::<usize>(link).read_volatile() };
            if link != pending {
                self.mark(link - WORD_BEFORE_LINK, pid, false);
            }
            Phase::Dying(next)
        };
        let late = self.random.magnitude(MICROSECOND, 100 * MICROSECOND);
        let now = self.now;
        let process = &mut self.processes[name];
        process.phase = next;
        process.not_before = now + late;
    }

    /// What `handle_futex_death` of the kernel's kernel/futex/core.c does to a word.
    fn mark(&mut self, word: usize, tid: u32, is_pending: bool) {
        let key = self.key(word);
        let place = std::ptr::with_exposed_provenance_mut::<u32>(word);
        // SAFETY: as the list says, a word of the arena, mapped until the case is over.
        let atomic = unsafe { AtomicU32::from_ptr(place) };
        let value = atomic.load(Ordering::SeqCst);
        if is_pending && value & TID == 0 {
            self.wake(key, 1);
        } else if value & TID == tid {
            atomic.store(value & WAITERS | OWNER_DIED, Ordering::SeqCst);
            if value & WAITERS != 0 {
                self.wake(key, 1);
            }
        }
    }
}

impl World {
    pub(crate) fn new(seed: u64, roughness: Roughness) -> Rc<Self> {
        let mut state = State {
            random: Random::new(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15)),
            roughness,
            base: Instant::now(),
            now: 0,
            steps: 0,
            until: [u64::MAX; 5],
            trace: 0xCBF2_9CE4_8422_2325,
            sleeps: 0,
            processes: Vec::new(),
            running: None,
            mappings: BTreeMap::new(),
            pids: 100,
            over: false,
            kills: 0,
        };
        for _ in 0..8 {
            state.random.below(2);
        }
        state.gaps();
        Rc::new(Self {
            state: RefCell::new(state),
        })
    }

    /// Starts a process, which may be killed if it is `mortal`.
    pub(crate) fn start(&self, mortal: bool, work: impl FnOnce(Name) + 'static) -> Name {
        let stack = STACKS.with_borrow_mut(Vec::pop);
        let stack = stack.unwrap_or_else(|| DefaultStack::new(STACK).unwrap());
        let mut state = self.state.borrow_mut();
        let name = state.processes.len();
        let head = Box::new([const { Cell::new(0) }; 4]);
        let address = head[1].as_ptr().expose_provenance();
        head[0].set(address);
        head[1].set(address);
        head[2].set(WORD_BEFORE_LINK.wrapping_neg());
        let (pid, now) = (state.free_pid(), state.now);
        state.processes.push(Process {
            pid,
            started: now + 1,
            head,
            phase: Phase::Ready,
            not_before: now,
            stopped: 0,
            outcome: 0,
            dead: false,
            mortal,
            kept: 0,
            fuse: 0,
            coroutine: None,
            yielder: std::ptr::null(),
        });
        let this = std::ptr::from_ref(self);
        let coroutine = Coroutine::with_stack(stack, move |yielder, ()| {
            // SAFETY: a world outlives the processes in it: it unwinds them before it goes.
            let world = unsafe { &*this };
            world.state.borrow_mut().processes[name].yielder = yielder;
            work(name);
        });
        state.processes[name].coroutine = Some(coroutine);
        name
    }

    /// Runs processes until all are gone. Panics as they do, or when they sleep for ever.
    pub(crate) fn run(self: &Rc<Self>) {
        let entered = enter(Rc::<Self>::clone(self));
        self.state.borrow_mut().advance(0);
        while let Some(name) = self.next() {
            self.resume(name);
        }
        self.unwind(entered);
    }

    /// The process that runs next, with the clock as far as it takes; none when all are gone.
    fn next(&self) -> Option<Name> {
        loop {
            let mut state = self.state.borrow_mut();
            let now = state.now;
            let ready: Vec<Name> = (0..state.processes.len())
                .filter(|name| {
                    let process = &state.processes[*name];
                    process.not_before <= now
                        && match process.phase {
                            Phase::Ready | Phase::Restarts(_) | Phase::Dying(_) => true,
                            Phase::Sleeps(sleep) => sleep.until.is_some_and(|until| until <= now),
                            Phase::Gone => false,
                        }
                })
                .collect();
            if ready.is_empty() {
                let later = state.processes.iter().filter_map(Process::next_at).min();
                let Some(later) = later else {
                    assert!(
                        state
                            .processes
                            .iter()
                            .all(|process| matches!(process.phase, Phase::Gone)),
                        "all sleep, and nothing will wake them"
                    );
                    return None;
                };
                state.set_now(later.max(now));
                continue;
            }
            let count = ready.len() as u64;
            let name = ready[usize::try_from(state.random.below(count)).unwrap()];
            state.note(0xC0 + name as u64);
            match state.processes[name].phase {
                Phase::Ready => {
                    return Some(name);
                }
                Phase::Sleeps(_) => {
                    let slack = state.random.below(60 * MICROSECOND);
                    state.rouse(name, libc::ETIMEDOUT, slack);
                }
                Phase::Restarts(sleep) => {
                    let place = std::ptr::with_exposed_provenance_mut::<u32>(sleep.word);
                    // SAFETY: the process sleeps on it, so it is there.
                    let value = unsafe { AtomicU32::from_ptr(place) }.load(Ordering::SeqCst);
                    if value == sleep.value {
                        state.processes[name].phase = Phase::Sleeps(sleep);
                    } else {
                        state.rouse(name, libc::EAGAIN, 0);
                    }
                }
                Phase::Dying(link) => state.end(name, link),
                Phase::Gone => {}
            }
        }
    }

    fn resume(&self, name: Name) {
        let mut coroutine = {
            let mut state = self.state.borrow_mut();
            state.running = Some(name);
            state.processes[name].coroutine.take().unwrap()
        };
        let result = coroutine.resume(());
        let mut state = self.state.borrow_mut();
        state.running = None;
        match result {
            CoroutineResult::Yield(Turn::Over) => {}
            CoroutineResult::Yield(Turn::Killed) => state.die(name),
            CoroutineResult::Return(()) => {
                // As at any end, the kernel looks at what is in the thread's list.
                state.die(name);
                STACKS.with_borrow_mut(|stacks| stacks.push(coroutine.into_stack()));
                return;
            }
        }
        state.processes[name].coroutine = Some(coroutine);
    }

    /// Unwinds the stacks of the killed, and unmaps what they had.
    fn unwind(&self, entered: Entered) {
        self.state.borrow_mut().over = true;
        let names = 0..self.state.borrow().processes.len();
        for name in names {
            let coroutine = self.state.borrow_mut().processes[name].coroutine.take();
            self.state.borrow_mut().running = Some(name);
            if let Some(mut coroutine) = coroutine {
                coroutine.force_unwind();
                STACKS.with_borrow_mut(|stacks| stacks.push(coroutine.into_stack()));
            }
        }
        drop(entered);
        for (_, mapping) in std::mem::take(&mut self.state.borrow_mut().mappings) {
            let address = std::ptr::with_exposed_provenance_mut(mapping.address);
            // SAFETY: of a member that was dropped by now, and left it mapped for lack of a thread's list.
            unsafe { libc::munmap(address, mapping.bytes) };
        }
    }

    /// Gives up the turn of the running process.
    fn give_up(&self, turn: Turn) {
        let yielder = {
            let state = self.state.borrow();
            state.running.map(|name| state.processes[name].yielder)
        };
        if let Some(yielder) = yielder {
            // SAFETY: the running coroutine's own, which lives on its stack.
            unsafe { &*yielder }.suspend(turn);
        }
    }

    /// Whether steps mean nothing: outside of processes, or on the way out.
    fn is_quiet(&self) -> bool {
        self.state.try_borrow().map_or(true, |state| {
            state.over || state.running.is_none() || std::thread::panicking()
        })
    }

    fn with_running<T>(&self, ask: impl FnOnce(&mut Process) -> T) -> Option<T> {
        let mut state = self.state.borrow_mut();
        let name = state.running?;
        Some(ask(&mut state.processes[name]))
    }

    /// Nanoseconds since the world began.
    pub(crate) fn now(&self) -> u64 {
        self.state.borrow().now
    }

    /// A number below the limit, for who runs now.
    pub(crate) fn below(&self, limit: u64) -> u64 {
        self.state.borrow_mut().random.below(limit)
    }

    /// Nanoseconds for which the running process was kept from running.
    pub(crate) fn kept(&self) -> u64 {
        self.with_running(|process| process.kept).unwrap_or(0)
    }

    /// The running process waits, without asking anybody to wake it.
    pub(crate) fn pause(&self, nanoseconds: u64) {
        let now = self.now();
        self.with_running(|process| process.not_before = now + nanoseconds);
        self.give_up(Turn::Over);
    }

    /// Whether a process was killed, or has ended: at once, though others see it only later.
    pub(crate) fn is_dead(&self, name: Name) -> bool {
        self.state.borrow().processes[name].dead
    }

    /// Whether others can see that a process is gone.
    pub(crate) fn is_seen_dead(&self, name: Name) -> bool {
        matches!(self.state.borrow().processes[name].phase, Phase::Gone)
    }

    /// Whether a process sleeps on a word, and isn't stopped.
    pub(crate) fn sleeps(&self, name: Name) -> bool {
        matches!(self.state.borrow().processes[name].phase, Phase::Sleeps(_))
    }

    /// Ends the running process as a kill does.
    pub(crate) fn kill_me(&self) {
        self.give_up(Turn::Killed);
    }

    /// Has nobody be killed, stopped, delayed or woken for nothing from now on.
    pub(crate) fn calm(&self) {
        let mut state = self.state.borrow_mut();
        let rough = state.roughness;
        state.roughness = Roughness {
            switch: rough.switch,
            several_processors: rough.several_processors,
            ..Roughness::default()
        };
        state.gaps();
    }

    /// Has the running process die at its n-th step from now, counted from one; 0: not any more.
    pub(crate) fn arm(&self, steps: u64) {
        self.with_running(|process| process.fuse = steps);
    }

    /// What came of the seed, in one number; and how many steps and kills there were.
    pub(crate) fn trace(&self) -> (u64, u64, u64) {
        let state = self.state.borrow();
        (state.trace, state.steps, state.kills)
    }

    /// Leaves a world that has failed as it is: nothing in it can be trusted to unwind.
    pub(crate) fn abandon(&self) {
        for process in &mut self.state.borrow_mut().processes {
            std::mem::forget(process.coroutine.take());
        }
    }
}

impl Process {
    /// Whether its parent waits for it once it is gone, so that its id is free again; half of all parents do.
    fn is_waited_for(&self) -> bool {
        self.pid % 2 == 1
    }

    /// When it may run, or be run for, at the earliest; `None` when nothing but another process can do it.
    fn next_at(&self) -> Option<u64> {
        match self.phase {
            Phase::Ready | Phase::Restarts(_) | Phase::Dying(_) => Some(self.not_before),
            Phase::Sleeps(sleep) => sleep.until.map(|until| until.max(self.not_before)),
            Phase::Gone => None,
        }
    }
}

impl World {
    /// Before a step of the running process: whether it goes on, gives its turn up, or dies.
    fn before_step(&self, site: &'static Location<'static>) -> Option<Turn> {
        let mut state = self.state.borrow_mut();
        let name = state.running?;
        state.steps += 1;
        assert!(state.steps < STEPS_MAX, "no end after {STEPS_MAX} steps");
        state.advance(TICK);
        state.note(u64::from(site.line()) << 8 | name as u64);
        let process = &mut state.processes[name];
        if process.fuse > 0 {
            process.fuse -= 1;
            if process.fuse == 0 {
                state.kills += 1;
                return Some(Turn::Killed);
            }
        }
        match state.event()? {
            Event::Switch => {}
            Event::Delay => {
                let late = state.random.magnitude(MICROSECOND, 20 * MILLISECOND);
                state.stop(name, late);
            }
            Event::Stop => {
                let who = state.someone(|state, who| !state.processes[who].dead)?;
                let long = state.random.magnitude(MILLISECOND, 3_000 * MILLISECOND);
                state.stop(who, long);
                state.processes[who].stopped = state.now + long;
                return (who == name).then_some(Turn::Over);
            }
            Event::Kill => {
                // Half of the kills hit who runs: most of the others sleep.
                let who = if state.random.below(2) == 0 && state.is_mortal(name) {
                    name
                } else {
                    state.someone(Self::mortal)?
                };
                state.kills += 1;
                if who == name {
                    return Some(Turn::Killed);
                }
                state.die(who);
                return None;
            }
            Event::Spurious => {
                let sleeps = |state: &State, who: Name| {
                    matches!(state.processes[who].phase, Phase::Sleeps(_))
                };
                let who = state.someone(sleeps)?;
                let outcome = [0, 0, libc::EINTR][usize::try_from(state.random.below(3)).unwrap()];
                state.rouse(who, outcome, 0);
                return None;
            }
        }
        Some(Turn::Over)
    }

    fn mortal(state: &State, name: Name) -> bool {
        state.is_mortal(name)
    }
}

impl System for World {
    fn step(&self, site: &'static Location<'static>) {
        if !self.is_quiet()
            && let Some(turn) = self.before_step(site)
        {
            self.give_up(turn);
        }
    }

    #[track_caller]
    fn offer(&self) {
        if self.is_quiet() {
            return;
        }
        self.step(Location::caller());
        self.state.borrow_mut().advance(OFFER);
        self.give_up(Turn::Over);
    }

    fn several_processors(&self) -> bool {
        self.state.borrow().roughness.several_processors
    }

    #[track_caller]
    fn sleep(&self, word: &AtomicU32, value: u32, timeout: Option<Duration>) -> i32 {
        if self.is_quiet() {
            let mut state = self.state.borrow_mut();
            let more = timeout.unwrap_or(Duration::from_secs(1)).as_nanos();
            state.advance(u64::try_from(more).unwrap_or(u64::MAX / 4));
            if state.key(std::ptr::from_ref(word).addr()) >= OWN_MEMORY {
                // A gate of the process itself, which died before it could open it.
                word.store(0, Ordering::SeqCst);
            }
            return libc::ETIMEDOUT;
        }
        self.step(Location::caller());
        if word.load(Ordering::SeqCst) != value {
            return libc::EAGAIN;
        }
        {
            let mut state = self.state.borrow_mut();
            let address = std::ptr::from_ref(word).expose_provenance();
            let until = timeout
                .and_then(|timeout| u64::try_from(timeout.as_nanos()).ok())
                .and_then(|nanoseconds| state.now.checked_add(nanoseconds));
            state.sleeps += 1;
            let sleep = Sleep {
                key: state.key(address),
                word: address,
                value,
                until,
                turn: state.sleeps,
            };
            let name = state.running.unwrap();
            state.processes[name].phase = Phase::Sleeps(sleep);
        }
        self.give_up(Turn::Over);
        self.with_running(|process| process.outcome).unwrap_or(0)
    }

    #[track_caller]
    fn wake(&self, word: &AtomicU32, count: u32) -> usize {
        if self.is_quiet() {
            return 0;
        }
        self.step(Location::caller());
        let mut state = self.state.borrow_mut();
        let key = state.key(std::ptr::from_ref(word).addr());
        state.wake(key, count)
    }

    fn pid(&self) -> u32 {
        self.with_running(|process| process.pid).unwrap_or(1)
    }

    fn started(&self) -> u64 {
        self.with_running(|process| process.started).unwrap_or(1)
    }

    fn robust_list(&self) -> usize {
        if self.state.borrow().over {
            // The links of the dead lie in memory that others have used since.
            return 0;
        }
        self.with_running(|process| process.head[1].as_ptr().expose_provenance())
            .unwrap_or(0)
    }

    #[track_caller]
    fn is_gone(&self, pid: u32, started: u64) -> bool {
        if !self.is_quiet() {
            self.step(Location::caller());
        }
        let state = self.state.borrow();
        let alive = |process: &Process| {
            process.pid == pid
                && (started == 0 || process.started == started)
                && !matches!(process.phase, Phase::Gone)
        };
        !state.processes.iter().any(alive)
    }

    fn thread_exists(&self, tid: u32) -> bool {
        // As the engine asks it: one that is gone, and that nobody has waited for, has no thread any more.
        let exists =
            |process: &Process| process.pid == tid && !matches!(process.phase, Phase::Gone);
        self.state.borrow().processes.iter().any(exists)
    }

    fn is_stopped(&self, tid: u32) -> bool {
        let state = self.state.borrow();
        let is_it =
            |process: &Process| process.pid == tid && !process.dead && process.stopped > state.now;
        state.processes.iter().any(is_it)
    }

    fn mapped(&self, address: usize, bytes: usize, offset: u64) {
        let mapping = Mapping {
            address,
            bytes,
            offset,
        };
        self.state.borrow_mut().mappings.insert(address, mapping);
    }

    fn unmapped(&self, address: usize) {
        self.state.borrow_mut().mappings.remove(&address);
    }
}
