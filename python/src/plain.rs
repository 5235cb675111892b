//! Small values without a pickle: what nearly all messages are made of, at a third of its price.
//!
//! ```text
//! value    a byte that says what it is, then
//!   NONE TRUE FALSE   nothing
//!   INT FLOAT         8 bytes, little-endian
//!   STR BYTES         a byte: the length, then as many bytes (UTF-8)
//!   TUPLE LIST        a byte: how many, then as many values
//!   DICT              a byte: how many, then as many pairs of values
//! ```
//! Only exact builtin types, few and short, so that no code of the user's runs and nothing else can see the
//! difference to a pickle: an object that occurs twice, which a pickle keeps one, is left to the pickle.

use crate::value::malformed;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyDict, PyFloat, PyInt, PyList, PyString, PyTuple};
use std::cell::RefCell;

const NONE: u8 = 0;
const TRUE: u8 = 1;
const FALSE: u8 = 2;
const INT: u8 = 3;
const FLOAT: u8 = 4;
const STR: u8 = 5;
const BYTES: u8 = 6;
const TUPLE: u8 = 7;
const LIST: u8 = 8;
const DICT: u8 = 9;

/// The longest string or bytes inside: beyond it copying costs more than pickling.
const LENGTH_MAX: usize = 255;
/// Objects that can occur twice, at most: beyond it looking for them costs more than pickling.
const SEEN_MAX: usize = 24;
/// Containers in containers, at most.
const DEPTH_MAX: usize = 4;
/// How many strings are kept of those that were decoded last: a power of two.
const KEPT: usize = 32;
/// The longest of them, in bytes: with its length it fits into a number.
const KEPT_MAX: usize = 15;
/// The golden ratio's bits: a number's product with it has the highest bits from all of the number's.
const SPREAD: u128 = 0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835;

/// The objects that a pickle would refer back to.
struct Seen {
    addresses: [usize; SEEN_MAX],
    count: usize,
}

impl Seen {
    /// Notes an object; false when it was there before, or there are too many.
    fn note(&mut self, object: &Bound<'_, PyAny>) -> bool {
        let address = object.as_ptr().addr();
        let is_new = !self.addresses[..self.count].contains(&address);
        match self.addresses.get_mut(self.count) {
            Some(place) if is_new => {
                *place = address;
                self.count += 1;
                true
            }
            _ => false,
        }
    }
}

/// Appends the value; false, with anything appended, when it is left to a pickle.
pub(crate) fn encode(object: &Bound<'_, PyAny>, to: &mut Vec<u8>) -> bool {
    let mut seen = Seen {
        addresses: [0; SEEN_MAX],
        count: 0,
    };
    write(object, to, &mut seen, DEPTH_MAX)
}

fn write(object: &Bound<'_, PyAny>, to: &mut Vec<u8>, seen: &mut Seen, depth: usize) -> bool {
    if let Ok(number) = object.cast_exact::<PyInt>() {
        let Ok(number) = number.extract::<i64>() else {
            return false;
        };
        to.push(INT);
        to.extend(number.to_le_bytes());
        true
    } else if let Ok(text) = object.cast_exact::<PyString>() {
        // A lone surrogate has no UTF-8.
        text.to_str()
            .is_ok_and(|text| write_bytes(STR, object, text.as_bytes(), to, seen))
    } else if let Ok(number) = object.cast_exact::<PyFloat>() {
        to.push(FLOAT);
        to.extend(number.value().to_le_bytes());
        true
    } else if let Ok(items) = object.cast_exact::<PyTuple>() {
        begin(TUPLE, object, items.len(), to, seen, depth)
            && items
                .iter_borrowed()
                .all(|item| write(&item, to, seen, depth - 1))
    } else if object.is_none() {
        to.push(NONE);
        true
    } else if let Ok(truth) = object.cast_exact::<PyBool>() {
        to.push(if truth.is_true() { TRUE } else { FALSE });
        true
    } else if let Ok(bytes) = object.cast_exact::<PyBytes>() {
        write_bytes(BYTES, object, bytes.as_bytes(), to, seen)
    } else if let Ok(items) = object.cast_exact::<PyList>() {
        begin(LIST, object, items.len(), to, seen, depth)
            && items.iter().all(|item| write(&item, to, seen, depth - 1))
    } else if let Ok(items) = object.cast_exact::<PyDict>() {
        begin(DICT, object, items.len(), to, seen, depth)
            && items.iter().all(|(key, value)| {
                write(&key, to, seen, depth - 1) && write(&value, to, seen, depth - 1)
            })
    } else {
        false
    }
}

fn write_bytes(
    kind: u8,
    object: &Bound<'_, PyAny>,
    bytes: &[u8],
    to: &mut Vec<u8>,
    seen: &mut Seen,
) -> bool {
    let Ok(length) = u8::try_from(bytes.len()) else {
        return false;
    };
    const { assert!(LENGTH_MAX == u8::MAX as usize) };
    // The interpreter has each string and each bytes object of at most one byte once.
    if length > 1 && !seen.note(object) {
        return false;
    }
    to.push(kind);
    to.push(length);
    to.extend_from_slice(bytes);
    true
}

fn begin(
    kind: u8,
    object: &Bound<'_, PyAny>,
    length: usize,
    to: &mut Vec<u8>,
    seen: &mut Seen,
    depth: usize,
) -> bool {
    let Ok(length) = u8::try_from(length) else {
        return false;
    };
    // There is one empty tuple.
    let is_single = kind == TUPLE && length == 0;
    if depth == 0 || (!is_single && !seen.note(object)) {
        return false;
    }
    to.push(kind);
    to.push(length);
    true
}

/// The value that the bytes are.
pub(crate) fn decode<'py>(py: Python<'py>, bytes: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    let mut reader = Reader {
        left: bytes,
        length: bytes.len(),
    };
    match reader.read(py, DEPTH_MAX) {
        Ok(value) if reader.left.is_empty() => Ok(value),
        Ok(_) => Err(*reader.malformed()),
        Err(error) => Err(*error),
    }
}

/// What was read: with its error in a box it is returned in registers.
type Read<T> = Result<T, Box<PyErr>>;

/// Another process may have written anything: every length is checked, and so is how deep it goes.
struct Reader<'a> {
    left: &'a [u8],
    length: usize,
}

impl<'a> Reader<'a> {
    #[cold]
    fn malformed(&self) -> Box<PyErr> {
        malformed(self.length - self.left.len()).into()
    }

    /// So many bytes as a type says.
    #[inline]
    fn array<const N: usize>(&mut self) -> Read<[u8; N]> {
        let Some((taken, left)) = self.left.split_first_chunk() else {
            return Err(self.malformed());
        };
        self.left = left;
        Ok(*taken)
    }

    /// Bytes behind their length.
    #[inline]
    fn bytes(&mut self) -> Read<&'a [u8]> {
        let [length] = self.array()?;
        let Some((taken, left)) = self.left.split_at_checked(length.into()) else {
            return Err(self.malformed());
        };
        self.left = left;
        Ok(taken)
    }

    #[inline]
    fn read<'py>(&mut self, py: Python<'py>, depth: usize) -> Read<Bound<'py, PyAny>> {
        let [kind] = self.array()?;
        Ok(match kind {
            NONE => py.None().into_bound(py),
            TRUE => PyBool::new(py, true).to_owned().into_any(),
            FALSE => PyBool::new(py, false).to_owned().into_any(),
            INT => PyInt::new(py, i64::from_le_bytes(self.array()?)).into_any(),
            FLOAT => PyFloat::new(py, f64::from_le_bytes(self.array()?)).into_any(),
            STR => text(py, self.bytes()?)?.into_any(),
            BYTES => PyBytes::new(py, self.bytes()?).into_any(),
            TUPLE | LIST | DICT if depth > 0 => self.read_container(py, kind, depth - 1)?,
            _ => return Err(self.malformed()),
        })
    }

    fn read_container<'py>(
        &mut self,
        py: Python<'py>,
        kind: u8,
        depth: usize,
    ) -> Read<Bound<'py, PyAny>> {
        let [count] = self.array()?;
        let items = (0..count).map(|_| Item(self.read(py, depth)));
        Ok(match kind {
            TUPLE => PyTuple::new(py, items)?.into_any(),
            LIST => PyList::new(py, items)?.into_any(),
            _ => {
                let pairs = PyDict::new(py);
                for _ in 0..count {
                    let key = self.read(py, depth)?;
                    pairs.set_item(key, self.read(py, depth)?)?;
                }
                pairs.into_any()
            }
        })
    }
}

/// A value that was read for a container, unless it couldn't be.
struct Item<'py>(Read<Bound<'py, PyAny>>);

impl<'py> IntoPyObject<'py> for Item<'py> {
    type Target = PyAny;
    type Output = Bound<'py, PyAny>;
    type Error = PyErr;

    #[inline]
    fn into_pyobject(self, _: Python<'py>) -> PyResult<Self::Output> {
        self.0.map_err(|error| *error)
    }
}

/// A string that was decoded, and its bytes below their length, as a number.
type Kept = Option<(u128, Py<PyString>)>;

thread_local! {
    static LAST: RefCell<[Kept; KEPT]> = const { RefCell::new([const { None }; KEPT]) };
}

/// The string of that UTF-8: the same object as before if it is short and came to this thread not long ago.
///
/// Most short strings are keys, or say what a message is, and come again and again: to find one takes half as long as to
/// make it, and to drop it nothing.
#[inline]
fn text<'py>(py: Python<'py>, bytes: &[u8]) -> PyResult<Bound<'py, PyString>> {
    if bytes.len() > KEPT_MAX {
        return PyString::from_bytes(py, bytes);
    }
    let key = number(bytes) | (bytes.len() as u128) << (8 * KEPT_MAX);
    let place = key.wrapping_mul(SPREAD) >> (u128::BITS - KEPT.ilog2());
    let place = usize::try_from(place).unwrap_or(0);
    let found = LAST.with_borrow(|last| match &last[place] {
        Some((kept, text)) if *kept == key => Some(text.bind(py).clone()),
        _ => None,
    });
    if let Some(text) = found {
        return Ok(text);
    }
    let text = PyString::from_bytes(py, bytes)?;
    LAST.with_borrow_mut(|last| last[place] = Some((key, text.clone().unbind())));
    Ok(text)
}

/// At most 16 bytes as a number, little-endian: two words of them, which overlap, are quicker than byte by byte.
#[inline]
fn number(bytes: &[u8]) -> u128 {
    let shift = |word: usize| 8 * (bytes.len() - word);
    if let (Some(first), Some(last)) = (bytes.first_chunk(), bytes.last_chunk()) {
        let (first, last) = (u64::from_le_bytes(*first), u64::from_le_bytes(*last));
        u128::from(first) | u128::from(last) << shift(8)
    } else if let (Some(first), Some(last)) = (bytes.first_chunk(), bytes.last_chunk()) {
        let (first, last) = (u32::from_le_bytes(*first), u32::from_le_bytes(*last));
        u128::from(u64::from(first) | u64::from(last) << shift(4))
    } else {
        (bytes.iter().rev()).fold(0, |number, byte| number << 8 | u128::from(*byte))
    }
}
