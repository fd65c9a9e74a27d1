//! What goes wrong: crashes, cuts, bad weather, failing disks, jumping clocks, and changes of members
//! meanwhile, all decided by the world's seed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use openraft::Instant as _;
use openraft::async_runtime::AsyncRuntime as _;
use openraft_rt_sim::{SimInstant, SimRuntime};

use crate::membership::Change;
use crate::sim::cluster::{Members, SimNode, World, member};
use crate::sim::network::Links;
use crate::sim::runtime::{self, on};
use crate::types::{Member, NodeId};
use crate::wal::lock;

const CALM_DELAY_US: u64 = 2000;

/// Makes trouble.
pub struct Trouble<M: Members> {
    world: Arc<World<M>>,
    next_member: NodeId,
    /// Members that lost power.
    pub crashes: usize,
    changes: Arc<Mutex<usize>>,
}

/// Heals everything, and waits until all members have applied the same.
///
/// # Panics
/// If they never do.
pub async fn calm<M: Members>(world: &Arc<World<M>>, last: Bytes) -> Vec<(NodeId, SimNode<M>)> {
    *lock(&world.links) = Links {
        delay_us_max: CALM_DELAY_US,
        ..Links::default()
    };
    for id in world.ids() {
        world.log_disk(id).repair();
        world.state_disk(id).repair();
        let failed = world
            .node(id)
            .is_some_and(|node| node.status().failure.is_some());
        if failed {
            world.crash(id);
        }
        if world.run(id).is_none() {
            world
                .start(id)
                .await
                .expect("a member starts again after a crash");
        }
    }
    let leader = world
        .leader(Duration::from_secs(15))
        .await
        .expect("a healed cluster has a leader");
    let node = world.node(leader).expect("the leader is up");
    // Another leader may be elected right now.
    while on(leader, node.propose(last.clone())).await.is_err() {}
    let members: BTreeSet<NodeId> = node.status().members.iter().map(|one| one.id).collect();
    for id in world.ids() {
        if !members.contains(&id) {
            world.destroy(id);
        }
    }
    let target = node.status().applied;
    let nodes: Vec<(NodeId, SimNode<M>)> = members
        .iter()
        .map(|&id| (id, world.node(id).expect("a member is up")))
        .collect();
    let same = async {
        let behind = |node: &SimNode<M>| node.status().applied < target;
        while nodes.iter().any(|(_, node)| behind(node)) {
            SimRuntime::sleep(Duration::from_millis(20)).await;
        }
        // Until no change of membership is being finished any more.
        let applied = |node: &SimNode<M>| node.status().applied;
        let mut quiet = 0;
        while quiet < 10 {
            SimRuntime::sleep(Duration::from_millis(50)).await;
            let all: BTreeSet<_> = nodes.iter().map(|(_, node)| applied(node)).collect();
            quiet = if all.len() == 1 { quiet + 1 } else { 0 };
        }
    };
    let caught_up = SimRuntime::timeout(Duration::from_secs(15), same).await;
    if caught_up.is_err() {
        let statuses: Vec<_> = nodes.iter().map(|(_, node)| node.status()).collect();
        panic!("a healed cluster does not catch up: {statuses:#?}");
    }
    nodes
}

impl<M: Members> Trouble<M> {
    /// Trouble for a world of members 1 to `count`.
    pub fn new(world: Arc<World<M>>, count: u64) -> Self {
        Self {
            world,
            next_member: count + 1,
            crashes: 0,
            changes: Arc::default(),
        }
    }

    /// Changes of members that were made.
    pub fn changes(&self) -> usize {
        *lock(&self.changes)
    }

    /// Makes trouble until `until`.
    pub async fn make(&mut self, until: SimInstant) {
        while SimInstant::now() < until {
            let pause = 50 + lock(&self.world.random).below(500);
            SimRuntime::sleep(Duration::from_millis(pause)).await;
            self.one().await;
        }
    }

    async fn one(&mut self) {
        let what = lock(&self.world.random).below(100);
        match what {
            0..12 => self.split(),
            12..20 => self.cut_one_way(),
            20..34 => self.weather(),
            34..46 => lock(&self.world.links).cut.clear(),
            46..62 => self.crash_some(),
            62..78 => self.restart_all().await,
            78..81 => self.fail_a_disk(),
            81..84 => self.transfer(),
            84..86 => self.jump_a_clock(),
            86..90 => self.pause_one(),
            _ => self.change_members().await,
        }
    }

    fn split(&self) {
        let ids = self.world.ids();
        let mut random = lock(&self.world.random);
        let one_side: BTreeSet<NodeId> =
            ids.iter().copied().filter(|_| random.chance(40)).collect();
        let mut links = lock(&self.world.links);
        links.cut.clear();
        for &from in &ids {
            for &to in &ids {
                if one_side.contains(&from) != one_side.contains(&to) {
                    links.cut.insert((from, to));
                }
            }
        }
    }

    fn cut_one_way(&self) {
        let ids = self.world.ids();
        let mut random = lock(&self.world.random);
        let (from, to) = (*random.pick(&ids), *random.pick(&ids));
        lock(&self.world.links).cut.insert((from, to));
    }

    fn weather(&self) {
        let mut random = lock(&self.world.random);
        let mut links = lock(&self.world.links);
        links.drop_percent = *random.pick(&[0, 0, 1, 5, 20]);
        links.duplicate_percent = *random.pick(&[0, 0, 5, 30]);
        links.delay_us_max = *random.pick(&[500, CALM_DELAY_US, 10_000, 60_000]);
    }

    fn crash_some(&mut self) {
        let up = self.world.up();
        let all = lock(&self.world.random).chance(8);
        for id in up {
            if all || lock(&self.world.random).chance(30) {
                self.world.crash(id);
                self.crashes += 1;
            }
        }
    }

    async fn restart_all(&self) {
        for id in self.world.ids() {
            self.world.log_disk(id).repair();
            self.world.state_disk(id).repair();
            let failed = self
                .world
                .node(id)
                .is_some_and(|node| node.status().failure.is_some());
            if failed {
                self.world.crash(id);
            }
            if self.world.run(id).is_none() {
                self.world
                    .start(id)
                    .await
                    .expect("a member starts again after a crash");
            }
        }
    }

    fn fail_a_disk(&self) {
        let ids = self.world.ids();
        let id = *lock(&self.world.random).pick(&ids);
        let disk = if lock(&self.world.random).chance(70) {
            self.world.log_disk(id)
        } else {
            self.world.state_disk(id)
        };
        match lock(&self.world.random).below(3) {
            0 => disk.fail_next_sync(),
            1 => disk.fail_next_write(),
            _ => disk.fill(),
        }
    }

    fn jump_a_clock(&self) {
        let ids = self.world.ids();
        let mut random = lock(&self.world.random);
        let by = Duration::from_millis(*random.pick(&[100, 300, 1000, 60_000]));
        runtime::jump(*random.pick(&ids), by);
    }

    fn pause_one(&self) {
        let ids = self.world.ids();
        let (id, for_ms) = {
            let mut random = lock(&self.world.random);
            (*random.pick(&ids), 20 + random.below(1500))
        };
        runtime::pause(id);
        drop(SimRuntime::spawn(async move {
            SimRuntime::sleep(Duration::from_millis(for_ms)).await;
            runtime::resume(id);
        }));
    }

    fn some_node(&self) -> Option<SimNode<M>> {
        let up = self.world.up();
        if up.is_empty() {
            return None;
        }
        let id = *lock(&self.world.random).pick(&up);
        self.world.node(id)
    }

    /// Changes members in the background: any answer is fine, the invariants judge.
    fn change(&self, change: Change) {
        let Some(node) = self.some_node() else { return };
        let (world, changes) = (self.world.clone(), self.changes.clone());
        drop(SimRuntime::spawn(async move {
            if on(node.id(), node.change(&change)).await.is_err() {
                return;
            }
            *lock(&changes) += 1;
            if let Change::Remove { id } = change {
                // Long enough for a leader that removed itself to hand over.
                SimRuntime::sleep(Duration::from_millis(500)).await;
                world.destroy(id);
            }
        }));
    }

    fn transfer(&self) {
        let ids = self.world.ids();
        let to = {
            let mut random = lock(&self.world.random);
            if random.chance(50) {
                None
            } else {
                Some(*random.pick(&ids))
            }
        };
        self.change(Change::Transfer { to });
    }

    async fn change_members(&mut self) {
        let ids = self.world.ids();
        let (what, id) = {
            let mut random = lock(&self.world.random);
            (random.below(5), *random.pick(&ids))
        };
        match what {
            0 | 1 if ids.len() < 7 => {
                let id = self.next_member;
                self.next_member += 1;
                self.world.start(id).await.expect("a new member starts");
                let becomes_voter = lock(&self.world.random).chance(60);
                let member = Member {
                    becomes_voter,
                    ..member(id)
                };
                self.change(Change::Add { id, member });
            }
            2 => self.change(Change::Promote { id }),
            3 if ids.len() > 3 => self.change(Change::Remove { id }),
            _ => {
                let voters: BTreeSet<NodeId> = {
                    let mut random = lock(&self.world.random);
                    ids.into_iter().filter(|_| random.chance(70)).collect()
                };
                self.change(Change::Joint {
                    voters,
                    members: BTreeMap::new(),
                    retain: true,
                });
            }
        }
    }
}
