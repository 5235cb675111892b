//! Models of the entries of those who wait.

use super::super::waiters::{Outcome, Waiter, Waiters};
use crate::Arena;
use crate::shm::orders::{FREE, found};
use crate::sys::model::explore;

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
                entries(&arena).enlist(number, number).unwrap();
            });
        }
        scene.play();
        let entries = entries(&arena).iter().unwrap();
        let owners = entries.iter().map(|(_, entry)| entry.owner());
        let tickets = entries.iter().map(|(_, entry)| entry.ticket());
        assert!(owners.clone().eq(tickets));
        assert_eq!(owners.sum::<u32>(), 1 + 2 + 3);
    });
}

/// One leaves, and waits again; who saw its first wait, and comes late, tells the second one nothing.
#[test]
fn an_entry_is_told_what_is_meant_for_its_ticket() {
    explore(3, |scene| {
        let arena = found(scene);
        let waits = arena.clone();
        scene.part(1, move || {
            let entries = entries(&waits);
            let (waiter, entry) = entries.enlist(1, 1).unwrap();
            waiter.free(entry);
            entries.enlist(1, 2).unwrap();
        });
        let tells = arena.clone();
        scene.part(2, move || {
            for (waiter, entry) in entries(&tells).iter().unwrap() {
                if entry.ticket() == 1 {
                    waiter.tell(entry, Outcome::Woken);
                }
            }
        });
        scene.play();
        let all = entries(&arena).iter().unwrap();
        let second = all.iter().find(|(_, entry)| entry.ticket() == 2);
        assert_eq!(second.unwrap().1.told(), None);
    });
}
