//! Volumes of other nodes, as they are written down.

use std::path::PathBuf;

use nbd_export::Known;
use nbd_wire::BlockSizes;
use nbd_wire::session::Token;
use serde::{Deserialize, Serialize};

/// Where another node serves a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Endpoint {
    /// A unix socket of this host.
    Unix(PathBuf),
    /// A name or an address, and a port.
    Tcp {
        /// The name or the address.
        host: String,
        /// The port.
        port: u16,
    },
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Endpoint::Unix(path) => write!(f, "unix:{}", path.display()),
            Endpoint::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Endpoint::Tcp { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

impl Endpoint {
    /// Reads `unix:PATH` or `HOST:PORT`, as users write it.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Endpoint, &'static str> {
        if let Some(path) = text.strip_prefix("unix:") {
            let path = PathBuf::from(path);
            if !path.is_absolute() || path.as_os_str().len() > SOCKET_BYTES_MAX {
                return Err("a socket has an absolute path of up to 107 bytes");
            }
            return Ok(Endpoint::Unix(path));
        }
        let (host, port) = text.rsplit_once(':').ok_or("it has no port")?;
        let port = port.parse().map_err(|_| "its port is no number")?;
        let bare = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'));
        let host = bare.unwrap_or(host);
        let is_address = host.parse::<std::net::IpAddr>().is_ok();
        let is_name = |byte: u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
        if port == 0 || host.is_empty() || host.len() > HOST_BYTES_MAX {
            return Err("it names no host and port");
        }
        if !is_address && (bare.is_some() || !host.bytes().all(is_name)) {
            return Err("its host is neither a name nor an address");
        }
        let host = host.to_owned();
        Ok(Endpoint::Tcp { host, port })
    }
}

/// Longest path of a unix socket.
const SOCKET_BYTES_MAX: usize = 107;
/// Longest name of a host.
const HOST_BYTES_MAX: usize = 253;

/// What was known of an export when this was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KnownOnDisk {
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        with = "optional_token"
    )]
    verifier: Option<Token>,
    bytes: u64,
    flags: u16,
    /// The smallest, the best and the largest request.
    sizes: [u32; 3],
}

impl From<Known> for KnownOnDisk {
    fn from(known: Known) -> KnownOnDisk {
        let BlockSizes {
            minimum,
            preferred,
            maximum,
        } = known.sizes;
        KnownOnDisk {
            verifier: known.verifier,
            bytes: known.bytes,
            flags: known.flags,
            sizes: [minimum, preferred, maximum],
        }
    }
}

impl From<KnownOnDisk> for Known {
    fn from(known: KnownOnDisk) -> Known {
        let [minimum, preferred, maximum] = known.sizes;
        Known {
            verifier: known.verifier,
            bytes: known.bytes,
            flags: known.flags,
            sizes: BlockSizes {
                minimum,
                preferred,
                maximum,
            },
            shape: None,
        }
    }
}

/// A volume of another node that is served here, over restarts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemoteAttached {
    /// Its name here.
    pub name: String,
    /// Where it is served.
    pub endpoint: Endpoint,
    /// The export's name.
    pub export: String,
    /// Whether the connection is by TLS.
    pub tls: bool,
    /// Whether the guest may not change it.
    pub read_only: bool,
    /// Rings offered to the guest.
    pub queues: u16,
    /// The socket for the guest.
    pub socket: PathBuf,
    /// By which the other node tells which connections are of this one.
    #[serde(with = "token")]
    pub session: Token,
    /// In which life of this machine it was last served, as 32 hexadecimal digits: a guest of another one is
    /// not at work any more.
    #[serde(with = "token")]
    pub boot: Token,
    /// What it was then.
    pub known: KnownOnDisk,
}

/// Why a volume of another node is not served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RemoteFault {
    /// It is being connected to, and why that did not succeed yet.
    Connecting(String),
    /// It must not be served to the guest that had it.
    Lost(String),
}

/// A volume of another node and how it fares.
#[derive(Clone, Debug)]
pub struct RemoteEntry {
    /// What is on disk.
    pub attached: RemoteAttached,
    /// Why it is not served.
    pub state: Result<(), RemoteFault>,
}

impl RemoteEntry {
    /// One that was served when the node ended.
    pub fn starting(attached: RemoteAttached) -> RemoteEntry {
        RemoteEntry {
            attached,
            state: Err(RemoteFault::Connecting("the node starts".to_owned())),
        }
    }
}

/// A token as a string.
pub mod token {
    use super::{Deserialize, Token};

    /// Writes one.
    ///
    /// # Errors
    /// As the serializer says.
    pub fn serialize<S: serde::Serializer>(token: &Token, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(token)
    }

    /// Reads one.
    ///
    /// # Errors
    /// When it is none.
    pub fn deserialize<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Token, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A token as a string, where there is one.
pub mod optional_token {
    use super::Token;

    /// Writes one.
    ///
    /// # Errors
    /// As the serializer says.
    #[expect(clippy::ref_option, reason = "serde calls it so")]
    pub fn serialize<S: serde::Serializer>(
        token: &Option<Token>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        match token {
            Some(token) => to.collect_str(token),
            None => to.serialize_none(),
        }
    }

    /// Reads one.
    ///
    /// # Errors
    /// When it is none.
    pub fn deserialize<'de, D: serde::Deserializer<'de>>(
        from: D,
    ) -> Result<Option<Token>, D::Error> {
        super::token::deserialize(from).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_read_as_users_write_them() {
        for text in [
            "unix:/run/x",
            "host-1.example:10809",
            "10.0.0.5:1",
            "[::1]:2",
        ] {
            let endpoint = Endpoint::parse(text).unwrap();
            assert_eq!(endpoint.to_string(), text);
        }
        for text in [
            "",
            "host",
            "unix:x",
            "host:",
            "host:0",
            "host:65536",
            ":1",
            "[host]:1",
            "a b:1",
            "a/b:1",
        ] {
            assert!(Endpoint::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_remote_volume_is_written_and_read_back() {
        let attached = RemoteAttached {
            name: "disk".into(),
            endpoint: Endpoint::parse("host:1").unwrap(),
            export: String::new(),
            tls: true,
            read_only: false,
            queues: 2,
            socket: "/run/x".into(),
            session: Token(1),
            boot: Token(2),
            known: KnownOnDisk {
                verifier: Some(Token(3)),
                bytes: 1 << 20,
                flags: 1,
                sizes: [512, 4096, 1 << 25],
            },
        };
        let text = serde_json::to_string(&attached).unwrap();
        let read: RemoteAttached = serde_json::from_str(&text).unwrap();
        assert_eq!(read, attached);
        let stranger = text.replace(&format!(r#""verifier":"{}","#, Token(3)), "");
        let read: RemoteAttached = serde_json::from_str(&stranger).unwrap();
        assert_eq!(Known::from(read.known).verifier, None);
    }
}
