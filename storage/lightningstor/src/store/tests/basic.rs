//! One client at a time: objects, listings, restarts, conditions, readers.

use super::*;

const SIZES: [usize; 9] = [
    0,
    1,
    4096,
    INLINE_MAX,
    INLINE_MAX + 1,
    CHUNK - 1,
    CHUNK,
    CHUNK + 1,
    3 * CHUNK + 77,
];

#[test]
fn bodies_of_every_size_come_back_also_after_a_restart() {
    let (sim, node) = world(1);
    sim.run(node, 0, async {
        let store = open().await;
        for (number, len) in SIZES.into_iter().enumerate() {
            let body = bytes(number as u64, len);
            let name = format!("k{number}");
            let done = put(&store, &name, &body).await.unwrap();
            assert_eq!(
                done,
                PutDone {
                    etag: tag(&body),
                    version: Version::NULL
                }
            );
            assert_eq!(store.head(BUCKET, &key(&name)).await.unwrap(), meta(&body));
            assert!(get(&store, &name).await.unwrap() == body, "{len}");
        }
        audit(&store);
        store.close().await.unwrap();
        assert_eq!(put(&store, "late", b"x").await, Err(StoreError::Gone));
    });
    sim.stop(node);
    sim.start(node, engine_config(1)).unwrap();
    sim.run(node, 0, async {
        let store = open().await;
        for (number, len) in SIZES.into_iter().enumerate() {
            let body = bytes(number as u64, len);
            assert!(
                get(&store, &format!("k{number}")).await.unwrap() == body,
                "{len}"
            );
        }
        assert_eq!(names(&store).len(), SIZES.len());
        audit(&store);
    });
}

#[test]
fn overwriting_and_deleting_free_what_was_there() {
    let (sim, node) = world(2);
    sim.run(node, 0, async {
        let store = open().await;
        for round in 0..40 {
            put(&store, "a", &bytes(round, 400_000)).await.unwrap();
        }
        assert_eq!(get(&store, "a").await.unwrap(), bytes(39, 400_000));
        let metrics = store.metrics();
        assert_eq!((metrics.objects, metrics.live_bytes), (1, 400_000));
        // 98 blocks and one for the table of CRCs.
        assert_eq!(metrics.data_used_bytes, 99 * 4096);
        assert!(
            metrics.data_free_bytes <= 2 << 20,
            "freed extents are reused"
        );
        assert!(
            store
                .delete(BUCKET, key("a"), Condition::None)
                .await
                .unwrap()
        );
        assert!(
            !store
                .delete(BUCKET, key("a"), Condition::None)
                .await
                .unwrap()
        );
        assert_eq!(get(&store, "a").await, Err(StoreError::NoSuchKey));
        assert_eq!(store.metrics().data_used_bytes, 0);
        audit(&store);
    });
}

#[test]
fn a_listing_is_ordered_and_goes_on_from_any_cursor() {
    let (sim, node) = world(3);
    sim.run(node, 0, async {
        let store = open().await;
        for name in ["b/2", "a", "b/1", "c", "b", "b/10", "é"] {
            put(&store, name, name.as_bytes()).await.unwrap();
        }
        assert_eq!(names(&store), ["a", "b", "b/1", "b/10", "b/2", "c", "é"]);
        let list = |cursor, prefix: &str, limit| {
            let chunk = store.list(BUCKET, cursor, prefix.as_bytes(), limit);
            let keys: Vec<String> = chunk.entries.iter().map(|e| e.key.to_string()).collect();
            (keys.join(" "), chunk.more)
        };
        assert_eq!(list(ListCursor::Start, "b/", 2), ("b/1 b/10".into(), true));
        assert_eq!(
            list(ListCursor::After("b/10"), "b/", 2),
            ("b/2".into(), false)
        );
        assert_eq!(
            list(ListCursor::After("a"), "b/", 9),
            ("b/1 b/10 b/2".into(), false)
        );
        assert_eq!(list(ListCursor::From(b"b0"), "", 9), ("c é".into(), false));
        assert_eq!(list(ListCursor::From(b"c\xff"), "", 9), ("é".into(), false));
        assert_eq!(list(ListCursor::From(b"c"), "b", 9), (String::new(), false));
        assert_eq!(list(ListCursor::Start, "", 0), (String::new(), true));
        let entry = &store.list(BUCKET, ListCursor::Start, b"a", 1).entries[0];
        assert_eq!(
            (entry.size, entry.etag, entry.modified_ms),
            (1, tag(b"a"), 1_000)
        );
    });
}

#[test]
fn conditions_look_at_the_object_that_is_there() {
    let (sim, node) = world(4);
    sim.run(node, 0, async {
        let store = open().await;
        let failed = Err(StoreError::PreconditionFailed);
        let absent = Err(StoreError::NoSuchKey);
        assert_eq!(
            put_if(&store, "a", b"1", Condition::IfMatchAny).await,
            absent
        );
        assert_eq!(
            put_if(&store, "a", b"1", Condition::IfMatch(tag(b"1"))).await,
            absent
        );
        put_if(&store, "a", b"1", Condition::IfNoneMatchAny)
            .await
            .unwrap();
        assert_eq!(
            put_if(&store, "a", b"2", Condition::IfNoneMatchAny).await,
            failed
        );
        let big = bytes(9, 100_000);
        assert_eq!(
            put_if(&store, "a", &big, Condition::IfMatch(tag(b"2"))).await,
            failed
        );
        assert_eq!(
            store.metrics().data_used_bytes,
            0,
            "a refused body is freed"
        );
        put_if(&store, "a", &big, Condition::IfMatch(tag(b"1")))
            .await
            .unwrap();
        let stale = store
            .delete(BUCKET, key("a"), Condition::IfMatch(tag(b"1")))
            .await;
        assert_eq!(stale, Err(StoreError::PreconditionFailed));
        assert_eq!(get(&store, "a").await.unwrap(), big);
    });
}

#[test]
fn of_racing_conditional_writers_exactly_one_wins() {
    for seed in 0..20 {
        let (sim, node) = world(seed);
        let store = sim.run(node, 0, open());
        let tasks: Vec<_> = (0..8)
            .map(|writer| {
                let store = store.clone();
                sim.spawn(node, 0, async move {
                    let body = bytes(writer, if writer % 2 == 0 { 10 } else { 70_000 });
                    put_if(&store, "lock", &body, Condition::IfNoneMatchAny).await
                })
            })
            .collect();
        let done: Vec<_> = tasks.iter().map(|task| sim.join(task).unwrap()).collect();
        let winners: Vec<_> = done.iter().flatten().collect();
        assert_eq!(winners.len(), 1, "seed {seed}: {done:?}");
        let lost = |d: &&Result<_, _>| **d == Err(StoreError::PreconditionFailed);
        assert_eq!(done.iter().filter(lost).count(), 7, "seed {seed}: {done:?}");
        let etag = winners[0].etag;
        sim.run(node, 0, async move {
            assert_eq!(tag(&get(&store, "lock").await.unwrap()), etag);
            audit(&store);
        });
    }
}

#[test]
fn a_reader_keeps_its_object_while_the_key_moves_on() {
    let (sim, node) = world(5);
    sim.run(node, 0, async {
        let store = open().await;
        let old = bytes(1, 200_000);
        put(&store, "a", &old).await.unwrap();
        let Body::Stored(id) = store.get(BUCKET, &key("a"), 0).await.unwrap().body else {
            panic!("200,000 bytes are not inline");
        };
        store
            .delete(BUCKET, key("a"), Condition::None)
            .await
            .unwrap();
        for round in 2..20 {
            put(&store, &format!("b{round}"), &bytes(round, 200_000))
                .await
                .unwrap();
        }
        let (buf, range) = store.read_chunk(id, 100_000, READ_MAX).await.unwrap();
        assert_eq!(buf[range], old[100_000..]);
        store.read_end(id);
        assert_eq!(
            store.read_chunk(id, 0, 1).await.err(),
            Some(StoreError::Gone)
        );
        audit(&store);
    });
}

#[test]
fn a_write_that_is_given_up_frees_its_space_and_its_handle() {
    let (sim, node) = world(6);
    sim.run(node, 0, async {
        let store = open().await;
        let body = bytes(1, CHUNK);
        let write = store.write_begin(Some(10 << 20)).await.unwrap();
        let crcs = body.chunks(CRC_BLOCK).map(crc_fast::crc64_nvme).collect();
        let chunk = store.write_chunk(write, buf(&body).unwrap(), crcs);
        store.write_abort(write).await;
        chunk.await.unwrap();
        assert_eq!(store.metrics().data_used_bytes, 0);
        let gone = store
            .put_commit(write, BUCKET, key("a"), meta(&body), Condition::None)
            .await;
        assert_eq!(gone, Err(StoreError::Gone));
        audit(&store);
    });
}

#[test]
fn chunks_in_flight_together_land_in_the_order_of_the_calls() {
    let (sim, node) = world(7);
    sim.run(node, 0, async {
        let store = open().await;
        let body = bytes(1, 3 * CHUNK + 5);
        let write = store.write_begin(None).await.unwrap();
        let chunks: Vec<_> = body
            .chunks(CHUNK)
            .map(|chunk| {
                let crcs = chunk.chunks(CRC_BLOCK).map(crc_fast::crc64_nvme).collect();
                store.write_chunk(write, buf(chunk).unwrap(), crcs)
            })
            .collect();
        // Not even polled: the commit waits for them.
        drop(chunks);
        store
            .put_commit(write, BUCKET, key("a"), meta(&body), Condition::None)
            .await
            .unwrap();
        assert_eq!(get(&store, "a").await.unwrap(), body);
        audit(&store);
    });
}

#[test]
fn chunks_of_a_body_may_come_in_any_order() {
    let (sim, node) = world(41);
    sim.run(node, 0, async {
        let store = open().await;
        let body = bytes(3, 3 * CHUNK + 5_000);
        let write = store.write_begin(Some(body.len() as u64)).await.unwrap();
        for number in [2, 0, 3, 1] {
            let chunk = body.chunks(CHUNK).nth(number).unwrap();
            let crcs = chunk.chunks(CRC_BLOCK).map(crc_fast::crc64_nvme).collect();
            let at = (number * CHUNK) as u64;
            let written = store.write_chunk_at(write, at, buf(chunk).unwrap(), crcs);
            written.await.unwrap();
        }
        let done = store.put_commit(write, BUCKET, key("a"), meta(&body), Condition::None);
        done.await.unwrap();
        assert!(get(&store, "a").await.unwrap() == body);
        audit(&store);
    });
}
