//! An index that lies in many runs: lookups, listings and merges against a plain map, and damage.

use std::collections::BTreeMap;

use engine::Rng;

use super::super::checkpoint::file;
use super::super::run::path_of;
use super::*;

/// A checkpoint, and so a run, at nearly every turn; runs merge in twos.
fn many_runs() -> StoreConfig {
    StoreConfig {
        checkpoint_log_bytes: 6 << 10,
        run_memtable_bytes_min: 0,
        ..config()
    }
}

type Model = BTreeMap<String, Vec<u8>>;

async fn check(store: &Partition, model: &Model) {
    let known: Vec<String> = model.keys().cloned().collect();
    assert_eq!(names(store).await, known);
    for (name, body) in model {
        assert_eq!(&get(store, name).await.unwrap(), body, "{name}");
    }
    let absent = get(store, "key-none").await;
    assert_eq!(absent, Err(StoreError::NoSuchKey));
    audit(store).await;
}

/// Every page of every size shows what the map has.
async fn check_listing(store: &Partition, model: &Model, rng: &mut Rng) {
    for _ in 0..40 {
        let prefix = ["", "key-", "key-1", "key-2", "kez"][rng.below(5) as usize];
        let after = format!("key-{:03}", rng.below(400));
        let limit = rng.below(20) as usize;
        let listed = store.list(BUCKET, ListCursor::After(&after), prefix.as_bytes(), limit);
        let chunk = listed.await.unwrap();
        let expected = model
            .keys()
            .filter(|key| key.starts_with(prefix) && **key > after);
        let expected: Vec<&String> = expected.collect();
        let shown: Vec<&str> = chunk.entries.iter().map(|entry| &*entry.key).collect();
        assert_eq!(shown, expected[..limit.min(expected.len())]);
        assert_eq!(chunk.more, expected.len() > limit);
    }
}

/// Puts and removes at random, some of it large, with the runs that come of it.
async fn work(store: &Partition, model: &mut Model, rng: &mut Rng, steps: u64) {
    for step in 0..steps {
        let name = format!("key-{:03}", rng.below(400));
        if rng.below(4) == 0 {
            let gone = store.delete(BUCKET, key(&name), Condition::None).await;
            assert_eq!(gone.unwrap(), model.remove(&name).is_some(), "{name}");
            continue;
        }
        let len = match rng.below(16) {
            0 => INLINE_MAX + rng.below(90_000) as usize,
            _ => rng.below(300) as usize,
        };
        let body = bytes(step, len);
        put(store, &name, &body).await.unwrap();
        model.insert(name, body);
    }
}

#[test]
fn an_index_of_many_runs_is_what_a_plain_map_is() {
    for seed in 0..6 {
        let (sim, node) = world(seed);
        sim.run(node, 0, async move {
            let mut rng = Rng::new(seed);
            let mut model = Model::new();
            for life in 0..4 {
                let store = open_with(&many_runs()).await.unwrap();
                if life % 2 == 1 {
                    store.cache_index(64 << 10);
                }
                check(&store, &model).await;
                work(&store, &mut model, &mut rng, 250).await;
                check_listing(&store, &model, &mut rng).await;
                check(&store, &model).await;
                let metrics = store.metrics();
                assert!(metrics.index_merges > 3, "{metrics:?}");
                assert!((1..=12).contains(&metrics.index_runs), "{metrics:?}");
                if life < 2 {
                    store.close().await.unwrap();
                }
            }
        });
    }
}

#[test]
fn what_is_gone_leaves_nothing_behind_in_the_oldest_run() {
    let (sim, node) = world(3);
    sim.run(node, 0, async {
        let store = open_with(&config()).await.unwrap();
        for round in 0..2 {
            for number in 0..50 {
                let name = format!("key-{number:03}");
                if round == 0 {
                    put(&store, &name, b"body").await.unwrap();
                } else {
                    store
                        .delete(BUCKET, key(&name), Condition::None)
                        .await
                        .unwrap();
                }
            }
            store.inner.checkpoint().await.unwrap();
        }
        assert_eq!(store.metrics().index_runs, 2);
        store.inner.merge_due().await;
        assert_eq!(store.metrics().index_runs, 0);
        check(&store, &Model::new()).await;
        for _ in 0..2 {
            put(&store, "again", b"body").await.unwrap();
            store.inner.checkpoint().await.unwrap();
        }
        // Two checkpoints later the files of the merged runs are gone too.
        let listed = engine::fs::read_dir(dir()).await.unwrap();
        let runs = listed.iter().filter(|entry| entry.name.starts_with("run-"));
        assert_eq!(runs.count() as u64, 2 * store.metrics().index_runs);
    });
}

/// A partition with one run of 60 objects, closed.
fn one_run(sim: &Sim, node: NodeId) -> Model {
    let model: Model = (0..60)
        .map(|number| (format!("key-{number:03}"), bytes(number, 200)))
        .collect();
    let written = model.clone();
    sim.run(node, 0, async move {
        let store = open().await;
        for (name, body) in &written {
            put(&store, name, body).await.unwrap();
        }
        store.close().await.unwrap();
    });
    model
}

#[test]
fn a_damaged_block_is_read_from_its_copy_and_mended() {
    let (sim, node) = world(5);
    let model = one_run(&sim, node);
    for copy in [0, 1] {
        sim.disk(node).flip_bit(path_of(&dir(), 1, copy), 700);
        let model = model.clone();
        sim.run(node, 0, async move {
            let store = open().await;
            check(&store, &model).await;
            // The second copy is looked at only where the first is bad.
            assert_eq!(store.metrics().index_mended, 1 - copy as u64);
            drop(store);
            let store = open().await;
            check(&store, &model).await;
            assert_eq!(store.metrics().index_mended, 0);
        });
    }
}

#[test]
fn a_run_is_read_from_one_file_when_the_other_is_lost() {
    let (sim, node) = world(6);
    let model = one_run(&sim, node);
    sim.run(node, 0, async move {
        engine::fs::remove_file(path_of(&dir(), 1, 0))
            .await
            .unwrap();
        let store = open().await;
        check(&store, &model).await;
        drop(store);
        // With both gone nothing is served: a listing would miss objects that are there.
        engine::fs::remove_file(path_of(&dir(), 1, 1))
            .await
            .unwrap();
        let refused = open_with(&config()).await.err().unwrap();
        assert!(matches!(refused, StoreError::Corrupt { .. }), "{refused}");
        assert!(
            refused.to_string().contains("run 1 of the index"),
            "{refused}"
        );
    });
}

#[test]
fn a_block_that_is_damaged_twice_is_an_error_and_never_an_absent_object() {
    let (sim, node) = world(7);
    let _ = one_run(&sim, node);
    for copy in [0, 1] {
        sim.disk(node).flip_bit(path_of(&dir(), 1, copy), 700);
    }
    sim.run(node, 0, async move {
        let refused = open_with(&config()).await.err().unwrap();
        assert!(matches!(refused, StoreError::Corrupt { .. }), "{refused}");
    });
}

#[test]
fn a_damaged_checkpoint_falls_back_to_the_runs_of_the_older() {
    let (sim, node) = world(8);
    sim.run(node, 0, async move {
        let mut model = Model::new();
        let store = open().await;
        let mut rng = Rng::new(8);
        for _ in 0..4 {
            work(&store, &mut model, &mut rng, 40).await;
            store.inner.checkpoint().await.unwrap();
            store.inner.merge_due().await;
        }
        work(&store, &mut model, &mut rng, 10).await;
        let newest = store.inner.checkpoints.kept.borrow().last().unwrap().number;
        drop(store);
        let path = file::path_of(&dir(), newest);
        let file = engine::fs::File::open(
            &path,
            engine::fs::OpenOptions {
                write: true,
                ..engine::fs::OpenOptions::default()
            },
        );
        let wrote = file.await.unwrap().write_at(vec![9_u8; 3], 30).await;
        wrote.0.unwrap();
        let store = open().await;
        check(&store, &model).await;
        store.close().await.unwrap();
        drop(store);
        check(&open().await, &model).await;
    });
}

#[test]
fn a_checkpoint_that_cannot_be_written_changes_nothing() {
    let (sim, node) = world(9);
    let disk = sim.disk(node);
    sim.run(node, 0, async move {
        let store = open().await;
        let mut model = Model::new();
        let mut rng = Rng::new(9);
        work(&store, &mut model, &mut rng, 30).await;
        disk.fail_next_write();
        let refused = store.inner.checkpoint().await.unwrap_err();
        assert!(matches!(refused, StoreError::Internal(_)), "{refused}");
        check(&store, &model).await;
        work(&store, &mut model, &mut rng, 30).await;
        store.inner.checkpoint().await.unwrap();
        check(&store, &model).await;
        store.close().await.unwrap();
        drop(store);
        check(&open().await, &model).await;
    });
}
