//! A long message as a file, for an unpickler: each byte is copied once, and looked at only after that.

use crate::error::raise;
use crate::{blocking, memory};
use procession_core::Extent;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What `readline` looks through at a time.
const LINE: usize = 4096;

/// Bytes of an extent from a place on, read in order by one reader.
#[pyclass(frozen)]
pub(crate) struct ExtentFile {
    extent: Extent,
    at: AtomicUsize,
}

impl ExtentFile {
    pub(crate) fn new(extent: Extent, at: usize) -> Self {
        Self {
            extent,
            at: AtomicUsize::new(at),
        }
    }

    fn left(&self) -> usize {
        let at = self.at.load(Ordering::Relaxed);
        self.extent.len().saturating_sub(at)
    }

    fn fill<'a>(&self, py: Python<'_>, to: &'a mut [MaybeUninit<u8>]) -> PyResult<&'a [u8]> {
        let filled = fill(py, &self.extent, self.at.load(Ordering::Relaxed), to)?;
        self.at.fetch_add(filled.len(), Ordering::Relaxed);
        Ok(filled)
    }
}

#[pymethods]
impl ExtentFile {
    fn read<'py>(&self, py: Python<'py>, size: usize) -> PyResult<Bound<'py, PyBytes>> {
        memory::bytes_with(py, size.min(self.left()), |to| self.fill(py, to))
    }

    fn readinto(&self, buffer: &Bound<'_, PyAny>) -> PyResult<usize> {
        memory::with_room(buffer, 0, |room| {
            let (at, length) = (self.at.load(Ordering::Relaxed), room.len());
            let copy = || self.extent.copy_from(at, room);
            let copied = blocking::copying(buffer.py(), length, copy).map_err(raise)?;
            self.at.fetch_add(copied, Ordering::Relaxed);
            Ok(copied)
        })
    }

    fn readline<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let (begin, mut line) = (self.at.load(Ordering::Relaxed), Vec::new());
        loop {
            let part = self.read(py, LINE)?;
            let part = part.as_bytes();
            let end = part.iter().position(|byte| *byte == b'\n');
            line.extend(&part[..end.map_or(part.len(), |end| end + 1)]);
            if end.is_some() || part.is_empty() {
                self.at.store(begin + line.len(), Ordering::Relaxed);
                return Ok(PyBytes::new(py, &line));
            }
        }
    }
}

/// Fills memory with the bytes of an extent from `at` on; without the interpreter if they are many.
pub(crate) fn fill<'a>(
    py: Python<'_>,
    extent: &Extent,
    at: usize,
    to: &'a mut [MaybeUninit<u8>],
) -> PyResult<&'a [u8]> {
    blocking::copying(py, to.len(), || extent.fill(at, to)).map_err(raise)
}
