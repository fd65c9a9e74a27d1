//! Compaction moves every sort of live record, and nothing else changes.

use super::super::index::EntryBody;
use super::*;

fn of(upload: UploadId) -> UploadRef {
    UploadRef {
        bucket: BUCKET,
        key: key("parts"),
        upload,
    }
}

async fn add(store: &Partition, upload: UploadId, number: u16, len: usize) -> (u16, Etag) {
    let data = bytes(u64::from(number), len);
    let body = if len > INLINE_MAX {
        PartBody::Write(stream(store, &data, true).await.unwrap())
    } else {
        PartBody::Small(Some(buf(&data).unwrap()))
    };
    let (etag, size) = (tag(&data), len as u64);
    let part = PartPut {
        number,
        body,
        etag,
        size,
        checksum: None,
        modified_ms: 3,
    };
    store.part_put(of(upload), part).await.unwrap();
    (number, etag)
}

async fn begin(store: &Partition) -> UploadId {
    store
        .upload_create(BUCKET, key("parts"), meta(b""), None)
        .await
        .unwrap()
}

const PARTS: [(u16, usize); 3] = [(1, 3_000), (2, 200_000), (7, 60_000)];

fn whole() -> Vec<u8> {
    PARTS
        .iter()
        .flat_map(|(number, len)| bytes(u64::from(*number), *len))
        .collect()
}

async fn check(store: &Partition) {
    for number in 0..40_u64 {
        let name = format!("k{number:02}");
        let found = get(store, &name).await;
        match number % 4 {
            0 => assert_eq!(found.unwrap(), bytes(number, 9_000), "{name}"),
            1 => assert!(found.unwrap() == bytes(number, 150_000), "{name}"),
            _ => assert_eq!(found.unwrap_err(), StoreError::NoSuchKey, "{name}"),
        }
    }
    assert!(get(store, "parts").await.unwrap() == whole());
    audit(store).await;
}

/// Objects of all sorts, half of them removed again, and an upload in progress with two parts.
async fn fill(store: &Partition) -> (UploadId, Vec<(u16, Etag)>) {
    let upload = begin(store).await;
    let mut listed = Vec::new();
    for (number, len) in PARTS {
        listed.push(add(store, upload, number, len).await);
        put(store, "filler", &bytes(99, 60_000)).await.unwrap();
    }
    store
        .upload_complete(of(upload), listed, Condition::None, 4)
        .await
        .unwrap();
    let open = begin(store).await;
    let parts = vec![
        add(store, open, 1, 3_000).await,
        add(store, open, 2, 200_000).await,
    ];
    for number in 0..40_u64 {
        let len = if number % 2 == 0 { 9_000 } else { 150_000 };
        let name = format!("k{number:02}");
        put(store, &name, &bytes(number, len)).await.unwrap();
        put(store, "filler", &bytes(number, 60_000)).await.unwrap();
    }
    for number in (0..40).filter(|number| number % 4 > 1) {
        let gone = store.delete(BUCKET, key(&format!("k{number:02}")), Condition::None);
        gone.await.unwrap();
    }
    (open, parts)
}

fn sealed(store: &Partition) -> Vec<u32> {
    let segments = store.inner.log.segments().into_iter();
    segments
        .filter(|segment| segment.sealed)
        .map(|segment| segment.number)
        .collect()
}

#[test]
fn every_sort_of_live_record_moves_and_the_segments_come_back() {
    let (sim, node) = world(11);
    sim.run(node, 0, async {
        let store = open().await;
        let (upload, mut parts) = fill(&store).await;
        let old = sealed(&store);
        assert!(old.len() > 4, "{old:?}");
        for segment in &old {
            let known = store.inner.log.segments();
            if known.iter().any(|info| info.number == *segment) {
                store.inner.compact(*segment).await.unwrap();
            }
            assert_eq!(store.inner.index.borrow().live_bytes(*segment), 0);
        }
        assert!(store.metrics().compacted_bytes > 90_000);
        check(&store).await;
        for _ in 0..2 {
            store.inner.checkpoint().await.unwrap();
        }
        let left = sealed(&store);
        assert!(
            left.iter().all(|segment| !old.contains(segment)),
            "{left:?}"
        );
        check(&store).await;
        store.close().await.unwrap();
        drop(store);

        let store = open().await;
        check(&store).await;
        parts.push(add(&store, upload, 7, 60_000).await);
        store
            .upload_complete(of(upload), parts, Condition::None, 5)
            .await
            .unwrap();
        check(&store).await;
    });
}

#[test]
fn replaying_moves_over_any_checkpoint_gives_the_same_index() {
    let (sim, node) = world(12);
    sim.run(node, 0, async {
        let store = open().await;
        fill(&store).await;
        store.inner.checkpoint().await.unwrap();
        for segment in sealed(&store) {
            store.inner.compact(segment).await.unwrap();
        }
        let places = async |store: &Partition| {
            let EntryBody::Manifest(parts) = entry(store, "parts").await.body else {
                panic!("a manifest");
            };
            parts.iter().map(|part| part.place).collect::<Vec<_>>()
        };
        let before = places(&store).await;
        // Not closed: the moves are only in the log, behind the checkpoint.
        let mut index = store.inner.index.take();
        drop(store);
        let store = open().await;
        // A checkpoint states the first number of a bucket, an index without buckets does not.
        index.set_next_bucket(1);
        assert_eq!(*store.inner.index.borrow(), index);
        assert_eq!(places(&store).await, before);
        check(&store).await;
    });
}

#[test]
fn a_write_that_comes_first_is_not_undone_by_a_move() {
    let (sim, node) = world(13);
    sim.run(node, 0, async {
        let store = open().await;
        fill(&store).await;
        let writer = store.clone();
        let writes = engine::spawn_local(engine::SchedGroup::FOREGROUND, async move {
            for number in (0..40_u64).filter(|number| number % 4 < 2) {
                let name = format!("k{number:02}");
                put(&writer, &name, b"newer").await.unwrap();
            }
        });
        for segment in sealed(&store) {
            match store.inner.compact(segment).await {
                // A checkpoint of the writer's has released it meanwhile.
                Err(StoreError::Internal(_)) if !sealed(&store).contains(&segment) => {}
                done => done.unwrap(),
            }
        }
        writes.await;
        for number in (0..40).filter(|number| number % 4 < 2) {
            let name = format!("k{number:02}");
            assert_eq!(get(&store, &name).await.unwrap(), b"newer", "{name}");
        }
        audit(&store).await;
    });
}

#[test]
fn a_failed_write_during_compaction_ends_writing_and_loses_nothing() {
    let (sim, node) = world(14);
    let disk = sim.disk(node);
    sim.run(node, 0, async move {
        let store = open().await;
        fill(&store).await;
        engine::sleep(Duration::from_secs(1)).await;
        disk.fail_next_write();
        let mut failed = None;
        for segment in sealed(&store) {
            if let Err(error) = store.inner.compact(segment).await {
                failed = Some(error);
                break;
            }
        }
        assert!(
            matches!(failed, Some(StoreError::Poisoned(_))),
            "{failed:?}"
        );
        let refused = put(&store, "new", b"x").await;
        assert!(matches!(refused, Err(StoreError::Poisoned(_))));
        check(&store).await;
        drop(store);
        check(&open().await).await;
    });
}

#[test]
fn a_damaged_segment_is_left_alone_and_said() {
    let (sim, node) = world(15);
    let disk = sim.disk(node);
    let store = sim.run(node, 0, async {
        let store = open_with(&kept_up()).await.unwrap();
        store.inner.upkeep.appends.set(1);
        put(&store, "kept", &bytes(1, 30_000)).await.unwrap();
        store
    });
    let known = store.clone();
    let place = sim.run(node, 0, async move { entry(&known, "kept").await.place });
    let file = dir().join("log").join(format!("{:08}.seg", place.segment));
    disk.flip_bit(file, u64::from(place.offset) + 5_000);
    let filled = store.clone();
    sim.run(node, 0, async move {
        for number in 0..30 {
            put(&filled, "filler", &bytes(number, 60_000))
                .await
                .unwrap();
        }
    });
    sim.run_for(Duration::from_secs(5));
    sim.run(node, 0, async move {
        assert!(store.metrics().corrupt_reads > 0);
        assert!(sealed(&store).contains(&place.segment));
        let rotten = get(&store, "kept").await;
        assert!(matches!(rotten, Err(StoreError::Corrupt { .. })));
    });
}
