//! Hostile bytes: whatever the arena's bytes are, no call reads out of bounds, panics, hangs or eats the machine.
//!
//! The changes come from a seed, which is printed; `SEED`, `CASE` and `CASES` replay. Each batch runs in a child with a limit
//! on memory, so that what shouldn't happen ends the child and not the test.

mod exercise;

use crate::child::{Random, alone, fork};
use exercise::{Change, Target};
use procession_core::sys::crash::{self, Action};
use std::sync::atomic::{AtomicU64, Ordering};

/// Cases in a usual run.
const CASES: u64 = 6_000;
/// Cases of one child.
const BATCH: u64 = 200;
/// Seconds after which a case hangs: its calls wait for a hundredth of a second each.
const CASE_SECONDS: u32 = 30;
/// One of so many cases forks, which takes longer than all the rest.
const FORKS: u64 = 4;
/// Failures that are shown.
const FAILURES: usize = 20;
/// No case needs as much memory, in bytes.
const MEMORY: u64 = 4 << 30;
/// Stores into an operation at which its process dies.
const STORES: u64 = 9;

#[test]
fn any_bytes_are_survived() {
    let _alone = alone();
    let number = |name, default| {
        let text = std::env::var(name).ok();
        text.map_or(default, |text| text.parse().expect("a number"))
    };
    let seed = number("SEED", 11);
    let first = number("CASE", 0);
    let cases = number(
        "CASES",
        if std::env::var("CASE").is_ok() {
            1
        } else {
            CASES
        },
    );
    println!("SEED={seed}");
    let target = Target::new(die_in);
    let words = target.words();
    // Shared with the children, so that the case is known that ended one.
    let progress = shared_counter();
    let mut failures = Vec::new();
    let mut next = first;
    while next < first + cases && failures.len() < FAILURES {
        let end = (first + cases).min(next + BATCH);
        let status = fork(|| {
            limit_memory();
            for case in next..end {
                progress.store(case, Ordering::Relaxed);
                // SAFETY: sets a timer, which ends this child.
                unsafe { libc::alarm(CASE_SECONDS) };
                let forks = case % FORKS == 0;
                target.exercise(&changes(seed, case, &words), &|work| {
                    if forks {
                        in_child(work);
                    }
                });
            }
        })
        .wait();
        next = end;
        if status != 0 {
            let case = progress.load(Ordering::Relaxed);
            let changes = changes(seed, case, &words);
            failures.push(format!(
                "SEED={seed} CASE={case}: ended with {status}, {changes:x?}"
            ));
            next = case + 1;
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    println!("{cases} cases, {} words", words.len());
}

/// Runs something in a child that is killed in the middle of it.
fn die_in(work: &dyn Fn()) {
    let child = fork(|| {
        crash::arm(STORES, Action::Kill);
        work();
        // SAFETY: to this process.
        unsafe { libc::raise(libc::SIGKILL) };
    });
    assert_eq!(child.wait(), -libc::SIGKILL);
}

/// Runs something in a child, which ends with all that it holds.
fn in_child(work: &dyn Fn()) {
    fork(|| {
        // SAFETY: sets a timer, which ends this child.
        unsafe { libc::alarm(CASE_SECONDS / 2) };
        work();
    })
    .join();
}

/// One to four words, changed in a way that may mean something: one bit, another word of the arena, an edge.
fn changes(seed: u64, case: u64, words: &[Change]) -> Vec<Change> {
    let mut random =
        Random::new(seed.wrapping_mul(0x9e37_79b9) ^ case.wrapping_mul(0x0010_0001_0001));
    for _ in 0..8 {
        random.below(2);
    }
    let pick =
        |random: &mut Random| words[usize::try_from(random.below(words.len() as u64)).unwrap()];
    let count = 1 + random.below(4);
    (0..count)
        .map(|_| {
            let at = pick(&mut random);
            let word = match random.below(8) {
                0..=2 => at.word ^ 1 << random.below(64),
                3 => pick(&mut random).word,
                4 => [0, 1, u64::MAX, u64::MAX >> 1, 1 << 32, 1 << 40, 0xffff_ffff]
                    [usize::try_from(random.below(7)).unwrap()],
                5 => at
                    .word
                    .wrapping_add(random.below(1 << 20))
                    .wrapping_sub(1 << 19),
                6 => random.below(1 << 41) & !0xfff,
                _ => random.below(u64::MAX),
            };
            // Mostly a word that means something, now and then any.
            let offset = if random.below(16) == 0 {
                random.below(1 << 20)
            } else {
                at.offset
            };
            Change { offset, word }
        })
        .collect()
}

fn limit_memory() {
    let limit = libc::rlimit {
        rlim_cur: MEMORY,
        rlim_max: MEMORY,
    };
    // SAFETY: reads one structure.
    let limited = unsafe { libc::setrlimit(libc::RLIMIT_AS, &raw const limit) };
    assert_eq!(limited, 0);
}

/// A number that children and parent share.
fn shared_counter() -> &'static AtomicU64 {
    // SAFETY: a new mapping, of a page.
    let page = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            4096,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    assert_ne!(page, libc::MAP_FAILED);
    // SAFETY: mapped for the rest of the process' life, aligned, and all zero.
    unsafe { &*page.cast() }
}
