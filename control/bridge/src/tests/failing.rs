//! Deadlines, callers that go, drains and shards that end.

use super::*;

/// Counts how often it ran.
fn counted(
    count: &Arc<AtomicUsize>,
) -> impl FnOnce(Rc<Local>) -> std::future::Ready<Result<(), NoSuchThing>> + Send + 'static + use<>
{
    let count = Arc::clone(count);
    move |_| {
        count.fetch_add(1, Ordering::SeqCst);
        std::future::ready(Ok(()))
    }
}

/// Counts when it begins, and ends with a permit.
async fn begun_and_waiting(
    count: Arc<AtomicUsize>,
    gate: Arc<Semaphore>,
) -> Result<usize, NoSuchThing> {
    let number = count.fetch_add(1, Ordering::SeqCst);
    gate.acquire()
        .await
        .expect("the gate is never closed")
        .forget();
    Ok(number)
}

async fn wait_for(count: &AtomicUsize, number: usize) {
    let reached = async {
        while count.load(Ordering::SeqCst) < number {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LIMIT, reached)
        .await
        .expect("calls begin");
}

#[tokio::test]
async fn at_its_deadline_a_call_ends_on_both_sides() {
    let world = World::new(Limits::default());
    let (dropped, is_dropped) = tokio::sync::oneshot::channel::<()>();
    let pending = |_: Rc<Local>| async move {
        let _dropped = dropped;
        std::future::pending::<Result<(), NoSuchThing>>().await
    };
    let context = soon("ann");
    let error = refused(world.bridge.call(&context, world.on(1), pending).await);
    assert_eq!(
        (error.kind(), error.may_have_happened()),
        (ErrorKind::Deadline, true)
    );
    let status = Status::from(ApiError::from(error));
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert_eq!(
        status.message(),
        "no answer of shard 1 before the deadline; the call had begun; shard 1; next: look at \
         whether it happened, then retry with a longer deadline"
    );
    assert!(is_dropped.await.is_err(), "the shard has dropped it");
    world.settle().await;
    assert_eq!(world.metric("uc_bridge_failed_deadline_total"), 1);
}

#[tokio::test]
async fn a_call_that_could_not_begin_in_time_never_does() {
    let world = World::new(Limits::default());
    let ran = Arc::new(AtomicUsize::new(0));
    let past = CallContext {
        deadline: Instant::now(),
        ..context("ann")
    };
    let error = refused(world.bridge.call(&past, world.on(1), counted(&ran)).await);
    assert_eq!(
        (error.kind(), error.may_have_happened()),
        (ErrorKind::Deadline, false)
    );

    let release = world.block(1);
    let error = refused(world.call(soon("ann"), world.on(1), counted(&ran)).await);
    assert_eq!(
        (error.kind(), error.may_have_happened()),
        (ErrorKind::Deadline, false)
    );
    drop(release);
    // Mail is taken in order: what comes after shows that the shard is past it.
    let after = world.call(context("ann"), world.on(1), counted(&ran));
    after.await.unwrap();
    assert_eq!(ran.load(Ordering::SeqCst), 1);
    world.settle().await;
}

#[tokio::test]
async fn who_goes_before_the_call_begins_ends_it_and_who_goes_later_does_not() {
    let world = World::new(Limits::default());
    let ran = Arc::new(AtomicUsize::new(0));
    let release = world.block(1);
    {
        let context = context("ann");
        let call = world.bridge.call(&context, world.on(1), counted(&ran));
        let mut call = std::pin::pin!(call);
        let polled = std::future::poll_fn(|cx| std::task::Poll::Ready(call.as_mut().poll(cx)));
        assert!(polled.await.is_pending());
        assert_eq!(world.metric("uc_bridge_in_flight_count"), 1);
    }
    drop(release);
    world.settle().await;
    assert_eq!(ran.load(Ordering::SeqCst), 0);
    assert_eq!(world.metric("uc_bridge_calls_abandoned_total"), 1);

    let (begun, gate) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
    let ended = Arc::new(AtomicUsize::new(0));
    let call = {
        let (bridge, target) = (world.bridge.clone(), world.on(0));
        let (begun, gate, ended) = (begun.clone(), gate.clone(), ended.clone());
        tokio::spawn(async move {
            let work = |_| async move {
                let answer = begun_and_waiting(begun, gate).await;
                ended.fetch_add(1, Ordering::SeqCst);
                answer
            };
            bridge.call(&context("ann"), target, work).await
        })
    };
    wait_for(&begun, 1).await;
    call.abort();
    assert!(call.await.unwrap_err().is_cancelled());
    assert_eq!(
        world.metric("uc_bridge_in_flight_count"),
        1,
        "it still runs"
    );
    gate.add_permits(1);
    world.settle().await;
    assert_eq!(ended.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_drain_refuses_new_calls_and_waits_for_those_in_flight() {
    let world = World::new(Limits::default());
    let (begun, gate) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
    let calls: Vec<_> = (0..6_u16)
        .map(|number| {
            let (bridge, target) = (world.bridge.clone(), world.on(number % 2));
            let (begun, gate) = (begun.clone(), gate.clone());
            tokio::spawn(async move {
                let work = |_| begun_and_waiting(begun, gate);
                bridge.call(&context("ann"), target, work).await
            })
        })
        .collect();
    wait_for(&begun, 6).await;
    assert_eq!(
        world.bridge.drain(Duration::ZERO).await,
        6,
        "left at its limit"
    );
    let error = refused(world.call(context("bob"), world.on(0), where_it_runs).await);
    assert_eq!(error.kind(), ErrorKind::Draining);
    assert!(!error.may_have_happened());
    let status = Status::from(ApiError::from(error));
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(
        status.message(),
        "the node drains and takes no new calls; this node; next: retry at another node, or here \
         when /readyz answers 200 again"
    );
    let bridge = world.bridge.clone();
    let drained = tokio::spawn(async move { bridge.drain(LIMIT).await });
    gate.add_permits(6);
    assert_eq!(drained.await.unwrap(), 0);
    for call in calls {
        call.await.unwrap().unwrap();
    }
    assert_eq!(world.metric("uc_bridge_refused_draining_total"), 1);
    world.engine.shutdown().unwrap();
}

#[tokio::test]
async fn a_shard_that_panics_is_gone_to_its_callers_and_heard_of() {
    let world = World::new(Limits::default());
    let mut deaths = ShardDeaths::watch(&world.engine.handle());
    let (begun, gate) = (Arc::new(AtomicUsize::new(0)), Arc::new(Semaphore::new(0)));
    let waiting = {
        let (bridge, target) = (world.bridge.clone(), world.on(1));
        let (begun, gate) = (begun.clone(), gate.clone());
        tokio::spawn(async move {
            let work = |_| begun_and_waiting(begun, gate);
            bridge.call(&context("ann"), target, work).await
        })
    };
    wait_for(&begun, 1).await;
    let panics = |_: Rc<Local>| async { panic!("a bug of the service") };
    let died: Result<(), Failure<NoSuchThing>> =
        world.call(context("bob"), world.on(1), panics).await;
    for error in [refused(died), refused(waiting.await.unwrap())] {
        assert_eq!(
            (error.kind(), error.may_have_happened()),
            (ErrorKind::Gone, true)
        );
        let status = Status::from(ApiError::from(error));
        assert_eq!(status.code(), Code::Unavailable);
        assert!(
            status
                .message()
                .contains("shard 1 ended in the middle of the call")
        );
    }
    tokio::time::timeout(LIMIT, deaths.next()).await.unwrap();
    let after = refused(world.call(context("bob"), world.on(1), where_it_runs).await);
    assert_eq!(
        (after.kind(), after.may_have_happened()),
        (ErrorKind::Gone, false)
    );
    world.settle().await;
    assert_eq!(world.metric("uc_bridge_failed_gone_total"), 3);
    let error = world.engine.shutdown().unwrap_err();
    assert_eq!(error.kind(), engine::ErrorKind::ShardFailed);
}
