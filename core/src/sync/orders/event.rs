//! Models of the event.

use super::super::Event;
use super::{Hold, shared_by_four};
use crate::Deadline;
use crate::sys::model::{Scene, explore_disturbed};

fn event_of_four(scene: &Scene) -> [Hold<Event>; 4] {
    shared_by_four(scene, Event::new, |arena, event| {
        Event::open(arena, event.name())
    })
}

fn wait(event: &Event, count: u32) {
    assert_eq!(event.wait(count, Deadline::NEVER), Ok(true));
}

/// One writes and sets the event, two wait, and read what was written: a set isn't lost between a look and a sleep, and both
/// are woken.
#[test]
fn an_event_wakes_all_who_wait() {
    explore_disturbed(2, |scene| {
        let [first, one, others @ ..] = event_of_four(scene);
        let setter = one.clone();
        scene.part(1, move || {
            setter.write(0, 1);
            setter.set().unwrap();
        });
        for (process, event) in (2..).zip(others.clone()) {
            scene.part(process, move || {
                wait(&event, 0);
                assert_eq!(event.guarded(), 1);
            });
        }
        scene.play();
        assert_eq!(first.is_set(), Ok(true));
    });
}

/// The event is set and cleared at once, twice; who waits for the one and then the other returns all the same.
#[test]
fn an_event_that_is_cleared_was_set() {
    explore_disturbed(2, |scene| {
        let [first, one, two, _] = event_of_four(scene);
        let (setter, waiter) = (one.clone(), two.clone());
        scene.part(1, move || {
            for _ in 0..2 {
                setter.set().unwrap();
                setter.clear().unwrap();
            }
        });
        scene.part(2, move || {
            wait(&waiter, 0);
            wait(&waiter, 1);
        });
        scene.play();
        assert_eq!(first.count(), Ok(2));
        assert_eq!(first.is_set(), Ok(false));
    });
}
