//! Admission of tenants' requests to a shard: how many run at once, and whose turn is next.
//!
//! A shard runs up to `concurrent_max` requests. Past that each tenant waits in a queue of its
//! own, bounded, and turns are given by shares and cost: a tenant that floods fills its own queue
//! and is refused, while another tenant's request waits for little more than one turn to end.
//!
//! Invariants: as in the `fair` module; a turn is given back exactly once, also when the waiter goes
//! in the moment in which it is given; the table of tenants is bounded, and idle ones are forgotten.
//!
//! It never looks at what a request does, never measures its cost (the caller says it), and never
//! sees another shard: shares are per shard. The callers' [`engine::ServiceGroup`] bounds the calls of all
//! tenants together: where requests come from other shards, its limit must be above
//! `concurrent_max` plus the queues of the tenants that may flood at once, or admission belongs in
//! front of the call too.

mod fair;
mod meter;

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

use fair::{Arrival, Fair, Ticket};
pub use meter::{WaitHistogram, prometheus};

/// Most tenants that a shard remembers, and most that have shares of their own.
pub const TENANTS_MAX: usize = 4096;
/// Most shares of a tenant.
pub const SHARES_MAX: u32 = 10_000;

/// Who requests belong to, as a number that the control layer gives out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TenantId(pub u64);

impl fmt::Display for TenantId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tenant {}", self.0)
    }
}

/// Limits of one shard's admission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdmissionConfig {
    /// Most requests that run at once, at least 1.
    pub concurrent_max: u32,
    /// Most requests of one tenant that wait; 0 refuses at once.
    pub queue_per_tenant_max: u32,
    /// Shares of tenants that have none of their own, 1 to [`SHARES_MAX`].
    pub default_shares: u32,
}

impl Default for AdmissionConfig {
    /// 64 at once, 256 waiting, 100 shares.
    fn default() -> AdmissionConfig {
        AdmissionConfig {
            concurrent_max: 64,
            queue_per_tenant_max: 256,
            default_shares: 100,
        }
    }
}

/// The request was refused: its tenant's queue is full. Nothing happened; a later try may pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{tenant} has {queued} requests waiting on this shard, its most; try again later")]
pub struct Busy {
    /// Who was refused.
    pub tenant: TenantId,
    /// How many of its requests wait. 0 when the shard serves its most tenants, [`TENANTS_MAX`].
    pub queued: u32,
}

/// Shares for one more tenant do not fit: [`TENANTS_MAX`] have some of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{TENANTS_MAX} tenants have shares of their own on this shard, the most")]
pub struct SharesFull;

/// One tenant on one shard.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TenantMetrics {
    /// Requests that have a turn.
    pub running: u32,
    /// Requests that wait.
    pub queued: u32,
    /// Turns given so far.
    pub admitted: u64,
    /// Requests refused so far.
    pub refused: u64,
    /// Requests that left their queue unserved.
    pub left: u64,
    /// How long those that were served waited.
    pub wait: WaitHistogram,
}

/// One shard's admission.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdmissionMetrics {
    /// Requests that have a turn.
    pub running: u32,
    /// The tenants that the shard remembers, by number.
    pub tenants: Vec<(TenantId, TenantMetrics)>,
    /// Counters of those it has forgotten, together, so that sums never shrink.
    pub forgotten: TenantMetrics,
}

/// A shard's admission. Clones are the same one.
#[derive(Clone)]
pub struct Admission {
    fair: Rc<RefCell<Fair<Rc<Waiter>>>>,
}

impl fmt::Debug for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let running = self.fair.borrow().running();
        f.debug_struct("Admission")
            .field("running", &running)
            .finish_non_exhaustive()
    }
}

struct Waiter {
    granted: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Admission {
    /// Admission for one shard; each shard has its own.
    ///
    /// # Panics
    /// When `concurrent_max` is 0 or `default_shares` is not in 1 to [`SHARES_MAX`].
    pub fn new(config: AdmissionConfig) -> Admission {
        assert!(config.concurrent_max > 0, "some request can run");
        let shares = config.default_shares;
        assert!(
            (1..=SHARES_MAX).contains(&shares),
            "{shares} shares are not in 1 to {SHARES_MAX}"
        );
        Admission {
            fair: Rc::new(RefCell::new(Fair::new(config))),
        }
    }

    /// Sets a tenant's shares, from its next turn on. Kept while the tenant idles; values outside
    /// of 1 to [`SHARES_MAX`] become the nearest one inside.
    ///
    /// # Errors
    /// [`SharesFull`]; the tenant keeps the default.
    pub fn set_shares(&self, tenant: TenantId, shares: u32) -> Result<(), SharesFull> {
        if self.fair.borrow_mut().set_shares(tenant, shares) {
            Ok(())
        } else {
            Err(SharesFull)
        }
    }

    /// Waits for a turn; at once when fewer than `concurrent_max` run. `cost` is what the request
    /// takes in a unit that all callers share (microseconds, KiB); 0 counts as 1.
    ///
    /// Cancel-safe: a request whose future is dropped leaves the queue, or gives its turn back.
    /// The wait has no deadline of its own: bound it by [`engine::timeout`].
    ///
    /// # Errors
    /// [`Busy`] when the tenant's queue is full.
    pub async fn enter(&self, tenant: TenantId, cost: u32) -> Result<Turn, Busy> {
        let mut waiter = None;
        let arrival = self.fair.borrow_mut().arrive(tenant, cost, || {
            let made = Rc::new(Waiter {
                granted: Cell::new(false),
                waker: RefCell::default(),
            });
            waiter = Some(Rc::clone(&made));
            made
        });
        let ticket = match arrival {
            Arrival::Waits(ticket) => ticket,
            Arrival::Refused { queued } => return Err(Busy { tenant, queued }),
            Arrival::Runs => {
                self.fair.borrow_mut().record_wait(tenant, 0);
                return Ok(Turn {
                    admission: self.clone(),
                    tenant,
                });
            }
        };
        let waiter = waiter.expect("a request that waits has had its waiter made");
        let place = Place {
            admission: self.clone(),
            tenant,
            ticket,
            waiter,
        };
        let since = engine::now();
        poll_fn(|cx| {
            if place.waiter.granted.get() {
                return Poll::Ready(());
            }
            *place.waiter.waker.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
        let wait_ns = u64::try_from(engine::now().since(since).as_nanos()).unwrap_or(u64::MAX);
        self.fair.borrow_mut().record_wait(tenant, wait_ns);
        Ok(place.into_turn())
    }

    /// This shard's counters.
    pub fn metrics(&self) -> AdmissionMetrics {
        self.fair.borrow().metrics()
    }

    fn end_turn(&self, tenant: TenantId) {
        self.fair.borrow_mut().end(tenant);
        loop {
            let next = self.fair.borrow_mut().next();
            let Some(waiter) = next else { return };
            waiter.granted.set(true);
            // Waking runs code of the executor, so nothing is borrowed here.
            let waker = waiter.waker.take();
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }
}

/// A place in a queue. Dropped early it is left, and a turn that came already is given back.
struct Place {
    admission: Admission,
    tenant: TenantId,
    ticket: Ticket,
    waiter: Rc<Waiter>,
}

impl Place {
    /// The turn that was given; from here on the turn gives it back.
    fn into_turn(self) -> Turn {
        assert!(
            self.waiter.granted.replace(false),
            "a place becomes a turn once it is granted"
        );
        Turn {
            admission: self.admission.clone(),
            tenant: self.tenant,
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.waiter.granted.get() {
            self.admission.end_turn(self.tenant);
        } else {
            self.admission
                .fair
                .borrow_mut()
                .leave(self.tenant, self.ticket);
        }
    }
}

/// The right to run, until it is dropped.
#[must_use = "a turn ends when it is dropped"]
pub struct Turn {
    admission: Admission,
    tenant: TenantId,
}

impl Turn {
    /// Whose turn it is.
    pub fn tenant(&self) -> TenantId {
        self.tenant
    }
}

impl fmt::Debug for Turn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Turn")
            .field("tenant", &self.tenant)
            .finish_non_exhaustive()
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.admission.end_turn(self.tenant);
    }
}

#[cfg(test)]
mod tests;
