//! Ends a test that hangs, and says where.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::Duration;

/// A test that isn't done after so long hangs, however busy the machine is.
const LIMIT: Duration = Duration::from_secs(90);

/// Ends this process with a message if it isn't dropped in time.
#[derive(Debug)]
pub(crate) struct Watchdog {
    _done: Sender<()>,
}

/// Watches over the calling test until the result is dropped.
#[track_caller]
pub(crate) fn watch() -> Watchdog {
    let place = std::panic::Location::caller();
    let (done, end) = channel::<()>();
    std::thread::spawn(move || {
        if end.recv_timeout(LIMIT) == Err(RecvTimeoutError::Timeout) {
            let tasks = std::fs::read_dir("/proc/self/task")
                .into_iter()
                .flatten()
                .flatten();
            let sleeps: Vec<String> = tasks
                .map(|task| {
                    let read =
                        |name| std::fs::read_to_string(task.path().join(name)).unwrap_or_default();
                    format!(
                        "{} in {}, syscall {}",
                        read("comm").trim(),
                        read("wchan"),
                        read("syscall").trim()
                    )
                })
                .collect();
            eprintln!("the test at {place} hangs; its threads: {sleeps:#?}");
            std::process::abort();
        }
    });
    Watchdog { _done: done }
}

/// Waits for what another process does, for as long as a loaded machine may need.
pub(crate) fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = std::time::Instant::now() + LIMIT / 2;
    while !done() {
        assert!(std::time::Instant::now() < end, "waited for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
