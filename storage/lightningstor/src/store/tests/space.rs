//! Space comes back: of what was written and removed little stays, also on a disk that is full.

use super::*;

/// Bytes that the partition's files take on the disk.
async fn used() -> u64 {
    let mut sum = 0;
    for path in [dir(), dir().join("log")] {
        for entry in engine::fs::read_dir(&path).await.unwrap() {
            let found = engine::fs::metadata(path.join(&entry.name)).await;
            sum += found.map_or(0, |found| found.allocated);
        }
    }
    sum
}

async fn remove(store: &Partition, name: &str) {
    let gone = store.delete(BUCKET, key(name), Condition::None);
    assert!(gone.await.unwrap(), "{name}");
}

/// What [`kept_up`] takes beyond its live bytes: the tail, a spare, the reserve and one more segment
/// that is half way between; a step of the data file; dead segments below one segment's length; two
/// checkpoints; the ballast.
const CONSTANT: u64 = 5 * (512 << 10) + (1 << 20) + (64 << 10) + (128 << 10);

/// Tries a removal until it is done: on a full disk it may have to wait for a compaction.
async fn remove_surely(store: &Partition, name: &str, what: &str) {
    for _ in 0..10_000 {
        match store.delete(BUCKET, key(name), Condition::None).await {
            Ok(existed) => return assert!(existed, "{what}: {name}"),
            Err(StoreError::Busy | StoreError::Full) => {
                engine::sleep(Duration::from_millis(1)).await;
            }
            Err(error) => panic!("{what}: {name}: {error}"),
        }
    }
    panic!("{what}: {name} cannot be removed: {:?}", store.metrics());
}

/// Tries to store until there is space, for ten virtual seconds.
async fn put_in_the_end(store: &Partition, name: &str, body: &[u8], what: &str) {
    let mut last = None;
    for _ in 0..2_000 {
        match put(store, name, body).await {
            Ok(_) => return,
            Err(error @ (StoreError::Full | StoreError::Busy)) => last = Some(error),
            Err(error) => panic!("{what}: {name}: {error}"),
        }
        engine::sleep(Duration::from_millis(5)).await;
    }
    panic!("{what}: {name}: {last:?}: {:?}", store.metrics());
}

/// Sizes of bodies: in records, in extents, or both.
fn some_len(rng: &mut engine::Rng, kind: u64) -> usize {
    let small = 200 + rng.below(60_000) as usize;
    let large = 70_000 + rng.below(400_000) as usize;
    match kind {
        0 => small,
        1 => large,
        _ if rng.once_in(2) => small,
        _ => large,
    }
}

/// An object: its name, and what its bytes come from.
type Stored = (String, u64, usize);

/// Stores objects until eight in a row were refused.
async fn fill_up(store: &Partition, rng: &mut engine::Rng, kind: u64, what: &str) -> Vec<Stored> {
    let (mut stored, mut refused) = (Vec::new(), 0);
    for number in 0..20_000_u64 {
        let (name, len) = (format!("n{number:05}"), some_len(rng, kind));
        match put(store, &name, &bytes(number, len)).await {
            Ok(_) => {
                stored.push((name, number, len));
                refused = 0;
            }
            Err(error) => {
                assert_eq!(error, StoreError::Full, "{what}");
                refused += 1;
            }
        }
        if refused == 8 {
            return stored;
        }
    }
    panic!("{what}: the disk is never full: {:?}", store.metrics());
}

async fn read_all(store: &Partition, stored: &[Stored], what: &str) {
    for (name, number, len) in stored {
        let found = get(store, name).await;
        let found = found.unwrap_or_else(|error| panic!("{what}: {name}: {error}"));
        assert!(found == bytes(*number, *len), "{what}: {name}");
    }
    assert_eq!(names(store).await.len(), stored.len(), "{what}");
}

/// Fills a disk, perhaps crashes on it, removes some, and stores as much again as half of that.
fn a_full_disk(seed: u64) {
    let (sim, node) = world(seed);
    let disk = sim.disk(node);
    let what = format!("seed {seed}");
    let mut rng = engine::Rng::new(seed);
    let (kind, left) = (seed % 3, (2 << 20) + rng.below(5 << 20));
    let (crashes, keeps_one_in) = (rng.once_in(2), 2 + rng.below(4));
    let said = what.clone();
    let (store, stored) = sim.run(node, 0, async move {
        let store = open_with(&kept_up()).await.unwrap();
        put(&store, "a", &bytes(1, 30_000)).await.unwrap();
        engine::sleep(Duration::from_secs(1)).await;
        disk.set_capacity(disk.used_bytes() + left);
        let mut stored = fill_up(&store, &mut rng, kind, &said).await;
        stored.push(("a".to_owned(), 1, 30_000));
        read_all(&store, &stored, &said).await;
        assert_eq!(store.metrics().poisoned, 0, "{said}");
        (store, stored)
    });
    let store = if crashes {
        drop(store);
        sim.crash(node);
        sim.start(node, engine_config(1)).unwrap();
        sim.run(node, 0, async { open_with(&kept_up()).await.unwrap() })
    } else {
        store
    };
    let disk = sim.disk(node);
    let store = sim.run(node, 0, async move {
        read_all(&store, &stored, &what).await;
        let (mut kept, mut freed) = (Vec::new(), 0);
        for (at, object) in (0..).zip(stored) {
            if at % keeps_one_in == 0 {
                kept.push(object);
            } else {
                remove_surely(&store, &object.0, &what).await;
                freed += object.2;
            }
        }
        let mut number = 100_000;
        while freed > 120_000 {
            let name = format!("p{number}");
            let len = if kind == 1 { 90_000 } else { 40_000 };
            put_in_the_end(&store, &name, &bytes(number, len), &what).await;
            kept.push((name, number, len));
            (number, freed) = (number + 1, freed.saturating_sub(2 * len));
        }
        read_all(&store, &kept, &what).await;
        audit(&store).await;
        disk.set_capacity(1 << 30);
        for (name, ..) in &kept {
            remove_surely(&store, name, &what).await;
        }
        store
    });
    // The last that was refused is long past: what is left is the constant.
    sim.run_for(Duration::from_secs(10));
    let disk = sim.disk(node);
    sim.run(node, 0, async move {
        let (used, metrics) = (used().await, store.metrics());
        assert_eq!((metrics.poisoned, metrics.objects), (0, 0), "seed {seed}");
        assert!(
            used <= CONSTANT,
            "seed {seed}: {used} of {CONSTANT}: {metrics:?}"
        );
        assert_eq!(
            disk.used_bytes(),
            used,
            "seed {seed}: nothing else holds space"
        );
        store.close().await.unwrap();
    });
}

#[test]
fn on_a_full_disk_everything_is_readable_and_removals_bring_the_space_back() {
    for seed in 40..84 {
        a_full_disk(seed);
    }
}

#[test]
fn a_store_that_ends_on_a_full_disk_begins_on_it_again() {
    for seed in 0..6 {
        let (sim, node) = world(seed);
        let disk = sim.disk(node);
        sim.run(node, 0, async move {
            let what = format!("seed {seed}");
            let mut rng = engine::Rng::new(seed);
            let store = open_with(&kept_up()).await.unwrap();
            engine::sleep(Duration::from_secs(1)).await;
            disk.set_capacity(disk.used_bytes() + (3 << 20));
            let mut stored = fill_up(&store, &mut rng, seed % 3, &what).await;
            store.close().await.unwrap();
            drop(store);
            let store = open_with(&kept_up()).await.unwrap();
            read_all(&store, &stored, &what).await;
            // An upload that finds no space leaves nothing behind when it is aborted.
            let refused = stream(&store, &bytes(7, 3_200_000), true).await;
            assert_eq!(refused.unwrap_err(), StoreError::Full, "{what}");
            audit(&store).await;
            for (name, ..) in stored.split_off(stored.len() / 3) {
                remove_surely(&store, &name, &what).await;
            }
            put_in_the_end(&store, "new", &bytes(3, 50_000), &what).await;
            stored.push(("new".to_owned(), 3, 50_000));
            read_all(&store, &stored, &what).await;
            store.close().await.unwrap();
        });
    }
}

/// The default sizes, scaled down by 256 where they can be.
fn scaled_down() -> StoreConfig {
    let mut config = kept_up();
    config.log.segment_bytes = 256 << 10;
    config.log.record_bytes_max = 72 << 10;
    config.data_grow_bytes = 256 << 10;
    config.checkpoint_log_bytes = 256 << 10;
    config.upkeep.discard_bytes_min = 4 << 10;
    // Not scaled down as far: the smallest run does not scale.
    config.run_memtable_bytes_min = 256 << 10;
    config
}

/// As [`CONSTANT`], of [`scaled_down`].
const SCALED_CONSTANT: u64 = 5 * (256 << 10) + (256 << 10) + 2 * (64 << 10) + (512 << 10);

/// An object of two parts in extents and one in a record.
async fn put_in_parts(store: &Partition, name: &str, number: u64) -> Vec<u8> {
    let upload = store.upload_create(BUCKET, key(name), meta(b""), None);
    let to = UploadRef {
        bucket: BUCKET,
        key: key(name),
        upload: upload.await.unwrap(),
    };
    let (mut whole, mut parts) = (Vec::new(), Vec::new());
    for (part, len) in [(1, 150_000), (2, 90_000), (3, 20_000)] {
        let bytes = bytes(number + u64::from(part), len);
        let body = if len > INLINE_MAX {
            PartBody::Write(stream(store, &bytes, true).await.unwrap())
        } else {
            PartBody::Small(Some(buf(&bytes).unwrap()))
        };
        let put = PartPut {
            number: part,
            body,
            etag: tag(&bytes),
            size: len as u64,
            checksum: None,
            modified_ms: 5,
        };
        store.part_put(to.clone(), put).await.unwrap();
        parts.push((part, tag(&bytes)));
        whole.extend(bytes);
    }
    let done = store.upload_complete(to, parts, Condition::None, 9);
    done.await.unwrap();
    whole
}

/// What a round stores; 5.4 MB.
async fn write_round(store: &Partition, round: u64) -> Vec<(String, Vec<u8>)> {
    let mut stored = Vec::new();
    for at in 0..60_u64 {
        let (name, number) = (format!("r{round:02}-{at:02}"), round * 1000 + at * 10);
        let body = match at % 6 {
            0 => put_in_parts(store, &name, number).await,
            5 => bytes(number, 260_000),
            _ => bytes(number, 4_000),
        };
        if at % 6 > 0 {
            put(store, &name, &body).await.unwrap();
        }
        stored.push((name, body));
    }
    stored
}

#[test]
fn after_writing_and_removing_three_disks_usage_is_within_a_tenth_of_the_live_bytes() {
    /// Bytes of the disk; about a tenth of it is written a round.
    const DISK: u64 = 56 << 20;
    let (sim, node) = world(31);
    let disk = sim.disk(node);
    disk.set_capacity(DISK);
    let (store, live) = sim.run(node, 0, async move {
        let store = open_with(&scaled_down()).await.unwrap();
        let (mut live, mut written) = (Vec::new(), 0);
        let mut round = 0;
        while written < 3 * DISK {
            let mut stored = write_round(&store, round).await;
            written += stored
                .iter()
                .map(|(_, body)| body.len() as u64)
                .sum::<u64>();
            // Of every fifth round nothing is removed, of the others all but two.
            if round % 5 > 0 {
                for (name, _) in stored.drain(2..) {
                    remove(&store, &name).await;
                }
            }
            live.extend(stored);
            round += 1;
        }
        (store, live)
    });
    sim.run_for(Duration::from_secs(30));
    let disk = sim.disk(node);
    sim.run(node, 0, async move {
        let (used, metrics) = (disk.used_bytes(), store.metrics());
        let bound = metrics.live_bytes * 11 / 10;
        assert!(SCALED_CONSTANT * 10 <= metrics.live_bytes, "{metrics:?}");
        assert!(used <= bound, "{used} bytes for {bound}: {metrics:?}");
        assert!(metrics.discarded_bytes > DISK && metrics.compacted_segments > 0);
        audit(&store).await;
        for (name, body) in &live {
            assert!(get(&store, name).await.unwrap() == *body, "{name}");
        }
        store.close().await.unwrap();
        drop(store);
        audit(&open_with(&scaled_down()).await.unwrap()).await;
    });
}
