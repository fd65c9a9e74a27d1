//! More calls than fit.

use futures_util::future::join_all;
use shards::{Admission, AdmissionConfig};

use super::*;

/// Waits at the gate, unless `gate` is none.
fn calls(
    world: &World,
    tenant: &'static str,
    count: usize,
    gate: &Arc<Semaphore>,
) -> Vec<tokio::task::JoinHandle<Result<ShardId, Failure<NoSuchThing>>>> {
    let one = |number: usize| {
        let (bridge, target) = (world.bridge.clone(), world.on(number as u16 % 2));
        let gate = Arc::clone(gate);
        tokio::spawn(async move {
            let work = |local| async move {
                gate.acquire()
                    .await
                    .expect("the gate is never closed")
                    .forget();
                where_it_runs(local).await
            };
            bridge.call(&context(tenant), target, work).await
        })
    };
    (0..count).map(one).collect()
}

#[tokio::test]
async fn one_tenants_flood_is_refused_for_that_tenant_alone() {
    let world = World::new(Limits {
        calls_max: 16,
        calls_per_tenant_max: 16,
    });
    let gate = Arc::new(Semaphore::new(0));
    let flood = calls(&world, "ann", 100, &gate);
    let mut held = Vec::new();
    let mut errors = Vec::new();
    for (number, call) in flood.into_iter().enumerate() {
        // The first eight fit; they wait at the gate.
        if number < 8 {
            held.push(call);
        } else {
            errors.push(refused(call.await.unwrap()));
        }
    }
    assert_eq!(errors.len(), 92);
    for error in &errors {
        assert_eq!(
            (error.kind(), error.may_have_happened()),
            (ErrorKind::TenantBusy, false)
        );
    }
    let status = Status::from(ApiError::from(errors.remove(0)));
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(
        status.message(),
        "8 calls of the tenant are in flight, the most that it may have now; tenant ann; next: \
         retry after 100 ms, and after twice as long each further time; have fewer requests in \
         flight at once"
    );
    // Another tenant is served all the while, one call after the other.
    for shard in [0, 1, 0, 1] {
        let call = world.call(context("bob"), world.on(shard), where_it_runs);
        assert_eq!(call.await.unwrap(), ShardId(shard));
    }
    gate.add_permits(8);
    for call in held {
        call.await.unwrap().unwrap();
    }
    world.settle().await;
    assert_eq!(world.metric("uc_bridge_refused_tenant_busy_total"), 92);
    // And the one that flooded is, as soon as it is below its bound.
    let again = world.call(context("ann"), world.on(0), where_it_runs);
    assert!(again.await.is_ok());
}

#[tokio::test]
async fn when_every_place_is_taken_a_newcomer_is_told_that_the_node_is_busy() {
    let world = World::new(Limits {
        calls_max: 3,
        calls_per_tenant_max: 1,
    });
    let gate = Arc::new(Semaphore::new(0));
    let mut held = Vec::new();
    for tenant in ["a", "b", "c"] {
        held.extend(calls(&world, tenant, 1, &gate));
    }
    while world.metric("uc_bridge_in_flight_count") < 3 {
        tokio::task::yield_now().await;
    }
    let error = refused(world.call(context("d"), world.on(0), where_it_runs).await);
    assert_eq!(error.kind(), ErrorKind::BridgeBusy);
    assert_eq!(
        Status::from(ApiError::from(error)).code(),
        Code::ResourceExhausted
    );
    gate.add_permits(3);
    for call in held {
        call.await.unwrap().unwrap();
    }
    world.settle().await;
}

#[tokio::test]
async fn a_full_mailbox_is_busy_and_what_it_took_is_answered() {
    let world = World::new(Limits::default());
    let release = world.block(1);
    let contexts: Vec<CallContext> = (0..40).map(|_| context("ann")).collect();
    let calls = contexts.iter().map(|context| {
        let call = world.bridge.call(context, world.on(1), where_it_runs);
        let mut call = Box::pin(call);
        let first = std::task::Context::from_waker(std::task::Waker::noop());
        let mut first = first;
        (call.as_mut().poll(&mut first), call)
    });
    let (mut taken, mut busy) = (Vec::new(), Vec::new());
    for (polled, call) in calls {
        match polled {
            std::task::Poll::Pending => taken.push(call),
            std::task::Poll::Ready(answer) => busy.push(refused(answer)),
        }
    }
    assert_eq!(
        (taken.len(), busy.len()),
        (16, 24),
        "the mailbox has 16 places"
    );
    for error in busy {
        assert_eq!(
            (error.kind(), error.may_have_happened()),
            (ErrorKind::ShardBusy, false)
        );
        let status = Status::from(ApiError::from(error));
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert!(status.message().contains("shard 1 takes no more calls now"));
    }
    drop(release);
    for answer in join_all(taken).await {
        assert_eq!(answer.unwrap(), ShardId(1));
    }
    world.settle().await;
    assert_eq!(world.metric("uc_bridge_refused_shard_busy_total"), 24);
}

/// A service with turns of its own.
struct Turns(Admission);

#[tokio::test]
async fn the_refusal_of_a_shards_admission_is_the_same_error() {
    let world = World::new(Limits::default());
    let handle = world.engine.handle();
    let turns: Sharded<Turns> = Sharded::new(&handle);
    let set = turns.clone();
    let one_at_a_time = AdmissionConfig {
        concurrent_max: 1,
        queue_per_tenant_max: 0,
        ..AdmissionConfig::default()
    };
    let made = handle.call(ShardId(0), move |_| {
        set.set_local(Rc::new(Turns(Admission::new(one_at_a_time))));
        Box::pin(async {})
    });
    made.await.unwrap();
    let (inside, is_inside) = tokio::sync::oneshot::channel();
    let (gate, opened) = tokio::sync::oneshot::channel::<()>();
    let target = Target::Shard(turns, ShardId(0));
    let first = {
        let (bridge, target) = (world.bridge.clone(), target.clone());
        tokio::spawn(async move {
            let work = |turns: Rc<Turns>| async move {
                let _turn = turns.0.enter(TenantId(7), 1).await?;
                inside.send(()).expect("the test waits");
                let _ = opened.await;
                Ok(())
            };
            let answer: Result<(), Failure<shards::Busy>> =
                bridge.call(&context("ann"), target, work).await;
            answer
        })
    };
    is_inside.await.unwrap();
    let context = context("ann");
    let second = |turns: Rc<Turns>| async move { turns.0.enter(TenantId(7), 1).await.map(drop) };
    let failure = world
        .bridge
        .call(&context, target, second)
        .await
        .unwrap_err();
    let error = failure.into_api_error(|busy| Error::of_admission(&context, busy).into());
    let status = Status::from(error);
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(
        status
            .message()
            .contains("tenant ann; next: retry after 100 ms"),
        "{status}"
    );
    gate.send(()).unwrap();
    first.await.unwrap().unwrap();
}
