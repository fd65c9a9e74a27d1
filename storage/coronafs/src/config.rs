//! Sizes and bounds of a partition of volumes. The defaults suit one node; tests make them small.

use segment_log::LogConfig;

use crate::keys::MasterKey;

/// How partitions are run.
#[derive(Clone, Debug)]
pub struct VolumeConfig {
    /// The log of each partition.
    pub log: LogConfig,
    /// Bytes by which a data file grows, at least 64 KiB.
    pub data_grow_bytes: u64,
    /// Free bytes of the data file whose space is kept for what is written next; that of more free
    /// clusters is given back to the file system, in pieces of at least 1 MiB.
    pub data_slack_bytes: u64,
    /// Bytes of log after which a checkpoint is written; a checkpoint that is longer than this waits
    /// for as many bytes as it has. One that failed is tried again after an eighth of these.
    pub checkpoint_log_bytes: u64,
    /// Changed clusters of a volume, or those that it gave up, not durable yet, past which its writes
    /// make them durable first.
    pub dirty_slots_max: usize,
    /// Bytes of the memory that keeps unflushed changes when the process is killed; a changed cluster
    /// takes about 31, in either half. When a half is full, all volumes' changes are made durable.
    pub unflushed_bytes: u64,
    /// What wraps the keys of encrypted volumes; without it there are none.
    pub master_key: Option<MasterKey>,
    /// Bytes a second that are fetched in the background, for all volumes of a partition that are filled
    /// from images; 0 is no limit. What is read, and a flatten, is not held back by it.
    pub image_bytes_per_s: u64,
    /// Bytes in which images are fetched for new volumes: a multiple of 64 KiB up to 16 MiB.
    pub image_chunk_bytes: u32,
    /// Pieces of a cluster past which a write moves the cluster together.
    pub pieces_max: usize,
    /// Transfers of an encrypted volume of at least so many bytes go together with those beside them. One that
    /// is shorter is done at once, as waiting for others costs more than it saves.
    pub joined_bytes_min: u64,
    /// Bytes of memory for checksums of blocks: those of about 900 times as many bytes of volumes. Reads of
    /// others read 4 KiB of checksums beside.
    pub checksum_cache_bytes: u64,
    /// Bytes a second that are read in the background to find blocks that are not what was written, of
    /// volumes that have checksums; 0 is none.
    pub scrub_bytes_per_s: u64,
    /// Most volumes of a partition.
    pub volumes_max: usize,
    /// Most snapshots of a partition.
    pub snapshots_max: usize,
}

impl Default for VolumeConfig {
    fn default() -> VolumeConfig {
        VolumeConfig {
            log: LogConfig {
                reserve_segments: 1,
                ..LogConfig::default()
            },
            data_grow_bytes: 64 << 20,
            data_slack_bytes: 256 << 20,
            checkpoint_log_bytes: 64 << 20,
            dirty_slots_max: 8192,
            unflushed_bytes: 2 << 20,
            master_key: None,
            image_bytes_per_s: 100 << 20,
            image_chunk_bytes: 1 << 20,
            pieces_max: 4,
            joined_bytes_min: 32 << 10,
            checksum_cache_bytes: 8 << 20,
            scrub_bytes_per_s: 0,
            volumes_max: 10_000,
            snapshots_max: 100_000,
        }
    }
}
