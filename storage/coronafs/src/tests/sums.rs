//! Volumes with checksums: what is damaged is found and named, and nothing else ever is.

use std::time::Duration;

use engine::Rng;

use super::*;

const DATA: &str = "/data/v000/data";
const SUMS: &str = "/data/v000/sums";

fn summed(name: &str, bytes: u64) -> NewVolume {
    NewVolume {
        checksums: true,
        ..new_volume(name, bytes)
    }
}

fn restart(sim: &Sim, node: NodeId, kill: bool) {
    if kill {
        sim.kill(node);
    } else {
        sim.crash(node);
    }
    sim.start(node, engine_config()).unwrap();
}

async fn all(device: &Attachment) -> Vec<u64> {
    let len = device.geometry().bytes as usize;
    stamps(&read(device, 0, len).await.unwrap())
}

fn place(store: &Partition, id: VolumeId, offset: u64) -> u64 {
    let volume = store.inner.volume(id).unwrap();
    volume.run_at(offset, 4096).place.unwrap()
}

async fn scrub(store: &Partition, id: VolumeId) -> Scrubbed {
    store.scrub(id, 0).await.unwrap()
}

fn why(error: BlockError) -> VolumeError {
    let BlockError::Io(error) = error else {
        panic!("{error}");
    };
    let inner = error.into_inner().unwrap();
    *inner.downcast::<VolumeError>().unwrap()
}

fn is_mismatch(error: BlockError, of: VolumeId, at: u64) -> bool {
    let damaged = why(error);
    assert!(
        damaged.to_string().contains(&format!("byte {at}")),
        "{damaged}"
    );
    matches!(damaged, VolumeError::Mismatch { volume, offset, expected, found }
        if (volume, offset) == (of, at) && expected != found)
}

/// Writes of all alignments, in place and behind a snapshot, discards and zeroes.
async fn fill(store: &Partition, id: VolumeId) -> (SnapshotId, Vec<u64>, Vec<u64>) {
    let device = attach(store, id).await;
    let mut model = vec![0; 2048];
    let mut first = Vec::new();
    let mut snapshot = None;
    for round in 0..2 {
        let writes = [
            (0, 300, 0),
            (701, 9, 0),
            (703, 2, 72),
            (298, 5, 0),
            (100, 1, 8),
            (1024, 8, 0),
        ];
        for (number, (at, count, skew)) in (1..).zip(writes) {
            let stamp = round * 100 + number;
            let list = list_of(&sectors(stamp, count), skew);
            device.write(at as u64 * 512, list, false).await.unwrap();
            model[at..at + count].fill(stamp);
        }
        device.discard(4096 * 20, 8192).await.unwrap();
        let zeroed = device.write_zeroes(512 * 3, 512 * 3, true, true).await;
        zeroed.unwrap();
        model[160..176].fill(0);
        model[3..6].fill(0);
        assert_eq!(all(&device).await, model);
        if snapshot.is_none() {
            snapshot = Some(store.snapshot(id, "s".into()).await.unwrap().id);
            first = model.clone();
        }
    }
    device.flush().await.unwrap();
    (snapshot.unwrap(), first, model)
}

#[test]
fn a_volume_with_checksums_reads_as_written_over_restarts() {
    for encrypted in [false, true] {
        let (sim, node) = world(1);
        let (id, snapshot, first, model) = sim.run(node, 0, async move {
            let store = open().await;
            let new = NewVolume {
                encrypted,
                ..summed("v", MIB)
            };
            let made = store.create(new).await.unwrap();
            assert!(made.checksums);
            let (snapshot, first, model) = fill(&store, made.id).await;
            assert_eq!(scrub(&store, made.id).await.errors, 0);
            audit(&store).await;
            (made.id, snapshot, first, model)
        });
        for kill in [true, false, true] {
            restart(&sim, node, kill);
            let (first, model) = (first.clone(), model.clone());
            sim.run(node, 0, async move {
                let store = open().await;
                assert_eq!(all(&attach(&store, id).await).await, model);
                let clone = store
                    .clone_snapshot(new_clone("c", snapshot))
                    .await
                    .unwrap();
                assert!(clone.checksums);
                let device = attach(&store, clone.id).await;
                assert_eq!(all(&device).await, first);
                write(&device, 512, &sectors(9, 2)).await.unwrap();
                device.flush().await.unwrap();
                drop(device);
                let scrubbed = scrub(&store, clone.id).await;
                assert_eq!((scrubbed.errors, scrubbed.bytes), (0, clone.mapped_bytes));
                assert_eq!(scrub(&store, id).await.errors, 0);
                store.delete(clone.id).await.unwrap();
                assert_eq!(store.scrub_status().read_errors, 0);
                store.close().await.unwrap();
            });
        }
    }
}

#[test]
fn a_flipped_bit_is_found_by_read_and_scrub_named_and_healed_by_a_rewrite() {
    for seed in 0..24 {
        let (sim, node) = world(seed);
        let disk = sim.disk(node);
        let mut rng = Rng::new(seed);
        sim.run(node, 0, async move {
            let store = open().await;
            let new = NewVolume {
                encrypted: seed % 2 == 1,
                ..summed("v", MIB)
            };
            let id = store.create(new).await.unwrap().id;
            fill(&store, id).await;
            let device = attach(&store, id).await;
            let at = rng.below(37) * 4096;
            let at = if (20..22).contains(&(at / 4096)) {
                0
            } else {
                at
            };
            disk.flip_bit(DATA, place(&store, id, at) + rng.below(4096));
            // Any read that touches the block, and no other.
            let sector = at + rng.below(8) * 512;
            let error = read(&device, sector, 512).await.unwrap_err();
            assert!(is_mismatch(error, id, at));
            assert!(is_mismatch(
                read(&device, 0, MIB as usize).await.unwrap_err(),
                id,
                at
            ));
            read(&device, at + 4096, 4096).await.unwrap();
            let scrubbed = scrub(&store, id).await;
            assert_eq!((scrubbed.errors, scrubbed.damaged.len()), (1, 1));
            let damaged = scrubbed.damaged[0];
            assert_eq!((damaged.volume, damaged.offset), (id, at));
            assert_ne!(damaged.expected, damaged.found);
            let status = store.scrub_status();
            assert_eq!((status.errors, status.read_errors), (1, 2));
            assert_eq!(status.damaged, [damaged]);
            // A part of it is refused, as the rest is not known.
            let error = write(&device, sector, &sectors(5, 1)).await.unwrap_err();
            assert!(is_mismatch(error, id, at));
            write(&device, at, &sectors(6, 8)).await.unwrap();
            assert_eq!(stamps(&read(&device, at, 4096).await.unwrap()), [6; 8]);
            device.flush().await.unwrap();
            read(&device, 0, MIB as usize).await.unwrap();
            // What a snapshot has of it stays damaged there, until that is removed.
            let left = scrub(&store, id).await;
            assert!(
                left.damaged.iter().all(|block| block.snapshot.is_some()),
                "{left:?}"
            );
            assert_eq!(store.poisoned(), None);
        });
    }
}

#[test]
fn damage_of_what_snapshots_share_is_named_once_and_never_moved_into_health() {
    let (sim, node) = world(3);
    let disk = sim.disk(node);
    sim.run(node, 0, async move {
        let store = open().await;
        let id = store.create(summed("v", MIB)).await.unwrap().id;
        let device = attach(&store, id).await;
        write(&device, 0, &sectors(1, 256)).await.unwrap();
        let taken = store.snapshot(id, "s".into()).await.unwrap().id;
        let clone = store
            .clone_snapshot(new_clone("c", taken))
            .await
            .unwrap()
            .id;
        disk.flip_bit(DATA, place(&store, id, 7 * 4096));
        let scrubbed = scrub(&store, id).await;
        assert_eq!((scrubbed.errors, scrubbed.bytes), (1, 128 * KIB));
        let copy = attach(&store, clone).await;
        let error = read(&copy, 7 * 4096, 4096).await.unwrap_err();
        assert!(is_mismatch(error, clone, 7 * 4096));
        // Writes until the slot lies in so many pieces that it is moved together, again and again.
        for round in 0..12 {
            for block in (0..16).filter(|block| *block != 7) {
                let stamp = 100 + round * 16 + block;
                let wrote = write(&device, block * 4096, &sectors(stamp, 8)).await;
                wrote.unwrap();
            }
            if round % 3 == 0 {
                device.flush().await.unwrap();
                store.snapshot(id, format!("s{round}")).await.unwrap();
            }
        }
        assert!(is_mismatch(
            read(&device, 7 * 4096, 512).await.unwrap_err(),
            id,
            7 * 4096
        ));
        write(&device, 7 * 4096, &sectors(2, 8)).await.unwrap();
        read(&device, 0, 128 * 1024).await.unwrap();
        assert!(read(&copy, 7 * 4096, 512).await.is_err());
        store.close().await.unwrap();
    });
}

#[test]
fn damaged_checksums_are_told_and_healed_by_a_rewrite() {
    let (sim, node) = world(4);
    let disk = sim.disk(node);
    let id = sim.run(node, 0, async move {
        let store = open().await;
        let id = store.create(summed("v", MIB)).await.unwrap().id;
        let device = attach(&store, id).await;
        write(&device, 0, &sectors(1, 2048)).await.unwrap();
        drop(device);
        store.close().await.unwrap();
        id
    });
    // Those of the first seven clusters.
    disk.flip_bit(SUMS, 40);
    sim.run(node, 0, async move {
        let store = open().await;
        let device = attach(&store, id).await;
        let offset = 3 * 64 * KIB;
        let lost = VolumeError::NoChecksum { volume: id, offset };
        assert_eq!(
            why(read(&device, offset + 512, 512).await.unwrap_err()),
            lost
        );
        let scrubbed = scrub(&store, id).await;
        assert_eq!((scrubbed.errors, scrubbed.bytes), (7 * 16, MIB));
        assert!(
            scrubbed
                .damaged
                .iter()
                .all(|block| block.expected.is_none())
        );
        write(&device, offset, &sectors(2, 8)).await.unwrap();
        assert_eq!(stamps(&read(&device, offset, 512).await.unwrap()), [2]);
        write(&device, 0, &sectors(3, 2048)).await.unwrap();
        device.flush().await.unwrap();
        assert_eq!(all(&device).await, [3; 2048]);
        assert_eq!(scrub(&store, id).await.errors, 0);
    });
    restart(&sim, node, false);
    sim.run(node, 0, async move {
        let store = open().await;
        assert_eq!(all(&attach(&store, id).await).await, [3; 2048]);
    });
}

/// A block that was not flushed is old or new after a power cut, and not a part of both.
#[test]
fn no_power_cut_tears_a_block_or_raises_an_alarm() {
    let mut old_and_new = BTreeSet::new();
    for seed in 0..40 {
        let (sim, node) = world(seed);
        let id = sim.run(node, 0, async move {
            let store = open().await;
            let id = store.create(summed("v", MIB)).await.unwrap().id;
            let device = attach(&store, id).await;
            write(&device, 0, &sectors(1, 2048)).await.unwrap();
            device.flush().await.unwrap();
            id
        });
        let mut rng = Rng::new(seed);
        let part = rng.next_u64();
        let _cut = sim.spawn(node, 0, async move {
            let mut rng = Rng::new(part);
            let store = open().await;
            let device = attach(&store, id).await;
            for stamp in 2.. {
                let (first, count) = (rng.below(250), 1 + rng.below(6));
                let bytes = sectors(stamp, 8 * count as usize);
                write(&device, first * 4096, &bytes).await.unwrap();
                if rng.below(40) == 0 {
                    device.flush().await.unwrap();
                }
            }
        });
        sim.run_for(Duration::from_micros(5_000 + rng.below(40_000)));
        restart(&sim, node, seed % 4 == 0);
        let seen = sim.run(node, 0, async move {
            let store = open().await;
            let seen = all(&attach(&store, id).await).await;
            assert_eq!(scrub(&store, id).await.errors, 0);
            audit(&store).await;
            seen
        });
        for block in seen.chunks(8) {
            assert!(
                block.iter().all(|stamp| *stamp == block[0]),
                "seed {seed}: {block:?}"
            );
            old_and_new.insert(block[0] > 1);
        }
    }
    assert_eq!(
        old_and_new.len(),
        2,
        "something was written, and something not"
    );
}

#[test]
fn a_write_never_goes_where_the_block_is_or_was_flushed() {
    let (sim, node) = world(6);
    sim.run(node, 0, async move {
        let store = open().await;
        let id = store.create(summed("v", MIB)).await.unwrap().id;
        let device = attach(&store, id).await;
        write(&device, 0, &sectors(1, 128)).await.unwrap();
        device.flush().await.unwrap();
        let mut flushed = place(&store, id, 8192);
        for round in 0..40 {
            let before = place(&store, id, 8192);
            write(&device, 8192, &sectors(round, 8)).await.unwrap();
            let now = place(&store, id, 8192);
            assert!(now != before && now != flushed);
            if round % 3 == 0 {
                device.flush().await.unwrap();
                flushed = now;
            }
        }
        // What is overwritten before a flush has it leaves nothing behind.
        for round in 0..40 {
            write(&device, 8192, &sectors(round, 8)).await.unwrap();
        }
        {
            let space = store.inner.data.space.borrow();
            let used = (0..space.count()).filter(|cluster| space.references(*cluster) > 0);
            assert!(used.count() <= 4);
        }
        device.flush().await.unwrap();
        audit(&store).await;
    });
}

#[test]
fn scrubs_in_the_background_pass_by_at_their_speed_and_find_what_is_damaged() {
    let (sim, node) = world(7);
    let disk = sim.disk(node);
    sim.run(node, 0, async move {
        let config = VolumeConfig {
            scrub_bytes_per_s: 256 << 10,
            ..config()
        };
        let store = open_with(&config).await.unwrap();
        store.create(new_volume("plain", MIB)).await.unwrap();
        let id = store.create(summed("v", MIB)).await.unwrap().id;
        let device = attach(&store, id).await;
        write(&device, 0, &sectors(1, 2048)).await.unwrap();
        device.flush().await.unwrap();
        while store.scrub_status().passes < 2 {
            engine::sleep(Duration::from_secs(1)).await;
        }
        let begun = engine::now();
        let status = store.scrub_status();
        assert_eq!((status.errors, status.bytes), (0, MIB));
        disk.flip_bit(DATA, place(&store, id, 5 * 64 * KIB));
        while store.scrub_status().passes < 3 {
            engine::sleep(Duration::from_millis(100)).await;
        }
        assert!(engine::now().since(begun) >= Duration::from_secs(4));
        let status = store.scrub_status();
        assert_eq!((status.errors, status.damaged[0].offset), (1, 5 * 64 * KIB));
        let plain = store.find("me", "plain").unwrap();
        assert!(matches!(
            store.scrub(plain, 0).await,
            Err(VolumeError::Invalid { .. })
        ));
        drop(device);
        store.close().await.unwrap();
    });
}

#[test]
fn a_full_disk_refuses_writes_and_damages_nothing() {
    let (sim, node) = world(8);
    let disk = sim.disk(node);
    let id = sim.run(node, 0, async move {
        let store = open().await;
        let id = store.create(summed("v", 64 * MIB)).await.unwrap().id;
        let device = attach(&store, id).await;
        write(&device, 0, &sectors(1, 2048)).await.unwrap();
        device.flush().await.unwrap();
        disk.set_capacity(disk.used_bytes() + 3 * MIB);
        let mut refused = 0;
        for at in 0..64_u64 {
            match write(&device, at * MIB / 2, &sectors(2, 512)).await {
                Ok(()) => {}
                Err(BlockError::Full) => refused += 1,
                Err(error) => panic!("{error}"),
            }
        }
        assert!(refused > 0);
        read(&device, 0, MIB as usize).await.unwrap();
        assert_eq!(scrub(&store, id).await.errors, 0);
        device.discard(0, 64 * MIB).await.unwrap();
        device.flush().await.unwrap();
        write(&device, 0, &sectors(3, 8)).await.unwrap();
        device.flush().await.unwrap();
        id
    });
    restart(&sim, node, false);
    sim.run(node, 0, async move {
        let store = open().await;
        let device = attach(&store, id).await;
        assert_eq!(stamps(&read(&device, 0, 4096).await.unwrap()), [3; 8]);
        assert_eq!(scrub(&store, id).await.errors, 0);
        assert_eq!(store.scrub_status().read_errors, 0);
    });
}

#[test]
fn a_failed_write_or_sync_of_checksums_ends_writing_and_a_restart_has_them() {
    for sync in [false, true] {
        let (sim, node) = world(9);
        let disk = sim.disk(node);
        let id = sim.run(node, 0, async move {
            let store = open().await;
            let id = store.create(summed("v", MIB)).await.unwrap().id;
            let device = attach(&store, id).await;
            write(&device, 0, &sectors(1, 2048)).await.unwrap();
            device.flush().await.unwrap();
            write(&device, 4096, &sectors(2, 8)).await.unwrap();
            store.inner.checkpoints.ended().await;
            if sync {
                disk.fail_next_sync();
            } else {
                disk.fail_next_write();
            }
            let failed = store.inner.sums.sync().await;
            assert!(
                matches!(failed, Err(VolumeError::Poisoned(_))),
                "{failed:?}"
            );
            assert!(write(&device, 0, &sectors(3, 8)).await.is_err());
            assert!(device.flush().await.is_err());
            assert_eq!(stamps(&read(&device, 4096, 512).await.unwrap()), [2]);
            id
        });
        restart(&sim, node, true);
        sim.run(node, 0, async move {
            let store = open().await;
            let seen = all(&attach(&store, id).await).await;
            assert_eq!(seen[8..16], [2; 8]);
            assert_eq!(scrub(&store, id).await.errors, 0);
        });
    }
}

#[test]
fn pages_of_checksums_are_bounded() {
    let (sim, node) = world(10);
    sim.run(node, 0, async move {
        let store = open().await;
        let id = store.create(summed("v", 64 * MIB)).await.unwrap().id;
        let device = attach(&store, id).await;
        for round in 1..3 {
            for at in 0..64 {
                let wrote = write(&device, at * MIB, &sectors(round, 8)).await;
                wrote.unwrap();
            }
            device.flush().await.unwrap();
        }
        write(&device, 0, &vec![1; 32 * MIB as usize])
            .await
            .unwrap();
        device.flush().await.unwrap();
        let bytes = read(&device, 0, 32 * MIB as usize).await.unwrap();
        assert!(bytes.iter().all(|byte| *byte == 1));
        read(&device, 40 * MIB, 4096).await.unwrap();
        let (pages, dirty) = store.inner.sums.pages();
        // Two, and one more for each of those that were at it together.
        assert!(
            pages <= 6 && dirty <= 4,
            "{pages} pages, {dirty} of them dirty"
        );
        let space = store.inner.data.space.borrow();
        assert!(space.count() > 9 * crate::sums::file::PAGE_CLUSTERS);
    });
}
