//! Runs the lease clock while this member leads.
//!
//! The clock is made when leadership is seen and thrown away when it is lost. What leases there are is
//! the state machine's word: the keeper takes it over at each look, so that a lease granted through any
//! member is counted, a little late and never early.
//!
//! A checkpoint is the one thing that shortens a lease, for the next leader. So it is proposed and waited
//! for under a lock that a renewal takes, too, before it takes the checkpoint back: whoever was told that
//! a lease is renewed has all of its time, whoever leads next.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chainfire_core::{AsyncRuntime, Instant as _};
use chainfire_store::View;
use control_kit::stop::Stop;
use etcd_wire::chainfire::command::Op;
use etcd_wire::chainfire::{Command, LeaseTime};
use etcd_wire::etcdserverpb::{LeaseCheckpoint, LeaseCheckpointRequest, LeaseRevokeRequest};
use futures_util::stream::{self, StreamExt as _};
use tonic::Status;

use super::{Granted, LeaseClock};
use crate::consensus::Consensus;

/// How often is looked for leases that have ended: etcd's interval.
const INTERVAL: Duration = Duration::from_millis(500);
/// Leases ended in one look, at most.
const EXPIRED_MAX: usize = 4096;
/// Revocations under way at once.
const REVOCATIONS_MAX: usize = 128;
/// Leases of one checkpoint: etcd's bound.
const CHECKPOINTED_MAX: usize = 1000;

/// The clock of this member, when it leads, by the time of its runtime.
pub struct LeaseKeeper<R: AsyncRuntime> {
    start: R::Instant,
    clock: Mutex<Option<(u64, LeaseClock)>>,
    /// Held while a checkpoint, or taking one back, is on its way.
    checkpointing: tokio::sync::Mutex<()>,
}

impl<R: AsyncRuntime> LeaseKeeper<R> {
    /// A keeper that does not lead yet.
    pub fn new() -> Arc<LeaseKeeper<R>> {
        Arc::new(LeaseKeeper {
            start: R::Instant::now(),
            clock: Mutex::default(),
            checkpointing: tokio::sync::Mutex::default(),
        })
    }

    /// Looks at the clock until the node stops.
    pub async fn run(self: Arc<Self>, consensus: Arc<dyn Consensus>, stop: Stop) {
        loop {
            let next = R::Instant::now() + INTERVAL;
            let (term, expired) = self.look(&*consensus, self.now_ms());
            let looked = async {
                let ended = revoke_all(&*consensus, term, expired);
                let kept = self.checkpoint(&*consensus, term, self.now_ms());
                tokio::join!(ended, kept);
                R::sleep_until(next).await;
            };
            tokio::select! {
                biased;
                () = stop.requested() => return,
                () = looked => {}
            }
        }
    }

    /// Replicates what is left of leases that live for long.
    async fn checkpoint(&self, consensus: &dyn Consensus, term: u64, now_ms: u64) {
        let turn = self.checkpointing.lock().await;
        let due = match &mut *self.lock() {
            Some((_, clock)) => clock.checkpoint(now_ms, CHECKPOINTED_MAX),
            None => Vec::new(),
        };
        if due.is_empty() {
            return;
        }
        let checkpoints = due.into_iter().map(|(id, left_s)| LeaseCheckpoint {
            id,
            remaining_ttl: left_s as i64,
        });
        // Another leader may have given a lease its whole time again, and knows of no checkpoint.
        let command = checkpoint_command(checkpoints.collect());
        if let Err(status) = consensus.propose_leading(term, command).await {
            tracing::debug!(%status, "leases are not checkpointed");
        }
        drop(turn);
    }

    /// Takes a lease's checkpoint back, if it has one.
    ///
    /// # Errors
    /// It may still have it.
    pub async fn uncheckpoint(&self, consensus: &dyn Consensus, id: i64) -> Result<(), Status> {
        let has_one = || {
            let clock = self.lock();
            clock
                .as_ref()
                .is_some_and(|(_, clock)| clock.is_checkpointed(id))
        };
        if !has_one() {
            return Ok(());
        }
        let turn = self.checkpointing.lock().await;
        let none = LeaseCheckpoint {
            id,
            remaining_ttl: 0,
        };
        consensus.propose(checkpoint_command(vec![none])).await?;
        if let Some((_, clock)) = &mut *self.lock() {
            clock.uncheckpointed(id);
        }
        drop(turn);
        Ok(())
    }

    /// Takes over what leases there are; the term, and those that have ended.
    fn look(&self, consensus: &dyn Consensus, now: u64) -> (u64, Vec<i64>) {
        let standing = consensus.standing();
        let mut clock = self.lock();
        if !standing.leads() {
            *clock = None;
            return (standing.term, Vec::new());
        }
        let view = consensus.view();
        let clock = clock_of(&mut clock, standing.term, &view, now);
        clock.reconcile(view.leases().map(Granted::from), now);
        (standing.term, clock.expire(now, EXPIRED_MAX))
    }

    /// A lease's time, renewed unless `peek`; to be asked of the leader in its term. `None` without
    /// the lease. A renewal holds once its checkpoint was taken back ([`LeaseKeeper::uncheckpoint`]).
    pub fn time(&self, view: &View, term: u64, id: i64, peek: bool) -> Option<LeaseTime> {
        self.time_at(view, term, id, peek, self.now_ms())
    }

    fn time_at(&self, view: &View, term: u64, id: i64, peek: bool, now: u64) -> Option<LeaseTime> {
        let lease = view.lease(id)?;
        let granted_ttl = lease.ttl_s;
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

async fn revoke_all(consensus: &dyn Consensus, term: u64, leases: Vec<i64>) {
    let revoked = |id| async move {
        let command = Command {
            op: Some(Op::LeaseRevoke(LeaseRevokeRequest { id })),
            ..Command::default()
        };
        // What fails is due again soon. Another leader counts for itself: it may have given the lease
        // its whole time again meanwhile.
        if let Err(status) = consensus.propose_leading(term, command).await {
            tracing::debug!(lease = id, %status, "an ended lease is not revoked yet");
        }
    };
    stream::iter(leases)
        .for_each_concurrent(REVOCATIONS_MAX, revoked)
        .await;
}

fn checkpoint_command(checkpoints: Vec<LeaseCheckpoint>) -> Command {
    Command {
        op: Some(Op::LeaseCheckpoint(LeaseCheckpointRequest { checkpoints })),
        ..Command::default()
    }
}

/// The clock of this term; a new one begins as [`LeaseClock::lead`] says.
fn clock_of<'a>(
    slot: &'a mut Option<(u64, LeaseClock)>,
    term: u64,
    view: &View,
    now_ms: u64,
) -> &'a mut LeaseClock {
    if slot.as_ref().is_none_or(|(of, _)| *of != term) {
        let leases = view.leases().map(Granted::from);
        *slot = Some((term, LeaseClock::lead(leases, now_ms)));
    }
    let (_, clock) = slot.as_mut().expect("it was put there when it was missing");
    clock
}

#[cfg(test)]
mod tests;
