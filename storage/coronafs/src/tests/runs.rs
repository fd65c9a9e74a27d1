//! Writes of several whole clusters, and where they put them.

use super::*;

const CLUSTERS: u64 = 16;

fn run<F: Future + 'static>(
    test: impl FnOnce(engine::sim::SimDisk, Partition) -> F + 'static,
) -> F::Output {
    let (sim, node) = world(1);
    let disk = sim.disk(node);
    sim.run(node, 0, async move { test(disk, open().await).await })
}

/// How many operations a read of a range takes.
fn operations(store: &Partition, id: VolumeId, offset: u64, bytes: u64) -> usize {
    let state = store.inner.state.borrow();
    let volume = &state.volumes[&id];
    let mut at = 0;
    let next = || {
        at += volume.run_at(offset + at, bytes - at).bytes;
        at
    };
    std::iter::repeat_with(next)
        .position(|at| at == bytes)
        .unwrap()
        + 1
}

/// A volume that is full of data, then a snapshot, then a block in each cluster, in a scattered order.
async fn scattered(store: &Partition) -> (VolumeId, Attachment, Vec<u64>) {
    let id = store.create(new_volume("v", MIB)).await.unwrap().id;
    let device = attach(store, id).await;
    write(&device, 0, &sectors(1, 2048)).await.unwrap();
    assert_eq!(operations(store, id, 0, MIB), 1, "a first write is one run");
    store.snapshot(id, "s".into()).await.unwrap();
    let mut model = vec![1; 2048];
    for step in 0..CLUSTERS {
        let cluster = step * 7 % CLUSTERS;
        let first = (cluster * 128 + 8) as usize;
        let bytes = sectors(2 + step, 8);
        write(&device, 512 * first as u64, &bytes).await.unwrap();
        model[first..first + 8].fill(2 + step);
    }
    (id, device, model)
}

async fn check(device: &Attachment, model: &[u64]) {
    let found = stamps(&read(device, 0, MIB as usize).await.unwrap());
    assert_eq!(found, model);
}

#[test]
fn scattered_clusters_come_side_by_side_when_they_are_written_whole() {
    run(|_, store| async move {
        let (id, device, mut model) = scattered(&store).await;
        check(&device, &model).await;
        // Two of them, as a guest's sequential write does.
        write(&device, 4 * 64 * KIB, &sectors(50, 256))
            .await
            .unwrap();
        model[512..768].fill(50);
        assert_eq!(operations(&store, id, 4 * 64 * KIB, 128 * KIB), 1);
        // All but parts of the first and the last.
        write(&device, 4 * KIB, &sectors(51, 2032)).await.unwrap();
        model[8..2040].fill(51);
        assert_eq!(operations(&store, id, 64 * KIB, 14 * 64 * KIB), 1);
        check(&device, &model).await;
        device.flush().await.unwrap();
        check(&device, &model).await;
        drop(device);
        audit(&store).await;
    });
}

#[test]
fn long_runs_stay_where_they_are() {
    run(|_, store| async move {
        let id = store.create(new_volume("v", MIB)).await.unwrap().id;
        let device = attach(&store, id).await;
        // The second half first: they are two runs.
        write(&device, MIB / 2, &sectors(1, 1024)).await.unwrap();
        write(&device, 0, &sectors(2, 1024)).await.unwrap();
        let places = |store: &Partition| {
            let tree = store.inner.state.borrow().volumes[&id]
                .tree
                .borrow()
                .clone();
            [0, 8].map(|index| tree.slot(index)[0].cluster)
        };
        let before = places(&store);
        assert_ne!(before[1], before[0] + 8);
        write(&device, 0, &sectors(3, 2048)).await.unwrap();
        assert_eq!(places(&store), before);
        check(&device, &[3; 2048]).await;
        drop(device);
        audit(&store).await;
    });
}

#[test]
fn a_full_disk_leaves_them_where_they_are() {
    run(|disk, store| async move {
        let (id, device, _) = scattered(&store).await;
        device.flush().await.unwrap();
        // Everything that is free, by another volume.
        let other = store
            .create(new_volume("other", 64 * MIB))
            .await
            .unwrap()
            .id;
        let filler = attach(&store, other).await;
        disk.set_capacity(disk.used_bytes() + 2 * MIB);
        let mut full = 0;
        while write(&filler, full, &sectors(9, 128)).await.is_ok() {
            full += 64 * KIB;
        }
        let before = operations(&store, id, 0, MIB);
        assert!(before > 1);
        write(&device, 0, &sectors(60, 2048)).await.unwrap();
        check(&device, &[60; 2048]).await;
        disk.set_capacity(1 << 40);
        device.flush().await.unwrap();
        filler.flush().await.unwrap();
        drop((device, filler));
        audit(&store).await;
    });
}

#[test]
fn writes_over_each_other_end_as_one_of_them() {
    run(|_, store| async move {
        let (_, device, _) = scattered(&store).await;
        let whole = write_all(&device, 0, sectors(70, 2048));
        let part = write_all(&device, 3 * 64 * KIB + 4 * KIB, sectors(71, 512));
        let small = write_all(&device, 9 * 64 * KIB, sectors(72, 8));
        futures_util::future::join3(whole, part, small).await;
        let found = stamps(&read(&device, 0, MIB as usize).await.unwrap());
        for (at, stamp) in found.into_iter().enumerate() {
            let may = match at {
                392..904 => vec![70, 71],
                1152..1160 => vec![70, 72],
                _ => vec![70],
            };
            assert!(may.contains(&stamp), "sector {at} holds {stamp}");
        }
        drop(device);
        audit(&store).await;
    });
}

async fn write_all(device: &Attachment, offset: u64, bytes: Vec<u8>) {
    write(device, offset, &bytes).await.unwrap();
}
