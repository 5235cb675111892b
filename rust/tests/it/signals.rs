//! What a signal does to a child of a test.

use procession::ChildHandle;
use std::time::Duration;

const SIGINT: i32 = 2;
const SIGKILL: i32 = 9;

/// Interrupts a child, and tells the signal that ends it. What a shell starts in the background ignores SIGINT, and so do
/// its children, by whatever method: one that does lives on, and is killed.
pub(crate) fn interrupt(child: &ChildHandle) -> i32 {
    child.interrupt().unwrap();
    if !is_ignored(SIGINT) {
        return SIGINT;
    }
    std::thread::sleep(Duration::from_millis(50));
    assert!(child.is_alive().unwrap());
    child.kill().unwrap();
    SIGKILL
}

/// Whether this process ignores the signal.
fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let mut lines = status.lines();
    let mask = lines.find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
    u64::from_str_radix(mask.trim(), 16).unwrap() >> (signal - 1) & 1 != 0
}
