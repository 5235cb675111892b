//! What a child that is started by exec is told on its command line.

use crate::error::{Error, ErrorKind, Result};
use procession_core::ObjectName;

/// What the last argument of a child begins with.
const MARK: &str = "procession-child=";

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

    /// Reads an argument; `None` if it is no ticket at all.
    pub(crate) fn read(argument: &str) -> Option<Result<Self>> {
        let text = argument.strip_prefix(MARK)?;
        Some(Self::parse(text).ok_or_else(|| {
            Error::new(
                ErrorKind::Malformed,
                format!("begin as a child: malformed {argument:?}"),
            )
        }))
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
            assert_eq!(Ticket::read(&ticket.text()).unwrap().unwrap(), ticket);
        }
        assert!(Ticket::read("something").is_none());
        for wrong in ["", "t/1/1", "t/x/1/-", "t/1/1/-/", "t/1/1/m"] {
            assert!(
                Ticket::read(&format!("{MARK}{wrong}")).unwrap().is_err(),
                "{wrong}"
            );
        }
    }
}
