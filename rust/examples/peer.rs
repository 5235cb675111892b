//! One end of a talk with another program: with a stock Python's `multiprocessing.connection`, with the Python face, or with
//! itself. `cargo xtask interop` has every pair of them talk; `python/tests/interop/peer.py` says the same in Python.
//!
//! ```text
//! peer listen FOLDER              says where it listens, then what came of each talk
//! peer connect INET UNIX          says what came of each talk
//! ```
//!
//! Four talks: at each address one with a wrong key, then one with the right one.
#![allow(clippy::print_stdout, reason = "a program that reports")]

use procession::{AcceptError, Address, Client, Connection, Error, ErrorKind, Listener, RecvError};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

const KEY: &str = "the right key";
const WRONG_KEY: &str = "a wrong key";
/// Lengths on both sides of what CPython sends with one call, and of what a socket takes at once.
const LENGTHS: [usize; 6] = [0, 1, 16_384, 16_385, 1 << 20, 3_000_001];
/// Who doesn't come by then won't.
const PATIENCE: Duration = Duration::from_secs(30);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["listen", folder] => listen(Path::new(folder)),
        ["connect", inet, unix] => {
            let inet = inet.parse::<SocketAddr>()?;
            connect([inet.into(), PathBuf::from(unix).into()])
        }
        _ => Err("peer listen FOLDER, or peer connect INET UNIX".into()),
    }
}

fn listen(folder: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let inet = Address::from((Ipv4Addr::LOCALHOST, 0));
    let unix = Address::from(folder.join("listener"));
    let bind = |address| Listener::builder().key(KEY).allow_md5(true).bind(address);
    let listeners = [bind(inet)?, bind(unix)?];
    println!("{} {}", listeners[0].address(), listeners[1].address());
    for listener in &listeners {
        match listener.accept_timeout::<[u8], [u8]>(PATIENCE) {
            Err(AcceptError::Refused { error, .. })
                if error.kind() == ErrorKind::Authentication =>
            {
                println!("refused");
            }
            other => return Err(format!("a wrong key: {other:?}").into()),
        }
        println!("{}", echo(&listener.accept_timeout(PATIENCE)?)?);
    }
    Ok(())
}

/// Sends back what comes, each byte changed; gives what there is to say of it.
fn echo(connection: &Connection<[u8]>) -> Result<String, Error> {
    let mut total = 0;
    loop {
        match connection.recv_bytes_timeout(PATIENCE) {
            Ok(bytes) => {
                total += bytes.len();
                let changed: Vec<u8> = bytes.iter().map(|byte| byte ^ 1).collect();
                connection.send_bytes(&changed)?;
            }
            Err(RecvError::Closed) => return Ok(format!("{total} bytes")),
            Err(error) => return Err(error.into()),
        }
    }
}

fn connect(addresses: [Address; 2]) -> Result<(), Box<dyn std::error::Error>> {
    for address in addresses {
        let client = Client::to(address).allow_md5(true).timeout(PATIENCE);
        match client.clone().key(WRONG_KEY).connect::<[u8], [u8]>() {
            Err(error) if error.kind() == ErrorKind::Authentication => println!("refused"),
            other => return Err(format!("a wrong key: {other:?}").into()),
        }
        let connection: Connection<[u8]> = client.key(KEY).connect()?;
        let mut total = 0;
        for length in LENGTHS {
            let bytes: Vec<u8> = (0..length).map(|at| (at % 251).to_le_bytes()[0]).collect();
            connection.send_bytes(&bytes)?;
            let back = connection.recv_bytes_timeout(PATIENCE)?;
            let is_right =
                back.len() == length && back.iter().zip(&bytes).all(|(a, b)| a ^ 1 == *b);
            if !is_right {
                return Err(format!("{length} bytes came back as {}", back.len()).into());
            }
            total += length;
        }
        println!("{total} bytes");
    }
    Ok(())
}
