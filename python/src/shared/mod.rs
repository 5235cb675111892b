//! `Synchronized` and its like: what `Value` and `Array` give, with their lock.
//!
//! Numbers of C's types lie in plain memory and are read and written here, lock included. The object of ctypes over the
//! same bytes is made when somebody asks for it, and for what has no other form: structures, and whatever ctypes
//! converts or refuses in its own way.

mod classes;
mod number;

pub(crate) use classes::install;

use crate::entry::Fast;
use crate::memory::Memory;
use crate::sync::{Lock, Primitive, RLock};
use number::Code;
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyDict, PyInt, PyList, PySlice, PyTuple, PyType};
use std::sync::{Mutex, OnceLock};

/// A shared object with its lock.
#[pyclass(subclass, frozen, weakref, module = "procession.sharedctypes")]
pub(crate) struct SynchronizedBase(OnceLock<Shared>);

/// What such an object consists of.
struct Shared {
    guard: Guard,
    /// The object of ctypes, once it is made.
    object: PyOnceLock<Py<PyAny>>,
    /// Where its numbers lie, if it consists of some.
    numbers: Option<Numbers>,
}

struct Numbers {
    memory: Py<Memory>,
    code: Code,
    /// Elements of an array.
    count: Option<usize>,
    /// The type of ctypes that one of them has.
    kind: Py<PyAny>,
    /// The stretch that was read last. Only ever tried.
    seen: Mutex<Option<Seen>>,
}

/// A stretch of an array as it was read last: making a thousand numbers costs six times what copying their list does, and
/// programs look again and again at what changes seldom.
struct Seen {
    start: usize,
    bytes: Vec<u8>,
    /// Kept from the second look on that found the same.
    list: Option<Py<PyList>>,
}

/// Bytes of the longest stretch that is kept.
const SEEN_MAX: usize = 32 << 10;

/// The lock: one of ours is taken without a call into the interpreter.
enum Guard {
    Lock(Py<Lock>),
    RLock(Py<RLock>),
    Other(Py<PyAny>),
}

impl Guard {
    fn new(lock: Bound<'_, PyAny>) -> Self {
        let other = match lock.cast_into_exact::<RLock>() {
            Ok(lock) => return Self::RLock(lock.unbind()),
            Err(other) => other.into_inner(),
        };
        match other.cast_into_exact::<Lock>() {
            Ok(lock) => Self::Lock(lock.unbind()),
            Err(other) => Self::Other(other.into_inner().unbind()),
        }
    }

    fn object<'py>(&self, py: Python<'py>) -> &Bound<'py, PyAny> {
        match self {
            Self::Lock(lock) => lock.bind(py).as_any(),
            Self::RLock(lock) => lock.bind(py).as_any(),
            Self::Other(lock) => lock.bind(py),
        }
    }

    /// Does something while the lock is held.
    #[inline]
    fn hold<R>(&self, py: Python<'_>, work: impl FnOnce() -> PyResult<R>) -> PyResult<R> {
        match self {
            Self::Lock(lock) => hold(lock.bind(py), work),
            Self::RLock(lock) => hold(lock.bind(py), work),
            Self::Other(lock) => {
                let lock = lock.bind(py);
                lock.call_method0("acquire")?;
                let done = work();
                lock.call_method0("release")?;
                done
            }
        }
    }
}

impl Guard {
    /// Does something while the lock is held, if that needs no wait; `None` if it does, or `work` can't.
    #[inline]
    fn briefly<R>(&self, py: Python<'_>, work: impl FnOnce() -> Option<R>) -> Option<R> {
        match self {
            Self::RLock(lock) => lock.bind(py).get().cell().get()?.briefly(work).ok()??,
            Self::Lock(lock) => lock.bind(py).get().cell().get()?.briefly(work).ok()??,
            Self::Other(_) => None,
        }
    }
}

/// Does something while a lock of ours is held. What isn't done in a few instructions, its methods do.
#[inline]
fn hold<T: Fast, R>(lock: &Bound<'_, T>, work: impl FnOnce() -> PyResult<R>) -> PyResult<R> {
    if !lock.get().try_acquire() {
        lock.as_any().call_method0("acquire")?;
    }
    let done = work();
    if !lock.get().try_release() {
        lock.as_any().call_method0("release")?;
    }
    done
}

impl Numbers {
    fn parts<'a>(&'a self, py: Python<'a>) -> (&'a procession_core::Bytes, Code) {
        (self.memory.bind(py).get().bytes(), self.code)
    }

    /// The place among the elements that a key names; `None` when ctypes must say.
    #[inline]
    fn index(&self, key: &Bound<'_, PyAny>) -> Option<usize> {
        let count = self.count?;
        let index: isize = key.cast_exact::<PyInt>().ok()?.extract().ok()?;
        let index = if index < 0 {
            index.checked_add_unsigned(count)?
        } else {
            index
        };
        usize::try_from(index).ok().filter(|index| *index < count)
    }

    /// Where a slice begins and how many elements it has; `None` when it has gaps, or goes backwards.
    fn stretch(&self, key: &Bound<'_, PyAny>) -> Option<(usize, usize)> {
        let count = isize::try_from(self.count?).ok()?;
        let slice = key.cast_exact::<PySlice>().ok()?.indices(count).ok()?;
        let start = usize::try_from(slice.start).ok()?;
        (slice.step == 1).then_some((start, slice.slicelength))
    }

    fn get<'py>(&self, key: &Bound<'py, PyAny>) -> Option<PyResult<Bound<'py, PyAny>>> {
        let py = key.py();
        let (memory, code) = self.parts(py);
        if let Some(index) = self.index(key) {
            return Some(code.object(py, code.load(memory, index)?));
        }
        let (start, length) = self.stretch(key)?;
        Some(self.list(py, start, self.read(py, start, length)?))
    }

    /// The elements of a stretch that begins at `start` and has these bytes.
    fn list<'py>(
        &self,
        py: Python<'py>,
        start: usize,
        bytes: Vec<u8>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let is_kept = self.code.size() > 1 && bytes.len() <= SEEN_MAX;
        let (true, Ok(mut seen)) = (is_kept, self.seen.try_lock()) else {
            return self.code.list(py, &bytes);
        };
        let again = seen
            .as_mut()
            .filter(|seen| seen.start == start && seen.bytes == bytes);
        let Some(again) = again else {
            let list = self.code.list(py, &bytes);
            *seen = Some(Seen {
                start,
                bytes,
                list: None,
            });
            return list;
        };
        if let Some(list) = &again.list {
            let list = list.bind(py);
            return Ok(list.get_slice(0, list.len()).into_any());
        }
        let list = self.code.list(py, &bytes)?.cast_into::<PyList>()?;
        again.list = Some(list.get_slice(0, list.len()).unbind());
        Ok(list.into_any())
    }

    /// The bytes of so many elements.
    fn read(&self, py: Python<'_>, start: usize, length: usize) -> Option<Vec<u8>> {
        let (memory, code) = self.parts(py);
        let mut bytes = vec![0; length * code.size()];
        memory.read(start * code.size(), &mut bytes).ok()?;
        Some(bytes)
    }

    /// Copies bytes in from the start, with a zero behind them if there is room and `ends` says so.
    fn set_bytes(&self, value: &Bound<'_, PyAny>, ends: bool) -> Option<()> {
        let (memory, _) = self.parts(value.py());
        let bytes = value.cast_exact::<PyBytes>().ok()?.as_bytes();
        memory.write(0, bytes).ok()?;
        if ends && bytes.len() < memory.len() {
            memory.write(bytes.len(), &[0]).ok()?;
        }
        Some(())
    }

    fn set(&self, key: &Bound<'_, PyAny>, value: &Bound<'_, PyAny>) -> Option<()> {
        let (memory, code) = self.parts(key.py());
        if let Some(index) = self.index(key) {
            return code.store(memory, index, code.bits(value)?);
        }
        let (start, length) = self.stretch(key)?;
        let bytes = code.encode(value)?;
        if bytes.len() != length * code.size() {
            return None;
        }
        memory.write(start * code.size(), &bytes).ok()
    }
}

impl Shared {
    /// The object of ctypes.
    fn object<'py>(&self, py: Python<'py>) -> PyResult<&Bound<'py, PyAny>> {
        let object = self.object.get_or_try_init(py, || {
            let Some(numbers) = &self.numbers else {
                return Err(PyRuntimeError::new_err("there is no shared object"));
            };
            let rebuild = py
                .import("procession.sharedctypes")?
                .getattr("rebuild_ctype")?;
            let object = rebuild.call1((&numbers.kind, &numbers.memory, numbers.count))?;
            PyResult::Ok(object.unbind())
        })?;
        Ok(object.bind(py))
    }
}

#[pymethods]
impl SynchronizedBase {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self(OnceLock::new())
    }

    #[pyo3(signature = (obj, lock=None, ctx=None))]
    fn __init__(
        &self,
        obj: Bound<'_, PyAny>,
        lock: Option<Bound<'_, PyAny>>,
        ctx: Option<Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let py = obj.py();
        let lock = match lock {
            Some(lock) if lock.is_truthy()? => lock,
            _ => {
                let make = py.import("procession.sharedctypes")?.getattr("_lock_for")?;
                make.call1((py.None(), ctx))?
            }
        };
        let object = PyOnceLock::new();
        let _ = object.set(py, obj.unbind());
        self.make(Shared {
            guard: Guard::new(lock),
            object,
            numbers: None,
        })
    }

    /// The object itself, without its lock.
    fn get_obj<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        Ok(self.shared()?.object(py)?.clone())
    }

    /// Its lock.
    fn get_lock<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        Ok(self.shared()?.guard.object(py).clone())
    }

    #[getter]
    fn _obj<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.get_obj(py)
    }

    #[getter]
    fn _lock<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.get_lock(py)
    }

    #[getter]
    fn acquire<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.shared()?.guard.object(py).getattr("acquire")
    }

    #[getter]
    fn release<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.shared()?.guard.object(py).getattr("release")
    }

    fn __enter__<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.shared()?.guard.object(py).call_method0("__enter__")
    }

    #[pyo3(signature = (*args))]
    fn __exit__<'py>(&self, args: &Bound<'py, PyTuple>) -> PyResult<Bound<'py, PyAny>> {
        let lock = self.shared()?.guard.object(args.py());
        lock.call_method1("__exit__", args)
    }

    fn __repr__(slf: &Bound<'_, Self>) -> PyResult<String> {
        let class = slf.get_type().name()?;
        let object = slf.get().shared()?.object(slf.py())?.str()?;
        Ok(format!("<{class} wrapper for {object}>"))
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyTuple>> {
        let py = slf.py();
        let shared = slf.get().shared()?;
        let lock = shared.guard.object(py);
        let Some(numbers) = &shared.numbers else {
            let synchronized = py
                .import("procession.sharedctypes")?
                .getattr("synchronized")?;
            return (synchronized, (shared.object(py)?, lock)).into_pyobject(py);
        };
        let open = py.import("procession._core")?.getattr("open_shared")?;
        let letter = numbers.code.letter();
        let parts = (slf.get_type(), &numbers.memory, letter, &numbers.kind);
        let (class, memory, letter, kind) = parts;
        (open, (class, memory, letter, kind, numbers.count, lock)).into_pyobject(py)
    }
}

impl SynchronizedBase {
    fn make(&self, shared: Shared) -> PyResult<()> {
        let made = self.0.set(shared);
        made.map_err(|_| PyRuntimeError::new_err("the object is made already"))
    }

    #[inline]
    fn shared(&self) -> PyResult<&Shared> {
        self.0.get().ok_or_else(Self::unmade)
    }

    fn unmade() -> PyErr {
        PyRuntimeError::new_err("the object's __init__ was not called")
    }
}

/// What is done to an object, whatever that takes: a wait for its lock, or ctypes.
impl Shared {
    fn len(&self, py: Python<'_>) -> PyResult<usize> {
        match self.numbers.as_ref().and_then(|numbers| numbers.count) {
            Some(count) => Ok(count),
            None => self.object(py)?.len(),
        }
    }

    fn item<'py>(&self, key: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let py = key.py();
        self.guard.hold(py, || {
            match self.numbers.as_ref().and_then(|numbers| numbers.get(key)) {
                Some(value) => value,
                None => self.object(py)?.get_item(key),
            }
        })
    }

    fn set_item(&self, key: &Bound<'_, PyAny>, value: &Bound<'_, PyAny>) -> PyResult<()> {
        let py = key.py();
        self.guard.hold(py, || {
            let numbers = self.numbers.as_ref();
            match numbers.and_then(|numbers| numbers.set(key, value)) {
                Some(()) => Ok(()),
                None => self.object(py)?.set_item(key, value),
            }
        })
    }

    fn value<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.attribute(py, "value", |numbers| {
            let (memory, code) = numbers.parts(py);
            Some(code.object(py, code.load(memory, 0)?))
        })
    }

    fn set_value(&self, value: &Bound<'_, PyAny>) -> PyResult<()> {
        self.set_attribute("value", value, |numbers| {
            let (memory, code) = numbers.parts(value.py());
            code.store(memory, 0, code.bits(value)?)
        })
    }

    /// A text's bytes, up to the first zero.
    fn text<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.attribute(py, "value", |numbers| {
            let bytes = numbers.read(py, 0, numbers.count?)?;
            let text = bytes.split(|byte| *byte == 0).next()?;
            Some(Ok(PyBytes::new(py, text).into_any()))
        })
    }

    /// Sets a text, with a zero behind it if there is room.
    fn set_text(&self, value: &Bound<'_, PyAny>) -> PyResult<()> {
        self.set_attribute("value", value, |numbers| numbers.set_bytes(value, true))
    }

    /// All bytes of a text's room.
    fn raw<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.attribute(py, "raw", |numbers| {
            let bytes = numbers.read(py, 0, numbers.count?)?;
            Some(Ok(PyBytes::new(py, &bytes).into_any()))
        })
    }

    fn set_raw(&self, value: &Bound<'_, PyAny>) -> PyResult<()> {
        self.set_attribute("raw", value, |numbers| numbers.set_bytes(value, false))
    }

    /// Gets an attribute of the object while the lock is held: `quick` does if it can, else ctypes.
    fn attribute<'py>(
        &self,
        py: Python<'py>,
        name: &str,
        quick: impl FnOnce(&Numbers) -> Option<PyResult<Bound<'py, PyAny>>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        self.guard
            .hold(py, || match self.numbers.as_ref().and_then(quick) {
                Some(value) => value,
                None => self.object(py)?.getattr(name),
            })
    }

    /// Sets one, likewise.
    fn set_attribute(
        &self,
        name: &str,
        value: &Bound<'_, PyAny>,
        quick: impl FnOnce(&Numbers) -> Option<()>,
    ) -> PyResult<()> {
        let py = value.py();
        self.guard
            .hold(py, || match self.numbers.as_ref().and_then(quick) {
                Some(()) => Ok(()),
                None => self.object(py)?.setattr(name, value),
            })
    }

    /// The element whose place `place` tells, if that needs no wait: nothing but the load is done while the lock is held.
    #[inline]
    fn quick_item<'py>(
        &self,
        py: Python<'py>,
        place: impl FnOnce(&Numbers) -> Option<usize>,
    ) -> Option<PyResult<Bound<'py, PyAny>>> {
        let numbers = self.numbers.as_ref()?;
        let (index, (memory, code)) = (place(numbers)?, numbers.parts(py));
        let bits = self.guard.briefly(py, || code.load(memory, index))?;
        Some(code.object(py, bits))
    }

    /// Sets the element whose place `place` tells, if that needs no wait.
    #[inline]
    fn quick_set_item(
        &self,
        value: &Bound<'_, PyAny>,
        place: impl FnOnce(&Numbers) -> Option<usize>,
    ) -> Option<()> {
        let (py, numbers) = (value.py(), self.numbers.as_ref()?);
        let (index, (memory, code)) = (place(numbers)?, numbers.parts(py));
        let bits = code.bits(value)?;
        self.guard.briefly(py, || code.store(memory, index, bits))
    }
}

/// Makes an object of `class`, one of the classes, over numbers in `memory`: what its pickle calls. `kind` is the type
/// of ctypes that `letter` stands for; an array has `count` of them.
#[pyfunction]
#[pyo3(signature = (class, memory, letter, kind, count, lock))]
pub(crate) fn open_shared<'py>(
    class: &Bound<'py, PyType>,
    memory: Bound<'py, Memory>,
    letter: char,
    kind: Bound<'py, PyAny>,
    count: Option<usize>,
    lock: Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyAny>> {
    let code = code_of(letter)?;
    let fits = count.unwrap_or(1).checked_mul(code.size());
    if fits.is_none_or(|bytes| bytes > memory.get().bytes().len()) {
        return Err(PyValueError::new_err("the memory is too short"));
    }
    let object = class.call_method1("__new__", (class,))?;
    object.cast::<SynchronizedBase>()?.get().make(Shared {
        guard: Guard::new(lock),
        object: PyOnceLock::new(),
        numbers: Some(Numbers {
            memory: memory.unbind(),
            code,
            count,
            kind: kind.unbind(),
            seen: Mutex::default(),
        }),
    })?;
    Ok(object)
}

/// Stores a list's or a tuple's values as numbers of a type; false when ctypes must say what they mean.
#[pyfunction]
pub(crate) fn store(
    memory: &Bound<'_, Memory>,
    letter: char,
    values: &Bound<'_, PyAny>,
) -> PyResult<bool> {
    let Some(bytes) = code_of(letter)?.encode(values) else {
        return Ok(false);
    };
    Ok(memory.get().bytes().write(0, &bytes).is_ok())
}

fn code_of(letter: char) -> PyResult<Code> {
    Code::of(letter).ok_or_else(|| PyValueError::new_err(format!("no number's type: {letter:?}")))
}
