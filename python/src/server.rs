//! The fork server: the way to it, its children, and the server itself.

use crate::blocking::{self, FOR_DATA};
use crate::error::raise;
use crate::tree::{self, ChildSlot};
use procession_core::process::{BODY_MAX, Others, Server as Core, Waiting, other_threads};
use procession_core::{Child, Deadline, Error, ExitStatus, copy_of};
use pyo3::exceptions::{PyEOFError, PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use std::io::{ErrorKind, PipeWriter, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const ECHILD: i32 = 10;
/// The exit code of a process whose status nobody knows.
const UNKNOWN: i32 = 255;

/// The bytes of a request before its payload: three flags.
const FLAGS: usize = 3;
/// A payload that goes with its request, and not by a pipe.
const SHORT_MAX: usize = BODY_MAX - FLAGS;

/// What may be closed while another thread uses it.
#[derive(Debug)]
struct Closable<T>(Mutex<Option<Arc<T>>>);

impl<T> Closable<T> {
    fn new(value: T) -> Self {
        Self(Mutex::new(Some(Arc::new(value))))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<T>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self) -> PyResult<Arc<T>> {
        let value = self.lock().clone();
        value.ok_or_else(|| PyValueError::new_err("it is closed"))
    }

    fn close(&self) {
        drop(self.lock().take());
    }
}

/// The way to a fork server.
#[pyclass(module = "procession._core", frozen)]
pub(crate) struct ForkServer(Closable<procession_core::ForkServer>);

/// The way to a fork server that is to be started, and the server's own end.
#[pyfunction]
pub(crate) fn fork_server() -> PyResult<(ForkServer, RawFd)> {
    let (server, end) = procession_core::ForkServer::new().map_err(raise)?;
    Ok((ForkServer(Closable::new(server)), end.into_raw_fd()))
}

#[pymethods]
impl ForkServer {
    /// Whether the server lives.
    fn is_alive(&self) -> bool {
        self.0.get().is_ok_and(|server| server.is_alive())
    }

    /// Closes this process' way; the server ends with the last one.
    fn close(&self) {
        self.0.close();
    }

    /// Starts a child that takes the place of `slot`, gets `flags`, `payload`, and copies of `descriptors`. A payload that is long,
    /// or none, it reads from the first of them; else it has it at once.
    #[pyo3(signature = (slot, flags, descriptors, payload = None))]
    fn start(
        &self,
        py: Python<'_>,
        slot: &ChildSlot,
        flags: (bool, bool),
        descriptors: Vec<RawFd>,
        payload: Option<&[u8]>,
    ) -> PyResult<Started> {
        let server = self.0.get()?;
        let slot = slot.get()?;
        let (short, long) = match payload {
            Some(payload) if payload.len() <= SHORT_MAX => (Some(payload), None),
            payload => (None, payload),
        };
        let body = [flags.0, flags.1, short.is_none()].map(u8::from);
        let body = &[&body, short.unwrap_or_default()].concat();
        let (reader, writer) = match long {
            Some(_) => std::io::pipe().map(|(reader, writer)| (Some(reader), Some(writer)))?,
            None => (None, None),
        };
        let copies = descriptors.into_iter().map(copy_of);
        let copies = copies.collect::<Result<Vec<_>, _>>().map_err(raise)?;
        let mut passed: Vec<BorrowedFd<'_>> = reader.iter().map(AsFd::as_fd).collect();
        passed.extend(copies.iter().map(AsFd::as_fd));
        let mut starting = blocking::wait_for(py, Deadline::NEVER, FOR_DATA, refused, |until| {
            server.start(&slot, body, &passed, until)
        })?
        .ok_or_else(gone)?;
        // The child reads what is written, and sees the end of it.
        drop(reader);
        let started = blocking::wait_for(py, Deadline::NEVER, FOR_DATA, refused, |until| {
            starting.wait(until)
        })?;
        let child = started.ok_or_else(gone)?;
        if let (Some(writer), Some(payload)) = (writer, long) {
            write_all(py, writer, payload)?;
        }
        Ok(Started(Closable::new(child)))
    }
}

fn gone() -> PyErr {
    PyEOFError::new_err("the fork server has ended")
}

/// What the server, or the way to it, says.
fn refused(error: Error) -> PyErr {
    let text = error.to_string();
    match error {
        Error::Closed { .. } => gone(),
        Error::Exhausted { .. } => PyValueError::new_err(text),
        // As `os.fork` has it, which raises no MemoryError.
        Error::Os { errno, .. } => PyOSError::new_err((errno, text)),
        error => raise(error),
    }
}

/// Writes it all; what a child that is dead already doesn't read is lost with it.
fn write_all(py: Python<'_>, mut pipe: PipeWriter, mut bytes: &[u8]) -> PyResult<()> {
    while !bytes.is_empty() {
        match py.detach(|| pipe.write(bytes)) {
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == ErrorKind::Interrupted => py.check_signals()?,
            Err(error) if error.kind() == ErrorKind::BrokenPipe => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// A child of this process' own, or the fork server's for it.
#[pyclass(module = "procession._core", frozen)]
pub(crate) struct Started(Closable<Child>);

#[pymethods]
impl Started {
    #[getter]
    fn pid(&self) -> PyResult<u32> {
        Ok(self.0.get()?.pid())
    }

    /// Its pidfd, for as long as this isn't closed.
    fn fileno(&self) -> PyResult<RawFd> {
        Ok(self.0.get()?.as_fd().as_raw_fd())
    }

    /// Waits for its end: the exit code, or minus the signal; None after the timeout. 255, as asyncio has it, if somebody
    /// else has waited for it, or SIGCHLD is ignored, and the kernel doesn't tell (Linux 6.15 does): nobody knows how it ended.
    #[pyo3(signature = (timeout = None))]
    fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Option<i32>> {
        let child = self.0.get()?;
        let deadline = blocking::deadline(true, timeout);
        let status = blocking::wait(py, deadline, FOR_DATA, |until| match child.wait(until) {
            Err(Error::Os { errno: ECHILD, .. }) => Ok(Some(ExitStatus::Code(UNKNOWN))),
            status => status,
        })?;
        Ok(status.map(ExitStatus::number))
    }

    /// Sends it a signal; nothing happens if it has ended.
    fn signal(&self, number: i32) -> PyResult<()> {
        self.0.get()?.signal(number).map_err(raise)
    }

    /// Closes the pidfd.
    fn close(&self) {
        self.0.close();
    }
}

/// The child of that id, which this process has just started.
#[pyfunction]
pub(crate) fn started(pid: u32) -> PyResult<Started> {
    Child::of(pid)
        .map(|child| Started(Closable::new(child)))
        .map_err(raise)
}

/// What a fork server's child has: the way to the server, its requester's pidfd, the flags of the request and whether the payload
/// comes by the first descriptor, the payload, and the descriptors.
type Inherited = (
    ForkServer,
    RawFd,
    (bool, bool, bool),
    Py<PyBytes>,
    Vec<RawFd>,
);

/// Serves as the fork server, at its end of the way: None when nobody is left who could ask. In each child it returns, too, with
/// what that has, once somebody has asked for it; before, it has called `begin`.
#[pyfunction]
pub(crate) fn serve(
    py: Python<'_>,
    end: RawFd,
    begin: &Bound<'_, PyAny>,
) -> PyResult<Option<Inherited>> {
    let os = py.import("os")?;
    let fork = os.getattr("fork")?;
    let mut server = Core::new(copy_of(end).map_err(raise)?).map_err(raise)?;
    os.call_method1("close", (end,))?;
    let arena = tree::arena()?;
    // What a thread of the program's may change is to be as it is when somebody asks.
    let is_alone = || other_threads(Others::None) == Ok(0);
    while let Some(next) = blocking::call(py, || server.next_fork(arena, is_alone()))? {
        let placeless = arena.placeless();
        let forked = fork.call0().and_then(|pid| pid.extract());
        drop(placeless);
        match forked {
            Ok(0) => {
                let asked = wait(py, server.become_child(next), begin);
                // Nobody knows of a child that nobody has asked for, and nobody is to hear of its end.
                if !matches!(asked, Ok(Some(_))) {
                    os.call_method1("_exit", (1,))?;
                }
                return asked;
            }
            Ok(pid) => server.forked(next, pid),
            Err(error) => {
                let errno = error.value(py).getattr("errno");
                let errno = errno.and_then(|errno| errno.extract()).unwrap_or_default();
                let error = Error::Os {
                    call: "fork",
                    errno,
                };
                server.could_not(next, &error);
            }
        }
    }
    Ok(None)
}

/// In a child, until somebody has asked for it.
fn wait(py: Python<'_>, waiting: Waiting, begin: &Bound<'_, PyAny>) -> PyResult<Option<Inherited>> {
    begin.call0()?;
    let arena = tree::arena()?;
    let inherited = py.detach(|| waiting.request(arena)).map_err(raise)?;
    Ok(inherited.and_then(|inherited| {
        let (&[daemon, tracked, is_piped], payload) = inherited.body.split_first_chunk()?;
        let passed = inherited.passed.into_iter().map(OwnedFd::into_raw_fd);
        Some((
            ForkServer(Closable::new(inherited.server)),
            inherited.requester.into_raw_fd(),
            (daemon != 0, tracked != 0, is_piped != 0),
            PyBytes::new(py, payload).unbind(),
            passed.collect(),
        ))
    }))
}

/// Has this process killed when the process of that pidfd is gone.
#[pyfunction]
pub(crate) fn die_with(pidfd: RawFd) -> PyResult<()> {
    let pidfd = copy_of(pidfd).map_err(raise)?;
    procession_core::die_with(pidfd).map_err(raise)
}
