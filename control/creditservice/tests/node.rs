//! The ledger on a real ChainFire node, with processes that are killed: BY-4 and CR-1.
//!
//! What may go wrong: a process that works on the ledger is killed at any moment, and so is the node. What
//! must hold: the sums conserve, nothing stays reserved past its timeout, and what the ledger says is used is
//! what was taken.
//!
//! The workers are this program itself: it works instead of testing where `UC_LEDGER_WORKER` says on which
//! node. What a worker has begun to commit stands in its journal, which is its standard output; whoever
//! comes after it goes on with that, as a saga's next executor does.

#![allow(clippy::unwrap_used, reason = "a test that fails says where")]

#[path = "node/process.rs"]
mod process;
#[path = "node/worker.rs"]
mod worker;

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::{Duration, Instant};

use control_kit::store::{Client, ClientConfig, SharedStore};
use creditservice::{Error, ErrorKind, InUse, Ledger, Options, Quota, Refusal, TransferId};
use futures_util::future::join_all;

use process::{DEADLINE, Node};
use worker::{TIMEOUT_MS, Worker};

/// How often two workers are started and killed.
const KILLS: usize = 4;
/// What a worker has committed when it is killed, at least.
const COMMITS: usize = 15;

fn store(url: &str) -> SharedStore {
    let config = ClientConfig {
        endpoints: vec![url.to_owned()],
        namespace: "ledger-test/".to_owned(),
        tls: None,
    };
    Arc::new(Client::new(config).unwrap())
}

fn vcpu() -> Quota {
    Quota {
        tenant: "t1".parse().unwrap(),
        unit: "vcpu".parse().unwrap(),
    }
}

fn id(parts: &[&str]) -> TransferId {
    TransferId::derive(parts)
}

/// Calls until the outcome is known: what was done, or why it was refused.
async fn certain<T>(call: impl AsyncFn() -> Result<T, Error>) -> Result<T, Refusal> {
    let start = Instant::now();
    loop {
        let error = match call().await {
            Ok(done) => return Ok(done),
            Err(error) => error,
        };
        if let Some(refused) = error.refusal() {
            return Err(refused.refusal.clone());
        }
        let passing = [ErrorKind::Unavailable, ErrorKind::Unknown];
        assert!(passing.contains(&error.kind()), "{error}");
        assert!(start.elapsed() < DEADLINE, "never known: {error}");
    }
}

/// Waits until nothing is reserved any more, as sweeping ends what is due, and judges what is left.
async fn judge(ledger: &Ledger, has: &BTreeMap<TransferId, u64>) {
    let start = Instant::now();
    loop {
        ledger.sweep().await.unwrap();
        let standing = ledger.standing(&vcpu()).await.unwrap().unwrap();
        if standing.reserved == 0 {
            break;
        }
        assert!(
            start.elapsed() < DEADLINE,
            "reserved for ever: {standing:?}"
        );
        tokio::task::yield_now().await;
    }
    let book = ledger.audit().await.unwrap();
    let standing = vcpu().standing(&book).unwrap();
    assert_eq!(
        standing.used,
        has.values().map(|one| u128::from(*one)).sum()
    );
    let one = |(id, amount): (&TransferId, &u64)| InUse {
        quota: vcpu(),
        reservation: *id,
        amount: *amount,
    };
    let inventory: Vec<InUse> = has.iter().map(one).collect();
    let units: BTreeSet<_> = [vcpu().unit].into();
    let drift = ledger.reconcile(&units, &inventory).await.unwrap();
    assert_eq!(drift.units, 0, "{:?}", drift.differences);
}

/// Goes on with what a killed worker had begun to commit.
async fn adopt(ledger: &Ledger, worker: Worker, has: &mut BTreeMap<TransferId, u64>) {
    let journal = worker.killed();
    for (id, amount) in journal.committing {
        match certain(async || ledger.commit(&[id]).await).await {
            Ok(()) => drop(has.insert(id, amount)),
            Err(reason) => {
                assert!(matches!(reason, Refusal::Expired { .. }), "{reason}");
                assert!(
                    !journal.committed.contains(&id),
                    "it was told otherwise: {reason}"
                );
            }
        }
    }
}

#[test]
fn killed_processes_leave_no_drift_and_nothing_reserved() {
    if let Ok(url) = std::env::var("UC_LEDGER_WORKER") {
        return worker::work(&url);
    }
    let node = Node::start();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let ledger = Ledger::open(store(&node.url()), Options::default())
            .await
            .unwrap();
        ledger
            .set_limit(id(&["limit"]), &vcpu(), 10_000)
            .await
            .unwrap();
        let mut has = BTreeMap::new();
        for round in 0..KILLS {
            let start = |which| Worker::start(&node.url(), &format!("{round}/{which}"));
            let mut workers = [start("a"), start("b")];
            for worker in &mut workers {
                worker.await_commits(COMMITS);
            }
            for worker in workers {
                adopt(&ledger, worker, &mut has).await;
            }
        }
        assert!(has.len() >= KILLS * COMMITS, "{} were committed", has.len());
        judge(&ledger, &has).await;
    });
}

/// Takes ten times twenty at once; those that were taken.
async fn take(url: &str, round: u64) -> Vec<(TransferId, u64)> {
    let open = async || Ledger::open(store(url), Options::default()).await;
    let ledger = certain(open).await.unwrap();
    let limit = id(&["limit"]);
    certain(async || ledger.set_limit(limit, &vcpu(), 10_000).await)
        .await
        .unwrap();
    let one = async |number: u64| {
        let id = id(&[&format!("{round}/{number}")]);
        let want = [worker::want(id, 1 + number % 3)];
        let minute = NonZeroU64::new(60_000).unwrap();
        certain(async || ledger.reserve(&want, minute).await)
            .await
            .unwrap();
        certain(async || ledger.commit(&[id]).await).await.unwrap();
        (id, want[0].amount)
    };
    let mut taken = Vec::new();
    for some in 0..10_u64 {
        taken.extend(join_all((0..20).map(|number| one(20 * some + number))).await);
    }
    taken
}

#[test]
fn a_node_that_is_killed_under_its_callers_loses_nothing() {
    let mut node = Node::start();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut has = BTreeMap::new();
    for round in 0..2 {
        let url = node.url();
        let before = node.revision().unwrap();
        std::thread::scope(|scope| {
            let taken = scope.spawn(|| runtime.block_on(take(&url, round)));
            // In the middle of it.
            node.await_revision(before + 8);
            node.kill_and_restart();
            has.extend(taken.join().unwrap());
        });
    }
    assert_eq!(has.len(), 400);
    runtime.block_on(async {
        let ledger = Ledger::open(store(&node.url()), Options::default())
            .await
            .unwrap();
        judge(&ledger, &has).await;
        // All of it moves to another place on the same store, with the same sum.
        let export = ledger.export().await.unwrap();
        let options = Options {
            prefix: "moved".to_owned(),
            ..Options::default()
        };
        let sha256 = Ledger::import(store(&node.url()), &options, &export.text).await;
        assert_eq!(sha256.unwrap(), export.sha256);
        let moved = Ledger::open(store(&node.url()), options).await.unwrap();
        assert_eq!(moved.export().await.unwrap(), export);
        judge(&moved, &has).await;
    });
}

#[test]
fn many_callers_share_a_node_and_the_limit_holds() {
    let node = Node::start();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let open = || Ledger::open(store(&node.url()), Options::default());
        let ledgers = [open().await.unwrap(), open().await.unwrap()];
        ledgers[0]
            .set_limit(id(&["limit"]), &vcpu(), 150)
            .await
            .unwrap();
        let one = |number: u64| {
            let want = [worker::want(id(&[&format!("{number}")]), 1)];
            let ledger = ledgers[number as usize % 2].clone();
            async move {
                let minute = NonZeroU64::new(60_000).unwrap();
                certain(async || ledger.reserve(&want, minute).await).await
            }
        };
        let taken = join_all((0..300).map(one)).await;
        let refused = taken.iter().filter_map(|one| one.as_ref().err());
        assert!(
            refused
                .clone()
                .all(|one| matches!(one, Refusal::Exceeds(_)))
        );
        assert_eq!(refused.count(), 150);
        let book = ledgers[1].audit().await.unwrap();
        assert_eq!(vcpu().standing(&book).unwrap().reserved, 150);
        let wanted = [worker::want(id(&["more"]), 1)];
        let error = ledgers[1].reserve(&wanted, TIMEOUT_MS).await.unwrap_err();
        let text = error.to_string();
        assert!(text.contains("1 of 150 vcpu held by reservation"), "{text}");
    });
}

/// Waits for a state, without holding up the machine.
fn eventually<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(start.elapsed() < DEADLINE, "never: {what}");
        std::thread::park_timeout(Duration::from_millis(10));
    }
}
