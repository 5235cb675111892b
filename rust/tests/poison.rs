//! Shared memory that contradicts itself: a program of its own, since nothing else can go on in it.
#![allow(missing_docs, reason = "tests")]

use procession::{ErrorKind, Lock, Pool, Queue};
use std::os::unix::fs::FileExt;

procession::test_support!();

/// docs/shm.md: the header's `poison`, and its text.
const POISON: (u64, &[u8]) = (408, b"\x02\0\0\0\0\0\0\0a test's mark\0");

#[test]
fn every_call_says_that_shared_memory_is_poisoned() {
    let (lock, queue) = (Lock::new().unwrap(), Queue::<u32>::new().unwrap());
    let mut files = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let arena = files.find(|file| {
        let name = std::fs::read_link(file.path()).unwrap_or_default();
        name.to_string_lossy().starts_with("/memfd:procession")
    });
    let mut options = std::fs::OpenOptions::new();
    let arena = options.write(true).open(arena.unwrap().path()).unwrap();
    arena.write_all_at(POISON.1, POISON.0).unwrap();
    let errors = [
        Lock::new().map(drop).unwrap_err(),
        lock.release().unwrap_err(),
        procession::Error::from(queue.put(&1).unwrap_err()),
        procession::Error::from(queue.get().unwrap_err()),
        queue.len().map(drop).unwrap_err(),
        Pool::new(1).map(drop).unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.kind(), ErrorKind::Poisoned, "{error}");
        let text = "is poisoned: a test's mark contradicted itself";
        assert!(error.to_string().ends_with(text), "{error}");
    }
}
