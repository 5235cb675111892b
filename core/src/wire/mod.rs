//! What goes over a socket between two peers that share no memory: CPython's own bytes.
//!
//! [`frame`] cuts a stream into messages, [`auth`] makes sure that both ends know the same key, with the functions of [`digest`]. They only decide: bytes go
//! in, bytes and verdicts come out, and nothing here makes a system call, reads a clock or throws dice. Whoever holds
//! the descriptor is in another layer. `docs/wire.md` draws every byte.

pub mod auth;
pub mod digest;
pub mod frame;

pub use auth::{AuthError, Authenticated, Handshake, Role, Step, Terms};
pub use digest::Digest;
pub use frame::{Decoder, Filling, FrameError, Header, Wanted};
