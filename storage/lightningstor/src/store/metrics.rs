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
    pub(super) corrupt_reads: Cell<u64>,
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
    /// Removals, of keys without an object too.
    pub deletes: u64,
    /// Checkpoints written.
    pub checkpoints: u64,
    /// Reads that found damage.
    pub corrupt_reads: u64,
    /// Partitions that take no more writes.
    pub poisoned: u64,
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
        self.deletes += other.deletes;
        self.checkpoints += other.checkpoints;
        self.corrupt_reads += other.corrupt_reads;
        self.poisoned += other.poisoned;
    }
}

type Field = fn(&StoreMetrics) -> u64;

const FIELDS: [(&str, &str, &str, Field); 13] = [
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
    ("deletes_total", "counter", "Removals of keys.", |m| {
        m.deletes
    }),
    (
        "checkpoints_total",
        "counter",
        "Checkpoints written.",
        |m| m.checkpoints,
    ),
    (
        "corrupt_reads_total",
        "counter",
        "Reads that found damage.",
        |m| m.corrupt_reads,
    ),
    (
        "poisoned",
        "gauge",
        "Partitions that take no more writes.",
        |m| m.poisoned,
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
