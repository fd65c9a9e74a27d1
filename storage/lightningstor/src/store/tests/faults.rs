//! Disks that fail, fill up and rot: nothing false is acknowledged or served.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use segment_log::FlushMode;

use super::super::checkpoint::file::path_of;
use super::*;

#[test]
fn a_flipped_bit_in_a_body_is_reported_and_never_served() {
    let (sim, node) = world(1);
    let store = sim.run(node, 0, open());
    let filled = store.clone();
    sim.run(node, 0, async move {
        put(&filled, "large", &bytes(1, 300_000)).await.unwrap();
        put(&filled, "small", &bytes(2, 10_000)).await.unwrap();
    });
    let known = store.clone();
    let entries = async move { (entry(&known, "large").await, entry(&known, "small").await) };
    let (large, small) = sim.run(node, 0, entries);
    let extent = large.extents().next().unwrap();
    sim.disk(node)
        .flip_bit(dir().join("data"), extent.offset() + 70_000);
    let place = small.place;
    let segment = dir().join("log").join(format!("{:08}.seg", place.segment));
    sim.disk(node)
        .flip_bit(segment, u64::from(place.offset) + 5_000);
    sim.run(node, 0, async move {
        let Body::Stored(id) = store.get(BUCKET, &key("large"), 0).await.unwrap().body else {
            panic!("300,000 bytes are not inline");
        };
        let (buf, range) = store.read_chunk(id, 0, CRC_BLOCK).await.unwrap();
        assert_eq!(buf[range], bytes(1, 300_000)[..CRC_BLOCK]);
        let rotten = store.read_chunk(id, CRC_BLOCK as u64 + 9, 5).await;
        assert!(
            matches!(rotten, Err(StoreError::Corrupt { .. })),
            "{rotten:?}"
        );
        let rotten = get(&store, "small").await;
        assert!(
            matches!(rotten, Err(StoreError::Corrupt { .. })),
            "{rotten:?}"
        );
        assert_eq!(store.metrics().corrupt_reads, 2);
        put(&store, "small", b"new").await.unwrap();
        assert_eq!(get(&store, "small").await.unwrap(), b"new");
    });
}

#[test]
fn a_failed_flush_of_bodies_ends_writing_and_not_reading() {
    let (sim, node) = world(2);
    let disk = sim.disk(node);
    let store = sim.run(node, 0, open());
    // The log makes its spare segment ready, with syncs of its own.
    sim.run_for(Duration::from_secs(1));
    sim.run(node, 0, async move {
        put(&store, "old", &bytes(1, 100_000)).await.unwrap();
        let write = stream(&store, &bytes(2, 100_000), true).await.unwrap();
        disk.fail_next_sync();
        let meta = meta(&bytes(2, 100_000));
        let failed = store
            .put_commit(write, BUCKET, key("new"), meta, Condition::None)
            .await;
        assert!(matches!(failed, Err(StoreError::Poisoned(_))), "{failed:?}");
        let refused = put(&store, "tiny", b"x").await;
        assert!(
            matches!(refused, Err(StoreError::Poisoned(_))),
            "{refused:?}"
        );
        assert_eq!(get(&store, "old").await.unwrap(), bytes(1, 100_000));
        assert_eq!(names(&store).await, ["old"]);
        assert_eq!(store.metrics().poisoned, 1);
        assert!(store.close().await.is_err());
    });
}

/// What writers know of their objects: acknowledged ones by name, and those that were refused.
#[derive(Default)]
struct Told {
    acked: BTreeMap<String, (u64, usize)>,
    refused: Vec<(String, u64, usize)>,
}

/// Objects of one writer, until one is refused for good.
async fn write_until_refused(store: Partition, writer: u64, told: Rc<RefCell<Told>>) {
    for n in 0..400_u64 {
        let (name, number) = (format!("w{writer}-{n}"), writer << 32 | n);
        let len = if (n + writer).is_multiple_of(3) {
            70_000 + n as usize * 500
        } else {
            1_000
        };
        match put(&store, &name, &bytes(number, len)).await {
            Ok(_) => drop(told.borrow_mut().acked.insert(name, (number, len))),
            Err(error) => {
                assert!(matches!(error, StoreError::Poisoned(_)), "{name}: {error}");
                told.borrow_mut().refused.push((name, number, len));
                return;
            }
        }
    }
    panic!("writer {writer} was never refused");
}

/// Fails flushes under four writers; returns why the partition took no more writes.
fn a_failed_flush(seed: u64) -> String {
    let (sim, node) = world(seed);
    let disk = sim.disk(node);
    let mut config = config();
    config.log.flush =
        [FlushMode::Adaptive, FlushMode::Linked, FlushMode::Dsync][seed as usize % 3];
    // Its checkpoints and segments would take some of the failures.
    config.checkpoint_log_bytes = 1 << 30;
    config.log.segment_bytes = 4 << 20;
    let told: Rc<RefCell<Told>> = Rc::default();
    let seen = Rc::clone(&told);
    let cause = sim.run(node, 0, async move {
        let store = open_with(&config).await.unwrap();
        engine::sleep(Duration::from_secs(1)).await;
        let writers: Vec<_> = (0..4)
            .map(|writer| {
                let writes = write_until_refused(store.clone(), writer, Rc::clone(&told));
                engine::spawn_local(engine::SchedGroup::FOREGROUND, writes)
            })
            .collect();
        engine::sleep(Duration::from_millis(5 + seed)).await;
        disk.fail_next_sync();
        for writer in writers {
            writer.await;
        }
        let refused = store.delete(BUCKET, key("w0-0"), Condition::None).await;
        assert!(
            matches!(refused, Err(StoreError::Poisoned(_))),
            "{refused:?}"
        );
        let acked = told.borrow().acked.clone();
        for (name, (number, len)) in acked {
            let found = get(&store, &name).await.unwrap();
            assert!(found == bytes(number, len), "seed {seed}: {name}");
        }
        assert_eq!(store.metrics().poisoned, 1);
        assert!(store.close().await.is_err());
        store.poisoned().unwrap()
    });
    sim.crash(node);
    sim.start(node, engine_config(1)).unwrap();
    sim.run(node, 0, async move {
        let store = open().await;
        assert_eq!(store.poisoned(), None);
        let Told { acked, refused } = seen.take();
        assert!(acked.len() > 4, "seed {seed}: {}", acked.len());
        for (name, (number, len)) in acked {
            let found = get(&store, &name).await;
            let found = found.unwrap_or_else(|error| panic!("seed {seed}: {name}: {error}"));
            assert!(found == bytes(number, len), "seed {seed}: {name}");
        }
        for (name, number, len) in refused {
            match get(&store, &name).await {
                Err(StoreError::NoSuchKey) => {}
                Ok(found) => assert!(found == bytes(number, len), "seed {seed}: {name}"),
                Err(error) => panic!("seed {seed}: {name}: {error}"),
            }
        }
        put(&store, "after", &bytes(9, 100_000)).await.unwrap();
        audit(&store).await;
        store.close().await.unwrap();
    });
    cause
}

#[test]
fn after_a_failed_flush_nothing_is_acknowledged_and_a_restart_finds_what_was() {
    let causes: Vec<String> = (0..48).map(a_failed_flush).collect();
    let of = |file: &str| causes.iter().filter(|cause| cause.contains(file)).count();
    assert!(of("/data/p000/data") > 4, "{causes:?}");
    assert!(of(".seg") > 4, "{causes:?}");
    for cause in &causes {
        assert!(
            cause.contains("/data/p000/") && cause.contains("error"),
            "{cause}"
        );
    }
}

#[test]
fn a_full_disk_refuses_and_works_again_when_there_is_space() {
    let (sim, node) = world(3);
    let disk = sim.disk(node);
    sim.run(node, 0, async move {
        let store = open().await;
        put(&store, "kept", &bytes(0, 200_000)).await.unwrap();
        let used: u64 = disk.files().iter().map(|(_, len)| len).sum();
        disk.set_capacity(used + (2 << 20));
        let mut stored = vec![("kept".to_owned(), 0)];
        let mut full = 0;
        for number in 1..60 {
            let name = format!("n{number:02}");
            match put(&store, &name, &bytes(number, 200_000)).await {
                Ok(_) => stored.push((name, number)),
                Err(error) => {
                    assert_eq!(error, StoreError::Full);
                    full += 1;
                }
            }
        }
        assert!(full > 0 && stored.len() > 2, "{full} of 59 were refused");
        audit(&store).await;
        disk.set_capacity(1 << 30);
        for number in 60..80 {
            let name = format!("n{number:02}");
            put(&store, &name, &bytes(number, 200_000)).await.unwrap();
            stored.push((name, number));
        }
        for (name, number) in &stored {
            assert!(
                get(&store, name).await.unwrap() == bytes(*number, 200_000),
                "{name}"
            );
        }
        assert_eq!(names(&store).await.len(), stored.len());
        audit(&store).await;
    });
}

/// Fills a partition until several checkpoints were written, and closes it.
async fn fill(rounds: u64) {
    let store = open().await;
    for round in 0..rounds {
        let name = format!("k{}", round % 9);
        put(&store, &name, &bytes(round, 30_000)).await.unwrap();
    }
    store.close().await.unwrap();
}

#[test]
fn dead_log_segments_are_released_behind_two_checkpoints() {
    let (sim, node) = world(4);
    sim.run(node, 0, async {
        fill(300).await;
        let store = open().await;
        // 300 records of 32 KiB are 18 segments; 9 live ones lie in the newest.
        assert!(store.metrics().log_segments < 8, "{:?}", store.metrics());
        assert_eq!(names(&store).await.len(), 9);
    });
}

#[test]
fn a_damaged_checkpoint_falls_back_to_the_older_one() {
    let (sim, node) = world(5);
    sim.run(node, 0, fill(200));
    let disk = sim.disk(node);
    let is_checkpoint = |path: &Path| path.to_string_lossy().contains("checkpoint-");
    let mut found: Vec<_> = disk
        .files()
        .into_iter()
        .filter(|(path, _)| is_checkpoint(path))
        .collect();
    assert_eq!(found.len(), 2, "{found:?}");
    let (newest, len) = found.pop().unwrap();
    disk.flip_bit(&newest, len / 2);
    sim.run(node, 0, async {
        let store = open().await;
        for number in 191..200 {
            let name = format!("k{}", number % 9);
            assert!(
                get(&store, &name).await.unwrap() == bytes(number, 30_000),
                "{name}"
            );
        }
        audit(&store).await;
        store.close().await.unwrap();
    });
    // Without either, the log alone does not reach back: that is said, not guessed over.
    for (path, len) in disk.files() {
        if is_checkpoint(&path) {
            disk.flip_bit(&path, len / 2);
        }
    }
    let refused = sim.run(node, 0, async { open_with(&config()).await.err() });
    let said = format!("{refused:?}");
    assert!(said.contains("missing"), "{said}");
}

#[test]
fn a_half_written_checkpoint_is_removed() {
    let (sim, node) = world(6);
    sim.run(node, 0, async {
        fill(20).await;
        let left = path_of(&dir(), 9).with_extension("tmp");
        let options = engine::fs::OpenOptions {
            write: true,
            create: true,
            ..Default::default()
        };
        let file = engine::fs::File::open(&left, options).await.unwrap();
        file.write_at(b"half".to_vec(), 0).await.0.unwrap();
        drop(file);
        let store = open().await;
        assert_eq!(names(&store).await.len(), 9);
        assert!(engine::fs::metadata(&left).await.is_err());
    });
}
