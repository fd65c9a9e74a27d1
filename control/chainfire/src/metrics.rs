//! What a member tells Prometheus.

use std::sync::Arc;

use control_kit::metrics::{Gauge, Registry};

use crate::api::Api;

/// Gauges that are read off the member whenever somebody asks.
pub(crate) struct Metrics {
    registry: Registry,
    leads: Gauge,
    has_leader: Gauge,
    term: Gauge,
    applied: Gauge,
    committed: Gauge,
    revision: Gauge,
    size: Gauge,
    watchers: Gauge,
    leases: Gauge,
}

impl Metrics {
    pub(crate) fn new() -> Metrics {
        let registry = Registry::default();
        let gauge = |name, help| registry.gauge(name, help);
        Metrics {
            leads: gauge("uc_chainfire_leads_bool", "1 on the member that leads."),
            has_leader: gauge(
                "uc_chainfire_leader_known_bool",
                "1 while a leader is known.",
            ),
            term: gauge("uc_chainfire_term_number", "Raft's term."),
            applied: gauge(
                "uc_chainfire_applied_index",
                "The newest entry applied here.",
            ),
            committed: gauge(
                "uc_chainfire_committed_index",
                "The newest committed entry.",
            ),
            revision: gauge(
                "uc_chainfire_revision_number",
                "The store's newest revision.",
            ),
            size: gauge(
                "uc_chainfire_store_bytes",
                "Bytes of keys and values with history.",
            ),
            watchers: gauge("uc_chainfire_watchers_count", "Watchers of this member."),
            leases: gauge("uc_chainfire_leases_count", "Leases of the cluster."),
            registry,
        }
    }

    pub(crate) fn text(&self, api: &Arc<Api>) -> String {
        let standing = api.consensus.standing();
        let view = api.consensus.view();
        self.leads.set(i64::from(standing.leads()));
        self.has_leader.set(i64::from(standing.leader_id != 0));
        self.term.set(standing.term as i64);
        self.applied.set(standing.applied_index as i64);
        self.committed.set(standing.committed_index as i64);
        self.revision.set(view.revision());
        self.size.set(view.size_bytes() as i64);
        self.watchers.set(api.hub.lock().watchers_count() as i64);
        self.leases.set(view.leases().count() as i64);
        self.registry.text()
    }
}
