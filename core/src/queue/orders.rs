//! Models of the bell and of the queue.

use super::layout::{HEADER, QueueState, SEGMENT};
use super::{Claim, Put, Queue};
use crate::shm::bell::{Bell, Rung};
use crate::shm::orders::{FREE, found, join};
use crate::sys::model::{Scene, explore, explore_deaths, explore_disturbed};
use crate::sys::word::{Acquire, Cell, Relaxed, Release};
use crate::{Arena, Deadline, Error};
use std::sync::{Arc, Mutex};

fn bell(arena: &Arena) -> &Bell {
    arena.inner.at(FREE).unwrap()
}

/// What is published before the bell rings.
fn published(arena: &Arena) -> &Cell {
    arena.inner.at(FREE + 64).unwrap()
}

/// Sleeps until so much is published.
fn sleep_until(arena: &Arena, enough: u64) {
    while published(arena).load(Acquire) < enough {
        let ready = || Ok(published(arena).load(Acquire) >= enough);
        assert_eq!(
            bell(arena).sleep_unless(ready, Deadline::NEVER),
            Ok(Rung::Look)
        );
    }
}

/// Two ring after each has published something, one sleeps until both have: no ring is lost between its look and
/// its sleep, nor to a ringer that takes it for woken already; also when a sleep ends for no reason.
#[test]
fn bell_loses_no_ring() {
    explore_disturbed(2, |scene| {
        let arena = found(scene);
        for process in 1..=2 {
            let arena = arena.clone();
            scene.part(process, move || {
                published(&arena).add(1);
                bell(&arena).ring();
            });
        }
        {
            let arena = arena.clone();
            scene.part(3, move || sleep_until(&arena, 2));
        }
        scene.play();
    });
}

/// One publishes once, with a plain store, and rings; one goes to sleep twice. Nothing but the two fences
/// orders the store before the look at the ticket, and the ticket before the look at what is published.
#[test]
fn bell_is_heard_by_who_is_about_to_sleep() {
    explore_disturbed(3, |scene| {
        let arena = found(scene);
        {
            let arena = arena.clone();
            scene.part(1, move || {
                for count in 1..=2 {
                    published(&arena).store(count, Release);
                    bell(&arena).ring();
                }
            });
        }
        {
            let arena = arena.clone();
            scene.part(2, move || {
                sleep_until(&arena, 1);
                sleep_until(&arena, 2);
            });
        }
        scene.play();
    });
}

/// A ringer dies before each of its steps; the next ringer wakes the sleeper all the same.
#[test]
fn bell_of_a_dead_ringer_is_rung_by_the_next() {
    explore_deaths(3, |scene| {
        let arena = found(scene);
        scene.doom(1);
        for process in 1..=2 {
            let arena = arena.clone();
            scene.part(process, move || {
                published(&arena).add(1);
                bell(&arena).ring();
            });
        }
        {
            let arena = arena.clone();
            scene.part(3, move || sleep_until(&arena, 1));
        }
        scene.play();
    });
}

/// A ring for all wakes the sleepers of both bells of a queue that is closed under them.
#[test]
fn close_wakes_both_sides() {
    explore(2, |scene| {
        let [first, one, two, three] = shared_by_four(scene, Some(1));
        put(&first, 9);
        assert_eq!(get(&first), 9);
        scene.part(1, move || {
            let result = one.get(Deadline::NEVER);
            assert!(matches!(result, Err(Error::Closed { .. }) | Ok(Some(_))));
        });
        scene.part(2, move || {
            loop {
                match two.put(0, &[&[7]], Deadline::NEVER) {
                    Ok(Put::Stored) => {}
                    other => break assert!(matches!(other, Err(Error::Closed { .. }))),
                }
            }
        });
        scene.part(3, move || three.close().unwrap());
        scene.play();
        assert_eq!(first.is_closed(), Ok(true));
    });
}

/// A queue that the processes 0 to 3 hold, each by its own membership, with its first segment entered.
pub(super) fn shared_by_four(scene: &Scene, capacity: Option<u32>) -> [Arc<Queue>; 4] {
    let arena = found(scene);
    let queue = Queue::new(&arena, capacity).unwrap();
    put(&queue, 0);
    assert_eq!(get(&queue), 0);
    let name = queue.name();
    let [one, two, three] = [1, 2, 3].map(|process| {
        let arena = join(scene, &arena, process);
        scene.act_for(process);
        Arc::new(Queue::open(&arena, name).unwrap())
    });
    scene.act_for(0);
    [Arc::new(queue), one, two, three]
}

/// Moves both ends of an empty queue to where one more record of a number fits into the segment.
fn move_to_the_end(queue: &Queue) {
    let (state, member): (&QueueState, _) = (queue.state(), queue.handle.member());
    let last = state.put.segment.load(Relaxed) + SEGMENT - 3 * HEADER;
    member.at::<Cell>(last).unwrap().store(0, Relaxed);
    for end in [&state.put, &state.get] {
        end.position.store(last, Relaxed);
        end.next_position.store(last, Relaxed);
    }
}

pub(super) fn put(queue: &Queue, number: u64) {
    let stored = queue.put(1, &[&number.to_le_bytes()], Deadline::NEVER);
    assert_eq!(stored, Ok(Put::Stored));
}

/// More bytes than lie among the records.
fn put_long(queue: &Queue, number: u64) {
    let stored = queue.put(2, &[&number.to_le_bytes(), &[7; 24]], Deadline::NEVER);
    assert_eq!(stored, Ok(Put::Stored));
}

fn number(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes[..8].try_into().unwrap())
}

pub(super) fn get(queue: &Queue) -> u64 {
    let message = queue.get(Deadline::NEVER).unwrap().unwrap();
    let whole = match message.tag {
        1 => message.bytes.len() == 8,
        _ => message.bytes[8..] == [7; 24],
    };
    assert!(whole, "a torn message");
    number(&message.bytes)
}

/// What is left in a queue.
fn drain(queue: &Queue) -> Vec<u64> {
    let mut left = Vec::new();
    while let Some(message) = queue.get(Deadline::now()).unwrap() {
        left.push(number(&message.bytes));
    }
    left
}

/// What several processes got, each in its own order.
type Got = Arc<Mutex<Vec<u64>>>;

fn note(got: &Got, number: u64) {
    got.lock().unwrap().push(number);
}

/// One puts two messages, one gets two: each once, whole, in order. A header that is seen before its bytes fails
/// here, and so does a sleeper for whom nobody rings.
#[test]
fn queue_hands_over_in_order() {
    explore_disturbed(2, |scene| {
        let [_first, one, two, _three] = shared_by_four(scene, None);
        scene.part(1, move || (1..=2).for_each(|number| put(&one, number)));
        scene.part(2, move || {
            (1..=2).for_each(|number| assert_eq!(get(&two), number))
        });
        scene.play();
    });
}

/// Two put one message each, one gets both.
#[test]
fn queue_of_two_producers() {
    explore(2, |scene| {
        let [_first, one, two, three] = shared_by_four(scene, None);
        scene.part(1, move || put(&one, 1));
        scene.part(2, move || put(&two, 2));
        scene.part(3, move || assert_eq!(get(&three) + get(&three), 3));
        scene.play();
    });
}

/// One puts two messages, two get one each: the bytes of one aren't another's.
#[test]
fn queue_of_two_consumers() {
    explore(2, |scene| {
        let [_first, one, two, three] = shared_by_four(scene, None);
        let got = Got::default();
        scene.part(1, move || (1..=2).for_each(|number| put(&one, number)));
        for (process, queue) in [(2, two), (3, three)] {
            let got = got.clone();
            scene.part(process, move || note(&got, get(&queue)));
        }
        scene.play();
        let mut got = got.lock().unwrap().clone();
        got.sort_unstable();
        assert_eq!(got, [1, 2]);
    });
}

/// The second of two messages goes into a new segment, and the old one is freed while its producer may still be at
/// it: nothing is lost, and no page is taken twice.
#[test]
fn queue_crosses_a_segment() {
    explore(2, |scene| {
        let [first, one, two, _three] = shared_by_four(scene, None);
        move_to_the_end(&first);
        scene.part(1, move || (1..=2).for_each(|number| put(&one, number)));
        scene.part(2, move || {
            (1..=2).for_each(|number| assert_eq!(get(&two), number))
        });
        scene.play();
        first.handle.arena().census().unwrap();
    });
}

/// Room for one message, and two to put: the producer sleeps and is woken, also when a sleep ends for no reason.
#[test]
fn bounded_queue_makes_room() {
    explore_disturbed(2, |scene| {
        let [first, one, two, _three] = shared_by_four(scene, Some(1));
        scene.part(1, move || (1..=2).for_each(|number| put(&one, number)));
        scene.part(2, move || {
            (1..=2).for_each(|number| assert_eq!(get(&two), number))
        });
        scene.play();
        assert_eq!(first.len(), Ok(0));
    });
}

/// A long message's pages go from its producer to the queue to its consumer, and back to the allocator.
#[test]
fn queue_hands_over_pages() {
    explore(2, |scene| {
        let [first, one, two, three] = shared_by_four(scene, None);
        scene.part(1, move || put_long(&one, 1));
        scene.part(2, move || put_long(&two, 2));
        scene.part(3, move || assert_eq!(get(&three) + get(&three), 3));
        scene.play();
        let census = first.handle.arena().census().unwrap();
        assert_eq!(census.owned_bytes, 0);
    });
}

/// A producer dies before each of its steps, another one puts, and a consumer gets: what was put is got once and
/// in order, what was half put is got whole or never.
#[test]
fn queue_survives_a_producer() {
    explore_deaths(2, |scene| producer_dies(scene, false));
}

/// The same where the dead producer was about to enter a new segment, and where its message had pages of its own.
#[test]
fn queue_survives_a_producer_with_pages() {
    explore_deaths(1, |scene| producer_dies(scene, true));
}

fn producer_dies(scene: &Scene, pages: bool) {
    let [first, one, two, three] = shared_by_four(scene, None);
    if pages {
        move_to_the_end(&first);
        // Whoever repairs the allocator looks at each page.
        scene.spare(420);
    }
    scene.doom(1);
    let (put_by_one, got) = (Got::default(), Got::default());
    {
        let put_by_one = put_by_one.clone();
        let one = one.clone();
        scene.part(1, move || {
            for number in 1..=2 {
                if pages {
                    put_long(&one, number)
                } else {
                    put(&one, number)
                }
                note(&put_by_one, number);
            }
        });
    }
    let neighbour = two.clone();
    scene.part(2, move || put(&neighbour, 10));
    {
        let (got, three) = (got.clone(), three.clone());
        scene.part(3, move || note(&got, get(&three)));
    }
    scene.play();
    let arena = first.handle.arena();
    arena.reap().unwrap();
    let mut got = got.lock().unwrap().clone();
    got.extend(drain(&first));
    let theirs: Vec<u64> = got.iter().copied().filter(|number| *number < 10).collect();
    let stored = put_by_one.lock().unwrap().len();
    assert_eq!(theirs, [1, 2][..theirs.len()], "in order, each once");
    assert!((stored..=stored + 1).contains(&theirs.len()));
    assert_eq!(
        got.len() - theirs.len(),
        1,
        "the neighbour's is there, once"
    );
    let census = arena.census().unwrap();
    assert_eq!(census.owned_bytes, 0);
    assert_eq!(census.processes, 4 - u64::from(scene.was_killed()));
}

/// A consumer dies before each of its steps, another one gets: what the dead had taken is lost and counted, or is still
/// there for the next; its claim says which.
#[test]
fn queue_survives_a_consumer() {
    explore_deaths(3, |scene| consumer_dies(scene, false));
}

/// The same for a message with pages of its own, the last in its segment.
#[test]
fn queue_survives_a_consumer_with_pages() {
    explore_deaths(1, |scene| consumer_dies(scene, true));
}

fn consumer_dies(scene: &Scene, pages: bool) {
    let [first, one, two, _three] = shared_by_four(scene, None);
    if pages {
        move_to_the_end(&first);
        // Whoever repairs the allocator looks at each page.
        scene.spare(420);
    }
    let put = if pages { put_long } else { put };
    (1..=3).for_each(|number| put(&first, number));
    scene.doom(1);
    let claim = Arc::new(Claim::new(first.handle.arena()).unwrap());
    let (got, got_by_one) = (Got::default(), Got::default());
    {
        let (claim, one, got) = (claim.clone(), one.clone(), got_by_one.clone());
        scene.part(1, move || {
            let mut bytes = Vec::new();
            let taken = one
                .get_claiming(&claim, &mut bytes, Deadline::NEVER)
                .unwrap()
                .unwrap();
            if let Some(extent) = &taken.extent {
                extent.append_to(&mut bytes).unwrap();
            }
            note(&got, number(&bytes));
        });
    }
    {
        let (got, two) = (got.clone(), two.clone());
        scene.part(2, move || note(&got, get(&two)));
    }
    scene.play();
    let arena = first.handle.arena();
    arena.reap().unwrap();
    first.settle().unwrap();
    let mut all = got.lock().unwrap().clone();
    all.extend(drain(&first));
    let claimed = claim.value().unwrap();
    assert!(!all.contains(&claimed), "claimed, and got by another");
    let returned = got_by_one.lock().unwrap().clone();
    assert!(returned.iter().all(|number| *number == claimed));
    all.extend((claimed != 0).then_some(claimed));
    all.sort_unstable();
    assert_eq!(all, [1, 2, 3], "each got by one, or claimed by the dead");
    assert!(first.lost().unwrap() <= u64::from(returned.is_empty() && claimed != 0));
    assert_eq!(arena.census().unwrap().owned_bytes, 0);
}

/// A joinable queue that the processes 0 to 3 hold, with its first segment entered and no task to be done.
fn tasks_of_four(scene: &Scene) -> [Arc<Queue>; 4] {
    let arena = found(scene);
    let queue = Queue::joinable(&arena, None).unwrap();
    put(&queue, 0);
    assert_eq!(get(&queue), 0);
    queue.task_done().unwrap();
    let name = queue.name();
    let [one, two, three] = [1, 2, 3].map(|process| {
        let arena = join(scene, &arena, process);
        scene.act_for(process);
        Arc::new(Queue::open_joinable(&arena, name).unwrap())
    });
    scene.act_for(0);
    [Arc::new(queue), one, two, three]
}

/// One does a task, and one joins: it ends when that is done, and not before; also when a sleep ends for no reason.
#[test]
fn join_waits_for_a_task() {
    explore_disturbed(2, |scene| {
        let [first, one, two, _three] = tasks_of_four(scene);
        put(&first, 1);
        let done = Got::default();
        let doing = done.clone();
        scene.part(1, move || {
            note(&doing, get(&one));
            one.task_done().unwrap();
        });
        scene.part(2, move || {
            assert_eq!(two.join(Deadline::NEVER), Ok(Some(0)));
            assert_eq!(done.lock().unwrap()[..], [1]);
        });
        scene.play();
        assert_eq!(first.unfinished(), Ok(0));
        assert!(first.task_done().is_err());
    });
}

/// One puts, and joins, while another does what was there before, and then that: being told of the first end isn't the second.
#[test]
fn join_waits_for_what_its_own_process_put() {
    explore(2, |scene| {
        let [first, one, two, _three] = tasks_of_four(scene);
        put(&first, 1);
        let done = Got::default();
        let doing = done.clone();
        scene.part(1, move || {
            for _ in 0..2 {
                note(&doing, get(&one));
                one.task_done().unwrap();
            }
        });
        scene.part(2, move || {
            put(&two, 2);
            assert_eq!(two.join(Deadline::NEVER), Ok(Some(0)));
            assert_eq!(done.lock().unwrap()[..], [1, 2]);
        });
        scene.play();
        assert_eq!(first.unfinished(), Ok(0));
    });
}

/// One that does a task dies before each of its steps, and another does one: join ends, everything is done, and what the
/// dead had got and not done is told as lost, once.
#[test]
fn join_hears_of_the_dead() {
    explore_deaths(1, |scene| {
        let [first, one, two, _three] = tasks_of_four(scene);
        (1..=3).for_each(|number| put(&first, number));
        scene.doom(1);
        let done = Got::default();
        for (process, queue) in [(1, one.clone()), (2, two.clone())] {
            let done = done.clone();
            scene.part(process, move || {
                let number = get(&queue);
                queue.task_done().unwrap();
                note(&done, number);
            });
        }
        scene.play();
        let arena = first.handle.arena();
        arena.reap().unwrap();
        let left = first.len().unwrap();
        assert_eq!(first.unfinished(), Ok(left), "the dead still owes some");
        assert_eq!(drain(&first).len() as u64, left);
        (0..left).for_each(|_| first.task_done().unwrap());
        let lost = first.join(Deadline::now()).unwrap().expect("an end");
        let done = done.lock().unwrap().len() as u64;
        // One that died in `task_done` may have been through.
        let unsure = u64::from(scene.was_killed());
        assert!(lost <= unsure && done + left + lost <= 3 && done + left + unsure >= 3);
        assert_eq!(first.join(Deadline::now()), Ok(Some(0)), "told twice");
        assert!(first.task_done().is_err(), "done twice");
    });
}
