//! Why volumes refuse or fail. One type for all operations; free to cross shards.

use std::io;

use segment_log::LogError;
use segment_log::durable::{FlushError, Poisoned, is_full};

use crate::types::{KeyId, VolumeId};

/// An operation's failure.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum VolumeError {
    /// There is no such volume here.
    #[error("the volume does not exist")]
    NoSuchVolume,
    /// There is no such snapshot here.
    #[error("the snapshot does not exist")]
    NoSuchSnapshot,
    /// The owner has a volume, or the volume a snapshot, of that name.
    #[error("the name {0} is taken")]
    NameTaken(String),
    /// A name, owner, size or limit is not allowed.
    #[error("{what} is not allowed: {allowed}")]
    Invalid {
        /// What was given.
        what: String,
        /// What would be accepted.
        allowed: &'static str,
    },
    /// The volume is attached; detach it first, or attach shared, read-only or by take-over.
    #[error("the volume is attached, in generation {0}")]
    Attached(u64),
    /// The volume still has snapshots; delete them first.
    #[error("the volume has {0} snapshots")]
    HasSnapshots(usize),
    /// The volume holds data behind the wanted end.
    #[error("the volume holds data up to byte {0}")]
    InUse(u64),
    /// The volume still needs its image; flatten it, or wait until it is filled.
    #[error("the volume is still being filled from its image: flatten it first, or wait")]
    Filling,
    /// The volume's image cannot be read now, or is not the one that it should be.
    #[error("{0}")]
    Image(String),
    /// A later attachment has taken the volume over.
    #[error("a later attachment has taken the volume over")]
    Fenced,
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
    #[error("{what}, at byte {offset}")]
    Corrupt {
        /// What is damaged.
        what: String,
        /// Byte offset in its file.
        offset: u64,
    },
    /// A block of a volume with checksums is not what was written. Writing the whole block heals it.
    #[error(
        "a block of volume {:#x} is not what was written: its checksum is {found:08x}, not {expected:08x}; \
         restore it at byte {offset}",
        volume.0
    )]
    Mismatch {
        /// The volume.
        volume: VolumeId,
        /// The block's first byte in the volume.
        offset: u64,
        /// The checksum of what was written.
        expected: u32,
        /// That of what is there.
        found: u32,
    },
    /// The checksum of a block is not there, so whether the block is what was written is not known.
    /// Writing the whole block heals it.
    #[error(
        "a block of volume {:#x} has lost its checksum, so what it holds is not to be relied on; \
         restore it at byte {offset}",
        volume.0
    )]
    NoChecksum {
        /// The volume.
        volume: VolumeId,
        /// The block's first byte in the volume.
        offset: u64,
    },
    /// The key of an encrypted volume cannot be had.
    #[error("key {} of an encrypted volume cannot be used: {why}", id.0)]
    Key {
        /// The key.
        id: KeyId,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The partition was closed, or is not on this shard.
    #[error("the partition is closed")]
    Gone,
    /// The machine failed in a way not named above.
    #[error("{0}")]
    Internal(String),
}

impl VolumeError {
    pub(crate) fn internal(what: &str, error: &io::Error) -> VolumeError {
        match error.kind() {
            io::ErrorKind::ResourceBusy => VolumeError::Busy,
            _ if is_full(error) => VolumeError::Full,
            _ => VolumeError::Internal(format!("{what}: {error}")),
        }
    }
}

impl From<engine::NoMem> for VolumeError {
    fn from(_: engine::NoMem) -> VolumeError {
        VolumeError::Busy
    }
}

impl From<engine::sync::QueueFull> for VolumeError {
    fn from(_: engine::sync::QueueFull) -> VolumeError {
        VolumeError::Busy
    }
}

impl From<Poisoned> for VolumeError {
    fn from(Poisoned(cause): Poisoned) -> VolumeError {
        VolumeError::Poisoned(cause)
    }
}

impl From<FlushError> for VolumeError {
    fn from(error: FlushError) -> VolumeError {
        match error {
            FlushError::Busy => VolumeError::Busy,
            FlushError::Poisoned(poisoned) => poisoned.into(),
        }
    }
}

impl From<LogError> for VolumeError {
    fn from(error: LogError) -> VolumeError {
        match error {
            LogError::Full { .. } => VolumeError::Full,
            LogError::Busy => VolumeError::Busy,
            LogError::Closed => VolumeError::Gone,
            LogError::Poisoned { cause } => VolumeError::Poisoned(cause),
            LogError::Corrupt {
                segment,
                offset,
                expected,
            } => VolumeError::Corrupt {
                what: format!("log segment {segment} is damaged (expected {expected})"),
                offset,
            },
            other => VolumeError::Internal(other.to_string()),
        }
    }
}
