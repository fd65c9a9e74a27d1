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

/// The tail, a spare and the reserve; one more that is half way between; a step of the data file;
/// dead segments below one segment's length; two checkpoints.
const CONSTANT: u64 = 5 * (512 << 10) + (1 << 20) + (64 << 10);

#[test]
fn after_writing_and_removing_three_budgets_usage_is_near_the_live_bytes() {
    let (sim, node) = world(31);
    let store = sim.run(node, 0, async {
        let store = open_with(&kept_up()).await.unwrap();
        // 330 KB a round, 180 rounds: three times 20 MB. Every tenth round's stay.
        for round in 0..180_u64 {
            let (small, large) = (format!("s{round:03}"), format!("l{round:03}"));
            put(&store, &small, &bytes(round, 30_000)).await.unwrap();
            put(&store, &large, &bytes(round, 300_000)).await.unwrap();
        }
        for round in (0..180).filter(|round| round % 10 > 0) {
            remove(&store, &format!("s{round:03}")).await;
            remove(&store, &format!("l{round:03}")).await;
        }
        store
    });
    sim.run_for(Duration::from_secs(20));
    sim.run(node, 0, async move {
        let (used, metrics) = (used().await, store.metrics());
        let bound = metrics.live_bytes * 11 / 10 + CONSTANT;
        assert!(used <= bound, "{used} bytes for {bound}: {metrics:?}");
        assert!(metrics.discarded_bytes > 30_000_000 && metrics.compacted_segments > 0);
        audit(&store).await;
        for round in (0..180).step_by(10) {
            let (small, large) = (format!("s{round:03}"), format!("l{round:03}"));
            assert_eq!(get(&store, &small).await.unwrap(), bytes(round, 30_000));
            assert!(get(&store, &large).await.unwrap() == bytes(round, 300_000));
        }
        // The holes take bodies again.
        for round in 200..240 {
            let name = format!("l{round:03}");
            put(&store, &name, &bytes(round, 300_000)).await.unwrap();
            assert!(get(&store, &name).await.unwrap() == bytes(round, 300_000));
        }
        store.close().await.unwrap();
        drop(store);
        audit(&open().await).await;
    });
}

#[test]
fn on_a_full_disk_removals_go_on_and_bring_the_space_back() {
    for seed in 40..50 {
        let (sim, node) = world(seed);
        let disk = sim.disk(node);
        let store = sim.run(node, 0, async move {
            let store = open_with(&kept_up()).await.unwrap();
            put(&store, "first", &bytes(1, 30_000)).await.unwrap();
            engine::sleep(Duration::from_secs(1)).await;
            disk.set_capacity(used().await + (8 << 20));
            let mut stored = 0;
            for number in 0..600_u64 {
                let name = format!("n{number:03}");
                match put(&store, &name, &bytes(number, 40_000)).await {
                    Ok(_) => stored += 1,
                    Err(error) => {
                        assert_eq!(error, StoreError::Full, "seed {seed}");
                        break;
                    }
                }
            }
            assert!(stored > 100 && stored < 600, "seed {seed}: {stored}");
            for number in (0..stored).filter(|number| number % 5 > 0) {
                remove(&store, &format!("n{number:03}")).await;
            }
            store
        });
        sim.run_for(Duration::from_secs(10));
        sim.run(node, 0, async move {
            let metrics = store.metrics();
            assert_eq!(metrics.poisoned, 0, "seed {seed}");
            let (used, bound) = (used().await, metrics.live_bytes * 11 / 10 + CONSTANT);
            assert!(used <= bound, "seed {seed}: {used} of {bound}: {metrics:?}");
            put(&store, "new", &bytes(2, 40_000)).await.unwrap();
            for number in (0..100).step_by(5) {
                let name = format!("n{number:03}");
                let found = get(&store, &name).await.unwrap();
                assert!(found == bytes(number, 40_000), "seed {seed}: {name}");
            }
            store.close().await.unwrap();
            drop(store);
            assert_eq!(get(&open().await, "first").await.unwrap(), bytes(1, 30_000));
        });
    }
}
