//! Chunks of a job, and how their results come together again. PURE.
//!
//! `map` cuts its input into chunks, a task each; [`Gather`] puts the results in order and reports the first error
//! once all chunks have ended, never earlier, so that no task of a failed `map` is still running when it raises.
//! `imap` hands results out one by one: [`Stream`].

use std::collections::VecDeque;

/// The number of items in a chunk when the caller doesn't say: four chunks for each worker, the last may be shorter.
///
/// Zero for no items. Source: `Pool._map_async` of CPython's multiprocessing/pool.py.
#[must_use]
pub fn chunk_size(items: usize, workers: usize) -> usize {
    items.div_ceil(workers.max(1) * 4)
}

/// Collects the results of a job's tasks in their order.
#[derive(Debug)]
pub struct Gather<R, E> {
    results: Vec<Option<R>>,
    left: usize,
    error: Option<E>,
}

impl<R, E> Gather<R, E> {
    /// A gather of so many tasks; none is complete at once.
    #[must_use]
    pub fn new(tasks: usize) -> Self {
        Self {
            results: std::iter::repeat_with(|| None).take(tasks).collect(),
            left: tasks,
            error: None,
        }
    }

    /// How many tasks haven't ended.
    #[must_use]
    pub fn left(&self) -> usize {
        self.left
    }

    /// The job turned out to have so many tasks; said when all of them were submitted.
    pub fn resize(&mut self, tasks: usize) {
        let ended = self.results.len() - self.left;
        self.results.resize_with(tasks, || None);
        self.left = tasks.saturating_sub(ended);
    }

    /// Takes a task's end: its result, or its error, of which the first is kept. Says whether the job is complete.
    ///
    /// What comes back beside it is for the caller to drop: later errors, results of a task beyond the last.
    pub fn put(&mut self, index: usize, end: Result<R, E>) -> (bool, Option<Result<R, E>>) {
        let refused = match end {
            Ok(result) => match self.results.get_mut(index) {
                Some(place @ None) => {
                    *place = Some(result);
                    None
                }
                _ => return (self.left == 0, Some(Ok(result))),
            },
            Err(error) if self.error.is_none() => {
                self.error = Some(error);
                None
            }
            Err(error) => Some(Err(error)),
        };
        self.left = self.left.saturating_sub(1);
        (self.left == 0, refused)
    }

    /// All results in order, or the first error. To be called once the job is complete.
    ///
    /// # Errors
    /// The error that came first in time, as in the standard library.
    pub fn finish(&mut self) -> Result<Vec<R>, E> {
        match self.error.take() {
            Some(error) => Err(error),
            None => Ok(std::mem::take(&mut self.results)
                .into_iter()
                .flatten()
                .collect()),
        }
    }
}

/// Hands the results of a job out one by one: in the order of the tasks, or as they come.
#[derive(Debug)]
pub struct Stream<R> {
    ready: VecDeque<R>,
    /// Results that came before their turn; the first place is the turn of `next`.
    early: Option<VecDeque<Option<R>>>,
    /// How many results were made ready.
    next: u64,
    tasks: Option<u64>,
}

impl<R> Stream<R> {
    /// Results in the order of their tasks.
    #[must_use]
    pub fn ordered() -> Self {
        Self {
            ready: VecDeque::new(),
            early: Some(VecDeque::new()),
            next: 0,
            tasks: None,
        }
    }

    /// Results as they come.
    #[must_use]
    pub fn unordered() -> Self {
        Self {
            early: None,
            ..Self::ordered()
        }
    }

    /// The job has so many tasks; said when the last one was submitted.
    pub fn set_tasks(&mut self, tasks: u64) {
        self.tasks = Some(tasks);
    }

    /// How many tasks the job has, once that is known.
    #[must_use]
    pub fn tasks(&self) -> Option<u64> {
        self.tasks
    }

    /// How many results were or can be taken.
    #[must_use]
    pub fn reached(&self) -> u64 {
        self.next
    }

    /// Whether all results are here, taken or not.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.tasks.is_some_and(|tasks| self.next >= tasks)
    }

    /// Whether no result is there and none will come.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.ready.is_empty() && self.is_complete()
    }

    /// Whether a result can be taken.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Takes the end of the task `index`; each task is to be put once.
    pub fn put(&mut self, index: u64, result: R) {
        let Some(early) = &mut self.early else {
            self.ready.push_back(result);
            self.next += 1;
            return;
        };
        if index == self.next && early.is_empty() {
            self.ready.push_back(result);
            self.next += 1;
            return;
        }
        let Some(place) = index
            .checked_sub(self.next)
            .and_then(|place| usize::try_from(place).ok())
        else {
            return;
        };
        if place >= early.len() {
            early.resize_with(place + 1, || None);
        }
        early[place] = Some(result);
        while let Some(Some(_)) = early.front() {
            self.ready.extend(early.pop_front().flatten());
            self.next += 1;
        }
    }

    /// The next result; `None` when there is none now.
    pub fn take(&mut self) -> Option<R> {
        self.ready.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunk_sizes_are_the_standard_ones() {
        for (items, workers, size) in [
            (0, 2, 0),
            (1, 2, 1),
            (8, 2, 1),
            (9, 2, 2),
            (100_000, 2, 12_500),
            (5, 0, 2),
        ] {
            assert_eq!(
                chunk_size(items, workers),
                size,
                "{items} items, {workers} workers"
            );
        }
    }

    #[test]
    fn a_gather_puts_results_in_order() {
        let mut gather: Gather<char, ()> = Gather::new(3);
        assert_eq!(gather.put(2, Ok('c')), (false, None));
        assert_eq!(gather.put(0, Ok('a')), (false, None));
        assert_eq!(
            gather.put(0, Ok('z')),
            (false, Some(Ok('z'))),
            "a place is filled once"
        );
        assert_eq!(gather.put(1, Ok('b')), (true, None));
        assert_eq!(gather.finish(), Ok(vec!['a', 'b', 'c']));
    }

    #[test]
    fn an_error_waits_for_the_last_chunk() {
        let mut gather: Gather<(), u8> = Gather::new(3);
        assert_eq!(gather.put(1, Err(1)), (false, None));
        assert_eq!(gather.put(0, Err(2)), (false, Some(Err(2))));
        assert_eq!(gather.left(), 1);
        assert_eq!(gather.put(2, Ok(())), (true, None));
        assert_eq!(gather.finish(), Err(1));
    }

    #[test]
    fn a_gather_learns_its_length() {
        let mut gather: Gather<u8, ()> = Gather::new(5);
        gather.put(0, Ok(1));
        gather.resize(2);
        assert_eq!(gather.left(), 1);
        assert!(gather.put(1, Ok(2)).0);
        assert_eq!(gather.finish(), Ok(vec![1, 2]));
    }

    #[test]
    fn an_ordered_stream_keeps_early_results_back() {
        let mut stream = Stream::ordered();
        stream.put(2, 'c');
        stream.put(1, 'b');
        assert_eq!(stream.take(), None);
        stream.put(0, 'a');
        assert_eq!(stream.reached(), 3);
        stream.put(3, 'd');
        stream.set_tasks(4);
        assert!(stream.is_complete() && !stream.is_over());
        let all: String = std::iter::from_fn(|| stream.take()).collect();
        assert_eq!((all.as_str(), stream.is_over()), ("abcd", true));
    }

    #[test]
    fn an_unordered_stream_doesnt() {
        let mut stream = Stream::unordered();
        stream.put(2, 'c');
        stream.put(0, 'a');
        assert_eq!(
            (stream.take(), stream.take(), stream.take()),
            (Some('c'), Some('a'), None)
        );
        stream.set_tasks(2);
        assert!(stream.is_over());
    }
}
