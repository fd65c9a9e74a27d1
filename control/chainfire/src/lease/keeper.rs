//! Runs the lease clock while this member leads.
//!
//! The clock is made when leadership is seen and thrown away when it is lost. What leases there are is
//! the state machine's word: the keeper takes it over at each look, so that a lease granted through any
//! member is counted, a little late and never early.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chainfire_core::{AsyncRuntime, Instant as _};
use chainfire_store::View;
use control_kit::stop::Stop;
use etcd_wire::chainfire::command::Op;
use etcd_wire::chainfire::{Command, LeaseTime};
use etcd_wire::etcdserverpb::LeaseRevokeRequest;
use futures_util::stream::{self, StreamExt as _};

use super::LeaseClock;
use crate::consensus::Consensus;

/// How often is looked for leases that have ended: etcd's interval.
const INTERVAL: Duration = Duration::from_millis(500);
/// Leases ended in one look, at most.
const EXPIRED_MAX: usize = 4096;
/// Revocations under way at once.
const REVOCATIONS_MAX: usize = 128;

/// The clock of this member, when it leads, by the time of its runtime.
pub struct LeaseKeeper<R: AsyncRuntime> {
    start: R::Instant,
    clock: Mutex<Option<(u64, LeaseClock)>>,
}

impl<R: AsyncRuntime> LeaseKeeper<R> {
    /// A keeper that does not lead yet.
    pub fn new() -> Arc<LeaseKeeper<R>> {
        Arc::new(LeaseKeeper {
            start: R::Instant::now(),
            clock: Mutex::default(),
        })
    }

    /// Looks at the clock until the node stops.
    pub async fn run(self: Arc<Self>, consensus: Arc<dyn Consensus>, stop: Stop) {
        loop {
            let next = R::Instant::now() + INTERVAL;
            let (term, expired) = self.look(&*consensus);
            let revoked = stream::iter(expired).for_each_concurrent(REVOCATIONS_MAX, |id| {
                let consensus = &consensus;
                async move {
                    let command = Command {
                        op: Some(Op::LeaseRevoke(LeaseRevokeRequest { id })),
                        ..Command::default()
                    };
                    // What fails is due again soon. Another leader counts for itself: it may have given
                    // the lease its whole time again meanwhile.
                    let revoked = consensus.propose_leading(term, command).await;
                    if let Err(status) = revoked {
                        tracing::debug!(lease = id, %status, "an ended lease is not revoked yet");
                    }
                }
            });
            let looked = async {
                revoked.await;
                R::sleep_until(next).await;
            };
            tokio::select! {
                biased;
                () = stop.requested() => return,
                () = looked => {}
            }
        }
    }

    /// Takes over what leases there are; the term, and those that have ended.
    fn look(&self, consensus: &dyn Consensus) -> (u64, Vec<i64>) {
        let standing = consensus.standing();
        let now = self.now_ms();
        let mut clock = self.lock();
        if !standing.leads() {
            *clock = None;
            return (standing.term, Vec::new());
        }
        let view = consensus.view();
        let clock = clock_of(&mut clock, standing.term, &view, now);
        let leases = view.leases();
        clock.reconcile(leases.map(|lease| (lease.id, lease.ttl_s as u64)), now);
        (standing.term, clock.expire(now, EXPIRED_MAX))
    }

    /// A lease's time, renewed unless `peek`; to be asked of the leader in its term. `None` without
    /// the lease.
    pub fn time(&self, view: &View, term: u64, id: i64, peek: bool) -> Option<LeaseTime> {
        let lease = view.lease(id)?;
        let granted_ttl = lease.ttl_s;
        let now = self.now_ms();
        let mut clock = self.lock();
        let clock = clock_of(&mut clock, term, view, now);
        if clock.remaining_ms(id, now).is_none() {
            clock.grant(id, granted_ttl as u64, now);
        }
        let ttl = if peek {
            (clock.remaining_ms(id, now)? / 1_000) as i64
        } else {
            clock.renew(id, now)? as i64
        };
        Some(LeaseTime { ttl, granted_ttl })
    }

    fn now_ms(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }

    fn lock(&self) -> MutexGuard<'_, Option<(u64, LeaseClock)>> {
        self.clock.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The clock of this term; a new one gives every lease its whole time.
fn clock_of<'a>(
    slot: &'a mut Option<(u64, LeaseClock)>,
    term: u64,
    view: &View,
    now_ms: u64,
) -> &'a mut LeaseClock {
    if slot.as_ref().is_none_or(|(of, _)| *of != term) {
        let leases = view.leases();
        let leases = leases.map(|lease| (lease.id, lease.ttl_s as u64));
        *slot = Some((term, LeaseClock::lead(leases, now_ms)));
    }
    let (_, clock) = slot.as_mut().expect("it was put there when it was missing");
    clock
}
