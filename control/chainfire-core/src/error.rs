//! The one error of this crate.

use std::fmt;

use crate::types::NodeId;

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, to match on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// No leader is known, or no quorum answers. Nothing was done; try again later.
    Unavailable,
    /// This member does not lead and could not reach the one that does. Nothing was done.
    NotLeader(Option<NodeId>),
    /// The deadline passed. A proposal may still take effect.
    Timeout,
    /// Leadership changed meanwhile. A proposal may or may not take effect.
    Unknown,
    /// A membership rule forbids it now; the text names the rule and what to do.
    Refused,
    /// No such member.
    NotFound,
    /// Such a member exists already.
    Exists,
    /// A request that can never succeed.
    Invalid,
    /// Bytes on disk are not what was written.
    Corrupt,
    /// The disk failed.
    Storage,
    /// This member has stopped.
    Stopped,
}

/// An error: its kind, what happened to which object, and its cause.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    what: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, what: impl Into<String>) -> Self {
        Self {
            kind,
            what: what.into(),
            source: None,
        }
    }

    pub(crate) fn caused(
        kind: ErrorKind,
        what: impl Into<String>,
        source: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        Self {
            kind,
            what: what.into(),
            source: Some(Box::new(source)),
        }
    }

    pub(crate) fn storage(
        what: impl Into<String>,
        source: impl std::error::Error + Send + Sync + 'static,
    ) -> Self {
        Self::caused(ErrorKind::Storage, what, source)
    }

    pub(crate) fn corrupt(file: &str, offset: u64, what: impl fmt::Display) -> Self {
        Self::new(
            ErrorKind::Corrupt,
            format!("{file} is damaged at offset {offset}: {what}"),
        )
    }

    /// Its kind.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}
