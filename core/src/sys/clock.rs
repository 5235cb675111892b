//! How many processors this process may run on, which decides whether waiting awake can ever pay.

/// Whether another process can run while this one waits awake.
pub(crate) fn several_processors() -> bool {
    #[cfg(simulated)]
    if let Some(system) = super::simulation::system() {
        return system.several_processors();
    }
    // The affinity mask may change while we run; asking is one system call, so it is asked where a wait begins to be
    // long, never on a fast path. (`available_parallelism` reads the files of the control group, too: 14 more calls.)
    rustix::thread::sched_getaffinity(None).is_ok_and(|processors| processors.count() > 1)
}

/// Lets another process run, if one is ready.
pub(crate) fn yield_now() {
    #[cfg(simulated)]
    if let Some(system) = super::simulation::system() {
        return system.offer();
    }
    rustix::thread::sched_yield();
}
