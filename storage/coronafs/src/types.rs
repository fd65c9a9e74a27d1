//! What callers see of volumes and snapshots.

use crate::error::VolumeError;
use crate::image::ImageState;

/// A volume's number, never used again. Its upper 16 bits are its partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VolumeId(pub u64);

/// A snapshot's number, of the same kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SnapshotId(pub u64);

/// A volume's key, which its snapshots and their clones have too; a number of the same kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(pub u64);

/// Largest volume: 2 PiB.
pub const VOLUME_BYTES_MAX: u64 = 2 << 50;
/// What a volume's size is a multiple of.
pub const VOLUME_BYTES_UNIT: u64 = 4 << 10;
/// Most bytes of a name, and of an owner.
pub const NAME_BYTES_MAX: usize = 128;
/// Longest burst that limits may allow, in milliseconds.
pub const BURST_MS_MAX: u32 = 60_000;

/// Shares of a volume that was given none.
pub const SHARES_DEFAULT: u32 = 100;
/// Most shares of a volume.
pub const SHARES_MAX: u32 = 10_000;

/// What a volume may do in a second, where 0 is no limit, and its part of a disk that others keep busy, too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Operations a second.
    pub ops_per_s: u64,
    /// Bytes a second, read and written together.
    pub bytes_per_s: u64,
    /// How much of it, as time, a volume at rest may use at once.
    pub burst_ms: u32,
    /// While several volumes of the partition keep the disk busy, each gets of it in proportion to this; 0 is
    /// [`SHARES_DEFAULT`].
    pub shares: u32,
}

/// A volume to make.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewVolume {
    /// Whose it is.
    pub owner: String,
    /// Its name among its owner's.
    pub name: String,
    /// Its size, a multiple of [`VOLUME_BYTES_UNIT`].
    pub bytes: u64,
    /// Whether its blocks are encrypted on disk, by a key of its own.
    pub encrypted: bool,
    /// Whether each of its blocks has a checksum that every read verifies. Its snapshots and their clones
    /// have them too.
    pub checksums: bool,
}

/// A volume to make from a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewClone {
    /// What it holds at first.
    pub snapshot: SnapshotId,
    /// Whose it is.
    pub owner: String,
    /// Its name among its owner's.
    pub name: String,
}

/// What is known of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeInfo {
    /// Its number.
    pub id: VolumeId,
    /// Whose it is.
    pub owner: String,
    /// Its name.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// When it was made, in milliseconds since the Unix epoch.
    pub created_ms: u64,
    /// The snapshot that it was cloned from; that one may be gone.
    pub origin: Option<SnapshotId>,
    /// The key that it is encrypted with, when it is.
    pub key: Option<KeyId>,
    /// Whether its blocks have checksums.
    pub checksums: bool,
    /// The newest attachment's number.
    pub generation: u64,
    /// Attachments that are not fenced.
    pub attached: usize,
    /// Its limits.
    pub limits: Limits,
    /// Bytes that hold data, in blocks of 4 KiB, what it shares with others included.
    pub mapped_bytes: u64,
    /// Its snapshots.
    pub snapshots: usize,
    /// The image that it was made from, when it was.
    pub image: Option<ImageState>,
}

/// What a partition that was opened has of its life before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Survived {
    /// All: it was closed, or is new.
    Closed,
    /// All that was acknowledged: the process ended, not the machine.
    Acknowledged,
    /// All that was flushed, and why it may not be all that was acknowledged.
    Flushed(&'static str),
}

/// Why a partition has only what was flushed when no guest of before can be alive.
pub(crate) const MACHINE_RESTARTED: &str = "the machine was restarted";

impl Survived {
    /// Why a guest that was at work before must not go on: it would flush, and be told that all is durable,
    /// what is not there any more. `None` when it may, or when it cannot be alive.
    pub fn lost(self) -> Option<&'static str> {
        match self {
            Survived::Closed | Survived::Acknowledged | Survived::Flushed(MACHINE_RESTARTED) => {
                None
            }
            Survived::Flushed(why) => Some(why),
        }
    }
}

/// What is known of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// Its number.
    pub id: SnapshotId,
    /// Whose state it holds.
    pub volume: VolumeId,
    /// Its name among the volume's.
    pub name: String,
    /// The volume's size then.
    pub bytes: u64,
    /// When it was made, in milliseconds since the Unix epoch.
    pub created_ms: u64,
    /// Bytes that hold data, in blocks of 4 KiB.
    pub mapped_bytes: u64,
}

/// A range of a volume that differs between two states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Changed {
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub bytes: u64,
    /// Whether the newer state has no data there: it reads as zeros.
    pub zero: bool,
}

/// # Errors
/// `Invalid`.
pub(crate) fn check_owner(owner: &str) -> Result<(), VolumeError> {
    // The identity of a user may be an address of mail.
    check_text(
        "owner",
        owner,
        "._-@",
        "1 to 128 of A-Z, a-z, 0-9, '.', '_', '-' and '@'",
    )
}

/// # Errors
/// `Invalid`.
pub(crate) fn check_name(kind: &str, name: &str) -> Result<(), VolumeError> {
    check_text(
        kind,
        name,
        "._-",
        "1 to 128 of A-Z, a-z, 0-9, '.', '_' and '-'",
    )
}

fn check_text(
    kind: &str,
    name: &str,
    signs: &str,
    allowed: &'static str,
) -> Result<(), VolumeError> {
    let fine = |c: char| c.is_ascii_alphanumeric() || signs.contains(c);
    if !name.is_empty() && name.len() <= NAME_BYTES_MAX && name.chars().all(fine) {
        return Ok(());
    }
    Err(VolumeError::Invalid {
        what: format!("the {kind} {name:?}"),
        allowed,
    })
}

/// # Errors
/// `Invalid`.
pub(crate) fn check_size(bytes: u64) -> Result<(), VolumeError> {
    if (1..=VOLUME_BYTES_MAX).contains(&bytes) && bytes.is_multiple_of(VOLUME_BYTES_UNIT) {
        return Ok(());
    }
    Err(VolumeError::Invalid {
        what: format!("a volume of {bytes} bytes"),
        allowed: "a multiple of 4 KiB, from 4 KiB to 2 PiB",
    })
}

/// # Errors
/// `Invalid`.
pub(crate) fn check_limits(limits: Limits) -> Result<(), VolumeError> {
    if limits.burst_ms > BURST_MS_MAX {
        return Err(VolumeError::Invalid {
            what: format!("a burst of {} ms", limits.burst_ms),
            allowed: "at most 60,000 ms",
        });
    }
    if limits.shares > SHARES_MAX {
        return Err(VolumeError::Invalid {
            what: format!("{} shares", limits.shares),
            allowed: "at most 10,000",
        });
    }
    Ok(())
}
