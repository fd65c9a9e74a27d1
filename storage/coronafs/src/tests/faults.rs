//! A disk that fails or fills up.

use futures_util::future::{Either, select};

use super::*;

#[test]
fn a_failed_flush_ends_writing_says_why_and_leaves_reading() {
    let (sim, node) = world(1);
    let disk = sim.disk(node);
    let (id, cause) = sim.run(node, 0, async move {
        let store = open().await;
        let volume = store.create(new_volume("v", MIB)).await.unwrap().id;
        let device = attach(&store, volume).await;
        write(&device, 0, &sectors(1, 64)).await.unwrap();
        device.flush().await.unwrap();
        write(&device, 0, &sectors(2, 64)).await.unwrap();
        disk.fail_next_sync();
        assert!(matches!(device.flush().await, Err(BlockError::Io(_))));
        // Nobody retries into success.
        assert!(device.flush().await.is_err());
        assert!(write(&device, 0, &sectors(3, 1)).await.is_err());
        assert!(store.snapshot(volume, "s".into()).await.is_err());
        assert_eq!(stamps(&read(&device, 0, 512).await.unwrap()), [2]);
        (volume, store.poisoned().unwrap())
    });
    assert!(cause.contains("sync"), "{cause}");
    sim.crash(node);
    sim.start(node, engine_config()).unwrap();
    sim.run(node, 0, async move {
        let store = open().await;
        assert_eq!(store.poisoned(), None);
        let device = attach(&store, id).await;
        let all = stamps(&read(&device, 0, 64 * 512).await.unwrap());
        assert!(all.iter().all(|stamp| [1, 2].contains(stamp)), "{all:?}");
        write(&device, 0, &sectors(3, 1)).await.unwrap();
        device.flush().await.unwrap();
    });
}

#[test]
fn a_failed_write_ends_writing_and_a_failed_read_does_not() {
    let (sim, node) = world(2);
    let disk = sim.disk(node);
    sim.run(node, 0, async move {
        let store = open().await;
        let volume = store.create(new_volume("v", MIB)).await.unwrap().id;
        let device = attach(&store, volume).await;
        write(&device, 0, &sectors(1, 64)).await.unwrap();
        disk.fail_next_read();
        assert!(read(&device, 0, 512).await.is_err());
        assert_eq!(stamps(&read(&device, 0, 512).await.unwrap()), [1]);
        disk.fail_next_write();
        assert!(write(&device, 4096, &sectors(2, 8)).await.is_err());
        assert!(device.flush().await.is_err());
        assert!(store.poisoned().is_some());
    });
}

/// The process ends, not the machine: what it wrote is seen, and in the disk's cache.
#[test]
fn what_a_life_before_wrote_is_durable_when_a_flush_returns() {
    let (sim, node) = world(5);
    let id = sim.run(node, 0, async move {
        let store = open().await;
        let volume = store.create(new_volume("v", MIB)).await.unwrap().id;
        let device = attach(&store, volume).await;
        write(&device, 0, &sectors(1, 2048)).await.unwrap();
        device.flush().await.unwrap();
        write(&device, 0, &sectors(2, 2048)).await.unwrap();
        volume
    });
    sim.stop(node);
    sim.start(node, engine_config()).unwrap();
    sim.run(node, 0, async move {
        let store = open().await;
        let device = attach(&store, id).await;
        let seen = stamps(&read(&device, 0, MIB as usize).await.unwrap());
        assert_eq!(seen, [2; 2048]);
        device.flush().await.unwrap();
    });
    sim.crash(node);
    sim.start(node, engine_config()).unwrap();
    sim.run(node, 0, async move {
        let store = open().await;
        let device = attach(&store, id).await;
        let seen = stamps(&read(&device, 0, MIB as usize).await.unwrap());
        assert_eq!(seen, [2; 2048]);
    });
}

#[test]
fn a_write_that_is_dropped_in_flight_ends_writing() {
    let (sim, node) = world(7);
    sim.run(node, 0, async move {
        let store = open().await;
        let volume = store.create(new_volume("v", MIB)).await.unwrap().id;
        let device = attach(&store, volume).await;
        write(&device, 0, &sectors(1, 128)).await.unwrap();
        // In place: the kernel has it at once.
        let bytes = sectors(2, 128);
        let going = Box::pin(write(&device, 0, &bytes));
        let cut = select(going, Box::pin(engine::yield_now())).await;
        assert!(matches!(cut, Either::Right(_)));
        assert_eq!(store.poisoned(), None);
        drop(cut);
        let cause = store.poisoned().unwrap();
        assert!(cause.contains("dropped"), "{cause}");
        assert!(write(&device, 0, &sectors(3, 1)).await.is_err());
        assert!(device.flush().await.is_err());
        assert!(read(&device, 0, 512).await.is_ok());
    });
}

#[test]
fn a_full_disk_refuses_loses_nothing_and_recovers() {
    let (sim, node) = world(3);
    let disk = sim.disk(node);
    let id = sim.run(node, 0, async move {
        let store = open().await;
        let volume = store.create(new_volume("v", 64 * MIB)).await.unwrap().id;
        let device = attach(&store, volume).await;
        write(&device, 0, &sectors(1, 2048)).await.unwrap();
        device.flush().await.unwrap();
        disk.set_capacity(disk.used_bytes() + 3 * MIB);
        let mut written = 0;
        let full = loop {
            match write(&device, MIB + written, &sectors(2, 128)).await {
                Ok(()) => written += 64 * KIB,
                Err(error) => break error,
            }
        };
        assert!(matches!(full, BlockError::Full), "{full}");
        assert!(written >= 2 * MIB, "{written} bytes fitted");
        // What is there can be written over, and what is given back used again, without more space.
        write(&device, 0, &sectors(3, 128)).await.unwrap();
        device.discard(MIB, 512 * KIB).await.unwrap();
        write(&device, 32 * MIB, &sectors(4, 128)).await.unwrap();
        device.flush().await.unwrap();
        assert_eq!(store.poisoned(), None);
        disk.set_capacity(1 << 40);
        write(&device, 40 * MIB, &sectors(5, 2048)).await.unwrap();
        device.flush().await.unwrap();
        audit(&store).await;
        volume
    });
    sim.crash(node);
    sim.start(node, engine_config()).unwrap();
    sim.run(node, 0, async move {
        let store = open().await;
        let device = attach(&store, id).await;
        let stamp = async |offset| stamps(&read(&device, offset, 512).await.unwrap())[0];
        assert_eq!(stamp(0).await, 3);
        assert_eq!(stamp(64 * KIB).await, 1);
        assert_eq!(stamp(MIB).await, 0);
        assert_eq!(stamp(MIB + 512 * KIB).await, 2);
        assert_eq!(stamp(32 * MIB).await, 4);
        assert_eq!(stamp(41 * MIB - 512).await, 5);
        audit(&store).await;
    });
}

#[test]
fn a_partition_opens_on_a_full_disk() {
    for align in [512, 4096] {
        let (sim, node) = world(6);
        sim.configure(|config| config.direct_align = align);
        let disk = sim.disk(node);
        let id = sim.run(node, 0, async move {
            let store = open().await;
            let volume = store.create(new_volume("v", MIB)).await.unwrap().id;
            let device = attach(&store, volume).await;
            assert_eq!(u64::from(device.geometry().block_bytes), align);
            write(&device, 0, &sectors(1, 2048)).await.unwrap();
            device.flush().await.unwrap();
            volume
        });
        sim.crash(node);
        disk.set_capacity(disk.used_bytes());
        sim.start(node, engine_config()).unwrap();
        sim.run(node, 0, async move {
            let store = open().await;
            let device = attach(&store, id).await;
            assert_eq!(u64::from(device.geometry().block_bytes), align);
            let seen = stamps(&read(&device, 0, MIB as usize).await.unwrap());
            assert_eq!(seen, [1; 2048]);
            write(&device, 0, &sectors(2, 2048)).await.unwrap();
            device.flush().await.unwrap();
        });
    }
}

#[test]
fn a_checkpoint_that_has_no_space_is_not_tried_at_every_record() {
    let (sim, node) = world(10);
    let disk = sim.disk(node);
    sim.run(node, 0, async move {
        // Many records to an eighth of it.
        let config = VolumeConfig {
            checkpoint_log_bytes: 4 << 10,
            ..config()
        };
        let store = open_with(&config).await.unwrap();
        let checkpoints = &store.inner.checkpoints;
        let volume = store.create(new_volume("v", MIB)).await.unwrap().id;
        let rename = async |to: String| {
            store.rename(volume, to).await.unwrap();
            checkpoints.ended().await;
        };
        let tried = || checkpoints.next.get() - 1;
        let due = config.checkpoint_log_bytes;
        let mut number = 0;
        while checkpoints.log_bytes.get() < due - 256 {
            number += 1;
            rename(format!("v{number:099}")).await;
        }
        assert_eq!(tried(), 0);
        disk.set_capacity(disk.used_bytes());
        for number in 0..30 {
            rename(format!("w{number:099}")).await;
        }
        let behind = checkpoints.log_bytes.get() - due;
        let tried = tried();
        assert!((2..30).contains(&tried), "{tried} tries in {behind} bytes");
        assert!(
            tried <= 1 + behind / (due / 8),
            "{tried} tries in {behind} bytes"
        );
        disk.set_capacity(1 << 40);
        for number in 0..10 {
            rename(format!("x{number:099}")).await;
        }
        assert!(checkpoints.written.get() > 0 && checkpoints.log_bytes.get() < due);
    });
}

#[test]
fn a_damaged_checkpoint_is_named_and_not_answered_by_an_older_one() {
    let (sim, node) = world(8);
    let disk = sim.disk(node);
    let id = sim.run(node, 0, async move {
        let store = open().await;
        let volume = store.create(new_volume("v", MIB)).await.unwrap().id;
        let device = attach(&store, volume).await;
        for stamp in 1..3 {
            write(&device, 0, &sectors(stamp, 128)).await.unwrap();
            store.inner.checkpoints.ended().await;
            store.inner.checkpoint().await.unwrap();
        }
        volume
    });
    sim.crash(node);
    let named = |path: &Path| path.to_string_lossy().contains("checkpoint-");
    let files = disk.files().into_iter().map(|(path, _)| path);
    let checkpoints: Vec<_> = files.filter(|path| named(path)).collect();
    let [older, newest] = &checkpoints[..] else {
        panic!("{checkpoints:?}");
    };
    let (older, newest) = (older.clone(), newest.clone());
    let before = disk.read_file(&newest).unwrap();
    disk.flip_bit(&newest, before.len() as u64 / 2);
    sim.start(node, engine_config()).unwrap();
    let name = newest.file_name().unwrap().to_string_lossy().into_owned();
    sim.run(node, 0, async move {
        let refused = open_with(&config()).await.unwrap_err();
        assert!(matches!(refused, VolumeError::Corrupt { .. }), "{refused}");
        assert!(refused.to_string().contains(&name), "{refused}");
        // As it was; the older one does not matter.
        let options = engine::fs::OpenOptions {
            write: true,
            ..engine::fs::OpenOptions::default()
        };
        let file = engine::fs::File::open(&newest, options).await.unwrap();
        file.write_at(before, 0).await.0.unwrap();
        engine::fs::remove_file(&older).await.unwrap();
        let store = open().await;
        let device = attach(&store, id).await;
        assert_eq!(stamps(&read(&device, 0, 512).await.unwrap()), [2]);
        audit(&store).await;
    });
}

#[test]
fn freed_space_goes_back_to_the_file_system_and_is_had_again() {
    let (sim, node) = world(4);
    let disk = sim.disk(node);
    sim.run(node, 0, async move {
        let store = open().await;
        let volume = store.create(new_volume("v", 64 * MIB)).await.unwrap().id;
        let device = attach(&store, volume).await;
        for at in 0..16 {
            write(&device, at * MIB, &sectors(1, 2048)).await.unwrap();
        }
        device.flush().await.unwrap();
        let full = disk.used_bytes();
        device.discard(0, 15 * MIB).await.unwrap();
        device.flush().await.unwrap();
        audit(&store).await;
        let freed = full - disk.used_bytes();
        assert!(freed >= 12 * MIB, "{freed} bytes went back");
        // The space may be gone when it is wanted again.
        disk.set_capacity(disk.used_bytes() + MIB);
        let mut full = false;
        for at in 0..8 {
            full |= write(&device, at * MIB, &sectors(2, 2048)).await.is_err();
        }
        assert!(full && store.poisoned().is_none());
        disk.set_capacity(1 << 40);
        write(&device, 0, &sectors(3, 20480)).await.unwrap();
        device.flush().await.unwrap();
        let kept = stamps(&read(&device, 15 * MIB, MIB as usize).await.unwrap());
        assert_eq!(kept, [1; 2048]);
        let again = stamps(&read(&device, 0, 10 << 20).await.unwrap());
        assert!(again.iter().all(|stamp| *stamp == 3));
        audit(&store).await;
    });
}

#[test]
fn space_that_was_kept_is_used_when_that_of_holes_is_gone() {
    let (sim, node) = world(9);
    let disk = sim.disk(node);
    sim.run(node, 0, async move {
        let store = open().await;
        let volume = store.create(new_volume("v", 64 * MIB)).await.unwrap().id;
        let device = attach(&store, volume).await;
        for at in 0..16 {
            write(&device, at * MIB, &sectors(1, 2048)).await.unwrap();
        }
        device.flush().await.unwrap();
        device.discard(0, 15 * MIB).await.unwrap();
        audit(&store).await;
        // Too little to be given back.
        device.discard(15 * MIB, 512 * KIB).await.unwrap();
        audit(&store).await;
        let (free, surplus) = {
            let space = store.inner.data.space.borrow();
            (space.free_count(), space.surplus())
        };
        assert!((8..free).contains(&surplus), "{surplus} of {free} free");
        disk.set_capacity(disk.used_bytes());
        for at in 0..8 {
            write(&device, at * 2 * MIB, &sectors(2, 128))
                .await
                .unwrap();
        }
        assert_eq!(store.poisoned(), None);
        let seen = stamps(&read(&device, 14 * MIB, 64 << 10).await.unwrap());
        assert_eq!(seen, [2; 128]);
    });
}

/// The log is full, and so is what is kept of unflushed changes: what gives space back goes on.
#[test]
fn a_full_log_and_full_memory_refuse_writes_and_nothing_that_frees() {
    let (sim, node) = world(11);
    let disk = sim.disk(node);
    let config = VolumeConfig {
        unflushed_bytes: 0,
        dirty_slots_max: 1 << 20,
        checkpoint_log_bytes: 1 << 30,
        data_slack_bytes: 64 * MIB,
        ..config()
    };
    let again = config.clone();
    let ids = sim.run(node, 0, async move {
        let store = open_with(&config).await.unwrap();
        let rolled = store.create(new_volume("rolled", MIB)).await.unwrap().id;
        let empty = store.snapshot(rolled, "empty".into()).await.unwrap().id;
        let mut devices = Vec::new();
        for number in 0..6 {
            let made = store.create(new_volume(&format!("v{number}"), 4 * MIB));
            let device = attach(&store, made.await.unwrap().id).await;
            write(&device, 0, &sectors(1, 8192)).await.unwrap();
            device.discard(0, 4 * MIB).await.unwrap();
            device.flush().await.unwrap();
            devices.push(device);
        }
        let device = attach(&store, rolled).await;
        write(&device, 0, &sectors(1, 64)).await.unwrap();
        drop(device);
        audit(&store).await;
        disk.set_capacity(disk.used_bytes());
        for number in 0.. {
            let name = format!("w{number}");
            if store.rename(devices[0].volume(), name).await == Err(VolumeError::Full) {
                break;
            }
        }
        let blocks = (0..1024).flat_map(|block| devices.iter().map(move |device| (device, block)));
        let mut refused = None;
        for (device, block) in blocks {
            if let Err(error) = write(device, block * 4096, &sectors(2, 8)).await {
                refused = Some(error);
                break;
            }
        }
        assert!(matches!(refused, Some(BlockError::Full)), "{refused:?}");
        devices[0].discard(0, 2 * MIB).await.unwrap();
        let zeroed = devices[1].write_zeroes(512, MIB, true, false).await;
        zeroed.unwrap();
        store.rollback(rolled, empty).await.unwrap();
        assert_eq!(store.poisoned(), None);
        (devices[0].volume(), devices[1].volume(), rolled)
    });
    sim.kill(node);
    sim.start(node, engine_config()).unwrap();
    let disk = sim.disk(node);
    sim.run(node, 0, async move {
        let store = open_with(&again).await.unwrap();
        assert_eq!(store.survived(), Survived::Acknowledged);
        let (freed, zeroed, rolled) = ids;
        let stamps_of = async |id, offset, sectors: usize| {
            let device = attach(&store, id).await;
            stamps(&read(&device, offset, sectors * 512).await.unwrap())
        };
        disk.set_capacity(1 << 40);
        assert_eq!(stamps_of(freed, 0, 4096).await, vec![0; 4096]);
        assert_eq!(stamps_of(zeroed, 0, 2049).await[..2], [2, 0]);
        assert_eq!(stamps_of(rolled, 0, 2048).await, [0; 2048]);
        audit(&store).await;
    });
}
