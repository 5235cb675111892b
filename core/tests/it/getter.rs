//! What is known of a message whose getter died, and what a repair may take back.

use crate::child::{alone, fork, until_empty};
use procession_core::sys::crash::{self, Action};
use procession_core::{Arena, Deadline, Put, Queue};
use std::time::Duration;

/// Four of these fill a segment but for a little.
const QUARTER: usize = 16_000;
/// A message with a run of its own.
const LARGE: usize = 50_000;

/// Longer than a put takes, unless the one who is stopped is in its way, which it may be.
const WHILE: Duration = Duration::from_millis(60);

fn filled(arena: &Arena, lengths: &[usize]) -> Queue {
    let queue = Queue::new(arena, None).unwrap();
    for length in lengths {
        queue.put(0, &[&vec![1; *length]], Deadline::NEVER).unwrap();
    }
    queue
}

#[test]
fn a_message_that_dies_with_its_getter_is_counted() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    for lengths in [&[40][..], &[LARGE], &[40, 40]] {
        let mut uncounted = 0;
        for n in 1.. {
            let queue = filled(&arena, lengths);
            let getter = fork(|| {
                crash::arm(n, Action::Kill);
                let got = queue.get_into(&mut Vec::new(), Deadline::now()).unwrap();
                crash::disarm();
                // Freed with this process.
                std::mem::forget(got);
            });
            let status = getter.wait();
            assert!([0, -libc::SIGKILL].contains(&status), "{status}");
            let ended = status == 0;
            queue.settle().unwrap();
            let taken = lengths.len() as u64 - queue.len().unwrap();
            assert!(queue.lost().unwrap() <= taken, "killed before store {n}");
            if ended {
                break;
            }
            uncounted += taken - queue.lost().unwrap();
            drop(queue);
            until_empty(&arena);
        }
        // Once the note is cleared: before the lock's release; and while a large message is freed by its new owner.
        assert!(
            uncounted <= if lengths == [LARGE] { 20 } else { 1 },
            "{uncounted}"
        );
    }
}

/// A getter is killed while it leaves a segment behind; another one repairs, and is stopped meanwhile; the first one is
/// recovered, and what it held goes to the same queue anew.
#[test]
fn a_repair_that_is_overtaken_takes_back_nothing_new() {
    let _alone = alone();
    let arena = Arena::create().unwrap();
    let mut stopped = 0;
    for lengths in [[QUARTER; 5], [40, LARGE, LARGE, 40, 40]] {
        for n in 1.. {
            let get_all = |queue: &Queue| {
                for _ in 0..5 {
                    queue.get(Deadline::now()).unwrap().unwrap();
                }
            };
            let mut killed = true;
            for m in 1..8 {
                let queue = filled(&arena, &lengths);
                let getter = fork(|| {
                    crash::arm(n, Action::Kill);
                    get_all(&queue);
                    crash::disarm();
                });
                let status = getter.wait();
                assert!([0, -libc::SIGKILL].contains(&status), "{status}");
                killed = status != 0;
                let repairer = fork(|| {
                    crash::arm(m, Action::Stop);
                    queue.settle().unwrap();
                    crash::disarm();
                });
                if !repairer.wait_stopped() {
                    std::mem::forget(repairer);
                    break;
                }
                stopped += 1;
                arena.reap().unwrap();
                // Both take what was freed last.
                let lengths = [LARGE, QUARTER, QUARTER, QUARTER, QUARTER, LARGE];
                let put = |length| queue.put(7, &[&vec![7; length]], Deadline::after(WHILE));
                let stored = lengths.map(|length| u64::from(put(length).unwrap() == Put::Stored));
                repairer.signal(libc::SIGCONT);
                repairer.join();
                let mut seen = 0;
                while let Some(got) = queue.get(Deadline::now()).unwrap() {
                    assert!(got.bytes.iter().all(|byte| *byte == got.bytes[0]));
                    seen += u64::from(got.tag == 7);
                }
                assert_eq!(
                    seen,
                    stored.iter().sum::<u64>(),
                    "killed before store {n}, stopped before store {m}"
                );
                drop(queue);
                until_empty(&arena);
            }
            if !killed {
                break;
            }
        }
    }
    assert!(stopped > 20, "{stopped}");
}
