//! What is counted of volumes, as Prometheus reads it.

use std::fmt::Write as _;

use coronafs::{ScrubStatus, VolumeId};
use engine::ShardId;
use nbd_export::{LinkState, RemoteStats};
use serde_json::{Map, Value, json};
use shards::placement::PartitionId;
use vhost_blk::{LATENCY_BUCKETS, Latency, LatencyByKind, QUEUES_MAX};

/// What an export over vhost-user has done.
#[derive(Clone, Copy, Debug)]
pub struct Vhost {
    /// Its counters.
    pub stats: vhost_blk::Stats,
    /// How long its requests took.
    pub latencies: LatencyByKind,
    /// Rings offered.
    pub queues: u16,
    /// Requests in progress, by ring.
    pub depths: [u64; QUEUES_MAX as usize],
}

/// What an export has done.
#[derive(Clone, Debug)]
pub enum Counts {
    /// Over vhost-user.
    Vhost(Box<Vhost>),
    /// Over NBD.
    Nbd(nbd_export::Stats),
}

/// What is exported.
#[derive(Clone, Debug)]
pub enum Source {
    /// A volume of the shard's.
    Volume {
        /// The volume.
        volume: VolumeId,
        /// Names the attachment among the volume's.
        id: u64,
        /// Its generation.
        generation: u64,
    },
    /// Another node's, by its name here.
    Remote(String),
}

/// The connection of a remote volume.
#[derive(Clone, Debug)]
pub struct RemoteMetrics {
    /// The volume's name here.
    pub name: String,
    /// How it fares.
    pub state: LinkState,
    /// What it has done.
    pub stats: RemoteStats,
}

/// One attachment's counters.
#[derive(Clone, Debug)]
pub struct ExportMetrics {
    /// What it exports.
    pub source: Source,
    /// What it has done.
    pub counts: Counts,
}

/// One shard's counters.
#[derive(Clone, Debug)]
pub struct ShardMetrics {
    /// The shard.
    pub shard: ShardId,
    /// What it exports.
    pub exports: Vec<ExportMetrics>,
    /// Connections to volumes of other nodes.
    pub remotes: Vec<RemoteMetrics>,
    /// Partitions that take no more writes, and why.
    pub poisoned: Vec<(PartitionId, String)>,
    /// Its partitions.
    pub partitions: Vec<PartitionMetrics>,
}

/// What is counted of a partition.
#[derive(Clone, Debug)]
pub struct PartitionMetrics {
    /// Its number.
    pub id: PartitionId,
    /// Transfers that went through a buffer.
    pub bounces: u64,
    /// Those of them that shared it.
    pub joined_bounces: u64,
    /// Requests that waited for their volume's share of the disk.
    pub share_waits: u64,
    /// Pages of checksums that were in memory, and that were read.
    pub checksum_pages: (u64, u64),
    /// What scrubs and reads have found.
    pub scrub: ScrubStatus,
}

/// A counter of partitions: its name, what it counts, its value.
type PartitionColumn = (&'static str, &'static str, fn(&PartitionMetrics) -> u64);

const PARTITION_COLUMNS: [PartitionColumn; 9] = [
    (
        "bounces",
        "Transfers that went through a buffer: of memory that was not aligned, or encrypted.",
        |of| of.bounces,
    ),
    (
        "joined_bounces",
        "Transfers that went through a buffer together with others beside them, in one operation.",
        |of| of.joined_bounces,
    ),
    (
        "share_waits",
        "Requests that waited for their volume's share of a busy disk.",
        |of| of.share_waits,
    ),
    (
        "checksum_page_hits",
        "Pages of checksums that were in memory when they were wanted.",
        |of| of.checksum_pages.0,
    ),
    (
        "checksum_page_reads",
        "Pages of checksums that were read from the disk.",
        |of| of.checksum_pages.1,
    ),
    (
        "scrub_passes",
        "Scrubs of all volumes that have ended.",
        |of| of.scrub.passes,
    ),
    (
        "scrubbed_bytes",
        "Bytes compared with their checksums by scrubs.",
        |of| of.scrub.bytes,
    ),
    (
        "scrub_damaged_blocks",
        "Blocks that scrubs found damaged, each in each pass.",
        |of| of.scrub.errors,
    ),
    (
        "read_damaged_blocks",
        "Blocks that reads found damaged, each time.",
        |of| of.scrub.read_errors,
    ),
];

/// A counter's name, what it counts, and its value where there is one.
type Column = (&'static str, &'static str, fn(&Counts) -> Option<u64>);

/// A column of one kind of export, or of both.
macro_rules! column {
    ($name:ident, $help:literal) => {
        (stringify!($name), $help, |counts| match counts {
            Counts::Vhost(vhost) => Some(vhost.stats.$name),
            Counts::Nbd(stats) => Some(stats.$name),
        })
    };
    (Vhost, $name:ident, $help:literal) => {
        (stringify!($name), $help, |counts| match counts {
            Counts::Vhost(vhost) => Some(vhost.stats.$name),
            Counts::Nbd(_) => None,
        })
    };
    (Nbd, $name:ident, $help:literal) => {
        (stringify!($name), $help, |counts| match counts {
            Counts::Nbd(stats) => Some(stats.$name),
            Counts::Vhost(_) => None,
        })
    };
}

const COLUMNS: [Column; 13] = [
    column!(connections, "Clients that connected."),
    column!(refusals, "Messages or clients that were refused."),
    column!(requests, "Requests."),
    column!(errors, "Requests that ended with an error."),
    column!(read_bytes, "Bytes that were read."),
    column!(written_bytes, "Bytes that were written."),
    column!(
        Vhost,
        faults,
        "Rings given up because of what a guest wrote there."
    ),
    column!(Vhost, resubmitted, "Requests done again after a restart."),
    column!(
        Vhost,
        merged,
        "Descriptors that were one transfer with the one before."
    ),
    column!(Vhost, kicks, "Times that guests woke a ring."),
    column!(Vhost, calls, "Times that guests were called."),
    column!(Vhost, polled_ns, "Nanoseconds of looking at empty rings."),
    column!(
        Nbd,
        turned_away,
        "Clients not let in, as there were too many."
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
            let labels = labels(shard, export);
            if let Some(value) = value(&export.counts) {
                let _ = writeln!(text, "{metric}{{{labels}}} {value}");
            }
        }
    }
    for (name, help, value) in PARTITION_COLUMNS {
        let metric = format!("uc_volume_{name}_total");
        let _ = writeln!(text, "# HELP {metric} {help}\n# TYPE {metric} counter");
        for shard in shards {
            for of in &shard.partitions {
                let (number, id, value) = (shard.shard.0, of.id.0, value(of));
                let _ = writeln!(
                    text,
                    "{metric}{{shard=\"{number}\",partition=\"{id}\"}} {value}"
                );
            }
        }
    }
    latencies(&mut text, shards);
    depths(&mut text, shards);
    remotes(&mut text, shards);
    let metric = "uc_volume_partitions_read_only";
    let help = "Partitions of volumes that take no writes since one failed.";
    let _ = writeln!(text, "# HELP {metric} {help}\n# TYPE {metric} gauge");
    for shard in shards {
        let (number, count) = (shard.shard.0, shard.poisoned.len());
        let _ = writeln!(text, "{metric}{{shard=\"{number}\"}} {count}");
    }
    text
}

fn labels(shard: u16, export: &ExportMetrics) -> String {
    match &export.source {
        Source::Volume { volume, id, .. } => {
            let volume = volume.0;
            format!("shard=\"{shard}\",volume=\"{volume:016x}\",attachment=\"{id}\"")
        }
        // A name has no letter that would have to be escaped.
        Source::Remote(name) => format!("shard=\"{shard}\",remote=\"{name}\""),
    }
}

fn by_kind(vhost: &Vhost) -> [(&'static str, &Latency); 4] {
    let LatencyByKind {
        read,
        write,
        flush,
        unmap,
    } = &vhost.latencies;
    [
        ("read", read),
        ("write", write),
        ("flush", flush),
        ("unmap", unmap),
    ]
}

fn latencies(text: &mut String, shards: &[ShardMetrics]) {
    let metric = "uc_volume_request_seconds";
    let help = "How long requests of guests took.";
    let _ = writeln!(text, "# HELP {metric} {help}\n# TYPE {metric} histogram");
    for (shard, export) in exports(shards) {
        let Counts::Vhost(vhost) = &export.counts else {
            continue;
        };
        for (kind, latency) in by_kind(vhost) {
            let labels = format!("{},kind=\"{kind}\"", labels(shard, export));
            let mut count = 0;
            for (bucket, requests) in latency.counts.iter().enumerate() {
                count += requests;
                let bound = if bucket + 1 == LATENCY_BUCKETS {
                    "+Inf".to_owned()
                } else {
                    format!("{}", f64::from(1_u32 << bucket) / 1e6)
                };
                let _ = writeln!(text, "{metric}_bucket{{{labels},le=\"{bound}\"}} {count}");
            }
            let seconds = latency.total_ns as f64 / 1e9;
            let _ = writeln!(text, "{metric}_sum{{{labels}}} {seconds}");
            let _ = writeln!(text, "{metric}_count{{{labels}}} {count}");
        }
    }
}

fn depths(text: &mut String, shards: &[ShardMetrics]) {
    let metric = "uc_volume_queue_depth";
    let help = "Requests of guests in progress.";
    let _ = writeln!(text, "# HELP {metric} {help}\n# TYPE {metric} gauge");
    for (shard, export) in exports(shards) {
        let Counts::Vhost(vhost) = &export.counts else {
            continue;
        };
        let offered = vhost.depths.iter().take(usize::from(vhost.queues));
        for (queue, depth) in offered.enumerate() {
            let labels = labels(shard, export);
            let _ = writeln!(text, "{metric}{{{labels},queue=\"{queue}\"}} {depth}");
        }
    }
}

fn remotes(text: &mut String, shards: &[ShardMetrics]) {
    type Value = fn(&RemoteMetrics) -> u64;
    const VALUES: [(&str, &str, &str, Value); 3] = [
        (
            "uc_volume_remote_connected",
            "gauge",
            "1 while another node's volume is connected.",
            |remote| u64::from(remote.state == LinkState::Connected),
        ),
        (
            "uc_volume_remote_connections_total",
            "counter",
            "Connections that were made to another node's volume.",
            |remote| remote.stats.connections,
        ),
        (
            "uc_volume_remote_sent_again_total",
            "counter",
            "Requests that were sent again, as the connection had broken.",
            |remote| remote.stats.sent_again,
        ),
    ];
    for (metric, kind, help, value) in VALUES {
        let _ = writeln!(text, "# HELP {metric} {help}\n# TYPE {metric} {kind}");
        for shard in shards {
            for remote in &shard.remotes {
                let (number, name, value) = (shard.shard.0, &remote.name, value(remote));
                let labels = format!("shard=\"{number}\",remote=\"{name}\"");
                let _ = writeln!(text, "{metric}{{{labels}}} {value}");
            }
        }
    }
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
        let counts = COLUMNS.iter().filter_map(|(name, _, value)| {
            let value = Value::from(value(&export.counts)?);
            Some(((*name).to_owned(), value))
        });
        let mut shown = json!({
            "kind": match export.counts {
                Counts::Vhost(_) => "vhost-user",
                Counts::Nbd(_) => "nbd",
            },
            "counts": counts.collect::<Map<String, Value>>(),
            "queue_depths": match &export.counts {
                Counts::Vhost(vhost) => &vhost.depths[..usize::from(vhost.queues)],
                Counts::Nbd(_) => &[],
            },
            "mean_us": match &export.counts {
                Counts::Vhost(vhost) => means(vhost),
                Counts::Nbd(_) => Value::Null,
            },
        });
        match &export.source {
            Source::Volume {
                volume,
                id,
                generation,
            } => {
                shown["volume"] = json!(format!("{:016x}", volume.0));
                shown["attachment"] = json!(id);
                shown["generation"] = json!(generation);
            }
            Source::Remote(name) => shown["remote"] = json!(name),
        }
        shown
    };
    let of_remote = |remote: &RemoteMetrics| {
        let (state, why) = described(&remote.state);
        json!({
            "remote": remote.name,
            "state": state,
            "why": why,
            "connections": remote.stats.connections,
            "sent_again": remote.stats.sent_again,
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
            "remotes": shard.remotes.iter().map(of_remote).collect::<Vec<_>>(),
            "read_only_partitions": poisoned.collect::<Vec<_>>(),
            "partitions": shard.partitions.iter().map(of_partition).collect::<Vec<_>>(),
        })
    };
    json!({ "shards": shards.iter().map(of_shard).collect::<Vec<_>>() })
}

/// A partition for people.
fn of_partition(of: &PartitionMetrics) -> Value {
    let counts = PARTITION_COLUMNS
        .iter()
        .map(|(name, _, value)| ((*name).to_owned(), Value::from(value(of))));
    let damaged = of.scrub.damaged.iter().map(|block| {
        json!({
            "volume": format!("{:016x}", block.volume.0),
            "snapshot": block.snapshot.map(|id| format!("{:016x}", id.0)),
            "offset": block.offset,
        })
    });
    json!({
        "partition": of.id.0,
        "counts": counts.collect::<Map<String, Value>>(),
        "damaged": damaged.collect::<Vec<_>>(),
    })
}

/// The word for how a connection fares, and why it does not.
pub fn described(state: &LinkState) -> (&'static str, &str) {
    match state {
        LinkState::Connected => ("connected", ""),
        LinkState::Connecting(why) => ("connecting", why),
        LinkState::Lost(why) => ("lost", why),
    }
}

/// What a request of each kind took as a rule.
fn means(vhost: &Vhost) -> Value {
    let mean = |(kind, latency): (&str, &Latency)| {
        let count: u64 = latency.counts.iter().sum();
        let micros = latency.total_ns as f64 / 1e3 / count.max(1) as f64;
        (kind.to_owned(), json!((micros * 10.0).round() / 10.0))
    };
    by_kind(vhost)
        .map(mean)
        .into_iter()
        .collect::<Map<_, _>>()
        .into()
}
