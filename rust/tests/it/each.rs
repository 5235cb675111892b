//! Tests that are run for each start method.

use crate::watchdog::watch;
use procession::{Builder, Process, StartMethod};

pub(crate) const METHODS: [StartMethod; 3] = [
    StartMethod::Spawn,
    StartMethod::Fork,
    StartMethod::Forkserver,
];

/// Runs a test for each start method, in a child of libtest's process: that one has threads, and can't fork.
#[track_caller]
pub(crate) fn each(test: impl Fn(usize) + Copy + 'static) {
    let _watchdog = watch();
    for (number, method) in METHODS.iter().enumerate() {
        let ended = Process::spawn(test, number).unwrap().join();
        assert!(ended.is_ok(), "{method}: {}", ended.unwrap_err());
    }
}

pub(crate) fn by(method: usize) -> Builder {
    Process::builder().start_method(METHODS[method])
}

pub(crate) fn start<A, T>(
    method: usize,
    function: impl Fn(A) -> T + Copy + 'static,
    argument: A,
) -> Process<T>
where
    A: serde::Serialize + serde::de::DeserializeOwned + 'static,
    T: serde::Serialize + serde::de::DeserializeOwned + 'static,
{
    by(method).spawn(function, argument).unwrap()
}
