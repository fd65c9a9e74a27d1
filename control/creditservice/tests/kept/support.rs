//! A store with ledgers on it, and short names for what tests ask of them.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use control_kit::metrics::Registry;
use control_kit::store::SharedStore;
use creditservice::{Error, Ledger, Metrics, Options, Quota, Refusal, TransferId, Want};
use store_sim::Faults;

/// A store behind a network, without faults as a rule.
#[derive(Clone)]
pub struct World {
    pub sim: store_sim::World,
    pub store: SharedStore,
}

impl World {
    pub fn new() -> World {
        World::with(Faults::default())
    }

    pub fn with(faults: Faults) -> World {
        let sim = store_sim::World::new(0, faults);
        let store = Arc::new(sim.client());
        World { sim, store }
    }

    pub fn options(&self, metrics: Metrics) -> Options {
        Options {
            clock: self.sim.clock(),
            metrics,
            ..Options::default()
        }
    }

    pub async fn pass(&self, ms: u64) {
        self.sim.pass(Duration::from_millis(ms)).await;
    }

    /// A ledger, as one more process would open it.
    pub async fn ledger(&self) -> Ledger {
        self.counted(&Registry::default()).await
    }

    /// The same, which counts.
    pub async fn counted(&self, registry: &Registry) -> Ledger {
        let options = self.options(Metrics::new(registry));
        Ledger::open(self.store.clone(), options).await.unwrap()
    }
}

/// What a metric stands at.
pub fn metric(registry: &Registry, name: &str) -> i64 {
    let text = registry.text();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.unwrap().trim().parse().unwrap()
}

pub fn id(number: u128) -> TransferId {
    TransferId::try_from(number).unwrap()
}

pub fn quota(tenant: &str, unit: &str) -> Quota {
    Quota {
        tenant: tenant.parse().unwrap(),
        unit: unit.parse().unwrap(),
    }
}

pub fn vcpu() -> Quota {
    quota("t1", "vcpu")
}

pub fn want(number: u128, amount: u64) -> Want {
    Want {
        quota: vcpu(),
        reservation: id(number),
        amount,
    }
}

pub fn ms(number: u64) -> NonZeroU64 {
    NonZeroU64::new(number).unwrap()
}

/// Reserves of the one quota, for a second.
pub async fn reserve(ledger: &Ledger, number: u128, amount: u64) -> Result<(), Error> {
    ledger.reserve(&[want(number, amount)], ms(1000)).await
}

#[track_caller]
pub fn code(result: Result<(), Error>) -> &'static str {
    let error = result.unwrap_err();
    error.refusal().map(|one| one.refusal.code()).unwrap()
}

/// Limit, used, reserved and free of the one quota; the ledger is whole.
pub async fn stands(ledger: &Ledger, wanted: (u128, u128, u128, u128)) {
    let book = ledger.audit().await.unwrap();
    let one = vcpu().standing(&book).unwrap();
    assert_eq!((one.limit, one.used, one.reserved, one.free), wanted);
    assert_eq!(ledger.standing(&vcpu()).await.unwrap(), Some(one));
}

pub fn second() -> Duration {
    Duration::from_secs(1)
}

pub fn is_limit(error: &Error) -> bool {
    matches!(
        error.refusal().map(|one| &one.refusal),
        Some(Refusal::Exceeds(_))
    )
}
