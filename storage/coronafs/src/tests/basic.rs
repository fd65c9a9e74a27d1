//! What a volume does while nothing goes wrong.

use futures_util::future::{join, join_all};

use super::*;
use crate::partition::{Claim, For};
use crate::record::Change;

/// Runs a test on an open partition.
fn with<F: Future + 'static>(seed: u64, test: impl FnOnce(Partition) -> F + 'static) -> F::Output {
    let (sim, node) = world(seed);
    sim.run(node, 0, async move { test(open().await).await })
}

#[test]
fn a_volume_is_made_listed_renamed_and_deleted() {
    with(1, |store| async move {
        let made = store.create(new_volume("one", MIB)).await.unwrap();
        let other = store.create(new_volume("two", 4096)).await.unwrap();
        assert_eq!(
            (made.name.as_str(), made.bytes, made.mapped_bytes),
            ("one", MIB, 0)
        );
        let taken = store.create(new_volume("one", MIB)).await;
        assert_eq!(taken.unwrap_err(), VolumeError::NameTaken("one".into()));
        for wrong in [
            new_volume("", MIB),
            new_volume("a/b", MIB),
            new_volume("c", 4095),
        ] {
            let refused = store.create(wrong).await.unwrap_err();
            assert!(matches!(refused, VolumeError::Invalid { .. }), "{refused}");
        }
        store.rename(made.id, "three".into()).await.unwrap();
        assert_eq!(store.find("me", "one"), None);
        assert_eq!(store.find("me", "three"), Some(made.id));
        let names: Vec<_> = store
            .list(VolumeId(0), 9)
            .into_iter()
            .map(|v| v.name)
            .collect();
        assert_eq!(names, ["three", "two"]);
        assert_eq!(store.list(made.id, 1).len(), 1);
        let mut theirs = new_volume("aaa", MIB);
        theirs.owner = "you".into();
        store.create(theirs).await.unwrap();
        let by_name = |owner, after: (&str, &str), count| -> Vec<String> {
            let after = (after.0.to_owned(), after.1.to_owned());
            let listed = store.list_by_name(owner, &after, count).into_iter();
            listed.map(|v| format!("{}/{}", v.owner, v.name)).collect()
        };
        let all = ["me/three", "me/two", "you/aaa"];
        assert_eq!(by_name(None, ("", ""), 9), all);
        assert_eq!(by_name(None, ("me", "three"), 1), all[1..2]);
        assert_eq!(by_name(Some("me"), ("", ""), 9), all[..2]);
        assert_eq!(by_name(Some("you"), ("you", "a"), 9), all[2..]);
        assert_eq!(by_name(Some("you"), ("you", "aaa"), 9), all[3..]);
        let held = attach(&store, other.id).await;
        let refused = store.delete(other.id).await.unwrap_err();
        assert_eq!(refused, VolumeError::Attached(1));
        drop(held);
        store.delete(other.id).await.unwrap();
        assert_eq!(store.stat(other.id).unwrap_err(), VolumeError::NoSuchVolume);
        assert_eq!(
            store.create(new_volume("two", 4096)).await.unwrap().id.0,
            other.id.0 + 2
        );
    });
}

#[test]
fn what_is_written_is_read_across_clusters_blocks_and_buffers() {
    with(2, |store| async move {
        let volume = store.create(new_volume("v", MIB)).await.unwrap().id;
        let device = attach(&store, volume).await;
        assert_eq!(
            read(&device, 0, MIB as usize).await.unwrap(),
            vec![0; MIB as usize]
        );
        let mut model = vec![0; 2048];
        // Inside of a block, across blocks, across clusters, whole, and over what is there.
        let writes = [
            (3, 2),
            (7, 2),
            (120, 300),
            (1024, 512),
            (0, 4),
            (1000, 100),
            (2047, 1),
        ];
        for (number, (first, count)) in writes.into_iter().enumerate() {
            let stamp = number as u64 + 1;
            let list = list_of(&sectors(stamp, count), if number % 2 == 0 { 0 } else { 24 });
            device.write(first as u64 * 512, list, false).await.unwrap();
            model[first..first + count].fill(stamp);
            assert_eq!(
                stamps(&read(&device, 0, MIB as usize).await.unwrap()),
                model
            );
        }
        for (first, count) in [(121, 7), (128, 128), (130, 300), (0, 2048)] {
            let bytes = read(&device, first as u64 * 512, count * 512)
                .await
                .unwrap();
            assert_eq!(stamps(&bytes), model[first..first + count]);
        }
        assert!(store.stat(volume).unwrap().mapped_bytes >= 800 * 512);
        audit(&store).await;
    });
}

#[test]
fn a_request_that_does_not_fit_the_volume_is_refused() {
    with(3, |store| async move {
        let volume = store.create(new_volume("v", 64 * KIB)).await.unwrap().id;
        let device = attach(&store, volume).await;
        let far = write(&device, 64 * KIB - 512, &sectors(1, 2)).await;
        assert!(matches!(far, Err(BlockError::OutOfRange { .. })));
        let odd = read(&device, 100, 512).await;
        assert!(matches!(odd, Err(BlockError::Misaligned { .. })));
        let reader = Attach {
            access: Access::ReadOnly,
            take_over: false,
        };
        let reader = store.attach(volume, reader).await.unwrap();
        assert!(reader.geometry().read_only);
        let refused = write(&reader, 0, &sectors(1, 1)).await;
        assert!(matches!(refused, Err(BlockError::ReadOnly)));
        write(&device, 0, &sectors(9, 1)).await.unwrap();
        assert_eq!(stamps(&read(&reader, 0, 512).await.unwrap()), [9]);
    });
}

#[test]
fn a_disk_with_large_sectors_makes_volumes_with_large_sectors() {
    let (sim, node) = world(9);
    sim.configure(|config| config.direct_align = 4096);
    sim.run(node, 0, async {
        let store = open().await;
        let volume = store.create(new_volume("v", MIB)).await.unwrap().id;
        let device = attach(&store, volume).await;
        assert_eq!(device.geometry().block_bytes, 4096);
        let odd = write(&device, 512, &sectors(1, 1)).await;
        assert!(matches!(odd, Err(BlockError::Misaligned { .. })));
        let list = list_of(&sectors(1, 16), 512);
        device.write(4096, list, true).await.unwrap();
        assert_eq!(stamps(&read(&device, 8192, 4096).await.unwrap()), [1; 8]);
    });
}

#[test]
fn discarded_and_zeroed_ranges_read_as_zeros_and_free_clusters() {
    with(4, |store| async move {
        let volume = store.create(new_volume("v", MIB)).await.unwrap().id;
        let device = attach(&store, volume).await;
        write(&device, 0, &sectors(5, 2048)).await.unwrap();
        device.flush().await.unwrap();
        assert_eq!(store.stat(volume).unwrap().mapped_bytes, MIB);
        let free = || store.inner.data.space.borrow().free_count();
        let before = free();
        let mut model = vec![5; 2048];
        // Only whole blocks are discarded.
        device.discard(512, 300 * 512).await.unwrap();
        model[8..296].fill(0);
        device
            .write_zeroes(1001 * 512, 600 * 512, true, false)
            .await
            .unwrap();
        model[1001..1601].fill(0);
        device
            .write_zeroes(1700 * 512, 512, false, true)
            .await
            .unwrap();
        model[1700] = 0;
        assert_eq!(
            stamps(&read(&device, 0, MIB as usize).await.unwrap()),
            model
        );
        device.flush().await.unwrap();
        // Clusters 1, and 8 to 11, have nothing left.
        assert_eq!(free() - before, 5);
        device.discard(0, MIB).await.unwrap();
        device.flush().await.unwrap();
        assert_eq!(store.stat(volume).unwrap().mapped_bytes, 0);
        audit(&store).await;
    });
}

#[test]
fn a_flush_survives_a_crash_and_a_restart_finds_everything() {
    let (sim, node) = world(5);
    let id = sim.run(node, 0, async {
        let store = open().await;
        let volume = store.create(new_volume("v", MIB)).await.unwrap().id;
        let device = attach(&store, volume).await;
        write(&device, 4096, &sectors(7, 200)).await.unwrap();
        device.flush().await.unwrap();
        let list = list_of(&sectors(8, 3), 0);
        device.write(512 * 1024, list, true).await.unwrap();
        volume
    });
    for _ in 0..2 {
        sim.crash(node);
        sim.start(node, engine_config()).unwrap();
        sim.run(node, 0, async move {
            let store = open().await;
            let device = attach(&store, id).await;
            let all = stamps(&read(&device, 0, MIB as usize).await.unwrap());
            let mut model = vec![0; 2048];
            model[8..208].fill(7);
            model[1024..1027].fill(8);
            assert_eq!(all, model);
            assert_eq!(store.stat(id).unwrap().mapped_bytes, 26 * 4096);
            audit(&store).await;
        });
    }
    let generation = sim.run(node, 0, async move {
        let store = open_with(&VolumeConfig::default()).await;
        // The first of this life's, behind those of three lives before.
        let store = store.unwrap();
        let generation = attach(&store, id).await.generation();
        store.close().await.unwrap();
        drop(store);
        let again = open().await;
        assert_eq!(attach(&again, id).await.generation(), generation + 1);
        generation
    });
    assert_eq!(generation, 4);
}

#[test]
fn a_second_writer_is_refused_or_takes_over_and_then_the_first_is_fenced() {
    with(6, |store| async move {
        let volume = store.create(new_volume("v", MIB)).await.unwrap().id;
        let first = attach(&store, volume).await;
        let refused = store.attach(volume, WRITER).await.unwrap_err();
        assert_eq!(refused, VolumeError::Attached(1));
        let shared = Attach {
            access: Access::Shared,
            take_over: false,
        };
        assert!(store.attach(volume, shared).await.is_err());
        let over = Attach {
            take_over: true,
            ..WRITER
        };
        write(&first, 0, &sectors(1, 8)).await.unwrap();
        let second = store.attach(volume, over).await.unwrap();
        assert_eq!(second.generation(), 2);
        let fenced = |done: Result<(), BlockError>| matches!(done, Err(BlockError::Fenced));
        assert!(fenced(write(&first, 0, &sectors(2, 8)).await));
        assert!(fenced(first.flush().await));
        assert!(fenced(first.discard(0, 4096).await));
        assert!(read(&first, 0, 512).await.is_err());
        assert_eq!(stamps(&read(&second, 0, 512).await.unwrap()), [1]);
        drop(second);
        // Both sides of a migration.
        let from = store.attach(volume, shared).await.unwrap();
        let to = store.attach(volume, shared).await.unwrap();
        write(&from, 0, &sectors(3, 1)).await.unwrap();
        write(&to, 512, &sectors(4, 1)).await.unwrap();
        assert_eq!(stamps(&read(&from, 0, 1024).await.unwrap()), [3, 4]);
        drop((first, from, to));
        attach(&store, volume).await;
    });
}

#[test]
fn a_volume_grows_while_it_is_attached_and_shrinks_only_to_its_data() {
    with(7, |store| async move {
        let volume = store.create(new_volume("v", MIB)).await.unwrap().id;
        let device = attach(&store, volume).await;
        write(&device, MIB - 4096, &sectors(1, 8)).await.unwrap();
        let changed = device.changed();
        let grown = store.resize(volume, 16 * MIB).await.unwrap();
        changed.await;
        assert_eq!((grown.bytes, device.geometry().bytes), (16 * MIB, 16 * MIB));
        write(&device, 16 * MIB - 512, &sectors(2, 1))
            .await
            .unwrap();
        let refused = store.resize(volume, 8 * MIB).await.unwrap_err();
        assert_eq!(refused, VolumeError::InUse(16 * MIB));
        device.discard(8 * MIB, 8 * MIB).await.unwrap();
        store.resize(volume, MIB).await.unwrap();
        let refused = store.resize(volume, MIB - 4096).await.unwrap_err();
        assert_eq!(refused, VolumeError::InUse(MIB));
        // What is added again has nothing of what was there.
        store.resize(volume, 16 * MIB).await.unwrap();
        assert_eq!(
            stamps(&read(&device, 16 * MIB - 512, 512).await.unwrap()),
            [0]
        );
        device.flush().await.unwrap();
        audit(&store).await;
    });
}

#[test]
fn a_cluster_that_is_written_and_discarded_in_turns_takes_little() {
    with(13, |store| async move {
        let volume = store.create(new_volume("v", MIB)).await.unwrap().id;
        let device = attach(&store, volume).await;
        let most = config().dirty_slots_max;
        for _ in 0..10 * most {
            write(&device, 0, &sectors(1, 128)).await.unwrap();
            device.discard(0, 64 * KIB).await.unwrap();
            assert!(device.volume.uncommitted() <= most);
        }
        let clusters = store.inner.data.space.borrow().count() as usize;
        assert!(clusters <= 3 * most, "{clusters} clusters");
        audit(&store).await;
    });
}

/// An attaching that a closing has overtaken is not live, whoever detaches meanwhile.
#[test]
fn nothing_makes_an_attachment_live_again() {
    with(14, |store| async move {
        let volume = store.create(new_volume("v", MIB)).await.unwrap().id;
        let reader = Attach {
            access: Access::ReadOnly,
            take_over: false,
        };
        let first = store.attach(volume, reader).await.unwrap();
        let second = store.attach(volume, reader).await.unwrap();
        for holder in &*second.volume.holders.borrow() {
            holder.live.set(holder.generation == first.generation());
        }
        drop(first);
        assert_eq!(second.check_live(), Err(VolumeError::Fenced));
    });
}

#[test]
fn the_logs_reserve_is_for_records_that_give_space_back() {
    with(15, |store| async move {
        let volume = store.create(new_volume("v", MIB)).await.unwrap().id;
        let device = attach(&store, volume).await;
        let claims = || {
            let captured = device.volume.capture();
            (captured.claim(For::Order), captured.claim(For::Space))
        };
        write(&device, 0, &sectors(1, 256)).await.unwrap();
        assert_eq!(claims(), (Claim::Ordinary, Claim::Ordinary));
        device.discard(0, 64 * KIB).await.unwrap();
        assert_eq!(claims(), (Claim::Ordinary, Claim::Reserved));
        device.flush().await.unwrap();
        device.discard(64 * KIB, 4096).await.unwrap();
        assert_eq!(claims(), (Claim::Ordinary, Claim::Ordinary));
        device.flush().await.unwrap();
        device.discard(0, MIB).await.unwrap();
        assert_eq!(claims(), (Claim::Reserved, Claim::Reserved));
        device.flush().await.unwrap();
        audit(&store).await;
    });
}

#[test]
fn what_a_shrink_cut_off_does_not_come_back_after_a_power_cut() {
    let (sim, node) = world(12);
    let id = sim.run(node, 0, async {
        let store = open().await;
        let volume = store.create(new_volume("v", 16 * MIB)).await.unwrap().id;
        let device = attach(&store, volume).await;
        write(&device, 15 * MIB, &sectors(1, 128)).await.unwrap();
        device.flush().await.unwrap();
        device.discard(15 * MIB, MIB).await.unwrap();
        store.resize(volume, 8 * MIB).await.unwrap();
        volume
    });
    sim.crash(node);
    sim.start(node, engine_config()).unwrap();
    sim.run(node, 0, async move {
        let store = open().await;
        assert_eq!(store.stat(id).unwrap().bytes, 8 * MIB);
        store.resize(id, 16 * MIB).await.unwrap();
        let device = attach(&store, id).await;
        let seen = stamps(&read(&device, 15 * MIB, 64 << 10).await.unwrap());
        assert_eq!(seen, [0; 128]);
        audit(&store).await;
    });
}

/// A commit that began before the volume was gone, and gets its turn behind that.
#[test]
fn a_late_commit_of_a_volume_that_is_deleted_leaves_a_partition_that_opens() {
    let (sim, node) = world(11);
    let kept = sim.run(node, 0, async {
        let store = open().await;
        let kept = store.create(new_volume("kept", MIB)).await.unwrap().id;
        let gone = store.create(new_volume("gone", MIB)).await.unwrap().id;
        let device = attach(&store, gone).await;
        write(&device, 0, &sectors(1, 256)).await.unwrap();
        drop(device);
        let volume = store.inner.volume(gone).unwrap();
        let late = async {
            while volume.commits.free() > 0 {
                engine::yield_now().await;
            }
            assert!(volume.durable() < volume.done() && store.stat(gone).is_ok());
            store.inner.commit(&volume).await
        };
        let done = futures_util::future::join(store.delete(gone), late).await;
        assert_eq!(done, (Ok(()), Ok(())));
        let device = attach(&store, kept).await;
        write(&device, 0, &sectors(2, 1)).await.unwrap();
        device.flush().await.unwrap();
        audit(&store).await;
        kept
    });
    sim.crash(node);
    sim.start(node, engine_config()).unwrap();
    sim.run(node, 0, async move {
        let store = open().await;
        let names: Vec<_> = store
            .list(VolumeId(0), 9)
            .into_iter()
            .map(|v| v.name)
            .collect();
        assert_eq!(names, ["kept"]);
        let device = attach(&store, kept).await;
        assert_eq!(stamps(&read(&device, 0, 512).await.unwrap()), [2]);
        audit(&store).await;
    });
}

/// Partitions were written in which a volume's records stand behind its end.
#[test]
fn a_map_of_a_removed_volume_is_passed_over_and_one_of_no_volume_refused() {
    let mut state = crate::state::State::default();
    let create = |id| Change::Create {
        id: VolumeId(id),
        bytes: MIB,
        created_ms: 0,
        owner: "me".into(),
        name: format!("v{id}"),
        key: None,
        image: None,
        checksums: false,
    };
    let map = |id| Change::Map {
        volume: VolumeId(id),
        slots: vec![(0, Vec::new())],
    };
    let snapshot = Change::Snapshot {
        id: SnapshotId(3),
        volume: VolumeId(2),
        created_ms: 0,
        name: "s".into(),
    };
    let delete = Change::Delete { id: VolumeId(1) };
    for change in [create(1), create(2), snapshot, map(1), delete, map(1)] {
        state.apply(change, None).unwrap();
    }
    assert!(state.apply(map(3), None).is_err(), "a snapshot's");
    assert!(state.apply(map(4), None).is_err(), "nobody's");
}

#[test]
fn a_shard_opens_its_partitions_and_a_number_says_which_one() {
    let (sim, node) = world(10);
    sim.run(node, 0, async {
        engine::fs::create_dir_all(ROOT).await.unwrap();
        engine::fs::sync_dir("/").await.unwrap();
        let map = shards::placement::PlacementMap::spread(3, 1);
        let open = || async { VolumeShard::open(Path::new(ROOT), &config(), &map).await };
        let shard = open().await.unwrap();
        let mut made = Vec::new();
        for number in 0..12 {
            let name = format!("v{number}");
            let at = partition_for(&map, "me", &name);
            let store = shard.partition(at).unwrap();
            let id = store.create(new_volume(&name, MIB)).await.unwrap().id;
            assert_eq!(id.partition(), at);
            made.push((id, name));
        }
        assert!(shard.partition(PartitionId(3)).is_err());
        shard.close().await.unwrap();
        drop(shard);
        let shard = open().await.unwrap();
        for (id, name) in made {
            let store = shard.partition(id.partition()).unwrap();
            assert_eq!(store.stat(id).unwrap().name, name);
        }
        let all = shard
            .partitions()
            .map(|store| store.list(VolumeId(0), 99).len());
        let all: Vec<_> = all.collect();
        assert!(
            all.iter().sum::<usize>() == 12 && !all.contains(&12),
            "{all:?}"
        );
    });
}

#[test]
fn limits_hold_a_volume_back_and_survive() {
    let (sim, node) = world(8);
    let id = sim.run(node, 0, async {
        let store = open().await;
        let volume = store.create(new_volume("v", MIB)).await.unwrap().id;
        let limits = Limits {
            ops_per_s: 100,
            ..Limits::default()
        };
        store.limit(volume, limits).await.unwrap();
        let device = attach(&store, volume).await;
        let begin = engine::now();
        for _ in 0..11 {
            write(&device, 0, &sectors(1, 1)).await.unwrap();
        }
        let took = engine::now().since(begin);
        assert!(
            (100..120).contains(&took.as_millis()),
            "{took:?} by the virtual clock"
        );
        volume
    });
    sim.crash(node);
    sim.start(node, engine_config()).unwrap();
    sim.run(node, 0, async move {
        let store = open().await;
        assert_eq!(store.stat(id).unwrap().limits.ops_per_s, 100);
    });
}

#[test]
fn requests_that_limits_hold_back_begin_when_they_are_hurried_and_are_owed() {
    let (sim, node) = world(9);
    sim.run(node, 0, async {
        let store = open().await;
        let volume = store.create(new_volume("v", MIB)).await.unwrap().id;
        let limits = Limits {
            ops_per_s: 1,
            ..Limits::default()
        };
        store.limit(volume, limits).await.unwrap();
        let device = attach(&store, volume).await;
        let begin = engine::now();
        let took = || engine::now().since(begin).as_millis();
        let sectors = sectors(1, 1);
        let writes = (0..10).map(|_| write(&device, 0, &sectors));
        let hurry = async { device.hurry() };
        let (done, ()) = join(join_all(writes), hurry).await;
        assert!(done.iter().all(Result::is_ok));
        assert!(took() < 1000, "{} ms", took());
        write(&device, 0, &sectors).await.unwrap();
        assert!(took() >= 10_000, "{} ms", took());
    });
}
