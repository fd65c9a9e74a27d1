//! A scenario: a cluster, clients, watchers, and what goes wrong meanwhile, all decided by a seed.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use chainfire_core::sim::check as core_check;
use chainfire_core::sim::runtime::{SimInstant, SimRuntime};
use chainfire_core::sim::trouble::{Trouble, calm};
use chainfire_core::types::NodeId;
use chainfire_core::{AsyncRuntime as _, Instant as _};
use chainfire_store::{Command, Op};
use etcd_wire::etcdserverpb::PutRequest;
use prost::Message as _;

use super::broken::Breakage;
use super::client::Client;
use super::history::{self, Step};
use super::members::{Keys, SimNode, World};
use super::watcher::{Seen, Watcher};
use super::{check, lease, ledger};
use crate::watch::KeyRange;

const CLIENTS: u32 = 4;
const WATCHERS: usize = 3;
const TROUBLE: Duration = Duration::from_secs(6);
/// Long enough for every lease to end, under a new leader too.
const LEASES_END: Duration = Duration::from_secs(30);

/// What a scenario did, for the tests to see that it did something.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Done {
    pub answered: usize,
    pub events: usize,
    pub sessions: usize,
    pub compacted: usize,
    pub leases_ended: usize,
    pub restored: usize,
    pub hashes: usize,
    pub crashes: usize,
    pub changes: usize,
    /// The virtual time and the random stream at the end: equal for equal runs.
    pub fingerprint: u64,
}

/// Runs the scenario of `seed`. Panics where an invariant breaks.
pub fn run(seed: u64) -> Done {
    run_with(seed, None)
}

/// As [`run`], where something may be broken.
pub fn run_with(seed: u64, breakage: Option<Breakage>) -> Done {
    core_check::panics::catch_from_now();
    let done = SimRuntime::with_seed(seed).block_on(scenario(seed, breakage));
    let panics = core_check::panics::caught();
    assert!(panics.is_empty(), "tasks have panicked: {panics:#?}");
    done
}

async fn scenario(seed: u64, breakage: Option<Breakage>) -> Done {
    let world = World::new(seed, Keys::with(breakage));
    let count = if seed.is_multiple_of(3) { 5 } else { 3 };
    world.form(count).await;
    let until = SimInstant::now() + TROUBLE;
    let watching = SimRuntime::spawn(core_check::watch(Arc::clone(&world)));
    let clients = (1..=CLIENTS).map(|number| Client::new(Arc::clone(&world), number));
    let clients: Vec<_> = clients
        .map(|client| SimRuntime::spawn(client.run(until)))
        .collect();
    let watchers: Vec<_> = (0..WATCHERS)
        .map(|_| SimRuntime::spawn(Watcher::new(Arc::clone(&world)).run(until)))
        .collect();
    let mut trouble = Trouble::new(Arc::clone(&world), count);
    trouble.make(until).await;
    for client in clients {
        client.await.expect("a client runs to its end");
    }
    let nodes = calm(&world, last_command()).await;
    end_of_leases(&world, &nodes).await;
    let seen = finish(&world, watchers).await;
    let mut reader = Client::new(Arc::clone(&world), CLIENTS + 1);
    for (id, _) in &nodes {
        reader.read_all(*id).await;
    }
    core_check::logs_match(&nodes);
    world.over.store(true, Ordering::Relaxed);
    watching.await.expect("terms and positions only grow");
    done(&world, &nodes, &seen, &trouble)
}

/// The last thing that anybody wants, of no key that clients use.
fn last_command() -> bytes::Bytes {
    let put = PutRequest {
        key: "zz".into(),
        ..PutRequest::default()
    };
    let command = Command {
        op: Some(Op::Put(put)),
        ..Command::default()
    };
    command.encode_to_vec().into()
}

/// Nobody keeps any lease alive any more: all end, and everybody learns of it.
async fn end_of_leases(world: &Arc<World>, nodes: &[(NodeId, SimNode)]) {
    let ended = async {
        loop {
            let revision = {
                let ledger = ledger::lock(&world.members.ledger);
                let none = ledger.model.leases().is_empty();
                none.then_some(ledger.model.revision)
            };
            let knows = |(_, node): &(NodeId, SimNode)| {
                let view = node.reader().view();
                Some(view.revision()) == revision && view.leases().next().is_none()
            };
            if nodes.iter().all(knows) {
                return;
            }
            SimRuntime::sleep(Duration::from_millis(50)).await;
        }
    };
    let ended = SimRuntime::timeout(LEASES_END, ended).await;
    ended.expect("all leases end by themselves");
}

type Watching = <SimRuntime as chainfire_core::AsyncRuntime>::JoinHandle<Watcher>;

/// All watchers are told of everything.
async fn finish(world: &Arc<World>, watchers: Vec<Watching>) -> Vec<Seen> {
    let revision = ledger::lock(&world.members.ledger).model.revision;
    let mut seen = Vec::new();
    for watcher in watchers {
        let watcher = watcher.await.expect("a watcher runs to its end");
        seen.push(watcher.finish(revision).await);
    }
    seen
}

fn done(
    world: &Arc<World>,
    nodes: &[(NodeId, SimNode)],
    seen: &[Seen],
    trouble: &Trouble<Keys>,
) -> Done {
    let ledger = ledger::lock(&world.members.ledger);
    let all = KeyRange::new(vec![0].into(), vec![0].into());
    let views = nodes.iter().map(|(_, node)| node.reader().view());
    let hashes: Vec<_> = views
        .map(|view| {
            assert_eq!(view.compact_revision(), ledger.model.compacted);
            let whole = view.hash().expect("the state can be read");
            (view.hash_kv(0).expect("the versions can be read"), whole)
        })
        .collect();
    assert!(
        hashes.iter().all(|hash| *hash == hashes[0]),
        "the hashes of members at the same index: {hashes:?}"
    );
    let history = history::lock(&world.members.history);
    let last = history.operations.last().map(|operation| &operation.step);
    if let Some(Step::Read { kvs, .. }) = last {
        assert_eq!(*kvs, ledger.model.range(&all, i64::MAX), "the last read");
    }
    check::as_modelled(&history, &ledger.model);
    check::in_real_time(&history);
    check::linearizable(&history);
    let times = lease::lock(&world.members.times);
    times.check();
    let elapsed = SimInstant::now().elapsed_since_start().as_nanos() as u64;
    let random = world.random.lock();
    let random = random.unwrap_or_else(PoisonError::into_inner).next();
    let sum = |of: fn(&Seen) -> usize| seen.iter().map(of).sum();
    Done {
        answered: history.operations.len(),
        events: sum(|seen| seen.events),
        sessions: sum(|seen| seen.sessions),
        compacted: sum(|seen| seen.compacted),
        leases_ended: times.ended(),
        restored: ledger.restored,
        hashes: ledger.hashes_compared,
        crashes: trouble.crashes,
        changes: trouble.changes(),
        fingerprint: elapsed ^ random,
    }
}
