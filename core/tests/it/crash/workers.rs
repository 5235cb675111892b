//! Many cases at a time, each worker with arenas of its own.

use super::ledger::{Ledger, shared};
use crate::child::{Child, fork};
use std::io::Read;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering::SeqCst};

/// Workers at a time, at most.
const WORKERS_MAX: usize = 64;
/// More failures aren't told.
const FAILURES: u32 = 12;
/// Bytes of one: what a pipe takes in one piece, so that they don't mix; all of them fit into it.
const FAILURE: usize = 4096;

/// Processes that share jobs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Crew {
    pub(crate) workers: usize,
    /// A job that takes so many seconds hangs.
    pub(crate) job_seconds: u32,
}

/// Which job is whose.
#[repr(C)]
struct Progress {
    next: AtomicUsize,
    current: [AtomicUsize; WORKERS_MAX],
    failures: AtomicU32,
}

impl Crew {
    /// Does `job` for each number below `jobs`, and gives what failed: each what it panicked with, described by `name`.
    pub(crate) fn perform(
        self,
        jobs: usize,
        name: &dyn Fn(usize) -> String,
        job: &dyn Fn(usize, &'static Ledger),
    ) -> Vec<String> {
        let progress: &'static Progress = shared();
        let (mut reader, writer) = std::io::pipe().unwrap();
        let run = |number| fork(|| self.work(number, jobs, progress, name, job, &writer));
        let mut workers: Vec<(usize, Child)> = (0..self.workers)
            .map(|number| (number, run(number)))
            .collect();
        let mut failures = Vec::new();
        while let Some((number, worker)) = workers.pop() {
            let status = worker.wait();
            if status != 0 {
                let at = progress.current[number].load(SeqCst);
                failures.push(format!("{}: the harness hangs or died: {status}", name(at)));
                if progress.failures.fetch_add(1, SeqCst) < FAILURES {
                    workers.push((number, run(number)));
                }
            }
        }
        drop(writer);
        let mut told = Vec::new();
        reader.read_to_end(&mut told).unwrap();
        let told = String::from_utf8_lossy(&told);
        failures.extend(told.split('\0').map(|it| it.trim().to_owned()));
        failures.retain(|failure| !failure.is_empty());
        failures
    }

    fn work(
        self,
        number: usize,
        jobs: usize,
        progress: &Progress,
        name: &dyn Fn(usize) -> String,
        job: &dyn Fn(usize, &'static Ledger),
        mut writer: &std::io::PipeWriter,
    ) {
        // SAFETY: of this process alone: children of a victim that is killed come to it, not to the machine's first one.
        unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1) };
        let ledger: &'static Ledger = shared();
        // What a child of a case panics with reaches the failure's text by way of the ledger.
        std::panic::set_hook(Box::new(|info| ledger.say(&format!("{info}; "))));
        while progress.failures.load(SeqCst) < FAILURES {
            let at = progress.next.fetch_add(1, SeqCst);
            if at >= jobs {
                break;
            }
            progress.current[number].store(at, SeqCst);
            // SAFETY: sets a timer.
            unsafe { libc::alarm(self.job_seconds) };
            let result = std::panic::catch_unwind(AssertUnwindSafe(|| job(at, ledger)));
            if result.is_err() {
                progress.failures.fetch_add(1, SeqCst);
                let text = format!("{}: {}", name(at), ledger.said()).replace('\0', " ");
                let mut bytes = text.into_bytes();
                bytes.truncate(FAILURE - 1);
                bytes.push(0);
                std::io::Write::write_all(&mut writer, &bytes).unwrap();
                clean_up();
            }
        }
    }
}

/// Ends what a case that failed left behind.
fn clean_up() {
    // SAFETY: no status wanted.
    while unsafe { libc::waitpid(-1, std::ptr::null_mut(), libc::WNOHANG) } > 0 {}
}
