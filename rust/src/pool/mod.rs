//! Pools: many tasks, few processes.
//!
//! [`drive`] is the pool's own end, [`worker`] the other; [`result`] is what callers wait for. What to do next is the
//! core's scheduler's affair.

mod drive;
mod result;
mod worker;

pub use result::{AsyncResult, Imap, MapResult};

use crate::codec;
use crate::error::{JoinError, Result};
use crate::function::{Named, Spread, Whole};
use crate::names;
use drive::Shared;
use procession_core::pool::batch;
use result::Job;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;

/// A number of processes that run tasks: functions of this program, with an argument each.
///
/// Tasks and results travel through shared memory. There is no thread behind it: whoever waits for a result also
/// delivers everybody's, and looks after the workers. So while nobody waits the workers go on with what was submitted,
/// and one that dies is replaced when somebody waits again.
///
/// Functions are plain ones, or closures that capture nothing, as in [`Process`](crate::Process).
///
/// Dropping it [terminates](Self::terminate) it, as leaving Python's `with` does; to let its tasks finish,
/// [`close`](Self::close) and [`join`](Self::join) it.
///
/// # Across processes
/// A worker that dies costs the task that it was running, whose caller is told [how it ended](JoinError::Lost); another
/// worker takes its place. Workers die with this process.
///
/// # After fork
/// The pool is the parent's: the child's copy submits and drops, and waits for nothing.
///
/// # Examples
/// ```no_run
/// # fn main() -> procession::Result<()> {
/// procession::init();
/// let pool = procession::Pool::new(2)?;
/// let squares = pool.map(|number: u64| number * number, 0..10)?;
/// assert_eq!(squares[9], 81);
/// # Ok(())
/// # }
/// ```
///
/// Python: `Pool`.
#[derive(Debug)]
pub struct Pool {
    shared: Arc<Shared>,
}

impl Pool {
    /// Starts a pool of so many workers, each about a millisecond.
    ///
    /// # Errors
    /// `Misuse` for no workers, or when [`init`](crate::init) wasn't called; `Os` or `Exhausted` when there are no
    /// processes, descriptors or memory.
    pub fn new(workers: u32) -> Result<Self> {
        Ok(Self {
            shared: Shared::new(workers)?,
        })
    }

    /// Runs one task and waits for its result.
    ///
    /// # Errors
    /// As [`AsyncResult::get`]; `Closed` when the pool was closed.
    pub fn apply<F, A, R>(&self, function: F, argument: A) -> Result<R, JoinError>
    where
        F: Fn(A) -> R + Copy + 'static,
        A: Serialize + DeserializeOwned + 'static,
        R: Serialize + DeserializeOwned + 'static,
    {
        self.apply_async(function, argument)?.get()
    }

    /// Submits one task. Well below a microsecond, and no system call unless a worker sleeps.
    ///
    /// # Errors
    /// `Closed` when the pool was closed, `Terminated`; `Encoding` when the argument can't be encoded.
    pub fn apply_async<F, A, R>(&self, function: F, argument: A) -> Result<AsyncResult<R>>
    where
        F: Fn(A) -> R + Copy + 'static,
        A: Serialize + DeserializeOwned + 'static,
        R: Serialize + DeserializeOwned + 'static,
    {
        let named = Named::of::<Whole, F, A, R>(function)?;
        let job = Arc::new(Job::gather(1));
        codec::with_buffer(|call| {
            let names = names::naming(|| named.call_one(&argument, call))?;
            self.shared.submit(&job, 0, call, &names)
        })?;
        Ok(AsyncResult::new(&self.shared, job))
    }

    /// Runs a task for each item, and gives their results in order.
    ///
    /// Items travel in chunks, four for each worker, as in Python.
    ///
    /// # Errors
    /// The first error, once all chunks have ended.
    pub fn map<F, A, R>(
        &self,
        function: F,
        items: impl IntoIterator<Item = A>,
    ) -> Result<Vec<R>, JoinError>
    where
        F: Fn(A) -> R + Copy + 'static,
        A: Serialize + DeserializeOwned + 'static,
        R: Serialize + DeserializeOwned + 'static,
    {
        self.map_async(function, items)?.get()
    }

    /// Submits a task for each item, in chunks; the results come together.
    ///
    /// # Errors
    /// As [`apply_async`](Self::apply_async).
    pub fn map_async<F, A, R>(
        &self,
        function: F,
        items: impl IntoIterator<Item = A>,
    ) -> Result<MapResult<R>>
    where
        F: Fn(A) -> R + Copy + 'static,
        A: Serialize + DeserializeOwned + 'static,
        R: Serialize + DeserializeOwned + 'static,
    {
        self.map_named(Named::of::<Whole, F, A, R>(function)?, items)
    }

    /// As [`map`](Self::map), for a function of several arguments and items that are tuples, of at most six.
    ///
    /// # Errors
    /// As [`map`](Self::map).
    ///
    /// # Examples
    /// ```no_run
    /// # fn main() -> procession::Result<()> {
    /// # let pool = procession::Pool::new(2)?;
    /// let powers = pool.starmap(|base: u64, exponent: u32| base.pow(exponent), [(2, 10), (3, 2)])?;
    /// assert_eq!(powers, [1024, 9]);
    /// # Ok(())
    /// # }
    /// ```
    pub fn starmap<F, A, R>(
        &self,
        function: F,
        items: impl IntoIterator<Item = A>,
    ) -> Result<Vec<R>, JoinError>
    where
        F: Copy + 'static,
        A: Apply<F, R> + Serialize + DeserializeOwned + 'static,
        R: Serialize + DeserializeOwned + 'static,
    {
        self.map_named(Named::of::<Spread, F, A, R>(function)?, items)?
            .get()
    }

    fn map_named<A: Serialize, R>(
        &self,
        named: Named,
        items: impl IntoIterator<Item = A>,
    ) -> Result<MapResult<R>> {
        let items: Vec<A> = items.into_iter().collect();
        let size = batch::chunk_size(items.len(), self.shared.size()).max(1);
        let job = Arc::new(Job::gather(items.len().div_ceil(size)));
        for (index, chunk) in (0..).zip(items.chunks(size)) {
            codec::with_buffer(|call| {
                let names = names::naming(|| named.call(chunk, call))?;
                self.shared.submit(&job, index, call, &names)
            })?;
        }
        Ok(MapResult::new(&self.shared, job))
    }

    /// Runs a task for each item, and gives the results one by one, in order.
    ///
    /// Items are taken from the iterator as results are: at most 4096 tasks are unanswered.
    ///
    /// # Errors
    /// `Closed` when the pool was closed, `Terminated`.
    pub fn imap<F, A, R, I>(&self, function: F, items: I) -> Result<Imap<I::IntoIter, R>>
    where
        F: Fn(A) -> R + Copy + 'static,
        A: Serialize + DeserializeOwned + 'static,
        R: Serialize + DeserializeOwned + 'static,
        I: IntoIterator<Item = A>,
    {
        let (named, job) = (Named::of::<Whole, F, A, R>(function)?, Job::stream(true));
        Imap::new(&self.shared, named, job, items.into_iter())
    }

    /// As [`imap`](Self::imap), in the order in which the results come.
    ///
    /// # Errors
    /// As [`imap`](Self::imap).
    pub fn imap_unordered<F, A, R, I>(&self, function: F, items: I) -> Result<Imap<I::IntoIter, R>>
    where
        F: Fn(A) -> R + Copy + 'static,
        A: Serialize + DeserializeOwned + 'static,
        R: Serialize + DeserializeOwned + 'static,
        I: IntoIterator<Item = A>,
    {
        let (named, job) = (Named::of::<Whole, F, A, R>(function)?, Job::stream(false));
        Imap::new(&self.shared, named, job, items.into_iter())
    }

    /// Takes no more tasks; the workers leave when all is done that was submitted.
    ///
    /// # Errors
    /// `Poisoned` when shared memory contradicts itself.
    pub fn close(&self) -> Result<()> {
        self.shared.close()
    }

    /// Kills the workers; every task that isn't done fails with `Terminated`.
    ///
    /// # Errors
    /// `Poisoned` when shared memory contradicts itself.
    pub fn terminate(&self) -> Result<()> {
        self.shared.terminate()
    }

    /// Waits until all workers are gone, after [`close`](Self::close) or [`terminate`](Self::terminate).
    ///
    /// # Errors
    /// `Misuse` when the pool is still open.
    pub fn join(&self) -> Result<()> {
        self.shared.join()
    }

    /// The process ids of its workers, at this moment.
    #[must_use]
    pub fn pids(&self) -> Vec<u32> {
        self.shared.pids()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        // Nobody could be told. In a fork's child the pool is the parent's, and goes on.
        if self.shared.is_mine() {
            let _ = self.shared.terminate();
            let _ = self.shared.join();
        }
    }
}

/// Tuples whose members are the arguments of a function `F` that returns `R`: what [`Pool::starmap`] takes.
pub trait Apply<F, R> {
    /// Calls the function.
    fn apply(self, function: F) -> R;
}

macro_rules! apply {
    ($($name:ident)*) => {
        impl<F, R, $($name),*> Apply<F, R> for ($($name,)*)
        where
            F: Fn($($name),*) -> R,
        {
            fn apply(self, function: F) -> R {
                #[allow(non_snake_case, reason = "a variable for each type, of the same name")]
                let ($($name,)*) = self;
                function($($name),*)
            }
        }
    };
}

apply!(A);
apply!(A B);
apply!(A B C);
apply!(A B C D);
apply!(A B C D E);
apply!(A B C D E G);
