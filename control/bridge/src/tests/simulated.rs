//! Calls on simulated shards: random callers, deadlines, moves of partitions, and the node's end at
//! any moment. The callers are tasks of a shard, since the simulation has but one thread; tokio's
//! clock stands still, so that the shards' virtual time alone decides.

use std::cell::RefCell;

use engine::EngineHandle;
use engine::sim::{NodeId, Sim};

use super::*;

const SHARDS: u16 = 3;
const PARTITIONS: u16 = 4;
const CALLERS: u16 = 16;
const TENANTS: [&str; 8] = ["ann", "bob", "cid", "dan", "eve", "fay", "gus", "hal"];
const CALLS: usize = 15;
const LIMITS: Limits = Limits {
    calls_max: 6,
    calls_per_tenant_max: 3,
};

/// What happened to one call, on the shard.
#[derive(Clone, Copy, Debug, Default)]
struct Trace {
    begun: u32,
    ended: u32,
}

#[derive(Default)]
struct Recorded {
    traces: RefCell<Vec<Trace>>,
    running: RefCell<[usize; TENANTS.len()]>,
    answers: RefCell<[u32; 5]>,
}

thread_local! {
    /// Closures that go to a shard are Send, and what is recorded is not: it stays on the one thread
    /// of the simulation.
    static RECORDED: Recorded = Recorded::default();
}

struct Running(usize);

impl Running {
    fn new(tenant: usize) -> Running {
        RECORDED.with(|r| {
            let mut running = r.running.borrow_mut();
            running[tenant] += 1;
            assert!(running[tenant] <= LIMITS.calls_per_tenant_max);
            assert!(running.iter().sum::<usize>() <= LIMITS.calls_max);
        });
        Running(tenant)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        RECORDED.with(|r| r.running.borrow_mut()[self.0] -= 1);
    }
}

fn trace(call: usize, change: impl FnOnce(&mut Trace)) {
    RECORDED.with(|r| change(&mut r.traces.borrow_mut()[call]));
}

fn new_trace() -> usize {
    RECORDED.with(|r| {
        let mut traces = r.traces.borrow_mut();
        traces.push(Trace::default());
        traces.len() - 1
    })
}

struct SimWorld {
    sim: Sim,
    node: NodeId,
    engine: EngineHandle,
    bridge: Bridge,
    router: Router<Local>,
    group: ServiceGroup,
}

impl SimWorld {
    fn new(seed: u64) -> SimWorld {
        RECORDED.with(|r| {
            r.traces.borrow_mut().clear();
            *r.running.borrow_mut() = [0; TENANTS.len()];
        });
        let sim = Sim::new(seed);
        let node = sim.node("n");
        let mut config = EngineConfig::unpinned(usize::from(SHARDS));
        config.mailbox = 16;
        let group = config.add_service("things", 1, 64, LIMIT);
        let engine = sim.start(node, config).unwrap();
        let values = Sharded::new(&engine);
        for shard in 0..SHARDS {
            let values = values.clone();
            sim.run(node, shard, async move {
                let shard = ShardId(shard);
                values.set_local(Rc::new(Local { shard }));
            });
        }
        let router = Router::new(&values);
        let (install, map) = (router.clone(), PlacementMap::spread(PARTITIONS, SHARDS));
        sim.run(node, 0, async move { install.install(map).await })
            .unwrap();
        SimWorld {
            bridge: Bridge::new(&engine, LIMITS, &Registry::default()),
            sim,
            node,
            engine,
            router,
            group,
        }
    }

    /// A caller that makes random calls, and gives some of them up.
    fn caller(&self, number: u16) -> engine::sim::SimTask<()> {
        let (bridge, router, group) = (self.bridge.clone(), self.router.clone(), self.group);
        self.sim.spawn(self.node, number % SHARDS, async move {
            let tenant = usize::from(number) % TENANTS.len();
            for _ in 0..CALLS {
                one_call(&bridge, &router, group, tenant).await;
                engine::sleep(Duration::from_micros(engine::random() % 100)).await;
            }
        })
    }

    /// Partitions move under the calls.
    fn mover(&self) -> engine::sim::SimTask<()> {
        let router = self.router.clone();
        self.sim.spawn(self.node, 0, async move {
            let mut map = PlacementMap::spread(PARTITIONS, SHARDS);
            for _ in 0..10 {
                let partition = PartitionId(engine::random() as u16 % PARTITIONS);
                map = map.moved(partition, ShardId(engine::random() as u16 % SHARDS));
                router.install(map.clone()).await.expect("the map is next");
                engine::sleep(Duration::from_micros(engine::random() % 500)).await;
            }
        })
    }
}

async fn one_call(bridge: &Bridge, router: &Router<Local>, group: ServiceGroup, tenant: usize) {
    let call = new_trace();
    let target = match engine::random() % 3 {
        0 => Target::Any(router.values().clone()),
        1 => Target::Shard(
            router.values().clone(),
            ShardId(engine::random() as u16 % SHARDS),
        ),
        _ => Target::Owner {
            router: router.clone(),
            group,
            partition: PartitionId(engine::random() as u16 % PARTITIONS),
        },
    };
    let context = CallContext {
        deadline: Instant::now() + Duration::from_micros(20 + engine::random() % 400),
        ..context(TENANTS[tenant])
    };
    let takes = Duration::from_micros(engine::random() % 300);
    let work = move |_: Rc<Local>| async move {
        trace(call, |trace| trace.begun += 1);
        let running = Running::new(tenant);
        engine::sleep(takes).await;
        drop(running);
        trace(call, |trace| trace.ended += 1);
        Ok::<_, NoSuchThing>(())
    };
    let answer = bridge.call(&context, target, work);
    let gives_up = engine::random().is_multiple_of(5);
    let patience = if gives_up {
        Duration::from_micros(engine::random() % 200)
    } else {
        LIMIT
    };
    judge(call, engine::timeout(patience, answer).await);
}

/// What the caller was told is true.
fn judge(call: usize, answer: Option<Result<(), Failure<NoSuchThing>>>) {
    let Trace { begun, ended } = RECORDED.with(|r| r.traces.borrow()[call]);
    assert!(
        begun <= 1 && ended <= begun,
        "a call runs once, or not at all"
    );
    let kind = match answer {
        None => 0,
        Some(Ok(())) => {
            assert_eq!(ended, 1);
            1
        }
        Some(Err(Failure::Service(_))) => panic!("the service refuses nothing"),
        Some(Err(Failure::Bridge(error))) => {
            assert_eq!(error.may_have_happened(), begun == 1, "{error}");
            match error.kind() {
                ErrorKind::TenantBusy => 2,
                ErrorKind::BridgeBusy => 3,
                ErrorKind::Deadline => 4,
                kind => panic!("{kind:?}: {error}"),
            }
        }
    };
    RECORDED.with(|r| r.answers.borrow_mut()[kind] += 1);
}

fn stopped_clock() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap()
}

#[test]
fn what_callers_are_told_is_true_and_every_place_comes_back() {
    let clock = stopped_clock();
    let _entered = clock.enter();
    RECORDED.with(|r| *r.answers.borrow_mut() = [0; 5]);
    for seed in 0..200 {
        let world = SimWorld::new(seed);
        let callers: Vec<_> = (0..CALLERS).map(|number| world.caller(number)).collect();
        let mover = world.mover();
        for task in callers.iter().chain([&mover]) {
            world.sim.join(task).unwrap();
        }
        // What was given up runs to its end.
        world.sim.run_for(Duration::from_millis(1));
        assert_eq!(world.bridge.in_flight().total(), 0, "seed {seed}");
        RECORDED.with(|r| assert_eq!(*r.running.borrow(), [0; TENANTS.len()], "seed {seed}"));
    }
    let answers = RECORDED.with(|r| *r.answers.borrow());
    assert!(answers.iter().all(|count| *count > 0), "{answers:?}");
}

#[test]
fn when_the_node_goes_down_no_place_is_lost_and_calls_are_gone() {
    let clock = stopped_clock();
    let _entered = clock.enter();
    for seed in 0..50 {
        let world = SimWorld::new(seed);
        let callers: Vec<_> = (0..CALLERS).map(|number| world.caller(number)).collect();
        world.sim.run_for(Duration::from_micros(seed * 7 % 400));
        world.sim.crash(world.node);
        assert!(
            callers.iter().all(engine::sim::SimTask::is_gone),
            "seed {seed}"
        );
        assert_eq!(world.bridge.in_flight().total(), 0, "seed {seed}");
        world
            .sim
            .start(world.node, EngineConfig::unpinned(1))
            .unwrap();
        let (bridge, values) = (world.bridge.clone(), world.router.values().clone());
        let answer = world.sim.run(world.node, 0, async move {
            bridge
                .call(&context("ann"), Target::Any(values), where_it_runs)
                .await
        });
        assert_eq!(refused(answer).kind(), ErrorKind::Gone);
        assert_eq!(world.engine.shards(), usize::from(SHARDS));
    }
}
