//! An arena with something of everything in it, and every call there is, made on a copy whose bytes were changed.
//!
//! Whatever a call answers is right, as long as it answers: the caller watches for signals, panics and hangs. Shared by
//! the test and the fuzz target.

// By their paths, since the fuzz target finds this file by one.
#[path = "moved.rs"]
mod moved;
#[path = "shared.rs"]
mod shared;

use moved::Moved;
use procession_core::shm::Snapshot;
use procession_core::{Arena, Carried, ChildSlot, Claim, Deadline, Lock, ObjectName, Queue};
use shared::Shared;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::time::Duration;

/// A change of the arena's bytes: a word of eight at an offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) offset: u64,
    pub(crate) word: u64,
}

/// What there is to be spoiled.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) arena: Arena,
    locks: Vec<Lock>,
    queues: Vec<Queue>,
    claim: Claim,
    place: ChildSlot,
    shared: Shared,
    moved: Moved,
}

/// Longest message that lies among the records, and then some.
const LARGE: usize = 40_000;
/// What messages are made of.
const FILL: u8 = 7;

fn soon() -> Deadline {
    Deadline::after(Duration::from_millis(1))
}

impl Target {
    /// Objects in many states; `die_in` leaves a process dead in the middle of what it is given.
    pub(crate) fn new(die_in: impl Fn(&dyn Fn())) -> Self {
        let arena = Arena::create().unwrap();
        let lock = || Lock::new(&arena).unwrap();
        let queue = |capacity| Queue::new(&arena, capacity).unwrap();
        let put = |queue: &Queue, length| {
            queue
                .put(3, &[&vec![FILL; length]], Deadline::NEVER)
                .unwrap();
        };
        let locks = [(); 3].map(|()| lock());
        locks[0].acquire(Deadline::NEVER).unwrap();
        die_in(&|| drop(locks[1].acquire(Deadline::NEVER)));
        let [mixed, long, full, closed] = [None, None, Some(2), None].map(queue);
        let small = Queue::joinable(&arena, None).unwrap();
        for _ in 0..3 {
            put(&small, 40);
            put(&mixed, LARGE);
            put(&mixed, 40);
            put(&closed, 40);
        }
        for _ in 0..20 {
            put(&long, 16_000);
        }
        put(&full, 8);
        put(&full, 8);
        closed.close().unwrap();
        send_names(&arena, &locks[2], [&small, &mixed, &full, &long]);
        let claim = Claim::new(&arena).unwrap();
        die_in(&|| put(&mixed, LARGE));
        die_in(&|| drop(long.get_claiming(&claim, &mut Vec::new(), Deadline::NEVER)));
        let shared = Shared::new(&arena, &die_in);
        let moved = Moved::new(&arena, &locks[2], &die_in);
        let place = arena.reserve().unwrap();
        place.give(locks[2].name()).unwrap();
        Self {
            locks: locks.into(),
            queues: vec![small, mixed, long, full, closed],
            claim,
            place,
            shared,
            moved,
            arena,
        }
    }

    /// The words that mean something, by their offsets.
    pub(crate) fn words(&self) -> Vec<Change> {
        let snapshot = self.arena.snapshot().unwrap();
        let file = File::from(snapshot.as_fd().try_clone_to_owned().unwrap());
        let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
        file.read_exact_at(&mut bytes, 0).unwrap();
        let words = bytes.chunks_exact(8).zip((0..).step_by(8));
        words
            .map(|(word, offset)| Change {
                offset,
                word: u64::from_le_bytes(word.try_into().unwrap()),
            })
            .filter(|change| change.word != 0 && change.word != u64::from_le_bytes([FILL; 8]))
            .collect()
    }

    /// Makes every call on a copy that was changed so; `in_child` runs what it is given in a child that is forked for it.
    pub(crate) fn exercise(&self, changes: &[Change], in_child: &dyn Fn(&dyn Fn())) {
        let Ok(snapshot) = self.arena.snapshot() else {
            return;
        };
        spoil(&snapshot, changes);
        let Ok(twin) = self.arena.twin_of(snapshot) else {
            return;
        };
        for lock in &self.locks {
            use_lock(&twin, lock.name());
        }
        let claim = Claim::open(&twin, self.claim.name());
        if let Ok(claim) = &claim {
            said(claim.value());
        }
        let moved = [&self.moved.tasks, &self.moved.watched];
        for queue in self.queues.iter().chain(moved) {
            use_queue(&twin, queue.name(), claim.as_ref().ok());
        }
        if let Ok(claim) = claim {
            said(claim.clear());
        }
        self.shared.exercise(&twin);
        self.moved.exercise(&twin, in_child);
        said(twin.reap());
        said(twin.census());
        use_new(&twin);
        drop(self.place.twin(&twin));
        said(twin.reap());
        twin.leave();
    }
}

/// Messages that name objects: of each length, one in a full queue, and a queue that lives in messages alone.
fn send_names(arena: &Arena, lock: &Lock, queues: [&Queue; 4]) {
    let name = |objects: &[ObjectName]| {
        let mut names = Carried::new();
        for object in objects {
            names.add(arena, *object).unwrap();
        }
        names
    };
    let put = |queue: &Queue, length, names: &Carried| {
        let body = vec![FILL; length];
        queue
            .put_naming(4, &[&body], names, Deadline::now())
            .unwrap();
    };
    let alone = Queue::new(arena, None).unwrap();
    let itself = name(&[alone.name()]);
    put(&alone, 40, &itself);
    put(queues[0], 40, &itself);
    let names = name(&[lock.name(), queues[0].name(), queues[1].name()]);
    for (queue, length) in queues.into_iter().zip([40, LARGE, 8, 40]) {
        put(queue, length, &names);
    }
}

fn spoil(snapshot: &Snapshot, changes: &[Change]) {
    let file = File::from(snapshot.as_fd().try_clone_to_owned().unwrap());
    let length = file.metadata().unwrap().len();
    for change in changes {
        // Inside the file: what lies past its end isn't the arena's.
        let offset = change.offset % (length - 7);
        file.write_all_at(&change.word.to_le_bytes(), offset)
            .unwrap();
    }
}

/// Any answer will do; an error must have a text.
fn said<T>(answer: procession_core::Result<T>) -> Option<T> {
    answer
        .inspect_err(|error| assert!(!error.to_string().is_empty()))
        .ok()
}

fn use_lock(arena: &Arena, name: ObjectName) {
    let Some(lock) = said(Lock::open(arena, name)) else {
        return;
    };
    said(lock.is_held());
    said(lock.acquire(soon()));
    said(lock.try_acquire());
    said(lock.release());
    said(lock.escape());
}

fn use_queue(arena: &Arena, name: ObjectName, claim: Option<&Claim>) {
    let Some(queue) = said(Queue::open(arena, name)) else {
        return;
    };
    said(queue.escape());
    said(queue.recapture());
    said(queue.len());
    said(queue.is_empty());
    said(queue.capacity());
    said(queue.lost());
    said(queue.is_closed());
    said(queue.unfinished());
    said(queue.poll(Deadline::now()));
    // Whoever puts and gets from here on tells their watcher, too.
    let lamps = (said(queue.readable()), said(queue.writable()));
    said(queue.get(Deadline::now()));
    said(queue.task_done());
    said(queue.join(Deadline::now()));
    said(queue.put(1, &[b"after"], soon()));
    said(queue.put(2, &[&[9; LARGE]], soon()));
    let mut buffer = Vec::new();
    if let Some(claim) = claim {
        said(queue.get_claiming(claim, &mut buffer, soon()));
    }
    for _ in 0..8 {
        buffer.clear();
        let taken = said(queue.get_into(&mut buffer, soon())).flatten();
        let Some(taken) = taken else { break };
        if let Some(extent) = taken.extent {
            said(extent.append_to(&mut buffer));
        }
    }
    drop(lamps);
    said(queue.settle());
    said(queue.close());
    said(queue.put(1, &[b"closed"], soon()));
}

fn use_new(arena: &Arena) {
    if let Some(lock) = said(Lock::new(arena)) {
        said(lock.acquire(soon()));
        said(lock.release());
    }
    if let Some(queue) = said(Queue::new(arena, Some(4))) {
        for _ in 0..5 {
            said(queue.put(1, &[&[1; LARGE]], soon()));
        }
        said(queue.get(soon()));
    }
    if let Some(place) = said(arena.reserve()) {
        said(place.give(ObjectName {
            offset: 1 << 20,
            serial: 1,
        }));
        let copy = arena.descriptor().try_clone_to_owned().unwrap();
        let token = place.token(std::os::fd::IntoRawFd::into_raw_fd(copy));
        said(Arena::attach(&token));
    }
}
