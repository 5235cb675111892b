//! Connections in values. In an argument of a process each is a place in a list of descriptors, which the child has from its
//! start; in any other message it is a [`Descriptor`], which its sender keeps until it is fetched.

pub(crate) use super::transport::Kind;
use super::transport::Transport;
use crate::codec;
use crate::descriptor::Descriptor;
use crate::error::{Error, Result};
use procession_core::{Error as Core, Naming};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::cell::RefCell;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};

/// A connection in a value.
#[derive(Serialize, Deserialize)]
enum Sent {
    /// The child has it, in this place.
    Given(u64),
    /// It is to be fetched.
    Kept(Kind, Descriptor),
}

thread_local! {
    /// While the argument of a process is encoded: the connections in it.
    static GIVEN: RefCell<Option<Vec<Gift>>> = const { RefCell::new(None) };
    /// While the argument of this process is decoded: those that came.
    static CAME: RefCell<Vec<Came>> = const { RefCell::new(Vec::new()) };
}

/// A connection that goes, and what the child is told of it.
type Gift = (Arc<Transport>, Kind);

/// A connection that came: the same one, however often the argument has it.
#[derive(Debug)]
enum Came {
    Fresh(OwnedFd, Kind),
    Taken(Weak<Transport>),
}

/// The connections of an argument.
#[derive(Debug, Default)]
pub(crate) struct Given(Vec<Gift>);

/// Encodes the argument of a process, within a message that holds what it names, and gives the connections that are in it.
pub(crate) fn giving(encode: impl FnOnce() -> Result<()>) -> Result<Given> {
    /// Closes the list, whatever becomes of the encoding.
    struct Open(Option<Vec<Gift>>);
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
    pub(crate) fn kinds(&self) -> Vec<Kind> {
        self.0.iter().map(|(_, kind)| *kind).collect()
    }

    /// A descriptor of each, for the child.
    pub(crate) fn descriptors(&self) -> Result<Vec<OwnedFd>> {
        let copies = self.0.iter().map(|(end, _)| end.copy());
        let copies = copies.collect::<Result<_, _>>();
        copies.map_err(|error| Error::at("give a connection to a process", error))
    }
}

/// Decodes, and whatever comes after that, with the connections that came with this process' argument.
pub(crate) fn having<R>(
    descriptors: Vec<OwnedFd>,
    kinds: Vec<Kind>,
    work: impl FnOnce() -> R,
) -> R {
    let fresh = |(descriptor, kind)| Came::Fresh(descriptor, kind);
    CAME.set(descriptors.into_iter().zip(kinds).map(fresh).collect());
    let result = work();
    CAME.take();
    result
}

pub(super) fn serialize<S: Serializer>(
    transport: &Arc<Transport>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let sent = send(transport).map_err(codec::explained)?;
    sent.serialize(serializer)
}

fn send(transport: &Arc<Transport>) -> procession_core::Result<Sent> {
    if !Naming::is_active() {
        return Err(Core::Misuse {
            what: "a connection goes only into messages, arguments and values of this crate",
        });
    }
    let known = GIVEN.with_borrow(|given| {
        let given = given.as_ref()?;
        Some(
            given
                .iter()
                .position(|(end, _)| Arc::ptr_eq(end, transport)),
        )
    });
    let place = match known {
        None => return Ok(Sent::Kept(transport.kind()?, transport.copy()?.into())),
        Some(Some(place)) => place,
        Some(None) => {
            let kind = transport.kind()?;
            GIVEN.with_borrow_mut(|given| {
                let given = given.get_or_insert_default();
                given.push((transport.clone(), kind));
                given.len() - 1
            })
        }
    };
    Ok(Sent::Given(place as u64))
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Arc<Transport>, D::Error> {
    let received = match Sent::deserialize(deserializer)? {
        Sent::Given(place) => take(place),
        Sent::Kept(kind, descriptor) => Transport::open(descriptor.into(), kind).map(Arc::new),
    };
    received.map_err(codec::misread)
}

/// Takes a connection that came with this process' argument.
fn take(place: u64) -> procession_core::Result<Arc<Transport>> {
    const NONE: Core = Core::Malformed {
        what: "place of a connection",
        at: 0,
    };
    let place = usize::try_from(place).map_err(|_| NONE)?;
    let came = CAME.with_borrow_mut(|came| {
        let taken = Came::Taken(Weak::new());
        Some(std::mem::replace(came.get_mut(place)?, taken))
    });
    let transport = match came.ok_or(NONE)? {
        Came::Fresh(descriptor, kind) => Arc::new(Transport::open(descriptor, kind)?),
        Came::Taken(taken) => taken.upgrade().ok_or(NONE)?,
    };
    put_back(place, &transport);
    Ok(transport)
}

/// Notes that a connection was taken.
fn put_back(place: usize, transport: &Arc<Transport>) {
    CAME.with_borrow_mut(|came| {
        if let Some(came) = came.get_mut(place) {
            *came = Came::Taken(Arc::downgrade(transport));
        }
    });
}
