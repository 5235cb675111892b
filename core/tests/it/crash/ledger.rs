//! What the processes of a case tell each other and the harness, outside the arena: it must not be what is tested.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

/// Who takes part in a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Who {
    /// The harness itself.
    Harness,
    /// Who is killed or stopped.
    Victim,
    /// Who sleeps, works, or died before.
    Companion,
    /// Who calls with deadlines while the victim is stopped.
    Prober,
    /// The two fresh processes afterwards.
    First,
    Second,
}

impl Who {
    pub(crate) const COUNT: usize = 6;
}

/// Which queue of a stage a note is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum On {
    Queue,
    Bounded,
    Other,
}

/// A message was put, or got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Note {
    pub(crate) by: usize,
    pub(crate) on: usize,
    pub(crate) got: bool,
    pub(crate) number: u64,
}

const NOTES: usize = 1 << 16;
const NUMBER_BITS: u32 = 48;

/// One page run for all processes of a case. Zero is its beginning.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Ledger {
    /// Said by each participant when it comes to its gate.
    come: [AtomicU32; Who::COUNT],
    /// Opened by the harness for each participant.
    gates: [AtomicU32; Who::COUNT],
    /// Said by each participant when it is through its gate.
    begun: [AtomicU32; Who::COUNT],
    /// Messages that each participant has begun to put.
    numbers: [AtomicU64; Who::COUNT],
    /// Not 0: it is inside a get.
    getting: [AtomicU32; Who::COUNT],
    /// Who is inside the lock, plus one.
    inside: AtomicU32,
    /// How often somebody was told that the lock's owner died.
    pub(crate) bereaved: AtomicU32,
    /// The neighbour has done enough; a companion that holds something is to go on.
    enough: AtomicU32,
    /// By how much a call overran its deadline at most, in microseconds, and which one: see [`overran`](Self::overran).
    pub(crate) overrun_us: AtomicU64,
    said: AtomicU64,
    text: [AtomicU64; 256],
    length: AtomicU64,
    notes: [AtomicU64; NOTES],
}

/// Memory, all zero, that this process and those that it forks share. For good: a few of them live as long as a test.
pub(crate) fn shared<T>() -> &'static T {
    // SAFETY: new memory, at an address that the kernel chooses.
    let address = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            size_of::<T>(),
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    assert_ne!(address, libc::MAP_FAILED, "mmap");
    // SAFETY: as large as T, page-aligned and never unmapped; T is made of atomics, for which zero is valid.
    unsafe { &*address.cast::<T>() }
}

impl Ledger {
    /// Makes it new for the next case.
    pub(crate) fn clear(&self) {
        let words = [&self.come, &self.gates, &self.begun, &self.getting];
        for word in words.into_iter().flatten() {
            word.store(0, SeqCst);
        }
        for number in &self.numbers {
            number.store(0, SeqCst);
        }
        for word in [&self.inside, &self.bereaved, &self.enough] {
            word.store(0, SeqCst);
        }
        self.overrun_us.store(0, SeqCst);
        self.said.store(0, SeqCst);
        self.length.store(0, SeqCst);
    }

    /// Waits at the gate of `who`, then says that it begins.
    pub(crate) fn pass(&self, who: Who) {
        self.come[who as usize].store(1, SeqCst);
        let gate = &self.gates[who as usize];
        while gate.load(SeqCst) == 0 {
            // SAFETY: a shared futex on a word that is mapped for good; it returns at once unless the gate is shut.
            unsafe {
                libc::syscall(
                    libc::SYS_futex,
                    gate.as_ptr(),
                    libc::FUTEX_WAIT,
                    0,
                    std::ptr::null::<libc::timespec>(),
                );
            }
        }
        self.begun[who as usize].store(1, SeqCst);
    }

    /// Opens the gate of `who`.
    pub(crate) fn open(&self, who: Who) {
        let gate = &self.gates[who as usize];
        gate.store(1, SeqCst);
        // SAFETY: as above.
        unsafe { libc::syscall(libc::SYS_futex, gate.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
    }

    pub(crate) fn has_come(&self, who: Who) -> bool {
        self.come[who as usize].load(SeqCst) != 0
    }

    pub(crate) fn has_begun(&self, who: Who) -> bool {
        self.begun[who as usize].load(SeqCst) != 0
    }

    /// Has the companion go on, or end.
    pub(crate) fn ask(&self) {
        self.enough.store(1, SeqCst);
    }

    pub(crate) fn is_asked(&self) -> bool {
        self.enough.load(SeqCst) != 0
    }

    /// The number of the next message of `who`; no two of a case have the same one.
    pub(crate) fn next_number(&self, who: Who) -> u64 {
        let count = self.numbers[who as usize].fetch_add(1, SeqCst) + 1;
        (who as u64) << 32 | count
    }

    /// Whether `who` began to put the message of that number.
    pub(crate) fn was_begun(&self, number: u64) -> bool {
        let who = usize::try_from(number >> 32).unwrap();
        let count = number & u64::from(u32::MAX);
        (1..=self.numbers[who].load(SeqCst)).contains(&count)
    }

    pub(crate) fn set_getting(&self, who: Who, getting: bool) {
        self.getting[who as usize].store(getting.into(), SeqCst);
    }

    /// How many participants died inside a get.
    pub(crate) fn getting(&self) -> u64 {
        let getting = self.getting.iter();
        getting.map(|word| u64::from(word.load(SeqCst))).sum()
    }

    pub(crate) fn note(&self, who: Who, on: On, got: bool, number: u64) {
        let at = usize::try_from(self.length.fetch_add(1, SeqCst)).unwrap();
        let word = (who as u64) << 56 | (on as u64) << 52 | u64::from(got) << 51 | 1 << 50 | number;
        self.notes[at].store(word, SeqCst);
    }

    pub(crate) fn notes(&self) -> Vec<Note> {
        let length = usize::try_from(self.length.load(SeqCst)).unwrap();
        let notes = self.notes[..length].iter().map(|note| note.load(SeqCst));
        // One that was killed may have taken a line and written nothing: never, since kills come inside calls.
        notes
            .map(|word| Note {
                by: usize::try_from(word >> 56).unwrap(),
                on: usize::try_from(word >> 52 & 15).unwrap(),
                got: word >> 51 & 1 == 1,
                number: word & ((1 << NUMBER_BITS) - 1),
            })
            .collect()
    }

    /// Says that `who` is inside the lock. Somebody else may be there still only if that one died.
    pub(crate) fn enter(&self, who: Who, owner_died: bool) {
        let before = self.inside.swap(who as u32 + 1, SeqCst);
        assert!(
            before == 0 || owner_died,
            "{who:?} is inside the lock with number {}",
            before - 1
        );
        if owner_died {
            self.bereaved.fetch_add(1, SeqCst);
        }
    }

    pub(crate) fn leave(&self, who: Who) {
        let before = self.inside.swap(0, SeqCst);
        assert_eq!(before, who as u32 + 1, "somebody else was in the lock");
    }

    pub(crate) fn is_inside(&self, who: Who) -> bool {
        self.inside.load(SeqCst) == who as u32 + 1
    }

    /// Notes by how much the call of that number overran its deadline.
    pub(crate) fn overran(&self, by: Duration, call: u64) {
        let us = u64::try_from(by.as_micros()).unwrap();
        self.overrun_us.fetch_max(us << 8 | call, SeqCst);
    }

    /// Keeps what a process says that panics, for the harness; the first ones, as far as there is room.
    pub(crate) fn say(&self, what: &str) {
        for chunk in what.as_bytes().chunks(8) {
            let at = usize::try_from(self.said.fetch_add(1, SeqCst)).unwrap();
            let mut bytes = [b' '; 8];
            bytes[..chunk.len()].copy_from_slice(chunk);
            if let Some(word) = self.text.get(at) {
                word.store(u64::from_le_bytes(bytes), SeqCst);
            }
        }
    }

    pub(crate) fn said(&self) -> String {
        let words = usize::try_from(self.said.load(SeqCst)).unwrap();
        let words = self.text.iter().take(words);
        let bytes: Vec<u8> = words
            .flat_map(|word| word.load(SeqCst).to_le_bytes())
            .collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}
