//! Scrubs volumes with checksums while they are written, and damages them at last.

use super::*;

async fn scrub(store: &Partition, world: &World, id: VolumeId) {
    match store.scrub(id, 0).await {
        Ok(scrubbed) => assert_eq!(scrubbed.errors, 0, "seed {}: {scrubbed:?}", world.seed),
        // It has no checksums, or is gone.
        Err(VolumeError::Invalid { .. } | VolumeError::NoSuchVolume) => {}
        Err(error) => panic!("seed {}: {error}", world.seed),
    }
}

pub(super) async fn run(store: Partition, world: Shared, mut rng: Rng) {
    for _ in 0..1_000 {
        engine::sleep(Duration::from_micros(rng.below(4_000))).await;
        let id = {
            let model = world.model.borrow();
            let at = rng.below(model.volumes.len().max(1) as u64) as usize;
            model.volumes.get(at).map(|known| known.id)
        };
        if let Some(id) = id {
            scrub(&store, &world, id).await;
        }
        assert_eq!(store.scrub_status().read_errors, 0, "seed {}", world.seed);
    }
}

/// A bit flips in a block: a read and a scrub name it, and a write heals it. Nothing was damaged before,
/// and nobody else is looked at behind it, as others may share the block.
pub(super) async fn damage(store: &Partition, world: &World, mut rng: Rng, flip: impl Fn(u64)) {
    let seed = world.seed;
    let listed = store.list(VolumeId(0), 100);
    for info in &listed {
        scrub(store, world, info.id).await;
    }
    for info in listed.iter().filter(|info| info.checksums) {
        let volume = store.inner.volume(info.id).unwrap();
        let blocks = info.bytes / 4096;
        let mut offsets = (0..64).map(|_| rng.below(blocks) * 4096);
        let mapped = |at: &u64| volume.run_at(*at, 4096).place.is_some();
        let Some(at) = offsets.find(mapped) else {
            continue;
        };
        let device = world.with(info.id, |known| known.device.clone());
        let device = device.flatten().unwrap();
        device.flush().await.unwrap();
        flip(volume.run_at(at, 4096).place.unwrap() + rng.below(4096));
        let sector = at + rng.below(8) * 512;
        let Err(BlockError::Io(error)) = read(&device, sector, 512).await else {
            panic!("seed {seed}: block {at} is read");
        };
        assert!(
            error.to_string().contains(&format!("byte {at}")),
            "seed {seed}: {error}"
        );
        let scrubbed = store.scrub(info.id, 0).await.unwrap();
        let named: Vec<_> = scrubbed.damaged.iter().map(|block| block.offset).collect();
        assert_eq!(named, [at], "seed {seed}");
        write(&device, at, &sectors(7, 8)).await.unwrap();
        assert_eq!(stamps(&read(&device, sector, 512).await.unwrap()), [7]);
        device.flush().await.unwrap();
        return;
    }
}
