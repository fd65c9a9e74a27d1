//! One run: a node of several shards with clients around it, and everything that may befall it.
//!
//! Fault model. The node loses power (sectors that were not flushed are lost, kept or torn one by
//! one), its process ends, or it drains; also while it recovers. Connections are reset, links cut
//! for a while. In some runs a write or a flush of the disk fails. Clients give up waiting. What
//! must hold whatever happens: every key is linearizable, and what was acknowledged stays.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use engine::sim::{NodeId, Sim};
use engine::{EngineConfig, Rng};
use lightningstor::http::{HttpConfig, Limits, User, Users};
use lightningstor::node::{LightningStorNode, NodeConfig, NodeError};
use lightningstor::store::StoreConfig;
use s3_wire::request::HostConfig;
use s3_wire::sigv4::RegionPolicy;

use super::client::{Client, Shared};
use super::history::{History, KEYS};
use super::http::{ACCESS_KEY, SECRET_KEY};
use super::uploads::PART_BYTES_MIN;

const SHARDS: usize = 3;
const PARTITIONS: u16 = 3;
const CLIENTS: u64 = 5;
/// Lives of the node in which clients work; one more follows for looking.
const LIVES: u64 = 3;
/// Starts that may fail in a row while the disk is broken.
const STARTS_MAX: u32 = 4;
const PORT: u16 = 9000;

/// What a run has done.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    pub calls: u64,
    pub checkpoints: u64,
    pub compacted: u64,
    pub cut_short: u64,
    pub trace: u64,
}

struct World {
    sim: Sim,
    server: NodeId,
    client: NodeId,
    rng: Rng,
    shared: Shared,
    seen: Seen,
}

/// Small, so that a run of a tenth of a second has checkpoints, sealed segments and compaction.
fn store_config() -> StoreConfig {
    let mut config = StoreConfig {
        data_grow_bytes: 1 << 20,
        checkpoint_log_bytes: 100 << 10,
        crcs_inline_max: 1,
        part_bytes_min: PART_BYTES_MIN,
        cache_bytes_max: 200 << 10,
        ..StoreConfig::default()
    };
    config.log.segment_bytes = 192 << 10;
    config.log.batch_bytes_max = 64 << 10;
    config.log.record_bytes_max = 128 << 10;
    config.upkeep.interval = Some(Duration::from_millis(2));
    config.upkeep.live_percent = 80;
    config.upkeep.quiet_after = Duration::from_millis(3);
    config.upkeep.scrub_period = Some(Duration::from_millis(20));
    config
}

fn node_config(at: SocketAddr) -> NodeConfig {
    let user = User {
        id: "tester".into(),
        name: "root".into(),
        access_key: ACCESS_KEY.into(),
        secret_key: SECRET_KEY.into(),
    };
    NodeConfig {
        data_dir: "/data".into(),
        partitions: PARTITIONS,
        http: HttpConfig {
            listen: at,
            region: "us-east-1".into(),
            region_policy: RegionPolicy::Any,
            hosts: HostConfig::default(),
            users: Users::new(vec![user]).expect("one user has one key"),
            limits: Limits::default(),
        },
        store: store_config(),
    }
}

fn engine_config(shards: usize) -> EngineConfig {
    EngineConfig {
        pool_bytes: 16 << 20,
        ..EngineConfig::unpinned(shards)
    }
}

/// What one client does with a node that nothing befalls.
pub fn undisturbed<F: Future + 'static>(what: impl FnOnce(Client) -> F) -> F::Output {
    let mut world = World::new(0);
    let _node = world.start();
    world.on_client(what)
}

/// Plays a seed and checks its history.
///
/// # Panics
/// With the offending key's history, when it is not linearizable.
pub fn run(seed: u64) -> Seen {
    let mut world = World::new(seed);
    let mut node = world.start();
    world.on_client(|mut client| async move {
        client.create_bucket().await;
    });
    let clients: Vec<_> = (1..=CLIENTS)
        .map(|number| {
            let client = Client::new(world.shared.clone(), world.rng.fork(), number);
            world.sim.spawn(world.client, 0, client.run())
        })
        .collect();
    for _ in 1..LIVES {
        world.trouble();
        let life = Duration::from_micros(world.rng.below(90_000));
        world.sim.run_for(life);
        world.count(&node);
        node = world.end_and_start(node);
    }
    world.sim.run_for(Duration::from_millis(10));
    world.shared.running.set(false);
    for client in clients {
        world.sim.join(&client);
    }
    world.look_at_all();
    world.count(&node);
    node = world.end_and_start(node);
    world.look_at_all();
    drop(node);
    world.seen.calls = world.shared.history.borrow().len() as u64;
    world.seen.trace = world.sim.trace_hash();
    if let Err(what) = world.shared.history.borrow().check() {
        panic!("seed {seed}: {what}");
    }
    world.seen
}

impl World {
    fn new(seed: u64) -> World {
        let sim = Sim::new(seed);
        let (server, client) = (sim.node("server"), sim.node("client"));
        let shared = Shared {
            server: SocketAddr::new(server.ip().into(), PORT),
            history: Rc::new(RefCell::new(History::default())),
            running: Rc::new(Cell::new(true)),
            broken: Rc::new(Cell::new(false)),
        };
        sim.start(client, engine_config(1))
            .expect("a client starts");
        World {
            sim,
            server,
            client,
            rng: Rng::new(seed),
            shared,
            seen: Seen::default(),
        }
    }

    fn launch(&self) -> impl Future<Output = Result<LightningStorNode, NodeError>> + use<> {
        let mut config = engine_config(SHARDS);
        let groups = LightningStorNode::declare(&mut config);
        let handle = self
            .sim
            .start(self.server, config)
            .expect("an engine starts");
        let node = node_config(self.shared.server);
        async move { LightningStorNode::start(&handle, groups, node).await }
    }

    /// Gives the server power and waits until it serves.
    fn start(&mut self) -> Rc<LightningStorNode> {
        for _ in 0..STARTS_MAX {
            if self.rng.once_in(5) {
                // It ends in the middle of its recovery.
                let recovering = self.sim.spawn(self.server, 0, self.launch());
                let moment = Duration::from_micros(self.rng.below(12_000));
                self.sim.run_for(moment);
                self.end(true);
                drop(recovering);
            }
            match self.sim.run(self.server, 0, self.launch()) {
                Ok(node) => return Rc::new(node),
                Err(error) if self.shared.broken.get() => {
                    drop(error);
                    self.end(true);
                }
                Err(error) => panic!("the node does not start: {error:?}"),
            }
        }
        panic!("the node did not start {STARTS_MAX} times in a row");
    }

    fn end(&mut self, power: bool) {
        if power {
            self.sim.crash(self.server);
        } else {
            self.sim.stop(self.server);
        }
        self.shared.history.borrow_mut().end_life();
    }

    fn end_and_start(&mut self, node: Rc<LightningStorNode>) -> Rc<LightningStorNode> {
        match self.rng.below(8) {
            0..4 => self.end(true),
            4..6 => self.end(false),
            how => {
                let drained = self.sim.run(self.server, 0, async move {
                    node.drain(Duration::from_millis(20)).await
                });
                let fine = drained.is_ok() || self.shared.broken.get();
                assert!(fine, "the node does not drain: {drained:?}");
                self.end(how == 6);
            }
        }
        self.seen.cut_short += 1;
        if self.rng.once_in(3) {
            let away = Duration::from_micros(self.rng.below(5_000));
            self.sim.run_for(away);
        }
        self.start()
    }

    /// Arranges what befalls the running node.
    fn trouble(&mut self) {
        let mut moment = || Duration::from_micros(self.rng.below(60_000));
        let (first, second) = (moment(), moment());
        let (server, client) = (self.server, self.client);
        match self.rng.below(6) {
            0 => self.sim.after(first, move |sim| sim.reset(server, client)),
            1 => {
                self.sim
                    .after(first, move |sim| sim.partition(server, client));
                self.sim.after(first + second / 8, Sim::heal);
            }
            2 => {
                let broken = Rc::clone(&self.shared.broken);
                let write = self.rng.once_in(2);
                self.sim.after(first, move |sim| {
                    broken.set(true);
                    let disk = sim.disk(server);
                    if write {
                        disk.fail_next_write();
                    } else {
                        disk.fail_next_sync();
                    }
                });
            }
            _ => {}
        }
    }

    /// Adds up what the node has done in its life.
    fn count(&mut self, node: &Rc<LightningStorNode>) {
        let node = Rc::clone(node);
        let metrics = self
            .sim
            .run(self.server, 0, async move { node.metrics().await });
        for (_, metrics) in metrics {
            self.seen.checkpoints += metrics.store.checkpoints;
            self.seen.compacted += metrics.store.compacted_segments;
        }
    }

    fn on_client<F: Future + 'static>(&mut self, what: impl FnOnce(Client) -> F) -> F::Output {
        let client = Client::new(self.shared.clone(), self.rng.fork(), 0);
        self.sim.run(self.client, 0, what(client))
    }

    /// Reads every key and lists them, in quiet.
    fn look_at_all(&mut self) {
        self.on_client(|mut client| async move {
            for key in 0..KEYS.len() {
                client.get_at_last(key).await;
            }
            client.list_at_last().await;
        });
    }
}
