//! The compiled half of the Python package: translation only.
//!
//! Each file has the name of the core's module that it translates. Python's meaning (signatures that users see,
//! pickles, subclassing, messages) is decided in `python/procession`; here is what must be fast, and what only
//! compiled code can do: let go of the interpreter, wait, and run signal handlers.

mod blocking;
mod connection;
mod entry;
mod error;
mod extent;
mod handoff;
mod memory;
mod parcel;
mod pickle;
mod plain;
mod pool;
mod queue;
mod server;
mod shared;
mod sync;
mod tree;
mod value;

use pyo3::prelude::*;

#[pymodule]
fn _core(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<sync::Lock>()?;
    module.add_class::<sync::RLock>()?;
    module.add_class::<sync::Semaphore>()?;
    module.add_class::<sync::BoundedSemaphore>()?;
    module.add_class::<sync::Waiters>()?;
    module.add_class::<sync::Event>()?;
    module.add_class::<sync::Barrier>()?;
    entry::install::<sync::Lock>(module.py())?;
    entry::install::<sync::RLock>(module.py())?;
    entry::install::<sync::Semaphore>(module.py())?;
    module.add_class::<queue::Queue>()?;
    module.add_class::<queue::JoinableQueue>()?;
    module.add_class::<queue::SimpleQueue>()?;
    module.add_class::<queue::QueueReader>()?;
    module.add_class::<queue::QueueWriter>()?;
    module.add_class::<pool::Pool>()?;
    module.add_class::<pool::ApplyResult>()?;
    module.add_class::<pool::MapResult>()?;
    module.add_class::<pool::IMapIterator>()?;
    module.add_class::<pool::IMapUnorderedIterator>()?;
    module.add_class::<pool::PoolHandle>()?;
    module.add_class::<pool::Feeder>()?;
    module.add_class::<pool::WorkerSeat>()?;
    module.add_class::<memory::Memory>()?;
    module.add_class::<handoff::DupFd>()?;
    module.add_class::<connection::Connection>()?;
    module.add_class::<connection::Listener>()?;
    module.add_function(wrap_pyfunction!(connection::connect, module)?)?;
    module.add_function(wrap_pyfunction!(connection::pipe::pipe, module)?)?;
    module.add_function(wrap_pyfunction!(connection::pipe::open_end, module)?)?;
    module.add_function(wrap_pyfunction!(connection::forget_turns, module)?)?;
    module.add_function(wrap_pyfunction!(connection::create_response, module)?)?;
    module.add_function(wrap_pyfunction!(connection::verify_response, module)?)?;
    shared::install(module)?;
    module.add_class::<tree::ChildSlot>()?;
    module.add_class::<server::ForkServer>()?;
    module.add_class::<server::Started>()?;
    module.add_function(wrap_pyfunction!(server::fork_server, module)?)?;
    module.add_function(wrap_pyfunction!(server::serve, module)?)?;
    module.add_function(wrap_pyfunction!(server::die_with, module)?)?;
    module.add_function(wrap_pyfunction!(sync::open_primitive, module)?)?;
    module.add_function(wrap_pyfunction!(memory::open_memory, module)?)?;
    module.add_function(wrap_pyfunction!(handoff::open_descriptor, module)?)?;
    module.add_function(wrap_pyfunction!(handoff::stop_sharing, module)?)?;
    module.add_function(wrap_pyfunction!(parcel::open_parcel, module)?)?;
    module.add_function(wrap_pyfunction!(parcel::send_pickled, module)?)?;
    module.add_function(wrap_pyfunction!(shared::open_shared, module)?)?;
    module.add_function(wrap_pyfunction!(shared::store, module)?)?;
    module.add_function(wrap_pyfunction!(pool::open_seat, module)?)?;
    module.add_function(wrap_pyfunction!(pool::forget_pools, module)?)?;
    module.add_function(wrap_pyfunction!(tree::child_slot, module)?)?;
    module.add_function(wrap_pyfunction!(tree::arena_descriptor, module)?)?;
    module.add_function(wrap_pyfunction!(tree::attach, module)?)?;
    module.add_function(wrap_pyfunction!(server::started, module)?)?;
    module.add_function(wrap_pyfunction!(tree::own_pidfd, module)?)?;
    module.add_function(wrap_pyfunction!(tree::is_null_device, module)?)?;
    module.add_function(wrap_pyfunction!(tree::leave, module)?)?;
    module.add_function(wrap_pyfunction!(tree::reap, module)?)?;
    module.add_function(wrap_pyfunction!(tree::census, module)?)?;
    module.add_function(wrap_pyfunction!(tree::die_with_parent, module)?)?;
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    Ok(())
}
