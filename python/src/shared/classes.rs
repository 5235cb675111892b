//! The classes over `SynchronizedBase`: slots of ours, which PyO3 would put its trampoline in front of.
//!
//! An element of an array costs 50 ns with it, and 35 without. Each slot does what needs neither a wait nor ctypes by
//! itself; all else goes the long way, attached as PyO3 wants it. They have no state beside their base's.
#![allow(
    unsafe_code,
    reason = "functions that the interpreter calls, and the tables that name them"
)]

use super::{Shared, SynchronizedBase};
use crate::entry::replace;
use pyo3::exceptions::PyTypeError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyTuple, PyType};
use std::ffi::{CStr, c_int, c_void};
use std::ptr::null_mut;

/// Makes the classes and puts them into the module.
pub(crate) fn install(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<SynchronizedBase>()?;
    let base = module.py().get_type::<SynchronizedBase>();
    let get_lock_method = ffi::PyMethodDef {
        ml_name: c"get_lock".as_ptr(),
        ml_meth: ffi::PyMethodDefPointer {
            PyCFunction: get_lock,
        },
        ml_flags: ffi::METH_NOARGS,
        ml_doc: c"get_lock($self)\n--\n\nIts lock.".as_ptr(),
    };
    replace(&base, "get_lock", get_lock_method)?;
    let value = [attribute(c"value", c"The value.", get_value, set_value)];
    let synchronized = class(
        &base,
        c"procession.sharedctypes.Synchronized",
        c"A shared value with its lock.",
        vec![table(value)],
    )?;
    let array = class(
        &base,
        c"procession.sharedctypes.SynchronizedArray",
        c"A shared array with its lock.",
        vec![
            slot(ffi::Py_mp_length, length as *mut c_void),
            slot(ffi::Py_sq_length, length as *mut c_void),
            slot(ffi::Py_mp_subscript, get_item as *mut c_void),
            slot(ffi::Py_sq_item, get_nth as *mut c_void),
            slot(ffi::Py_mp_ass_subscript, set_item as *mut c_void),
        ],
    )?;
    let text = [
        attribute(
            c"value",
            c"The bytes up to the first zero.",
            get_text,
            set_text,
        ),
        attribute(c"raw", c"All bytes.", get_raw, set_raw),
    ];
    let string = class(
        &array,
        c"procession.sharedctypes.SynchronizedString",
        c"A shared array of bytes with its lock.",
        vec![table(text)],
    )?;
    module.add("Synchronized", synchronized)?;
    module.add("SynchronizedArray", array)?;
    module.add("SynchronizedString", string)
}

/// Makes a class.
fn class<'py>(
    base: &Bound<'py, PyType>,
    name: &'static CStr,
    text: &'static CStr,
    mut slots: Vec<ffi::PyType_Slot>,
) -> PyResult<Bound<'py, PyType>> {
    let py = base.py();
    slots.push(slot(ffi::Py_tp_doc, text.as_ptr().cast_mut().cast()));
    slots.push(slot(0, null_mut()));
    let mut spec = ffi::PyType_Spec {
        name: name.as_ptr(),
        // As large as its base.
        basicsize: 0,
        itemsize: 0,
        flags: (ffi::Py_TPFLAGS_DEFAULT | ffi::Py_TPFLAGS_BASETYPE).try_into()?,
        slots: slots.as_mut_ptr(),
    };
    let bases = PyTuple::new(py, [base])?;
    // SAFETY: attached; the description is whole, and its slots have the types that their numbers say. What it refers
    // to lives for ever; itself, it is copied.
    let made = unsafe { ffi::PyType_FromSpecWithBases(&raw mut spec, bases.as_ptr()) };
    // SAFETY: attached; a new reference, or null with an exception set.
    let made = unsafe { Bound::from_owned_ptr_or_err(py, made) }?;
    Ok(made.cast_into()?)
}

fn slot(number: c_int, what: *mut c_void) -> ffi::PyType_Slot {
    ffi::PyType_Slot {
        slot: number,
        pfunc: what,
    }
}

fn attribute(
    name: &'static CStr,
    text: &'static CStr,
    get: ffi::getter,
    set: ffi::setter,
) -> ffi::PyGetSetDef {
    ffi::PyGetSetDef {
        name: name.as_ptr(),
        get: Some(get),
        set: Some(set),
        doc: text.as_ptr(),
        closure: null_mut(),
    }
}

/// A table of attributes as a slot: the interpreter keeps its address as long as the class.
fn table<const N: usize>(attributes: [ffi::PyGetSetDef; N]) -> ffi::PyType_Slot {
    let end = ffi::PyGetSetDef {
        name: std::ptr::null(),
        get: None,
        set: None,
        doc: std::ptr::null(),
        closure: null_mut(),
    };
    let table: Vec<_> = attributes.into_iter().chain([end]).collect();
    slot(ffi::Py_tp_getset, table.leak().as_mut_ptr().cast())
}

/// What a slot gives, as the interpreter wants it.
trait Answer {
    type Raw;
    /// An exception is set.
    const FAILED: Self::Raw;
    fn raw(self) -> Self::Raw;
}

impl Answer for Bound<'_, PyAny> {
    type Raw = *mut ffi::PyObject;
    const FAILED: Self::Raw = null_mut();

    #[inline]
    fn raw(self) -> Self::Raw {
        self.into_ptr()
    }
}

impl Answer for () {
    type Raw = c_int;
    const FAILED: c_int = -1;

    #[inline]
    fn raw(self) -> c_int {
        0
    }
}

impl Answer for usize {
    type Raw = ffi::Py_ssize_t;
    const FAILED: ffi::Py_ssize_t = -1;

    fn raw(self) -> ffi::Py_ssize_t {
        self.cast_signed()
    }
}

/// Runs a slot: at once, or if `quick` can't, the long way.
///
/// # Safety
/// *called-by-the-interpreter*: it is attached, and `object` lives and is a `SynchronizedBase`.
#[inline]
unsafe fn run<'py, A: Answer>(
    object: *mut ffi::PyObject,
    quick: impl FnOnce(Python<'py>, &Shared) -> Option<PyResult<A>>,
    slow: impl FnOnce(Python<'py>, &Shared) -> PyResult<A>,
) -> A::Raw {
    // SAFETY: called-by-the-interpreter.
    let py = unsafe { Python::assume_attached() };
    // SAFETY: called-by-the-interpreter.
    let object = unsafe { Borrowed::<PyAny>::from_ptr(py, object) };
    // SAFETY: called-by-the-interpreter.
    let object = unsafe { object.cast_unchecked::<SynchronizedBase>() };
    let done = match object.get().0.get() {
        Some(shared) => quick(py, shared).unwrap_or_else(|| slowly(py, shared, slow)),
        None => Err(SynchronizedBase::unmade()),
    };
    match done {
        Ok(answer) => answer.raw(),
        Err(error) => {
            error.restore(py);
            A::FAILED
        }
    }
}

/// Counted as attached, which PyO3 wants for all that it may do.
#[cold]
#[inline(never)]
fn slowly<'py, A>(
    py: Python<'py>,
    shared: &Shared,
    slow: impl FnOnce(Python<'py>, &Shared) -> PyResult<A>,
) -> PyResult<A> {
    Python::attach(|_| slow(py, shared))
}

/// What else the interpreter hands over; `None` for nothing.
///
/// # Safety
/// *called-by-the-interpreter*: `object` lives, or is null.
#[inline]
unsafe fn given<'a, 'py>(
    py: Python<'py>,
    object: *mut ffi::PyObject,
) -> Option<Borrowed<'a, 'py, PyAny>> {
    // SAFETY: called-by-the-interpreter, whose own reference outlives the call.
    unsafe { Borrowed::from_ptr_or_opt(py, object) }
}

unsafe extern "C" fn get_lock(
    object: *mut ffi::PyObject,
    _nothing: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    let lock = |py, shared: &Shared| Ok(shared.guard.object(py).clone());
    // SAFETY: called-by-the-interpreter.
    unsafe { run(object, |py, shared| Some(lock(py, shared)), lock) }
}

unsafe extern "C" fn length(object: *mut ffi::PyObject) -> ffi::Py_ssize_t {
    // SAFETY: called-by-the-interpreter.
    unsafe {
        run(
            object,
            |py, shared| Some(shared.len(py)),
            |py, shared| shared.len(py),
        )
    }
}

unsafe extern "C" fn get_item(
    object: *mut ffi::PyObject,
    key: *mut ffi::PyObject,
) -> *mut ffi::PyObject {
    // SAFETY: called-by-the-interpreter.
    let py = unsafe { Python::assume_attached() };
    // SAFETY: called-by-the-interpreter.
    let Some(key) = (unsafe { given(py, key) }) else {
        return null_mut();
    };
    // SAFETY: called-by-the-interpreter.
    unsafe {
        run(
            object,
            |py, shared| shared.quick_item(py, |numbers| numbers.index(&key)),
            |_, shared| shared.item(&key),
        )
    }
}

/// For iterators, which count for themselves.
unsafe extern "C" fn get_nth(
    object: *mut ffi::PyObject,
    index: ffi::Py_ssize_t,
) -> *mut ffi::PyObject {
    // SAFETY: called-by-the-interpreter.
    unsafe {
        run(
            object,
            |py, shared| {
                let index = usize::try_from(index).ok()?;
                shared.quick_item(py, |numbers| (index < numbers.count?).then_some(index))
            },
            |py, shared| {
                // Counted from the end already.
                let before = if index < 0 { shared.len(py)? } else { 0 };
                let index = index.saturating_sub_unsigned(before);
                shared.item(&index.into_pyobject(py)?.into_any())
            },
        )
    }
}

unsafe extern "C" fn set_item(
    object: *mut ffi::PyObject,
    key: *mut ffi::PyObject,
    value: *mut ffi::PyObject,
) -> c_int {
    // SAFETY: called-by-the-interpreter.
    let py = unsafe { Python::assume_attached() };
    // SAFETY: called-by-the-interpreter.
    let Some(key) = (unsafe { given(py, key) }) else {
        return -1;
    };
    // SAFETY: called-by-the-interpreter.
    let value = unsafe { given(py, value) };
    // SAFETY: called-by-the-interpreter.
    unsafe {
        run(
            object,
            |_, shared| {
                let value = value.as_ref()?;
                let set = shared.quick_set_item(value, |numbers| numbers.index(&key));
                set.map(Ok)
            },
            |_, shared| shared.set_item(&key, value.as_ref().ok_or_else(undeletable)?),
        )
    }
}

fn undeletable() -> PyErr {
    PyTypeError::new_err("what is shared can't be deleted")
}

/// The two functions of an attribute.
macro_rules! accessors {
    ($($get:ident: $getter:ident, $quick_get:expr; $set:ident: $setter:ident, $quick_set:expr;)*) => {$(
        unsafe extern "C" fn $get(
            object: *mut ffi::PyObject,
            _closure: *mut c_void,
        ) -> *mut ffi::PyObject {
            // SAFETY: called-by-the-interpreter.
            unsafe { run(object, $quick_get, |py, shared| shared.$getter(py)) }
        }

        unsafe extern "C" fn $set(
            object: *mut ffi::PyObject,
            value: *mut ffi::PyObject,
            _closure: *mut c_void,
        ) -> c_int {
            // SAFETY: called-by-the-interpreter.
            let py = unsafe { Python::assume_attached() };
            // SAFETY: called-by-the-interpreter.
            let value = unsafe { given(py, value) };
            // SAFETY: called-by-the-interpreter.
            unsafe {
                run(
                    object,
                    |py, shared| $quick_set(py, shared, value.as_ref()?),
                    |_, shared| shared.$setter(value.as_ref().ok_or_else(undeletable)?),
                )
            }
        }
    )*};
}

accessors! {
    get_value: value, |py, shared| shared.quick_item(py, |_| Some(0));
    set_value: set_value, |_, shared: &Shared, value| {
        shared.quick_set_item(value, |_| Some(0)).map(Ok)
    };
    get_text: text, |_, _| None;
    set_text: set_text, |_, _, _| None;
    get_raw: raw, |_, _| None;
    set_raw: set_raw, |_, _, _| None;
}
