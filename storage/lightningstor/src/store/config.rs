//! Sizes and bounds of the store. The defaults suit one node; tests make them small.

use segment_log::LogConfig;

/// How partitions are run.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// The log of each partition.
    pub log: LogConfig,
    /// Bytes by which a data file grows, at least 4 KiB.
    pub data_grow_bytes: u64,
    /// Bytes of log after which a checkpoint is written.
    pub checkpoint_log_bytes: u64,
    /// Most CRCs of a body that lie in its record; more go into the data file.
    pub crcs_inline_max: usize,
    /// Smallest part that is not the last of its upload, in bytes.
    pub part_bytes_min: u64,
    /// Most commits of a partition in progress.
    pub commits_max: usize,
    /// Most keys of a partition that are being written at the same time.
    pub keys_max: usize,
    /// Most writers that wait for one key.
    pub key_waiters_max: usize,
    /// Most streamed bodies of a partition that are being written.
    pub writes_max: usize,
    /// Most objects of a partition that are being read in chunks.
    pub reads_max: usize,
    /// Most buckets.
    pub buckets_max: usize,
}

impl Default for StoreConfig {
    fn default() -> StoreConfig {
        StoreConfig {
            log: LogConfig::default(),
            data_grow_bytes: 64 << 20,
            checkpoint_log_bytes: 64 << 20,
            crcs_inline_max: 4096,
            part_bytes_min: 5 << 20,
            commits_max: 8192,
            keys_max: 8192,
            key_waiters_max: 256,
            writes_max: 1024,
            reads_max: 4096,
            buckets_max: 10_000,
        }
    }
}
