//! Who runs next: bounded queues by tenant, served by start-time fair queueing (Goyal, Vin, Cheng,
//! "Start-time Fair Queueing", 1996). Pure: no clock, no wakers.
//!
//! Each tenant has a tag, in virtual time: where its next request starts. A request moves its
//! tenant's tag on by cost over shares; the waiting tenant with the lowest tag runs next, and
//! virtual time is the start of the latest request to run. A tenant that comes back from idling
//! starts at the virtual time of that moment: idling saves nothing up.
//!
//! Invariants: never more than `concurrent_max` run; nobody waits while fewer run; a tenant's own
//! requests run in the order in which they came; a request that leaves its queue costs nothing.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::meter::Meter;
use super::{AdmissionConfig, AdmissionMetrics, SHARES_MAX, TENANTS_MAX, TenantId, TenantMetrics};

/// Virtual time of one unit of cost at one share. A multiple of many small share counts, so that
/// rounding is far below one request; 128 bits never overflow.
const UNIT: u128 = 1 << 32;

/// Names a waiting request; later ones are larger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ticket(u64);

/// What becomes of a new request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    Runs,
    Waits(Ticket),
    Refused { queued: u32 },
}

struct Waiting<W> {
    ticket: Ticket,
    cost: u32,
    waiter: W,
}

struct Tenant<W> {
    /// Start of the next request, in virtual time.
    tag: u128,
    queue: VecDeque<Waiting<W>>,
    running: u32,
    meter: Meter,
}

impl<W> Tenant<W> {
    fn is_idle(&self) -> bool {
        self.running == 0 && self.queue.is_empty()
    }

    fn metrics(&self) -> TenantMetrics {
        self.meter.metrics(self.running, self.queue.len() as u32)
    }
}

pub(super) struct Fair<W> {
    config: AdmissionConfig,
    running: u32,
    virtual_now: u128,
    /// The highest tag that any request moved its tenant to.
    tag_max: u128,
    tickets: u64,
    /// Ordered, so that a simulation meets them in the same order every time.
    tenants: BTreeMap<TenantId, Tenant<W>>,
    /// Tenants with a queue, by tag; among equals, who has waited longest.
    ready: BTreeSet<(u128, Ticket, TenantId)>,
    /// Tenants whose shares are not the default.
    shares: BTreeMap<TenantId, u32>,
    /// Counters of tenants that were forgotten.
    forgotten: Meter,
}

impl<W> Fair<W> {
    pub(super) fn new(config: AdmissionConfig) -> Fair<W> {
        Fair {
            config,
            running: 0,
            virtual_now: 0,
            tag_max: 0,
            tickets: 0,
            tenants: BTreeMap::new(),
            ready: BTreeSet::new(),
            shares: BTreeMap::new(),
            forgotten: Meter::default(),
        }
    }

    pub(super) fn running(&self) -> u32 {
        self.running
    }

    /// False when too many tenants have shares of their own already.
    pub(super) fn set_shares(&mut self, tenant: TenantId, shares: u32) -> bool {
        let shares = shares.clamp(1, SHARES_MAX);
        if shares == self.config.default_shares {
            self.shares.remove(&tenant);
            return true;
        }
        if self.shares.len() >= TENANTS_MAX && !self.shares.contains_key(&tenant) {
            return false;
        }
        self.shares.insert(tenant, shares);
        true
    }

    /// A request comes. `waiter` is made when it has to wait.
    pub(super) fn arrive(
        &mut self,
        id: TenantId,
        cost: u32,
        waiter: impl FnOnce() -> W,
    ) -> Arrival {
        if !self.make_room(id) {
            self.forgotten.refused += 1;
            return Arrival::Refused { queued: 0 };
        }
        let virtual_now = self.virtual_now;
        let tenant = self.tenants.entry(id).or_insert_with(|| Tenant {
            tag: virtual_now,
            queue: VecDeque::new(),
            running: 0,
            meter: Meter::default(),
        });
        let queued = tenant.queue.len() as u32;
        if queued == 0 {
            tenant.tag = tenant.tag.max(virtual_now);
        }
        if self.running < self.config.concurrent_max {
            // Nobody waits while there is room, so this request passes nobody.
            self.run(id, cost);
            return Arrival::Runs;
        }
        if queued >= self.config.queue_per_tenant_max {
            tenant.meter.refused += 1;
            return Arrival::Refused { queued };
        }
        let ticket = Ticket(self.tickets);
        self.tickets += 1;
        tenant.queue.push_back(Waiting {
            ticket,
            cost,
            waiter: waiter(),
        });
        if queued == 0 {
            self.ready.insert((tenant.tag, ticket, id));
        }
        Arrival::Waits(ticket)
    }

    /// A request of the tenant runs: its tag, and virtual time, move on.
    fn run(&mut self, id: TenantId, cost: u32) {
        let shares = self
            .shares
            .get(&id)
            .copied()
            .unwrap_or(self.config.default_shares);
        let tenant = self
            .tenants
            .get_mut(&id)
            .expect("a tenant with requests is in the table");
        self.virtual_now = self.virtual_now.max(tenant.tag);
        tenant.tag += u128::from(cost.max(1)) * UNIT / u128::from(shares);
        self.tag_max = self.tag_max.max(tenant.tag);
        tenant.running += 1;
        tenant.meter.admitted += 1;
        self.running += 1;
        assert!(
            self.running <= self.config.concurrent_max,
            "a turn is only given when one is free"
        );
    }

    /// The next request that may run, which from now on does.
    pub(super) fn next(&mut self) -> Option<W> {
        if self.running >= self.config.concurrent_max {
            return None;
        }
        let (_, _, id) = self.ready.pop_first()?;
        let tenant = self
            .tenants
            .get_mut(&id)
            .expect("a tenant with a queue is in the table");
        let first = tenant
            .queue
            .pop_front()
            .expect("a ready tenant has a queue");
        self.run(id, first.cost);
        self.make_ready(id);
        Some(first.waiter)
    }

    fn make_ready(&mut self, id: TenantId) {
        let tenant = &self.tenants[&id];
        if let Some(first) = tenant.queue.front() {
            self.ready.insert((tenant.tag, first.ticket, id));
        }
    }

    /// A running request has ended; [`Fair::next`] says who runs now.
    pub(super) fn end(&mut self, id: TenantId) {
        let tenant = self
            .tenants
            .get_mut(&id)
            .expect("a tenant with a turn is in the table");
        tenant.running -= 1;
        self.running -= 1;
        if self.running == 0 && self.ready.is_empty() {
            // The end of a busy period: who used more than others owes them nothing any more.
            self.virtual_now = self.tag_max;
        }
    }

    /// A waiting request goes without having run.
    pub(super) fn leave(&mut self, id: TenantId, ticket: Ticket) {
        let Some(tenant) = self.tenants.get_mut(&id) else {
            return;
        };
        let Ok(place) = tenant.queue.binary_search_by_key(&ticket, |w| w.ticket) else {
            return;
        };
        tenant.queue.remove(place);
        tenant.meter.left += 1;
        if place == 0 {
            self.ready.remove(&(tenant.tag, ticket, id));
            self.make_ready(id);
        }
    }

    /// How long a request of a running tenant waited.
    pub(super) fn record_wait(&mut self, id: TenantId, wait_ns: u64) {
        if let Some(tenant) = self.tenants.get_mut(&id) {
            tenant.meter.wait.record(wait_ns);
        }
    }

    /// Makes sure that the tenant is in the table or fits; false when all others are active.
    fn make_room(&mut self, id: TenantId) -> bool {
        if self.tenants.len() < TENANTS_MAX || self.tenants.contains_key(&id) {
            return true;
        }
        // Tags that virtual time has passed mean nothing; all such tenants at once, so that a scan
        // of the table pays for many arrivals.
        let now = self.virtual_now;
        self.forget(|tenant| tenant.is_idle() && tenant.tag <= now);
        if self.tenants.len() == TENANTS_MAX {
            let idle = self.tenants.values().filter(|t| t.is_idle());
            let Some(lowest) = idle.map(|t| t.tag).min() else {
                return false;
            };
            self.forget(|tenant| tenant.is_idle() && tenant.tag == lowest);
        }
        true
    }

    fn forget(&mut self, which: impl Fn(&Tenant<W>) -> bool) {
        let forgotten = &mut self.forgotten;
        self.tenants.retain(|_, tenant| {
            let goes = which(tenant);
            if goes {
                forgotten.add(&tenant.meter);
            }
            !goes
        });
    }

    pub(super) fn metrics(&self) -> AdmissionMetrics {
        AdmissionMetrics {
            running: self.running,
            tenants: self
                .tenants
                .iter()
                .map(|(id, t)| (*id, t.metrics()))
                .collect(),
            forgotten: self.forgotten.metrics(0, 0),
        }
    }
}

#[cfg(test)]
mod tests;
