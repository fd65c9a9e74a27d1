//! Scenarios written out, one behaviour each.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use openraft::async_runtime::AsyncRuntime as _;
use openraft_rt_sim::SimRuntime;

use crate::error::{ErrorKind, Result};
use crate::membership::Change;
use crate::node::{Role, Status};
use crate::sim::check;
use crate::sim::cluster::member;
use crate::sim::machine::{Plain, SimNode, World, Write};
use crate::sim::runtime::on;
use crate::sim::scenario;
use crate::types::{Member, NodeId};
use crate::wal::lock;

const PATIENCE: Duration = Duration::from_secs(10);

/// Tells a story in a world of `count` members, with a leader.
fn story<F: Future<Output = ()>>(
    seed: u64,
    count: u64,
    tell: impl FnOnce(Arc<World>, NodeId) -> F,
) {
    SimRuntime::with_seed(seed).block_on(async {
        let world = World::new(seed, Plain::default());
        world.form(count).await;
        let leader = world
            .leader(PATIENCE)
            .await
            .expect("a new cluster has a leader");
        tell(world.clone(), leader).await;
    });
}

impl World {
    fn at(&self, id: NodeId) -> SimNode {
        self.node(id).expect("the member is up")
    }

    async fn set(&self, at: NodeId, key: u8, to: u32) -> Result<bool> {
        on(at, self.at(at).propose(Write::Set { key, to }.encode())).await
    }

    async fn get(&self, at: NodeId, key: u8) -> Result<u32> {
        on(at, self.at(at).read_barrier()).await?;
        Ok(self.at(at).reader().get(key))
    }

    /// Starts a new member, and adds it to the cluster.
    async fn join(self: &Arc<Self>, at: NodeId, id: NodeId, member: Member) {
        self.start(id).await.unwrap();
        self.change(at, Change::Add { id, member }).await.unwrap();
    }

    async fn change(&self, at: NodeId, change: Change) -> Result<()> {
        on(at, self.at(at).change(&change)).await
    }

    /// Waits until a member's view of the cluster is as wanted.
    async fn until(&self, at: NodeId, wanted: impl Fn(&Status) -> bool + Send + Sync) -> Status {
        let look = async {
            loop {
                let status = self.at(at).status();
                if wanted(&status) {
                    return status;
                }
                SimRuntime::sleep(Duration::from_millis(10)).await;
            }
        };
        let seen = SimRuntime::timeout(PATIENCE, look).await;
        seen.unwrap_or_else(|_| panic!("it never came: {:#?}", self.at(at).status()))
    }

    fn cut_off(&self, id: NodeId) {
        let others = self.ids();
        let mut links = lock(&self.links);
        for other in others {
            links.cut.insert((id, other));
            links.cut.insert((other, id));
        }
    }

    fn heal(&self) {
        lock(&self.links).cut.clear();
    }

    fn other(&self, than: NodeId) -> NodeId {
        self.ids()
            .into_iter()
            .find(|&id| id != than)
            .expect("there is another member")
    }
}

fn future_voter(id: NodeId) -> Member {
    Member {
        becomes_voter: true,
        ..member(id)
    }
}

fn voters(status: &Status) -> Vec<NodeId> {
    status.voters.iter().flatten().copied().collect()
}

#[test]
fn any_member_takes_writes_and_reads_back() {
    story(1, 3, |world, _| async move {
        for id in world.ids() {
            let long = vec![0; crate::node::COMMAND_BYTES_MAX + 1].into();
            let refused = on(id, world.at(id).propose(long)).await.unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Invalid);
            assert!(world.set(id, 1, id as u32).await.unwrap());
            for reader in world.ids() {
                assert_eq!(world.get(reader, 1).await.unwrap(), id as u32);
            }
        }
    });
}

#[test]
fn a_member_joins_learns_is_promoted_leads_restarts_and_leaves() {
    story(2, 3, |world, leader| async move {
        world.set(leader, 1, 7).await.unwrap();
        world.join(leader, 4, member(4)).await;
        assert_eq!(world.get(4, 1).await.unwrap(), 7);
        assert_eq!(world.at(4).status().role, Role::Learner);
        world
            .change(world.other(leader), Change::Promote { id: 4 })
            .await
            .unwrap();
        assert_eq!(
            voters(&world.until(4, |s| s.voters[0].len() == 4).await),
            [1, 2, 3, 4]
        );
        world
            .change(leader, Change::Transfer { to: Some(4) })
            .await
            .unwrap();
        assert_eq!(
            world.until(4, |s| s.leader == Some(4)).await.role,
            Role::Leader
        );
        world.crash(4);
        let next = world.leader(PATIENCE).await.unwrap();
        world.set(next, 1, 8).await.unwrap();
        world.start(4).await.unwrap();
        assert_eq!(world.get(4, 1).await.unwrap(), 8);
        world.change(4, Change::Remove { id: 4 }).await.unwrap();
        let status = world.until(next, |s| s.members.len() == 3).await;
        assert_eq!(voters(&status), [1, 2, 3]);
    });
}

#[test]
fn a_leader_that_is_removed_hands_over_and_can_come_back() {
    story(3, 3, |world, leader| async move {
        world.set(leader, 1, 7).await.unwrap();
        world
            .change(leader, Change::Remove { id: leader })
            .await
            .unwrap();
        let rest = world.other(leader);
        let status = world
            .until(rest, |s| {
                s.members.len() == 2 && s.leader.is_some_and(|id| id != leader)
            })
            .await;
        assert!(!voters(&status).contains(&leader));
        world.set(rest, 1, 8).await.unwrap();
        world.destroy(leader);
        world.join(rest, 9, future_voter(9)).await;
        world.until(rest, |s| voters(s).contains(&9)).await;
        assert_eq!(world.get(9, 1).await.unwrap(), 8);
    });
}

#[test]
fn a_change_that_cannot_be_committed_refuses_the_next() {
    story(4, 3, |world, leader| async move {
        let node = world.at(leader);
        world.cut_off(leader);
        let add = Change::Add {
            id: 4,
            member: member(4),
        };
        let waiting = SimRuntime::spawn(on(leader, {
            let (node, add) = (node.clone(), add.clone());
            async move { node.lead_change(&add).await.unwrap_err().kind() }
        }));
        world.until(leader, |s| s.change_refused.is_some()).await;
        let again = on(leader, node.lead_change(&Change::Remove { id: 2 }))
            .await
            .unwrap_err();
        assert_eq!(again.kind(), ErrorKind::Refused, "{again}");
        let first = waiting.await.unwrap();
        assert!(
            matches!(first, ErrorKind::Timeout | ErrorKind::Unknown),
            "{first:?}"
        );
        world.heal();
        let next = world.leader(PATIENCE).await.unwrap();
        world.until(next, |s| s.change_refused.is_none()).await;
    });
}

#[test]
fn endpoints_are_replaced_for_voters_and_learners() {
    story(5, 3, |world, leader| async move {
        world.join(leader, 4, member(4)).await;
        for id in [2, 4] {
            let moved = Member {
                client_urls: vec![format!("http://new{id}:2379")],
                ..member(id)
            };
            world
                .change(
                    3,
                    Change::Update {
                        id,
                        member: moved.clone(),
                    },
                )
                .await
                .unwrap();
            let known = |s: &Status| s.members.iter().any(|one| one.member == moved);
            for at in world.ids() {
                world.until(at, known).await;
            }
        }
    });
}

#[test]
fn a_joint_change_replaces_the_voters_in_one_step() {
    story(6, 3, |world, leader| async move {
        for id in [4, 5] {
            world.join(leader, id, member(id)).await;
            let last = world.at(leader).status().last_index;
            world.until(id, |s| s.applied >= last).await;
        }
        let keep = if leader == 3 { 3 } else { leader };
        let wanted = BTreeSet::from([keep, 4, 5]);
        let ready = |s: &Status| {
            s.members
                .iter()
                .filter(|one| one.reachable == Some(true))
                .count()
                == 5
        };
        world.until(leader, ready).await;
        let joint = Change::Joint {
            voters: wanted.clone(),
            members: BTreeMap::new(),
            retain: false,
        };
        world.change(leader, joint).await.unwrap();
        let status = world.until(4, |s| s.members.len() == 3).await;
        assert_eq!(status.voters, [wanted]);
        world.set(5, 1, 1).await.unwrap();
    });
}

#[test]
fn a_leader_that_is_cut_off_answers_no_read_and_acknowledges_no_write() {
    story(7, 3, |world, leader| async move {
        world.set(leader, 1, 1).await.unwrap();
        world.cut_off(leader);
        let old = world.at(leader);
        let stale = SimRuntime::spawn(on(leader, async move {
            (
                old.read_barrier().await.is_err(),
                old.propose(Write::Set { key: 1, to: 3 }.encode()).await,
            )
        }));
        let elsewhere = world.other(leader);
        world
            .until(elsewhere, |s| s.leader.is_some_and(|id| id != leader))
            .await;
        world.set(elsewhere, 1, 2).await.unwrap();
        let (no_read, no_write) = stale.await.unwrap();
        assert!(no_read);
        assert!(no_write.is_err());
        world.heal();
        world
            .until(leader, |s| s.leader.is_some_and(|id| id != leader))
            .await;
        assert_eq!(world.get(leader, 1).await.unwrap(), 2);
    });
}

#[test]
fn a_member_far_behind_is_brought_up_by_a_snapshot_while_writes_go_on() {
    story(8, 3, |world, leader| async move {
        for round in 0..200 {
            world.set(leader, (round % 5) as u8, round).await.unwrap();
        }
        world.until(leader, |s| s.purged.is_some()).await;
        world.join(leader, 4, member(4)).await;
        for round in 200..260 {
            world.set(leader, (round % 5) as u8, round).await.unwrap();
        }
        assert_eq!(world.get(4, 4).await.unwrap(), 259);
        let applied = world.at(leader).status().applied;
        let status = world.until(4, |s| s.applied >= applied).await;
        assert!(status.snapshot.is_some());
        world.crash(4);
        world.start(4).await.unwrap();
        world.until(4, |s| s.applied >= applied).await;
        let nodes = [leader, 4].map(|id| (id, world.at(id)));
        scenario::states_match(&nodes);
        check::logs_match(&nodes);
    });
}

#[test]
fn a_member_whose_disk_fails_stops_and_the_others_go_on() {
    story(9, 3, |world, leader| async move {
        world.set(leader, 1, 1).await.unwrap();
        world.log_disk(leader).fail_next_sync();
        // It may be lost with the leader, or be taken over: both are answered by an error.
        let lost = world.set(leader, 1, 2).await;
        assert!(lost.is_err(), "a failed sync acknowledges nothing");
        world.until(leader, |s| s.failure.is_some()).await;
        let other = world.other(leader);
        world
            .until(other, |s| s.leader.is_some_and(|id| id != leader))
            .await;
        world.set(other, 1, 3).await.unwrap();
        world.crash(leader);
        world.start(leader).await.unwrap();
        assert_eq!(world.get(leader, 1).await.unwrap(), 3);
    });
}

#[test]
fn one_survivor_of_a_lost_quorum_becomes_a_cluster_with_all_that_was_acknowledged() {
    story(10, 3, |world, leader| async move {
        for round in 0..100 {
            world.set(leader, (round % 5) as u8, round).await.unwrap();
        }
        for id in world.ids() {
            world.crash(id);
        }
        let given_up = world.force(leader).unwrap();
        assert_eq!(given_up.len(), 2);
        for id in given_up.into_keys() {
            world.destroy(id);
        }
        world.start(leader).await.unwrap();
        world.until(leader, |s| s.leader == Some(leader)).await;
        for key in 0..5 {
            assert_eq!(world.get(leader, key).await.unwrap(), 95 + u32::from(key));
        }
        for id in [11, 12] {
            world.join(leader, id, future_voter(id)).await;
            let joined = |s: &Status| voters(s).contains(&id) && s.change_refused.is_none();
            world.until(leader, joined).await;
        }
        world.crash(leader);
        assert!(world.leader(PATIENCE).await.is_some());
        assert_eq!(world.get(11, 4).await.unwrap(), 99);
    });
}

#[test]
fn a_lost_quorum_is_not_forced_on_a_stranger() {
    story(11, 3, |world, _| async move {
        for id in world.ids() {
            world.crash(id);
        }
        world.start(9).await.unwrap();
        world.crash(9);
        assert_eq!(world.force(9).unwrap_err().kind(), ErrorKind::NotFound);
    });
}
