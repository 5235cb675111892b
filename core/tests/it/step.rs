//! Instants between two stores as well: a process is stepped some instructions into an operation, then killed.

use crate::child::{Random, alone};
use crate::scene::{OPERATIONS, Scene};

/// Kills at most this many steps apart.
const STRIDE: u64 = 397;
/// No operation takes more instructions than this; those that fork or grow aren't stepped to their end.
const STEPS_MAX: u64 = 12_000;

/// Steps a child `steps` instructions into `work` and kills it there; false when it had ended by then.
fn step_and_kill(steps: u64, work: impl FnOnce()) -> bool {
    // SAFETY: as in `child::fork`.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0);
    if pid == 0 {
        // SAFETY: asks to be traced, and stops for the tracer.
        unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) };
        // SAFETY: to this process.
        unsafe { libc::raise(libc::SIGSTOP) };
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        // SAFETY: ends the process.
        unsafe { libc::_exit(if result.is_ok() { 0 } else { 101 }) };
    }
    let wait = || {
        let mut status = 0;
        // SAFETY: writes one status.
        assert_eq!(unsafe { libc::waitpid(pid, &raw mut status, 0) }, pid);
        status
    };
    let mut status = wait();
    for _ in 0..steps {
        if !libc::WIFSTOPPED(status) {
            assert!(
                libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0,
                "{status:x}"
            );
            return false;
        }
        // SAFETY: our own stopped tracee.
        unsafe { libc::ptrace(libc::PTRACE_SINGLESTEP, pid, 0, 0) };
        status = wait();
    }
    if !libc::WIFSTOPPED(status) {
        return false;
    }
    // SAFETY: our own child, not reaped yet.
    unsafe { libc::kill(pid, libc::SIGKILL) };
    while libc::WIFSTOPPED(wait()) {}
    true
}

#[test]
fn a_kill_between_any_two_instructions_is_survived() {
    let _alone = alone();
    let seed = std::env::var("SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or(7);
    println!("SEED={seed}");
    let mut random = Random::new(seed);
    let mut kills = 0;
    for operation in OPERATIONS {
        let mut steps = 0;
        loop {
            steps += 1 + random.below(2 * STRIDE);
            let scene = Scene::new(operation);
            let killed = steps < STEPS_MAX && step_and_kill(steps, || (operation.run)(&scene));
            scene.check(
                operation,
                &format!("killed after {steps} instructions, seed {seed}"),
            );
            if !killed {
                break;
            }
            kills += 1;
        }
    }
    println!("{kills} kills");
}
