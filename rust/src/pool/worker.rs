//! A worker: takes tasks, runs them, answers.

use crate::error::retry;
use crate::function::Runner;
use crate::tree;
use procession_core::pool::{Seat, Task, WorkerId};
use procession_core::{Deadline, Error, ObjectName};
use serde::{Deserialize, Serialize};

/// Bytes of a buffer that isn't kept for the next task.
const KEPT_BYTES: usize = 1 << 20;

/// A seat, on its way to its worker.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct SeatName {
    worker: u32,
    /// Offset and serial of each.
    names: [(u64, u64); 3],
}

impl SeatName {
    pub(super) fn of(seat: &Seat) -> Self {
        Self {
            worker: seat.worker().0,
            names: seat.names().map(|name| (name.offset, name.serial)),
        }
    }
}

/// What a worker's process runs: tasks until no more will come.
///
/// # Panics
/// When it can't go on: the process says why on standard error, and ends.
pub(super) fn serve(name: SeatName) {
    match work(name) {
        // The pool is closed, or gone.
        Ok(()) | Err(Error::Closed { .. }) => {}
        Err(error) => panic!("a pool's worker can't go on: {error}"),
    }
}

fn work(name: SeatName) -> procession_core::Result<()> {
    let arena = tree::arena().map_err(|_| Error::Closed { what: "tree" })?;
    let names = name
        .names
        .map(|(offset, serial)| ObjectName { offset, serial });
    let seat = retry(|| Seat::open(arena, WorkerId(name.worker), names))?;
    retry(|| seat.ready())?;
    let mut runner = Runner::default();
    let (mut input, mut output) = (Vec::new(), Vec::new());
    loop {
        let task = match seat.take(&mut input, Deadline::NEVER) {
            Ok(Some(task)) => task,
            Ok(None) | Err(Error::Interrupted) => continue,
            Err(error) => return Err(error),
        };
        if let Some(extent) = task.extent {
            extent.append_to(&mut input)?;
        }
        let call = input.get(Task::START..).unwrap_or_default();
        let (tag, names) = runner.run(call, &mut output);
        while let Err(error) = seat.answer(task.id, tag, &[&output], &names) {
            if error != Error::Interrupted {
                return Err(error);
            }
        }
        for buffer in [&mut input, &mut output] {
            buffer.clear();
            buffer.shrink_to(KEPT_BYTES);
        }
    }
}
