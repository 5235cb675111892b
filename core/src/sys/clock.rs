//! How many processors this process may run on, which decides whether waiting awake can ever pay.

/// Whether another process can run while this one waits awake.
pub(crate) fn several_processors() -> bool {
    // The affinity mask may change while we run; asking costs a system call, so it is asked where a wait begins to
    // be long, never on a fast path.
    std::thread::available_parallelism().is_ok_and(|count| count.get() > 1)
}

/// Lets another process run, if one is ready.
pub(crate) fn yield_now() {
    rustix::thread::sched_yield();
}
