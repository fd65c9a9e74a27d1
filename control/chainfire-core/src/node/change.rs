//! Changes of membership and leadership, judged and made by the leader.

use std::collections::{BTreeMap, BTreeSet};

use openraft::async_runtime::AsyncRuntime;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::entry::RaftPayload as _;
use openraft::errors::RaftError;
use openraft::{ChangeMembers, Precondition};

use crate::env::Environment;
use crate::error::{Error, ErrorKind, Result};
use crate::machine::StateMachine;
use crate::membership::{Change, Known, Plan, encode_change, plan};
use crate::node::propose::write_error;
use crate::node::status::contacts;
use crate::node::{ConfigOf, Node, fatal};
use crate::rpc::Method;
use crate::transport::Transport;
use crate::types::{NodeId, Payload};

impl<E: Environment, T: Transport, S: StateMachine> Node<E, T, S> {
    /// Changes the membership or hands leadership over; any member may be asked. Returns once the
    /// change is committed, or the new leader is known here.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`] with the rule that forbids it and what to do; see [`ErrorKind`] for
    /// the others.
    pub async fn change(&self, change: &Change) -> Result<()> {
        let deadline = self.deadline();
        loop {
            let tried = match self.leader() {
                None => Err(Error::new(ErrorKind::Unavailable, "no leader is known")),
                Some(leader) if leader == self.id() => self.lead_change(change).await,
                Some(leader) => {
                    let body = encode_change(change);
                    self.ask(leader, Method::Change, body, deadline)
                        .await
                        .map(drop)
                }
            };
            match tried {
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::NotLeader(_) | ErrorKind::Unavailable
                    ) =>
                {
                    self.pause(deadline).await?;
                }
                answer => return answer,
            }
        }
    }

    /// Makes a change as the leader.
    pub(crate) async fn lead_change(&self, change: &Change) -> Result<()> {
        let deadline = self.deadline();
        let make = async {
            // Refused at once where one is under way; one that is just being finished is awaited.
            plan(&self.known()?, change)?;
            let _turn = match change {
                Change::Transfer { .. } => None,
                _ => Some(self.inner.changing.lock().await),
            };
            let known = self.known()?;
            let plan = plan(&known, change)?;
            self.make(&known, plan).await
        };
        E::Runtime::timeout_at(deadline, make)
            .await
            .unwrap_or_else(|_| {
                let what = "the change is not committed yet; it may still take effect";
                Err(Error::new(ErrorKind::Timeout, what))
            })
    }

    async fn make(&self, known: &Known, plan: Plan) -> Result<()> {
        let raft = &self.inner.raft;
        let preconditions = self.preconditions(known)?;
        let written = match plan {
            Plan::Append(membership) => {
                raft.append_membership(membership, Payload::blank(), preconditions)
                    .await
            }
            Plan::Set(members) => {
                let change = ChangeMembers::SetNodes(members);
                raft.change_membership_if(change, true, preconditions).await
            }
            Plan::Joint {
                voters,
                members,
                demoted,
                retain,
            } => {
                let change = ChangeMembers::Batch(vec![
                    ChangeMembers::SetNodes(demoted),
                    ChangeMembers::AddNodes(members),
                    ChangeMembers::ReplaceAllVoters(voters),
                ]);
                raft.change_membership_if(change, retain, preconditions)
                    .await
            }
            Plan::Transfer(to) => return self.transfer(to).await,
        };
        match written {
            Ok(_) => Ok(()),
            Err(RaftError::APIError(error)) => Err(write_error(error)),
            Err(RaftError::Fatal(error)) => Err(fatal(error)),
        }
    }

    /// That nothing has changed since `known`.
    fn preconditions(&self, known: &Known) -> Result<Vec<Precondition<ConfigOf<E>>>> {
        let leader = self.inner.raft.as_leader().map_err(|to| {
            Error::new(
                ErrorKind::NotLeader(to.leader_id),
                "this member does not lead",
            )
        })?;
        let committed_leader_id = leader.to_committed_leader_id();
        let last_membership_log_id = *known.membership.log_id();
        Ok(vec![
            Precondition::CommittedLeaderId {
                committed_leader_id,
            },
            Precondition::LastMembershipLogId {
                last_membership_log_id,
            },
        ])
    }

    async fn transfer(&self, to: NodeId) -> Result<()> {
        if to == self.id() {
            return Ok(());
        }
        self.inner
            .raft
            .trigger()
            .transfer_leader(to)
            .await
            .map_err(fatal)?;
        let mut metrics = self.inner.raft.metrics();
        let patience = self.inner.options.election * 4;
        let moved = metrics.wait_until(|metrics| {
            metrics
                .current_leader
                .is_some_and(|leader| leader != self.id())
        });
        let moved = E::Runtime::timeout(patience, moved).await;
        match moved {
            Ok(Ok(metrics)) if metrics.current_leader == Some(to) => Ok(()),
            Ok(Ok(metrics)) => {
                let now = metrics.current_leader.unwrap_or_default();
                let what = format!("leadership went to {now:x} instead of {to:x}");
                Err(Error::new(ErrorKind::Refused, what))
            }
            Ok(Err(_)) => Err(Error::new(ErrorKind::Stopped, "the member has stopped")),
            Err(_) => {
                let what = format!("member {to:x} did not take leadership in time");
                Err(Error::new(ErrorKind::Timeout, what))
            }
        }
    }

    /// What this member knows as the leader.
    pub(crate) fn known(&self) -> Result<Known> {
        let metrics = self.metrics();
        if !metrics.state.is_leader() {
            let what = "this member does not lead";
            return Err(Error::new(
                ErrorKind::NotLeader(metrics.current_leader),
                what,
            ));
        }
        let replication = metrics.replication.iter().flatten();
        let matched: BTreeMap<NodeId, u64> = replication
            .filter_map(|(&id, matched)| Some((id, matched.as_ref()?.index())))
            .collect();
        let mut reachable: BTreeSet<NodeId> = contacts::<E>(&metrics)
            .into_iter()
            .filter(|(_, since)| *since <= self.silence_max())
            .map(|(id, _)| id)
            .collect();
        reachable.insert(self.id());
        let committed =
            metrics.membership_config.log_id() == metrics.committed_membership_config.log_id();
        Ok(Known {
            leader: self.id(),
            membership: (*metrics.membership_config).clone(),
            committed,
            last_index: metrics.last_log_index.unwrap_or(0),
            matched,
            reachable,
        })
    }

    /// Finishes what a leader before may have left half done, and makes voters of learners that
    /// are to become voters and have caught up.
    async fn tend_membership(&self) {
        let Ok(known) = self.known() else { return };
        if !known.committed {
            return;
        }
        if known.membership.get_joint_config().len() > 1 {
            let Ok(_turn) = self.inner.changing.try_lock() else {
                return;
            };
            let Ok(preconditions) = self.preconditions(&known) else {
                return;
            };
            let change = ChangeMembers::AddVoterIds(BTreeSet::new());
            let raft = &self.inner.raft;
            if let Err(error) = raft.change_membership_if(change, true, preconditions).await {
                tracing::info!(%error, "a joint membership is not left yet");
            }
            return;
        }
        let voters = &known.membership.get_joint_config()[0];
        let ready = known.membership.nodes().find(|(id, member)| {
            member.becomes_voter && !voters.contains(id) && known.caught_up(**id)
        });
        if let Some((&id, _)) = ready
            && let Err(error) = self.lead_change(&Change::Promote { id }).await
        {
            tracing::info!(%error, "a learner does not become a voter yet");
        }
    }
}

/// Keeps the directory of members, and the membership, in order until the member stops.
pub(crate) async fn tend<E: Environment, T: Transport, S: StateMachine>(node: Node<E, T, S>) {
    let mut seen = None;
    while !node.stopping() {
        let metrics = node.metrics();
        if metrics.running_state.is_err() {
            return;
        }
        let membership = metrics.membership_config;
        if seen != *membership.log_id() {
            seen = *membership.log_id();
            let members = membership.nodes().map(|(&id, member)| (id, member.clone()));
            node.inner.directory.set(members.collect());
        }
        node.tend_membership().await;
        E::Runtime::sleep(node.inner.options.heartbeat).await;
    }
}
