//! Counters of a shard, and their Prometheus form. Shards count alone; readers add up.

use std::cell::Cell;
use std::fmt::Write as _;

use crate::buf::PoolUse;
use crate::sched::{GroupStats, SchedGroup};
use crate::shard::ShardId;

/// Event counts that the core keeps while it runs.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) ops: Cell<u64>,
    pub(crate) messages: Cell<u64>,
    pub(crate) sleeps: Cell<u64>,
    stalls_logged: Cell<u64>,
}

impl Counters {
    /// Logs the 1st, 2nd, 4th, 8th … stall: a busy shard must not drown its log.
    pub(crate) fn report_stall(&self, shard: ShardId, group: SchedGroup, used_ns: u64) {
        let count = self.stalls_logged.get() + 1;
        self.stalls_logged.set(count);
        if count.is_power_of_two() {
            tracing::warn!(
                shard = shard.0,
                group = group.index(),
                used_us = used_ns / 1000,
                count,
                "a task held its shard past the stall limit"
            );
        }
    }
}

/// A copy of one shard's counters.
#[derive(Clone, Debug)]
pub struct ShardMetrics {
    /// The shard's number.
    pub shard: u16,
    /// By scheduling group: name and counters.
    pub groups: Vec<(&'static str, GroupStats)>,
    /// Live tasks.
    pub tasks: usize,
    /// Operations not yet completed.
    pub ops_in_flight: usize,
    /// Disk operations held back by the I/O scheduler.
    pub disk_ops_waiting: usize,
    /// Operations started.
    pub ops: u64,
    /// Calls received from other shards and threads.
    pub messages: u64,
    /// Times the shard slept.
    pub sleeps: u64,
    /// io_uring_enter calls.
    pub enters: u64,
    /// Completion-queue overflows.
    pub cq_overflows: u64,
    /// Operations that waited for room in the submission queue.
    pub sq_full: u64,
    /// The buffer pool.
    pub pool: PoolUse,
}

/// One metric family's name, type and help text.
struct Family {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    value: fn(&ShardMetrics) -> u64,
}

const FAMILIES: &[Family] = &[
    Family {
        name: "uc_engine_tasks_count",
        kind: "gauge",
        help: "Live tasks.",
        value: |m| m.tasks as u64,
    },
    Family {
        name: "uc_engine_ops_in_flight_count",
        kind: "gauge",
        help: "Operations not yet completed.",
        value: |m| m.ops_in_flight as u64,
    },
    Family {
        name: "uc_engine_disk_ops_waiting_count",
        kind: "gauge",
        help: "Disk operations held back by the I/O scheduler.",
        value: |m| m.disk_ops_waiting as u64,
    },
    Family {
        name: "uc_engine_ops_total",
        kind: "counter",
        help: "Operations started.",
        value: |m| m.ops,
    },
    Family {
        name: "uc_engine_messages_total",
        kind: "counter",
        help: "Calls received from other shards and threads.",
        value: |m| m.messages,
    },
    Family {
        name: "uc_engine_sleeps_total",
        kind: "counter",
        help: "Times the shard slept.",
        value: |m| m.sleeps,
    },
    Family {
        name: "uc_engine_enters_total",
        kind: "counter",
        help: "io_uring_enter calls.",
        value: |m| m.enters,
    },
    Family {
        name: "uc_engine_cq_overflows_total",
        kind: "counter",
        help: "Completion queue overflows.",
        value: |m| m.cq_overflows,
    },
    Family {
        name: "uc_engine_sq_full_total",
        kind: "counter",
        help: "Operations that waited for room in the submission queue.",
        value: |m| m.sq_full,
    },
    Family {
        name: "uc_engine_pool_used_bytes",
        kind: "gauge",
        help: "Bytes of the buffer pool in use.",
        value: |m| m.pool.used as u64,
    },
    Family {
        name: "uc_engine_pool_size_bytes",
        kind: "gauge",
        help: "Size of the buffer pool.",
        value: |m| m.pool.total as u64,
    },
    Family {
        name: "uc_engine_pool_refused_total",
        kind: "counter",
        help: "Buffers refused because the pool was empty.",
        value: |m| m.pool.refused,
    },
    Family {
        name: "uc_engine_pool_registered",
        kind: "gauge",
        help: "1 when the pool is registered with the ring.",
        value: |m| u64::from(m.pool.registered),
    },
];

/// Prometheus text of all shards' engine metrics.
pub fn prometheus(shards: &[ShardMetrics]) -> String {
    let mut text = String::new();
    for family in FAMILIES {
        let Family {
            name,
            kind,
            help,
            value,
        } = family;
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for shard in shards {
            let _ = writeln!(text, "{name}{{shard=\"{}\"}} {}", shard.shard, value(shard));
        }
    }
    group_families(&mut text, shards);
    text
}

fn group_families(text: &mut String, shards: &[ShardMetrics]) {
    type Value = fn(&GroupStats) -> u64;
    let families: [(&str, &str, &str, Value); 3] = [
        ("uc_engine_polls_total", "counter", "Task polls.", |g| {
            g.polls
        }),
        (
            "uc_engine_stalls_total",
            "counter",
            "Polls past the stall limit.",
            |g| g.stalls,
        ),
        (
            "uc_engine_busy_ns_total",
            "counter",
            "CPU time of task polls in nanoseconds.",
            |g| g.busy_ns,
        ),
    ];
    for (name, kind, help, value) in families {
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for shard in shards {
            for (group, stats) in &shard.groups {
                let _ = writeln!(
                    text,
                    "{name}{{shard=\"{}\",group=\"{group}\"}} {}",
                    shard.shard,
                    value(stats)
                );
            }
        }
    }
    let name = "uc_engine_queue_delay_ns";
    let _ = writeln!(
        text,
        "# HELP {name} Time from wake to poll.\n# TYPE {name} summary"
    );
    for shard in shards {
        for (group, stats) in &shard.groups {
            let labels = format!("shard=\"{}\",group=\"{group}\"", shard.shard);
            for quantile in [0.5, 0.99, 0.999] {
                let value = stats.delay.value_at_quantile(quantile);
                let _ = writeln!(text, "{name}{{{labels},quantile=\"{quantile}\"}} {value}");
            }
            let _ = writeln!(text, "{name}_count{{{labels}}} {}", stats.delay.len());
        }
    }
}
