//! Turns and waits on a simulated shard. Fault model: any waiter may go at any time, also between
//! the grant of its turn and its next poll; no turn may be lost by that, and none given twice.

use std::pin::pin;
use std::task::Context;
use std::time::Duration;

use engine::sim::Sim;
use engine::{EngineConfig, SchedGroup};

use super::*;

const A: TenantId = TenantId(1);
const B: TenantId = TenantId(2);

fn admission(concurrent_max: u32, queue_per_tenant_max: u32) -> Admission {
    Admission::new(AdmissionConfig {
        concurrent_max,
        queue_per_tenant_max,
        default_shares: 100,
    })
}

fn on_a_shard<F: Future + 'static>(seed: u64, future: F) -> F::Output {
    let sim = Sim::new(seed);
    let node = sim.node("n");
    let _engine = sim.start(node, EngineConfig::unpinned(1)).unwrap();
    sim.run(node, 0, future)
}

#[test]
fn a_full_queue_refuses_its_own_tenant_only() {
    on_a_shard(1, async {
        let admission = admission(1, 1);
        let turn = admission.enter(A, 1).await.unwrap();
        let mut cx = Context::from_waker(Waker::noop());
        let mut second = pin!(admission.enter(A, 1));
        assert!(second.as_mut().poll(&mut cx).is_pending());
        let refused = admission.enter(A, 1).await.unwrap_err();
        assert_eq!(
            refused,
            Busy {
                tenant: A,
                queued: 1
            }
        );
        assert!(
            refused
                .to_string()
                .contains("tenant 1 has 1 requests waiting")
        );
        let mut other = pin!(admission.enter(B, 1));
        assert!(other.as_mut().poll(&mut cx).is_pending());
        drop(turn);
        // B owes nothing, A has used one turn.
        assert!(second.as_mut().poll(&mut cx).is_pending());
        let Poll::Ready(Ok(turn)) = other.as_mut().poll(&mut cx) else {
            panic!("B has its turn")
        };
        assert_eq!(turn.tenant(), B);
        drop(turn);
        assert!(second.as_mut().poll(&mut cx).is_ready());
    });
}

#[test]
fn a_turn_that_nobody_takes_goes_to_the_next() {
    on_a_shard(1, async {
        let admission = admission(1, 4);
        let mut cx = Context::from_waker(Waker::noop());
        let turn = admission.enter(A, 1).await.unwrap();
        let mut gone = Box::pin(admission.enter(A, 1));
        let mut next = pin!(admission.enter(A, 1));
        assert!(gone.as_mut().poll(&mut cx).is_pending());
        assert!(next.as_mut().poll(&mut cx).is_pending());
        drop(turn);
        drop(gone);
        assert!(next.as_mut().poll(&mut cx).is_ready());
        let metrics = admission.metrics();
        assert_eq!(metrics.tenants[0].1.admitted, 3);
    });
}

#[test]
fn a_waiter_that_goes_leaves_the_queue() {
    on_a_shard(1, async {
        let admission = admission(1, 1);
        let turn = admission.enter(A, 1).await.unwrap();
        let wait = Duration::from_millis(1);
        assert!(engine::timeout(wait, admission.enter(A, 1)).await.is_none());
        assert!(
            engine::timeout(wait, admission.enter(A, 1)).await.is_none(),
            "there was room"
        );
        drop(turn);
        assert!(admission.enter(A, 1).await.is_ok());
        let seen = admission.metrics().tenants[0].1;
        assert_eq!(
            (seen.left, seen.refused, seen.running, seen.queued),
            (2, 0, 0, 0)
        );
    });
}

#[test]
fn waits_are_measured_in_engine_time() {
    on_a_shard(1, async {
        let admission = admission(1, 1);
        let turn = admission.enter(A, 1).await.unwrap();
        let other = admission.clone();
        let waiter = engine::spawn_local(SchedGroup::FOREGROUND, async move {
            other.enter(B, 1).await.map(drop)
        });
        engine::sleep(Duration::from_millis(3)).await;
        drop(turn);
        assert_eq!(waiter.await, Ok(()));
        let seen = admission.metrics().tenants[1].1;
        assert_eq!(seen.wait.count(), 1);
        let wait = seen.wait.max();
        assert!((2_990..3_100).contains(&wait.as_micros()), "{wait:?}");
    });
}

/// Counts those that run, also when they are cancelled.
struct Inside(Rc<Cell<u32>>);

impl Inside {
    fn enter(running: &Rc<Cell<u32>>, bound: u32) -> Inside {
        running.set(running.get() + 1);
        assert!(running.get() <= bound);
        Inside(Rc::clone(running))
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// Clients whose requests are cancelled at random: while they wait, between the grant and the
/// turn, while they run.
async fn chaos(concurrent_max: u32) {
    let admission = admission(concurrent_max, 3);
    let (running, served) = (Rc::new(Cell::new(0_u32)), Rc::new(Cell::new(0_u64)));
    let mut clients = Vec::new();
    for client in 0..24_u64 {
        let (admission, running) = (admission.clone(), Rc::clone(&running));
        let served = Rc::clone(&served);
        clients.push(engine::spawn_local(SchedGroup::FOREGROUND, async move {
            let micros = |below: u64| Duration::from_micros(engine::random() % below);
            for _ in 0..40 {
                let (admission, running) = (admission.clone(), Rc::clone(&running));
                let served = Rc::clone(&served);
                let request = engine::spawn_local(SchedGroup::FOREGROUND, async move {
                    let Ok(_turn) = admission.enter(TenantId(client % 5), 7).await else {
                        return;
                    };
                    let _inside = Inside::enter(&running, concurrent_max);
                    served.set(served.get() + 1);
                    engine::sleep(micros(30)).await;
                });
                engine::sleep(micros(100)).await;
                drop(request);
            }
        }));
    }
    for client in clients {
        client.await;
    }
    let served = served.get();
    let metrics = admission.metrics();
    assert_eq!(metrics.running, 0);
    assert!(
        metrics
            .tenants
            .iter()
            .all(|(_, t)| t.running == 0 && t.queued == 0)
    );
    let waits: u64 = metrics.tenants.iter().map(|(_, t)| t.wait.count()).sum();
    let admitted: u64 = metrics.tenants.iter().map(|(_, t)| t.admitted).sum();
    assert_eq!(waits, served);
    assert!(
        admitted >= served,
        "turns given back unused count as admitted"
    );
    for _ in 0..concurrent_max {
        std::mem::forget(admission.enter(A, 1).await);
    }
    assert_eq!(admission.metrics().running, concurrent_max);
}

#[test]
fn no_turn_is_lost_to_waiters_that_give_up() {
    for seed in 0..40 {
        on_a_shard(seed, chaos(1 + seed as u32 % 4));
    }
}
