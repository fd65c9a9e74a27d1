//! When leases may end. The keeper's own revocations are seen on their way to consensus, with the time
//! on the clock of the member that asks for them; what gives a lease its time was seen at the clients.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chainfire_core::Instant as _;
use chainfire_core::sim::runtime::{self, SimInstant};
use chainfire_core::types::NodeId;
use chainfire_store::{Op, View};
use etcd_wire::chainfire::{Command, LeaseTime, outcome};
use tonic::Status;

use super::history::{self, SharedHistory, Step};
use super::model::told;
use crate::consensus::{Change, Consensus, Member, Standing};

/// A lease got its whole time, not before this.
#[derive(Debug, Clone)]
pub struct Renewal {
    lease: i64,
    ttl: Duration,
    at: SimInstant,
    /// How far each member's clock was ahead then.
    ahead: BTreeMap<NodeId, Duration>,
}

impl Renewal {
    /// About to be asked for.
    pub fn now(lease: i64, ttl_s: i64) -> Renewal {
        Renewal {
            lease,
            ttl: Duration::from_secs(ttl_s as u64),
            at: SimInstant::now(),
            ahead: runtime::ahead(),
        }
    }

    /// Answered with this time.
    pub fn lasting(self, ttl_s: i64) -> Renewal {
        let ttl = Duration::from_secs(ttl_s as u64);
        Renewal { ttl, ..self }
    }
}

/// A leader's keeper found that a lease had ended.
#[derive(Debug, Clone, Copy)]
struct End {
    lease: i64,
    by: NodeId,
    at: SimInstant,
    ahead: Duration,
    /// It was revoked so.
    done: bool,
}

/// All that happened to leases' times.
#[derive(Debug, Default)]
pub struct Times {
    renewals: Vec<Renewal>,
    ends: Vec<End>,
}

/// The times of a world's leases.
pub type SharedTimes = Arc<Mutex<Times>>;

/// The times, for one step.
pub fn lock(times: &SharedTimes) -> MutexGuard<'_, Times> {
    times.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Times {
    /// A lease was granted or kept alive.
    pub fn renewed(&mut self, renewal: Renewal) {
        self.renewals.push(renewal);
    }

    /// How many leases were found to have ended.
    pub fn ended(&self) -> usize {
        self.ends.iter().filter(|end| end.done).count()
    }

    /// No lease ended early.
    pub fn check(&self) {
        for end in self.ends.iter().filter(|end| end.done) {
            let of = |renewal: &&Renewal| renewal.lease == end.lease && renewal.at < end.at;
            for renewal in self.renewals.iter().filter(of) {
                let ahead = renewal.ahead.get(&end.by).copied().unwrap_or_default();
                let passed = ((end.at - renewal.at) + end.ahead).saturating_sub(ahead);
                assert!(
                    passed >= renewal.ttl,
                    "a lease ended after {passed:?} of its leader's time: {end:?}, {renewal:?}"
                );
            }
        }
    }
}

/// Consensus as the keeper of a member sees it, with a witness to what it ends.
pub struct Witness<C> {
    pub consensus: Arc<C>,
    pub times: SharedTimes,
    pub history: SharedHistory,
}

#[tonic::async_trait]
impl<C: Consensus> Consensus for Witness<C> {
    fn cluster_id(&self) -> u64 {
        self.consensus.cluster_id()
    }

    fn member_id(&self) -> u64 {
        self.consensus.member_id()
    }

    fn term(&self) -> u64 {
        self.consensus.term()
    }

    async fn propose(&self, command: Command) -> Result<outcome::Result, Status> {
        self.consensus.propose(command).await
    }

    async fn propose_leading(
        &self,
        term: u64,
        command: Command,
    ) -> Result<outcome::Result, Status> {
        let Some(Op::LeaseRevoke(revoke)) = command.op else {
            return self.consensus.propose_leading(term, command).await;
        };
        let by = self.member_id();
        let mut end = End {
            lease: revoke.id,
            by,
            at: SimInstant::now(),
            ahead: runtime::ahead().get(&by).copied().unwrap_or_default(),
            done: false,
        };
        let place = history::lock(&self.history).asks(0, Step::Revoke(revoke.id));
        let answer = self.consensus.propose_leading(term, command).await;
        end.done = answer.is_ok();
        lock(&self.times).ends.push(end);
        let told = answer.as_ref().map(|reply| told(&Ok(reply.clone())));
        let told = told.map(|answer| answer.expect("it was not refused"));
        history::lock(&self.history).answered(place, told);
        answer
    }

    async fn barrier(&self) -> Result<(), Status> {
        self.consensus.barrier().await
    }

    fn view(&self) -> Arc<View> {
        self.consensus.view()
    }

    fn standing(&self) -> Standing {
        self.consensus.standing()
    }

    async fn change(&self, change: Change) -> Result<Vec<Member>, Status> {
        self.consensus.change(change).await
    }

    async fn transfer(&self, to: u64) -> Result<u64, Status> {
        self.consensus.transfer(to).await
    }

    async fn lease_time(&self, id: i64, peek: bool) -> Result<Option<LeaseTime>, Status> {
        self.consensus.lease_time(id, peek).await
    }
}
