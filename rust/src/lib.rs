#![doc = include_str!("../../README.md")]
#![forbid(unsafe_code)]

mod child;
mod codec;
mod connection;
mod descriptor;
mod error;
mod function;
mod launch;
mod names;
mod pool;
mod process;
mod queue;
mod server;
mod shared;
mod sync;
mod tree;

/// The crate whose [`Pod`](bytemuck::Pod) says what shared data may be.
pub use bytemuck;
pub use child::{init, init_with};
pub use connection::{
    AcceptError, Address, Client, Connection, Listener, ListenerBuilder, Pipe, RecvError,
    SendError, one_way_pipe, pipe,
};
pub use descriptor::Descriptor;
pub use error::{Error, ErrorKind, GetError, JoinError, PutError, RemoteError, Result, TaskError};
pub use pool::{Apply, AsyncResult, Imap, MapResult, Pool};
pub use process::{
    Builder, ChildHandle, CurrentProcess, ParentProcess, Process, StartMethod, Stdio,
    active_children, current_process, parent_process, wait, wait_timeout,
};
pub use procession_core::{ExitStatus, Readiness};
pub use queue::{JoinableQueue, Queue, SimpleQueue};
pub use shared::{Array, ArrayGuard, Atomic, RawArray, RawValue, SharedMemory, Value, ValueGuard};
pub use sync::{
    Barrier, BarrierError, BoundedSemaphore, Condition, ConditionGuard, Event, Lock, LockError,
    LockGuard, RLock, RLockGuard, Semaphore, SemaphoreGuard,
};

/// What the crate's macros expand to. Not for use by name.
#[doc(hidden)]
pub mod __private {
    pub use crate::child::test_entry;
    pub use crate::tree::census;
}

/// Lets the tests of this crate start processes: expands to one test, in which their children begin.
///
/// libtest owns `main`, so [`init`] can't be its first line. A child of a test starts the test binary again, with
/// nothing but this test to run; run by anybody else, the test does nothing. Once per test binary, in any module.
/// An argument is the hook of [`init_with`].
///
/// ```
/// procession::test_support!();
///
/// #[test]
/// fn a_child_returns_a_value() {
///     let child = procession::Process::spawn(|number: u32| number + 1, 41).unwrap();
///     assert_eq!(child.join().unwrap(), 42);
/// }
/// ```
#[allow(
    clippy::test_attr_in_doctest,
    reason = "a test is what the example shows; it is compiled"
)]
#[macro_export]
macro_rules! test_support {
    () => {
        $crate::test_support!(|| {});
    };
    ($preload:expr) => {
        #[test]
        fn procession_child() {
            let mark = concat!(
                "procession: children begin in ",
                module_path!(),
                "::procession_child\0"
            );
            $crate::__private::test_entry(mark, $preload);
        }
    };
}
