//! What goes wrong between a client and its server.

use std::io;
use std::sync::Arc;

use nbd_wire::{NbdError, ReplyType, WireError};

/// Why a client could not connect, or a request failed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// What is written is no address of an export.
    #[error("{uri:?} is no address of an NBD export: {why}")]
    Address {
        /// As it was written.
        uri: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Nobody answers there.
    #[error("cannot connect to {to}")]
    Connect {
        /// Where.
        to: String,
        /// Why.
        #[source]
        source: Arc<io::Error>,
    },
    /// The server answered no to an option.
    #[error("the server refused {what}: {message}")]
    Refused {
        /// What was asked for.
        what: String,
        /// Its answer.
        kind: ReplyType,
        /// Its text.
        message: String,
    },
    /// A request failed; the connection goes on.
    #[error("{what} of {len} bytes at {offset} failed: {error} {message}")]
    Request {
        /// Which one.
        what: &'static str,
        /// First byte.
        offset: u64,
        /// Number of bytes.
        len: u32,
        /// The server's number.
        error: NbdError,
        /// The server's text.
        message: String,
    },
    /// The request cannot be sent: it is past the export's end, no whole blocks, or too large.
    #[error("{what} of {len} bytes at {offset} cannot be asked: {why}")]
    Invalid {
        /// Which one.
        what: &'static str,
        /// First byte.
        offset: u64,
        /// Number of bytes.
        len: u64,
        /// Why not.
        why: &'static str,
    },
    /// The connection failed; nothing else is done on it.
    #[error("the connection to the server failed")]
    Broken(#[source] Arc<io::Error>),
    /// The server sent what is no NBD.
    #[error("the server broke the protocol")]
    Wire(#[from] WireError),
    /// The server sent what was not asked for.
    #[error("the server broke the protocol: {0}")]
    Protocol(&'static str),
    /// It takes too long.
    #[error("the server took too long to {0}")]
    Slow(&'static str),
}

impl From<io::Error> for ClientError {
    fn from(error: io::Error) -> ClientError {
        ClientError::Broken(Arc::new(error))
    }
}
