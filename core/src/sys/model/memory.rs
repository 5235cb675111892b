//! Shared memory in a model: for each eight bytes the objects of loom that stand for what the engine keeps there.
//!
//! The addresses are real, so that layouts, offsets and checks are the engine's own; what lies at them is never read or
//! written. Eight bytes are a `Cell`, two `Word`s, or a message's bytes. Atomics give each load every value that the
//! memory model allows. Bytes are tracked: a read of bytes whose write doesn't happen before it fails the model, and so
//! does a write. Memory that goes from one kind to another must belong to the thread alone, which is checked likewise.
//!
//! While a scene is set up, and when its threads have ended, one thread is alone and values are plain: loom sees
//! nothing of it. Atomics that no set-up wrote are taken from a store of zeros made before the threads begin, since memory
//! is zero for everybody from the start.

use super::{Now, now_in};
use loom::cell::UnsafeCell as Tracker;
use loom::sync::atomic::AtomicU64;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::OnceLock;
use std::sync::atomic::Ordering;

/// Bytes that a model's arena can have: its first window. Behind them are the addresses of the heads of robust lists.
const BYTES: usize = 1 << 20;

/// Eights that the messages of a scene take, at most: they are short.
const MESSAGES: usize = 64;

/// What an access does.
#[derive(Debug, Clone, Copy)]
pub(super) enum Op {
    Load,
    Store(u64),
    Swap(u64),
    /// Current value, new one, and the order of a failure.
    Replace(u64, u64, Ordering),
    Add(u64),
    Or(u64),
    And(u64),
}

impl Op {
    /// What stands there afterwards; nothing new after a load and a failed replacement.
    fn result(self, old: u64) -> Option<u64> {
        match self {
            Self::Load => None,
            Self::Store(new) | Self::Swap(new) => Some(new),
            Self::Replace(current, new, _) => (old == current).then_some(new),
            Self::Add(more) => Some(old.wrapping_add(more)),
            Self::Or(bits) => Some(old | bits),
            Self::And(bits) => Some(old & bits),
        }
    }

    /// What stood there before, on an atomic, by that thread.
    fn on(self, place: &Atomic, order: Ordering, thread: usize) -> u64 {
        let atomic = &place.loom;
        let found = match self {
            Self::Load => atomic.load(order),
            // On x86 it is an exchange. Loom needs one, here and in the next case: it doesn't know that what another
            // thread's exchange made of this thread's last store comes before this thread's next one.
            Self::Store(new) if order == Ordering::SeqCst => atomic.swap(new, Ordering::Release),
            Self::Store(new) if place.is_exchanged(thread) => atomic.swap(new, order),
            Self::Store(new) => {
                atomic.store(new, order);
                0
            }
            Self::Swap(new) => atomic.swap(new, order),
            Self::Replace(current, new, failure) => {
                let (Ok(found) | Err(found)) =
                    atomic.compare_exchange(current, new, order, failure);
                found
            }
            Self::Add(more) => atomic.fetch_add(more, order),
            Self::Or(bits) => atomic.fetch_or(bits, order),
            Self::And(bits) => atomic.fetch_and(bits, order),
        };
        if let Some(new) = self.result(found) {
            place.newest.set(new);
            place.note(thread, matches!(self, Self::Store(_)));
        }
        found
    }

    /// What somebody is told who unwinds: that it went well.
    fn pretended(self) -> u64 {
        match self {
            Self::Replace(current, ..) => current,
            _ => 0,
        }
    }
}

/// An atomic of loom, and what was stored there last.
struct Atomic {
    loom: AtomicU64,
    newest: Cell<u64>,
    /// The threads, a bit each, that stored there since a store that looked at nothing; and the last of them.
    threads: Cell<(u32, u32)>,
}

impl Atomic {
    fn new(value: u64) -> Rc<Self> {
        Rc::new(Self {
            loom: AtomicU64::new(value),
            newest: Cell::new(value),
            threads: Cell::default(),
        })
    }

    /// Whether another thread's exchange has followed that thread's last store.
    fn is_exchanged(&self, thread: usize) -> bool {
        let (threads, last) = self.threads.get();
        threads & 1 << thread != 0 && last != 1 << thread
    }

    fn note(&self, thread: usize, is_store: bool) {
        let (before, _) = self.threads.get();
        let begins_anew = is_store && !self.is_exchanged(thread);
        let before = if begins_anew { 0 } else { before };
        self.threads.set((before | 1 << thread, 1 << thread));
    }

    /// The newest value, at one point in the order of all that touches the atomic.
    fn newest(&self, order: Ordering) -> u64 {
        Op::Replace(u64::MAX, u64::MAX, order).on(self, Ordering::Relaxed, 0)
    }
}

/// Eight bytes.
enum Eight {
    Cell(Rc<Atomic>),
    Words([Rc<Atomic>; 2]),
    Bytes(Rc<Tracker<()>>, u64),
}

/// What eight bytes were used as last, while one thread was alone.
#[derive(Clone, Copy)]
enum Kind {
    Cell,
    Words,
    Bytes,
}

/// The memory of one execution.
#[derive(Default)]
pub(super) struct Memory {
    /// Several threads run.
    shared: Cell<bool>,
    /// Loads that may still find something older than what was stored last.
    old_loads: Cell<usize>,
    plain: RefCell<BTreeMap<usize, (u64, Kind)>>,
    eights: RefCell<BTreeMap<usize, Eight>>,
    zeros: RefCell<Vec<Rc<Atomic>>>,
    trackers: RefCell<Vec<Rc<Tracker<()>>>>,
}

/// Where an access of a shared memory's atomic goes.
enum Place {
    Atomic(Rc<Atomic>),
    /// The half of a cell that begins at this bit, to be read.
    HalfOf(Rc<Atomic>, usize),
    /// Bytes, read as a number.
    Value(u64),
}

fn split(address: usize) -> (usize, usize) {
    (address & !7, address & 7)
}

/// The four or eight bytes at `at` among eight.
fn part(value: u64, at: usize, bytes: usize) -> u64 {
    if bytes == 8 {
        value
    } else {
        value >> (at * 8) & u64::from(u32::MAX)
    }
}

fn with_part(value: u64, at: usize, bytes: usize, new: u64) -> u64 {
    if bytes == 8 {
        return new;
    }
    let mask = u64::from(u32::MAX) << (at * 8);
    value & !mask | new << (at * 8) & mask
}

impl Memory {
    pub(super) fn is_shared(&self) -> bool {
        self.shared.get()
    }

    /// From now on threads share it: values become loom's, `spare` zeros lie ready, and trackers for messages. At most
    /// `old_loads` find something older than what was stored last.
    pub(super) fn share(&self, spare: usize, old_loads: usize) {
        let mut eights = self.eights.borrow_mut();
        let atomic = Atomic::new;
        self.old_loads.set(old_loads);
        for (address, (value, kind)) in self.plain.take() {
            if value != 0 {
                let eight = match kind {
                    Kind::Cell => Eight::Cell(atomic(value)),
                    Kind::Words => Eight::Words([0, 4].map(|at| atomic(part(value, at, 4)))),
                    Kind::Bytes => Eight::Bytes(Rc::new(Tracker::new(())), value),
                };
                eights.insert(address, eight);
            }
        }
        self.zeros.replace((0..spare).map(|_| atomic(0)).collect());
        self.trackers
            .replace((0..MESSAGES).map(|_| Rc::new(Tracker::new(()))).collect());
        self.shared.set(true);
    }

    /// The threads have ended: values are plain again. What a process that died has left of its own, a closed gate, is gone.
    pub(super) fn unshare(&self, died: bool) {
        let mut plain = self.plain.borrow_mut();
        let ours = region().addr()..region_end();
        for (address, eight) in self.eights.take() {
            if died && !ours.contains(&address) {
                continue;
            }
            let known = match eight {
                Eight::Cell(cell) => (owned(cell), Kind::Cell),
                Eight::Words([low, high]) => (owned(low) | owned(high) << 32, Kind::Words),
                Eight::Bytes(tracker, value) => {
                    tracker.with(|_| ());
                    (value, Kind::Bytes)
                }
            };
            plain.insert(address, known);
        }
        self.shared.set(false);
    }

    /// A load: of any value that the memory model allows, as long as not too many have found an old one.
    fn load(&self, atomic: &Atomic, order: Ordering) -> u64 {
        let left = self.old_loads.get();
        if left == 0 {
            return atomic.newest(order);
        }
        let value = Op::Load.on(atomic, order, 0);
        let is_old = value != atomic.newest.get();
        self.old_loads.set(left - usize::from(is_old));
        value
    }

    fn zero(&self) -> Rc<Atomic> {
        let zero = self.zeros.borrow_mut().pop();
        zero.expect("the model touches more memory than it has spare: give it more")
    }

    fn tracker(&self) -> Rc<Tracker<()>> {
        let tracker = self.trackers.borrow_mut().pop();
        tracker.expect("the model touches more bytes than it has spare: give it more")
    }

    /// What a thread that is alone finds at an address, changed by `op`.
    fn perform_plain(&self, address: usize, bytes: usize, op: Op) -> u64 {
        let (eight, at) = split(address);
        let mut plain = self.plain.borrow_mut();
        let (value, kind) = plain.entry(eight).or_insert((0, Kind::Cell));
        let old = part(*value, at, bytes);
        if let Some(new) = op.result(old) {
            *value = with_part(*value, at, bytes, new);
            *kind = if bytes == 8 { Kind::Cell } else { Kind::Words };
        }
        old
    }

    fn place(&self, address: usize, bytes: usize, op: Op) -> Place {
        let (eight, at) = split(address);
        let mut eights = self.eights.borrow_mut();
        let found = eights.entry(eight).or_insert_with(|| {
            if bytes == 8 {
                Eight::Cell(self.zero())
            } else {
                Eight::Words([self.zero(), self.zero()])
            }
        });
        let loads = matches!(op, Op::Load);
        match found {
            Eight::Cell(cell) if bytes == 8 => return Place::Atomic(cell.clone()),
            Eight::Words(words) if bytes == 4 => return Place::Atomic(words[at / 4].clone()),
            Eight::Cell(cell) if loads => return Place::HalfOf(cell.clone(), at * 8),
            Eight::Bytes(tracker, value) if loads => {
                tracker.with(|_| ());
                return Place::Value(part(*value, at, bytes));
            }
            _ => {}
        }
        // It becomes another kind of memory.
        let value = exclusive(found);
        let fresh = |value| {
            let mut cell = self.zero();
            if let (Some(cell), true) = (Rc::get_mut(&mut cell), value != 0) {
                cell.loom.with_mut(|place| *place = value);
                cell.newest.set(value);
            }
            cell
        };
        if bytes == 8 {
            let cell = fresh(value);
            *found = Eight::Cell(cell.clone());
            Place::Atomic(cell)
        } else {
            let words = [0, 4].map(|at| fresh(part(value, at, 4)));
            let word = words[at / 4].clone();
            *found = Eight::Words(words);
            Place::Atomic(word)
        }
    }

    /// The bytes of eight, for a read, or for a write of the bytes that `change` changes.
    fn bytes(&self, address: usize, change: Option<&dyn Fn(&mut [u8; 8])>) -> [u8; 8] {
        if !self.is_shared() {
            let mut plain = self.plain.borrow_mut();
            let value = plain.get(&address).map_or(0, |(value, _)| *value);
            let mut bytes = value.to_le_bytes();
            if let Some(change) = change {
                change(&mut bytes);
                plain.insert(address, (u64::from_le_bytes(bytes), Kind::Bytes));
            }
            return bytes;
        }
        let mut eights = self.eights.borrow_mut();
        let found = eights
            .entry(address)
            .or_insert_with(|| Eight::Bytes(self.tracker(), 0));
        if !matches!(found, Eight::Bytes(..)) {
            let value = exclusive(found);
            *found = Eight::Bytes(self.tracker(), value);
        }
        let Eight::Bytes(tracker, value) = found else {
            return [0; 8];
        };
        let mut bytes = value.to_le_bytes();
        if let Some(change) = change {
            tracker.with_mut(|_| change(&mut bytes));
            *value = u64::from_le_bytes(bytes);
        } else {
            tracker.with(|_| ());
        }
        bytes
    }

    /// What the kernel reads of a word: the newest value, at one point in the order of all that touches the word.
    pub(super) fn newest(&self, address: usize) -> u32 {
        let impossible = Op::Replace(u64::MAX, u64::MAX, Ordering::Relaxed);
        let Place::Atomic(word) = self.place(address, 4, impossible) else {
            unreachable!("a word that is slept on is an atomic");
        };
        u32::try_from(word.newest(Ordering::Relaxed)).expect("a word has 32 bits")
    }
}

/// The value of eight bytes that belong to this thread alone: loom checks that nobody else's access is concurrent.
fn exclusive(eight: &mut Eight) -> u64 {
    let alone = |cell: &mut Rc<Atomic>| {
        let cell =
            Rc::get_mut(cell).expect("another thread is at what becomes another kind of memory");
        cell.loom.with_mut(|value| *value)
    };
    match eight {
        Eight::Cell(cell) => alone(cell),
        Eight::Words([low, high]) => alone(low) | alone(high) << 32,
        Eight::Bytes(tracker, value) => {
            tracker.with_mut(|_| ());
            *value
        }
    }
}

fn owned(mut cell: Rc<Atomic>) -> u64 {
    let cell = Rc::get_mut(&mut cell).expect("a thread that has ended holds a cell");
    cell.loom.with_mut(|value| *value)
}

/// Performs an access, unless no model runs.
pub(super) fn perform(address: usize, bytes: usize, op: Op, order: Ordering) -> Option<u64> {
    let world = match now_in() {
        Now::Real => return None,
        Now::Unwinding => return Some(op.pretended()),
        Now::In(world) => world,
    };
    let memory = &world.memory;
    if !memory.is_shared() {
        return Some(memory.perform_plain(address, bytes, op));
    }
    Some(match memory.place(address, bytes, op) {
        Place::Atomic(cell) if matches!(op, Op::Load) => memory.load(&cell, order),
        Place::Atomic(cell) => op.on(&cell, order, world.number()),
        Place::HalfOf(cell, bit) => memory.load(&cell, order) >> bit & u64::from(u32::MAX),
        Place::Value(value) => value,
    })
}

/// The first address behind a model's arena.
pub(super) fn region_end() -> usize {
    region().addr() + BYTES
}

/// The memory that models name by address and never touch.
fn region() -> *mut u8 {
    static REGION: OnceLock<usize> = OnceLock::new();
    let address = *REGION.get_or_init(|| {
        let memory = vec![0_u64; BYTES / 8].leak();
        memory.as_mut_ptr().expose_provenance()
    });
    std::ptr::with_exposed_provenance_mut(address)
}

/// The base address of a window of a model's arena, if one runs.
pub(crate) fn window(window: usize) -> Option<*mut u8> {
    if let Now::Real = now_in() {
        return None;
    }
    assert_eq!(window, 0, "a model's arena has one window");
    Some(region())
}

/// Writes bytes in a model; false if none runs.
pub(crate) fn write(address: usize, from: &[u8]) -> bool {
    let world = match now_in() {
        Now::Real => return false,
        Now::Unwinding => return true,
        Now::In(world) => world,
    };
    let end = address + from.len();
    for eight in (address & !7..end).step_by(8) {
        let change = |bytes: &mut [u8; 8]| {
            for (at, byte) in (eight..).zip(bytes) {
                if (address..end).contains(&at) {
                    *byte = from[at - address];
                }
            }
        };
        world.memory.bytes(eight, Some(&change));
    }
    true
}

/// Reads bytes in a model; false if none runs.
pub(crate) fn read(address: usize, to: &mut [u8]) -> bool {
    let world = match now_in() {
        Now::Real => return false,
        Now::Unwinding => return true,
        Now::In(world) => world,
    };
    let end = address + to.len();
    for eight in (address & !7..end).step_by(8) {
        let bytes = world.memory.bytes(eight, None);
        for (at, byte) in (eight..).zip(bytes) {
            if (address..end).contains(&at) {
                to[at - address] = byte;
            }
        }
    }
    true
}

/// Reads bytes in a model behind those of a vector; false if none runs.
pub(crate) fn append(address: usize, length: usize, to: &mut Vec<u8>) -> bool {
    let mut bytes = vec![0; length];
    let is_model = read(address, &mut bytes);
    if is_model {
        to.append(&mut bytes);
    }
    is_model
}
