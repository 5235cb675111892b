//! What callers of a pool wait for.

use super::drive::Shared;
use crate::codec;
use crate::error::{Error, ErrorKind, JoinError, Result};
use crate::function::{self, Named};
use crate::names;
use procession_core::pool::batch::{Gather, Stream};
use procession_core::{Carried, Deadline};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// `imap` submits until so many tasks are unanswered.
const WINDOW: usize = 4096;
/// The same in bytes of their calls: more would only fill pages that a later one could have used while they are warm.
const WINDOW_BYTES: u64 = 8 << 20;

/// A task's answer: its tag, its bytes, the objects that it names, held until it is decoded.
type Answer = (u8, Box<[u8]>, Carried);

/// What was asked for together.
#[derive(Debug)]
pub(super) struct Job {
    /// Something can be taken: all of a gather, the next of a stream.
    ready: AtomicBool,
    results: Mutex<Results>,
}

#[derive(Debug)]
enum Results {
    Gather(Gather<Answer, JoinError>),
    Stream(Stream<Result<Answer, JoinError>>),
}

impl Job {
    /// One that gives its results together.
    pub(super) fn gather(tasks: usize) -> Self {
        Self {
            ready: AtomicBool::new(tasks == 0),
            results: Mutex::new(Results::Gather(Gather::new(tasks))),
        }
    }

    /// One that gives its results one by one.
    pub(super) fn stream(ordered: bool) -> Self {
        let stream = if ordered {
            Stream::ordered()
        } else {
            Stream::unordered()
        };
        Self {
            ready: AtomicBool::new(false),
            results: Mutex::new(Results::Stream(stream)),
        }
    }

    /// Takes the end of a task.
    pub(super) fn put(&self, index: u64, end: Result<Answer, JoinError>) {
        let mut results = self.results();
        let ready = match &mut *results {
            Results::Gather(gather) => {
                // A panic is an error of the job as well, and the first one counts.
                let end = end.and_then(|(tag, bytes, carried)| match tag {
                    function::end::RETURNED => Ok((tag, bytes, carried)),
                    _ => Err(function::failure(tag, &bytes)),
                });
                gather
                    .put(usize::try_from(index).unwrap_or(usize::MAX), end)
                    .0
            }
            Results::Stream(stream) => {
                stream.put(index, end);
                stream.is_ready()
            }
        };
        if ready {
            // With the results locked, or a taker of the last one could say before this that there is no more.
            self.ready.store(true, Ordering::Release);
        }
    }

    fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    fn gathered(&self) -> Result<Vec<Answer>, JoinError> {
        match &mut *self.results() {
            Results::Gather(gather) => gather.finish(),
            Results::Stream(_) => Ok(Vec::new()),
        }
    }

    /// The next result of a stream that is there.
    fn next(&self) -> Option<Result<Answer, JoinError>> {
        let Results::Stream(stream) = &mut *self.results() else {
            return None;
        };
        let next = stream.take();
        self.ready.store(stream.is_ready(), Ordering::Release);
        next
    }

    fn results(&self) -> MutexGuard<'_, Results> {
        self.results.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The result of one task, to be waited for.
///
/// Python: `AsyncResult`.
pub struct AsyncResult<R> {
    pool: Arc<Shared>,
    job: Arc<Job>,
    value: PhantomData<fn() -> R>,
}

/// The results of a [`map_async`](crate::Pool::map_async), to be waited for together.
///
/// Python: `MapResult`.
pub struct MapResult<R> {
    pool: Arc<Shared>,
    job: Arc<Job>,
    value: PhantomData<fn() -> R>,
}

impl<R> AsyncResult<R> {
    pub(super) fn new(pool: &Arc<Shared>, job: Arc<Job>) -> Self {
        let (pool, value) = (pool.clone(), PhantomData);
        Self { pool, job, value }
    }

    /// Waits for the result, driving the pool meanwhile.
    ///
    /// # Errors
    /// [`Panicked`](JoinError::Panicked) when the function panicked, [`Lost`](JoinError::Lost) when its worker died;
    /// `Failed` when the pool was terminated, or values can't be encoded or decoded.
    pub fn get(self) -> Result<R, JoinError>
    where
        R: DeserializeOwned,
    {
        self.pool.drive(&|| self.job.is_ready(), Deadline::NEVER)?;
        let answers = self.job.gathered()?;
        let (tag, bytes, _carried) = answers.first().ok_or_else(nothing)?;
        function::value(*tag, bytes)
    }

    /// Waits for at most so long, and says whether the result is there.
    ///
    /// # Errors
    /// `Poisoned` when shared memory contradicts itself.
    pub fn wait_timeout(&self, timeout: Duration) -> Result<bool> {
        self.pool
            .drive(&|| self.job.is_ready(), Deadline::after(timeout))
    }

    /// Whether the result is there: delivers what has come, and never waits.
    ///
    /// # Errors
    /// `Poisoned` when shared memory contradicts itself.
    pub fn is_ready(&self) -> Result<bool> {
        self.wait_timeout(Duration::ZERO)
    }
}

impl<R> MapResult<R> {
    pub(super) fn new(pool: &Arc<Shared>, job: Arc<Job>) -> Self {
        let (pool, value) = (pool.clone(), PhantomData);
        Self { pool, job, value }
    }

    /// Waits for all results, driving the pool meanwhile.
    ///
    /// # Errors
    /// The first error, as of [`AsyncResult::get`], once all chunks have ended.
    pub fn get(self) -> Result<Vec<R>, JoinError>
    where
        R: DeserializeOwned,
    {
        self.pool.drive(&|| self.job.is_ready(), Deadline::NEVER)?;
        let mut values = Vec::new();
        for (tag, bytes, _carried) in self.job.gathered()? {
            values.append(&mut function::answer(tag, &bytes)?);
        }
        Ok(values)
    }

    /// Waits for at most so long, and says whether the results are there.
    ///
    /// # Errors
    /// `Poisoned` when shared memory contradicts itself.
    pub fn wait_timeout(&self, timeout: Duration) -> Result<bool> {
        self.pool
            .drive(&|| self.job.is_ready(), Deadline::after(timeout))
    }

    /// Whether the results are there: delivers what has come, and never waits.
    ///
    /// # Errors
    /// `Poisoned` when shared memory contradicts itself.
    pub fn is_ready(&self) -> Result<bool> {
        self.wait_timeout(Duration::ZERO)
    }
}

/// The results of [`imap`](crate::Pool::imap), one by one. Waits for the next one, driving the pool meanwhile.
///
/// An item of it is an error if its task had one; the next ones come all the same. Dropping it forgets what is left.
pub struct Imap<I, R> {
    pool: Arc<Shared>,
    named: Named,
    job: Arc<Job>,
    /// What is left to be submitted.
    items: Option<I>,
    submitted: u64,
    submitted_bytes: u64,
    given: u64,
    value: PhantomData<fn() -> R>,
}

impl<I: Iterator, R> Imap<I, R> {
    pub(super) fn new(pool: &Arc<Shared>, named: Named, job: Job, items: I) -> Result<Self> {
        pool.feed_began()?;
        Ok(Self {
            pool: pool.clone(),
            named,
            job: Arc::new(job),
            items: Some(items),
            submitted: 0,
            submitted_bytes: 0,
            given: 0,
            value: PhantomData,
        })
    }
}

impl<I: Iterator, R> Imap<I, R>
where
    I::Item: Serialize,
{
    /// Submits while there is room: all that there is for when half of it was answered.
    fn feed(&mut self) -> Result<()> {
        if self.items.is_none() {
            return Ok(());
        }
        let (out, window) = (self.pool.unanswered(), self.window());
        if out > window / 2 && self.submitted > self.given {
            return Ok(());
        }
        for _ in out..window.max(out + 1) {
            let Some(item) = self.items.as_mut().and_then(Iterator::next) else {
                self.end_feed();
                return Ok(());
            };
            codec::with_buffer(|call| {
                let names = names::naming(|| self.named.call_one(&item, call))?;
                self.submitted_bytes += call.len() as u64;
                self.pool.submit(&self.job, self.submitted, call, &names)
            })?;
            self.submitted += 1;
        }
        Ok(())
    }

    /// How many tasks may be unanswered, by how long they are on average: two for each worker in any case, and only
    /// those before the first length is known.
    fn window(&self) -> usize {
        let average = self.submitted_bytes / self.submitted.max(1);
        let most = match self.submitted {
            0 => 0,
            _ => usize::try_from(WINDOW_BYTES / average.max(1)).unwrap_or(WINDOW),
        };
        most.min(WINDOW).max(2 * self.pool.size())
    }
}

impl<I, R> Imap<I, R> {
    fn end_feed(&mut self) {
        if self.items.take().is_some() {
            self.pool.feed_ended();
        }
    }
}

impl<I: Iterator, R: DeserializeOwned> Iterator for Imap<I, R>
where
    I::Item: Serialize,
{
    type Item = Result<R, JoinError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Err(error) = self.feed() {
            // Results of what was submitted before still come.
            self.end_feed();
            return Some(Err(error.into()));
        }
        if self.given == self.submitted {
            return None;
        }
        if let Err(error) = self.pool.drive(&|| self.job.is_ready(), Deadline::NEVER) {
            self.end_feed();
            self.given = self.submitted;
            return Some(Err(error.into()));
        }
        self.given += 1;
        let answer = self.job.next()?;
        Some(answer.and_then(|(tag, bytes, _carried)| function::value(tag, &bytes)))
    }
}

impl<I, R> Drop for Imap<I, R> {
    fn drop(&mut self) {
        self.end_feed();
    }
}

fn nothing() -> JoinError {
    JoinError::Failed(Error::new(
        ErrorKind::Broken,
        "take a result: there is none",
    ))
}

impl<R> fmt::Debug for AsyncResult<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AsyncResult")
            .field("ready", &self.job.is_ready())
            .finish_non_exhaustive()
    }
}

impl<R> fmt::Debug for MapResult<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MapResult")
            .field("ready", &self.job.is_ready())
            .finish_non_exhaustive()
    }
}

impl<I, R> fmt::Debug for Imap<I, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Imap")
            .field("submitted", &self.submitted)
            .field("given", &self.given)
            .finish_non_exhaustive()
    }
}
