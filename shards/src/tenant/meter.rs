//! What admission counts, by tenant.

use std::fmt::Write as _;
use std::time::Duration;

use engine::ShardId;

use super::{AdmissionMetrics, TenantMetrics};

const BUCKETS: usize = 32;

/// How long requests waited, in buckets of powers of two: the first is under 1 µs, bucket `i`
/// is from 2^(i-1) to 2^i µs, the last has no upper end. Small enough (a quarter KiB) for thousands of
/// tenants a shard, where an HDR histogram is not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WaitHistogram {
    counts: [u64; BUCKETS],
    max_ns: u64,
}

impl WaitHistogram {
    pub(super) fn record(&mut self, wait_ns: u64) {
        let bucket = u64::BITS - (wait_ns / 1000).leading_zeros();
        self.counts[(bucket as usize).min(BUCKETS - 1)] += 1;
        self.max_ns = self.max_ns.max(wait_ns);
    }

    /// Adds another histogram, as of another shard.
    pub fn add(&mut self, other: &WaitHistogram) {
        for (mine, theirs) in self.counts.iter_mut().zip(other.counts) {
            *mine += theirs;
        }
        self.max_ns = self.max_ns.max(other.max_ns);
    }

    /// Number of waits.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The longest wait.
    pub fn max(&self) -> Duration {
        Duration::from_nanos(self.max_ns)
    }

    /// The least bound that a share `quantile` (0 to 1) of all waits is known to be within.
    pub fn within(&self, quantile: f64) -> Duration {
        let rank = (self.count() as f64 * quantile.clamp(0.0, 1.0)).ceil() as u64;
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate().take(BUCKETS - 1) {
            seen += count;
            if seen >= rank {
                return Duration::from_micros(1 << bucket).min(self.max());
            }
        }
        self.max()
    }
}

/// Counters that outlive a request.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Meter {
    pub(super) admitted: u64,
    pub(super) refused: u64,
    pub(super) left: u64,
    pub(super) wait: WaitHistogram,
}

impl Meter {
    pub(super) fn add(&mut self, other: &Meter) {
        self.admitted += other.admitted;
        self.refused += other.refused;
        self.left += other.left;
        self.wait.add(&other.wait);
    }

    pub(super) fn metrics(&self, running: u32, queued: u32) -> TenantMetrics {
        let Meter {
            admitted,
            refused,
            left,
            wait,
        } = *self;
        TenantMetrics {
            running,
            queued,
            admitted,
            refused,
            left,
            wait,
        }
    }
}

/// One metric family's name, type and help text.
struct Family {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    value: fn(&TenantMetrics) -> u64,
}

const FAMILIES: &[Family] = &[
    Family {
        name: "uc_tenant_running_count",
        kind: "gauge",
        help: "Requests that have a turn.",
        value: |m| u64::from(m.running),
    },
    Family {
        name: "uc_tenant_queued_count",
        kind: "gauge",
        help: "Requests that wait for a turn.",
        value: |m| u64::from(m.queued),
    },
    Family {
        name: "uc_tenant_admitted_total",
        kind: "counter",
        help: "Turns given.",
        value: |m| m.admitted,
    },
    Family {
        name: "uc_tenant_refused_total",
        kind: "counter",
        help: "Requests refused because the tenant's queue was full.",
        value: |m| m.refused,
    },
    Family {
        name: "uc_tenant_left_total",
        kind: "counter",
        help: "Requests that left their queue unserved.",
        value: |m| m.left,
    },
    Family {
        name: "uc_tenant_wait_max_ns",
        kind: "gauge",
        help: "The longest wait for a turn so far.",
        value: |m| m.wait.max_ns,
    },
];

/// Prometheus text of all shards' admission. Tenants that a shard has forgotten are summed up
/// under the label `tenant="forgotten"`.
pub fn prometheus(shards: &[(ShardId, AdmissionMetrics)]) -> String {
    let mut text = String::new();
    for Family {
        name,
        kind,
        help,
        value,
    } in FAMILIES
    {
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        each_tenant(shards, |labels, metrics| {
            let _ = writeln!(text, "{name}{{{labels}}} {}", value(metrics));
        });
    }
    let name = "uc_tenant_wait_ns";
    let _ = writeln!(
        text,
        "# HELP {name} Wait for a turn, rounded up to a power of two of µs."
    );
    let _ = writeln!(text, "# TYPE {name} summary");
    each_tenant(shards, |labels, metrics| {
        for quantile in [0.5, 0.99, 0.999] {
            let value = metrics.wait.within(quantile).as_nanos();
            let _ = writeln!(text, "{name}{{{labels},quantile=\"{quantile}\"}} {value}");
        }
        let _ = writeln!(text, "{name}_count{{{labels}}} {}", metrics.wait.count());
    });
    text
}

fn each_tenant(shards: &[(ShardId, AdmissionMetrics)], mut each: impl FnMut(&str, &TenantMetrics)) {
    for (shard, admission) in shards {
        let shard = shard.0;
        for (tenant, metrics) in &admission.tenants {
            each(
                &format!("shard=\"{shard}\",tenant=\"{}\"", tenant.0),
                metrics,
            );
        }
        each(
            &format!("shard=\"{shard}\",tenant=\"forgotten\""),
            &admission.forgotten,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::super::TenantId;
    use super::*;

    #[test]
    fn every_family_is_described_once_and_has_a_line_a_tenant_and_shard() {
        let mut busy = TenantMetrics {
            queued: 3,
            ..TenantMetrics::default()
        };
        busy.wait.record(1_500);
        let shard = |tenants| {
            let forgotten = TenantMetrics {
                refused: 5,
                ..TenantMetrics::default()
            };
            AdmissionMetrics {
                running: 0,
                tenants,
                forgotten,
            }
        };
        let text = prometheus(&[
            (ShardId(0), shard(vec![(TenantId(7), busy)])),
            (ShardId(1), shard(Vec::new())),
        ]);
        assert_eq!(text.matches("# TYPE").count(), FAMILIES.len() + 1);
        assert_eq!(text.matches("uc_tenant_left_total{").count(), 3);
        for line in [
            "uc_tenant_queued_count{shard=\"0\",tenant=\"7\"} 3",
            "uc_tenant_refused_total{shard=\"1\",tenant=\"forgotten\"} 5",
            "uc_tenant_wait_ns{shard=\"0\",tenant=\"7\",quantile=\"0.99\"} 1500",
            "uc_tenant_wait_ns_count{shard=\"0\",tenant=\"7\"} 1",
        ] {
            assert!(
                text.lines().any(|l| l == line),
                "{line} is missing in\n{text}"
            );
        }
    }

    #[test]
    fn a_quantile_is_the_upper_end_of_its_bucket_and_never_past_the_longest_wait() {
        let mut waits = WaitHistogram::default();
        assert_eq!(waits.within(0.99), Duration::ZERO);
        for _ in 0..98 {
            waits.record(900);
        }
        waits.record(3_000);
        waits.record(5_500);
        assert_eq!(waits.count(), 100);
        assert_eq!(waits.within(0.5), Duration::from_micros(1));
        assert_eq!(waits.within(0.99), Duration::from_micros(4));
        assert_eq!(waits.within(1.0), Duration::from_nanos(5_500));
        waits.record(u64::MAX);
        assert_eq!(waits.within(1.0), Duration::from_nanos(u64::MAX));
    }
}
