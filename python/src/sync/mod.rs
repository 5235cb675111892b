//! Primitives of synchronisation: the classes that users see are these, or inherit from them.

mod barrier;
mod condition;
mod event;
mod lock;
mod rlock;
mod semaphore;

pub(crate) use barrier::Barrier;
pub(crate) use condition::Waiters;
pub(crate) use event::Event;
pub(crate) use lock::Lock;
pub(crate) use rlock::RLock;
pub(crate) use semaphore::{BoundedSemaphore, Semaphore};

use crate::error::raise;
use crate::{blocking, tree};
use procession_core::{Acquired, Arena, Deadline, ObjectName, Result};
use pyo3::PyClass;
use pyo3::exceptions::{PyRuntimeError, PyRuntimeWarning};
use pyo3::prelude::*;
use pyo3::pyclass::boolean_struct::True;
use pyo3::types::{PyTuple, PyType};
use std::sync::OnceLock;

/// A class whose objects hold a primitive of the core. `__new__` takes any arguments, since users subclass with
/// signatures of their own; `__init__` makes the primitive.
pub(crate) trait Primitive: PyClass<Frozen = True> + Sync {
    /// The core's type.
    type Core: Send + Sync + 'static;

    /// Where it is, once it is made.
    fn cell(&self) -> &OnceLock<Self::Core>;

    /// Opens one by its name.
    fn open(arena: &Arena, name: ObjectName) -> Result<Self::Core>;

    /// The name of one that goes into a message.
    fn escape(core: &Self::Core) -> Result<ObjectName>;

    /// The name of one that is given to a child.
    fn name(core: &Self::Core) -> ObjectName;
}

/// Says which primitive of the core a class holds, in its only field.
macro_rules! holds {
    ($class:ty, $core:ty) => {
        impl $crate::sync::Primitive for $class {
            type Core = $core;

            fn cell(&self) -> &OnceLock<$core> {
                &self.0
            }

            fn open(arena: &Arena, name: ObjectName) -> Result<$core> {
                <$core>::open(arena, name)
            }

            fn escape(core: &$core) -> Result<ObjectName> {
                core.escape()
            }

            fn name(core: &$core) -> ObjectName {
                core.name()
            }
        }
    };
}
use holds;

/// The primitive, once `__init__` has made it.
#[inline]
fn get<T: Primitive>(object: &T) -> PyResult<&T::Core> {
    object
        .cell()
        .get()
        .ok_or_else(|| PyRuntimeError::new_err("the object's __init__ was not called"))
}

/// Makes the primitive of an object, in its `__init__`.
fn init<T: Primitive>(
    py: Python<'_>,
    object: &T,
    make: impl Fn(&Arena) -> Result<T::Core> + Send + Sync,
) -> PyResult<()> {
    let arena = tree::arena()?;
    let core = blocking::call(py, || make(arena))?;
    object
        .cell()
        .set(core)
        .map_err(|_| PyRuntimeError::new_err("the object is made already"))
}

/// What a pickle calls to make the object again: `open_primitive` with its class and its name.
fn reduce<'py, T: Primitive>(object: &Bound<'py, T>) -> PyResult<Bound<'py, PyTuple>> {
    let py = object.py();
    let core = get(object.get())?;
    let (offset, serial) = tree::pickled(py, T::name(core), || T::escape(core))?;
    let open = py.import("procession._core")?.getattr("open_primitive")?;
    (open, (object.as_any().get_type(), offset, serial)).into_pyobject(py)
}

/// Makes an object of `class` that holds the primitive of that name: what its pickle calls.
#[pyfunction]
pub(crate) fn open_primitive<'py>(
    class: &Bound<'py, PyType>,
    offset: u64,
    serial: u64,
) -> PyResult<Bound<'py, PyAny>> {
    let object = class.call_method1("__new__", (class,))?;
    object.call_method1("_open", (offset, serial))?;
    Ok(object)
}

/// Opens the primitive of an object that was just made, by its name.
fn open<T: Primitive>(py: Python<'_>, object: &T, offset: u64, serial: u64) -> PyResult<()> {
    init(py, object, |arena| {
        T::open(arena, ObjectName { offset, serial })
    })
}

/// Waits for something that has an owner, and takes it; warns when that owner died, with it in hand.
#[cold]
fn acquire(
    py: Python<'_>,
    deadline: Deadline,
    take: impl Fn(Deadline) -> Result<Acquired> + Send + Sync,
    release: impl FnOnce(),
) -> PyResult<bool> {
    let acquired = blocking::wait(py, deadline, blocking::FOR_OWNED, |until| {
        let acquired = take(until)?;
        Ok((acquired != Acquired::TimedOut).then_some(acquired))
    })?;
    match acquired {
        Some(Acquired::Clean) => Ok(true),
        None | Some(Acquired::TimedOut) => Ok(false),
        Some(Acquired::OwnerDied) => {
            let text =
                c"the lock's last holder died holding it: what it guards may be half changed";
            let category = py.get_type::<PyRuntimeWarning>();
            // A warning that is an error by the user's filter must not leave the lock held.
            PyErr::warn(py, &category, text, 1).inspect_err(|_| release())?;
            Ok(true)
        }
    }
}

/// The result of a look at a primitive.
fn look<T>(found: Result<T>) -> PyResult<T> {
    found.map_err(raise)
}
