//! What runs around every fork(2) of this process that goes through the C library.
#![allow(
    unsafe_code,
    reason = "pthread_atfork and the errno that its handlers find"
)]

/// Registers the three handlers for the rest of the process' life. Source: pthread_atfork(3).
pub(crate) fn around(prepare: extern "C" fn(), parent: extern "C" fn(), child: extern "C" fn()) {
    // SAFETY: handlers-are-static: functions, not closures, so they live as long as the process. It fails only
    // without memory for three pointers; then a fork behaves as one of a process that never joined.
    let _ = unsafe { libc::pthread_atfork(Some(prepare), Some(parent), Some(child)) };
}

/// Forgets the last error, so that [`fork_failed`] can tell in the parent's handler.
pub(crate) fn forget_error() {
    // SAFETY: errno-is-the-thread's: the address is this thread's own.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: errno-is-the-thread's.
    unsafe { errno.write(0) };
}

/// Whether the fork that the parent's handler runs for has failed: the C library runs it then too, and says why only
/// in errno. A child of a fork wrongly taken for failed finds its slot gone and joins anew.
pub(crate) fn fork_failed() -> bool {
    // SAFETY: errno-is-the-thread's.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: errno-is-the-thread's.
    matches!(
        unsafe { errno.read() },
        libc::EAGAIN | libc::ENOMEM | libc::ENOSYS
    )
}
