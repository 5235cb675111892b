//! Real exchanges, from `handshakes.txt`.

/// What both sides of one connection sent.
#[derive(Debug)]
pub(crate) struct Exchange {
    /// Python's versions.
    pub(crate) server: &'static str,
    pub(crate) client: &'static str,
    /// Both have [`KEY`]; otherwise the client has [`WRONG`].
    pub(crate) is_right: bool,
    pub(crate) frames: Vec<Frame>,
}

#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) is_servers: bool,
    pub(crate) header: Vec<u8>,
    pub(crate) body: Vec<u8>,
}

pub(crate) const KEY: &[u8] = b"secret";
pub(crate) const WRONG: &[u8] = b"WRONG";

/// All of them.
pub(crate) fn exchanges() -> Vec<Exchange> {
    let mut all: Vec<Exchange> = Vec::new();
    let lines = include_str!("handshakes.txt").lines();
    for line in lines.filter(|line| !line.starts_with('#')) {
        let words: Vec<_> = line.split(' ').collect();
        match words[..] {
            ["exchange", server, client, key] => all.push(Exchange {
                server,
                client,
                is_right: key == "right",
                frames: Vec::new(),
            }),
            [side, header, body] => all.last_mut().unwrap().frames.push(Frame {
                is_servers: side == "server",
                header: bytes(header),
                body: bytes(body),
            }),
            _ => panic!("{line}"),
        }
    }
    all
}

/// What an attacker has heard elsewhere; verdicts last.
pub(crate) fn messages() -> Vec<Vec<u8>> {
    let frames = exchanges().into_iter().flat_map(|one| one.frames);
    let mut messages: Vec<_> = frames
        .map(|frame| frame.body)
        .filter(|body| !body.starts_with(b"\x80") && !body.ends_with(b"E#"))
        .collect();
    messages.extend([b"#FAILURE#".to_vec(), b"#WELCOME#".to_vec()]);
    assert!((50..200).contains(&messages.len()));
    messages
}

impl Exchange {
    /// What one side sent, as a stream.
    pub(crate) fn stream(&self, of_server: bool) -> Vec<u8> {
        let mine = self.frames.iter();
        mine.filter(|frame| frame.is_servers == of_server)
            .flat_map(|frame| [&*frame.header, &*frame.body].concat())
            .collect()
    }
}

pub(crate) fn bytes(hex: &str) -> Vec<u8> {
    let pairs = (0..hex.len()).step_by(2);
    pairs
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
        .collect()
}
