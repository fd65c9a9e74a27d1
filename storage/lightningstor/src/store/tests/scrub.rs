//! Scrub reads every object round after round, and finds what rots.

use super::*;

fn scrubbed() -> StoreConfig {
    let mut config = config();
    config.upkeep.scrub_period = Some(Duration::from_secs(64));
    config
}

#[test]
fn flips_anywhere_are_found_by_scrub_and_never_served() {
    let (sim, node) = world(21);
    let store = sim.run(node, 0, async {
        let store = open_with(&scrubbed()).await.unwrap();
        for number in 0..10_u64 {
            let name = format!("s{number}");
            put(&store, &name, &bytes(number, 5_000)).await.unwrap();
            let name = format!("l{number}");
            // Past three CRCs they lie in a table of their own.
            put(&store, &name, &bytes(number, 300_000)).await.unwrap();
        }
        store
    });
    sim.run_for(Duration::from_secs(30));
    assert_eq!(store.metrics().scrub_rounds, 1);
    assert_eq!(store.metrics().scrub_objects, 20);
    assert_eq!(store.metrics().scrub_left, 0);
    assert_eq!(store.metrics().scrub_damaged, 0);
    assert!(store.metrics().scrub_bytes > 3_050_000);

    let disk = sim.disk(node);
    let known = store.clone();
    let entry = |name: &'static str| {
        let known = known.clone();
        sim.run(node, 0, async move { entry(&known, name).await })
    };
    let extents = |name| entry(name).extents().collect::<Vec<_>>();
    disk.flip_bit(dir().join("data"), extents("l3")[0].offset() + 200_000);
    let table = *extents("l4").last().unwrap();
    disk.flip_bit(dir().join("data"), table.offset() + 9);
    let place = entry("s5").place;
    let file = dir().join("log").join(format!("{:08}.seg", place.segment));
    disk.flip_bit(file, u64::from(place.offset) + 3_000);
    sim.run_for(Duration::from_secs(64));
    assert_eq!(store.metrics().scrub_rounds, 2);
    assert_eq!(store.metrics().scrub_damaged, 3);
    assert_eq!(store.metrics().corrupt_reads, 3);
    sim.run(node, 0, async move {
        for name in ["l3", "l4", "s5"] {
            let rotten = get(&store, name).await;
            assert!(
                matches!(rotten, Err(StoreError::Corrupt { .. })),
                "{name}: {rotten:?}"
            );
        }
        for name in ["l2", "s3", "s4"] {
            assert!(get(&store, name).await.is_ok(), "{name}");
        }
    });
}

#[test]
fn scrub_keeps_to_its_rate_and_follows_writes() {
    let (sim, node) = world(22);
    let mut config = scrubbed();
    config.upkeep.scrub_bytes_per_s = 100_000;
    let store = sim.run(node, 0, async move {
        let store = open_with(&config).await.unwrap();
        for number in 0..10_u64 {
            let name = format!("l{number}");
            put(&store, &name, &bytes(number, 100_000)).await.unwrap();
        }
        store
    });
    sim.run_for(Duration::from_secs(6));
    let read = store.metrics().scrub_bytes;
    assert!((200_000..700_000).contains(&read), "{read}");
    let changed = store.clone();
    sim.run(node, 0, async move {
        put(&changed, "l9", b"short").await.unwrap();
        let gone = changed.delete(BUCKET, key("l8"), Condition::None);
        gone.await.unwrap();
    });
    sim.run_for(Duration::from_secs(20));
    assert_eq!(store.metrics().scrub_rounds, 1);
    assert_eq!(store.metrics().scrub_damaged, 0);
}
