//! Plain memory as an object with a buffer: what ctypes' objects, memoryviews and numpy's arrays lie over.
#![allow(
    unsafe_code,
    reason = "the buffer protocol hands an address to the interpreter"
)]

use crate::value::malformed;
use crate::{blocking, tree};
use procession_core::{Bytes, ObjectName};
use pyo3::buffer::PyUntypedBuffer;
use pyo3::exceptions::{PyBufferError, PyTypeError, PyValueError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes, PyTuple};
use std::ffi::{c_char, c_int};
use std::mem::MaybeUninit;
use std::slice;

/// Bytes that processes share, all zero at first; they can be sent anywhere in the tree.
#[pyclass(frozen, weakref, module = "procession._core")]
pub(crate) struct Memory(procession_core::Memory);

#[pymethods]
impl Memory {
    #[new]
    fn new(py: Python<'_>, size: usize) -> PyResult<Self> {
        let arena = tree::arena()?;
        blocking::call(py, || procession_core::Memory::new(arena, size)).map(Self)
    }

    fn __len__(&self) -> usize {
        self.bytes().len()
    }

    /// A view of all of it.
    fn create_memoryview<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let view = slf.py().import("builtins")?.getattr("memoryview")?;
        view.call1((slf,))
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyTuple>> {
        let py = slf.py();
        let memory = &slf.get().0;
        let name = tree::pickled(py, memory.name(), || memory.escape())?;
        let open = py.import("procession._core")?.getattr("open_memory")?;
        (open, name).into_pyobject(py)
    }

    /// # Safety
    /// *called-by-the-interpreter*: `view` is one that it fills, or null.
    unsafe fn __getbuffer__(
        slf: Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        if view.is_null() {
            return Err(PyBufferError::new_err("no view to fill"));
        }
        let bytes = slf.get().bytes();
        let length = ffi::Py_ssize_t::try_from(bytes.len())?;
        let base = bytes.base().as_ptr().cast();
        // SAFETY: called-by-the-interpreter; map-outlives-view: the bytes stay as long as the object, which the view
        // refers to.
        let filled = unsafe { ffi::PyBuffer_FillInfo(view, slf.as_ptr(), base, length, 0, flags) };
        if filled == 0 {
            Ok(())
        } else {
            Err(PyErr::fetch(slf.py()))
        }
    }
}

impl Memory {
    #[inline]
    pub(crate) fn bytes(&self) -> &Bytes {
        self.0.bytes()
    }
}

/// A bytes object of that length with what `fill` fills it with: all of it, or it is an error. Without zeros first, as
/// PyO3's own has it, which costs a sixth of the copy.
pub(crate) fn bytes_with(
    py: Python<'_>,
    length: usize,
    fill: impl FnOnce(&mut [MaybeUninit<u8>]) -> PyResult<&[u8]>,
) -> PyResult<Bound<'_, PyBytes>> {
    let kind = (
        ffi::PyBytes_FromStringAndSize as Make,
        ffi::PyBytes_AsString as Base,
    );
    Ok(filled(py, length, kind, fill)?.cast_into()?)
}

/// As [`bytes_with`], a bytearray.
pub(crate) fn bytearray_with(
    py: Python<'_>,
    length: usize,
    fill: impl FnOnce(&mut [MaybeUninit<u8>]) -> PyResult<&[u8]>,
) -> PyResult<Bound<'_, PyByteArray>> {
    let kind = (
        ffi::PyByteArray_FromStringAndSize as Make,
        ffi::PyByteArray_AsString as Base,
    );
    Ok(filled(py, length, kind, fill)?.cast_into()?)
}

/// Makes an object of so many bytes, which without a source are left as they are.
type Make = unsafe extern "C" fn(*const c_char, ffi::Py_ssize_t) -> *mut ffi::PyObject;
/// Where the bytes of such an object are.
type Base = unsafe extern "C" fn(*mut ffi::PyObject) -> *mut c_char;

fn filled<'py>(
    py: Python<'py>,
    length: usize,
    (make, base): (Make, Base),
    fill: impl FnOnce(&mut [MaybeUninit<u8>]) -> PyResult<&[u8]>,
) -> PyResult<Bound<'py, PyAny>> {
    let size = ffi::Py_ssize_t::try_from(length)?;
    // SAFETY: interpreter-attached; without a source the bytes are left as they are.
    let object = unsafe { make(std::ptr::null(), size) };
    // SAFETY: a new object that nobody else refers to, or null and an exception.
    let object = unsafe { Bound::from_owned_ptr_or_err(py, object) }?;
    // SAFETY: it is of the type that both functions are for.
    let base = unsafe { base(object.as_ptr()) };
    // SAFETY: it has as many bytes, and nobody else refers to it before this function is left.
    let room = unsafe { slice::from_raw_parts_mut(base.cast::<MaybeUninit<u8>>(), length) };
    let filled = fill(room)?.len();
    if filled == length {
        Ok(object)
    } else {
        Err(malformed(filled))
    }
}

/// A bytes object that isn't whole yet, whose memory is no more than a part of what it will have.
///
/// Nobody else refers to it before it is whole.
pub(crate) struct Growing {
    object: Py<PyBytes>,
    /// Its present length, and how many bytes of that are filled.
    room: usize,
    filled: usize,
}

unsafe extern "C" {
    /// Of the stable ABI: makes a new object of another length of one that nobody else refers to, or null and an exception.
    fn _PyBytes_Resize(bytes: *mut *mut ffi::PyObject, size: ffi::Py_ssize_t) -> c_int;
}

impl Growing {
    pub(crate) fn new(py: Python<'_>, room: usize) -> PyResult<Self> {
        let size = ffi::Py_ssize_t::try_from(room)?;
        // SAFETY: interpreter-attached; without a source the bytes are left as they are.
        let object = unsafe { ffi::PyBytes_FromStringAndSize(std::ptr::null(), size) };
        // SAFETY: a new object that nobody else refers to, or null and an exception.
        let object = unsafe { Bound::from_owned_ptr_or_err(py, object) }?.cast_into::<PyBytes>()?;
        Ok(Self {
            object: object.unbind(),
            room,
            filled: 0,
        })
    }

    /// Makes it longer.
    pub(crate) fn grow(self, py: Python<'_>, room: usize) -> PyResult<Self> {
        let size = ffi::Py_ssize_t::try_from(room.max(self.room))?;
        let Self { object, filled, .. } = self;
        let mut object = object.into_ptr();
        // SAFETY: interpreter-attached; the only reference to the object, which is given up for the new one.
        let resized = unsafe { _PyBytes_Resize(&raw mut object, size) };
        if resized != 0 {
            return Err(PyErr::fetch(py));
        }
        // SAFETY: the new object, to which nobody else refers.
        let object = unsafe { Bound::from_owned_ptr_or_err(py, object) }?.cast_into::<PyBytes>()?;
        Ok(Self {
            object: object.unbind(),
            room,
            filled,
        })
    }

    fn base(&self) -> *mut MaybeUninit<u8> {
        // SAFETY: it is a bytes object; this only computes where its bytes are.
        unsafe { ffi::PyBytes_AsString(self.object.as_ptr()) }.cast()
    }

    /// What is to be filled.
    pub(crate) fn room(&mut self) -> &mut [MaybeUninit<u8>] {
        // SAFETY: it has as many bytes, and nobody else refers to it.
        let all = unsafe { slice::from_raw_parts_mut(self.base(), self.room) };
        &mut all[self.filled..]
    }

    /// Fills a part of the room by `read`, which says how many bytes it has filled.
    pub(crate) fn fill<E>(
        &mut self,
        read: impl FnOnce(&mut [MaybeUninit<u8>]) -> Result<Option<usize>, E>,
    ) -> Result<Option<usize>, E> {
        let filled = read(self.room())?;
        self.filled = self
            .filled
            .saturating_add(filled.unwrap_or(0))
            .min(self.room);
        Ok(filled)
    }

    /// Copies bytes into the room, which has as many.
    pub(crate) fn append(&mut self, bytes: &[u8]) {
        let room = self.room().iter_mut();
        let written = room.zip(bytes).map(|(place, byte)| place.write(*byte));
        self.filled += written.count();
    }

    /// How many bytes are filled.
    pub(crate) fn len(&self) -> usize {
        self.filled
    }

    /// What is filled.
    pub(crate) fn filled(&self) -> &[u8] {
        // SAFETY: filled-before-read.
        unsafe { slice::from_raw_parts(self.base().cast(), self.filled) }
    }

    /// The object, all of which is filled.
    pub(crate) fn whole(self, py: Python<'_>) -> PyResult<Bound<'_, PyBytes>> {
        if self.filled == self.room {
            Ok(self.object.into_bound(py))
        } else {
            Err(malformed(self.filled))
        }
    }
}

/// A buffer in one piece, held: its exporter neither moves nor frees it.
pub(crate) struct HeldBuffer(PyUntypedBuffer);

impl HeldBuffer {
    pub(crate) fn get(object: &Bound<'_, PyAny>) -> PyResult<Self> {
        let buffer = PyUntypedBuffer::get(object)?;
        if buffer.is_c_contiguous() {
            Ok(Self(buffer))
        } else {
            Err(PyTypeError::new_err(
                "memoryview: casts are restricted to C-contiguous views",
            ))
        }
    }

    pub(crate) fn is_readonly(&self) -> bool {
        self.0.readonly()
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        if self.0.len_bytes() == 0 {
            return &[];
        }
        let base = self.0.buf_ptr().cast_const().cast::<u8>();
        // SAFETY: buffer-held: it has so many bytes in one piece until it is released, with this. Who changes them
        // meanwhile chooses what is sent.
        unsafe { slice::from_raw_parts(base, self.0.len_bytes()) }
    }
}

/// Calls `work` with the bytes of any object that has a buffer.
pub(crate) fn with_bytes<R>(
    object: &Bound<'_, PyAny>,
    work: impl FnOnce(&[u8]) -> PyResult<R>,
) -> PyResult<R> {
    match object.cast::<PyBytes>() {
        Ok(bytes) => work(bytes.as_bytes()),
        Err(_) => work(HeldBuffer::get(object)?.as_bytes()),
    }
}

/// Calls `work` with the bytes, from `offset` on, of any object that has a buffer and may be written to.
pub(crate) fn with_room<R>(
    object: &Bound<'_, PyAny>,
    offset: isize,
    work: impl FnOnce(&mut [u8]) -> PyResult<R>,
) -> PyResult<R> {
    let HeldBuffer(buffer) = HeldBuffer::get(object)?;
    if buffer.readonly() {
        return Err(PyTypeError::new_err("the buffer can't be written to"));
    }
    let wrong = |what: &str| PyValueError::new_err(what.to_owned());
    let offset = usize::try_from(offset).map_err(|_| wrong("negative offset"))?;
    let length = buffer.len_bytes();
    if offset > length {
        return Err(wrong("offset too large"));
    }
    if length == 0 {
        return work(&mut []);
    }
    let base = buffer.buf_ptr().cast::<u8>();
    // SAFETY: buffer-held: it has so many bytes in one piece until it is released, behind this. Who looks at them or
    // changes them meanwhile has what comes of it.
    let room = unsafe { slice::from_raw_parts_mut(base, length) };
    work(&mut room[offset..])
}

/// Puts a message into a buffer, and gives its length. Where it doesn't fit, `BufferTooShort` has it.
pub(crate) fn fill(room: &mut [u8], message: Bound<'_, PyBytes>) -> PyResult<usize> {
    let length = message.as_bytes().len();
    let Some(to) = room.get_mut(..length) else {
        return Err(too_short(message));
    };
    to.copy_from_slice(message.as_bytes());
    Ok(length)
}

/// `BufferTooShort`, with the message that didn't fit.
pub(crate) fn too_short(message: Bound<'_, PyBytes>) -> PyErr {
    let context = message.py().import("procession.context");
    let class = context.and_then(|context| context.getattr("BufferTooShort"));
    let error = class.and_then(|class| class.call1((message,)));
    error.map_or_else(|error| error, PyErr::from_value)
}

/// The part of a message that a `send_bytes` is asked for.
pub(crate) fn part(bytes: &[u8], offset: isize, size: Option<isize>) -> PyResult<&[u8]> {
    let wrong = |what: &str| PyValueError::new_err(what.to_owned());
    let offset = usize::try_from(offset).map_err(|_| wrong("offset is negative"))?;
    let rest = bytes.get(offset..);
    let rest = rest.ok_or_else(|| wrong("buffer length < offset"))?;
    let Some(size) = size else {
        return Ok(rest);
    };
    let size = usize::try_from(size).map_err(|_| wrong("size is negative"))?;
    rest.get(..size)
        .ok_or_else(|| wrong("buffer length < offset + size"))
}

/// The memory of that name: what its pickle calls.
#[pyfunction]
pub(crate) fn open_memory(py: Python<'_>, offset: u64, serial: u64) -> PyResult<Memory> {
    let arena = tree::arena()?;
    let name = ObjectName { offset, serial };
    blocking::call(py, || procession_core::Memory::open(arena, name)).map(Memory)
}
