//! The log's one error. It is `Clone`, because one failed batch answers many appenders, and `Send`,
//! because callers carry it across shards.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::types::Lsn;

/// Why the log refused or failed.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    /// A value of the configuration is not allowed.
    #[error("{field} is {value}; allowed: {allowed}")]
    Config {
        /// The field's name.
        field: &'static str,
        /// Its value.
        value: u64,
        /// What would be accepted.
        allowed: String,
    },
    /// Another process, or another log of this one, has the directory open.
    #[error("{} is in use by another process", path.display())]
    Locked {
        /// The locked file.
        path: PathBuf,
    },
    /// Bytes that were durable are damaged or missing. Nothing after them was replayed.
    #[error("segment {segment} is damaged at offset {offset}: expected {expected}")]
    Corrupt {
        /// The segment's number.
        segment: u32,
        /// Where in the segment, in bytes.
        offset: u64,
        /// What should have been there.
        expected: String,
    },
    /// No space for another segment. Nothing was written; try again when there is space.
    #[error("no space for another segment in {}", dir.display())]
    Full {
        /// The log's directory.
        dir: PathBuf,
    },
    /// A write or flush failed: what this log acknowledged before is safe, nothing more is taken.
    /// The record of the failed call may or may not be there after a restart.
    #[error("the log is poisoned by a failed write: {cause}")]
    Poisoned {
        /// The first failure, in words.
        cause: String,
    },
    /// The record is larger than `record_bytes_max`.
    #[error("a record of {len} bytes is past the limit of {max}")]
    TooLarge {
        /// Bytes of the payload.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// Too many wait already, or the shard has no buffer or task left. Nothing happened.
    #[error("the log's queue is full")]
    Busy,
    /// The log was closed.
    #[error("the log is closed")]
    Closed,
    /// There is no such segment: never made, or released.
    #[error("segment {segment} does not exist")]
    NoSegment {
        /// Its number.
        segment: u32,
    },
    /// The segment still takes records, or is not sealed yet: it cannot be released.
    #[error("segment {segment} is not sealed")]
    NotSealed {
        /// Its number.
        segment: u32,
    },
    /// The caller's replay refused a record.
    #[error("record {} was refused: {reason}", lsn.0)]
    Refused {
        /// The record.
        lsn: Lsn,
        /// The caller's reason.
        reason: String,
    },
    /// The file system refused an operation that is no write of records.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// The operation, as a verb.
        what: &'static str,
        /// Its object.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: Arc<io::Error>,
    },
}

impl LogError {
    /// Descriptors or memory that ran out leave the log as it was: that is [`LogError::Busy`].
    pub(crate) fn io(what: &'static str, path: impl Into<PathBuf>, source: io::Error) -> LogError {
        if let io::ErrorKind::ResourceBusy | io::ErrorKind::OutOfMemory = source.kind() {
            let path = path.into();
            tracing::warn!(path = %path.display(), what, error = %source, "the log waits for resources");
            return LogError::Busy;
        }
        LogError::Io {
            what,
            path: path.into(),
            source: Arc::new(source),
        }
    }

    pub(crate) fn corrupt(segment: u32, offset: u64, expected: impl Into<String>) -> LogError {
        LogError::Corrupt {
            segment,
            offset,
            expected: expected.into(),
        }
    }

    /// The error with its sources, on one line.
    pub(crate) fn in_full(&self) -> String {
        match self {
            LogError::Io { source, .. } => format!("{self}: {source}"),
            other => other.to_string(),
        }
    }
}
