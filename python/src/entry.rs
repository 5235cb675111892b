//! C entry points for the calls that cost less than what PyO3 puts in front of each: taking a lock that is free, and freeing
//! one; the same of a recursive lock, and of a semaphore.
//!
//! PyO3's trampoline counts attachments, catches panics and parses arguments, 5 ns or so a call: half of what the
//! whole pair costs, and enough to be slower than the standard library. These two do nothing that could panic or raise;
//! whatever else is asked of them, they hand to PyO3's methods of the same names, which they replace.
#![allow(
    unsafe_code,
    reason = "functions that the interpreter calls, and the table that names them"
)]

use pyo3::PyClass;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::pyclass::boolean_struct::True;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyTuple, PyType};
use std::ffi::CStr;

/// A class with these two calls.
pub(crate) trait Fast: PyClass<Frozen = True> + Sync {
    /// Takes it if that needs nothing else: no wait, no exception, no look at its owner. False otherwise.
    fn try_acquire(&self) -> bool;

    /// Frees it if that needs nothing else. False otherwise.
    fn try_release(&self) -> bool;

    /// Where the class' own methods are kept.
    fn slow() -> &'static Slow;
}

/// PyO3's own methods of a class.
pub(crate) struct Slow {
    acquire: PyOnceLock<Py<PyAny>>,
    release: PyOnceLock<Py<PyAny>>,
}

impl Slow {
    pub(crate) const fn new() -> Self {
        Self {
            acquire: PyOnceLock::new(),
            release: PyOnceLock::new(),
        }
    }
}

/// Puts the entry points in the place of the class' methods.
pub(crate) fn install<T: Fast>(py: Python<'_>) -> PyResult<()> {
    let class = &py.get_type::<T>();
    let slow = T::slow();
    let _ = slow.acquire.set(py, class.getattr("acquire")?.unbind());
    let _ = slow.release.set(py, class.getattr("release")?.unbind());
    let acquire_method = ffi::PyMethodDef {
        ml_name: c"acquire".as_ptr(),
        ml_meth: ffi::PyMethodDefPointer {
            PyCFunctionFastWithKeywords: acquire::<T>,
        },
        ml_flags: ffi::METH_FASTCALL | ffi::METH_KEYWORDS,
        ml_doc: ACQUIRE_TEXT.as_ptr(),
    };
    let release_method = ffi::PyMethodDef {
        ml_name: c"release".as_ptr(),
        ml_meth: ffi::PyMethodDefPointer {
            PyCFunction: release::<T>,
        },
        ml_flags: ffi::METH_NOARGS,
        ml_doc: RELEASE_TEXT.as_ptr(),
    };
    let enter_method = ffi::PyMethodDef {
        ml_name: c"__enter__".as_ptr(),
        ml_meth: ffi::PyMethodDefPointer {
            PyCFunction: enter::<T>,
        },
        ml_flags: ffi::METH_NOARGS,
        ml_doc: ENTER_TEXT.as_ptr(),
    };
    let exit_method = ffi::PyMethodDef {
        ml_name: c"__exit__".as_ptr(),
        ml_meth: ffi::PyMethodDefPointer {
            PyCFunctionFast: exit::<T>,
        },
        ml_flags: ffi::METH_FASTCALL,
        ml_doc: EXIT_TEXT.as_ptr(),
    };
    replace(class, "acquire", acquire_method)?;
    replace(class, "release", release_method)?;
    replace(class, "__enter__", enter_method)?;
    replace(class, "__exit__", exit_method)
}

const ACQUIRE_TEXT: &CStr = c"acquire($self, block=True, timeout=None)\n--\n\n\
    Takes it; false if it can't be had at once (block=False) or within timeout seconds.";
const RELEASE_TEXT: &CStr = c"release($self)\n--\n\nGives it back.";
const ENTER_TEXT: &CStr = c"__enter__($self)\n--\n\nTakes it.";
const EXIT_TEXT: &CStr = c"__exit__($self, *_args)\n--\n\nGives it back.";

/// Gives a class a method, in the place of the one that it has.
pub(crate) fn replace(
    class: &Bound<'_, PyType>,
    name: &str,
    method: ffi::PyMethodDef,
) -> PyResult<()> {
    // The interpreter keeps the address as long as the class.
    let method = Box::leak(Box::new(method));
    // SAFETY: attached; the class is one, and the method lives for ever.
    let descriptor = unsafe { ffi::PyDescr_NewMethod(class.as_type_ptr(), method) };
    // SAFETY: attached; a new reference, or null with an exception set.
    let descriptor = unsafe { Bound::from_owned_ptr_or_err(class.py(), descriptor) }?;
    class.setattr(name, descriptor)
}

/// Calls the object that the descriptor has found to be of its class.
///
/// # Safety
/// *called-by-the-interpreter*: it is attached, and `object` lives and is a `T`.
#[inline]
unsafe fn ask<T: Fast>(
    py: Python<'_>,
    object: *mut ffi::PyObject,
    ask: impl FnOnce(&T) -> bool,
) -> bool {
    // SAFETY: called-by-the-interpreter.
    let object = unsafe { Borrowed::<PyAny>::from_ptr(py, object) };
    // SAFETY: called-by-the-interpreter.
    let object = unsafe { object.cast_unchecked::<T>() };
    ask(object.get())
}

unsafe extern "C" fn acquire<T: Fast>(
    object: *mut ffi::PyObject,
    arguments: *const *mut ffi::PyObject,
    count: ffi::Py_ssize_t,
    names: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    // SAFETY: called-by-the-interpreter.
    let py = unsafe { Python::assume_attached() };
    if count == 0 && names.is_null() {
        // SAFETY: called-by-the-interpreter.
        if unsafe { ask(py, object, T::try_acquire) } {
            // SAFETY: called-by-the-interpreter.
            return unsafe { ffi::PyBool_FromLong(1) };
        }
    }
    // SAFETY: called-by-the-interpreter, with the same arguments.
    unsafe { acquire_slow(py, object, arguments, count, names, &T::slow().acquire) }
}

/// As [`acquire`], by PyO3's method. Apart, so that the call that succeeds at once has nothing of this on its stack.
///
/// # Safety
/// *called-by-the-interpreter*: with these arguments.
#[cold]
#[inline(never)]
unsafe fn acquire_slow(
    py: Python<'_>,
    object: *mut ffi::PyObject,
    arguments: *const *mut ffi::PyObject,
    count: ffi::Py_ssize_t,
    names: *mut ffi::PyObject,
    method: &PyOnceLock<Py<PyAny>>,
) -> *mut ffi::PyObject {
    let count = usize::try_from(count).unwrap_or(0);
    // SAFETY: called-by-the-interpreter.
    let names = unsafe { Bound::from_borrowed_ptr_or_opt(py, names) };
    let named = names.as_ref().map_or(0, |names| names.len().unwrap_or(0));
    let all = if arguments.is_null() {
        &[]
    } else {
        // SAFETY: called-by-the-interpreter: so many positional arguments, and one for each name behind them.
        unsafe { std::slice::from_raw_parts(arguments, count + named) }
    };
    let mut values = vec![object];
    values.extend(all);
    let values: Vec<Bound<'_, PyAny>> = values
        .into_iter()
        // SAFETY: called-by-the-interpreter: references that outlive the call.
        .map(|value| unsafe { Bound::from_borrowed_ptr(py, value) })
        .collect();
    hand_over(py, method, &values, count + 1, names.as_ref())
}

unsafe extern "C" fn release<T: Fast>(
    object: *mut ffi::PyObject,
    _nothing: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    // SAFETY: called-by-the-interpreter.
    let py = unsafe { Python::assume_attached() };
    // SAFETY: called-by-the-interpreter.
    if unsafe { ask(py, object, T::try_release) } {
        return py.None().into_ptr();
    }
    // SAFETY: called-by-the-interpreter.
    unsafe { release_slow(py, object, &T::slow().release) }
}

/// As [`release`], by PyO3's method.
///
/// # Safety
/// *called-by-the-interpreter*: with this object.
#[cold]
#[inline(never)]
unsafe fn release_slow(
    py: Python<'_>,
    object: *mut ffi::PyObject,
    method: &PyOnceLock<Py<PyAny>>,
) -> *mut ffi::PyObject {
    // SAFETY: called-by-the-interpreter: a reference that outlives the call.
    let object = unsafe { Bound::from_borrowed_ptr(py, object) };
    hand_over(py, method, &[object], 1, None)
}

unsafe extern "C" fn enter<T: Fast>(
    object: *mut ffi::PyObject,
    _nothing: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    // SAFETY: called-by-the-interpreter: as `acquire` without arguments.
    unsafe { acquire::<T>(object, std::ptr::null(), 0, std::ptr::null_mut()) }
}

unsafe extern "C" fn exit<T: Fast>(
    object: *mut ffi::PyObject,
    _arguments: *mut *mut ffi::PyObject,
    _count: ffi::Py_ssize_t,
) -> *mut ffi::PyObject {
    // SAFETY: called-by-the-interpreter.
    unsafe { release::<T>(object, std::ptr::null_mut()) }
}

/// Calls PyO3's method: the first `count` values are positional, the others have names.
#[cold]
fn hand_over(
    py: Python<'_>,
    method: &PyOnceLock<Py<PyAny>>,
    values: &[Bound<'_, PyAny>],
    count: usize,
    names: Option<&Bound<'_, PyAny>>,
) -> *mut ffi::PyObject {
    let call = || {
        let method = method.get(py).map(|method| method.bind(py));
        let method = method.ok_or_else(|| {
            pyo3::exceptions::PyRuntimeError::new_err("the class is not made yet")
        })?;
        let positional = PyTuple::new(py, &values[..count])?;
        let Some(names) = names else {
            return method.call1(positional);
        };
        let named = PyDict::new(py);
        for (name, value) in names.try_iter()?.zip(&values[count..]) {
            named.set_item(name?, value)?;
        }
        method.call(positional, Some(&named))
    };
    match call() {
        Ok(value) => value.into_ptr(),
        Err(error) => {
            error.restore(py);
            std::ptr::null_mut()
        }
    }
}
