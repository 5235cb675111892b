//! Addresses, as Python has them.

use procession_core::connection::Address;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString, PyTuple};
use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::unix::ffi::OsStringExt;

/// The address that a program means.
pub(super) fn from_python(address: &Bound<'_, PyAny>, family: &str) -> PyResult<Address> {
    match family {
        "AF_UNIX" => {
            let name = match address.cast::<PyString>() {
                Ok(name) => name.extract::<OsString>()?.into_vec(),
                Err(_) => {
                    let os = address.py().import("os")?;
                    os.call_method1("fsencode", (address,))?.extract()?
                }
            };
            Ok(match name.strip_prefix(b"\0") {
                Some(name) => Address::Abstract(name.to_vec()),
                None => Address::Path(OsString::from_vec(name).into()),
            })
        }
        "AF_INET" | "AF_INET6" => inet(address, family),
        _ => Err(PyValueError::new_err(format!(
            "Family {family} is not recognized."
        ))),
    }
}

/// A host and a port, and for version 6 a flow and a scope: more than the standard library takes for a client.
fn inet(address: &Bound<'_, PyAny>, family: &str) -> PyResult<Address> {
    let wrong = || PyTypeError::new_err(format!("{family} address must be a pair (host, port)"));
    let parts = address.cast::<PyTuple>().map_err(|_| wrong())?;
    if !(2..=4).contains(&parts.len()) {
        return Err(wrong());
    }
    let host: String = parts.get_item(0)?.extract()?;
    let port: u16 = parts.get_item(1)?.extract()?;
    let more = |place| -> PyResult<u32> {
        match parts.get_item(place) {
            Ok(part) => part.extract(),
            Err(_) => Ok(0),
        }
    };
    let is_6 = family == "AF_INET6" || parts.len() > 2 || host.contains(':');
    let number = match (host.as_str(), is_6) {
        ("", true) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        ("", false) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        (host, _) => match host.parse() {
            Ok(number) => number,
            Err(_) => return look_up(address.py(), host, port, is_6),
        },
    };
    Ok(Address::Inet(match number {
        IpAddr::V4(number) => (number, port).into(),
        IpAddr::V6(number) => SocketAddrV6::new(number, port, more(2)?, more(3)?).into(),
    }))
}

/// What a name of a machine stands for, by Python's own resolver, for its errors.
fn look_up(py: Python<'_>, host: &str, port: u16, is_6: bool) -> PyResult<Address> {
    let socket = py.import("socket")?;
    let family = socket.getattr(if is_6 { "AF_INET6" } else { "AF_INET" })?;
    let kind = socket.getattr("SOCK_STREAM")?;
    let found = socket.call_method1("getaddrinfo", (host, port, family, kind))?;
    let first = found.get_item(0)?.get_item(4)?;
    let number: String = first.get_item(0)?.extract()?;
    let scope = match first.get_item(3) {
        Ok(scope) => scope.extract()?,
        Err(_) => 0,
    };
    // A scope may be behind the number, by its name.
    let number = number.split('%').next().unwrap_or_default();
    let number: IpAddr = number
        .parse()
        .map_err(|_| PyValueError::new_err(format!("no address: {number:?}")))?;
    Ok(Address::Inet(match number {
        IpAddr::V4(number) => (number, port).into(),
        IpAddr::V6(number) => SocketAddrV6::new(number, port, 0, scope).into(),
    }))
}

/// As `socket.getsockname` has it; '' for none.
pub(super) fn to_python<'py>(
    py: Python<'py>,
    address: Option<&Address>,
) -> PyResult<Bound<'py, PyAny>> {
    Ok(match address {
        None => "".into_pyobject(py)?.into_any(),
        Some(Address::Path(path)) => path.as_os_str().into_pyobject(py)?.into_any(),
        Some(Address::Abstract(name)) => {
            PyBytes::new(py, &[b"\0", name.as_slice()].concat()).into_any()
        }
        Some(Address::Inet(SocketAddr::V4(address))) => {
            let pair = (address.ip().to_string(), address.port());
            pair.into_pyobject(py)?.into_any()
        }
        Some(Address::Inet(SocketAddr::V6(address))) => {
            let (ip, port) = (address.ip().to_string(), address.port());
            let four = (ip, port, address.flowinfo(), address.scope_id());
            four.into_pyobject(py)?.into_any()
        }
    })
}
