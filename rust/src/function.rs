//! Functions that run in another process: how they are named, called and answered.
//!
//! ```text
//! a call
//!   0   8   image of the function's name, little-endian, as all numbers
//!   8   8   offset of its name
//!  16       how many items, postcard; then the items, one behind the other
//! an answer, with the tag of its end
//!   0       Returned: as many values. Panicked, Failed: why, UTF-8
//! ```

use crate::codec;
use crate::descriptor::returning;
use crate::error::{Error, ErrorKind, JoinError, RemoteError, Result};
use crate::names;
use crate::pool::Apply;
use procession_core::{Body, Carried, Function, FunctionName};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::any::Any;
use std::cell::RefCell;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// How a call ended: the tag of its answer.
pub(crate) mod end {
    pub(crate) const RETURNED: u8 = 0;
    pub(crate) const PANICKED: u8 = 1;
    pub(crate) const FAILED: u8 = 2;
}

/// Bytes of a function's name.
const NAME_BYTES: usize = 16;

/// How a function takes an item: whole.
pub(crate) struct Whole;
/// How a function takes an item: a tuple, as so many arguments.
pub(crate) struct Spread;

thread_local! {
    /// The objects that the values of the running call name.
    static NAMED: RefCell<Carried> = const { RefCell::new(Carried::new()) };
}

/// Calls a function with an item.
pub(crate) trait Invoke<F, A, R> {
    fn invoke(function: F, item: A) -> R;
}

impl<F: Fn(A) -> R, A, R> Invoke<F, A, R> for Whole {
    fn invoke(function: F, item: A) -> R {
        function(item)
    }
}

impl<F, A: Apply<F, R>, R> Invoke<F, A, R> for Spread {
    fn invoke(function: F, item: A) -> R {
        item.apply(function)
    }
}

/// Runs a function on each item of a call.
struct Each<H, A, R>(PhantomData<fn(H, A) -> R>);

impl<F, H, A, R> Body<F> for Each<H, A, R>
where
    F: Copy + 'static,
    H: Invoke<F, A, R> + 'static,
    A: DeserializeOwned + 'static,
    R: Serialize + 'static,
{
    fn run(function: F, input: &[u8], output: &mut Vec<u8>) -> u8 {
        let each = || run_each(input, output, |item| H::invoke(function, item));
        // What a panic leaves half done is this process' own, and the function's affair.
        let text = match catch_unwind(AssertUnwindSafe(each)) {
            Ok(Ok(())) => return end::RETURNED,
            Ok(Err(error)) => (end::FAILED, error.to_string()),
            Err(payload) => (end::PANICKED, message(&*payload)),
        };
        output.clear();
        output.extend_from_slice(text.1.as_bytes());
        text.0
    }
}

fn run_each<A: DeserializeOwned, R: Serialize>(
    mut input: &[u8],
    output: &mut Vec<u8>,
    call: impl Fn(A) -> R,
) -> Result<()> {
    let count: u64 = codec::decode(&mut input)?;
    codec::encode(&count, output)?;
    for _ in 0..count {
        let item = codec::decode(&mut input)?;
        let value = call(item);
        let names = names::naming(|| returning(|| codec::encode(&value, output)))?;
        if !names.is_empty() {
            NAMED
                .with_borrow_mut(|named| named.append(names))
                .map_err(|error| Error::at("encode a value", error))?;
        }
    }
    Ok(())
}

fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("with something that is not a text")
        .to_owned()
}

/// The name of a function, as calls begin with it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Named([u8; NAME_BYTES]);

impl Named {
    pub(crate) fn of<H, F, A, R>(function: F) -> Result<Self>
    where
        F: Copy + 'static,
        H: Invoke<F, A, R> + 'static,
        A: DeserializeOwned + 'static,
        R: Serialize + 'static,
    {
        let name = FunctionName::of::<F, Each<H, A, R>>(function)
            .map_err(|error| Error::at("name a function", error))?;
        let mut bytes = [0; NAME_BYTES];
        bytes[..8].copy_from_slice(&name.image.to_le_bytes());
        bytes[8..].copy_from_slice(&name.offset.to_le_bytes());
        Ok(Self(bytes))
    }

    /// Appends a call of it with these items.
    pub(crate) fn call<A: Serialize>(self, items: &[A], to: &mut Vec<u8>) -> Result<()> {
        to.extend_from_slice(&self.0);
        codec::encode(&(items.len() as u64), to)?;
        items.iter().try_for_each(|item| codec::encode(item, to))
    }

    /// As [`call`](Self::call) with one item.
    pub(crate) fn call_one<A: Serialize + ?Sized>(self, item: &A, to: &mut Vec<u8>) -> Result<()> {
        to.extend_from_slice(&self.0);
        codec::encode(&1u64, to)?;
        codec::encode(item, to)
    }
}

/// Runs calls, and remembers the last function.
#[derive(Debug, Default)]
pub(crate) struct Runner {
    last: Option<([u8; NAME_BYTES], Function)>,
}

impl Runner {
    /// Runs a call: appends the answer to `output`, and gives its tag and the objects that it names.
    pub(crate) fn run(&mut self, call: &[u8], output: &mut Vec<u8>) -> (u8, Carried) {
        match self.function(call) {
            Ok((function, input)) => {
                let tag = function.call(input, output);
                let named = NAMED.take();
                let returned = tag == end::RETURNED;
                // Values before a panic go nowhere.
                (tag, if returned { named } else { Carried::new() })
            }
            Err(error) => {
                output.extend_from_slice(error.to_string().as_bytes());
                (end::FAILED, Carried::new())
            }
        }
    }

    fn function<'a>(&mut self, call: &'a [u8]) -> Result<(Function, &'a [u8])> {
        let Some((name, input)) = call.split_first_chunk::<NAME_BYTES>() else {
            return Err(Error::new(
                ErrorKind::Malformed,
                "read a call: it is too short",
            ));
        };
        if let Some((last, function)) = self.last
            && last == *name
        {
            return Ok((function, input));
        }
        let (image, offset) = name.split_at(8);
        let number = |bytes: &[u8]| {
            bytes
                .iter()
                .rev()
                .fold(0, |sum, byte| sum << 8 | u64::from(*byte))
        };
        let function = FunctionName {
            image: number(image),
            offset: number(offset),
        };
        let function = function
            .find()
            .map_err(|error| Error::at("find a function", error))?;
        self.last = Some((*name, function));
        Ok((function, input))
    }
}

/// Reads an answer: its values, or why there are none.
pub(crate) fn answer<R: DeserializeOwned>(tag: u8, mut bytes: &[u8]) -> Result<Vec<R>, JoinError> {
    if tag != end::RETURNED {
        return Err(failure(tag, bytes));
    }
    let count: u64 = codec::decode(&mut bytes)?;
    // A wrong count ends at the first value that isn't there; room is made as they come.
    (0..count).map(|_| Ok(codec::decode(&mut bytes)?)).collect()
}

/// Reads an answer that says why there are no values.
pub(crate) fn failure(tag: u8, bytes: &[u8]) -> JoinError {
    let text = String::from_utf8_lossy(bytes).into_owned();
    match tag {
        end::PANICKED => JoinError::Panicked(RemoteError { message: text }),
        _ => JoinError::Failed(Error::new(
            ErrorKind::Encoding,
            format!("in another process: {text}"),
        )),
    }
}

/// Reads the one value of an answer.
pub(crate) fn value<R: DeserializeOwned>(tag: u8, mut bytes: &[u8]) -> Result<R, JoinError> {
    if tag != end::RETURNED {
        return Err(failure(tag, bytes));
    }
    let _one: u64 = codec::decode(&mut bytes)?;
    Ok(codec::decode_all(bytes)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run<R: DeserializeOwned>(call: &[u8]) -> Result<Vec<R>, JoinError> {
        let mut output = vec![];
        let (tag, _names) = Runner::default().run(call, &mut output);
        answer(tag, &output)
    }

    #[test]
    fn calls_are_run_and_answered() {
        let double = |number: u32| number * 2;
        let mut call = Vec::new();
        Named::of::<Whole, _, _, _>(double)
            .unwrap()
            .call(&[1u32, 300], &mut call)
            .unwrap();
        assert_eq!(run::<u32>(&call).unwrap(), [2, 600]);
        call.truncate(call.len() - 1);
        assert!(matches!(run::<u32>(&call), Err(JoinError::Failed(_))));
        let text = |text: String, times: usize| text.repeat(times);
        let mut call = Vec::new();
        Named::of::<Spread, _, (String, usize), _>(text)
            .unwrap()
            .call_one(&("ab", 2usize), &mut call)
            .unwrap();
        assert_eq!(run::<String>(&call).unwrap(), ["abab"]);
    }

    #[test]
    fn a_panic_is_an_answer() {
        fn fails((): ()) {
            panic!("number {}", 5);
        }
        let mut call = Vec::new();
        Named::of::<Whole, _, _, _>(fails)
            .unwrap()
            .call_one(&(), &mut call)
            .unwrap();
        let Err(JoinError::Panicked(panic)) = run::<()>(&call) else {
            panic!("no panic")
        };
        assert_eq!(panic.message(), "number 5");
    }

    #[test]
    fn a_call_of_nothing_is_refused() {
        for call in [&[][..], &[0; 15], &[0; 16], &[0xff; 40]] {
            assert!(
                matches!(run::<()>(call), Err(JoinError::Failed(_))),
                "{call:?}"
            );
        }
    }
}
