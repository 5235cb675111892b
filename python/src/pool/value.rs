//! Values in tasks and answers: most as a pickle, the commonest as themselves.

use crate::error::raise;
use crate::pickle;
use procession_core::{Error, Extent};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyFloat, PyInt};

/// What the bytes of a value are. Fits into four bits.
pub(super) mod kind {
    pub(in super::super) const PICKLE: u8 = 0;
    pub(in super::super) const BYTES: u8 = 1;
    pub(in super::super) const NONE: u8 = 2;
    pub(in super::super) const BOOL: u8 = 3;
    pub(in super::super) const INT: u8 = 4;
    pub(in super::super) const FLOAT: u8 = 5;
    /// Of answers only: the task raised.
    pub(in super::super) const RAISED: u8 = 6;
}

/// Payloads longer than this are copied without the interpreter: letting go of it costs as much as copying 1 KiB.
pub(super) const COPY_ATTACHED_MAX: usize = 64 << 10;

/// An encoded value.
pub(super) enum Value {
    Pickle(pickle::Pieces),
    Bytes(Py<PyBytes>),
    /// Small ones: kind, bytes, and how many of them count.
    Word(u8, [u8; 8], usize),
}

/// Encodes an object; user code may run.
pub(super) fn encode(object: &Bound<'_, PyAny>) -> PyResult<Value> {
    let py = object.py();
    if let Ok(number) = object.cast_exact::<PyInt>() {
        if let Ok(number) = number.extract::<i64>() {
            return Ok(Value::Word(kind::INT, number.to_le_bytes(), 8));
        }
    } else if object.is_none() {
        return Ok(Value::Word(kind::NONE, [0; 8], 0));
    } else if let Ok(bytes) = object.cast_exact::<PyBytes>() {
        return Ok(Value::Bytes(bytes.clone().unbind()));
    } else if let Ok(truth) = object.cast_exact::<PyBool>() {
        return Ok(Value::Word(kind::BOOL, [u8::from(truth.is_true()); 8], 1));
    } else if let Ok(number) = object.cast_exact::<PyFloat>() {
        return Ok(Value::Word(kind::FLOAT, number.value().to_le_bytes(), 8));
    }
    pickle::dumps(py, object).map(Value::Pickle)
}

impl Value {
    pub(super) fn kind(&self) -> u8 {
        match self {
            Self::Pickle(_) => kind::PICKLE,
            Self::Bytes(_) => kind::BYTES,
            Self::Word(kind, ..) => *kind,
        }
    }

    /// Calls `send` with `head` and the value's bytes.
    pub(super) fn parts<R>(
        &self,
        py: Python<'_>,
        head: &[u8],
        send: impl FnOnce(&[&[u8]]) -> R,
    ) -> R {
        match self {
            Self::Word(_, bytes, length) => send(&[head, &bytes[..*length]]),
            Self::Bytes(bytes) => send(&[head, bytes.as_bytes(py)]),
            Self::Pickle(pieces) => match &pieces[..] {
                [piece] => send(&[head, piece.as_bytes(py)]),
                _ => {
                    let mut parts = vec![head];
                    parts.extend(pieces.iter().map(|piece| piece.as_bytes(py)));
                    send(&parts)
                }
            },
        }
    }
}

/// The bytes of a message, wherever they are.
pub(super) struct Source<'a> {
    pub(super) buffer: &'a [u8],
    pub(super) extent: Option<&'a Extent>,
}

impl Source<'_> {
    /// Copies bytes from `at` on; false when there aren't as many.
    pub(super) fn read(&self, at: usize, to: &mut [u8]) -> PyResult<bool> {
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

    /// All bytes from `at` on.
    pub(super) fn bytes<'py>(&self, py: Python<'py>, at: usize) -> PyResult<Bound<'py, PyBytes>> {
        let Some(extent) = self.extent else {
            return Ok(PyBytes::new(py, self.buffer.get(at..).unwrap_or_default()));
        };
        PyBytes::new_with(py, extent.len().saturating_sub(at), |to| {
            let copied = if to.len() <= COPY_ATTACHED_MAX {
                extent.copy_from(at, to)
            } else {
                py.detach(|| extent.copy_from(at, to))
            };
            copied.map(drop).map_err(raise)
        })
    }

    /// The value from `at` on; user code may run.
    pub(super) fn decode<'py>(
        &self,
        py: Python<'py>,
        kind: u8,
        at: usize,
    ) -> PyResult<Bound<'py, PyAny>> {
        let mut word = [0; 8];
        let length = match kind {
            kind::PICKLE => return pickle::loads(py, &self.bytes(py, at)?),
            kind::BYTES => return Ok(self.bytes(py, at)?.into_any()),
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

pub(super) fn malformed(at: usize) -> PyErr {
    raise(Error::Malformed {
        what: "message of a pool",
        at: at as u64,
    })
}
