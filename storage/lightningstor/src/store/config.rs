//! Sizes and bounds of the store. The defaults suit one node; tests make them small.

use std::time::Duration;

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
    /// Bytes of memory that objects changed since the newest run may take, about, before a
    /// checkpoint writes the next.
    pub memtable_bytes_max: usize,
    /// Bytes of memory of a memtable below which a checkpoint holds it itself and no run is made.
    pub run_memtable_bytes_min: usize,
    /// Runs of one level that are merged into one of the next.
    pub runs_per_level: usize,
    /// Bytes of index blocks that a shard keeps in memory, over its partitions; 0 keeps none.
    pub index_cache_bytes_max: usize,
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
    /// Most images of a partition that are open.
    pub images_max: usize,
    /// Most buckets.
    pub buckets_max: usize,
    /// Bytes of lately read records that a shard keeps in memory, over its partitions; 0 keeps none.
    pub cache_bytes_max: usize,
    /// Bytes of lately read bodies past 64 KiB that a shard keeps in memory; 0 keeps none. It fills
    /// only with what is read again.
    pub body_cache_bytes_max: u64,
    /// What is done in the background, and when.
    pub upkeep: UpkeepConfig,
}

/// The background work of a partition.
#[derive(Clone, Debug)]
pub struct UpkeepConfig {
    /// How often it is looked for; `None` never.
    pub interval: Option<Duration>,
    /// A sealed log segment is compacted when less of it is live, in percent.
    pub live_percent: u64,
    /// The same on a full disk.
    pub live_percent_pressed: u64,
    /// The same once nothing was written for `quiet_after`.
    pub live_percent_quiet: u64,
    /// How long nothing is written before the partition counts as quiet.
    pub quiet_after: Duration,
    /// Bytes of a segment that are read and moved at a time.
    pub step_bytes: u64,
    /// Records that are moved at the same time.
    pub moves_max: usize,
    /// Shortest free range of the data file that is given back, in bytes.
    pub discard_bytes_min: u64,
    /// How often every object is read and verified; `None` never.
    pub scrub_period: Option<Duration>,
    /// Bytes of bodies that a partition's scrub reads in a second, at most.
    pub scrub_bytes_per_s: u64,
}

impl Default for UpkeepConfig {
    fn default() -> UpkeepConfig {
        UpkeepConfig {
            interval: Some(Duration::from_secs(1)),
            live_percent: 50,
            live_percent_pressed: 75,
            live_percent_quiet: 92,
            quiet_after: Duration::from_mins(1),
            step_bytes: 256 << 10,
            moves_max: 256,
            discard_bytes_min: 1 << 20,
            scrub_period: Some(Duration::from_hours(7 * 24)),
            scrub_bytes_per_s: 16 << 20,
        }
    }
}

impl Default for StoreConfig {
    fn default() -> StoreConfig {
        StoreConfig {
            log: LogConfig {
                reserve_segments: 1,
                ..LogConfig::default()
            },
            data_grow_bytes: 64 << 20,
            checkpoint_log_bytes: 64 << 20,
            memtable_bytes_max: 32 << 20,
            run_memtable_bytes_min: 2 << 20,
            runs_per_level: 4,
            index_cache_bytes_max: 32 << 20,
            crcs_inline_max: 4096,
            part_bytes_min: 5 << 20,
            commits_max: 8192,
            keys_max: 8192,
            key_waiters_max: 256,
            writes_max: 1024,
            reads_max: 4096,
            images_max: 256,
            buckets_max: 10_000,
            cache_bytes_max: 32 << 20,
            body_cache_bytes_max: 256 << 20,
            upkeep: UpkeepConfig::default(),
        }
    }
}
