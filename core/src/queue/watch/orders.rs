//! Models of watchers.

use super::watch_once;
use crate::Queue;
use crate::queue::orders::{get, put, shared_by_four};
use crate::shm::lamps::Tells;
use crate::sys::model::{explore, explore_disturbed};

/// Has the lamp of a process, and plays its watcher until the lamp is lit.
fn watch_until_lit(queue: &Queue, tells: Tells) {
    let member = queue.handle.member();
    member.lamps().1.watched = true;
    let ask = || match tells {
        Tells::Something => queue.readable(),
        Tells::Room => queue.writable(),
    };
    drop(ask().unwrap());
    let offset = queue.name().offset;
    let is_lit = || {
        let (_through, mut lamps) = member.lamps();
        lamps.of(offset).unwrap().iter().all(|lamp| lamp.is_lit)
    };
    while !is_lit() {
        watch_once(member, false).unwrap();
    }
}

/// One puts twice, one takes one of the messages, one watches: whether it looked before, between or after, in the
/// end its lamp is lit; also when a sleep ends for no reason.
#[test]
fn watcher_hears_of_a_message() {
    explore_disturbed(1, |scene| {
        let [first, one, two, three] = shared_by_four(scene, None);
        scene.part(1, move || (1..=2).for_each(|number| put(&one, number)));
        scene.part(2, move || assert!(get(&two) > 0));
        scene.part(3, move || watch_until_lit(&three, Tells::Something));
        scene.play();
        assert_eq!(first.len(), Ok(1));
    });
}

/// Two watch: neither takes the other's ring for its own.
#[test]
fn watchers_hear_of_a_message() {
    explore(1, |scene| {
        let [_first, one, two, three] = shared_by_four(scene, None);
        scene.part(1, move || put(&one, 1));
        for (process, queue) in [(2, two), (3, three)] {
            scene.part(process, move || watch_until_lit(&queue, Tells::Something));
        }
        scene.play();
    });
}

/// One makes room, fills it, and makes room again, while one watches for room.
#[test]
fn watcher_hears_of_room() {
    explore(1, |scene| {
        let [first, one, two, _three] = shared_by_four(scene, Some(1));
        put(&first, 1);
        scene.part(1, move || {
            assert_eq!(get(&one), 1);
            put(&one, 2);
            assert_eq!(get(&one), 2);
        });
        scene.part(2, move || watch_until_lit(&two, Tells::Room));
        scene.play();
    });
}
