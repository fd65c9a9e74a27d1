//! What a bridge counts.

use control_kit::metrics::{Counter, Gauge, Histogram, Registry};

use crate::error::ErrorKind;

/// A bridge's counters.
#[derive(Debug)]
pub(crate) struct Metrics {
    pub(crate) calls: Counter,
    pub(crate) took: Histogram,
    pub(crate) abandoned: Counter,
    tenant_busy: Counter,
    bridge_busy: Counter,
    shard_busy: Counter,
    late: Counter,
    draining: Counter,
    gone: Counter,
}

impl Metrics {
    /// The counters, and the gauge of calls in flight.
    pub(crate) fn new(registry: &Registry) -> (Metrics, Gauge) {
        let counter = |name, help| registry.counter(name, help);
        let metrics = Metrics {
            calls: counter(
                "uc_bridge_calls_total",
                "Calls of the control layer to shards that were asked for.",
            ),
            took: registry.histogram(
                "uc_bridge_call_seconds",
                "How long calls took that were sent to a shard, until their answer or error.",
            ),
            abandoned: counter(
                "uc_bridge_calls_abandoned_total",
                "Calls whose caller went before the answer.",
            ),
            tenant_busy: counter(
                "uc_bridge_refused_tenant_busy_total",
                "Calls refused since their tenant had its most in flight.",
            ),
            bridge_busy: counter(
                "uc_bridge_refused_node_busy_total",
                "Calls refused since all tenants together had the most in flight.",
            ),
            shard_busy: counter(
                "uc_bridge_refused_shard_busy_total",
                "Calls refused by a full queue of a shard.",
            ),
            draining: counter(
                "uc_bridge_refused_draining_total",
                "Calls refused since the node drained.",
            ),
            late: counter(
                "uc_bridge_failed_deadline_total",
                "Calls without an answer at their deadline.",
            ),
            gone: counter(
                "uc_bridge_failed_gone_total",
                "Calls to a shard that has ended, or whose service has not started.",
            ),
        };
        let in_flight = registry.gauge("uc_bridge_in_flight_count", "Calls in flight.");
        (metrics, in_flight)
    }

    pub(crate) fn count_failure(&self, kind: ErrorKind) {
        let counter = match kind {
            ErrorKind::TenantBusy => &self.tenant_busy,
            ErrorKind::BridgeBusy => &self.bridge_busy,
            ErrorKind::ShardBusy => &self.shard_busy,
            ErrorKind::Deadline => &self.late,
            ErrorKind::Draining => &self.draining,
            ErrorKind::Gone => &self.gone,
        };
        counter.increment();
    }
}
