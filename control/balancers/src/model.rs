//! What should be in the tables now: documents, joined with health, drains, slow starts and next hops.
//!
//! Pure: a clock reading and an input go in, a [`Desired`] comes out ([`Model::commit`]), whose generation
//! grows whenever anything in it changes. Laws, which the tests hold it to:
//!
//! - A backend that is not to take traffic is never up, whatever its health is.
//! - A backend without a verdict takes traffic only while nobody of its pool is healthy, so that a new one
//!   is asked before it is used, and a node without any verdict serves.
//! - In panic, all backends that may take traffic do.
//! - The same inputs in the same order give the same tables.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use fiberlb::desired::{BackendState, Desired, Vip};
use fiberlb_abi::Hop;

use crate::health::{Health, Verdict};
use crate::spec::{Admin, Backend, BackendKey, Balancer, BalancerKey, Check, Pool};

/// Steps of a slow start.
const RAMP_STEPS: u64 = 10;

/// The way to a backend.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Way {
    /// The next hop.
    pub hop: Hop,
    /// Largest packet that it takes.
    pub mtu: u32,
}

/// What is known of the way to each address: nothing of one that is not resolved yet, and `None` of one that
/// has no next hop.
pub type Ways = BTreeMap<IpAddr, Option<Way>>;

/// A drain that somebody has asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Drain {
    /// When flows are cut off, in milliseconds since 1970.
    pub deadline_ms: Option<u64>,
}

/// What is known of a backend beside its document.
#[derive(Clone, PartialEq, Debug, Default)]
struct Known {
    addr: Option<IpAddr>,
    health: Health,
    drain: Option<Drain>,
    /// When its slow start began.
    ramp_from_ms: Option<u64>,
    /// Whether it took traffic when that was last looked at.
    serves: bool,
    /// Whether that was looked at.
    seen: bool,
}

/// What a backend gets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Share {
    /// Flows, or none.
    pub state: BackendState,
    /// Its weight, in the unit of its pool.
    pub weight: u32,
}

/// All load balancers of a node.
#[derive(Clone, Debug, Default)]
pub struct Model {
    balancers: BTreeMap<BalancerKey, Balancer>,
    known: BTreeMap<BackendKey, Known>,
    ways: Ways,
    desired: Desired,
    /// Whether `desired` is this process's, not that of the tables as it found them.
    committed: bool,
    /// Grows with each change of documents.
    edition: u64,
}

impl Model {
    /// A node whose tables have a generation already.
    pub fn new(generation: u32) -> Model {
        Model {
            desired: Desired {
                generation,
                vips: Vec::new(),
            },
            ..Model::default()
        }
    }

    /// All load balancers, by owner and name.
    pub fn balancers(&self) -> impl Iterator<Item = &Balancer> {
        self.balancers.values()
    }

    /// One load balancer.
    pub fn balancer(&self, key: &BalancerKey) -> Option<&Balancer> {
        self.balancers.get(key)
    }

    /// What the tables should say, as of the last [`Model::commit`].
    pub fn desired(&self) -> &Desired {
        &self.desired
    }

    /// Whether a state was committed since the start.
    pub fn is_committed(&self) -> bool {
        self.committed
    }

    /// Changes when documents do.
    pub fn edition(&self) -> u64 {
        self.edition
    }

    /// Puts new documents in the place of some: those of one set, or one that goes.
    pub fn replace(&mut self, gone: &BTreeSet<BalancerKey>, new: Vec<Balancer>) {
        self.edition += 1;
        self.balancers.retain(|key, _| !gone.contains(key));
        for balancer in new {
            self.balancers.insert(balancer.key.clone(), balancer);
        }
        let mut known = std::mem::take(&mut self.known);
        for (key, addr, checked) in self.backends() {
            let mut of_it = known.remove(&key).unwrap_or_default();
            if of_it.addr != Some(addr) || !checked {
                of_it.health = Health::default();
            }
            of_it.addr = Some(addr);
            self.known.insert(key, of_it);
        }
    }

    fn backends(&self) -> Vec<(BackendKey, IpAddr, bool)> {
        let mut all = Vec::new();
        for balancer in self.balancers.values() {
            for pool in &balancer.pools {
                for backend in &pool.backends {
                    let key = balancer.backend_key(pool, backend);
                    all.push((key, backend.addr, pool.check.is_some()));
                }
            }
        }
        all
    }

    /// Addresses of all backends.
    pub fn addresses(&self) -> BTreeSet<IpAddr> {
        self.backends()
            .into_iter()
            .map(|(_, addr, _)| addr)
            .collect()
    }

    /// All checks that are to be done: of whom, where, how.
    pub fn checks(&self) -> BTreeMap<BackendKey, (IpAddr, u16, Check)> {
        let mut all = BTreeMap::new();
        for balancer in self.balancers.values() {
            for pool in &balancer.pools {
                let Some(check) = &pool.check else { continue };
                for backend in pool.backends.iter().filter(|b| b.admin != Admin::Down) {
                    let key = balancer.backend_key(pool, backend);
                    let asked = (backend.addr, backend.check_port, check.clone());
                    all.insert(key, asked);
                }
            }
        }
        all
    }

    /// A check of an address has ended; true when that may change the tables.
    pub fn checked(
        &mut self,
        key: &BackendKey,
        addr: IpAddr,
        result: Result<(), String>,
        now_ms: u64,
    ) -> bool {
        let Some(pool) = self.pool_of(key) else {
            return false;
        };
        let Some(check) = pool.check.clone() else {
            return false;
        };
        let known = self.known.get_mut(key);
        let known = known.filter(|known| known.addr == Some(addr));
        known.is_some_and(|known| known.health.step(result, now_ms, &check))
    }

    fn pool_of(&self, key: &BackendKey) -> Option<&Pool> {
        let balancer = self.balancers.get(&key.balancer)?;
        balancer.pools.iter().find(|pool| pool.name == key.pool)
    }

    /// The backends that a name, or `POOL/NAME`, means within a balancer.
    pub fn named(&self, balancer: &BalancerKey, name: &str) -> Vec<BackendKey> {
        let (pool, name) = match name.split_once('/') {
            Some((pool, name)) => (Some(pool), name),
            None => (None, name),
        };
        let fits = |key: &&BackendKey| {
            key.balancer == *balancer
                && key.name == name
                && pool.is_none_or(|pool| key.pool == pool)
        };
        self.known.keys().filter(fits).cloned().collect()
    }

    /// Begins a drain, or ends it.
    pub fn set_drain(&mut self, key: &BackendKey, drain: Option<Drain>) {
        if let Some(known) = self.known.get_mut(key) {
            known.drain = drain;
        }
    }

    /// Drains that were asked for.
    pub fn drains(&self) -> impl Iterator<Item = (&BackendKey, Drain)> {
        let drains = self.known.iter();
        drains.filter_map(|(key, known)| Some((key, known.drain?)))
    }

    /// A backend's drain.
    pub fn drain(&self, key: &BackendKey) -> Option<Drain> {
        self.known.get(key)?.drain
    }

    /// A backend's health; `None` when nobody checks it.
    pub fn health(&self, key: &BackendKey) -> Option<&Health> {
        self.pool_of(key)?.check.as_ref()?;
        self.known.get(key).map(|known| &known.health)
    }

    /// The ways to backends that are known now.
    pub fn set_ways(&mut self, ways: Ways) {
        self.ways = ways;
    }

    /// The way to an address.
    pub fn way(&self, addr: IpAddr) -> Option<Way> {
        self.ways.get(&addr).copied().flatten()
    }

    /// Whether every backend has a verdict, where it is checked, and its way was looked up.
    pub fn is_settled(&self) -> bool {
        let judged = |key: &BackendKey, known: &Known| {
            let down = self.backend(key).is_none_or(|b| b.admin == Admin::Down);
            let checked = !down && self.pool_of(key).is_some_and(|pool| pool.check.is_some());
            !checked || known.health.verdict() != Verdict::Unknown
        };
        let has_way = |known: &Known| known.addr.is_none_or(|addr| self.ways.contains_key(&addr));
        self.known
            .iter()
            .all(|(key, known)| judged(key, known) && has_way(known))
    }

    fn backend(&self, key: &BackendKey) -> Option<&Backend> {
        let backends = &self.pool_of(key)?.backends;
        backends.iter().find(|backend| backend.name == key.name)
    }

    /// Whether so few backends of a pool are healthy that all get traffic.
    pub fn is_in_panic(&self, balancer: &Balancer, pool: &Pool) -> bool {
        let verdicts = self.candidates(balancer, pool);
        let verdicts: Vec<Verdict> = verdicts
            .filter_map(|(_, known)| known.map(|known| known.health.verdict()))
            .filter(|verdict| *verdict != Verdict::Unknown)
            .collect();
        let healthy = verdicts.iter().filter(|v| **v == Verdict::Healthy).count();
        pool.check.is_some()
            && !verdicts.is_empty()
            && healthy * 100 < verdicts.len() * usize::from(pool.panic_percent)
    }

    /// Backends that may take new flows, with what is known of them.
    fn candidates<'a>(
        &'a self,
        balancer: &'a Balancer,
        pool: &'a Pool,
    ) -> impl Iterator<Item = (&'a Backend, Option<&'a Known>)> {
        let all = pool.backends.iter().map(|backend| {
            let key = balancer.backend_key(pool, backend);
            (backend, self.known.get(&key))
        });
        all.filter(|(backend, known)| {
            backend.admin == Admin::Up && known.is_none_or(|known| known.drain.is_none())
        })
    }

    /// What each backend of a pool gets, in the pool's order.
    pub fn shares(&self, balancer: &Balancer, pool: &Pool, now_ms: u64) -> Vec<Share> {
        let panic = self.is_in_panic(balancer, pool);
        let anybody = self.candidates(balancer, pool).any(|(_, known)| {
            known.is_some_and(|known| known.health.verdict() == Verdict::Healthy)
        });
        let share = |backend: &Backend| {
            let key = balancer.backend_key(pool, backend);
            let known = self.known.get(&key).cloned().unwrap_or_default();
            let verdict = match &pool.check {
                Some(_) => known.health.verdict(),
                None => Verdict::Healthy,
            };
            let drains = backend.admin == Admin::Drain || known.drain.is_some();
            let state = if backend.admin == Admin::Down {
                BackendState::Down
            } else if drains {
                let deadline = known.drain.and_then(|drain| drain.deadline_ms);
                let over = deadline.is_some_and(|deadline| deadline <= now_ms);
                if over || verdict == Verdict::Unhealthy {
                    BackendState::Down
                } else {
                    BackendState::Draining
                }
            } else {
                let serves = panic
                    || match verdict {
                        Verdict::Healthy => true,
                        Verdict::Unhealthy => false,
                        Verdict::Unknown => !anybody,
                    };
                if serves {
                    BackendState::Up
                } else {
                    BackendState::Down
                }
            };
            Share {
                state,
                weight: weight(backend, pool, &known, now_ms),
            }
        };
        pool.backends.iter().map(share).collect()
    }

    /// Notes who began to take traffic, for slow starts.
    fn look(&mut self, now_ms: u64) {
        let mut seen = Vec::new();
        for balancer in self.balancers.values() {
            for pool in &balancer.pools {
                // A pool that is new as a whole has nobody to take the load meanwhile.
                let old = pool.backends.iter().any(|backend| {
                    let key = balancer.backend_key(pool, backend);
                    self.known
                        .get(&key)
                        .is_some_and(|known| known.seen && known.serves)
                });
                let shares = self.shares(balancer, pool, now_ms);
                for (backend, share) in pool.backends.iter().zip(shares) {
                    let key = balancer.backend_key(pool, backend);
                    let serves = share.state == BackendState::Up;
                    seen.push((
                        key,
                        serves,
                        old && pool.slow_start_ms > 0,
                        pool.slow_start_ms,
                    ));
                }
            }
        }
        for (key, serves, slow, slow_start_ms) in seen {
            let Some(known) = self.known.get_mut(&key) else {
                continue;
            };
            if serves && !known.serves && slow {
                known.ramp_from_ms = Some(now_ms);
            }
            let over = |from: u64| now_ms >= from.saturating_add(slow_start_ms);
            if !serves || known.ramp_from_ms.is_some_and(over) {
                known.ramp_from_ms = None;
            }
            (known.serves, known.seen) = (serves, true);
        }
    }

    /// Brings [`Model::desired`] to what it should be now; its generation.
    pub fn commit(&mut self, now_ms: u64) -> u32 {
        self.look(now_ms);
        let vips = self.vips(now_ms);
        if vips != self.desired.vips || !self.committed {
            self.committed = true;
            let generation = self.desired.generation.wrapping_add(1).max(1);
            self.desired = Desired { generation, vips };
        }
        self.desired.generation
    }

    fn vips(&self, now_ms: u64) -> Vec<Vip> {
        let mut vips = Vec::new();
        for balancer in self.balancers.values() {
            for listener in &balancer.listeners {
                let pool = &balancer.pools[listener.pool];
                let mut vip = crate::spec::vip_of(listener, pool);
                let shares = self.shares(balancer, pool, now_ms);
                for (backend, share) in vip.backends.iter_mut().zip(shares) {
                    backend.state = share.state;
                    backend.weight = share.weight;
                    let way = self.way(backend.addr);
                    backend.hop = way.map(|way| way.hop);
                    backend.mtu = way.map(|way| way.mtu);
                }
                vips.push(vip);
            }
        }
        vips
    }

    /// When something changes by itself next: a drain ends, or a slow start goes on.
    pub fn next_change_ms(&self, now_ms: u64) -> Option<u64> {
        let drains = self.drains().filter_map(|(_, drain)| drain.deadline_ms);
        let ramps = self.known.iter().filter_map(|(key, known)| {
            let slow = self.pool_of(key)?.slow_start_ms;
            let from = known.ramp_from_ms?;
            let step = now_ms.saturating_sub(from) * RAMP_STEPS / slow.max(1) + 1;
            // Rounded up: at that moment the step is done.
            Some(from + (step * slow).div_ceil(RAMP_STEPS))
        });
        drains.filter(|at| *at > now_ms).chain(ramps).min()
    }
}

/// A backend's weight: in pools with slow starts it is ten times as large, so that each step shows.
fn weight(backend: &Backend, pool: &Pool, known: &Known, now_ms: u64) -> u32 {
    if pool.slow_start_ms == 0 {
        return backend.weight;
    }
    let steps = known.ramp_from_ms.map_or(RAMP_STEPS, |from| {
        let done = now_ms.saturating_sub(from) * RAMP_STEPS / pool.slow_start_ms;
        (done + 1).min(RAMP_STEPS)
    });
    backend.weight * steps as u32
}

#[cfg(test)]
mod tests;
