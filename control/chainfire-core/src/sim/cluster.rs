//! Members that start, crash and start again, over their disks.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use openraft::async_runtime::AsyncRuntime as _;
use openraft_rt_sim::SimRuntime;

use crate::env::Environment;
use crate::error::Result;
use crate::forced::force_new_cluster;
use crate::machine::{Durability, StateMachine};
use crate::node::{Node, Options};
use crate::sim::disk::{Random, SimDisk};
use crate::sim::network::{Links, SimTransport};
use crate::sim::runtime::{self, NodeRuntime, on};
use crate::types::{Member, NodeId, Term};
use crate::wal::{Jobs, WalOptions, Writer, lock};

/// What the members of a world are beside their consensus.
pub trait Members: Send + Sync + Sized + 'static {
    /// What they replicate.
    type Machine: StateMachine;

    /// Opens the state machine of a member from its disk.
    fn open(&self, id: NodeId, state: SimDisk) -> io::Result<Self::Machine>;

    /// A member is up.
    fn started(&self, _world: &Arc<World<Self>>, _node: &SimNode<Self>) {}

    /// A member has lost power.
    fn crashed(&self, _id: NodeId) {}
}

/// A simulated member.
pub type SimNode<M> = Node<SimEnvironment, SimTransport<M>, <M as Members>::Machine>;

struct Slot<M: Members> {
    log: SimDisk,
    state: SimDisk,
    node: Option<SimNode<M>>,
    /// Counts starts and crashes.
    run: u64,
}

/// Everything that members share without knowing.
pub struct World<M: Members> {
    /// Decides everything.
    pub random: Arc<Mutex<Random>>,
    /// The network as it is now.
    pub links: Mutex<Links>,
    slots: Mutex<BTreeMap<NodeId, Slot<M>>>,
    /// What the members are.
    pub members: M,
    /// Who led in each term.
    pub leaders: Mutex<BTreeMap<Term, NodeId>>,
    /// Whether the scenario has ended.
    pub over: AtomicBool,
}

/// Where a simulated member runs.
#[derive(Clone)]
pub struct SimEnvironment {
    random: Arc<Mutex<Random>>,
    disk: SimDisk,
}

impl SimEnvironment {
    /// Where a member with this log runs.
    pub fn new(random: Arc<Mutex<Random>>, disk: SimDisk) -> Self {
        Self { random, disk }
    }
}

impl Environment for SimEnvironment {
    type Runtime = NodeRuntime;
    type Disk = SimDisk;

    fn log_disk(&self) -> SimDisk {
        self.disk.clone()
    }

    fn start_writer(&self, writer: Writer<SimDisk>, jobs: Jobs) -> io::Result<()> {
        let random = self.random.clone();
        let pause = move || {
            let delay = {
                let mut random = lock(&random);
                let usual = 100 + random.below(900);
                if random.chance(1) { usual * 50 } else { usual }
            };
            async move { SimRuntime::sleep(Duration::from_micros(delay)).await }
        };
        drop(NodeRuntime::spawn(writer.serve(jobs, pause)));
        Ok(())
    }

    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        work()
    }
}

/// A member as the cluster knows it.
pub fn member(id: NodeId) -> Member {
    Member {
        name: format!("m{id}"),
        peer_urls: vec![format!("http://m{id}:2380")],
        ..Member::default()
    }
}

/// The options of every simulated member: small, so that everything happens often.
fn options(id: NodeId) -> Options {
    Options {
        heartbeat: Duration::from_millis(50),
        election: Duration::from_millis(200),
        request_timeout: Duration::from_millis(1500),
        snapshot_timeout: Duration::from_secs(2),
        snapshot_entries: 40,
        kept_entries: 10,
        append_entries_max: 16,
        wal: WalOptions {
            segment_bytes: 64 << 10,
            batch_bytes_max: 8 << 10,
            cache_bytes_max: 1 << 10,
            queue_max: 256,
        },
        durability: Durability {
            bytes_max: 400,
            batches_max: 16,
        },
        ..Options::new(id)
    }
}

impl<M: Members> World<M> {
    /// A world without members. Forgets the clocks of the world before.
    pub fn new(seed: u64, members: M) -> Arc<Self> {
        runtime::reset();
        Arc::new(Self {
            random: Arc::new(Mutex::new(Random::new(seed))),
            links: Mutex::new(Links {
                delay_us_max: 2000,
                ..Links::default()
            }),
            slots: Mutex::default(),
            members,
            leaders: Mutex::default(),
            over: AtomicBool::new(false),
        })
    }

    /// The run of a member that is up.
    pub fn run(&self, id: NodeId) -> Option<u64> {
        let slots = lock(&self.slots);
        let slot = slots.get(&id)?;
        slot.node.as_ref().map(|_| slot.run)
    }

    /// A member that is up, and its run.
    pub fn running(&self, id: NodeId) -> Option<(SimNode<M>, u64)> {
        let slots = lock(&self.slots);
        let slot = slots.get(&id)?;
        slot.node.clone().map(|node| (node, slot.run))
    }

    /// A member that is up.
    pub fn node(&self, id: NodeId) -> Option<SimNode<M>> {
        self.running(id).map(|(node, _)| node)
    }

    /// All members that have disks.
    pub fn ids(&self) -> Vec<NodeId> {
        lock(&self.slots).keys().copied().collect()
    }

    /// All members that are up.
    pub fn up(&self) -> Vec<NodeId> {
        self.ids()
            .into_iter()
            .filter(|&id| self.run(id).is_some())
            .collect()
    }

    /// Makes a stopped member the only one, as an operator does after a lost quorum.
    pub fn force(&self, id: NodeId) -> Result<BTreeMap<NodeId, Member>> {
        let slots = lock(&self.slots);
        let (log, state) = (slots[&id].log.reopened(), slots[&id].state.reopened());
        let machine = self.members.open(id, state).expect("the state opens");
        let standing = machine.standing().expect("the state says where it stands");
        force_new_cluster(log, options(id).wal, &standing, id)
    }

    /// The log's disk of a member.
    pub fn log_disk(&self, id: NodeId) -> SimDisk {
        lock(&self.slots)[&id].log.clone()
    }

    /// The state machine's disk of a member.
    pub fn state_disk(&self, id: NodeId) -> SimDisk {
        lock(&self.slots)[&id].state.clone()
    }

    /// What the present run of a member sends with.
    pub fn transport(self: &Arc<Self>, from: NodeId) -> SimTransport<M> {
        SimTransport {
            world: self.clone(),
            from,
            run: self.run(from).unwrap_or_default(),
        }
    }

    /// Starts a member, with empty disks the first time.
    pub async fn start(self: &Arc<Self>, id: NodeId) -> Result<SimNode<M>> {
        let (log, state, run) = {
            let mut slots = lock(&self.slots);
            let slot = slots.entry(id).or_insert_with(|| Slot {
                log: SimDisk::new(),
                state: SimDisk::new(),
                node: None,
                run: 0,
            });
            assert!(slot.node.is_none(), "member {id} is up already");
            slot.run += 1;
            (slot.log.reopened(), slot.state.reopened(), slot.run)
        };
        let machine = self.members.open(id, state).expect("the state opens");
        let environment = SimEnvironment::new(self.random.clone(), log);
        let transport = SimTransport {
            world: self.clone(),
            from: id,
            run,
        };
        let node = on(
            id,
            Node::start(environment, transport, machine, options(id)),
        )
        .await?;
        {
            let mut slots = lock(&self.slots);
            slots.get_mut(&id).expect("the slot is there").node = Some(node.clone());
        }
        on(id, async { self.members.started(self, &node) }).await;
        Ok(node)
    }

    /// Crashes a member: its disks lose what they may, and nothing of it is heard again.
    pub fn crash(self: &Arc<Self>, id: NodeId) {
        let node = {
            let mut slots = lock(&self.slots);
            let Some(slot) = slots.get_mut(&id) else {
                return;
            };
            let Some(node) = slot.node.take() else { return };
            slot.run += 1;
            let mut random = lock(&self.random);
            slot.log.crash(&mut random);
            slot.state.crash(&mut Random::new(random.next()));
            node
        };
        self.members.crashed(id);
        runtime::resume(id);
        // What is left of the run ends by itself; its disks and links are dead.
        drop(SimRuntime::spawn(on(id, async move {
            let _ = node.shutdown().await;
        })));
    }

    /// Forgets a member that was removed, with its disks.
    pub fn destroy(self: &Arc<Self>, id: NodeId) {
        self.crash(id);
        lock(&self.slots).remove(&id);
    }

    /// Starts `count` members as a new cluster.
    pub async fn form(self: &Arc<Self>, count: u64) {
        let members: BTreeMap<NodeId, Member> = (1..=count).map(|id| (id, member(id))).collect();
        for id in 1..=count {
            let node = self.start(id).await.expect("a new member starts");
            on(id, node.initialize(members.clone()))
                .await
                .expect("a new cluster begins");
        }
    }

    /// Waits until some member leads with a quorum behind it.
    pub async fn leader(&self, patience: Duration) -> Option<NodeId> {
        let ask = async {
            loop {
                for id in self.up() {
                    let Some(node) = self.node(id) else { continue };
                    if node.status().leader == Some(id) && on(id, node.read_barrier()).await.is_ok()
                    {
                        return id;
                    }
                }
                SimRuntime::sleep(Duration::from_millis(20)).await;
            }
        };
        SimRuntime::timeout(patience, ask).await.ok()
    }
}
