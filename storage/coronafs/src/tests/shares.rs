//! Volumes that keep a disk busy together.

use std::cell::Cell;
use std::time::Duration;

use engine::SchedGroup;

use super::image::{TestImages, content_of};
use super::*;

const READERS: usize = 64;
const READS: u64 = 4000;

/// Keeps 64 reads of a volume going until so many of all volumes have ended, and counts its own.
fn flood(device: &Rc<Attachment>, all: &Rc<Cell<u64>>) -> Rc<Cell<u64>> {
    let count = Rc::new(Cell::new(0));
    for _ in 0..READERS {
        let (device, all, count) = (Rc::clone(device), Rc::clone(all), Rc::clone(&count));
        let reads = async move {
            while all.get() < READS {
                let block = engine::random() % (MIB / 4096);
                read(&device, block * 4096, 4096).await.unwrap();
                all.set(all.get() + 1);
                count.set(count.get() + 1);
            }
        };
        engine::spawn_local(SchedGroup::FOREGROUND, reads).detach();
    }
    count
}

#[test]
fn a_busy_disk_is_shared_as_the_volumes_shares_say() {
    let (sim, node) = world(1);
    sim.run(node, 0, async {
        let store = open().await;
        let mut devices = Vec::new();
        for (name, shares) in [("much", 400), ("little", 0)] {
            let volume = store.create(new_volume(name, MIB)).await.unwrap().id;
            let limits = Limits {
                shares,
                ..Limits::default()
            };
            store.limit(volume, limits).await.unwrap();
            let device = attach(&store, volume).await;
            write(&device, 0, &sectors(1, 2048)).await.unwrap();
            devices.push(Rc::new(device));
        }
        assert_eq!(store.share_waits(), 0);
        let all = Rc::new(Cell::new(0));
        let alone = flood(&devices[1], &all);
        while alone.get() < READS / 2 {
            engine::yield_now().await;
        }
        assert_eq!(store.share_waits(), 0, "nobody else wants the disk");
        all.set(0);
        let before = alone.get();
        let much = flood(&devices[0], &all);
        while all.get() < READS {
            engine::yield_now().await;
        }
        let little = alone.get() - before;
        let ratio = much.get() as f64 / little as f64;
        assert!((3.0..5.0).contains(&ratio), "{} and {little}", much.get());
        assert!(store.share_waits() > 0);
        // Whoever drains a device waits for nobody's share.
        for device in &devices {
            device.hurry();
        }
        drop(devices);
    });
}

#[test]
fn a_source_that_hangs_keeps_nobody_from_the_disk() {
    let (sim, node) = world(3);
    sim.run(node, 0, async {
        let store = open().await;
        let images = TestImages::new(1);
        images.down.set(true);
        let image = images.put("image", content_of(1, 8192));
        store.set_image_resolver(images.resolver());
        let plain = store.create(new_volume("plain", MIB)).await.unwrap().id;
        let plain = attach(&store, plain).await;
        write(&plain, 0, &sectors(7, 8)).await.unwrap();
        let new = new_volume("hangs", 4 * MIB);
        let hanging = store.create_from_image(new, image).await.unwrap().id;
        let hanging = Rc::new(attach(&store, hanging).await);
        images.slow_us.set(3_600_000_000);
        for at in 0..32 {
            let device = Rc::clone(&hanging);
            let reads = async move { drop(read(&device, at * 64 * KIB, 64 << 10).await) };
            engine::spawn_local(SchedGroup::FOREGROUND, reads).detach();
        }
        engine::sleep(Duration::from_millis(1)).await;
        let began = engine::now();
        assert_eq!(read(&plain, 0, 4096).await.unwrap(), sectors(7, 8));
        assert!(engine::now().since(began) < Duration::from_millis(100));
        assert_eq!(store.share_waits(), 0);
    });
}

#[test]
fn shares_have_a_bound_and_survive_a_restart() {
    let (sim, node) = world(2);
    sim.run(node, 0, async {
        let store = open().await;
        let volume = store.create(new_volume("v", MIB)).await.unwrap().id;
        let of = |shares| Limits {
            burst_ms: 60_000,
            shares,
            ..Limits::default()
        };
        store.limit(volume, of(10_000)).await.unwrap();
        let refused = store.limit(volume, of(10_001)).await.unwrap_err();
        assert!(matches!(refused, VolumeError::Invalid { .. }));
        store.close().await.unwrap();
        drop(store);
        let store = open().await;
        assert_eq!(store.stat(volume).unwrap().limits, of(10_000));
        audit(&store).await;
    });
}
