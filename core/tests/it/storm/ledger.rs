//! What the storm knows of itself: a memory of its own, shared by all of its processes, which the engine never sees.

use procession_core::ObjectName;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::SeqCst};

/// Processes that put, lock, make and fork.
pub(crate) const MAKERS: usize = 3;
/// Queues that are there all the time; each has a getter of its own.
pub(crate) const QUEUES: usize = 3;
/// The queue whose getters note nothing before they take.
pub(crate) const UNCLAIMED: usize = 0;
/// The queue that is bounded.
pub(crate) const BOUNDED: usize = 1;
/// Makers, then getters.
pub(crate) const SEATS: usize = MAKERS + QUEUES;
pub(crate) const LOCKS: usize = 2;
/// Names of objects that are shown around.
const NAMES: usize = 8;

/// Numbers that a producer has; then it becomes another one.
const EACH: u32 = 1024;
/// Producers of a round.
const PRODUCERS: u32 = 4096;

/// A message's story, as bits; the queue's number in the high half.
const BEGUN: u8 = 1;
const STORED: u8 = 2;
const GOT: u8 = 4;
/// Its `put` said that it isn't there.
const REFUSED: u8 = 8;
const QUEUE_SHIFT: u32 = 4;

/// All of it. Zero at first, which is what each atomic begins with.
pub(crate) struct Ledger {
    /// Makers rest.
    pub(crate) paused: AtomicBool,
    /// Makers leave.
    pub(crate) ended: AtomicBool,
    /// The controller's heart.
    pub(crate) beats: AtomicU64,
    producers: AtomicU32,
    pub(crate) seats: [Seat; SEATS],
    pub(crate) locks: [Guarded; LOCKS],
    names: [[AtomicU64; 2]; NAMES],
    pub(crate) tally: Tally,
    messages: [AtomicU8; (EACH * PRODUCERS) as usize],
}

/// What a seat's process is at.
pub(crate) struct Seat {
    pub(crate) resting: AtomicBool,
    /// The queue that it gets from now, counted from one; 0: none.
    pub(crate) getting: AtomicU32,
    /// Things done, by all processes that had the seat.
    pub(crate) steps: AtomicU64,
    /// What it is at, as the line of the source that said so: for whoever reads of a hang.
    pub(crate) line: AtomicU32,
}

/// What a lock guards.
pub(crate) struct Guarded {
    /// Who holds it, by its process id.
    owner: AtomicU32,
    /// Equal, but while somebody holds the lock.
    left: AtomicU64,
    right: AtomicU64,
}

/// What happened.
#[derive(Debug)]
pub(crate) struct Tally {
    pub(crate) forks: AtomicU64,
    pub(crate) objects: AtomicU64,
    pub(crate) opened: AtomicU64,
    pub(crate) locked: AtomicU64,
    pub(crate) inherited: AtomicU64,
}

/// What became of one queue's messages in a round.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Story {
    pub(crate) got: u64,
    /// Stored, and neither got nor in the hands of a dead getter.
    pub(crate) missing: u64,
    /// Begun by a dead producer, and not got.
    pub(crate) unfinished: u64,
}

impl Ledger {
    /// Maps it. It stays for the rest of the program.
    pub(crate) fn new() -> &'static Self {
        let (access, kind) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS,
        );
        // SAFETY: a fresh mapping of its own.
        let place =
            unsafe { libc::mmap(std::ptr::null_mut(), size_of::<Self>(), access, kind, -1, 0) };
        assert_ne!(place, libc::MAP_FAILED);
        // SAFETY: any-bits: atomics only; page-aligned, as long as asked for, and never unmapped.
        unsafe { &*place.cast::<Self>() }
    }

    /// The first number of a producer that nobody was before, if there is one in this round.
    pub(crate) fn become_producer(&self) -> Option<Producer> {
        let index = self.producers.fetch_add(1, SeqCst);
        (index < PRODUCERS).then_some(Producer {
            next: index * EACH,
            end: (index + 1) * EACH,
        })
    }

    /// A message is about to be put.
    pub(crate) fn begin(&self, number: u64, queue: usize) {
        let story = BEGUN | u8::try_from(queue).unwrap() << QUEUE_SHIFT;
        assert_eq!(self.message(number).swap(story, SeqCst), 0);
    }

    pub(crate) fn stored(&self, number: u64) {
        self.message(number).fetch_or(STORED, SeqCst);
    }

    pub(crate) fn refused(&self, number: u64) {
        self.message(number).fetch_or(REFUSED, SeqCst);
    }

    pub(crate) fn got(&self, number: u64, queue: usize) {
        let story = self.message(number).fetch_or(GOT, SeqCst);
        assert_eq!(
            story & (BEGUN | GOT | REFUSED),
            BEGUN,
            "message {number} of queue {queue}: {story:#x}"
        );
        assert_eq!(usize::from(story >> QUEUE_SHIFT), queue, "message {number}");
    }

    pub(crate) fn is_got(&self, number: u64) -> bool {
        self.message(number).load(SeqCst) & GOT != 0
    }

    /// What became of each queue's messages, those with a number in `hands` apart; and the numbers of the missing ones.
    pub(crate) fn stories(&self, hands: &[u64]) -> ([Story; QUEUES], Vec<u64>) {
        let mut missing = Vec::new();
        let mut stories = [Story::default(); QUEUES];
        let used = self.producers.load(SeqCst).min(PRODUCERS) * EACH;
        for (number, message) in (1..=u64::from(used)).zip(&self.messages) {
            let bits = message.load(SeqCst);
            let story = &mut stories[usize::from(bits >> QUEUE_SHIFT)];
            match (bits & GOT != 0, bits & STORED != 0) {
                (true, _) => story.got += 1,
                (false, true) if !hands.contains(&number) => {
                    story.missing += 1;
                    missing.push(number);
                }
                (false, true) => {}
                (false, false) => story.unfinished += u64::from(bits & REFUSED == 0 && bits != 0),
            }
        }
        (stories, missing)
    }

    /// Forgets all messages; when nobody puts or gets.
    pub(crate) fn next_round(&self) {
        let used = self.producers.swap(0, SeqCst).min(PRODUCERS) * EACH;
        for message in &self.messages[..used as usize] {
            message.store(0, SeqCst);
        }
    }

    /// Shows a name around; those who look may see half of it and half of another.
    pub(crate) fn show_name(&self, at: u64, name: ObjectName) {
        let [one, two] = &self.names[usize::try_from(at).unwrap() % NAMES];
        one.store(name.offset, SeqCst);
        two.store(name.serial, SeqCst);
    }

    pub(crate) fn seen_name(&self, at: u64) -> ObjectName {
        let [one, two] = &self.names[usize::try_from(at).unwrap() % NAMES];
        ObjectName {
            offset: one.load(SeqCst),
            serial: two.load(SeqCst),
        }
    }

    fn message(&self, number: u64) -> &AtomicU8 {
        let index = usize::try_from(number).unwrap() - 1;
        self.messages
            .get(index)
            .unwrap_or_else(|| panic!("nobody has message {number}"))
    }
}

/// Numbers that one process gives its messages, from one up; a getter sees them grow.
pub(crate) struct Producer {
    next: u32,
    end: u32,
}

impl Producer {
    pub(crate) fn number(&mut self) -> Option<u64> {
        (self.next < self.end).then(|| {
            self.next += 1;
            u64::from(self.next)
        })
    }

    /// Whose message a number is.
    pub(crate) fn of(number: u64) -> u64 {
        (number - 1) / u64::from(EACH)
    }
}

impl Guarded {
    /// The lock was acquired; `bereaved`: from a holder that died.
    pub(crate) fn enter(&self, bereaved: bool) {
        let before = self.owner.swap(std::process::id(), SeqCst);
        if bereaved {
            self.right.store(self.left.load(SeqCst), SeqCst);
        } else {
            assert_eq!(
                before, 0,
                "acquired from {before}, of whose death nothing was told"
            );
        }
        let left = self.left.fetch_add(1, SeqCst);
        assert_eq!(
            left,
            self.right.load(SeqCst),
            "half changed, and nothing was told"
        );
    }

    /// It is about to be released.
    pub(crate) fn leave(&self) {
        self.right.fetch_add(1, SeqCst);
        let me = std::process::id();
        let others = self.owner.compare_exchange(me, 0, SeqCst, SeqCst);
        assert_eq!(
            others,
            Ok(me),
            "another process got the lock of a living one"
        );
    }
}
