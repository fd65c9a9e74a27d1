//! The crate's error: why a member did not start or end well.

use std::error::Error as StdError;

/// What went wrong, to match on.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The configuration contradicts itself, or what the member was before.
    Config,
    /// The data directory cannot be used.
    Storage,
    /// A port cannot be served.
    Port,
    /// The cluster that it should join does not answer, or does not know it.
    Cluster,
}

/// An error of a member.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct Error {
    kind: ErrorKind,
    what: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, what: impl Into<String>) -> Error {
        Error {
            kind,
            what: what.into(),
            source: None,
        }
    }

    pub(crate) fn caused(
        kind: ErrorKind,
        what: impl Into<String>,
        source: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Error {
        Error {
            kind,
            what: what.into(),
            source: Some(source.into()),
        }
    }

    /// What to match on.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}
