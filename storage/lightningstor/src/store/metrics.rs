//! What the store counts, per shard and summed by the reader.

use std::cell::Cell;
use std::fmt::Write;

/// Counters of one partition.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) puts: Cell<u64>,
    pub(super) gets: Cell<u64>,
    pub(super) deletes: Cell<u64>,
    pub(super) checkpoints: Cell<u64>,
    pub(super) index_merges: Cell<u64>,
    pub(super) corrupt_reads: Cell<u64>,
    pub(super) compacted_segments: Cell<u64>,
    pub(super) compacted_bytes: Cell<u64>,
    pub(super) discarded_bytes: Cell<u64>,
    pub(super) scrub_rounds: Cell<u64>,
    pub(super) scrub_objects: Cell<u64>,
    pub(super) scrub_bytes: Cell<u64>,
    pub(super) scrub_damaged: Cell<u64>,
    pub(super) scrub_left: Cell<u64>,
}

/// One shard's store, its partitions summed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoreMetrics {
    /// Objects.
    pub objects: u64,
    /// Bytes of their bodies.
    pub live_bytes: u64,
    /// Uploads in progress.
    pub uploads: u64,
    /// Log segments in use.
    pub log_segments: u64,
    /// Batches that the logs made durable; each cost one flush.
    pub log_batches: u64,
    /// Bytes of data files in use.
    pub data_used_bytes: u64,
    /// Bytes of data files that are free for bodies.
    pub data_free_bytes: u64,
    /// Objects written.
    pub puts: u64,
    /// Objects opened or looked at.
    pub gets: u64,
    /// Records that were found in memory.
    pub cache_hits: u64,
    /// Bytes of bodies in memory, and of what they cost beside.
    pub body_cache_bytes: u64,
    /// Chunks of bodies that were found in memory.
    pub body_cache_hits: u64,
    /// Bytes of those chunks.
    pub body_cache_hit_bytes: u64,
    /// Chunks of bodies that came into memory.
    pub body_cache_kept: u64,
    /// Chunks of bodies that left it for others.
    pub body_cache_evicted: u64,
    /// Chunks of bodies that were wanted there and found no room.
    pub body_cache_refused: u64,
    /// Removals, of keys without an object too.
    pub deletes: u64,
    /// Checkpoints written.
    pub checkpoints: u64,
    /// Runs of the indexes.
    pub index_runs: u64,
    /// Bytes of disk that the runs take.
    pub index_run_bytes: u64,
    /// Bytes of memory that the indexes take, about.
    pub index_memory_bytes: u64,
    /// Times that runs were merged.
    pub index_merges: u64,
    /// Blocks of runs that were found in memory.
    pub index_block_hits: u64,
    /// Blocks of runs that were read from the disk.
    pub index_block_reads: u64,
    /// Damaged blocks of runs that were mended from their copies.
    pub index_mended: u64,
    /// Reads that found damage.
    pub corrupt_reads: u64,
    /// Free bytes of data files that have no space of their own.
    pub data_hole_bytes: u64,
    /// Log segments whose live records were moved.
    pub compacted_segments: u64,
    /// Bytes of records that were moved out of log segments.
    pub compacted_bytes: u64,
    /// Bytes of data files given back to the file system.
    pub discarded_bytes: u64,
    /// Times that every object was verified.
    pub scrub_rounds: u64,
    /// Objects that scrub has verified.
    pub scrub_objects: u64,
    /// Bytes that scrub has verified.
    pub scrub_bytes: u64,
    /// Objects that scrub has found damaged.
    pub scrub_damaged: u64,
    /// Objects that scrub has still to verify in this round, about.
    pub scrub_left: u64,
    /// Partitions that take no more writes.
    pub poisoned: u64,
    /// Partitions that have refused something for want of space, and have none since.
    pub full: u64,
    /// Bytes that are held for the way out of a full disk.
    pub ballast_bytes: u64,
}

impl StoreMetrics {
    pub(super) fn add(&mut self, other: &StoreMetrics) {
        self.objects += other.objects;
        self.live_bytes += other.live_bytes;
        self.uploads += other.uploads;
        self.log_segments += other.log_segments;
        self.log_batches += other.log_batches;
        self.data_used_bytes += other.data_used_bytes;
        self.data_free_bytes += other.data_free_bytes;
        self.puts += other.puts;
        self.gets += other.gets;
        self.cache_hits += other.cache_hits;
        self.body_cache_bytes += other.body_cache_bytes;
        self.body_cache_hits += other.body_cache_hits;
        self.body_cache_hit_bytes += other.body_cache_hit_bytes;
        self.body_cache_kept += other.body_cache_kept;
        self.body_cache_evicted += other.body_cache_evicted;
        self.body_cache_refused += other.body_cache_refused;
        self.deletes += other.deletes;
        self.checkpoints += other.checkpoints;
        self.index_runs += other.index_runs;
        self.index_run_bytes += other.index_run_bytes;
        self.index_memory_bytes += other.index_memory_bytes;
        self.index_merges += other.index_merges;
        self.index_block_hits += other.index_block_hits;
        self.index_block_reads += other.index_block_reads;
        self.index_mended += other.index_mended;
        self.corrupt_reads += other.corrupt_reads;
        self.data_hole_bytes += other.data_hole_bytes;
        self.compacted_segments += other.compacted_segments;
        self.compacted_bytes += other.compacted_bytes;
        self.discarded_bytes += other.discarded_bytes;
        self.scrub_rounds += other.scrub_rounds;
        self.scrub_objects += other.scrub_objects;
        self.scrub_bytes += other.scrub_bytes;
        self.scrub_damaged += other.scrub_damaged;
        self.scrub_left += other.scrub_left;
        self.poisoned += other.poisoned;
        self.full += other.full;
        self.ballast_bytes += other.ballast_bytes;
    }
}

type Field = fn(&StoreMetrics) -> u64;

const FIELDS: [(&str, &str, &str, Field); 38] = [
    ("objects", "gauge", "Objects.", |m| m.objects),
    (
        "live_bytes",
        "gauge",
        "Bytes of the objects' bodies.",
        |m| m.live_bytes,
    ),
    ("uploads", "gauge", "Multipart uploads in progress.", |m| {
        m.uploads
    }),
    ("log_segments", "gauge", "Log segments in use.", |m| {
        m.log_segments
    }),
    (
        "log_batches_total",
        "counter",
        "Log batches made durable.",
        |m| m.log_batches,
    ),
    (
        "data_used_bytes",
        "gauge",
        "Bytes of data files in use.",
        |m| m.data_used_bytes,
    ),
    (
        "data_free_bytes",
        "gauge",
        "Bytes of data files free for bodies.",
        |m| m.data_free_bytes,
    ),
    ("puts_total", "counter", "Objects written.", |m| m.puts),
    (
        "gets_total",
        "counter",
        "Objects opened or looked at.",
        |m| m.gets,
    ),
    (
        "cache_hits_total",
        "counter",
        "Records found in memory.",
        |m| m.cache_hits,
    ),
    (
        "body_cache_bytes",
        "gauge",
        "Bytes that bodies in memory cost.",
        |m| m.body_cache_bytes,
    ),
    (
        "body_cache_hits_total",
        "counter",
        "Chunks of bodies found in memory.",
        |m| m.body_cache_hits,
    ),
    (
        "body_cache_hit_bytes_total",
        "counter",
        "Bytes of the chunks of bodies found in memory.",
        |m| m.body_cache_hit_bytes,
    ),
    (
        "body_cache_kept_total",
        "counter",
        "Chunks of bodies that came into memory.",
        |m| m.body_cache_kept,
    ),
    (
        "body_cache_evicted_total",
        "counter",
        "Chunks of bodies that left memory for others.",
        |m| m.body_cache_evicted,
    ),
    (
        "body_cache_refused_total",
        "counter",
        "Chunks of bodies that found no room in memory.",
        |m| m.body_cache_refused,
    ),
    ("deletes_total", "counter", "Removals of keys.", |m| {
        m.deletes
    }),
    (
        "checkpoints_total",
        "counter",
        "Checkpoints written.",
        |m| m.checkpoints,
    ),
    ("index_runs", "gauge", "Runs of the indexes.", |m| {
        m.index_runs
    }),
    (
        "index_run_bytes",
        "gauge",
        "Bytes of disk that the runs of the indexes take.",
        |m| m.index_run_bytes,
    ),
    (
        "index_memory_bytes",
        "gauge",
        "Bytes of memory that the indexes take, about.",
        |m| m.index_memory_bytes,
    ),
    (
        "index_merges_total",
        "counter",
        "Times that runs of an index were merged.",
        |m| m.index_merges,
    ),
    (
        "index_block_hits_total",
        "counter",
        "Blocks of index runs that were found in memory.",
        |m| m.index_block_hits,
    ),
    (
        "index_block_reads_total",
        "counter",
        "Blocks of index runs that were read from the disk.",
        |m| m.index_block_reads,
    ),
    (
        "index_mended_total",
        "counter",
        "Damaged blocks of index runs that were mended from their copies.",
        |m| m.index_mended,
    ),
    (
        "corrupt_reads_total",
        "counter",
        "Reads that found damage.",
        |m| m.corrupt_reads,
    ),
    (
        "data_hole_bytes",
        "gauge",
        "Free bytes of data files that have no space of their own.",
        |m| m.data_hole_bytes,
    ),
    (
        "compacted_segments_total",
        "counter",
        "Log segments whose live records were moved.",
        |m| m.compacted_segments,
    ),
    (
        "compacted_bytes_total",
        "counter",
        "Bytes of records that were moved out of log segments.",
        |m| m.compacted_bytes,
    ),
    (
        "discarded_bytes_total",
        "counter",
        "Bytes of data files given back to the file system.",
        |m| m.discarded_bytes,
    ),
    (
        "scrub_rounds_total",
        "counter",
        "Times that every object was verified.",
        |m| m.scrub_rounds,
    ),
    (
        "scrub_objects_total",
        "counter",
        "Objects that scrub has verified.",
        |m| m.scrub_objects,
    ),
    (
        "scrub_bytes_total",
        "counter",
        "Bytes that scrub has verified.",
        |m| m.scrub_bytes,
    ),
    (
        "scrub_damaged_total",
        "counter",
        "Objects that scrub has found damaged.",
        |m| m.scrub_damaged,
    ),
    (
        "scrub_left",
        "gauge",
        "Objects that scrub has still to verify in this round, about.",
        |m| m.scrub_left,
    ),
    (
        "poisoned",
        "gauge",
        "Partitions that take no more writes.",
        |m| m.poisoned,
    ),
    (
        "full",
        "gauge",
        "Partitions that have refused something for want of space and have none since.",
        |m| m.full,
    ),
    (
        "ballast_bytes",
        "gauge",
        "Bytes held for the way out of a full disk.",
        |m| m.ballast_bytes,
    ),
];

/// Prometheus text of (shard, metrics).
pub fn prometheus(text: &mut String, shards: &[(u16, StoreMetrics)]) {
    for (name, kind, help, field) in FIELDS {
        let _ = writeln!(text, "# HELP uc_lightningstor_{name} {help}");
        let _ = writeln!(text, "# TYPE uc_lightningstor_{name} {kind}");
        for (shard, metrics) in shards {
            let value = field(metrics);
            let _ = writeln!(text, "uc_lightningstor_{name}{{shard=\"{shard}\"}} {value}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_has_help_a_type_and_a_value_for_each_shard() {
        let mut text = String::new();
        let one = StoreMetrics {
            objects: 7,
            ..StoreMetrics::default()
        };
        prometheus(&mut text, &[(0, one), (1, StoreMetrics::default())]);
        assert!(text.contains("uc_lightningstor_objects{shard=\"0\"} 7\n"));
        assert_eq!(text.lines().count(), FIELDS.len() * 4);
    }
}
