//! The crate's error.

/// What went wrong, to match on.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// What is to be written cannot be.
    Entry,
    /// What was read is no bbolt file, or a damaged one.
    Damaged,
}

/// An error of writing or reading.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct Error {
    kind: ErrorKind,
    what: String,
}

impl Error {
    pub(crate) fn entry(what: impl Into<String>) -> Error {
        Error {
            kind: ErrorKind::Entry,
            what: what.into(),
        }
    }

    pub(crate) fn damaged(what: impl Into<String>) -> Error {
        Error {
            kind: ErrorKind::Damaged,
            what: what.into(),
        }
    }

    /// What to match on.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}
