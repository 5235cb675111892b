//! Frames on a stream, each direction of which is one thread's at a time.

use super::baton::Baton;
use super::failure::{Trouble, raise_failure};
use super::{Handle, receive};
use crate::memory::too_short;
use procession_core::connection::{self, AWAKE, Failure, Numbered, Patience, Received};
use procession_core::wire::{Decoder, FrameError};
use procession_core::{Deadline, Error};
use pyo3::exceptions::PyOSError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU8, Ordering};

/// Up to so many bytes are copied to or from the kernel without letting go of the interpreter: some microseconds.
pub(super) const BRIEF_BYTES: u64 = 1 << 16;
/// How many messages aren't hoped for after one that had to be waited for.
const GLOOM: u8 = 15;

/// A descriptor that carries frames, and what has come and gone of them.
pub(super) struct Stream {
    descriptor: Numbered,
    pub(super) is_socket: bool,
    /// It carries packets, which are other ends' affair.
    is_pipe_end: bool,
    incoming: Baton<Decoder>,
    /// False once a message was cut off in the middle: nothing that is sent behind it would be understood.
    outgoing: Baton<bool>,
    /// How many messages are to be waited for before one is hoped for.
    gloom: AtomicU8,
    /// How long a wait for a message is awake.
    pub(super) patience: Patience,
}

impl Stream {
    pub(super) fn new(descriptor: Numbered) -> Self {
        Self {
            is_socket: connection::is_socket(descriptor.as_fd()),
            is_pipe_end: connection::is_pipe_end(descriptor.as_fd()),
            descriptor,
            incoming: Baton::new(|| Decoder::new(u64::MAX)),
            outgoing: Baton::new(|| true),
            gloom: AtomicU8::new(0),
            patience: Patience::up_to(AWAKE),
        }
    }

    pub(super) fn descriptor(&self) -> &Numbered {
        &self.descriptor
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }

    fn carries_frames(&self) -> PyResult<()> {
        if self.is_pipe_end {
            return Err(PyOSError::new_err(
                "the descriptor is an end of a pipe inside a tree of processes: only the connection that Pipe gave, or what \
                 it was pickled to, sends and receives there",
            ));
        }
        Ok(())
    }

    /// Sends a message of these pieces.
    pub(super) fn send(&self, py: Python<'_>, handle: &Handle, pieces: &[&[u8]]) -> PyResult<()> {
        self.carries_frames()?;
        let is_whole = self.outgoing.take(py)?;
        let mut sent = 0;
        let written = if is_whole {
            self.write(py, handle, pieces, &mut sent)
        } else {
            Err(PyOSError::new_err(
                "a message before this one was cut off in the middle",
            ))
        };
        self.outgoing
            .put(py, is_whole && (written.is_ok() || sent == 0));
        written
    }

    fn write(
        &self,
        py: Python<'_>,
        handle: &Handle,
        pieces: &[&[u8]],
        sent: &mut u64,
    ) -> PyResult<()> {
        let stream = self.as_fd();
        let length: u64 = pieces.iter().map(|piece| piece.len() as u64).sum();
        if length <= BRIEF_BYTES || handle.may_wait().is_err() {
            match connection::send(stream, pieces, sent, Deadline::now()) {
                Ok(true) => return Ok(()),
                Ok(false) | Err(Failure::System(Error::Interrupted)) => {}
                Err(failure) => return Err(raise_failure(py, failure)),
            }
        }
        if *sent == 0 {
            // The program can send it again.
            handle.may_wait()?;
        }
        handle.wait_long(py, |until| {
            Ok(connection::send(stream, pieces, sent, until)?.then_some(()))
        })
    }

    /// Receives a message, unless it has more bytes than `limit`.
    pub(super) fn receive<'py>(
        &self,
        py: Python<'py>,
        handle: &Handle,
        limit: u64,
    ) -> Result<Bound<'py, PyBytes>, Trouble> {
        self.with_decoder(py, |decoder| {
            decoder.set_limit(limit);
            let hopes = self.is_socket && self.gloom.load(Ordering::Relaxed) == 0;
            let (received, came_at_once) = receive::message(py, handle, self, decoder, hopes);
            self.gloom.store(
                match self.gloom.load(Ordering::Relaxed) {
                    _ if came_at_once => 0,
                    0 => GLOOM,
                    gloom => gloom - 1,
                },
                Ordering::Relaxed,
            );
            received
        })
    }

    /// Receives a message into a buffer, and gives its length.
    pub(super) fn receive_into(
        &self,
        py: Python<'_>,
        handle: &Handle,
        room: &mut [u8],
    ) -> Result<usize, Trouble> {
        self.with_decoder(py, |decoder| {
            decoder.set_limit(u64::MAX);
            receive::may_begin(handle, self.as_fd())?;
            let received = handle.wait_long(py, |until| {
                let came = connection::receive_into(self.as_fd(), decoder, room, until);
                receive::told(decoder, came)
            });
            match received? {
                Received::Into(length) => Ok(length),
                Received::TooLong(message) => Err(too_short(PyBytes::new(py, &message))),
            }
        })
    }

    fn with_decoder<T>(
        &self,
        py: Python<'_>,
        read: impl FnOnce(&mut Decoder) -> PyResult<T>,
    ) -> Result<T, Trouble> {
        self.carries_frames()?;
        let mut decoder = self.incoming.take(py)?;
        let received = read(&mut decoder);
        let is_refusal = matches!(
            decoder.wanted(),
            Err(FrameError::Negative { .. } | FrameError::TooLong { .. })
        );
        self.incoming.put(py, decoder);
        received.map_err(|error| Trouble { error, is_refusal })
    }
}
