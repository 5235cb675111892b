//! What messages and children are moved by: pipes, parcels, lamps, debts and places; in many states, and every call there is.

use super::{FILL, LARGE, said, soon};
use procession_core::connection::{PipeEnd, pipe};
use procession_core::{Arena, Carried, ChildSlot, Deadline, Lock, ObjectName, Parcel, Queue};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};

/// One of each, and what is on its way in them.
#[derive(Debug)]
pub(crate) struct Moved {
    ends: (PipeEnd, PipeEnd),
    /// Packets that name messages which lie in the arena.
    packets: Vec<Vec<u8>>,
    parcel: ObjectName,
    /// Some of its messages were got, and some of those are done.
    pub(crate) tasks: Queue,
    /// Its watcher is dead.
    pub(crate) watched: Queue,
    place: ChildSlot,
}

/// More than the longest packet that names a message.
const PACKET: usize = 1 << 16;

impl Moved {
    /// In many states; `die_in` leaves a process dead in the middle of what it is given.
    pub(crate) fn new(arena: &Arena, lock: &Lock, die_in: impl Fn(&dyn Fn())) -> Self {
        let ends = pipe(arena).unwrap();
        let packets = [(); 2].map(|()| {
            assert!(send(&ends.0));
            let mut packet = vec![0; PACKET];
            let length = socket(&ends.1).read(&mut packet).unwrap();
            packet.truncate(length);
            packet
        });
        die_in(&|| assert!(send(&ends.0)));
        drain(&ends.1);
        let mut names = Carried::new();
        names.add(arena, lock.name()).unwrap();
        let tasks = Queue::joinable(arena, None).unwrap();
        for _ in 0..6 {
            let put = tasks.put(3, &[&[FILL; 40]], Deadline::NEVER);
            put.unwrap();
        }
        for _ in 0..3 {
            tasks.get(Deadline::now()).unwrap().unwrap();
        }
        tasks.task_done().unwrap();
        die_in(&|| drop(tasks.get(Deadline::now())));
        die_in(&|| drop(tasks.task_done()));
        let watched = Queue::new(arena, Some(2)).unwrap();
        watched.put(3, &[&[FILL; 8]], Deadline::now()).unwrap();
        die_in(&|| {
            std::mem::forget([watched.readable(), watched.writable()]);
        });
        let place = arena.reserve().unwrap();
        place.give(lock.name()).unwrap();
        Self {
            packets: packets.into(),
            parcel: Parcel::pack(arena, &names).unwrap().name(),
            tasks,
            watched,
            place,
            ends,
        }
    }

    /// Makes every call on those of the same names in another arena; `in_child` runs something in a forked child.
    pub(crate) fn exercise(&self, arena: &Arena, in_child: &dyn Fn(&dyn Fn())) {
        self.use_pipe(arena);
        self.use_parcel(arena);
        self.use_places(arena, in_child);
    }

    fn use_pipe(&self, arena: &Arena) {
        drain(&self.ends.1);
        let open = |end: &PipeEnd| {
            let socket = end.as_fd().try_clone_to_owned().unwrap();
            said(PipeEnd::open(arena, end.name(), socket))
        };
        let (Some(here), Some(there)) = (open(&self.ends.0), open(&self.ends.1)) else {
            return;
        };
        for packet in &self.packets {
            socket(&here).write_all(packet).unwrap();
        }
        send(&here);
        let mut buffer = Vec::new();
        for _ in 0..=self.packets.len() {
            buffer.clear();
            let Ok(Some(landed)) = there.try_receive(&mut buffer) else {
                continue;
            };
            if let Some(extent) = landed.extent {
                said(extent.append_to(&mut buffer));
            }
        }
        said(here.escape());
        said(here.recapture());
        send(&there);
    }

    fn use_parcel(&self, arena: &Arena) {
        for _ in 0..2 {
            said(Parcel::open(arena, self.parcel));
        }
        let mut names = Carried::new();
        if said(names.add(arena, self.tasks.name())).is_none() {
            return;
        }
        if let Some(parcel) = said(Parcel::pack(arena, &names)) {
            parcel.unsent();
        }
        if let Some(parcel) = said(Parcel::pack(arena, &names)) {
            said(Parcel::open(arena, parcel.name()));
        }
    }

    /// A child by a fork; and one that is given the place that was kept.
    fn use_places(&self, arena: &Arena, in_child: &dyn Fn(&dyn Fn())) {
        in_child(&|| self.use_as_a_child(arena));
        let kept = self.place.twin(arena);
        let place = kept.place();
        let adoption = arena.adoption();
        let placeless = arena.placeless();
        said(arena.adopt(place, &adoption));
        in_child(&|| {
            said(arena.take_place(place));
            self.use_as_a_child(arena);
        });
        drop((placeless, adoption));
        said(arena.adopt(place, &arena.adoption()));
    }

    fn use_as_a_child(&self, arena: &Arena) {
        let Some(tasks) = said(Queue::open(arena, self.tasks.name())) else {
            return;
        };
        said(tasks.get(soon()));
        said(tasks.task_done());
        said(tasks.put(1, &[&[FILL; LARGE]], soon()));
        said(arena.reap());
    }
}

/// Sends a message that lies in the arena; whether it did.
fn send(end: &PipeEnd) -> bool {
    said(end.send(4, &[&[FILL; LARGE]], soon())).is_some_and(|sent| sent)
}

/// The socket of an end, as the system has it.
fn socket(end: &PipeEnd) -> File {
    let copy: OwnedFd = end.as_fd().try_clone_to_owned().unwrap();
    File::from(copy)
}

/// Takes what is on its way to an end, whatever it is.
fn drain(end: &PipeEnd) {
    while let Ok(true) = end.poll(Deadline::now()) {
        let _ = socket(end).read(&mut [0; PACKET]);
    }
}
