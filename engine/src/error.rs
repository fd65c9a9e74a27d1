//! The engine's errors.

use std::io;

/// What kind of failure an [`Error`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A value of the configuration is not allowed.
    Config,
    /// The kernel has no io_uring for us, or refuses the ring.
    NoUring,
    /// A resource of the machine is used up (descriptors, memory, shards).
    Exhausted,
    /// A shard ended by a panic or a broken ring.
    ShardFailed,
}

/// A failure of the engine itself, not of an operation on it.
#[derive(Debug, thiserror::Error)]
#[error("{context}")]
pub struct Error {
    kind: ErrorKind,
    context: String,
    #[source]
    source: Option<io::Error>,
}

impl Error {
    pub(crate) fn new(kind: ErrorKind, context: impl Into<String>) -> Error {
        Error {
            kind,
            context: context.into(),
            source: None,
        }
    }

    pub(crate) fn with(kind: ErrorKind, context: impl Into<String>, source: io::Error) -> Error {
        Error {
            kind,
            context: context.into(),
            source: Some(source),
        }
    }

    /// What kind of failure it is.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }
}

/// Why a call to another shard has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The mailbox, the service group's limit of calls in flight, or the shard's table of tasks is
    /// full. Nothing happened.
    #[error("the shard's queue is full")]
    Busy,
    /// No answer within the deadline. The call may have happened, or may yet.
    #[error("no answer within the deadline")]
    Deadline,
    /// The shard has shut down, or ended in the middle of the call.
    #[error("the shard is gone")]
    Gone,
}
