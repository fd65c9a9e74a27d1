//! The operator: changes volumes and snapshots as such, while clients work.

use super::*;

pub(super) async fn run(store: Partition, world: Shared, mut rng: Rng) {
    for _ in 0..1_000 {
        let (volumes, snapshots) = {
            let model = world.model.borrow();
            (model.volumes.len(), model.snapshots.len())
        };
        let volume = |rng: &mut Rng| {
            let at = rng.below(volumes.max(1) as u64) as usize;
            world.model.borrow().volumes.get(at).map(|known| known.id)
        };
        let snapshot = |rng: &mut Rng| {
            let at = rng.below(snapshots.max(1) as u64) as usize;
            world
                .model
                .borrow()
                .snapshots
                .get(at)
                .and_then(|taken| taken.id)
        };
        match rng.below(12) {
            0 if volumes < VOLUMES_MAX => create(&store, &world, &mut rng).await,
            9 if volumes < VOLUMES_MAX => from_image(&store, &world, &mut rng).await,
            1 | 2 if volumes < VOLUMES_MAX => {
                if let Some(id) = snapshot(&mut rng) {
                    clone(&store, &world, id).await;
                }
            }
            3 if volumes > 1 => {
                if let Some(id) = volume(&mut rng) {
                    delete(&store, &world, id).await;
                }
            }
            4 => {
                if let Some(id) = snapshot(&mut rng) {
                    roll_back(&store, &world, id).await;
                }
            }
            5 | 6 => {
                if let Some(id) = snapshot(&mut rng) {
                    delete_snapshot(&store, &world, id).await;
                }
            }
            7 => {
                if let Some(id) = volume(&mut rng) {
                    resize(&store, &world, &mut rng, id).await;
                }
            }
            8 => diff(&store, &world, &mut rng).await,
            _ if volumes == 0 => create(&store, &world, &mut rng).await,
            _ if snapshots < SNAPSHOTS_MAX => {
                if let Some(id) = volume(&mut rng) {
                    let taken = take_snapshot(&store, &world, id).await;
                    match taken {
                        Some(taken) if rng.below(2) == 0 => {
                            pin(&store, &world, taken).await;
                        }
                        // It fails as the source does, or not.
                        None if rng.below(2) == 0 => drop(store.flatten(id).await),
                        _ => {}
                    }
                }
            }
            _ => engine::sleep(Duration::from_micros(rng.below(3_000))).await,
        }
        world.model.borrow_mut().done += 1;
    }
}

/// Lets no client begin on a volume, and waits for those that are at it.
async fn hold(world: &World, id: VolumeId) {
    world.with(id, |known| known.held = true);
    while world.with(id, |known| known.busy) > Some(0) {
        world.quiet.notified().await;
    }
}

async fn let_go(store: &Partition, world: &World, id: VolumeId) {
    let device = Rc::new(attach(store, id).await);
    world.with(id, |known| {
        known.device = Some(device);
        known.held = false;
    });
}

async fn add(store: &Partition, world: &World, made: VolumeInfo, may: Vec<Vec<u64>>) {
    let device = Rc::new(attach(store, made.id).await);
    let mut model = world.model.borrow_mut();
    model.pending.create = None;
    let mut known = Known::new(made.id, made.name, Image::of(may));
    known.device = Some(device);
    model.volumes.push(known);
}

async fn create(store: &Partition, world: &World, rng: &mut Rng) {
    let name = format!("v{}", world.tick());
    let clusters = 1 + rng.below(12);
    // Some do not end with a cluster.
    let bytes = clusters * 64 * KIB - rng.below(3) * 4096;
    let may = vec![vec![0]; (bytes / 512) as usize];
    world.model.borrow_mut().pending.create = Some((name.clone(), may.clone()));
    let new = NewVolume {
        encrypted: rng.below(2) == 0,
        checksums: rng.below(2) == 0,
        ..new_volume(&name, bytes)
    };
    let made = store.create(new).await.unwrap();
    add(store, world, made, may).await;
}

/// A volume from an image that ends somewhere inside of it, not with a block.
async fn from_image(store: &Partition, world: &World, rng: &mut Rng) {
    let number = world.tick();
    let name = format!("i{number}");
    let clusters = 1 + rng.below(12);
    let bytes = clusters * 64 * KIB - rng.below(3) * 4096;
    let of_image = 1 + rng.below(bytes / 512) as usize;
    let mut image = world.images.put(&name, image_content(number, of_image));
    if rng.below(3) == 0 {
        image.digest = None;
    }
    let mut may: Vec<_> = (0..of_image)
        .map(|sector| vec![stamp_of(number, sector)])
        .collect();
    may.resize((bytes / 512) as usize, vec![0]);
    world.model.borrow_mut().pending.create = Some((name.clone(), may.clone()));
    let new = NewVolume {
        encrypted: rng.below(2) == 0,
        checksums: rng.below(2) == 0,
        ..new_volume(&name, bytes)
    };
    match store.create_from_image(new, image).await {
        Ok(made) => add(store, world, made, may).await,
        // The source was not found.
        Err(VolumeError::Image(_)) => world.model.borrow_mut().pending.create = None,
        Err(error) => panic!("seed {}: {error}", world.seed),
    }
}

/// Reads a snapshot: from now on it is known what it holds.
async fn pin(store: &Partition, world: &World, id: SnapshotId) -> Vec<Vec<u64>> {
    // The look is not in the model; it is gone before anything else begins, or a crash leaves it.
    let name = format!("look{}", world.tick());
    {
        let mut model = world.model.borrow_mut();
        let taken = model.snapshots.iter().find(|taken| taken.id == Some(id));
        model.pending.create = taken.map(|taken| (name.clone(), taken.may.clone()));
    }
    let seen = content_of(store, id, &name).await;
    let mut model = world.model.borrow_mut();
    model.pending.create = None;
    let taken = model
        .snapshots
        .iter_mut()
        .find(|taken| taken.id == Some(id));
    let taken = taken.expect("the operator alone removes snapshots");
    taken.pin(&seen, world.seed);
    taken.may.clone()
}

async fn clone(store: &Partition, world: &World, id: SnapshotId) {
    let may = pin(store, world, id).await;
    let name = format!("c{}", world.tick());
    world.model.borrow_mut().pending.create = Some((name.clone(), may.clone()));
    let made = store.clone_snapshot(new_clone(&name, id)).await.unwrap();
    add(store, world, made, may).await;
}

async fn delete(store: &Partition, world: &World, id: VolumeId) {
    hold(world, id).await;
    world.with(id, |known| known.device = None);
    world.model.borrow_mut().pending.delete = Some(id);
    match store.delete(id).await {
        Ok(()) => {
            let mut model = world.model.borrow_mut();
            model.volumes.retain(|known| known.id != id);
            model.pending.delete = None;
        }
        Err(VolumeError::HasSnapshots(_)) => {
            world.model.borrow_mut().pending.delete = None;
            let_go(store, world, id).await;
        }
        Err(error) => panic!("seed {}: {error}", world.seed),
    }
}

async fn roll_back(store: &Partition, world: &World, to: SnapshotId) {
    let may = pin(store, world, to).await;
    let id = store.stat_snapshot(to).unwrap().volume;
    hold(world, id).await;
    world.with(id, |known| known.device = None);
    {
        let mut model = world.model.borrow_mut();
        model.pending.rollback = Some((id, may.clone()));
        model.pending.resize = Some((id, may.len()));
    }
    store.rollback(id, to).await.unwrap();
    world.with(id, |known| known.image = Image::of(may));
    {
        let mut model = world.model.borrow_mut();
        model.pending.rollback = None;
        model.pending.resize = None;
    }
    let_go(store, world, id).await;
}

async fn delete_snapshot(store: &Partition, world: &World, id: SnapshotId) {
    world.model.borrow_mut().pending.delete_snapshot = Some(id);
    store.delete_snapshot(id).await.unwrap();
    let mut model = world.model.borrow_mut();
    model.snapshots.retain(|taken| taken.id != Some(id));
    model.pending.delete_snapshot = None;
}

/// `None` for a volume that still needs its image.
async fn take_snapshot(store: &Partition, world: &World, of: VolumeId) -> Option<SnapshotId> {
    let asked = world.tick();
    let name = format!("s{asked}");
    let may = world.with(of, |known| known.image.snapshot(asked)).unwrap();
    world.model.borrow_mut().snapshots.push(Taken {
        id: None,
        of,
        name: name.clone(),
        asked,
        may,
    });
    let taken = store.snapshot(of, name.clone()).await;
    if taken == Err(VolumeError::Filling) {
        let mut model = world.model.borrow_mut();
        model.snapshots.retain(|taken| taken.name != name);
        return None;
    }
    let taken = taken.unwrap();
    let mut model = world.model.borrow_mut();
    let Model {
        volumes, snapshots, ..
    } = &mut *model;
    let known = volumes.iter().find(|known| known.id == of).unwrap();
    let found = snapshots
        .iter_mut()
        .find(|taken| taken.name == name)
        .unwrap();
    found.id = Some(taken.id);
    // What began before it returned may be in it, what begins now not.
    known.image.add_to(&mut found.may, asked);
    Some(taken.id)
}

async fn resize(store: &Partition, world: &World, rng: &mut Rng, id: VolumeId) {
    // Clients do not know a volume that changes its size under them.
    hold(world, id).await;
    let bytes = (1 + rng.below(14)) * 64 * KIB - rng.below(2) * 4096;
    let count = (bytes / 512) as usize;
    world.model.borrow_mut().pending.resize = Some((id, count));
    match store.resize(id, bytes).await {
        Ok(_) => {
            world.with(id, |known| known.image.resize(count));
        }
        Err(VolumeError::InUse(_) | VolumeError::Filling) => {}
        Err(error) => panic!("seed {}: {error}", world.seed),
    }
    world.model.borrow_mut().pending.resize = None;
    world.with(id, |known| known.held = false);
}

/// Compares two snapshots of a volume by what they hold, and by the diff.
async fn diff(store: &Partition, world: &World, rng: &mut Rng) {
    let pair = {
        let model = world.model.borrow();
        let at = rng.below(model.snapshots.len().max(1) as u64) as usize;
        let old = model.snapshots.get(at).map(|taken| (taken.id, taken.of));
        old.and_then(|(old, of)| {
            let later = model.snapshots.iter().skip(at + 1).find(|new| new.of == of);
            Some((old?, later?.id?))
        })
    };
    let Some((old, new)) = pair else { return };
    let before = pin(store, world, old).await;
    let after = pin(store, world, new).await;
    let (ranges, more) = store
        .diff(PointInTime::Snapshot(old), new, 0)
        .await
        .unwrap();
    assert_eq!(more, None);
    for (sector, after) in after.iter().enumerate() {
        let byte = sector as u64 * 512;
        let inside = |r: &&Changed| (r.offset..r.offset + r.bytes).contains(&byte);
        let named = ranges.iter().find(inside);
        let zero = vec![0];
        let before = before.get(sector).unwrap_or(&zero);
        assert!(
            before == after || named.is_some(),
            "seed {}: {sector}",
            world.seed
        );
        assert!(!named.is_some_and(|r| r.zero) || *after == zero);
    }
}
