//! Where an export is: addresses as libnbd and QEMU write them.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;

use percent_encoding::percent_decode_str;
use rustls::ClientConfig;

use crate::error::ClientError;

/// The port of NBD.
const PORT: u16 = 10_809;

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A socket of the file system.
    Unix(PathBuf),
    /// A name or an address, and a port.
    Tcp(String, u16),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
            Address::Tcp(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Address::Tcp(host, port) => write!(f, "{host}:{port}"),
        }
    }
}

/// How TLS is spoken; [`Target::tls`].
#[derive(Clone, Debug)]
pub struct ClientTls {
    /// Whom is trusted, and what is shown.
    pub config: Arc<ClientConfig>,
    /// What the server's certificate must be for.
    pub server_name: String,
}

/// An export.
#[derive(Clone, Debug)]
pub struct Target {
    /// Where its server listens.
    pub address: Address,
    /// Its name.
    pub export: String,
    /// With TLS, nothing is said in the clear.
    pub tls: Option<ClientTls>,
}

impl Target {
    /// An export, in the clear.
    pub fn new(address: Address, export: impl Into<String>) -> Target {
        Target {
            address,
            export: export.into(),
            tls: None,
        }
    }
}

impl FromStr for Target {
    type Err = ClientError;

    /// Reads `nbd://HOST[:PORT]/EXPORT` or `nbd+unix:///EXPORT?socket=PATH`. Those with `nbds` are for who
    /// sets [`Target::tls`].
    fn from_str(uri: &str) -> Result<Target, ClientError> {
        parse(uri).map_err(|why| ClientError::Address {
            uri: uri.to_owned(),
            why,
        })
    }
}

fn parse(uri: &str) -> Result<Target, &'static str> {
    let (scheme, rest) = uri.split_once("://").ok_or("it has no scheme")?;
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (host, export) = rest.split_once('/').unwrap_or((rest, ""));
    let decode = |text: &str| {
        let decoded = percent_decode_str(text).decode_utf8();
        decoded
            .map(std::borrow::Cow::into_owned)
            .map_err(|_| "it is no text")
    };
    let address = match scheme {
        "nbd" | "nbds" => host_and_port(host)?,
        "nbd+unix" | "nbds+unix" => {
            let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            let socket = pairs.find(|(key, _)| *key == "socket");
            let (_, path) = socket.ok_or("it names no socket")?;
            Address::Unix(PathBuf::from(decode(path)?))
        }
        _ => return Err("its scheme is none of nbd, nbds, nbd+unix, nbds+unix"),
    };
    Ok(Target::new(address, decode(export)?))
}

fn host_and_port(text: &str) -> Result<Address, &'static str> {
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest.split_once(']').ok_or("a bracket is open")?;
        (host, rest.strip_prefix(':'))
    } else {
        match text.rsplit_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        }
    };
    if host.is_empty() {
        return Err("it names no host");
    }
    let port = port.map_or(Ok(PORT), str::parse);
    let port = port.map_err(|_| "its port is no number")?;
    Ok(Address::Tcp(host.to_owned(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(uri: &str) -> (String, String) {
        let target: Target = uri.parse().expect("an address");
        (target.address.to_string(), target.export)
    }

    #[test]
    fn addresses_are_read_as_others_write_them() {
        let pair = |address: &str, export: &str| (address.to_owned(), export.to_owned());
        for (uri, expected) in [
            ("nbd://host", pair("host:10809", "")),
            ("nbd://host:1/a%20b", pair("host:1", "a b")),
            ("nbds://[::1]:2/x/y", pair("[::1]:2", "x/y")),
            ("nbd+unix:///disk?socket=/a%2Fb", pair("unix:/a/b", "disk")),
            ("nbds+unix://h/d?x=y&socket=s", pair("unix:s", "d")),
        ] {
            assert_eq!(read(uri), expected, "{uri}");
        }
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for uri in [
            "",
            "host",
            "http://host",
            "nbd://",
            "nbd://host:x",
            "nbd://[::1",
            "nbd+unix:///disk",
            "nbd://host/%FF",
        ] {
            let refused = uri.parse::<Target>();
            assert!(matches!(refused, Err(ClientError::Address { .. })), "{uri}");
        }
    }
}
