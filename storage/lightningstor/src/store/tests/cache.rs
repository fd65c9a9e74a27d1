//! Records kept in memory: fewer disk reads, and never an object that is not the key's own.

use super::*;

#[test]
fn what_was_read_once_comes_from_memory_until_the_key_changes() {
    let (sim, node) = world(1);
    sim.run(node, 0, async move {
        let store = open().await;
        store.cache_records(1 << 20);
        put(&store, "a", &bytes(1, 4096)).await.unwrap();
        put(&store, "b", &bytes(2, 60_000)).await.unwrap();
        for hits in 0..3 {
            assert_eq!(get(&store, "a").await.unwrap(), bytes(1, 4096));
            assert_eq!(get(&store, "b").await.unwrap(), bytes(2, 60_000));
            assert_eq!(store.metrics().cache_hits, hits, "b is too long to keep");
        }
        assert_eq!(store.head(BUCKET, &key("a")).await.unwrap().size, 4096);
        assert_eq!(store.metrics().cache_hits, 3);
        put(&store, "a", b"new").await.unwrap();
        assert_eq!(get(&store, "a").await.unwrap(), b"new");
        assert_eq!(get(&store, "a").await.unwrap(), b"new");
        store
            .delete(BUCKET, key("a"), Condition::None)
            .await
            .unwrap();
        assert_eq!(get(&store, "a").await, Err(StoreError::NoSuchKey));
        put(&store, "a", b"again").await.unwrap();
        assert_eq!(get(&store, "a").await.unwrap(), b"again");
    });
}

#[test]
fn a_stored_object_is_found_through_a_record_in_memory() {
    let (sim, node) = world(2);
    sim.run(node, 0, async move {
        let store = open().await;
        store.cache_records(1 << 20);
        put(&store, "large", &bytes(3, 200_000)).await.unwrap();
        assert_eq!(get(&store, "large").await.unwrap(), bytes(3, 200_000));
        assert_eq!(get(&store, "large").await.unwrap(), bytes(3, 200_000));
        assert_eq!(store.metrics().cache_hits, 1);
        audit(&store).await;
    });
}
