//! The two halves of a handshake, alone: for whatever carries messages.

use super::failure::authentication_error;
use procession_core::wire::auth;
use pyo3::prelude::*;

/// What the key makes of a challenge.
#[pyfunction]
pub(crate) fn create_response(py: Python<'_>, authkey: &[u8], message: &[u8]) -> PyResult<Vec<u8>> {
    auth::respond(authkey, message).map_err(|error| authentication_error(py, error.to_string()))
}

/// Raises AuthenticationError unless the response is what the key makes of the challenge.
#[pyfunction]
pub(crate) fn verify_response(
    py: Python<'_>,
    authkey: &[u8],
    message: &[u8],
    response: &[u8],
) -> PyResult<()> {
    let verified = auth::verify(authkey, message, response);
    verified.map_err(|error| authentication_error(py, error.to_string()))
}
