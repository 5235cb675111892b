//! Values in messages: as a pickle, or, the commonest, as themselves.

use crate::error::raise;
use crate::memory::HeldBuffer;
use crate::pickle::{Pickled, Pieces};
use crate::{extent, memory, pickle, plain};
use procession_core::{Carried, Error, Extent, Naming};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyFloat, PyInt, PyList, PyString};
use std::cell::Cell;

/// What the bytes of a value are. Fits into four bits.
pub(crate) mod kind {
    pub(crate) const PICKLE: u8 = 0;
    pub(crate) const BYTES: u8 = 1;
    pub(crate) const NONE: u8 = 2;
    pub(crate) const BOOL: u8 = 3;
    pub(crate) const INT: u8 = 4;
    pub(crate) const FLOAT: u8 = 5;
    /// Of answers only: the task raised.
    pub(crate) const RAISED: u8 = 6;
    /// UTF-8.
    pub(crate) const STR: u8 = 7;
    /// Several plain values: `plain`.
    pub(crate) const PLAIN: u8 = 8;
    /// A pickle with buffers beside it: 4 bytes, how many; 8 bytes for each, twice its length, and one more if it is
    /// read-only; their bytes; the pickle. All numbers little-endian.
    pub(crate) const BUFFERS: u8 = 9;
}

/// The longest string that goes as its UTF-8, which the interpreter keeps beside a string that isn't ASCII.
const STR_MAX: usize = 4096;

/// An encoded value.
pub(crate) enum Value<'py> {
    /// And the objects that it names.
    Pickle(Pieces, Carried),
    /// Likewise; the table of the buffers first.
    Buffers(Vec<u8>, Pickled, Carried),
    Bytes(Bound<'py, PyBytes>),
    Str(Bound<'py, PyString>),
    Plain(Scratch),
    /// Small ones: kind, bytes, and how many of them count.
    Word(u8, [u8; 8], usize),
}

thread_local! {
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Where values are encoded, and short messages are before they are decoded: a thread's own, empty, taken while in use.
pub(crate) struct Scratch(Vec<u8>);

impl Scratch {
    fn take() -> Self {
        let mut bytes = SCRATCH.take();
        bytes.clear();
        Self(bytes)
    }

    /// Calls `work` with it: it is looked up once, where taking it and giving it back looks twice.
    #[inline]
    pub(crate) fn with<R>(work: impl FnOnce(&mut Vec<u8>) -> R) -> R {
        SCRATCH.with(|scratch| {
            let mut bytes = scratch.take();
            bytes.clear();
            let result = work(&mut bytes);
            scratch.set(bytes);
            result
        })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        SCRATCH.set(std::mem::take(&mut self.0));
    }
}

/// Encodes an object; user code may run.
pub(crate) fn encode<'py>(object: &Bound<'py, PyAny>) -> PyResult<Value<'py>> {
    if let Ok(number) = object.cast_exact::<PyInt>() {
        if let Ok(number) = number.extract::<i64>() {
            return Ok(Value::Word(kind::INT, number.to_le_bytes(), 8));
        }
    } else if object.is_none() {
        return Ok(Value::Word(kind::NONE, [0; 8], 0));
    } else if let Ok(bytes) = object.cast_exact::<PyBytes>() {
        return Ok(Value::Bytes(bytes.clone()));
    } else if let Ok(text) = object.cast_exact::<PyString>() {
        if text.len()? <= STR_MAX && text.to_str().is_ok() {
            return Ok(Value::Str(text.clone()));
        }
    } else if let Ok(truth) = object.cast_exact::<PyBool>() {
        return Ok(Value::Word(kind::BOOL, [u8::from(truth.is_true()); 8], 1));
    } else if let Ok(number) = object.cast_exact::<PyFloat>() {
        return Ok(Value::Word(kind::FLOAT, number.value().to_le_bytes(), 8));
    } else {
        let mut scratch = Scratch::take();
        if plain::encode(object, &mut scratch.0) {
            return Ok(Value::Plain(scratch));
        }
    }
    let (pickled, names) = Naming::during(|| pickle::dumps_beside(object.py(), object))?;
    if pickled.buffers.is_empty() {
        return Ok(Value::Pickle(pickled.pieces, names));
    }
    Ok(Value::Buffers(table(&pickled.buffers)?, pickled, names))
}

fn table(buffers: &[HeldBuffer]) -> PyResult<Vec<u8>> {
    let mut table = u32::try_from(buffers.len())?.to_le_bytes().to_vec();
    for buffer in buffers {
        let length = buffer.as_bytes().len() as u64;
        table.extend((length << 1 | u64::from(buffer.is_readonly())).to_le_bytes());
    }
    Ok(table)
}

impl Value<'_> {
    pub(crate) fn kind(&self) -> u8 {
        match self {
            Self::Pickle(..) => kind::PICKLE,
            Self::Buffers(..) => kind::BUFFERS,
            Self::Bytes(_) => kind::BYTES,
            Self::Str(_) => kind::STR,
            Self::Plain(_) => kind::PLAIN,
            Self::Word(kind, ..) => *kind,
        }
    }

    /// The objects that it names, held until it is dropped.
    pub(crate) fn names(&self) -> &Carried {
        static NONE: Carried = Carried::new();
        match self {
            Self::Pickle(_, names) | Self::Buffers(_, _, names) => names,
            _ => &NONE,
        }
    }

    /// Calls `send` with `head` and the value's bytes.
    pub(crate) fn parts<R>(
        &self,
        py: Python<'_>,
        head: &[u8],
        send: impl FnOnce(&[&[u8]]) -> R,
    ) -> R {
        match self {
            Self::Word(_, bytes, length) => send(&[head, &bytes[..*length]]),
            Self::Bytes(bytes) => send(&[head, bytes.as_bytes()]),
            // It had UTF-8 when it was encoded.
            Self::Str(text) => send(&[head, text.to_str().unwrap_or_default().as_bytes()]),
            Self::Plain(scratch) => send(&[head, &scratch.0]),
            Self::Pickle(pieces, _) => match &pieces[..] {
                [piece] => send(&[head, piece.as_bytes(py)]),
                _ => {
                    let mut parts = vec![head];
                    parts.extend(pieces.iter().map(|piece| piece.as_bytes(py)));
                    send(&parts)
                }
            },
            Self::Buffers(table, pickled, _) => {
                let mut parts = vec![head, table];
                parts.extend(pickled.buffers.iter().map(HeldBuffer::as_bytes));
                parts.extend(pickled.pieces.iter().map(|piece| piece.as_bytes(py)));
                send(&parts)
            }
        }
    }
}

/// The bytes of a message, wherever they are.
pub(crate) struct Source<'a> {
    pub(crate) buffer: &'a [u8],
    pub(crate) extent: Option<&'a Extent>,
}

impl Source<'_> {
    /// Copies bytes from `at` on; false when there aren't as many.
    pub(crate) fn read(&self, at: usize, to: &mut [u8]) -> PyResult<bool> {
        match self.extent {
            Some(extent) => Ok(extent.copy_from(at, to).map_err(raise)? == to.len()),
            None => match self.buffer.get(at..at + to.len()) {
                Some(from) => {
                    to.copy_from_slice(from);
                    Ok(true)
                }
                None => Ok(false),
            },
        }
    }

    /// How many bytes there are.
    pub(crate) fn len(&self) -> usize {
        self.extent.map_or(self.buffer.len(), Extent::len)
    }

    /// The pickle of the value, which is pickled for that if it came otherwise; user code may run.
    pub(crate) fn pickled<'py>(&self, py: Python<'py>, kind: u8) -> PyResult<Bound<'py, PyBytes>> {
        if kind == kind::PICKLE {
            return self.bytes(py, 0);
        }
        pickle::dumped(&self.decode(py, kind, 0)?)
    }

    /// All bytes from `at` on.
    pub(crate) fn bytes<'py>(&self, py: Python<'py>, at: usize) -> PyResult<Bound<'py, PyBytes>> {
        let Some(extent) = self.extent else {
            return Ok(PyBytes::new(py, self.buffer.get(at..).unwrap_or_default()));
        };
        memory::bytes_with(py, extent.len().saturating_sub(at), |to| {
            extent::fill(py, extent, at, to)
        })
    }

    /// Calls `read` with all bytes from `at` on.
    fn with<'py, R>(
        &self,
        py: Python<'py>,
        at: usize,
        read: impl FnOnce(&[u8]) -> PyResult<R>,
    ) -> PyResult<R> {
        match self.extent {
            None => read(self.buffer.get(at..).unwrap_or_default()),
            Some(_) => read(self.bytes(py, at)?.as_bytes()),
        }
    }

    /// The value from `at` on; user code may run.
    pub(crate) fn decode<'py>(
        &self,
        py: Python<'py>,
        kind: u8,
        at: usize,
    ) -> PyResult<Bound<'py, PyAny>> {
        let mut word = [0; 8];
        let length = match kind {
            kind::PICKLE => return self.unpickle(py, at, None),
            kind::BUFFERS => {
                let (buffers, at) = self.buffers(py, at)?;
                return self.unpickle(py, at, Some(buffers));
            }
            kind::BYTES => return Ok(self.bytes(py, at)?.into_any()),
            kind::STR => {
                return self.with(py, at, |bytes| {
                    Ok(PyString::from_bytes(py, bytes)?.into_any())
                });
            }
            kind::PLAIN => return self.with(py, at, |bytes| plain::decode(py, bytes)),
            kind::NONE => return Ok(py.None().into_bound(py)),
            kind::BOOL => 1,
            kind::INT | kind::FLOAT => 8,
            _ => return Err(malformed(at)),
        };
        if !self.read(at, &mut word[..length])? {
            return Err(malformed(at));
        }
        Ok(match kind {
            kind::BOOL => PyBool::new(py, word[0] != 0).to_owned().into_any(),
            kind::INT => PyInt::new(py, i64::from_le_bytes(word)).into_any(),
            _ => PyFloat::new(py, f64::from_le_bytes(word)).into_any(),
        })
    }
}

/// Of a pickle: that it has a protocol, then which.
const PROTO: u8 = 0x80;
/// The first protocol with frames: an older pickle would be read from a file byte by byte.
const FRAMES: u8 = 4;

impl Source<'_> {
    fn unpickle<'py>(
        &self,
        py: Python<'py>,
        at: usize,
        buffers: Option<Bound<'py, PyList>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        if let Some(extent) = self.extent {
            let mut start = [0; 2];
            if self.read(at, &mut start)? && start[0] == PROTO && start[1] >= FRAMES {
                return pickle::load(py, extent, at, buffers);
            }
        }
        pickle::loads(py, &self.bytes(py, at)?)
    }

    /// The buffers of a pickle, and where it begins.
    fn buffers<'py>(&self, py: Python<'py>, at: usize) -> PyResult<(Bound<'py, PyList>, usize)> {
        let extent = self.extent.ok_or_else(|| malformed(at))?;
        let (mut count, mut entry) = ([0; 4], [0; 8]);
        if !self.read(at, &mut count)? {
            return Err(malformed(at));
        }
        let buffers = PyList::empty(py);
        let mut place = at + count.len();
        let count = usize::try_from(u32::from_le_bytes(count))?;
        let mut begin = place.saturating_add(count.saturating_mul(entry.len()));
        for _ in 0..count {
            if !self.read(place, &mut entry)? {
                return Err(malformed(place));
            }
            let bits = u64::from_le_bytes(entry);
            let length = usize::try_from(bits >> 1)?;
            if length > extent.len().saturating_sub(begin) {
                return Err(malformed(place));
            }
            // What an unpickled buffer inside its pickle is, too.
            if bits & 1 == 1 {
                buffers.append(memory::bytes_with(py, length, |to| {
                    extent::fill(py, extent, begin, to)
                })?)?;
            } else {
                buffers.append(memory::bytearray_with(py, length, |to| {
                    extent::fill(py, extent, begin, to)
                })?)?;
            }
            (place, begin) = (place + entry.len(), begin + length);
        }
        Ok((buffers, begin))
    }
}

pub(crate) fn malformed(at: usize) -> PyErr {
    raise(Error::Malformed {
        what: "message",
        at: at as u64,
    })
}
