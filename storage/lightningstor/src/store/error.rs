//! Why the store refuses or fails. One type for all operations; free to cross shards.

use std::io;

use s3_wire::Etag;
use segment_log::LogError;
use segment_log::durable::{FlushError, Poisoned, is_full};

/// An operation's failure.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The bucket does not exist, or is being deleted.
    #[error("the bucket does not exist")]
    NoSuchBucket,
    /// The key has no object.
    #[error("the key has no object")]
    NoSuchKey,
    /// The upload does not exist: never begun, completed or aborted.
    #[error("the upload does not exist")]
    NoSuchUpload,
    /// The bucket's name is taken.
    #[error("the bucket exists and belongs to {owner}")]
    BucketExists {
        /// Whose it is.
        owner: String,
    },
    /// The bucket still holds objects.
    #[error("the bucket holds objects")]
    BucketNotEmpty,
    /// The write's condition does not hold.
    #[error("the condition of the write does not hold")]
    PreconditionFailed,
    /// A part named by a completion is missing or has another tag.
    #[error("part {number} is missing or has another tag")]
    InvalidPart {
        /// The part.
        number: u16,
        /// The tag that it has, if it exists.
        etag: Option<Etag>,
    },
    /// Parts of a completion are not in ascending order.
    #[error("the parts are not in ascending order")]
    InvalidPartOrder,
    /// A part that is not the last is too small.
    #[error("part {number} has {size} bytes; all but the last need {min}")]
    EntityTooSmall {
        /// The part.
        number: u16,
        /// Its length in bytes.
        size: u64,
        /// What it needs.
        min: u64,
    },
    /// A bound is reached; nothing happened, try again.
    #[error("too much is in progress")]
    Busy,
    /// No space left; nothing happened. Works again when there is space.
    #[error("no space left")]
    Full,
    /// A write or flush failed: the partition takes no more writes until the node is restarted.
    #[error("the partition takes no writes since a write or flush failed: {0}")]
    Poisoned(String),
    /// What was read is not what was written.
    #[error("{what} is damaged, at byte {offset} of {}", file_of(*.segment))]
    Corrupt {
        /// What is damaged.
        what: String,
        /// The log segment; `u32::MAX` is the data file, and `u32::MAX - 1` a run of the index.
        segment: u32,
        /// Byte offset in it.
        offset: u64,
    },
    /// The write, read or partition was closed, or is not on this shard.
    #[error("the handle or partition is gone")]
    Gone,
    /// The caller broke the contract, or the machine failed in a way not named above.
    #[error("{0}")]
    Internal(String),
}

/// `segment` of [`StoreError::Corrupt`] for the data file.
pub(crate) const DATA_FILE: u32 = u32::MAX;
/// The same for a run of the index, which `what` names.
pub(crate) const INDEX_RUN: u32 = u32::MAX - 1;

/// The file of a partition that [`StoreError::Corrupt`] means by a segment.
pub(crate) fn file_of(segment: u32) -> String {
    match segment {
        DATA_FILE => "the data file".to_owned(),
        INDEX_RUN => "the index".to_owned(),
        segment => format!("log segment {segment}"),
    }
}

impl StoreError {
    /// Damage, with the object that it is in; other errors stay as they are.
    pub(crate) fn in_object(self, bucket: &str, key: &str) -> StoreError {
        match self {
            StoreError::Corrupt {
                what,
                segment,
                offset,
            } => StoreError::Corrupt {
                what: format!("{what} of the object {bucket}/{key}"),
                segment,
                offset,
            },
            other => other,
        }
    }

    pub(crate) fn internal(what: &str, error: &io::Error) -> StoreError {
        if is_full(error) {
            return StoreError::Full;
        }
        StoreError::Internal(format!("{what}: {error}"))
    }

    /// As [`StoreError::internal`], of a file that is being written: a write that ends early has met
    /// the end of the space.
    pub(crate) fn of_new_file(what: &str, error: &io::Error) -> StoreError {
        if error.kind() == io::ErrorKind::WriteZero {
            return StoreError::Full;
        }
        StoreError::internal(what, error)
    }
}

impl From<engine::NoMem> for StoreError {
    fn from(_: engine::NoMem) -> StoreError {
        StoreError::Busy
    }
}

impl From<Poisoned> for StoreError {
    fn from(Poisoned(cause): Poisoned) -> StoreError {
        StoreError::Poisoned(cause)
    }
}

impl From<FlushError> for StoreError {
    fn from(error: FlushError) -> StoreError {
        match error {
            FlushError::Busy => StoreError::Busy,
            FlushError::Poisoned(poisoned) => poisoned.into(),
        }
    }
}

impl From<LogError> for StoreError {
    fn from(error: LogError) -> StoreError {
        match error {
            LogError::Full { .. } => StoreError::Full,
            LogError::Busy => StoreError::Busy,
            LogError::Closed => StoreError::Gone,
            LogError::Poisoned { cause } => StoreError::Poisoned(cause),
            LogError::Corrupt {
                segment,
                offset,
                expected,
            } => StoreError::Corrupt {
                what: format!("the log ({expected})"),
                segment,
                offset,
            },
            other => StoreError::Internal(other.to_string()),
        }
    }
}
