//! Numbers of C's types in shared memory, read and written as ctypes does.
//!
//! What is unusual (a value that ctypes converts or refuses in its own way) is left to ctypes.

use procession_core::Bytes;
use pyo3::IntoPyObjectExt;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyFloat, PyInt, PyList, PyTuple};
use std::sync::atomic::Ordering::Relaxed;

/// A type of C's, by its letter in the module struct: the native sizes of x86-64 and its like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    I8,
    U8,
    I16,
    U16,
    I32,
    U32,
    I64,
    U64,
    F32,
    F64,
    Bool,
    Char,
}

impl Code {
    pub(crate) fn of(letter: char) -> Option<Self> {
        Some(match letter {
            'b' => Self::I8,
            'B' => Self::U8,
            'h' => Self::I16,
            'H' => Self::U16,
            'i' => Self::I32,
            'I' => Self::U32,
            'q' => Self::I64,
            'Q' => Self::U64,
            'f' => Self::F32,
            'd' => Self::F64,
            '?' => Self::Bool,
            'c' => Self::Char,
            _ => return None,
        })
    }

    pub(crate) fn letter(self) -> char {
        match self {
            Self::I8 => 'b',
            Self::U8 => 'B',
            Self::I16 => 'h',
            Self::U16 => 'H',
            Self::I32 => 'i',
            Self::U32 => 'I',
            Self::I64 => 'q',
            Self::U64 => 'Q',
            Self::F32 => 'f',
            Self::F64 => 'd',
            Self::Bool => '?',
            Self::Char => 'c',
        }
    }

    /// Bytes of a value.
    #[inline]
    pub(crate) fn size(self) -> usize {
        match self {
            Self::I8 | Self::U8 | Self::Bool | Self::Char => 1,
            Self::I16 | Self::U16 => 2,
            Self::I32 | Self::U32 | Self::F32 => 4,
            Self::I64 | Self::U64 | Self::F64 => 8,
        }
    }

    /// The bits of the value with that number; `None` outside the memory.
    #[inline(always)]
    pub(crate) fn load(self, memory: &Bytes, index: usize) -> Option<u64> {
        let at = index * self.size();
        Some(match self.size() {
            1 => memory.u8_at(at)?.load(Relaxed).into(),
            2 => memory.u16_at(at)?.load(Relaxed).into(),
            4 => memory.u32_at(at)?.load(Relaxed).into(),
            _ => memory.u64_at(at)?.load(Relaxed),
        })
    }

    /// The object for a value of these bits.
    #[inline(always)]
    #[allow(
        clippy::cast_possible_truncation,
        reason = "what was loaded has no more bits than the type"
    )]
    pub(crate) fn object(self, py: Python<'_>, bits: u64) -> PyResult<Bound<'_, PyAny>> {
        match self {
            Self::I8 => (bits as i8).into_bound_py_any(py),
            Self::U8 | Self::U16 | Self::U32 | Self::U64 => bits.into_bound_py_any(py),
            Self::I16 => (bits as i16).into_bound_py_any(py),
            Self::I32 => (bits as i32).into_bound_py_any(py),
            Self::I64 => bits.cast_signed().into_bound_py_any(py),
            Self::F32 => f64::from(f32::from_bits(bits as u32)).into_bound_py_any(py),
            Self::F64 => f64::from_bits(bits).into_bound_py_any(py),
            Self::Bool => (bits != 0).into_bound_py_any(py),
            Self::Char => Ok(PyBytes::new(py, &[bits as u8]).into_any()),
        }
    }

    /// Stores the bits of a value under that number; `None` outside the memory.
    #[inline]
    #[allow(
        clippy::cast_possible_truncation,
        reason = "longer numbers are cut, as C and ctypes do it"
    )]
    pub(crate) fn store(self, memory: &Bytes, index: usize, bits: u64) -> Option<()> {
        let at = index * self.size();
        match self.size() {
            1 => memory.u8_at(at)?.store(bits as u8, Relaxed),
            2 => memory.u16_at(at)?.store(bits as u16, Relaxed),
            4 => memory.u32_at(at)?.store(bits as u32, Relaxed),
            _ => memory.u64_at(at)?.store(bits, Relaxed),
        }
        Some(())
    }

    /// The values of an array's stretch, as ctypes gives them: bytes for characters, else a list.
    pub(crate) fn list<'py>(self, py: Python<'py>, bytes: &[u8]) -> PyResult<Bound<'py, PyAny>> {
        macro_rules! list {
            ($number:ty) => {{
                let (numbers, _) = bytes.as_chunks::<{ size_of::<$number>() }>();
                PyList::new(py, numbers.iter().map(|raw| <$number>::from_ne_bytes(*raw)))
            }};
        }
        let list = match self {
            Self::I8 => list!(i8),
            // A list of bytes would be bytes.
            Self::U8 => PyList::new(py, bytes.iter().map(|byte| u32::from(*byte))),
            Self::I16 => list!(i16),
            Self::U16 => list!(u16),
            Self::I32 => list!(i32),
            Self::U32 => list!(u32),
            Self::I64 => list!(i64),
            Self::U64 => list!(u64),
            Self::F32 => list!(f32),
            Self::F64 => list!(f64),
            Self::Bool => PyList::new(py, bytes.iter().map(|byte| *byte != 0)),
            Self::Char => return Ok(PyBytes::new(py, bytes).into_any()),
        };
        list.map(Bound::into_any)
    }

    /// The bytes of a list's or a tuple's values; `None` when ctypes must say what they mean.
    pub(crate) fn encode(self, values: &Bound<'_, PyAny>) -> Option<Vec<u8>> {
        let list = match values.cast_exact::<PyList>() {
            Ok(list) => list.clone(),
            Err(_) => values.cast_exact::<PyTuple>().ok()?.to_list(),
        };
        macro_rules! bytes {
            ($bits:ty) => {{
                let mut bytes = Vec::with_capacity(list.len() * size_of::<$bits>());
                for value in &list {
                    #[allow(clippy::cast_possible_truncation, reason = "as C does it")]
                    let bits = self.bits(&value)? as $bits;
                    bytes.extend_from_slice(&bits.to_ne_bytes());
                }
                Some(bytes)
            }};
        }
        match self.size() {
            1 => bytes!(u8),
            2 => bytes!(u16),
            4 => bytes!(u32),
            _ => bytes!(u64),
        }
    }

    /// The bits of an object's value; `None` when ctypes must say what it means, or that it can't be.
    #[inline]
    pub(crate) fn bits(self, value: &Bound<'_, PyAny>) -> Option<u64> {
        let integer = || {
            let number = value.cast_exact::<PyInt>().ok()?;
            number.extract::<i64>().ok()
        };
        let float = || {
            if let Ok(number) = value.cast_exact::<PyFloat>() {
                return Some(number.value());
            }
            // Exact up to here; ctypes rounds what is beyond, or refuses it.
            let number = integer().filter(|number| number.unsigned_abs() <= 1 << 53)?;
            #[allow(clippy::cast_precision_loss, reason = "none up to 2^53")]
            Some(number as f64)
        };
        match self {
            #[allow(clippy::cast_possible_truncation, reason = "rounded, as C does it")]
            Self::F32 => float().map(|number| u64::from((number as f32).to_bits())),
            Self::F64 => float().map(f64::to_bits),
            Self::Bool => {
                let truth = value.cast_exact::<PyBool>().ok()?;
                Some(u64::from(truth.is_true()))
            }
            Self::Char => match value.cast_exact::<PyBytes>().ok()?.as_bytes() {
                [byte] => Some(u64::from(*byte)),
                _ => None,
            },
            _ => integer().map(i64::cast_unsigned),
        }
    }
}
