//! How many calls are in flight: admission of calls to the bridge.
//!
//! A tenant may begin a call while it has fewer in flight than its most, and fewer than are still
//! free: one busy tenant holds at most half of the bridge, two a third each, and who holds nothing is
//! admitted as long as one place is free.
//!
//! Admission takes a lock, on tokio's threads. A place is given back by atomics alone, because that
//! happens on a shard as a rule.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use control_kit::metrics::Gauge;
use tokio::sync::Notify;

/// Bounds of a bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Calls in flight, of all tenants together; at least 1.
    pub calls_max: usize,
    /// Calls in flight of one tenant; at least 1.
    pub calls_per_tenant_max: usize,
}

impl Default for Limits {
    /// 512 calls, 64 a tenant: below what one shard's mailbox takes.
    fn default() -> Limits {
        Limits {
            calls_max: 512,
            calls_per_tenant_max: 64,
        }
    }
}

/// Why a call was not admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Its tenant has so many in flight.
    Tenant(usize),
    /// All tenants together have so many in flight.
    Full(usize),
    /// The bridge drains.
    Draining,
}

#[derive(Debug)]
struct Counts {
    total: AtomicUsize,
    shown: Gauge,
    /// Told when the last call in flight has ended.
    idle: Notify,
}

/// See the module's head.
#[derive(Debug)]
pub(crate) struct InFlight {
    limits: Limits,
    counts: Arc<Counts>,
    tenants: Mutex<HashMap<Arc<str>, Arc<AtomicUsize>>>,
    draining: AtomicBool,
}

impl InFlight {
    /// # Panics
    /// When a limit is 0.
    pub(crate) fn new(limits: Limits, shown: Gauge) -> InFlight {
        assert!(limits.calls_max > 0, "some call can be in flight");
        assert!(
            limits.calls_per_tenant_max > 0,
            "some call of a tenant can be in flight"
        );
        let counts = Counts {
            total: AtomicUsize::new(0),
            shown,
            idle: Notify::new(),
        };
        InFlight {
            limits,
            counts: Arc::new(counts),
            tenants: Mutex::default(),
            draining: AtomicBool::new(false),
        }
    }

    /// A place for one more call of a tenant.
    pub(crate) fn enter(&self, tenant: &Arc<str>) -> Result<Held, Refusal> {
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        if self.draining.load(Ordering::Acquire) {
            return Err(Refusal::Draining);
        }
        // Both only shrink while the lock is held.
        let total = self.counts.total.load(Ordering::Acquire);
        let held = tenants.get(tenant);
        let mine = held.map_or(0, |held| held.load(Ordering::Acquire));
        let free = self.limits.calls_max.saturating_sub(total);
        if mine >= self.limits.calls_per_tenant_max || (mine > 0 && mine >= free) {
            return Err(Refusal::Tenant(mine));
        }
        if free == 0 {
            return Err(Refusal::Full(total));
        }
        let held = if let Some(held) = held {
            Arc::clone(held)
        } else {
            if tenants.len() >= self.limits.calls_max {
                tenants.retain(|_, held| held.load(Ordering::Acquire) > 0);
            }
            let held = Arc::<AtomicUsize>::default();
            tenants.insert(Arc::clone(tenant), Arc::clone(&held));
            held
        };
        held.fetch_add(1, Ordering::AcqRel);
        self.counts.total.fetch_add(1, Ordering::AcqRel);
        self.counts.shown.add(1);
        Ok(Held {
            held,
            counts: Arc::clone(&self.counts),
        })
    }

    /// From now on nothing is admitted.
    pub(crate) fn close(&self) {
        let _tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        self.draining.store(true, Ordering::Release);
    }

    /// Waits until nothing is in flight. Cancel-safe.
    pub(crate) async fn idle(&self) {
        loop {
            let mut told = std::pin::pin!(self.counts.idle.notified());
            told.as_mut().enable();
            if self.total() == 0 {
                return;
            }
            told.await;
        }
    }

    pub(crate) fn total(&self) -> usize {
        self.counts.total.load(Ordering::Acquire)
    }
}

/// One call's place in flight, until it is dropped, on whatever thread.
#[derive(Debug)]
pub(crate) struct Held {
    held: Arc<AtomicUsize>,
    counts: Arc<Counts>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.held.fetch_sub(1, Ordering::AcqRel);
        self.counts.shown.add(-1);
        if self.counts.total.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.counts.idle.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_flight(calls_max: usize, calls_per_tenant_max: usize) -> InFlight {
        let limits = Limits {
            calls_max,
            calls_per_tenant_max,
        };
        InFlight::new(limits, Gauge::default())
    }

    /// As many places as the tenant gets, and why it gets no more.
    fn flood(bridge: &InFlight, tenant: &str) -> (Vec<Held>, Refusal) {
        let mut places = Vec::new();
        loop {
            match bridge.enter(&tenant.into()) {
                Ok(place) => places.push(place),
                Err(why) => return (places, why),
            }
        }
    }

    #[test]
    fn a_flood_leaves_room_for_others_and_ends_where_they_begin() {
        let bridge = in_flight(60, 60);
        let (ann, why) = flood(&bridge, "ann");
        assert_eq!((ann.len(), why), (30, Refusal::Tenant(30)));
        let (bob, _) = flood(&bridge, "bob");
        assert_eq!(bob.len(), 15);
        // Ann is above what she would get now, and gets no more until she is below it.
        let mut ann = ann;
        ann.truncate(20);
        assert_eq!(flood(&bridge, "ann").0.len(), 3);
        let cid = bridge.enter(&"cid".into());
        assert!(cid.is_ok(), "who holds nothing is admitted");
    }

    #[test]
    fn when_every_place_is_taken_all_are_refused_and_one_that_ends_makes_room() {
        let bridge = in_flight(3, 2);
        let names = ["a", "b", "c"];
        let mut places: Vec<Held> = names
            .iter()
            .map(|name| bridge.enter(&(*name).into()).unwrap())
            .collect();
        assert_eq!(bridge.enter(&"d".into()).unwrap_err(), Refusal::Full(3));
        assert_eq!(bridge.enter(&"a".into()).unwrap_err(), Refusal::Tenant(1));
        places.pop();
        assert!(bridge.enter(&"d".into()).is_ok());
        assert_eq!(bridge.total(), 2);
    }

    #[test]
    fn the_limit_of_a_tenant_holds_and_idle_tenants_are_forgotten() {
        let bridge = in_flight(100, 2);
        for number in 0..1000 {
            let tenant: Arc<str> = format!("t{number}").into();
            let both = [
                bridge.enter(&tenant).unwrap(),
                bridge.enter(&tenant).unwrap(),
            ];
            assert_eq!(bridge.enter(&tenant).unwrap_err(), Refusal::Tenant(2));
            drop(both);
        }
        assert!(bridge.tenants.lock().unwrap().len() <= 100);
        assert_eq!(bridge.total(), 0);
    }

    #[tokio::test]
    async fn a_drain_admits_nobody_and_ends_with_the_last_call() {
        let bridge = Arc::new(in_flight(10, 10));
        let place = bridge.enter(&"ann".into()).unwrap();
        bridge.close();
        assert_eq!(bridge.enter(&"bob".into()).unwrap_err(), Refusal::Draining);
        let waits = Arc::clone(&bridge);
        let waiting = tokio::spawn(async move { waits.idle().await });
        std::thread::spawn(move || drop(place)).join().unwrap();
        waiting.await.unwrap();
    }
}
