//! Random histories against the model, over restarts and losses of power; and replicas that
//! applied the same log in other batches, or took a snapshot of it, against each other.
//!
//! Faults: a batch is dropped half-way; the store is closed; power goes, and each sector written
//! since the last flush is there or not. Must survive: everything up to the last durable batch, in
//! whole batches; the log replays the rest with the same answers.

use bytes::Bytes;
use chainfire_store::{Durable, Op, Options, Outcome, RpcError, Snapshot, Store, View, check_txn};
use etcd_wire::etcdserverpb::RangeRequest;
use proptest::prelude::*;

use crate::disk::Disk;
use crate::model::{Model, select};
use crate::plan::{Then, resolve, step, then};
use crate::support::{command, meta, options};

/// The log: each entry with its answer and the model after it.
struct Log {
    entries: Vec<(Op, Outcome, Model)>,
    empty: Model,
}

impl Log {
    fn model(&self, index: u64) -> &Model {
        match index {
            0 => &self.empty,
            index => &self.entries[index as usize - 1].2,
        }
    }

    fn len(&self) -> u64 {
        self.entries.len() as u64
    }

    /// Applies entries after `from` up to `to`, as one batch, and compares the answers.
    fn replay(&self, store: &mut Store, from: u64, to: u64, durable: Option<Durable>) {
        let mut batch = store.batch();
        for index in from + 1..=to {
            let (op, wanted, _) = &self.entries[index as usize - 1];
            let outcome = batch.apply(&command(op.clone()), index).unwrap();
            assert_eq!(&outcome, wanted, "entry {index}: {op:?}");
        }
        let Some(durable) = durable else {
            return;
        };
        let events = batch.commit(meta(to), durable).unwrap();
        let before = self.model(from).events.len();
        assert_eq!(events, self.model(to).events[before..]);
    }
}

fn small() -> Options {
    Options {
        undurable_batches_max: 8,
        purge_versions_max: 5,
        ..options()
    }
}

fn everything(revision: i64) -> RangeRequest {
    RangeRequest {
        key: Bytes::from_static(&[0]),
        range_end: Bytes::from_static(&[0]),
        revision,
        ..RangeRequest::default()
    }
}

/// Every revision that may be read is as in the model; the others are refused.
fn compare(view: &View, model: &Model) {
    assert_eq!(view.revision(), model.revision());
    assert_eq!(view.compact_revision(), model.compacted);
    let (key, end) = (Bytes::from_static(&[0]), Bytes::from_static(&[0]));
    for revision in 1..=model.revision() + 1 {
        let answer = view.range(&everything(revision));
        let refusal = if revision > model.revision() {
            RpcError::FutureRev
        } else if revision < model.compacted {
            RpcError::Compacted
        } else {
            let kvs = answer.unwrap().kvs;
            assert!(
                kvs.iter().eq(select(model.at(revision), &key, &end)),
                "at {revision}"
            );
            continue;
        };
        assert_eq!(answer.unwrap_err().to_string(), refusal.text());
    }
    let leases: Vec<_> = view.leases().map(|lease| (lease.id, lease.ttl_s)).collect();
    assert!(leases.iter().copied().eq(model.leases.clone()));
    let now = model.at(model.revision());
    for (id, _) in leases {
        let attached = now
            .values()
            .filter(|kv| kv.lease == id)
            .map(|kv| &kv.key[..]);
        assert!(view.lease_keys(id).eq(attached));
    }
    let from = model.compacted.max(0);
    let caught = view.events_since(from, &key, &end, usize::MAX).unwrap();
    let told = model.events.iter().filter(|batch| batch.revision > from);
    let later = caught.batches.iter().filter(|batch| batch.revision > from);
    assert!(later.eq(told));
}

/// Where the store stands after a restart; then the log catches it up.
fn catch_up(store: &mut Store, log: &Log, durable: u64) {
    let index = store.view().applied_index();
    assert!(index >= durable, "entry {index} after a flush at {durable}");
    assert_eq!(store.durable().applied_index, index);
    if index > 0 {
        assert_eq!(store.view().applied(), &meta(index));
    }
    compare(&store.view(), log.model(index));
    log.replay(store, index, log.len(), Some(Durable::No));
}

fn run(plan: &[(crate::plan::Step, Then)]) -> (Store, Log) {
    let mut disk = Disk::default();
    let mut store = Store::open(disk.clone(), small()).unwrap();
    let mut log = Log {
        entries: Vec::new(),
        empty: Model::new(),
    };
    for (step, then) in plan {
        let mut model = log.model(log.len()).clone();
        let op = resolve(step, model.revision());
        if let Op::Txn(txn) = &op
            && check_txn(txn, 128).is_err()
        {
            continue;
        }
        // A transaction that fails half-way leaves nothing.
        let outcome = model.clone().apply(&op);
        if outcome.is_ok() {
            model.apply(&op).unwrap();
        }
        log.entries.push((op, outcome, model));
        let from = store.view().applied_index();
        let durable = store.durable().applied_index;
        match then {
            Then::More => {}
            Then::Commit => log.replay(&mut store, from, log.len(), Some(Durable::No)),
            Then::Flush => {
                log.replay(&mut store, from, log.len(), Some(Durable::Yes));
                assert_eq!(store.durable().applied_index, log.len());
            }
            Then::Abort => log.replay(&mut store, from, log.len(), None),
            Then::Reopen => {
                drop(store);
                store = Store::open(disk.clone(), small()).unwrap();
                catch_up(&mut store, &log, durable);
            }
            Then::PowerLoss(seed) => {
                disk = disk.after_power_loss(*seed);
                store = Store::open(disk.clone(), small()).unwrap();
                catch_up(&mut store, &log, durable);
            }
        }
        let seen = store.view();
        compare(&seen, log.model(seen.applied_index()));
    }
    let from = store.view().applied_index();
    log.replay(&mut store, from, log.len(), Some(Durable::Yes));
    (store, log)
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 2_000, ..ProptestConfig::with_cases(128) })]

    #[test]
    fn the_store_is_its_model_whatever_happens(
        plan in prop::collection::vec((step(), then()), 1..60),
    ) {
        let (mut store, log) = run(&plan);
        compare(&store.view(), log.model(log.len()));

        // A replica that applied all of it at once.
        let mut other = Store::open(Disk::default(), options()).unwrap();
        log.replay(&mut other, 0, log.len(), Some(Durable::No));
        same(&store.view(), &other.view());

        // One that took a snapshot, and the first when its compaction is through.
        let mut third = Store::open(Disk::default(), small()).unwrap();
        let mut restore = third.restore().unwrap();
        for chunk in Snapshot::new(store.view(), 200) {
            restore.push(&chunk.unwrap()).unwrap();
        }
        restore.finish().unwrap();
        same(&store.view(), &third.view());
        compare(&third.view(), log.model(log.len()));
        while store.purge().unwrap() {}
        while other.purge().unwrap() {}
        while third.purge().unwrap() {}
        same(&store.view(), &other.view());
        same(&third.view(), &other.view());
        prop_assert_eq!(store.view().size_bytes(), other.view().size_bytes());
        prop_assert_eq!(store.view().indexed_keys(), log.model(log.len()).kept().len());
        compare(&store.view(), log.model(log.len()));
    }
}

fn same(a: &View, b: &View) {
    assert_eq!(a.hash().unwrap(), b.hash().unwrap());
    for revision in a.compact_revision().max(1)..=a.revision() {
        assert_eq!(a.hash_kv(revision).unwrap(), b.hash_kv(revision).unwrap());
    }
}
