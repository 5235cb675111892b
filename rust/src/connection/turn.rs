//! A lock whose takers have deadlines, which std's hasn't.

use procession_core::Deadline;
use std::ops::{Deref, DerefMut};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// A value that one thread at a time has, for as long as it may take.
#[derive(Debug)]
pub(super) struct Turn<T> {
    place: Mutex<Place<T>>,
    free: Condvar,
}

#[derive(Debug)]
struct Place<T> {
    /// Nothing while a thread has it.
    value: Option<T>,
    waiting: usize,
}

/// The value, until this is dropped.
#[derive(Debug)]
pub(super) struct Taken<'a, T> {
    turn: &'a Turn<T>,
    /// Nothing only while it is dropped.
    value: Option<T>,
}

impl<T> Turn<T> {
    pub(super) fn new(value: T) -> Self {
        Self {
            place: Mutex::new(Place {
                value: Some(value),
                waiting: 0,
            }),
            free: Condvar::new(),
        }
    }

    /// Takes the value, once no other thread has it; `None` if one has it until the deadline has passed.
    pub(super) fn take(&self, deadline: Deadline) -> Option<Taken<'_, T>> {
        let mut place = self.lock();
        while place.value.is_none() {
            if deadline.passed() {
                return None;
            }
            place.waiting += 1;
            place = match deadline.remaining() {
                None => self
                    .free
                    .wait(place)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(left) => {
                    let waited = self.free.wait_timeout(place, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
            place.waiting -= 1;
        }
        let value = place.value.take();
        Some(Taken { turn: self, value })
    }

    fn lock(&self) -> MutexGuard<'_, Place<T>> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Deref for Taken<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.value.as_ref().expect("taken until dropped")
    }
}

impl<T> DerefMut for Taken<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.value.as_mut().expect("taken until dropped")
    }
}

impl<T> Drop for Taken<'_, T> {
    fn drop(&mut self) {
        let mut place = self.turn.lock();
        place.value = self.value.take();
        // A wake is a system call: not for nobody.
        if place.waiting > 0 {
            self.turn.free.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Turn;
    use procession_core::Deadline;
    use std::time::{Duration, Instant};

    #[test]
    fn one_thread_at_a_time_has_it() {
        let turn = Turn::new(0u64);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        let mut taken = turn.take(Deadline::NEVER).unwrap();
                        let before = *taken;
                        std::thread::yield_now();
                        *taken = before + 1;
                    }
                });
            }
        });
        assert_eq!(*turn.take(Deadline::now()).unwrap(), 2000);
    }

    #[test]
    fn who_waits_for_it_has_a_deadline() {
        let turn = Turn::new(());
        let taken = turn.take(Deadline::NEVER).unwrap();
        assert!(turn.take(Deadline::now()).is_none());
        let (begin, short) = (Instant::now(), Duration::from_millis(30));
        assert!(turn.take(Deadline::after(short)).is_none());
        assert!(begin.elapsed() >= short);
        drop(taken);
        assert!(turn.take(Deadline::now()).is_some());
    }

    #[test]
    fn a_panic_gives_it_back() {
        let turn = Turn::new(());
        std::thread::scope(|scope| {
            let panics = scope.spawn(|| {
                let _taken = turn.take(Deadline::NEVER);
                panic!("as it should");
            });
            assert!(panics.join().is_err());
        });
        assert!(turn.take(Deadline::now()).is_some());
    }
}
