//! The store core: objects, uploads and buckets of the partitions that a shard owns.
//!
//! A partition is a directory with a log (`log/*.seg`), a data file (`data`) and checkpoints
//! (`checkpoint-*`). Bodies up to 64 KiB lie in their log record, larger ones in extents of the data
//! file, with a CRC-64/NVME for each 64 KiB. The ordered index is in memory and derived from the
//! newest checkpoint and the log behind it.
//!
//! Everything here runs on the shard that owns the partition; the front routes to it. Layers, from
//! the bottom: `meta`, `record` (forms), `extent`, `space`, `index`, `cache`, `checkpoint`
//! (state, sans-IO), `data`, `body_cache` and the log (I/O), `partition` with `write`, `read`, `fetch`,
//! `piece`, `parts`, `multipart` (operations), `buckets` and `image` (across shards), `upkeep` with
//! `compact` and `scrub` (background work).

mod ballast;
mod body_cache;
mod buckets;
mod cache;
mod checkpoint;
mod compact;
mod config;
mod data;
mod error;
mod extent;
mod fetch;
#[cfg(fuzzing)]
pub mod fuzzing;
mod image;
mod index;
mod locks;
mod merge;
mod meta;
mod metrics;
mod multipart;
mod partition;
mod parts;
mod piece;
mod read;
mod record;
mod recovery;
mod run;
mod runs;
mod scan;
mod scrub;
mod second_chance;
mod space;
#[cfg(test)]
mod tests;
mod types;
mod upkeep;
mod write;

use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;

use engine::BLOCK;
use engine::sync::Semaphore;
use segment_log::bytes;
use shards::placement::{PartitionId, PlacementMap};

use self::body_cache::BodyCache;
pub use body_cache::BODY_COST_MIN;
pub use buckets::{BucketTable, Groups};
pub use config::{StoreConfig, UpkeepConfig};
pub use error::StoreError;
pub use image::{Image, ImageExtent, ImagePlace, Images};
pub use metrics::{StoreMetrics, prometheus};
pub use partition::Partition;
pub use types::*;
pub use write::WRITE_BYTES_MAX;

/// Changes of the bucket table that may wait for their turn.
const TABLE_WAITERS_MAX: usize = 1024;

/// The partitions of one shard, and its mirror of the buckets.
pub struct StoreShard {
    partitions: BTreeMap<PartitionId, Rc<Partition>>,
    bodies: Rc<BodyCache>,
    table: Rc<BucketTable>,
    table_turn: Semaphore,
}

impl std::fmt::Debug for StoreShard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StoreShard")
            .field("partitions", &self.partitions.len())
            .finish_non_exhaustive()
    }
}

impl StoreShard {
    /// Recovers all partitions that the map places on this shard. [`StoreShard::load_buckets`] comes
    /// next, when every shard's store is open.
    ///
    /// # Errors
    /// `Corrupt` when something durable is damaged or missing, `Full`, `Internal`.
    pub async fn open(
        root: &Path,
        config: &StoreConfig,
        map: &PlacementMap,
    ) -> Result<Rc<StoreShard>, StoreError> {
        let table = Rc::new(BucketTable::default());
        let mut partitions = BTreeMap::new();
        for id in map.owned_by(engine::shard_id()) {
            let partition = Partition::open(root, id, config, &table).await?;
            partitions.insert(id, Rc::new(partition));
        }
        let bodies = Rc::new(BodyCache::new(config.body_cache_bytes_max));
        for partition in partitions.values() {
            partition.cache_records(config.cache_bytes_max / partitions.len());
            partition.cache_index(config.index_cache_bytes_max / partitions.len());
            partition.cache_bodies(&bodies);
        }
        let store = StoreShard {
            partitions,
            bodies,
            table,
            table_turn: Semaphore::new(1, TABLE_WAITERS_MAX),
        };
        store.show_buckets();
        Ok(Rc::new(store))
    }

    /// A partition of this shard.
    ///
    /// # Errors
    /// `Gone` when it is elsewhere.
    pub fn partition(&self, id: PartitionId) -> Result<Rc<Partition>, StoreError> {
        self.partitions.get(&id).cloned().ok_or(StoreError::Gone)
    }

    /// The buckets.
    pub fn buckets(&self) -> &BucketTable {
        &self.table
    }

    /// Refuses new writes, waits for those in progress, writes checkpoints and closes the logs.
    ///
    /// # Errors
    /// The first partition's that failed; the others are closed all the same.
    pub async fn close(&self) -> Result<(), StoreError> {
        let mut outcome = Ok(());
        for partition in self.partitions.values() {
            let closed = partition.close().await;
            outcome = outcome.and(closed);
        }
        outcome
    }

    /// Counters of all partitions of this shard.
    pub fn metrics(&self) -> StoreMetrics {
        let mut sum = StoreMetrics::default();
        for partition in self.partitions.values() {
            sum.add(&partition.metrics());
        }
        self.bodies.count_into(&mut sum);
        sum
    }

    /// Partitions that take no more writes, and why.
    pub fn poisoned(&self) -> Vec<(PartitionId, String)> {
        let partitions = self.partitions.iter();
        partitions
            .filter_map(|(id, partition)| Some((*id, partition.poisoned()?)))
            .collect()
    }
}

impl Partition {
    /// Why this partition takes no more writes.
    pub fn poisoned(&self) -> Option<String> {
        let log = || self.inner.log.poisoned();
        self.inner.poison.cause().or_else(log)
    }

    /// Counters of this partition.
    pub fn metrics(&self) -> StoreMetrics {
        let inner = &self.inner;
        let (objects, live_bytes) = inner.index.borrow().totals();
        let runs = inner.runs.list();
        let (block_hits, block_reads) = inner.runs.cache.counts();
        let space = inner.data.space().borrow();
        let free = space.allocator.free_blocks();
        let bytes = |blocks: u64| blocks * BLOCK as u64;
        StoreMetrics {
            objects,
            live_bytes,
            uploads: inner.index.borrow().upload_count() as u64,
            log_segments: inner.log.segments().len() as u64,
            log_batches: inner.log.metrics().batches,
            data_used_bytes: bytes(u64::from(space.allocator.blocks()) - free),
            data_free_bytes: bytes(free),
            puts: inner.counters.puts.get(),
            gets: inner.counters.gets.get(),
            cache_hits: inner.cache.hits(),
            deletes: inner.counters.deletes.get(),
            checkpoints: inner.counters.checkpoints.get(),
            index_runs: runs.len() as u64,
            index_run_bytes: runs.iter().map(|run| run.disk_bytes()).sum(),
            index_memory_bytes: inner.index_memory_bytes() as u64,
            index_merges: inner.counters.index_merges.get(),
            index_block_hits: block_hits,
            index_block_reads: block_reads,
            index_mended: runs.iter().map(|run| run.mended()).sum(),
            corrupt_reads: inner.counters.corrupt_reads.get(),
            data_hole_bytes: bytes(space.hole_blocks()),
            compacted_segments: inner.counters.compacted_segments.get(),
            compacted_bytes: inner.counters.compacted_bytes.get(),
            discarded_bytes: inner.counters.discarded_bytes.get(),
            scrub_rounds: inner.counters.scrub_rounds.get(),
            scrub_objects: inner.counters.scrub_objects.get(),
            scrub_bytes: inner.counters.scrub_bytes.get(),
            scrub_damaged: inner.counters.scrub_damaged.get(),
            scrub_left: inner.counters.scrub_left.get(),
            poisoned: u64::from(self.poisoned().is_some()),
            full: u64::from(inner.data.pressed.get()),
            ballast_bytes: inner.data.ballast.bytes(),
            ..StoreMetrics::default()
        }
    }
}
