//! Bodies kept in sealed pages: fewer disk reads, and never a byte that is not the object's own.

use std::ops::Range;

use super::*;
use crate::store::body_cache::BodyCache;
use crate::store::metrics::StoreMetrics;

const BODY: usize = 2 * CHUNK + 70_000;

async fn open_cached(capacity: u64) -> (Partition, Rc<BodyCache>) {
    let store = open().await;
    let bodies = Rc::new(BodyCache::new(capacity));
    store.cache_bodies(&bodies);
    (store, bodies)
}

/// A range of an object by pieces, and how many of those were pages.
async fn pieces(
    store: &Partition,
    name: &str,
    range: Range<u64>,
) -> Result<(Vec<u8>, usize), StoreError> {
    let Body::Stored(id) = store.get(BUCKET, &key(name), 0).await?.body else {
        panic!("{name} lies in its record");
    };
    let (mut all, mut pages, mut at) = (Vec::new(), 0, range.start);
    while at < range.end {
        let piece = store.read_piece(id, at..range.end).await;
        let Ok(mut piece) = piece else {
            store.read_end(id);
            return Err(piece.unwrap_err());
        };
        pages += usize::from(matches!(piece, Piece::Pages(_)));
        let len = piece.len();
        at += len as u64;
        let mut buf = engine::take_buf(CHUNK)?;
        buf.set_len(0);
        while piece.move_to(&mut buf, 100_000).unwrap() > 0 {
            all.extend_from_slice(&buf);
            buf.set_len(0);
        }
    }
    store.read_end(id);
    Ok((all, pages))
}

async fn whole(store: &Partition, name: &str, len: usize) -> Result<Vec<u8>, StoreError> {
    pieces(store, name, 0..len as u64).await.map(|(all, _)| all)
}

fn counted(bodies: &BodyCache) -> StoreMetrics {
    let mut sum = StoreMetrics::default();
    bodies.count_into(&mut sum);
    sum
}

#[test]
fn a_body_read_twice_comes_from_memory_whatever_part_of_it_is_asked_for() {
    let (sim, node) = world(1);
    sim.run(node, 0, async move {
        let (store, bodies) = open_cached(4 << 20).await;
        let body = bytes(1, BODY);
        put(&store, "a", &body).await.unwrap();
        for reads in 0..2 {
            assert!(whole(&store, "a", BODY).await.unwrap() == body);
            assert_eq!(counted(&bodies).body_cache_kept, 3 * reads);
        }
        let (got, pages) = pieces(&store, "a", 0..BODY as u64).await.unwrap();
        assert!(got == body && pages == 1, "all of it at once");
        assert_eq!(counted(&bodies).body_cache_hit_bytes, BODY as u64);
        let chunk = CHUNK as u64;
        for range in [5..6, chunk - 1..chunk + 1, 100..BODY as u64 - 100] {
            let (got, pages) = pieces(&store, "a", range.clone()).await.unwrap();
            assert!(got == body[range.start as usize..range.end as usize]);
            assert_eq!(pages, 1);
        }
        assert_eq!(store.metrics().corrupt_reads, 0);
    });
}

#[test]
fn a_body_in_the_place_of_a_removed_one_is_never_mistaken_for_it() {
    let (sim, node) = world(2);
    sim.run(node, 0, async move {
        let (store, bodies) = open_cached(64 << 20).await;
        for number in 0..8 {
            let body = bytes(number, BODY);
            put(&store, "a", &body).await.unwrap();
            for _ in 0..3 {
                assert!(whole(&store, "a", BODY).await.unwrap() == body);
            }
            if number % 2 == 0 {
                let gone = store.delete(BUCKET, key("a"), Condition::None).await;
                assert!(gone.unwrap());
                assert_eq!(whole(&store, "a", 1).await, Err(StoreError::NoSuchKey));
            }
        }
        // Each extent was used again, as the file holds far less than eight bodies.
        let blocks = store.inner.data.space().borrow().allocator.blocks();
        assert!((blocks as usize) * engine::BLOCK < 4 * BODY);
        assert_eq!(counted(&bodies).body_cache_kept, 8 * 3);
        audit(&store).await;
    });
}

#[test]
fn parts_of_odd_lengths_are_kept_each_for_itself() {
    let (sim, node) = world(3);
    sim.run(node, 0, async move {
        let (store, bodies) = open_cached(16 << 20).await;
        let parts = [
            bytes(1, CHUNK + 12_345),
            bytes(2, 2_000),
            bytes(3, CHUNK),
            bytes(4, 99_999),
        ];
        let all = parts.concat();
        multipart::put_parts(&store, &parts).await;
        for _ in 0..3 {
            assert!(whole(&store, "big", all.len()).await.unwrap() == all);
        }
        let now = counted(&bodies);
        assert_eq!((now.body_cache_kept, now.body_cache_hits), (4, 4));
        for begin in [0_usize, 1, CHUNK, CHUNK + 12_344, CHUNK + 13_000, 600_000] {
            let range = begin as u64..(begin as u64 + 300_000).min(all.len() as u64);
            let (got, _) = pieces(&store, "big", range.clone()).await.unwrap();
            assert!(got == all[begin..range.end as usize]);
        }
    });
}

#[test]
fn a_long_object_read_once_leaves_what_is_held_alone() {
    let (sim, node) = world(4);
    sim.run(node, 0, async move {
        let (store, bodies) = open_cached(1 << 20).await;
        let (hot, long) = (bytes(1, BODY), bytes(2, 12 * CHUNK));
        put(&store, "hot", &hot).await.unwrap();
        put(&store, "long", &long).await.unwrap();
        for _ in 0..2 {
            assert!(whole(&store, "hot", BODY).await.unwrap() == hot);
        }
        for _ in 0..3 {
            assert!(whole(&store, "long", long.len()).await.unwrap() == long);
        }
        let now = counted(&bodies);
        assert_eq!((now.body_cache_kept, now.body_cache_evicted), (3, 0));
        assert!(whole(&store, "hot", BODY).await.unwrap() == hot);
        assert_eq!(counted(&bodies).body_cache_hits, 3);
    });
}

#[test]
fn damage_is_never_kept_and_scrub_sees_past_what_is() {
    let (sim, node) = world(5);
    let mut config = config();
    config.upkeep.scrub_period = Some(Duration::from_secs(64));
    let bodies = Rc::new(BodyCache::new(8 << 20));
    let kept = Rc::clone(&bodies);
    let store = sim.run(node, 0, async move {
        let store = open_with(&config).await.unwrap();
        store.cache_bodies(&kept);
        for (number, name) in ["warm", "cold"].into_iter().enumerate() {
            put(&store, name, &bytes(number as u64, BODY))
                .await
                .unwrap();
        }
        for _ in 0..2 {
            whole(&store, "warm", BODY).await.unwrap();
        }
        whole(&store, "cold", BODY).await.unwrap();
        store
    });
    for name in ["warm", "cold"] {
        let known = store.clone();
        let found = sim.run(node, 0, async move { entry(&known, name).await });
        let first = found.extents().next();
        let place = first.unwrap().offset() + CHUNK as u64 + 77;
        sim.disk(node).flip_bit(dir().join("data"), place);
    }
    let reading = store.clone();
    sim.run(node, 0, async move {
        // It was verified when it came in, and has not been on the disk since.
        let warm = whole(&reading, "warm", BODY).await.unwrap();
        assert!(warm == bytes(0, BODY));
        for _ in 0..3 {
            let rotten = whole(&reading, "cold", BODY).await;
            let told = matches!(rotten, Err(StoreError::Corrupt { .. }));
            assert!(told, "{rotten:?}");
        }
    });
    assert_eq!(counted(&bodies).body_cache_kept, 3 + 1);
    sim.run_for(Duration::from_secs(40));
    let seen = store.metrics();
    assert_eq!((seen.scrub_rounds, seen.scrub_damaged), (1, 2));
}

#[test]
fn without_pages_bodies_come_from_the_disk() {
    let (sim, node) = world(6);
    sim.configure(|config| config.page_seals_fail_one_in = 1);
    sim.run(node, 0, async move {
        let (store, bodies) = open_cached(4 << 20).await;
        let body = bytes(1, BODY);
        put(&store, "a", &body).await.unwrap();
        for _ in 0..3 {
            assert!(whole(&store, "a", BODY).await.unwrap() == body);
        }
        let now = counted(&bodies);
        assert!(now.body_cache_refused > 0 && now.body_cache_bytes == 0);
    });
}
