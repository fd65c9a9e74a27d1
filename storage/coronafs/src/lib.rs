//! CoronaFS: VM volumes on pinned shards.
//!
//! A partition is a directory of one shard with a log (`log/*.seg`), a data file (`data`) and
//! checkpoints (`checkpoint-*`), and memory that keeps what is not flushed when the process is killed
//! (`unflushed`). A volume is a map from its clusters of 64 KiB to clusters of the data
//! file, with a mask of valid 4 KiB blocks; snapshots and clones share maps and clusters until somebody
//! writes. `docs/coronafs.md` says what is on disk, in which order, and why a crash does no harm.
//!
//! Invariants:
//! - What was acknowledged is there after the process was killed. What was written before a flush is
//!   there after any crash, once the flush has returned; what was not flushed may be lost when the
//!   machine goes down, block by block, and is never torn inside of 512 bytes.
//! - A volume never shows bytes of another, nor of what it has freed: a block is mapped after its data
//!   is written, durably mapped after its data is durable, and a cluster is used again only when no
//!   durable map and no operation in progress refers to it.
//! - A write of an attachment that was fenced has ended, or is refused, before the next one begins.
//!
//! Layers, from the bottom: `map`, `space`, `record`, `state`, `throttle`, `shares`, `gate`, `checkpoint`
//! (sans-IO), `unflushed` (memory), `keys`, `sums`, `data` and the log (I/O), `volume`, `partition`, `recovery`,
//! `shard`, `ops` (volumes as such), `image` (volumes that are filled from images), `attach`, `transfer`, `runs`,
//! `joint` and `summed` (a volume as a block device), `scrub`. It knows no protocol: front ends see
//! [`shards::block::BlockDevice`].
#![forbid(unsafe_code)]

mod attach;
mod checkpoint;
mod config;
mod data;
mod error;
#[cfg(fuzzing)]
pub mod fuzzing;
mod gate;
mod image;
mod joint;
mod keys;
mod map;
mod ops;
mod partition;
mod record;
mod recovery;
mod runs;
mod scrub;
mod shard;
mod shares;
mod space;
mod state;
mod summed;
mod sums;
mod throttle;
mod transfer;
mod types;
mod unflushed;
mod volume;

#[cfg(test)]
mod tests;

pub use attach::{Access, Attach, Attachment};
pub use config::VolumeConfig;
pub use error::VolumeError;
pub use image::{
    IMAGE_CHUNK_BYTES_MAX, IMAGE_IDENTITY_BYTES_MAX, ImageDigest, ImageError, ImagePhase, ImageRef,
    ImageResolver, ImageSource, ImageState,
};
pub use keys::MasterKey;
pub use ops::{CHANGED_MAX, PointInTime};
pub use partition::Partition;
pub use scrub::{DamagedBlock, ScrubStatus, Scrubbed};
pub use shard::{VolumeShard, partition_for};
pub use types::*;
