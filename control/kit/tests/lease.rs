//! Leases, fences and elections in a simulated cloud: at most one leader's writes stand, whoever sleeps,
//! dies, or is not heard.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

use std::sync::Arc;
use std::time::Duration;

use control_kit::lease::{Claim, Held, campaign, claim};
use control_kit::store::{Outcome, SharedStore, Txn, Write};
use store_sim::{Faults, SimStore, World, for_seeds, simulate};

/// Seeds, unless `UC_SEEDS` says more; `UC_SEED` replays one.
const SEEDS: u64 = 200;
const TTL: Duration = Duration::from_secs(10);

fn client(world: &World) -> (SimStore, SharedStore) {
    let client = world.client();
    (client.clone(), Arc::new(client))
}

#[test]
fn a_lease_is_kept_for_as_long_as_it_is_held_and_no_longer() {
    simulate(async {
        let world = World::new(1, Faults::default());
        let (_, store) = client(&world);
        let held = Held::grant(&store, TTL).await.unwrap();
        let Claim::Won(fence) = claim(&store, &held, "k", "me").await.unwrap() else {
            panic!("nobody has it");
        };
        world.pass(TTL * 10).await;
        assert!(held.is_held());
        let write = |at: &str| Txn::when(fence.condition()).then(Write::put(at, "x"));
        let written = store.commit(write("a")).await.unwrap();
        assert!(matches!(written, Outcome::Committed { .. }));
        drop(held);
        world.pass(TTL * 2).await;
        let written = store.commit(write("b")).await.unwrap();
        assert!(matches!(written, Outcome::Conflict { .. }), "{written:?}");
    });
}

#[test]
fn who_is_cut_off_knows_it_before_the_store_lets_another_in() {
    simulate(async {
        let world = World::new(2, Faults::default());
        let ((cut, first), (_, second)) = (client(&world), client(&world));
        let leader = campaign(&first, "leader", "one", TTL).await;
        cut.cut_off();
        let lost = async {
            leader.held.lost().await;
            tokio::time::Instant::now()
        };
        let won = async {
            let next = campaign(&second, "leader", "two", TTL).await;
            (tokio::time::Instant::now(), next)
        };
        let (lost_at, (won_at, next)) = tokio::join!(lost, won);
        assert!(lost_at <= won_at);
        assert!(next.fence.epoch() > leader.fence.epoch());
        // It wakes up late, and writes: refused.
        cut.reconnect();
        let late = Txn::when(leader.fence.condition()).then(Write::put("x", "late"));
        let outcome = first.commit(late).await.unwrap();
        assert!(matches!(outcome, Outcome::Conflict { .. }), "{outcome:?}");
    });
}

#[test]
fn one_leads_at_a_time_whatever_is_lost_or_late() {
    for_seeds(SEEDS, |seed| async move {
        let world = World::new(seed, Faults::rough());
        let mut epochs = Vec::new();
        let mut tasks = Vec::new();
        for name in ["one", "two", "three"] {
            let ((cut, store), world) = (client(&world), world.clone());
            tasks.push(tokio::spawn(async move {
                let mut led = Vec::new();
                for _ in 0..3 {
                    let leader = campaign(&store, "leader", name, TTL).await;
                    let from = tokio::time::Instant::now();
                    let pause = world.network().below(20_000);
                    tokio::select! {
                        () = leader.held.lost() => {}
                        () = world.pass(Duration::from_millis(pause)) => {}
                    }
                    let until = tokio::time::Instant::now();
                    led.push((leader.fence.epoch(), from, until));
                    if world.network().below(3) == 0 {
                        cut.cut_off();
                        drop(leader);
                        world.pass(TTL).await;
                        cut.reconnect();
                    }
                }
                led
            }));
        }
        for task in tasks {
            epochs.extend(task.await.unwrap());
        }
        epochs.sort();
        for pair in epochs.windows(2) {
            assert!(pair[0].0 < pair[1].0, "seed {seed}: an epoch twice");
            assert!(
                pair[0].2 <= pair[1].1,
                "seed {seed}: two led at once: {pair:?}"
            );
        }
    });
}
