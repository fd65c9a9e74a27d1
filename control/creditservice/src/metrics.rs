//! What the ledger counts of its own work.

use control_kit::metrics::{Counter, Gauge, Histogram, Registry};

use crate::transfer::Done;

/// The ledger's metrics. Those of [`Metrics::default`] are shown nowhere.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    pub(crate) batches: Counter,
    pub(crate) operations: Counter,
    pub(crate) repeated: Counter,
    pub(crate) refusals: Counter,
    pub(crate) conflicts: Counter,
    pub(crate) expired: Counter,
    pub(crate) drift: Gauge,
    pub(crate) calls: Histogram,
}

impl Metrics {
    /// Metrics that a registry shows. One ledger a registry.
    pub fn new(registry: &Registry) -> Metrics {
        Metrics {
            batches: registry.counter(
                "uc_creditservice_batches_total",
                "Transactions of the store that changed the ledger.",
            ),
            operations: registry.counter(
                "uc_creditservice_operations_total",
                "Operations that changed the ledger.",
            ),
            repeated: registry.counter(
                "uc_creditservice_repeated_total",
                "Operations that had been done before, as tries again are.",
            ),
            refusals: registry.counter(
                "uc_creditservice_refusals_total",
                "Chains that the ledger's rules refused.",
            ),
            conflicts: registry.counter(
                "uc_creditservice_conflicts_total",
                "Transactions that another process overtook.",
            ),
            expired: registry.counter(
                "uc_creditservice_expired_total",
                "Reservations that this process ended because their time was over.",
            ),
            drift: registry.gauge(
                "uc_creditservice_drift_units",
                "By how many units the ledger and the inventory differed when last compared; must be 0.",
            ),
            calls: registry.histogram(
                "uc_creditservice_call_seconds",
                "How long calls on the ledger took.",
            ),
        }
    }

    pub(crate) fn done(&self, done: &[Done]) {
        let repeated = done.iter().filter(|one| one.repeated).count();
        self.repeated.add(repeated as u64);
        self.operations.add((done.len() - repeated) as u64);
    }
}
