//! Routing on simulated shards while partitions move. Fault model: shards learn of a map at any
//! time and in any order, calls take any time, callers give up. What must hold: a call runs once
//! or not at all, on the holder of its partition, and no two shards hold one partition.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use engine::sim::{NodeId, Sim};
use engine::{Engine, EngineConfig, SchedGroup};

use super::*;
use crate::outside::wait_for;

/// What runs on each shard: counts the calls.
#[derive(Default)]
struct Counter {
    calls: Cell<u32>,
}

struct World {
    sim: Sim,
    node: NodeId,
    engine: EngineHandle,
    router: Router<Counter>,
    group: ServiceGroup,
}

const P0: PartitionId = PartitionId(0);
const P1: PartitionId = PartitionId(1);

impl World {
    /// Shards with a counter each, and no map.
    fn new(seed: u64, shards: u16) -> World {
        let sim = Sim::new(seed);
        let node = sim.node("n");
        let mut config = EngineConfig::unpinned(usize::from(shards));
        let group = config.add_service("calls", 1, 64, Duration::from_secs(30));
        let engine = sim.start(node, config).unwrap();
        let counters = Sharded::new(&engine);
        for shard in 0..shards {
            let counters = counters.clone();
            sim.run(node, shard, async move {
                counters.set_local(Rc::new(Counter::default()));
            });
        }
        let router = Router::new(&counters);
        World {
            sim,
            node,
            engine,
            router,
            group,
        }
    }

    fn with_map(seed: u64, shards: u16, map: PlacementMap) -> World {
        let world = World::new(seed, shards);
        world.install(map).unwrap();
        world
    }

    fn install(&self, map: PlacementMap) -> Result<(), InstallError> {
        let router = self.router.clone();
        self.sim
            .run(self.node, 0, async move { router.install(map).await })
    }

    fn calls(&self) -> Vec<u32> {
        let count = |shard: ShardId| {
            let counters = self.router.values().clone();
            self.sim.run(
                self.node,
                shard.0,
                async move { counters.local().calls.get() },
            )
        };
        self.engine.shard_ids().map(count).collect()
    }

    /// Calls from a shard; the answer is the shard that ran it, and the stamp.
    fn call(&self, from: u16, partition: PartitionId) -> Result<(ShardId, Stamp), RouteError> {
        let (router, group) = (self.router.clone(), self.group);
        self.sim.run(self.node, from, async move {
            router.call(partition, group, count).await
        })
    }

    /// Only some shards hear of a map.
    fn install_on(&self, shards: &[u16], map: &PlacementMap) {
        for shard in shards {
            let (seats, map) = (self.router.seats.clone(), map.clone());
            self.sim.run(self.node, *shard, async move {
                let version = map.version();
                release_here(&seats, map).await.unwrap();
                seats.local().take(version).unwrap();
            });
        }
    }
}

async fn count(counter: Rc<Counter>, stamp: Stamp) -> (ShardId, Stamp) {
    counter.calls.set(counter.calls.get() + 1);
    (engine::shard_id(), stamp)
}

#[test]
fn calls_run_on_the_owner_and_a_local_one_sends_no_message() {
    let world = World::with_map(1, 2, PlacementMap::spread(4, 2));
    let stamp = |partition| Stamp {
        partition,
        version: 1,
    };
    assert_eq!(world.call(0, P1), Ok((ShardId(1), stamp(P1))));
    let messages = || {
        let engine = world.engine.clone();
        let metrics = world
            .sim
            .run(world.node, 0, async move { engine.metrics().await });
        metrics.iter().map(|m| m.messages).sum::<u64>()
    };
    let first = messages();
    let before = messages();
    let reading = before - first;
    assert_eq!(world.call(0, P0), Ok((ShardId(0), stamp(P0))));
    assert_eq!(
        messages() - before,
        reading,
        "only reading the metrics takes messages"
    );
    assert_eq!(world.calls(), [1, 1]);
}

#[test]
fn a_call_under_an_old_map_is_told_the_new_owner_and_goes_there_whole() {
    let map = PlacementMap::spread(3, 3);
    let world = World::with_map(2, 3, map.clone());
    world.install_on(&[1, 2], &map.moved(P1, ShardId(2)));
    let (router, group) = (world.router.clone(), world.group);
    let (text, shard, took) = world.sim.run(world.node, 0, async move {
        let mut buffer = engine::take_buf(4096).unwrap();
        buffer[..5].copy_from_slice(b"whole");
        let began = engine::now();
        let call = router.call(P1, group, |counter, stamp| async move {
            let (shard, stamp) = count(counter, stamp).await;
            assert_eq!(
                stamp,
                Stamp {
                    partition: P1,
                    version: 2
                }
            );
            (buffer[..5].to_vec(), shard)
        });
        let (text, shard) = call.await.unwrap();
        (text, shard, engine::now().since(began))
    });
    assert_eq!((text.as_slice(), shard), (b"whole".as_slice(), ShardId(2)));
    assert!(
        took < RETRY_WAIT,
        "a better answer is followed at once, not after {took:?}"
    );
    assert_eq!(world.calls(), [0, 0, 1]);
}

#[test]
fn a_call_under_a_newer_map_waits_for_the_owner_to_hear_of_it() {
    let map = PlacementMap::spread(3, 3);
    let world = World::with_map(3, 3, map.clone());
    let next = map.moved(P1, ShardId(2));
    world.install_on(&[0, 1], &next);
    let (router, group) = (world.router.clone(), world.group);
    let waiting = world.sim.spawn(
        world.node,
        0,
        async move { router.call(P1, group, count).await },
    );
    world.sim.run_for(Duration::from_millis(1));
    assert_eq!(world.calls(), [0, 0, 0]);
    world.install_on(&[2], &next);
    let ran = world.sim.join(&waiting).unwrap();
    assert_eq!(
        ran,
        Ok((
            ShardId(2),
            Stamp {
                partition: P1,
                version: 2
            }
        ))
    );
}

#[test]
fn a_partition_that_nobody_takes_is_moved_after_bounded_tries() {
    let map = PlacementMap::spread(2, 2);
    let world = World::with_map(4, 2, map.clone());
    let next = map.moved(P1, ShardId(0));
    let (router, released) = (world.router.clone(), next.clone());
    world
        .sim
        .run(
            world.node,
            0,
            async move { router.release(&released).await },
        )
        .unwrap();
    for from in [0, 1] {
        let before = world.sim.now();
        assert_eq!(world.call(from, P1), Err(RouteError::Moved));
        assert!(world.sim.now().since(before) < Duration::from_millis(300));
    }
    assert_eq!(
        world.call(1, P0).unwrap().0,
        ShardId(0),
        "others are not held up"
    );
    world.install(next).unwrap();
    assert_eq!(world.call(1, P1).unwrap().0, ShardId(0));
}

#[test]
fn a_call_with_a_deadline_waits_out_a_long_move_and_no_longer() {
    let map = PlacementMap::spread(2, 2);
    let world = World::with_map(9, 2, map.clone());
    let next = map.moved(P1, ShardId(0));
    let (router, released) = (world.router.clone(), next.clone());
    let releasing = async move { router.release(&released).await };
    world.sim.run(world.node, 0, releasing).unwrap();
    let spawn = |limit| {
        let (router, group) = (world.router.clone(), world.group);
        world.sim.spawn(world.node, 1, async move {
            let deadline = engine::now() + limit;
            let answer = router.call_until(P1, group, deadline, count).await;
            (
                answer.map(|(shard, _)| shard),
                engine::now().since(deadline),
            )
        })
    };
    let hasty = spawn(Duration::from_secs(1));
    let patient = spawn(Duration::from_mins(1));
    world.sim.run_for(Duration::from_secs(5));
    let (answer, late) = hasty.take().unwrap();
    assert_eq!(answer, Err(RouteError::Moved));
    assert!(late <= RETRY_WAIT_MAX, "{late:?} past its deadline");
    assert_eq!(world.calls(), [0, 0]);
    world.install(next).unwrap();
    let (answer, _) = world.sim.join(&patient).unwrap();
    assert_eq!(answer, Ok(ShardId(0)));
    assert_eq!(world.calls(), [1, 0]);
}

#[test]
fn a_map_that_is_wrong_or_old_is_refused() {
    let map = PlacementMap::spread(4, 2);
    let world = World::with_map(5, 2, map.clone());
    assert_eq!(
        world.install(map.clone()),
        Ok(()),
        "the same map again changes nothing"
    );
    let next = map.moved(P0, ShardId(1));
    world.install(next.clone()).unwrap();
    let stale = InstallError::Stale {
        shard: ShardId(0),
        given: 1,
        current: 2,
    };
    assert_eq!(world.install(map.clone()), Err(stale));
    let other = map.moved(P1, ShardId(0));
    assert!(matches!(
        world.install(other),
        Err(InstallError::Stale { given: 2, .. })
    ));
    let misplaced = next.moved(P1, ShardId(2));
    let expected = InstallError::NoSuchShard {
        partition: P1,
        shard: ShardId(2),
        shards: 2,
    };
    assert_eq!(world.install(misplaced), Err(expected));
    let smaller = PlacementMap::spread(3, 2)
        .moved(P0, ShardId(1))
        .moved(P0, ShardId(0));
    assert_eq!(
        world.install(smaller),
        Err(InstallError::Partitions {
            given: 3,
            expected: 4
        })
    );
    let (router, unreleased) = (world.router.clone(), next.moved(P1, ShardId(0)));
    let taken = world
        .sim
        .run(world.node, 0, async move { router.take(&unreleased).await });
    assert!(matches!(
        taken,
        Err(InstallError::Stale {
            given: 3,
            current: 2,
            ..
        })
    ));
    assert_eq!(
        world.call(0, P0).unwrap(),
        (
            ShardId(1),
            Stamp {
                partition: P0,
                version: 2
            }
        )
    );
}

#[test]
fn calls_before_the_first_map_find_nobody() {
    let world = World::new(6, 2);
    assert_eq!(world.call(0, P1), Err(RouteError::Gone));
    world.install(PlacementMap::spread(2, 2)).unwrap();
    assert!(world.call(0, P1).is_ok());
}

#[test]
fn a_partition_stays_while_a_call_runs_on_it_and_the_install_can_go_on_later() {
    let map = PlacementMap::spread(2, 2);
    let world = World::with_map(7, 2, map.clone());
    let (router, group) = (world.router.clone(), world.group);
    let long = world.sim.spawn(world.node, 0, async move {
        let call = router.call(P1, group, |_, _| async {
            engine::sleep(Duration::from_secs(15)).await;
            engine::now()
        });
        call.await
    });
    world.sim.run_for(Duration::from_millis(1));
    let next = map.moved(P1, ShardId(0));
    let busy = InstallError::InUse {
        shard: ShardId(1),
        partition: P1,
    };
    assert_eq!(world.install(next.clone()), Err(busy));
    assert_eq!(world.call(0, P1), Err(RouteError::Moved));
    world.install(next).unwrap();
    let installed = world.sim.now();
    let ended = world.sim.join(&long).unwrap().unwrap();
    assert!(
        ended <= installed,
        "the call of {ended} was over at {installed}"
    );
    assert_eq!(world.call(1, P1).unwrap().0, ShardId(0));
}

/// By partition: the shard that calls run on, and how many do. The simulation is one thread, so
/// plain loads and stores do.
struct Holder {
    shard: AtomicU32,
    calls: AtomicU32,
}

fn add(count: &AtomicU32, by: i32) -> u32 {
    let sum = count.load(Ordering::Relaxed).wrapping_add_signed(by);
    count.store(sum, Ordering::Relaxed);
    sum
}

async fn watched(holders: Arc<Vec<Holder>>, stamp: Stamp) {
    let here = u32::from(engine::shard_id().0);
    let holder = &holders[stamp.partition.index()];
    if add(&holder.calls, 1) > 1 {
        let other = holder.shard.load(Ordering::Relaxed);
        assert_eq!(other, here, "{stamp:?} runs on two shards");
    }
    holder.shard.store(here, Ordering::Relaxed);
    engine::sleep(Duration::from_micros(engine::random() % 300)).await;
    add(&holder.calls, -1);
}

#[test]
fn no_partition_is_ever_worked_on_by_two_shards() {
    const PARTITIONS: u16 = 6;
    const SHARDS: u16 = 3;
    let mut moved = 0;
    for seed in 0..60 {
        let map = PlacementMap::spread(PARTITIONS, SHARDS);
        let world = World::with_map(seed, SHARDS, map.clone());
        let holder = |_| Holder {
            shard: AtomicU32::new(0),
            calls: AtomicU32::new(0),
        };
        let holders: Arc<Vec<Holder>> = Arc::new((0..PARTITIONS).map(holder).collect());
        let began = Arc::new(AtomicU32::new(0));
        let clients: Vec<_> = (0..12_u16)
            .map(|client| {
                let (router, group) = (world.router.clone(), world.group);
                let (holders, began) = (Arc::clone(&holders), Arc::clone(&began));
                world.sim.spawn(world.node, client % SHARDS, async move {
                    let mut done = (0, 0);
                    for _ in 0..30 {
                        let partition = PartitionId(engine::random() as u16 % PARTITIONS);
                        let (holders, began) = (Arc::clone(&holders), Arc::clone(&began));
                        let call = router.call(partition, group, move |counter, stamp| {
                            add(&began, 1);
                            counter.calls.set(counter.calls.get() + 1);
                            watched(holders, stamp)
                        });
                        match call.await {
                            Ok(()) => done.0 += 1,
                            Err(RouteError::Moved) => done.1 += 1,
                            Err(error) => panic!("{error}"),
                        }
                    }
                    done
                })
            })
            .collect();
        let router = world.router.clone();
        let control = world.sim.spawn(world.node, 0, async move {
            let mut map = map;
            for _ in 0..20 {
                let partition = PartitionId(engine::random() as u16 % PARTITIONS);
                map = map.moved(partition, ShardId(engine::random() as u16 % SHARDS));
                router.install(map.clone()).await.unwrap();
                engine::sleep(Duration::from_micros(engine::random() % 200)).await;
            }
        });
        world.sim.join(&control).unwrap();
        let (mut served, mut refused) = (0, 0);
        for client in &clients {
            let (ok, bounced) = world.sim.join(client).unwrap();
            served += ok;
            refused += bounced;
        }
        assert_eq!(served + refused, 12 * 30);
        assert_eq!(
            served,
            began.load(Ordering::Relaxed),
            "a call runs once, or not at all"
        );
        assert_eq!(world.calls().iter().sum::<u32>(), served);
        moved += refused;
    }
    assert!(moved < 60, "{moved} of 21,600 calls found no owner in time");
}

#[test]
fn busy_comes_through_and_a_caller_that_gives_up_leaves_the_call_running() {
    let world = World::with_map(8, 2, PlacementMap::spread(2, 2));
    let (router, group) = (world.router.clone(), world.group);
    let busy = world.sim.run(world.node, 0, async move {
        let slow = |counter: Rc<Counter>, stamp| async move {
            engine::sleep(Duration::from_millis(5)).await;
            count(counter, stamp).await
        };
        let mut calls = Vec::new();
        for _ in 0..70 {
            let router = router.clone();
            calls.push(engine::spawn_local(SchedGroup::FOREGROUND, async move {
                router.call(P1, group, slow).await
            }));
        }
        engine::sleep(Duration::from_millis(1)).await;
        let dropped = calls.pop();
        drop(dropped);
        let mut busy = 0;
        for call in calls {
            busy += u32::from(call.await == Err(RouteError::Busy));
        }
        busy
    });
    // The one that was dropped may have been refused too.
    assert!(
        (5..=6).contains(&busy),
        "64 of 70 calls fit, {busy} were refused"
    );
    world.sim.run_for(Duration::from_millis(10));
    assert_eq!(world.calls()[1], 64);
}

#[test]
fn on_real_shards_every_call_finds_its_owner_while_partitions_move() {
    let mut config = EngineConfig::unpinned(2);
    let group = config.add_service("calls", 1, 64, Duration::from_secs(30));
    let engine = Engine::start(config).unwrap();
    let handle = engine.handle();
    let counters = Sharded::new(&handle);
    for shard in handle.shard_ids() {
        let counters = counters.clone();
        let set = handle.call(shard, move |_| {
            counters.set_local(Rc::new(Counter::default()));
            Box::pin(async {})
        });
        wait_for(set).unwrap();
    }
    let router = Router::new(&counters);
    let mut map = PlacementMap::spread(2, 2);
    wait_for(router.install(map.clone())).unwrap();
    let (done, callers) = std::sync::mpsc::channel();
    for shard in handle.shard_ids() {
        let (router, done) = (router.clone(), done.clone());
        let begin = handle.call(shard, move |_| {
            let calls = async move {
                for turn in 0..500_u16 {
                    let partition = PartitionId(turn % 2);
                    // A busy machine may hold a move up for longer than all tries.
                    while let Err(error) = router.call(partition, group, count).await {
                        assert_eq!(error, RouteError::Moved);
                    }
                    engine::yield_now().await;
                }
                done.send(()).unwrap();
            };
            Box::pin(async { engine::spawn_local(SchedGroup::FOREGROUND, calls).detach() })
        });
        wait_for(begin).unwrap();
    }
    drop(done);
    for turn in 0..20_u16 {
        map = map.moved(PartitionId(turn % 2), ShardId(turn / 2 % 2));
        wait_for(router.install(map.clone())).unwrap();
    }
    assert_eq!(callers.iter().count(), 2, "both callers end well");
    let mut calls = 0;
    for shard in handle.shard_ids() {
        let counters = counters.clone();
        let read = handle.call(shard, move |_| {
            let calls = counters.local().calls.get();
            Box::pin(async move { calls })
        });
        calls += wait_for(read).unwrap();
    }
    assert_eq!(calls, 1000);
    engine.shutdown().unwrap();
}
