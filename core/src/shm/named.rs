//! Memory that has a name in the system, outside any arena: what unrelated programs meet in.

use super::bytes::Bytes;
use super::view::Span;
use crate::sys::mapping::Mapping;
use crate::sys::{identity, named};
use crate::{Error, Result};

/// Memory with a name, mapped whole: POSIX shared memory.
///
/// # Across processes
/// Any process of this user finds it by its name, whatever tree it belongs to, until somebody takes the name away; the
/// memory goes with the last who has it mapped. Nobody's death takes the name away. One who has it may also
/// cut the file short, which ends others with SIGBUS where they touch what is gone.
///
/// # After fork
/// The child has it mapped, too.
///
/// Python: `shared_memory.SharedMemory`. Source: shm_open(3).
#[derive(Debug, Clone)]
pub struct NamedMemory {
    name: String,
    bytes: Bytes,
}

impl NamedMemory {
    /// Makes one of `length` bytes, all zero, with that name, or with one that nobody has.
    ///
    /// # Errors
    /// `Misuse` for a length of 0 or a name with a zero in it; `Os` with EEXIST when the name is taken, with ENOSPC or
    /// ENOMEM when there is no memory.
    pub fn create(name: Option<&str>, length: usize) -> Result<Self> {
        const EEXIST: i32 = 17;
        if length == 0 {
            return Err(Error::Misuse {
                what: "named memory needs a byte at least",
            });
        }
        loop {
            let chosen = name.map_or_else(fresh_name, ToOwned::to_owned);
            let file = match named::create(&path(&chosen), length as u64) {
                Err(Error::Os { errno: EEXIST, .. }) if name.is_none() => continue,
                file => file?,
            };
            let mapping = Mapping::new(&file, 0, length).inspect_err(|_| {
                // What was made for nothing.
                let _ = named::unlink(&path(&chosen));
            })?;
            return Ok(Self::of(chosen, mapping));
        }
    }

    /// Attaches to the one of that name.
    ///
    /// # Errors
    /// `Os` with ENOENT when there is none; `Misuse` when its maker has not given it memory yet.
    pub fn open(name: &str) -> Result<Self> {
        let (file, length) = named::attach(&path(name))?;
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length == 0 {
            return Err(Error::Misuse {
                what: "the named memory has no bytes yet",
            });
        }
        Ok(Self::of(name.to_owned(), Mapping::new(&file, 0, length)?))
    }

    fn of(name: String, mapping: Mapping) -> Self {
        let bytes = Bytes::new(Span::of(mapping));
        Self { name, bytes }
    }

    /// Takes the name away, once for all processes.
    ///
    /// # Errors
    /// `Os` with ENOENT when that was done before.
    pub fn unlink(&self) -> Result<()> {
        named::unlink(&path(&self.name))
    }

    /// Its name, for another process to attach by.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }
}

/// The name as the system wants it.
fn path(name: &str) -> String {
    format!("/{name}")
}

/// A name as Python makes them.
fn fresh_name() -> String {
    let [random, _] = identity::random();
    format!("psm_{:08x}", random >> 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_found_by_its_name_until_that_is_taken_away() {
        let segment = NamedMemory::create(None, 5_000).unwrap();
        segment.bytes().write(4_990, b"tenth byte").unwrap();
        let other = NamedMemory::open(segment.name()).unwrap();
        assert!(NamedMemory::create(Some(segment.name()), 1).is_err());
        segment.unlink().unwrap();
        assert!(segment.unlink().is_err() && NamedMemory::open(segment.name()).is_err());
        drop(segment);
        let mut bytes = [0; 10];
        other.bytes().read(4_990, &mut bytes).unwrap();
        assert_eq!((&bytes, other.bytes().len()), (b"tenth byte", 5_000));
    }

    #[test]
    fn what_cannot_be_made_leaves_no_name() {
        let name = fresh_name();
        assert!(NamedMemory::create(Some(&name), 0).is_err());
        assert!(NamedMemory::create(Some(&name), 1 << 60).is_err());
        assert!(NamedMemory::open(&name).is_err());
        assert!(matches!(
            NamedMemory::open("a\0b"),
            Err(Error::Misuse { .. })
        ));
    }
}
