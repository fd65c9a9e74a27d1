//! What is counted of volumes, as Prometheus reads it.

use std::fmt::Write as _;

use coronafs::VolumeId;
use engine::ShardId;
use serde_json::{Map, Value, json};
use shards::placement::PartitionId;
use vhost_blk::Stats;

/// One attachment's counters.
#[derive(Clone, Debug)]
pub struct ExportMetrics {
    /// The volume.
    pub volume: VolumeId,
    /// Names the attachment among the volume's.
    pub id: u64,
    /// Rings offered.
    pub queues: u16,
    /// Its generation.
    pub generation: u64,
    /// What it has done.
    pub stats: Stats,
}

/// One shard's counters.
#[derive(Clone, Debug)]
pub struct ShardMetrics {
    /// The shard.
    pub shard: ShardId,
    /// What it exports.
    pub exports: Vec<ExportMetrics>,
    /// Partitions that take no more writes, and why.
    pub poisoned: Vec<(PartitionId, String)>,
}

type Column = (&'static str, &'static str, fn(&Stats) -> u64);

const COLUMNS: [Column; 11] = [
    ("connections", "Front ends that connected.", |s| {
        s.connections
    }),
    (
        "refusals",
        "Messages of front ends that were refused.",
        |s| s.refusals,
    ),
    (
        "faults",
        "Rings given up because of what a guest wrote there.",
        |s| s.faults,
    ),
    ("requests", "Requests of guests.", |s| s.requests),
    ("resubmitted", "Requests done again after a restart.", |s| {
        s.resubmitted
    }),
    ("errors", "Requests that ended with an error.", |s| s.errors),
    ("read_bytes", "Bytes that guests read.", |s| s.read_bytes),
    ("written_bytes", "Bytes that guests wrote.", |s| {
        s.written_bytes
    }),
    ("kicks", "Times that guests woke a ring.", |s| s.kicks),
    ("calls", "Times that guests were called.", |s| s.calls),
    (
        "polled_nanoseconds",
        "Nanoseconds of looking at empty rings.",
        |s| s.polled_ns,
    ),
];

/// Prometheus text.
pub fn prometheus(shards: &[ShardMetrics]) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    for (name, help, value) in COLUMNS {
        let metric = format!("uc_volume_{name}_total");
        let _ = writeln!(text, "# HELP {metric} {help}\n# TYPE {metric} counter");
        for (shard, export) in exports(shards) {
            let (volume, id) = (export.volume.0, export.id);
            let labels = format!("shard=\"{shard}\",volume=\"{volume:016x}\",attachment=\"{id}\"");
            let _ = writeln!(text, "{metric}{{{labels}}} {}", value(&export.stats));
        }
    }
    let metric = "uc_volume_partitions_read_only";
    let help = "Partitions of volumes that take no writes since one failed.";
    let _ = writeln!(text, "# HELP {metric} {help}\n# TYPE {metric} gauge");
    for shard in shards {
        let (number, count) = (shard.shard.0, shard.poisoned.len());
        let _ = writeln!(text, "{metric}{{shard=\"{number}\"}} {count}");
    }
    text
}

fn exports(shards: &[ShardMetrics]) -> impl Iterator<Item = (u16, &ExportMetrics)> {
    let each = shards.iter();
    each.flat_map(|shard| {
        shard
            .exports
            .iter()
            .map(move |export| (shard.shard.0, export))
    })
}

/// The same for people: shards, what they export, and what is wrong.
pub fn debug(shards: &[ShardMetrics]) -> Value {
    let of_export = |export: &ExportMetrics| {
        let counts = COLUMNS.iter().map(|(name, _, value)| {
            let value = Value::from(value(&export.stats));
            ((*name).to_owned(), value)
        });
        json!({
            "volume": format!("{:016x}", export.volume.0),
            "attachment": export.id,
            "generation": export.generation,
            "queues": export.queues,
            "counts": counts.collect::<Map<String, Value>>(),
        })
    };
    let of_shard = |shard: &ShardMetrics| {
        let poisoned = shard
            .poisoned
            .iter()
            .map(|(partition, why)| json!({ "partition": partition.0, "why": why }));
        json!({
            "shard": shard.shard.0,
            "exports": shard.exports.iter().map(of_export).collect::<Vec<_>>(),
            "read_only_partitions": poisoned.collect::<Vec<_>>(),
        })
    };
    json!({ "shards": shards.iter().map(of_shard).collect::<Vec<_>>() })
}
