//! The one error of this crate: a store that cannot go on. What a command is refused for is not
//! an error of the store but a deterministic answer ([`etcd_wire::RpcError`]).

use std::error::Error as StdError;
use std::fmt;

/// What went wrong, to match on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The storage below failed to read, write or flush. The store is poisoned: it answers
    /// every later batch with [`ErrorKind::Poisoned`].
    Io,
    /// Bytes on disk or in a snapshot do not hold what was written.
    Corrupt,
    /// An earlier batch failed; open the store again.
    Poisoned,
    /// The store or the snapshot was written by a newer version, or is no such thing.
    Format,
}

/// A failed operation of the store.
#[derive(Debug)]
pub struct Error {
    kind: ErrorKind,
    /// What was being done, to which object, and what was expected.
    operation: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, operation: impl Into<String>) -> Self {
        Self {
            kind,
            operation: operation.into(),
            source: None,
        }
    }

    pub(crate) fn corrupt(operation: impl Into<String>) -> Self {
        Self::new(ErrorKind::Corrupt, operation)
    }

    pub(crate) fn caused(
        kind: ErrorKind,
        operation: impl Into<String>,
        source: impl Into<Box<dyn StdError + Send + Sync>>,
    ) -> Self {
        Self {
            kind,
            operation: operation.into(),
            source: Some(source.into()),
        }
    }

    /// What went wrong.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.kind {
            ErrorKind::Io => "the storage failed",
            ErrorKind::Corrupt => "the data is damaged",
            ErrorKind::Poisoned => "an earlier batch failed; open the store again",
            ErrorKind::Format => "the format is not known",
        };
        write!(f, "chainfire store: {}: {what}", self.operation)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source
            .as_deref()
            .map(|source| source as &(dyn StdError + 'static))
    }
}

/// Gives redb's errors a kind and says what was being done.
pub(crate) trait During<T> {
    fn during(self, operation: &'static str) -> Result<T, Error>;
}

impl<T, E: Into<redb::Error>> During<T> for Result<T, E> {
    fn during(self, operation: &'static str) -> Result<T, Error> {
        self.map_err(|error| {
            let error: redb::Error = error.into();
            let kind = match &error {
                redb::Error::Corrupted(_) | redb::Error::RepairAborted => ErrorKind::Corrupt,
                redb::Error::PreviousIo => ErrorKind::Poisoned,
                redb::Error::UpgradeRequired(_) => ErrorKind::Format,
                _ => ErrorKind::Io,
            };
            Error::caused(kind, operation, error)
        })
    }
}
