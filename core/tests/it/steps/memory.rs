//! The bytes of an arena, to be compared with what they were.

use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// All bytes of an arena's file that have memory, as they were when last looked at.
#[derive(Debug)]
pub(crate) struct Memory {
    file: OwnedFd,
    /// The mapping of the whole file, and how much of it that is.
    map: (*const u8, usize),
    /// Where there are bytes, and which.
    extents: Vec<(usize, Vec<u8>)>,
}

impl Memory {
    pub(crate) fn new(file: impl AsFd) -> Self {
        Self {
            file: file.as_fd().try_clone_to_owned().unwrap(),
            map: (std::ptr::null(), 0),
            extents: Vec::new(),
        }
    }

    /// Looks at the file: whether anything changed since the last look.
    pub(crate) fn has_changed(&mut self) -> bool {
        let ranges = self.ranges();
        self.map_up_to(ranges.last().map_or(0, |range| range.end));
        let mut changed = ranges.len() != self.extents.len();
        self.extents.resize(ranges.len(), (0, Vec::new()));
        for (range, (start, bytes)) in ranges.iter().zip(&mut self.extents) {
            let now = self.map.0.wrapping_add(range.start);
            // SAFETY: within the mapping; not used beyond this turn, and nobody stores meanwhile.
            let now = unsafe { std::slice::from_raw_parts(now, range.len()) };
            if *start != range.start || bytes != now {
                *start = range.start;
                bytes.clear();
                bytes.extend_from_slice(now);
                changed = true;
            }
        }
        changed
    }

    /// Where the file has bytes.
    fn ranges(&self) -> Vec<Range<usize>> {
        let mut ranges: Vec<Range<usize>> = Vec::new();
        let at = |ranges: &[Range<usize>]| ranges.last().map_or(0, |range| range.end);
        while let Some(start) = self.seek(at(&ranges), libc::SEEK_DATA) {
            let end = self.seek(start, libc::SEEK_HOLE).expect("an end");
            ranges.push(start..end);
        }
        ranges
    }

    /// The bytes at the last look that aren't the same in `other`, by their offset.
    pub(crate) fn differences(&self, other: &Self) -> Vec<usize> {
        let byte = |memory: &Self, at: usize| {
            let mut extents = memory.extents.iter();
            let found = extents.find_map(|(start, bytes)| bytes.get(at.checked_sub(*start)?));
            found.copied().unwrap_or(0)
        };
        let places = [self, other].into_iter().flat_map(|memory| &memory.extents);
        let places = places.flat_map(|(start, bytes)| *start..start + bytes.len());
        let places: std::collections::BTreeSet<_> = places.collect();
        let differ = |at: &usize| byte(self, *at) != byte(other, *at);
        places.into_iter().filter(differ).collect()
    }

    fn seek(&self, from: usize, whence: i32) -> Option<usize> {
        let from = libc::off_t::try_from(from).unwrap();
        // SAFETY: moves a position that nobody reads from.
        let found = unsafe { libc::lseek(self.file.as_raw_fd(), from, whence) };
        usize::try_from(found).ok()
    }

    fn map_up_to(&mut self, end: usize) {
        if end <= self.map.1 {
            return;
        }
        self.unmap();
        let (read, shared) = (libc::PROT_READ, libc::MAP_SHARED);
        let file = self.file.as_raw_fd();
        // SAFETY: a new mapping, to be read only.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), end, read, shared, file, 0) };
        assert_ne!(base, libc::MAP_FAILED, "mmap");
        self.map = (base.cast(), end);
    }

    fn unmap(&mut self) {
        if self.map.1 > 0 {
            // SAFETY: the mapping that was made above; no slice of it is left.
            unsafe { libc::munmap(self.map.0.cast_mut().cast(), self.map.1) };
            self.map = (std::ptr::null(), 0);
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.unmap();
    }
}
