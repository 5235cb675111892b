//! This interpreter's place in its tree of processes.

use crate::blocking;
use crate::error::raise;
use procession_core::{Arena, Error, Naming, ObjectName};
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use std::os::fd::{AsRawFd, IntoRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

static ARENA: OnceLock<Arena> = OnceLock::new();
static MAKING: Mutex<()> = Mutex::new(());

/// The tree's arena; made at the first call in a process that was not started by another one of ours.
pub(crate) fn arena() -> PyResult<&'static Arena> {
    if let Some(arena) = ARENA.get() {
        return Ok(arena);
    }
    let _making = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(arena) = ARENA.get() {
        return Ok(arena);
    }
    let arena = Arena::create().map_err(raise)?;
    Ok(ARENA.get_or_init(|| arena))
}

/// A place in the tree that is kept for a child which is about to be started by exec.
///
/// Threads may ask for the same child at once, so each call has its own hold of the place.
#[pyclass(frozen, module = "procession._core")]
pub(crate) struct ChildSlot(Mutex<Option<Arc<procession_core::ChildSlot>>>);

#[pymethods]
impl ChildSlot {
    /// What the child attaches with, if it gets the arena's memfd as `descriptor`.
    fn token(&self, descriptor: RawFd) -> PyResult<String> {
        Ok(self.get()?.token(descriptor))
    }

    /// Holds the object of that name for the child.
    fn give(&self, py: Python<'_>, offset: u64, serial: u64) -> PyResult<()> {
        let slot = self.get()?;
        blocking::call(py, || slot.give(ObjectName { offset, serial }))
    }

    /// Gives the place back, unless the child has attached by now. Nothing if it was given back before.
    fn release(&self, py: Python<'_>) {
        let slot = self.slot().take();
        py.detach(|| drop(slot));
    }
}

impl ChildSlot {
    pub(crate) fn get(&self) -> PyResult<Arc<procession_core::ChildSlot>> {
        self.slot()
            .clone()
            .ok_or_else(|| PyRuntimeError::new_err("the child's place was given back"))
    }

    fn slot(&self) -> MutexGuard<'_, Option<Arc<procession_core::ChildSlot>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps a place for a child that is about to be started by exec.
#[pyfunction]
pub(crate) fn child_slot(py: Python<'_>) -> PyResult<ChildSlot> {
    let arena = arena()?;
    let slot = blocking::call(py, || arena.reserve())?;
    Ok(ChildSlot(Mutex::new(Some(Arc::new(slot)))))
}

/// The descriptor of the arena's memfd.
#[pyfunction]
pub(crate) fn arena_descriptor() -> PyResult<RawFd> {
    Ok(arena()?.descriptor().as_raw_fd())
}

/// Joins the tree of the process that started this one.
#[pyfunction]
pub(crate) fn attach(py: Python<'_>, token: &str) -> PyResult<()> {
    loop {
        // With the interpreter's lock, and let go of before handlers run: whoever waits for it has that one.
        let making = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
        if ARENA.get().is_some() {
            return Err(PyRuntimeError::new_err(
                "this process is a member of a tree already",
            ));
        }
        match Arena::attach(token) {
            Err(Error::Interrupted) => {
                drop(making);
                py.check_signals()?;
            }
            attached => {
                let arena = attached.map_err(raise)?;
                ARENA.get_or_init(|| arena);
                return Ok(());
            }
        }
    }
}

/// A descriptor of this process, for its children: ready once it is gone. The caller's to close.
#[pyfunction]
pub(crate) fn own_pidfd() -> PyResult<RawFd> {
    procession_core::own_pidfd()
        .map(IntoRawFd::into_raw_fd)
        .map_err(raise)
}

/// Whether a descriptor is open, and the null device's.
#[pyfunction]
pub(crate) fn is_null_device(descriptor: RawFd) -> bool {
    procession_core::is_null_device(descriptor)
}

/// Marks this process as leaving normally. Does nothing in one that never joined a tree.
#[pyfunction]
pub(crate) fn leave() {
    if let Some(arena) = ARENA.get() {
        arena.leave();
    }
}

/// Has this process killed when its parent, the process `parent`, is gone, however that goes. `by_main_thread`: the
/// thread that started this process is the parent's first one.
#[pyfunction]
pub(crate) fn die_with_parent(parent: u32, by_main_thread: bool) -> PyResult<()> {
    procession_core::die_with_parent(parent, by_main_thread).map_err(raise)
}

/// Gives back what processes held that are gone by now.
#[pyfunction]
pub(crate) fn reap(py: Python<'_>) -> PyResult<()> {
    ARENA
        .get()
        .map_or(Ok(()), |arena| blocking::call(py, || arena.reap()))
}

/// What the arena holds at this moment, checked: see the core's `Census`.
#[pyfunction]
pub(crate) fn census(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    let arena = arena()?;
    let census = blocking::call(py, || arena.census())?;
    let counts = PyDict::new(py);
    counts.set_item("processes", census.processes)?;
    counts.set_item("objects", census.objects)?;
    counts.set_item("owned_bytes", census.owned_bytes)?;
    counts.set_item("linked_bytes", census.linked_bytes)?;
    counts.set_item("warm_bytes", census.warm_bytes)?;
    counts.set_item("allocated_bytes", census.allocated_bytes)?;
    Ok(counts)
}

/// The name under which an object goes into a pickle. While a child is being spawned its place holds it, and within a
/// message for a queue the message will hold it; both, if one is pickled while the other is. Any other pickle may go
/// where nobody can see it, so the object lives on without a holder.
pub(crate) fn pickled(
    py: Python<'_>,
    name: ObjectName,
    escape: impl FnOnce() -> procession_core::Result<ObjectName>,
) -> PyResult<(u64, u64)> {
    let given = given(py, name)?;
    if !Naming::add(arena()?, name).map_err(raise)? && !given {
        escape().map_err(raise)?;
    }
    Ok((name.offset, name.serial))
}

/// Has the place of the child that is being spawned hold an object; false when none is.
pub(crate) fn given(py: Python<'_>, name: ObjectName) -> PyResult<bool> {
    let popen = py
        .import("procession.context")?
        .call_method0("get_spawning_popen")?;
    if popen.is_none() {
        return Ok(false);
    }
    popen.call_method1("give", (name.offset, name.serial))?;
    Ok(true)
}
