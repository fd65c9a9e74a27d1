//! Snapshots, clones and what they share.

use super::*;

fn run<F: Future + 'static>(seed: u64, test: impl FnOnce(Partition) -> F + 'static) -> F::Output {
    let (sim, node) = world(seed);
    sim.run(node, 0, async move { test(open().await).await })
}

fn used(store: &Partition) -> u64 {
    let space = store.inner.data.space.borrow();
    u64::from(space.count()) - space.free_count()
}

async fn content(store: &Partition, of: SnapshotId) -> Vec<u64> {
    let clone = store
        .clone_snapshot(new_clone("content", of))
        .await
        .unwrap();
    let device = attach(store, clone.id).await;
    let bytes = read(&device, 0, clone.bytes as usize).await.unwrap();
    drop(device);
    store.delete(clone.id).await.unwrap();
    stamps(&bytes)
}

#[test]
fn a_snapshot_keeps_what_was_there_and_a_small_write_takes_a_block() {
    run(1, |store| async move {
        let volume = store.create(new_volume("v", MIB)).await.unwrap().id;
        let device = attach(&store, volume).await;
        write(&device, 0, &sectors(1, 2048)).await.unwrap();
        let before = store.snapshot(volume, "s1".into()).await.unwrap();
        assert_eq!(before.mapped_bytes, MIB);
        assert_eq!(used(&store), 16);
        write(&device, 512 * 9, &sectors(2, 1)).await.unwrap();
        // One cluster for the block that was filled up, which stays where it is from now on.
        assert_eq!(used(&store), 17);
        write(&device, 512 * 8, &sectors(3, 1)).await.unwrap();
        write(&device, 512 * 100, &sectors(4, 20)).await.unwrap();
        assert_eq!(used(&store), 17);
        let mut model = vec![1; 2048];
        assert_eq!(content(&store, before.id).await, model);
        model[8..10].copy_from_slice(&[3, 2]);
        model[100..120].fill(4);
        assert_eq!(
            stamps(&read(&device, 0, MIB as usize).await.unwrap()),
            model
        );
        let again = store.snapshot(volume, "s1".into()).await.unwrap_err();
        assert_eq!(again, VolumeError::NameTaken("s1".into()));
        drop(device);
        let refused = store.delete(volume).await.unwrap_err();
        assert_eq!(refused, VolumeError::HasSnapshots(1));
        audit(&store).await;
    });
}

#[test]
fn a_chain_is_cut_anywhere_and_what_others_share_stays() {
    run(2, |store| async move {
        let volume = store.create(new_volume("v", 256 * KIB)).await.unwrap().id;
        let device = attach(&store, volume).await;
        let mut models = Vec::new();
        let mut model = vec![0; 512];
        for number in 1..=12 {
            let first = (number as usize * 37) % 480;
            write(&device, first as u64 * 512, &sectors(number, 32))
                .await
                .unwrap();
            model[first..first + 32].fill(number);
            let taken = store.snapshot(volume, format!("s{number}")).await.unwrap();
            models.push((taken.id, model.clone()));
        }
        let clone = store
            .clone_snapshot(new_clone("clone", models[5].0))
            .await
            .unwrap();
        assert_eq!(clone.origin, Some(models[5].0));
        // From the middle, the front and the end.
        for gone in [5, 0, 9, 3, 7] {
            store.delete_snapshot(models.remove(gone).0).await.unwrap();
            audit(&store).await;
            for (id, model) in &models {
                assert_eq!(content(&store, *id).await, *model);
            }
        }
        for (id, _) in models {
            store.delete_snapshot(id).await.unwrap();
        }
        assert_eq!(stamps(&read(&device, 0, 256 << 10).await.unwrap()), model);
        drop(device);
        store.delete(volume).await.unwrap();
        assert!(store.stat(clone.id).unwrap().mapped_bytes > 0);
        store.delete(clone.id).await.unwrap();
        audit(&store).await;
        assert_eq!(used(&store), 0);
    });
}

#[test]
fn a_rollback_brings_a_state_back_and_needs_the_volume_detached() {
    run(3, |store| async move {
        let volume = store.create(new_volume("v", 256 * KIB)).await.unwrap().id;
        let device = attach(&store, volume).await;
        write(&device, 0, &sectors(1, 300)).await.unwrap();
        let one = store.snapshot(volume, "one".into()).await.unwrap().id;
        write(&device, 0, &sectors(2, 512)).await.unwrap();
        let two = store.snapshot(volume, "two".into()).await.unwrap().id;
        store.resize(volume, MIB).await.unwrap();
        write(&device, 512 * 1024, &sectors(3, 100)).await.unwrap();
        let refused = store.rollback(volume, one).await.unwrap_err();
        assert_eq!(refused, VolumeError::Attached(1));
        drop(device);
        store.rollback(volume, one).await.unwrap();
        assert_eq!(store.stat(volume).unwrap().bytes, 256 * KIB);
        let device = attach(&store, volume).await;
        let mut model = vec![1; 300];
        model.resize(512, 0);
        assert_eq!(stamps(&read(&device, 0, 256 << 10).await.unwrap()), model);
        write(&device, 0, &sectors(4, 1)).await.unwrap();
        device.flush().await.unwrap();
        assert_eq!(content(&store, one).await, model);
        assert_eq!(content(&store, two).await, vec![2; 512]);
        audit(&store).await;
    });
}

#[test]
fn a_diff_names_what_changed_and_nothing_that_did_not() {
    run(4, |store| async move {
        let volume = store.create(new_volume("v", 64 * MIB)).await.unwrap().id;
        let device = attach(&store, volume).await;
        write(&device, 0, &sectors(1, 64)).await.unwrap();
        write(&device, 32 * MIB, &sectors(1, 1024)).await.unwrap();
        let one = store.snapshot(volume, "one".into()).await.unwrap().id;
        write(&device, 8192, &sectors(2, 3)).await.unwrap();
        write(&device, 16 * MIB, &sectors(2, 8)).await.unwrap();
        device
            .discard(32 * MIB + 64 * KIB, 128 * KIB)
            .await
            .unwrap();
        let two = store.snapshot(volume, "two".into()).await.unwrap().id;
        let from = PointInTime::Snapshot(one);
        let (changed, next) = store.diff(from, two, 0).await.unwrap();
        let range = |offset, bytes, zero| Changed {
            offset,
            bytes,
            zero,
        };
        let wanted = [
            range(8192, 4096, false),
            range(16 * MIB, 4096, false),
            range(32 * MIB + 64 * KIB, 128 * KIB, true),
        ];
        assert_eq!((changed.as_slice(), next), (&wanted[..], None));
        let (tail, _) = store.diff(from, two, 16 * MIB).await.unwrap();
        assert_eq!(tail, wanted[1..]);
        let (same, _) = store
            .diff(PointInTime::Snapshot(two), two, 0)
            .await
            .unwrap();
        assert_eq!(same, []);
        let (all, _) = store.diff(PointInTime::Empty, one, 0).await.unwrap();
        let wanted = [range(0, 32 * KIB, false), range(32 * MIB, 512 * KIB, false)];
        assert_eq!(all, wanted);
    });
}

#[test]
fn a_thousand_snapshots_leave_a_read_one_run_and_little_to_write() {
    run(5, |store| async move {
        let volume = store.create(new_volume("v", 4 * MIB)).await.unwrap().id;
        let device = attach(&store, volume).await;
        write(&device, 0, &sectors(1, 8192)).await.unwrap();
        let records = store.inner.log.metrics().appends;
        for number in 0..1000 {
            store.snapshot(volume, format!("s{number}")).await.unwrap();
        }
        // A record each, whatever the size, and no cluster.
        assert_eq!(store.inner.log.metrics().appends - records, 1000 + 1);
        assert_eq!(used(&store), 64);
        let run = device.volume.run_at(0, 4 * MIB);
        assert_eq!(run.bytes, 4 * MIB, "the whole volume is one operation");
        write(&device, 4096, &sectors(2, 8)).await.unwrap();
        assert_eq!(used(&store), 65);
        audit(&store).await;
    });
}

#[test]
fn a_cluster_in_many_pieces_is_moved_together() {
    run(6, |store| async move {
        let volume = store.create(new_volume("v", 64 * KIB)).await.unwrap().id;
        let device = attach(&store, volume).await;
        let mut model = vec![0; 128];
        for number in 1..=16_u64 {
            let first = (number as usize - 1) * 8;
            write(&device, first as u64 * 512, &sectors(number, 8))
                .await
                .unwrap();
            model[first..first + 8].fill(number);
            let taken = store.snapshot(volume, format!("s{number}")).await.unwrap();
            let pieces = device.volume.tree.borrow().slot(0).len();
            assert!(pieces <= config().pieces_max, "{pieces} pieces");
            assert_eq!(content(&store, taken.id).await, model);
        }
        audit(&store).await;
    });
}
