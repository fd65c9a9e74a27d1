//! The crate's error: what was done to what, and why it failed.

use std::io;
use std::path::Path;

/// What went wrong, to match on.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// A file or directory could not be read, written or removed.
    Io,
    /// Something is not where the work root has it, so that nothing is removed.
    OutOfPlace,
    /// A value of the environment is not usable.
    Environment,
}

/// An error of the work root.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub struct Error {
    kind: ErrorKind,
    what: String,
    source: Option<io::Error>,
}

impl Error {
    /// What to match on.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    pub(crate) fn new(kind: ErrorKind, what: impl Into<String>) -> Error {
        Error {
            kind,
            what: what.into(),
            source: None,
        }
    }

    /// For `map_err`: what could not be done to a path.
    pub(crate) fn io(verb: &str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        let what = format!("cannot {verb} {}", path.display());
        |source| Error {
            kind: ErrorKind::Io,
            what,
            source: Some(source),
        }
    }
}
