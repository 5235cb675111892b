//! Models of the entries of those who wait.

use super::super::waiters::{Waiter, Waiters};
use crate::Arena;
use crate::shm::orders::{FREE, found};
use crate::sys::model::explore;
use crate::sys::word::Relaxed;

fn entries(arena: &Arena) -> Waiters<'_> {
    let member = &*arena.inner;
    Waiters {
        member,
        object: 0,
        inside: member.at::<[Waiter; 4]>(FREE).unwrap(),
        more: member.at(FREE + 64).unwrap(),
        used: member.at(FREE + 72).unwrap(),
    }
}

/// Three take an entry at once: each has one, with its own ticket.
#[test]
fn an_entry_keeps_its_ticket() {
    explore(2, |scene| {
        let arena = found(scene);
        for process in 1..=3 {
            let arena = arena.clone();
            scene.part(process, move || {
                let number = process as u32;
                entries(&arena).enlist(number, number.into()).unwrap();
            });
        }
        scene.play();
        let entries = entries(&arena).iter().unwrap();
        let owners = entries.iter().map(|entry| u64::from(entry.owner()));
        let tickets = entries.iter().map(|entry| entry.ticket.load(Relaxed));
        assert!(owners.clone().eq(tickets));
        assert_eq!(owners.sum::<u64>(), 1 + 2 + 3);
    });
}
