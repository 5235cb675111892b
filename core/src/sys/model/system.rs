//! What the engine asks its system for, answered by a model.

use super::super::simulation::System;
use super::super::word::Wake;
use super::World;
use std::panic::Location;
use std::sync::atomic::AtomicU32;
use std::thread::panicking;
use std::time::Duration;

/// How long a wait awake takes for one look: longer than the engine has patience for, so it looks once. Whoever waits
/// awake and sleeps then does nothing that one who sleeps at once doesn't.
const LOOK: Duration = Duration::from_micros(30);

fn address(word: &AtomicU32) -> usize {
    std::ptr::from_ref(word).addr()
}

/// While a panic, or the death of a process, unwinds the stack, nothing is touched any more.
impl System for World {
    fn step(&self, _site: &'static Location<'static>) {
        if !panicking() {
            self.point();
        }
    }

    fn offer(&self) {
        self.pass(LOOK);
    }

    fn several_processors(&self) -> bool {
        false
    }

    fn sleep(&self, word: &AtomicU32, value: u32, timeout: Option<Duration>) -> i32 {
        if panicking() {
            return 0;
        }
        self.point();
        match self.sleep_on(address(word), value, timeout.is_some()) {
            Wake::Look => 0,
            Wake::TimedOut => rustix::io::Errno::TIMEDOUT.raw_os_error(),
            Wake::Interrupted => rustix::io::Errno::INTR.raw_os_error(),
        }
    }

    fn wake(&self, word: &AtomicU32, count: u32) -> usize {
        if panicking() || !self.memory.is_shared() {
            return 0;
        }
        self.point();
        // A step among all that touches the word.
        self.memory.newest(address(word));
        self.wake_at(address(word), count)
    }

    fn pid(&self) -> u32 {
        self.id()
    }

    fn started(&self) -> u64 {
        1
    }

    fn robust_list(&self) -> usize {
        if panicking() { 0 } else { self.head() }
    }

    fn is_gone(&self, pid: u32, _started: u64) -> bool {
        !panicking() && self.is_over(pid)
    }

    fn thread_exists(&self, tid: u32) -> bool {
        panicking() || !self.is_over(tid)
    }

    fn is_stopped(&self, _tid: u32) -> bool {
        false
    }

    fn mapped(&self, _address: usize, _bytes: usize, _offset: u64) {}

    fn unmapped(&self, _address: usize) {}
}
