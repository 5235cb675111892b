//! Models of messages that name objects, beside a trace of what they name.

use crate::queue::orders::shared_by_four;
use crate::sys::model::{Scene, explore, explore_deaths};
use crate::{Carried, Deadline, Lock, Put, Queue};
use std::sync::{Arc, Mutex};

/// Puts a message that names an object, and nothing else: it lies among the records.
fn put_named(queue: &Queue, add: impl FnOnce(&mut Carried)) {
    let mut names = Carried::new();
    add(&mut names);
    let stored = queue.put_naming(3, &[], &names, Deadline::NEVER);
    assert_eq!(stored, Ok(Put::Stored));
}

fn put_lock(queue: &Queue, lock: &Lock) {
    put_named(queue, |names| {
        names.add(queue.handle.arena(), lock.name()).unwrap();
    });
}

/// The lock that the next message names: alive, in working order, and held.
fn get_lock(queue: &Queue, deadline: Deadline) -> Option<Lock> {
    let message = queue.get(deadline).unwrap()?;
    let [name] = *message.carried.names() else {
        panic!("a message that names one object");
    };
    let lock = Lock::open(queue.handle.arena(), name).unwrap();
    assert!(lock.try_acquire().unwrap());
    lock.release().unwrap();
    Some(lock)
}

/// A lock of that process', whose name was sent once: when it is dropped, what nobody can come to is looked for.
fn sent_before(scene: &Scene, process: usize, queue: &Queue) -> Lock {
    scene.act_for(process);
    let lock = Lock::new(queue.handle.arena()).unwrap();
    put_lock(queue, &lock);
    drop(queue.get(Deadline::NEVER).unwrap());
    scene.act_for(0);
    lock
}

/// A second queue, which processes 0 to 3 hold as well.
fn another(scene: &Scene, queues: &[Arc<Queue>; 4]) -> [Arc<Queue>; 4] {
    let queue = Queue::new(queues[0].handle.arena(), None).unwrap();
    let name = queue.name();
    let [one, two, three] = [1, 2, 3].map(|process| {
        scene.act_for(process);
        Arc::new(Queue::open(queues[process].handle.arena(), name).unwrap())
    });
    scene.act_for(0);
    [Arc::new(queue), one, two, three]
}

/// What a part has at its end.
type Kept = Arc<Mutex<Option<Lock>>>;

/// How many objects there are; all of them can be come to.
fn objects(queue: &Queue) -> u64 {
    queue.handle.arena().census().unwrap().objects
}

/// In the end the first queue and what process 2 has kept are there; without that, the queue alone.
fn lives_while_kept(scene: &Scene, first: &Queue, kept: &Kept) {
    assert_eq!(objects(first), 2);
    scene.act_for(2);
    drop(kept.lock().unwrap().take());
    scene.act_for(0);
    assert_eq!(objects(first), 1);
}

/// One puts a message that names its lock, and lets go of that; one gets it and keeps the lock; one lets go of another lock. Both
/// look then for what nobody can come to: they free the other lock, and never the one that is on its way.
#[test]
fn what_is_on_its_way_is_not_garbage() {
    explore(2, |scene| {
        scene.spare(420);
        let [first, one, two, three] = shared_by_four(scene, None);
        let own = sent_before(scene, 1, &one);
        let other = sent_before(scene, 3, &three);
        let kept = Kept::default();
        scene.part(1, move || put_lock(&one, &own));
        {
            let kept = kept.clone();
            scene.part(2, move || {
                *kept.lock().unwrap() = get_lock(&two, Deadline::NEVER);
            });
        }
        scene.part(3, move || drop(other));
        scene.play();
        lives_while_kept(scene, &first, &kept);
    });
}

/// One gets a lock from one queue and puts it into another, while one looks for what nobody can come to: in whichever order it
/// walks them, it finds the lock.
#[test]
fn what_is_passed_on_is_not_garbage() {
    explore(2, |scene| passed_on(scene, false));
}

/// The same where the one who passes it on dies before each of its steps: the lock is in one of the queues, and is alive, or died
/// with it, and is freed.
#[test]
fn what_is_passed_on_is_there_or_freed() {
    explore_deaths(1, |scene| {
        scene.doom(2);
        passed_on(scene, true);
    });
}

fn passed_on(scene: &Scene, dies: bool) {
    // Whoever traces looks at the page of each object.
    scene.spare(420);
    let from @ [first, one, two, three] = &shared_by_four(scene, None);
    let to @ [second, ..] = &another(scene, from);
    let [own, other] =
        [(1, one), (3, three)].map(|(process, queue)| sent_before(scene, process, queue));
    scene.act_for(1);
    put_lock(one, &own);
    drop(own);
    let (get, put) = (two.clone(), to[2].clone());
    scene.part(2, move || {
        let lock = get_lock(&get, Deadline::NEVER).unwrap();
        put_lock(&put, &lock);
    });
    scene.part(3, move || drop(other));
    scene.play();
    let arena = first.handle.arena();
    arena.reap().unwrap();
    // A death takes as long as one waits for the allocator's lock in passing: then this one still owes its lock.
    scene.act_for(3);
    objects(three);
    scene.act_for(0);
    let before = objects(first);
    let there = [first, second].map(|queue| get_lock(queue, Deadline::now()));
    let count = there.iter().flatten().count() as u64;
    assert_eq!(before, 2 + count, "what isn't named is there");
    assert!(count == 1 || dies && count == 0);
    drop(there);
    assert_eq!(objects(first), 2);
}

/// A lock is named in a queue that is itself named in one, and that nobody holds. One gets the queue, then the lock from it, and
/// lets go of the queue, while one looks for what nobody can come to: the queue is freed once, the lock isn't.
#[test]
fn what_is_named_by_what_is_named_is_not_garbage() {
    explore(2, |scene| {
        scene.spare(420);
        let [first, one, two, three] = shared_by_four(scene, None);
        let other = sent_before(scene, 3, &three);
        scene.act_for(1);
        let arena = one.handle.arena();
        let (inner, own) = (Queue::new(arena, None).unwrap(), Lock::new(arena).unwrap());
        put_lock(&inner, &own);
        put_named(&one, |names| names.add(arena, inner.name()).unwrap());
        drop((inner, own));
        let kept = Kept::default();
        {
            let kept = kept.clone();
            scene.part(2, move || {
                let message = two.get(Deadline::NEVER).unwrap().unwrap();
                let name = message.carried.names()[0];
                let inner = Queue::open(two.handle.arena(), name).unwrap();
                drop(message);
                *kept.lock().unwrap() = get_lock(&inner, Deadline::NEVER);
            });
        }
        scene.part(3, move || drop(other));
        scene.play();
        lives_while_kept(scene, &first, &kept);
    });
}
