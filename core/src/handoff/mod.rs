//! Descriptors inside messages: shared memory can't hold one, so a message has a *ticket*, and its sender keeps a copy for
//! whoever redeems it.
//!
//! What is kept, and the thread that gives it out, is the process' [office]: made when a process first offers a
//! descriptor, it listens under a random name that vanishes with the process. [`redeem`] is the other side.
//!
//! The kernel passes the descriptor itself, as `SCM_RIGHTS` over a socket. pidfd_getfd(2) would need no thread, but the right to
//! trace the sender: Yama, a changed user or a container take it away, so the socket would be needed all the same.
//!
//! | step | a death of the sender | a death of the receiver |
//! |---|---|---|
//! | offered, in a message | whoever redeems it is told that the process has ended | |
//! | connected, or asked | the same: the socket has ended | the sender keeps it |
//! | given, on the way | the receiver has it | it is closed by the kernel |
//! | [entrusted](entrust()) to another | nothing: that one keeps it | |
//!
//! None of this stores anything in shared memory.

mod entrust;
mod office;
mod protocol;
mod redeem;

pub use entrust::{Invitation, entrust};
pub(crate) use office::pause;
pub use office::{Invited, invite, keep, kept, offer, stop, withdraw};
pub use protocol::{TICKET_BYTES, Ticket};
pub use redeem::{PATIENCE, Redeeming};
