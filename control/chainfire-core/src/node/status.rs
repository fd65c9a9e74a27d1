//! What a member tells about itself and, where it leads, about the others.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::{Instant as _, RaftMetrics, ServerState};

use crate::env::Environment;
use crate::error::{Error, ErrorKind, Result};
use crate::machine::StateMachine;
use crate::node::{ConfigOf, Node};
use crate::transport::Transport;
use crate::types::{LogId, Member, NodeId, Term};

/// What a member does in the cluster now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It has the log and does not vote.
    Learner,
    /// It follows a leader, or looks for one.
    Follower,
    /// It asks for votes.
    Candidate,
    /// It leads.
    Leader,
    /// It has stopped.
    Stopped,
}

/// A member as another sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberStatus {
    /// Its identity.
    pub id: NodeId,
    /// What is known of it.
    pub member: Member,
    /// Whether it votes.
    pub voter: bool,
    /// The last entry it is known to have; only a leader knows.
    pub matched: Option<u64>,
    /// How long it has been silent; only a leader knows.
    pub silence: Option<Duration>,
    /// Whether it answers; only a leader knows.
    pub reachable: Option<bool>,
}

/// A member's view of the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// The member that answers.
    pub id: NodeId,
    /// What it does.
    pub role: Role,
    /// Who leads, as far as it knows.
    pub leader: Option<NodeId>,
    /// Raft's term.
    pub term: Term,
    /// The last entry's index.
    pub last_index: Option<u64>,
    /// Up to where entries are committed.
    pub committed: Option<u64>,
    /// Up to where entries are applied here.
    pub applied: Option<u64>,
    /// Up to where the newest snapshot goes.
    pub snapshot: Option<u64>,
    /// Up to where the log was purged.
    pub purged: Option<u64>,
    /// The voter sets in force: two while a joint change is under way.
    pub voters: Vec<BTreeSet<NodeId>>,
    /// All members.
    pub members: Vec<MemberStatus>,
    /// Proposals of this member that wait for their outcome.
    pub waiting: usize,
    /// Why changes of the membership are refused now, if they are.
    pub change_refused: Option<String>,
    /// Why this member has stopped, if it has.
    pub failure: Option<String>,
}

impl<E: Environment, T: Transport, S: StateMachine> Node<E, T, S> {
    /// After how long a silent member counts as unreachable.
    pub(crate) fn silence_max(&self) -> Duration {
        self.inner.options.election * 2
    }

    /// What this member knows now.
    pub fn status(&self) -> Status {
        let metrics = self.metrics();
        let contacts = contacts::<E>(&metrics);
        let leads = metrics.state.is_leader();
        let membership = &metrics.membership_config;
        let voters: BTreeSet<NodeId> = membership.voter_ids().collect();
        let members = membership.nodes().map(|(&id, member)| {
            let itself = id == self.id();
            let silence = if itself {
                Some(Duration::ZERO)
            } else {
                contacts.get(&id).copied()
            };
            let silence = silence.filter(|_| leads);
            let matched = metrics.replication.as_ref().and_then(|all| all.get(&id));
            let matched = matched.and_then(|matched| matched.as_ref().map(LogId::index));
            MemberStatus {
                id,
                member: member.clone(),
                voter: voters.contains(&id),
                matched: if itself {
                    metrics.last_log_index
                } else {
                    matched
                },
                silence,
                reachable: leads.then(|| silence.is_some_and(|for_| for_ <= self.silence_max())),
            }
        });
        let change_refused = match self.known() {
            Ok(known) => known.under_way(),
            Err(_) if metrics.current_leader.is_none() => {
                Some("no leader is known; a quorum of voters must answer".to_owned())
            }
            Err(_) => None,
        };
        Status {
            id: self.id(),
            role: role(metrics.state),
            // A member that has stopped knows nothing of who leads now.
            leader: metrics
                .current_leader
                .filter(|_| metrics.running_state.is_ok()),
            term: metrics.current_term,
            last_index: metrics.last_log_index,
            committed: metrics.local_committed.as_ref().map(LogId::index),
            applied: self.inner.applied.borrow_watched().map(|id| id.index()),
            snapshot: metrics.snapshot.as_ref().map(LogId::index),
            purged: metrics.purged.as_ref().map(LogId::index),
            voters: membership.get_joint_config().clone(),
            members: members.collect(),
            waiting: self.inner.waiting.len(),
            change_refused,
            failure: self.inner.wal.failure().or_else(|| {
                metrics
                    .running_state
                    .as_ref()
                    .err()
                    .map(ToString::to_string)
            }),
        }
    }

    /// Waits until leader, term, membership or this member's own state differ from `seen`: a
    /// leader and term as [`Status`] told them. For services that run on the leader alone.
    ///
    /// # Errors
    /// [`ErrorKind::Stopped`] when the member has stopped.
    pub async fn leadership_changed(
        &self,
        seen: (Option<NodeId>, Term),
    ) -> Result<(Option<NodeId>, Term)> {
        let mut metrics = self.inner.raft.metrics();
        let changed = metrics
            .wait_until(|metrics| {
                (metrics.current_leader, metrics.current_term) != seen
                    || metrics.running_state.is_err()
            })
            .await;
        match changed {
            Ok(metrics) if metrics.running_state.is_ok() => {
                Ok((metrics.current_leader, metrics.current_term))
            }
            _ => Err(Error::new(ErrorKind::Stopped, "the member has stopped")),
        }
    }
}

/// How long each other member has been silent, where this one leads.
pub(crate) fn contacts<E: Environment>(
    metrics: &RaftMetrics<ConfigOf<E>>,
) -> BTreeMap<NodeId, Duration> {
    let heartbeats = metrics.heartbeat.iter().flatten();
    heartbeats
        .filter_map(|(&id, at)| Some((id, at.as_ref()?.elapsed())))
        .collect()
}

fn role(state: ServerState) -> Role {
    match state {
        ServerState::Learner => Role::Learner,
        ServerState::Follower => Role::Follower,
        ServerState::Candidate => Role::Candidate,
        ServerState::Leader => Role::Leader,
        ServerState::Shutdown => Role::Stopped,
    }
}
