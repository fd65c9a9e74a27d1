//! The bridge before real shards and simulated ones. Fault model: callers give up at any time, a
//! shard is busy, stuck or ends by a panic, the node drains. What must hold: a call runs once or
//! not at all, an error that says that nothing happened is true, and no place in flight is lost.

mod failing;
mod flood;
mod simulated;

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use control_kit::api_error::ApiError;
use control_kit::metrics::Registry;
use control_kit::request_id::RequestId;
use engine::{Engine, EngineConfig, ServiceGroup, ShardId, Sharded};
use shards::{PartitionId, PlacementMap, Router, TenantId};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tonic::{Code, Status};

use super::*;

/// Ends a test that would hang.
const LIMIT: Duration = Duration::from_mins(1);

/// What runs on each shard: knows where it is.
struct Local {
    shard: ShardId,
}

/// What the service refuses with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no such thing")]
struct NoSuchThing;

impl From<NoSuchThing> for ApiError {
    fn from(_: NoSuchThing) -> ApiError {
        ApiError::new(Code::NotFound, "no-such-thing", "the thing does not exist")
    }
}

struct World {
    engine: Engine,
    registry: Registry,
    bridge: Bridge,
    values: Sharded<Local>,
    group: ServiceGroup,
}

impl World {
    /// Two real shards.
    fn new(limits: Limits) -> World {
        let mut config = EngineConfig::unpinned(2);
        config.mailbox = 16;
        config.pool_bytes = 8 << 20;
        let group = config.add_service("things", 1, 64, LIMIT);
        let engine = Engine::start(config).unwrap();
        let handle = engine.handle();
        let values = Sharded::new(&handle);
        for shard in handle.shard_ids() {
            let values = values.clone();
            let set = handle.call_blocking(shard, move |shard| {
                values.set_local(Rc::new(Local { shard: shard.id() }));
                Box::pin(async {})
            });
            set.unwrap();
        }
        let registry = Registry::default();
        let bridge = Bridge::new(&handle, limits, &registry);
        World {
            engine,
            registry,
            bridge,
            values,
            group,
        }
    }

    fn on(&self, shard: u16) -> Target<Local> {
        Target::Shard(self.values.clone(), ShardId(shard))
    }

    async fn call<T, R, E, F, Fut>(
        &self,
        context: CallContext,
        target: Target<T>,
        f: F,
    ) -> Result<R, Failure<E>>
    where
        T: 'static,
        R: Send + 'static,
        E: Send + 'static,
        F: FnOnce(Rc<T>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<R, E>> + 'static,
    {
        self.bridge.call(&context, target, f).await
    }

    /// A counter's or gauge's value.
    fn metric(&self, name: &str) -> u64 {
        let text = self.registry.text();
        let line = text
            .lines()
            .find_map(|l| l.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{name} in {text}"))
            .parse()
            .unwrap()
    }

    /// Waits until nothing is in flight.
    async fn settle(&self) {
        let idle = tokio::time::timeout(LIMIT, self.bridge.in_flight().idle());
        idle.await.expect("every place in flight comes back");
        assert_eq!(self.metric("uc_bridge_in_flight_count"), 0);
    }

    /// Holds a shard's thread until the answer is dropped.
    fn block(&self, shard: u16) -> std::sync::mpsc::Sender<()> {
        let (release, released) = std::sync::mpsc::channel::<()>();
        let (stuck, is_stuck) = std::sync::mpsc::channel();
        let handle = self.engine.handle();
        std::thread::spawn(move || {
            // The engine may have ended by then.
            let _ = handle.call_blocking(ShardId(shard), move |_| {
                stuck.send(()).unwrap();
                let _ = released.recv();
                Box::pin(async {})
            });
        });
        is_stuck.recv().unwrap();
        release
    }
}

fn context(tenant: &str) -> CallContext {
    CallContext {
        tenant: Tenant::new(tenant, TenantId(7)),
        request: RequestId::next(),
        deadline: Instant::now() + LIMIT,
    }
}

fn soon(tenant: &str) -> CallContext {
    CallContext {
        deadline: Instant::now() + Duration::from_millis(50),
        ..context(tenant)
    }
}

async fn where_it_runs(local: Rc<Local>) -> Result<ShardId, NoSuchThing> {
    assert_eq!(local.shard, engine::shard_id());
    Ok(local.shard)
}

/// The bridge's own error.
#[track_caller]
fn refused<R, E>(answer: Result<R, Failure<E>>) -> Error {
    match answer {
        Err(Failure::Bridge(error)) => error,
        Err(Failure::Service(_)) => panic!("the service answered"),
        Ok(_) => panic!("the call passed"),
    }
}

#[tokio::test]
async fn a_call_runs_on_the_shard_that_was_asked_for_or_on_each_in_turn() {
    let world = World::new(Limits::default());
    for shard in [0, 1, 1, 0] {
        let ran = world.call(context("ann"), world.on(shard), where_it_runs);
        assert_eq!(ran.await.unwrap(), ShardId(shard));
    }
    let mut ran = Vec::new();
    for _ in 0..4 {
        let target = Target::Any(world.values.clone());
        let call = world.call(context("ann"), target, where_it_runs);
        ran.push(call.await.unwrap().0);
    }
    assert_eq!(ran, [0, 1, 0, 1]);
    assert_eq!(world.metric("uc_bridge_calls_total"), 8);
    assert_eq!(world.metric("uc_bridge_call_seconds_count"), 8);
    world.settle().await;
    world.engine.shutdown().unwrap();
}

#[tokio::test]
async fn what_the_service_refuses_with_comes_back_typed() {
    let world = World::new(Limits::default());
    let refuse = |_: Rc<Local>| async { Err::<(), _>(NoSuchThing) };
    let answer = world.call(context("ann"), world.on(1), refuse).await;
    let failure = answer.unwrap_err();
    assert!(matches!(failure, Failure::Service(NoSuchThing)));
    let status = Status::from(ApiError::from(failure));
    assert_eq!(status.code(), Code::NotFound);
    assert_eq!(status.message(), "the thing does not exist");
}

#[tokio::test]
async fn a_call_to_an_owner_follows_its_partition() {
    let world = World::new(Limits::default());
    let router = Router::new(&world.values);
    let owner = |partition| Target::Owner {
        router: router.clone(),
        group: world.group,
        partition: PartitionId(partition),
    };
    let call = |partition| {
        let (bridge, target) = (world.bridge.clone(), owner(partition));
        async move { bridge.call(&context("ann"), target, where_it_runs).await }
    };
    // Nobody is its owner before there is a map.
    let error = refused(call(0).await);
    assert_eq!(
        (error.kind(), error.may_have_happened()),
        (ErrorKind::Gone, false)
    );
    let map = PlacementMap::spread(2, 2);
    router.install(map.clone()).await.unwrap();
    assert_eq!(call(1).await.unwrap(), ShardId(1));
    // While it moves the call waits, and runs on the new owner.
    let next = map.moved(PartitionId(1), ShardId(0));
    router.release(&next).await.unwrap();
    let waiting = tokio::spawn(call(1));
    assert_eq!(call(0).await.unwrap(), ShardId(0));
    router.take(&next).await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap(), ShardId(0));
    // When nobody takes it, nothing happened by the deadline.
    router
        .release(&next.moved(PartitionId(1), ShardId(1)))
        .await
        .unwrap();
    let late = world.call(soon("ann"), owner(1), where_it_runs);
    let error = refused(late.await);
    assert_eq!(
        (error.kind(), error.may_have_happened()),
        (ErrorKind::Deadline, false)
    );
    assert_eq!(
        Status::from(ApiError::from(error)).message(),
        "the deadline passed before the owner of partition 1 began the call; nothing happened; \
         the owner of partition 1; next: retry with a longer deadline"
    );
    world.settle().await;
}

#[tokio::test]
async fn a_service_that_has_not_started_is_not_there() {
    let world = World::new(Limits::default());
    let values: Sharded<Local> = Sharded::new(&world.engine.handle());
    let call = world.call(context("ann"), Target::Any(values), where_it_runs);
    let error = refused(call.await);
    assert_eq!(
        (error.kind(), error.may_have_happened()),
        (ErrorKind::Gone, false)
    );
    world.settle().await;
}
