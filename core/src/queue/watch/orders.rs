//! Models of watchers.

use super::watch_once;
use crate::Queue;
use crate::queue::orders::{get, put, shared_by_four};
use crate::shm::lamps::Tells;
use crate::shm::object;
use crate::sys::model::{explore, explore_deaths, explore_disturbed};
use crate::sys::word::Relaxed;

/// Asks for the lamp of a process, which is going to play its watcher itself.
fn ask(queue: &Queue, tells: Tells) {
    queue.handle.member().lamps().1.watched = true;
    let asked = match tells {
        Tells::Something => queue.readable(),
        Tells::Room => queue.writable(),
    };
    drop(asked.unwrap());
}

/// Plays the watcher of a process until its lamp is lit.
fn watch_until_lit(queue: &Queue) {
    let member = queue.handle.member();
    let is_lit = || {
        let (_through, mut lamps) = member.lamps();
        let lamps = lamps.of(queue.name().offset).unwrap();
        lamps.iter().all(|lamp| lamp.is_lit)
    };
    while !is_lit() {
        watch_once(member, false).unwrap();
    }
}

fn ask_and_watch(queue: &Queue, tells: Tells) {
    ask(queue, tells);
    watch_until_lit(queue);
}

/// One puts; one asked before, was rung for a message that was gone when it looked, and watches.
#[test]
fn watcher_that_was_rung_in_vain_hears_of_the_next() {
    explore_disturbed(3, |scene| {
        let [first, one, two, _three] = shared_by_four(scene, None);
        scene.act_for(2);
        ask(&two, Tells::Something);
        scene.act_for(0);
        put(&first, 1);
        assert_eq!(get(&first), 1);
        scene.part(1, move || put(&one, 2));
        scene.part(2, move || watch_until_lit(&two));
        scene.play();
    });
}

/// One puts twice, and one gets what its lamp tells of: whoever clears what it rang for clears nothing that was asked for since.
#[test]
fn watcher_that_gets_hears_of_the_next() {
    explore_disturbed(2, |scene| {
        let [_first, one, two, _three] = shared_by_four(scene, None);
        scene.act_for(2);
        ask(&two, Tells::Something);
        scene.act_for(0);
        scene.part(1, move || (1..=2).for_each(|number| put(&one, number)));
        scene.part(2, move || {
            for number in 1..=2 {
                watch_until_lit(&two);
                assert_eq!(get(&two), number);
            }
        });
        scene.play();
    });
}

/// One puts twice, one takes one of the messages, one watches: whether it looked before, between or after, in the
/// end its lamp is lit; also when a sleep ends for no reason.
#[test]
fn watcher_hears_of_a_message() {
    explore_disturbed(1, |scene| {
        let [first, one, two, three] = shared_by_four(scene, None);
        scene.part(1, move || (1..=2).for_each(|number| put(&one, number)));
        scene.part(2, move || assert!(get(&two) > 0));
        scene.part(3, move || ask_and_watch(&three, Tells::Something));
        scene.play();
        assert_eq!(first.len(), Ok(1));
    });
}

/// Two watch: neither takes the other's ring for its own.
#[test]
fn watchers_hear_of_a_message() {
    explore(2, |scene| {
        let [_first, one, two, three] = shared_by_four(scene, None);
        scene.part(1, move || put(&one, 1));
        for (process, queue) in [(2, two), (3, three)] {
            scene.part(process, move || ask_and_watch(&queue, Tells::Something));
        }
        scene.play();
    });
}

/// One makes room, fills it, and makes room again, while one watches for room.
#[test]
fn watcher_hears_of_room() {
    explore(2, |scene| {
        let [first, one, two, _three] = shared_by_four(scene, Some(1));
        put(&first, 1);
        scene.part(1, move || {
            assert_eq!(get(&one), 1);
            put(&one, 2);
            assert_eq!(get(&one), 2);
        });
        scene.part(2, move || ask_and_watch(&two, Tells::Room));
        scene.play();
    });
}

/// One that puts dies before each of its steps, and another puts: who watches hears of that one.
#[test]
fn watcher_hears_of_the_next_when_a_putter_dies() {
    explore_deaths(1, |scene| {
        // Whoever recovers the dead looks at the page of each object.
        scene.spare(420);
        let [_first, one, two, three] = shared_by_four(scene, None);
        scene.doom(1);
        scene.part(1, move || put(&one, 1));
        scene.part(2, move || put(&two, 2));
        scene.part(3, move || ask_and_watch(&three, Tells::Something));
        scene.play();
    });
}

/// One that watches, and then lets go of the queue, dies before each of its steps, while another one recovers it and puts: in the
/// end nobody rings any more for who is gone.
#[test]
fn watcher_that_is_gone_is_forgotten() {
    explore_deaths(1, |scene| {
        scene.spare(420);
        let [first, one, two, _three] = shared_by_four(scene, None);
        let (cell, bit) = object::place(one.handle.member().slot()).unwrap();
        scene.doom(1);
        scene.part(1, move || ask_and_watch(&one, Tells::Something));
        scene.part(2, move || {
            two.handle.arena().reap().unwrap();
            put(&two, 1);
        });
        scene.play();
        first.handle.arena().reap().unwrap();
        assert_eq!(first.state().watchers[cell].load(Relaxed) & bit, 0);
    });
}
