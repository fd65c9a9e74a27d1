//! Raft behind the services: the state machine that it drives ([`machine`]), its calls to other
//! members ([`transport`]) and what they call here ([`peer`]), as [`Consensus`].

mod calls;
mod machine;
mod peer;
mod transport;

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use chainfire_core::{
    AsyncRuntime as _, Change as CoreChange, Environment, Error, ErrorKind, Node, NodeId,
    StateMachine, TokioEnvironment, Transport,
};
use chainfire_store::{Outcome, Reader, View};
use control_kit::stop::Stop;
use etcd_wire::RpcError;
use etcd_wire::chainfire::{Command, LeaseTime, outcome};
use futures_util::future::{Either, select};
use prost::Message as _;
use tonic::{Code, Status};

pub use machine::StoreMachine;
pub use peer::PeerService;
pub use transport::{PeerChannels, join};

use crate::consensus::{Change, Consensus, Member, Progress, Standing};
use crate::lease::LeaseKeeper;

/// How long a leader is waited for that tells a lease's time, and how long between two questions.
const LEASE_PATIENCE: Duration = Duration::from_secs(7);
const LEASE_RETRY: Duration = Duration::from_millis(50);

/// A member, in production.
pub type RaftNode = Node<TokioEnvironment, PeerChannels, StoreMachine>;

/// Calls to other members beyond consensus.
pub trait Peers: Transport {
    /// Asks the leader for a lease's time, and renews it unless `peek`. `None`: no such lease.
    fn lease_time(
        &self,
        leader: NodeId,
        member: &chainfire_core::Member,
        id: i64,
        peek: bool,
    ) -> impl Future<Output = Result<Option<LeaseTime>, Status>> + Send;
}

/// A state machine of keys.
pub trait KeyMachine: StateMachine<Outcome = Outcome, Reader = Reader> {}

impl<S: StateMachine<Outcome = Outcome, Reader = Reader>> KeyMachine for S {}

/// A member, for the services; by default as in production.
pub struct RaftConsensus<
    E: Environment = TokioEnvironment,
    T: Peers = PeerChannels,
    S: KeyMachine = StoreMachine,
> {
    node: Node<E, T, S>,
    reader: Reader,
    cluster_id: u64,
    channels: T,
    leases: Arc<LeaseKeeper<E::Runtime>>,
    /// What answers' heads say, followed by a task: reading it costs nothing.
    term: AtomicU64,
    leader: AtomicU64,
}

impl<E: Environment, T: Peers, S: KeyMachine> RaftConsensus<E, T, S> {
    /// The services' side of a node that was started.
    pub fn new(
        node: Node<E, T, S>,
        cluster_id: u64,
        channels: T,
        leases: Arc<LeaseKeeper<E::Runtime>>,
    ) -> Arc<Self> {
        let reader = node.reader().clone();
        Arc::new(RaftConsensus {
            node,
            reader,
            cluster_id,
            channels,
            leases,
            term: AtomicU64::new(0),
            leader: AtomicU64::new(0),
        })
    }

    /// Follows who leads, until the node stops.
    pub async fn follow(self: Arc<Self>, stop: Stop) {
        let mut seen = (None, 0);
        loop {
            tokio::select! {
                biased;
                () = stop.requested() => return,
                changed = self.node.leadership_changed(seen) => {
                    let Ok(now) = changed else {
                        self.leader.store(0, Ordering::Relaxed);
                        return;
                    };
                    seen = now;
                }
            }
            let (leader, term) = seen;
            self.term.store(term, Ordering::Relaxed);
            self.leader
                .store(leader.unwrap_or_default(), Ordering::Relaxed);
            tracing::info!(
                leader = leader.map(|id| format!("{id:x}")),
                term,
                "leadership"
            );
        }
    }

    /// The node itself.
    pub(crate) fn node(&self) -> &Node<E, T, S> {
        &self.node
    }

    /// Asks whoever leads for a lease's time, for as long as that one leads.
    async fn ask_lease_time(&self, id: i64, peek: bool) -> Result<Option<LeaseTime>, Status> {
        let status = self.node.status();
        let leader = status.leader.ok_or(RpcError::NoLeader)?;
        if leader == self.node.id() {
            return self.own_lease_time(id, peek).await;
        }
        let known = status.members.iter().find(|known| known.id == leader);
        let member = &known.ok_or(RpcError::NoLeader)?.member;
        let asked = self.channels.lease_time(leader, member, id, peek);
        let moved = self.node.leadership_changed((Some(leader), status.term));
        let (asked, moved) = (pin!(asked), pin!(moved));
        match select(asked, moved).await {
            Either::Left((answer, _)) => answer,
            Either::Right((Ok(_), _)) => Err(RpcError::LeaderChanged.into()),
            Either::Right((Err(error), _)) => Err(self::status(&error)),
        }
    }

    /// A lease's time, of this member's own clock; it has to lead.
    pub(crate) async fn own_lease_time(
        &self,
        id: i64,
        peek: bool,
    ) -> Result<Option<LeaseTime>, Status> {
        // Who leads no more must not say that a lease lives.
        self.barrier().await?;
        let term = self.node.status().term;
        let time = self.leases.time(&self.reader.view(), term, id, peek);
        if peek || time.is_none() {
            return Ok(time);
        }
        match self.leases.uncheckpoint(self, id).await {
            Ok(()) => Ok(time),
            // It was revoked meanwhile.
            Err(_) if self.reader.view().lease(id).is_none() => Ok(None),
            Err(status) => Err(status),
        }
    }
}

/// Whether a question may be answered when it is asked again.
fn passes(status: &Status) -> bool {
    status.code() == Code::Unavailable && status.message() != RpcError::Stopped.text()
}

/// etcd's error for what went wrong in consensus.
pub(crate) fn status(error: &Error) -> Status {
    match error.kind() {
        ErrorKind::Unavailable => RpcError::NoLeader.into(),
        ErrorKind::NotLeader(_) => RpcError::NotLeader.into(),
        ErrorKind::Timeout => RpcError::Timeout.into(),
        ErrorKind::Unknown => RpcError::TimeoutDueToLeaderFail.into(),
        ErrorKind::Stopped => RpcError::Stopped.into(),
        ErrorKind::Refused => Status::failed_precondition(format!("etcdserver: {error}")),
        ErrorKind::NotFound => RpcError::MemberNotFound.into(),
        ErrorKind::Exists => RpcError::PeerUrlExist.into(),
        ErrorKind::Invalid => Status::invalid_argument(format!("etcdserver: {error}")),
        _ => Status::internal(format!("etcdserver: {error}")),
    }
}

fn core_member(member: &Member) -> chainfire_core::Member {
    chainfire_core::Member {
        name: member.name.clone(),
        peer_urls: member.peer_urls.clone(),
        client_urls: member.client_urls.clone(),
        becomes_voter: !member.is_learner,
    }
}

fn core_change(change: Change) -> CoreChange {
    match change {
        Change::Add(member) => CoreChange::Add {
            id: member.id,
            member: core_member(&member),
        },
        Change::Remove(id) => CoreChange::Remove { id },
        Change::Promote(id) => CoreChange::Promote { id },
        Change::Update(member) => CoreChange::Update {
            id: member.id,
            member: core_member(&member),
        },
        Change::Replace {
            voters,
            added,
            retain,
        } => {
            let members = added.iter().map(|member| (member.id, core_member(member)));
            CoreChange::Joint {
                voters: voters.into_iter().collect(),
                members: members.collect::<BTreeMap<_, _>>(),
                retain,
            }
        }
    }
}

impl<E: Environment, T: Peers, S: KeyMachine> RaftConsensus<E, T, S> {
    /// A refusal in etcd's own words, where it has some.
    fn refused(&self, change: &Change, error: &Error) -> Status {
        if let (Change::Promote(id), ErrorKind::Refused) = (change, error.kind()) {
            let standing = self.standing();
            let member = standing.members.iter().find(|member| member.id == *id);
            if member.is_some_and(|member| !member.is_learner) {
                return RpcError::MemberNotLearner.into();
            }
            if error.to_string().starts_with("learner ") {
                return RpcError::LearnerNotReady.into();
            }
        }
        if let (Change::Add(member), ErrorKind::Exists) = (change, error.kind()) {
            let standing = self.standing();
            if standing.members.iter().any(|known| known.id == member.id) {
                return RpcError::MemberExist.into();
            }
        }
        status(error)
    }
}

#[tonic::async_trait]
impl<E: Environment, T: Peers, S: KeyMachine> Consensus for RaftConsensus<E, T, S> {
    fn cluster_id(&self) -> u64 {
        self.cluster_id
    }

    fn member_id(&self) -> u64 {
        self.node.id()
    }

    fn term(&self) -> u64 {
        self.term.load(Ordering::Relaxed)
    }

    async fn propose(&self, command: Command) -> Result<outcome::Result, Status> {
        let bytes = Bytes::from(command.encode_to_vec());
        let outcome = self
            .node
            .propose(bytes)
            .await
            .map_err(|error| status(&error))?;
        Ok(outcome?)
    }

    async fn propose_leading(
        &self,
        term: u64,
        command: Command,
    ) -> Result<outcome::Result, Status> {
        let bytes = Bytes::from(command.encode_to_vec());
        let proposed = self.node.propose_leading(term, bytes).await;
        Ok(proposed.map_err(|error| status(&error))??)
    }

    async fn barrier(&self) -> Result<(), Status> {
        self.node
            .read_barrier()
            .await
            .map_err(|error| status(&error))
    }

    fn view(&self) -> Arc<View> {
        self.reader.view()
    }

    fn standing(&self) -> Standing {
        let status = self.node.status();
        let others = status
            .members
            .iter()
            .filter(|member| member.id != status.id);
        let progress = others.filter_map(|member| {
            Some(Progress {
                id: member.id,
                matched_index: member.matched.unwrap_or_default(),
                last_contact_ms: member.silence.map(|silence| silence.as_millis() as u64),
                reachable: member.reachable?,
            })
        });
        let progress = progress.collect();
        let members = status.members.into_iter().map(|known| Member {
            id: known.id,
            name: known.member.name,
            peer_urls: known.member.peer_urls,
            client_urls: known.member.client_urls,
            is_learner: !known.voter,
        });
        let voters = status.voters.into_iter();
        Standing {
            cluster_id: self.cluster_id,
            member_id: status.id,
            term: status.term,
            leader_id: status.leader.unwrap_or_default(),
            last_log_index: status.last_index.unwrap_or_default(),
            committed_index: status.committed.unwrap_or_default(),
            applied_index: status.applied.unwrap_or_default(),
            snapshot_index: status.snapshot.unwrap_or_default(),
            purged_index: status.purged.unwrap_or_default(),
            members: members.collect(),
            voters: voters.map(|set| set.into_iter().collect()).collect(),
            progress,
            change_refused: status.change_refused,
            failed: status.failure,
        }
    }

    async fn change(&self, change: Change) -> Result<Vec<Member>, Status> {
        let made = self.node.change(&core_change(change.clone())).await;
        made.map_err(|error| self.refused(&change, &error))?;
        // What the leader committed may not be here yet. Who was removed sees no barrier any more.
        if let Err(status) = self.barrier().await {
            tracing::debug!(%status, "members as known here, after a change");
        }
        Ok(self.standing().members)
    }

    async fn transfer(&self, to: u64) -> Result<u64, Status> {
        let to = (to != 0).then_some(to);
        let made = self.node.change(&CoreChange::Transfer { to }).await;
        made.map_err(|error| status(&error))?;
        Ok(self.node.status().leader.unwrap_or_default())
    }

    async fn lease_time(&self, id: i64, peek: bool) -> Result<Option<LeaseTime>, Status> {
        // As for a write, another leader is waited for: clients take a refusal for the lease's end.
        let asked = async {
            loop {
                match self.ask_lease_time(id, peek).await {
                    Err(status) if passes(&status) => {
                        tracing::debug!(lease = id, %status, "the leader is asked again");
                        E::Runtime::sleep(LEASE_RETRY).await;
                    }
                    answer => return answer,
                }
            }
        };
        let answer = E::Runtime::timeout(LEASE_PATIENCE, asked).await;
        answer.unwrap_or_else(|_| Err(RpcError::Timeout.into()))
    }
}
