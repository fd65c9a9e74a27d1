//! One tenant's flood delays that tenant: the latency of a quiet tenant's requests, alone and
//! beside a flood, in simulated time. Contract BY-1.
//!
//! A shard has one CPU, so it gives one turn at a time; a request takes about 200 µs of it. The
//! quiet tenant sends at a fixed rate, whether or not earlier requests have been answered, and its
//! latency counts from the time at which a request was due. The flood is 32 clients, each with a
//! new request as soon as it has an answer; refused ones wait 1 ms.
//!
//! Tasks run for up to 50 µs (`task_quota`) before a shard looks for timers and mail; with the
//! engine's default of 100 µs that alone could be half a request. Between simulated shards
//! a message may arrive up to one such turn early, so latencies across shards are up to 50 µs
//! short, alone as beside the flood; the bound holds with that added.

use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use engine::sim::{NodeId, Sim};
use engine::{EngineConfig, SchedGroup, ServiceGroup, ShardId, Sharded};
use shards::{Admission, AdmissionConfig, Busy, PartitionId, PlacementMap, Router, TenantId};

const QUIET: TenantId = TenantId(1);
const FLOOD: TenantId = TenantId(2);
const SEEDS: u64 = 50;
/// Requests of the quiet tenant in one run.
const REQUESTS: u64 = 200;
/// Their distance.
const PERIOD: Duration = Duration::from_millis(2);
const CLIENTS: u64 = 32;
/// Polls that a request takes, of 2 µs each.
const POLLS: u32 = 100;

/// What the shards run: admission, in front of work that only takes CPU time.
struct Node {
    admission: Admission,
}

async fn serve(node: Rc<Node>, tenant: TenantId) -> Result<(), Busy> {
    let _turn = node.admission.enter(tenant, POLLS).await?;
    work().await;
    Ok(())
}

async fn work() {
    for _ in 0..POLLS {
        engine::yield_now().await;
    }
}

/// How a client's request gets to the shard that serves it.
#[derive(Clone)]
enum Path {
    Local(Rc<Node>),
    /// The owner admits it.
    Routed(Router<Node>, PartitionId, ServiceGroup),
    /// The accept shard admits it, and holds the turn until the owner has answered.
    Gated(Router<Node>, PartitionId, ServiceGroup),
}

impl Path {
    async fn request(&self, tenant: TenantId) -> Result<(), Busy> {
        match self {
            Path::Local(node) => serve(Rc::clone(node), tenant).await,
            Path::Routed(router, partition, group) => {
                let call = router.call(*partition, *group, move |node, _| serve(node, tenant));
                call.await
                    .expect("the owner is there and its mailbox has room")
            }
            Path::Gated(router, partition, group) => {
                let here = router.values().local();
                let _turn = here.admission.enter(tenant, POLLS).await?;
                let call = router.call(*partition, *group, |_, _| work());
                call.await
                    .expect("the owner is there and its mailbox has room");
                Ok(())
            }
        }
    }
}

struct Run {
    p99: Duration,
    quiet_refused: u64,
    flood_refused: u64,
    flood_served: u64,
}

async fn flood(path: Path) {
    loop {
        if path.request(FLOOD).await.is_err() {
            engine::sleep(Duration::from_millis(1)).await;
        }
    }
}

/// The latencies of the quiet tenant's requests.
async fn quiet(path: Path) -> Vec<Duration> {
    let began = engine::now();
    let mut requests = Vec::new();
    for number in 1..=REQUESTS {
        let due = began + PERIOD * number as u32;
        engine::sleep_until(due).await;
        let path = path.clone();
        requests.push(engine::spawn_local(SchedGroup::FOREGROUND, async move {
            path.request(QUIET)
                .await
                .ok()
                .map(|()| engine::now().since(due))
        }));
    }
    let mut latencies = Vec::new();
    for request in requests {
        latencies.extend(request.await);
    }
    latencies
}

fn admission(concurrent_max: u32) -> Admission {
    Admission::new(AdmissionConfig {
        concurrent_max,
        queue_per_tenant_max: 8,
        default_shares: 100,
    })
}

fn engine_config(shards: usize) -> EngineConfig {
    let mut config = EngineConfig::unpinned(shards);
    config.task_quota = Duration::from_micros(50);
    config
}

fn new_sim(seed: u64) -> (Sim, NodeId) {
    let sim = Sim::new(seed);
    sim.configure(|config| config.poll_ns = 1_000..3_000);
    let node = sim.node("n");
    (sim, node)
}

/// Both tenants on shard 0 of a node; the counters of the admission that `path` leads to.
fn measure<F>(sim: &Sim, node: NodeId, flooded: bool, owner: u16, path: Path, admission: F) -> Run
where
    F: Future<Output = Admission> + 'static,
{
    if flooded {
        for _ in 0..CLIENTS {
            let _endless = sim.spawn(node, 0, flood(path.clone()));
        }
    }
    let mut latencies = sim.run(node, 0, quiet(path));
    latencies.sort_unstable();
    let metrics = sim.run(node, owner, async move { admission.await.metrics() });
    let counts = |tenant| {
        metrics
            .tenants
            .iter()
            .find(|(id, _)| *id == tenant)
            .map(|(_, m)| *m)
    };
    Run {
        p99: latencies[latencies.len() * 99 / 100],
        quiet_refused: REQUESTS - latencies.len() as u64,
        flood_refused: counts(FLOOD).map_or(0, |m| m.refused),
        flood_served: counts(FLOOD).map_or(0, |m| m.admitted),
    }
}

fn on_one_shard(seed: u64, flooded: bool, concurrent_max: u32) -> Run {
    let (sim, node) = new_sim(seed);
    let _engine = sim
        .start(node, engine_config(1))
        .expect("the configuration is valid");
    let served = Rc::new(Node {
        admission: admission(concurrent_max),
    });
    let found = served.admission.clone();
    measure(
        &sim,
        node,
        flooded,
        0,
        Path::Local(served),
        async move { found },
    )
}

/// Requests come in on shard 0, the resource is shard 1's. Either may admit them.
fn across_shards(seed: u64, flooded: bool, admits: ShardId) -> Run {
    let (sim, node) = new_sim(seed);
    let mut config = engine_config(2);
    let group = config.add_service("requests", 1, 1024, Duration::from_secs(5));
    let engine = sim.start(node, config).expect("the configuration is valid");
    let nodes = Sharded::new(&engine);
    for shard in 0..2 {
        let nodes = nodes.clone();
        sim.run(node, shard, async move {
            nodes.set_local(Rc::new(Node {
                admission: admission(1),
            }));
        });
    }
    let router = Router::new(&nodes);
    let map = PlacementMap::spread(2, 2);
    let partition = PartitionId(1);
    assert_eq!(map.shard_of(partition), ShardId(1));
    let installed = router.clone();
    sim.run(node, 0, async move { installed.install(map).await })
        .expect("the map is new");
    let path = match admits {
        ShardId(0) => Path::Gated(router, partition, group),
        _ => Path::Routed(router, partition, group),
    };
    measure(&sim, node, flooded, admits.0, path, async move {
        nodes.local().admission.clone()
    })
}

/// # Panics
/// When the flood reached the quiet tenant, or was no flood.
fn check(seed: u64, alone: &Run, beside: &Run) {
    let (quiet, flooded) = (alone.p99, beside.p99);
    assert!(
        flooded <= quiet * 3,
        "seed {seed}: p99 {quiet:?} alone, {flooded:?} beside the flood"
    );
    assert_eq!(
        (alone.quiet_refused, beside.quiet_refused),
        (0, 0),
        "seed {seed}"
    );
    assert!(
        beside.flood_refused > 1000,
        "seed {seed}: {} refused",
        beside.flood_refused
    );
    assert!(
        beside.flood_served > 1000,
        "seed {seed}: {} served",
        beside.flood_served
    );
}

#[test]
fn a_flood_on_the_same_shard_is_refused_and_the_quiet_tenant_keeps_its_p99() {
    for seed in 0..SEEDS {
        check(
            seed,
            &on_one_shard(seed, false, 1),
            &on_one_shard(seed, true, 1),
        );
    }
}

#[test]
fn a_flood_from_another_shard_is_refused_and_the_quiet_tenant_keeps_its_p99() {
    for seed in 0..SEEDS {
        let run = |flooded| across_shards(seed, flooded, ShardId(1));
        check(seed, &run(false), &run(true));
    }
}

#[test]
fn a_flood_that_the_accept_shard_admits_leaves_the_quiet_tenant_its_p99() {
    for seed in 0..SEEDS {
        let run = |flooded| across_shards(seed, flooded, ShardId(0));
        check(seed, &run(false), &run(true));
    }
}

/// What the tests above would show if admission did nothing.
#[test]
fn without_a_limit_the_flood_delays_the_quiet_tenant() {
    let alone = on_one_shard(0, false, u32::MAX);
    let beside = on_one_shard(0, true, u32::MAX);
    assert!(
        beside.p99 > alone.p99 * 6,
        "p99 {:?} alone, {:?} beside",
        alone.p99,
        beside.p99
    );
}
