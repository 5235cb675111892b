//! Plain memory between processes.

use crate::child::{Random, alone, fork, until_empty};
use procession_core::{Arena, Error, Memory};
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::Duration;

#[test]
fn a_forked_child_sees_the_same_bytes() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let memory = Memory::new(&arena, 10_000).unwrap();
    fork(|| memory.bytes().write(5_000, b"from the child").unwrap()).join();
    let mut bytes = [0; 14];
    memory.bytes().read(5_000, &mut bytes).unwrap();
    assert_eq!(&bytes, b"from the child");
    drop(memory);
    until_empty(&arena);
}

#[test]
fn it_outlives_its_maker_in_whoever_holds_it() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let memory = Memory::new(&arena, 8).unwrap();
    let gone = Memory::new(&arena, 8).unwrap();
    let child = fork(|| {
        while gone.bytes().u32_at(0).unwrap().load(SeqCst) == 0 {
            std::thread::yield_now();
        }
        // Its parent has let go of it by now: pages that it freed would be taken by these.
        let others: Vec<Memory> = (0..50).map(|_| Memory::new(&arena, 8).unwrap()).collect();
        for other in &others {
            other.bytes().u64_at(0).unwrap().store(u64::MAX, SeqCst);
        }
        assert_eq!(memory.bytes().u64_at(0).unwrap().load(SeqCst), 7);
    });
    memory.bytes().u64_at(0).unwrap().store(7, SeqCst);
    drop(memory);
    let others: Vec<Memory> = (0..50).map(|_| Memory::new(&arena, 8).unwrap()).collect();
    for other in &others {
        other.bytes().u64_at(0).unwrap().store(u64::MAX, SeqCst);
    }
    gone.bytes().u32_at(0).unwrap().store(1, SeqCst);
    child.join();
    drop((gone, others));
    until_empty(&arena);
}

#[test]
fn an_escaped_one_lives_without_a_holder() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let memory = Memory::new(&arena, 8).unwrap();
    memory.bytes().u64_at(0).unwrap().store(9, Relaxed);
    let name = memory.escape().unwrap();
    drop(memory);
    fork(|| {
        let memory = Memory::open(&arena, name).unwrap();
        assert_eq!(memory.bytes().u64_at(0).unwrap().load(Relaxed), 9);
    })
    .join();
}

#[test]
fn random_kills_leave_none() {
    let _alone = alone();
    let mut random = Random::seeded(20_261_126);
    let arena = Arena::create().unwrap();
    let kept = Memory::new(&arena, 100_000).unwrap();
    kept.bytes().write(0, &[0xAB; 100_000]).unwrap();
    for _ in 0..40 {
        let seed = random.below(u64::MAX);
        let victim = fork(|| {
            let mut random = Random::new(seed);
            let mut held = Vec::new();
            loop {
                let length = 1 + usize::try_from(random.below(60_000)).unwrap();
                let memory = Memory::new(&arena, length).unwrap();
                let mut bytes = vec![1; length];
                memory.bytes().read(0, &mut bytes).unwrap();
                assert!(bytes.iter().all(|byte| *byte == 0));
                memory.bytes().write(0, &vec![0xFF; length]).unwrap();
                held.push(memory);
                if held.len() > 8 {
                    held.swap_remove(usize::try_from(random.below(8)).unwrap());
                }
            }
        });
        std::thread::sleep(Duration::from_micros(500 + random.below(6_000)));
        victim.signal(libc::SIGKILL);
        assert_eq!(victim.wait(), -libc::SIGKILL);
        arena.reap().unwrap();
        let census = arena.census().unwrap();
        assert_eq!((census.objects, census.owned_bytes), (1, 0));
    }
    let mut bytes = vec![0; 100_000];
    kept.bytes().read(0, &mut bytes).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 0xAB));
    drop(kept);
    until_empty(&arena);
}

#[test]
fn too_much_is_an_error_and_nothing_is_lost() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    fork(|| {
        let limit = libc::rlimit {
            rlim_cur: 4 << 20,
            rlim_max: 4 << 20,
        };
        // SAFETY: sets a limit of this process.
        let set = unsafe { libc::setrlimit(libc::RLIMIT_FSIZE, &raw const limit) };
        assert_eq!(set, 0);
        let refused = Memory::new(&arena, 64 << 20);
        assert!(matches!(refused, Err(Error::Os { .. })), "{refused:?}");
        let small = Memory::new(&arena, 100).unwrap();
        small.bytes().write(0, &[1; 100]).unwrap();
    })
    .join();
    until_empty(&arena);
}
