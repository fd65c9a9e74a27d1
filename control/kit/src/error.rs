//! The crate's error: what was done to what, and why it failed.

use std::error::Error as StdError;
use std::path::Path;

type Source = Box<dyn StdError + Send + Sync>;

/// What went wrong, to match on.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// An address could not be listened on or connected to.
    Address,
    /// A certificate, key or CA file is missing or not usable.
    Certificate,
}

/// An error of the kit.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct Error {
    kind: ErrorKind,
    what: String,
    source: Option<Source>,
}

impl Error {
    /// What to match on.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    pub(crate) fn address(what: String, source: impl Into<Source>) -> Error {
        Error {
            kind: ErrorKind::Address,
            what,
            source: Some(source.into()),
        }
    }

    pub(crate) fn certificate(what: &str, file: &Path, source: impl Into<Source>) -> Error {
        Error {
            kind: ErrorKind::Certificate,
            what: format!("{what} {}", file.display()),
            source: Some(source.into()),
        }
    }
}
