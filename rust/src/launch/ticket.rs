//! What a process of ours that is started by exec is told on its command line, in its last argument.

use crate::error::{Error, ErrorKind, Result};
use procession_core::ObjectName;
use std::os::fd::RawFd;

/// What the last argument of a child begins with.
const MARK: &str = "procession-child=";
/// What that of a fork server begins with; then the number of the descriptor that requests come by, and its token.
const SERVER_MARK: &str = "procession-server=";

/// What a process of ours is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Role {
    Child(Ticket),
    Server { requests: RawFd, token: String },
}

impl Role {
    /// The last argument of a fork server.
    pub(super) fn server_text(requests: RawFd, token: &str) -> String {
        format!("{SERVER_MARK}{requests}/{token}")
    }

    /// Reads an argument; `None` if it is of none of ours.
    pub(crate) fn read(argument: &str) -> Option<Result<Self>> {
        let role = if let Some(text) = argument.strip_prefix(MARK) {
            Ticket::parse(text).map(Self::Child)
        } else {
            let text = argument.strip_prefix(SERVER_MARK)?;
            text.split_once('/').and_then(|(requests, token)| {
                let (requests, token) = (requests.parse().ok()?, token.to_owned());
                Some(Self::Server { requests, token })
            })
        };
        Some(role.ok_or_else(|| {
            Error::new(
                ErrorKind::Malformed,
                format!("begin as a child: malformed {argument:?}"),
            )
        }))
    }
}

/// What a child is told on its command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ticket {
    /// What it attaches to the arena with.
    pub(crate) token: String,
    pub(crate) mailbox: ObjectName,
    /// For one that dies with its parent: the parent's id, and whether its first thread started it.
    pub(crate) parent: Option<(u32, bool)>,
}

impl Ticket {
    /// `procession-child=TOKEN/OFFSET/SERIAL/PARENT`, or `-` for no parent, or with an `m` behind it for its first
    /// thread.
    pub(super) fn text(&self) -> String {
        let ObjectName { offset, serial } = self.mailbox;
        let parent = match self.parent {
            None => "-".to_owned(),
            Some((pid, first)) => format!("{pid}{}", if first { "m" } else { "" }),
        };
        format!("{MARK}{}/{offset:x}/{serial:x}/{parent}", self.token)
    }

    fn parse(text: &str) -> Option<Self> {
        let mut fields = text.split('/');
        let mut field = || fields.next();
        let token = field()?.to_owned();
        let offset = u64::from_str_radix(field()?, 16).ok()?;
        let serial = u64::from_str_radix(field()?, 16).ok()?;
        let parent = match field()? {
            "-" => None,
            text => {
                let digits = text.trim_end_matches('m');
                Some((digits.parse().ok()?, digits.len() < text.len()))
            }
        };
        fields.next().is_none().then_some(Self {
            token,
            mailbox: ObjectName { offset, serial },
            parent,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tickets_come_back() {
        for parent in [None, Some((77, false)), Some((78, true))] {
            let ticket = Ticket {
                token: "3:2:1:ab:cd".to_owned(),
                mailbox: ObjectName {
                    offset: 4096,
                    serial: 17,
                },
                parent,
            };
            let role = Role::read(&ticket.text()).unwrap().unwrap();
            assert_eq!(role, Role::Child(ticket));
        }
        assert!(Role::read("something").is_none());
        for wrong in ["", "t/1/1", "t/x/1/-", "t/1/1/-/", "t/1/1/m"] {
            assert!(
                Role::read(&format!("{MARK}{wrong}")).unwrap().is_err(),
                "{wrong}"
            );
        }
    }

    #[test]
    fn a_server_is_told_where_to_listen() {
        let text = Role::server_text(4, "3:2:1:ab:cd");
        let (requests, token) = (4, "3:2:1:ab:cd".to_owned());
        let role = Role::read(&text).unwrap().unwrap();
        assert_eq!(role, Role::Server { requests, token });
        for wrong in ["", "4", "x/t"] {
            let read = Role::read(&format!("{SERVER_MARK}{wrong}"));
            assert!(read.unwrap().is_err(), "{wrong}");
        }
    }
}
