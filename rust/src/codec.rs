//! Values as bytes, and back: postcard's format. The only file that names it.

use crate::error::{Error, ErrorKind};
use postcard::ser_flavors::Flavor;
use procession_core::Error as CoreError;
use serde::de::DeserializeOwned;
use serde::{Serialize, de, ser};
use std::cell::Cell;

/// A buffer that grew beyond this for one message isn't kept for the next. Fresh memory for a message of 1 MiB takes longer than all
/// that is done with it.
const KEPT_BYTES: usize = 4 << 20;

thread_local! {
    /// What values are encoded into and decoded from: taken while in use, since encoding may run code of the user's.
    static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
    /// Why this thread's last value couldn't be encoded or decoded: postcard's errors have no room for it.
    static REASON: Cell<Option<CoreError>> = const { Cell::new(None) };
}

/// Calls `work` with an empty buffer of this thread's.
#[inline]
pub(crate) fn with_buffer<R>(work: impl FnOnce(&mut Vec<u8>) -> R) -> R {
    let mut buffer = BUFFER.take();
    buffer.clear();
    let result = work(&mut buffer);
    if buffer.capacity() <= KEPT_BYTES {
        BUFFER.set(buffer);
    }
    result
}

/// Appends a value's bytes.
#[inline]
pub(crate) fn encode<T: Serialize + ?Sized>(value: &T, to: &mut Vec<u8>) -> Result<(), Error> {
    postcard::serialize_with_flavor(value, Append(to))
        .map_err(|error| failed("encode a value", &error))
}

/// The error of a value that can't be encoded for a reason of the core's, which the caller of [`encode`] will be told.
pub(crate) fn explained<E: ser::Error>(reason: CoreError) -> E {
    let error = E::custom(&reason);
    REASON.set(Some(reason));
    error
}

/// As [`explained`], of a value that can't be decoded.
pub(crate) fn misread<E: de::Error>(reason: CoreError) -> E {
    let error = E::custom(&reason);
    REASON.set(Some(reason));
    error
}

#[cold]
fn failed(doing: &str, error: &postcard::Error) -> Error {
    match REASON.take() {
        Some(reason) => Error::at(doing, reason),
        None => Error::new(ErrorKind::Encoding, format!("{doing}: {error}")),
    }
}

/// Reads a value from the start of `from`, which is left at what follows.
#[inline]
pub(crate) fn decode<T: DeserializeOwned>(from: &mut &[u8]) -> Result<T, Error> {
    match postcard::take_from_bytes(from) {
        Ok((value, rest)) => {
            *from = rest;
            Ok(value)
        }
        Err(error) => {
            let doing = format!("decode a value of type {}", std::any::type_name::<T>());
            Err(failed(&doing, &error))
        }
    }
}

/// Reads a value that `from` must hold and nothing else.
#[inline]
pub(crate) fn decode_all<T: DeserializeOwned>(mut from: &[u8]) -> Result<T, Error> {
    let value = decode(&mut from)?;
    if from.is_empty() {
        return Ok(value);
    }
    let what = std::any::type_name::<T>();
    let text = format!(
        "decode a value of type {what}: {} bytes are left over",
        from.len()
    );
    Err(Error::new(ErrorKind::Encoding, text))
}

struct Append<'a>(&'a mut Vec<u8>);

impl Flavor for Append<'_> {
    type Output = ();

    #[inline]
    fn try_extend(&mut self, data: &[u8]) -> postcard::Result<()> {
        self.0.extend_from_slice(data);
        Ok(())
    }

    #[inline]
    fn try_push(&mut self, data: u8) -> postcard::Result<()> {
        self.0.push(data);
        Ok(())
    }

    fn finalize(self) -> postcard::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_back() {
        let value = ("text".to_owned(), vec![1u64, 1 << 40], Some(-3i8));
        let mut bytes = Vec::new();
        encode(&value, &mut bytes).unwrap();
        encode(&7u8, &mut bytes).unwrap();
        let mut rest = &bytes[..];
        assert_eq!(
            decode::<(String, Vec<u64>, Option<i8>)>(&mut rest).unwrap(),
            value
        );
        assert_eq!(decode_all::<u8>(rest).unwrap(), 7);
    }

    #[test]
    fn what_doesnt_fit_the_type_is_an_error() {
        for bytes in [&[][..], &[5, b'a'][..], &[1, 0xff][..], &[1, b'a', 0][..]] {
            let error = decode_all::<String>(bytes).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Encoding, "{bytes:?}");
            assert!(error.to_string().contains("String"), "{error}");
        }
    }

    #[test]
    fn a_buffer_in_use_is_not_used_twice() {
        with_buffer(|outer| {
            outer.push(1);
            with_buffer(|inner| assert!(inner.is_empty()));
            assert_eq!(*outer, [1]);
        });
    }
}
