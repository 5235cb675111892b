//! Joining an arena with a token: what is checked.

use crate::child::{alone, fork, until, until_empty};
use procession_core::{Acquired, Arena, Deadline, Error, Lock};
use std::os::fd::{AsRawFd, IntoRawFd, RawFd};
use std::os::unix::process::CommandExt;

/// A copy of the arena's descriptor, for an attach to take over.
fn copy(arena: &Arena) -> RawFd {
    arena
        .descriptor()
        .try_clone_to_owned()
        .unwrap()
        .into_raw_fd()
}

fn refused(token: &str) -> Error {
    Arena::attach(token).expect_err("it must be refused")
}

#[test]
fn a_token_is_good_for_one_attach() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let lock = Lock::new(&arena).unwrap();
    let slot = arena.reserve().unwrap();
    slot.give(lock.name()).unwrap();
    let token = |descriptor| slot.token(descriptor);
    let joined = Arena::attach(&token(copy(&arena))).unwrap();
    assert_eq!(arena.census().unwrap().processes, 2);
    let same = Lock::open(&joined, lock.name()).unwrap();
    assert_eq!(same.acquire(Deadline::NEVER).unwrap(), Acquired::Clean);
    assert!(lock.is_held().unwrap());
    lock.release().unwrap();
    assert!(matches!(
        refused(&token(copy(&arena))),
        Error::Misuse { .. }
    ));
}

#[test]
fn who_has_lost_its_place_gets_another() {
    let _alone = alone();
    // Its own slot is free when it comes, or another process' by then.
    for is_taken in [false, true] {
        let arena = Arena::create().unwrap();
        let mine = Lock::new(&arena).unwrap();
        let slot = arena.reserve().unwrap();
        let token = slot.token(copy(&arena));
        drop(slot);
        let _other = is_taken.then(|| arena.reserve().unwrap());
        let joined = Arena::attach(&token).unwrap();
        let processes = arena.census().unwrap().processes;
        assert_eq!(processes, 2);
        let same = Lock::open(&joined, mine.name()).unwrap();
        assert_eq!(same.acquire(Deadline::NEVER).unwrap(), Acquired::Clean);
        assert!(mine.is_held().unwrap());
        mine.release().unwrap();
    }
    // What was held for it alone is gone.
    let arena = Arena::create().unwrap();
    let others = Lock::new(&arena).unwrap();
    let name = others.name();
    let slot = arena.reserve().unwrap();
    slot.give(name).unwrap();
    let token = slot.token(copy(&arena));
    drop((others, slot));
    let joined = Arena::attach(&token).unwrap();
    assert!(Lock::open(&joined, name).is_err());
}

#[test]
fn another_arena_is_refused() {
    let _alone = alone();
    let (arena, other) = (Arena::create().unwrap(), Arena::create().unwrap());
    let slot = arena.reserve().unwrap();
    let error = refused(&slot.token(copy(&other)));
    assert!(error.to_string().contains("not the arena"), "{error}");
    let file = std::fs::File::open("/dev/null").unwrap();
    let error = refused(&slot.token(file.into_raw_fd()));
    assert!(matches!(error, Error::Malformed { .. }), "{error}");
}

#[test]
fn another_build_is_refused() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let slot = arena.reserve().unwrap();
    let path = format!("/proc/self/fd/{}", arena.descriptor().as_raw_fd());
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    // docs/shm.md: the header's `build`.
    std::os::unix::fs::FileExt::write_all_at(&file, &[0; 8], 40).unwrap();
    let error = refused(&slot.token(copy(&arena)));
    assert!(error.to_string().contains("another build"), "{error}");
}

#[test]
fn malformed_tokens_are_refused() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let descriptor = arena.descriptor().as_raw_fd();
    let generation = "1:7";
    for token in [
        String::new(),
        "x".to_owned(),
        format!("{descriptor}"),
        format!("{descriptor}:0:1:0:0"),
        format!("{descriptor}:1024:1:0:0"),
        format!("{descriptor}:{generation}:zz:0"),
        format!("{descriptor}:{generation}:0"),
        "-1:1:1:0:0".to_owned(),
        "99999:1:1:0:0".to_owned(),
    ] {
        let error = refused(&token);
        assert!(
            matches!(error, Error::Malformed { .. } | Error::Os { .. }),
            "{token:?}: {error}"
        );
    }
    assert_eq!(arena.census().unwrap().processes, 1);
}

#[test]
fn a_forked_childs_copy_of_a_place_gives_nothing_back() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let place = arena.reserve().unwrap();
    // SAFETY: the child's copy is dropped once, in the child, which leaves by _exit.
    fork(|| drop(unsafe { std::ptr::read(&raw const place) })).join();
    let next = arena.reserve().unwrap();
    let slot = |token: String| token.split(':').nth(1).map(str::to_owned);
    assert_ne!(slot(place.token(0)), slot(next.token(0)));
}

#[test]
fn a_forked_child_without_a_place_shares_nothing() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let lock = Lock::new(&arena).unwrap();
    let places: Vec<_> = (0..1022).map(|_| arena.reserve().unwrap()).collect();
    assert!(matches!(arena.reserve(), Err(Error::Exhausted { .. })));
    fork(|| {
        let deadline = Deadline::now();
        assert!(matches!(lock.acquire(deadline), Err(Error::Misuse { .. })));
        assert!(matches!(Lock::new(&arena), Err(Error::Misuse { .. })));
        // SAFETY: the child's copies are dropped once, in the child, which leaves by _exit.
        drop(unsafe { std::ptr::read(&raw const lock) });
        // SAFETY: as above.
        drop(unsafe { std::ptr::read(&raw const arena) });
    })
    .join();
    drop(places);
    arena.reap().unwrap();
    let census = arena.census().unwrap();
    assert_eq!((census.processes, census.objects), (1, 1));
    assert_eq!(lock.acquire(Deadline::now()).unwrap(), Acquired::Clean);
}

#[test]
fn a_place_in_the_list_of_a_living_thread_stays_taken() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let place = arena.reserve().unwrap();
    let token = place.token(copy(&arena));
    fork(|| {
        // The first thread attaches, and another one drops the membership: the list still has the slot's life word.
        let joined = Arena::attach(&token).unwrap();
        std::thread::spawn(move || drop(joined)).join().unwrap();
        arena.reap().unwrap();
        assert_eq!(arena.census().unwrap().processes, 3);
    })
    .join();
    arena.reap().unwrap();
    assert_eq!(arena.census().unwrap().processes, 1);
}

#[test]
fn exec_is_noticed_when_another_thread_than_the_first_attached() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let place = arena.reserve().unwrap();
    let token = place.token(copy(&arena));
    let child = fork(|| {
        let attached = std::thread::spawn(move || {
            std::mem::forget(Arena::attach(&token).unwrap());
            std::thread::park();
        });
        until("it to attach", || arena.census().unwrap().processes == 3);
        let error = std::process::Command::new("sleep").arg("60").exec();
        panic!("{error}, {attached:?}");
    });
    until("it to attach", || arena.census().unwrap().processes == 3);
    until_empty(&arena);
    drop(child);
}
