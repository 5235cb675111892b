//! Connections as arguments of processes: their descriptors go to the child at its start, and the argument has their places.

pub(crate) use super::transport::Terms;
use super::transport::Transport;
use crate::codec;
use crate::error::Result;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::cell::RefCell;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};

const ARGUMENTS_ONLY: &str =
    "a connection can be given to a process as its argument, and sent no other way";

thread_local! {
    /// While the argument of a process is encoded: the connections in it.
    static GIVEN: RefCell<Option<Vec<Arc<Transport>>>> = const { RefCell::new(None) };
    /// While the argument of this process is decoded: those that came.
    static CAME: RefCell<Vec<Came>> = const { RefCell::new(Vec::new()) };
}

/// A connection that came: the same one, however often the argument has it.
#[derive(Debug)]
enum Came {
    Fresh(OwnedFd, Terms),
    Taken(Weak<Transport>),
}

/// The connections of an argument.
#[derive(Debug, Default)]
pub(crate) struct Given(Vec<Arc<Transport>>);

/// Encodes the argument of a process, and gives the connections that are in it.
pub(crate) fn giving(encode: impl FnOnce() -> Result<()>) -> Result<Given> {
    /// Closes the list, whatever becomes of the encoding.
    struct Open(Option<Vec<Arc<Transport>>>);
    impl Drop for Open {
        fn drop(&mut self) {
            GIVEN.set(self.0.take());
        }
    }
    let _open = Open(GIVEN.replace(Some(Vec::new())));
    encode()?;
    Ok(Given(GIVEN.take().unwrap_or_default()))
}

impl Given {
    /// What the child is to know of each.
    pub(crate) fn terms(&self) -> Vec<Terms> {
        self.0.iter().map(|transport| transport.terms()).collect()
    }

    /// A descriptor of each, for the child.
    pub(crate) fn descriptors(&self) -> Result<Vec<OwnedFd>> {
        self.0.iter().map(|transport| transport.copy()).collect()
    }
}

/// Decodes, and whatever comes after that, with the connections that came with this process' argument.
pub(crate) fn having<R>(
    descriptors: Vec<OwnedFd>,
    terms: Vec<Terms>,
    work: impl FnOnce() -> R,
) -> R {
    let fresh = |(descriptor, terms)| Came::Fresh(descriptor, terms);
    CAME.set(descriptors.into_iter().zip(terms).map(fresh).collect());
    let result = work();
    CAME.take();
    result
}

pub(super) fn serialize<S: Serializer>(
    transport: &Arc<Transport>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let place = GIVEN.with_borrow_mut(|given| {
        let given = given.as_mut()?;
        let known = given.iter().position(|other| Arc::ptr_eq(other, transport));
        Some(known.unwrap_or_else(|| {
            given.push(transport.clone());
            given.len() - 1
        }))
    });
    let place = place.ok_or_else(|| codec::refuse(ARGUMENTS_ONLY))?;
    (place as u64).serialize(serializer)
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Arc<Transport>, D::Error> {
    let place = u64::deserialize(deserializer)?;
    let taken = CAME.with_borrow_mut(|came| {
        let came = came.get_mut(usize::try_from(place).ok()?)?;
        if let Came::Taken(taken) = came {
            return taken.upgrade();
        }
        let Came::Fresh(descriptor, terms) = std::mem::replace(came, Came::Taken(Weak::new()))
        else {
            return None;
        };
        let transport = Arc::new(Transport::new(descriptor, terms));
        *came = Came::Taken(Arc::downgrade(&transport));
        Some(transport)
    });
    taken.ok_or_else(|| de::Error::custom("no connection came with it"))
}
