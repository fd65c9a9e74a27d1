//! A scenario: a cluster, clients, and what goes wrong meanwhile, all decided by a seed.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use openraft::Instant as _;
use openraft::async_runtime::AsyncRuntime as _;
use openraft_rt_sim::{SimInstant, SimRuntime};
use porcupine_rs::{CheckResult, check_operations_timeout};

use crate::sim::broken::Breakage;
use crate::sim::check;
use crate::sim::client::{self, History, KEYS, Register};
use crate::sim::machine::{Plain, SimNode, World, Write};
use crate::sim::trouble::{Trouble, calm};
use crate::types::NodeId;
use crate::wal::lock;

const CLIENTS: u32 = 4;
const TROUBLE: Duration = Duration::from_secs(6);

/// What a scenario did, for the tests to see that it did something.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Done {
    pub(crate) acknowledged: usize,
    pub(crate) reads: usize,
    pub(crate) terms: usize,
    pub(crate) crashes: usize,
    pub(crate) changes: usize,
    pub(crate) snapshots: usize,
    /// The virtual time and the random stream at the end: equal for equal runs.
    pub(crate) fingerprint: u64,
}

/// Runs the scenario of `seed`. Panics where an invariant breaks.
pub(crate) fn run(seed: u64) -> Done {
    run_with(seed, None)
}

/// As [`run`], where something may be broken.
pub(crate) fn run_with(seed: u64, breakage: Option<Breakage>) -> Done {
    check::panics::catch_from_now();
    let done = SimRuntime::with_seed(seed).block_on(scenario(seed, breakage));
    let panics = check::panics::caught();
    assert!(panics.is_empty(), "tasks have panicked: {panics:#?}");
    done
}

async fn scenario(seed: u64, breakage: Option<Breakage>) -> Done {
    let world = World::new(seed, Plain::with(breakage));
    let count = if lock(&world.random).chance(60) { 3 } else { 5 };
    world.form(count).await;
    let history = Arc::new(Mutex::new(History::default()));
    let until = SimInstant::now() + TROUBLE;
    let watching = SimRuntime::spawn(check::watch(world.clone()));
    let clients: Vec<_> = (1..=CLIENTS)
        .map(|client| SimRuntime::spawn(client::run(world.clone(), history.clone(), client, until)))
        .collect();
    let mut trouble = Trouble::new(world.clone(), count);
    trouble.make(until).await;
    for client in clients {
        client.await.expect("a client runs to its end");
    }
    let last = Write::Set { key: 200, to: 1 };
    let nodes = calm(&world, last.encode()).await;
    let snapshots = nodes
        .iter()
        .filter(|(_, node)| node.status().purged.is_some())
        .count();
    check::logs_match(&nodes);
    states_match(&nodes);
    read_everything(&nodes, &history).await;
    world.over.store(true, Ordering::Relaxed);
    watching.await.expect("terms and positions only grow");
    let history = lock(&history);
    linearizable(&history);
    let changes = trouble.changes();
    let terms = lock(&world.leaders).len();
    let elapsed = SimInstant::now().elapsed_since_start().as_nanos() as u64;
    Done {
        acknowledged: history.acknowledged,
        reads: history.reads,
        terms,
        crashes: trouble.crashes,
        changes,
        snapshots,
        fingerprint: elapsed ^ lock(&world.random).next(),
    }
}

/// Reads every register on every member, as clients that come last.
async fn read_everything(nodes: &[(NodeId, SimNode)], history: &Arc<Mutex<History>>) {
    for (id, node) in nodes {
        for key in 0..client::KEYS as u8 {
            client::read(node, history, CLIENTS + *id as u32, key).await;
        }
    }
}

/// All members have applied the same.
pub(crate) fn states_match(nodes: &[(NodeId, SimNode)]) {
    let applied: Vec<_> = nodes
        .iter()
        .map(|(id, node)| (*id, node.status().applied))
        .collect();
    let states: Vec<_> = nodes.iter().map(|(_, node)| node.reader().all()).collect();
    for ((first, second), ids) in states.iter().zip(&states[1..]).zip(applied.windows(2)) {
        assert_eq!(first, second, "the states of {ids:?}");
    }
}

/// Some order of the operations explains what every client saw.
pub(crate) fn linearizable(history: &History) {
    for key in 0..KEYS as u8 {
        // The search grows with every write whose outcome is not known: first without those that
        // need none.
        let check = |operations: &[_]| {
            check_operations_timeout::<Register>(operations, Duration::from_secs(30))
        };
        if check(&history.of_seen(key)) == CheckResult::Ok {
            continue;
        }
        let operations = history.of(key);
        let found = check(&operations);
        assert!(
            found == CheckResult::Ok,
            "register {key} is not linearizable ({found:?}): {operations:#?}"
        );
    }
}
