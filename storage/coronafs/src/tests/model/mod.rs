//! Random work on volumes beside a model image, power cut or process killed at any point, reopened,
//! compared; several times over.
//!
//! Fault model (the simulated disk's): unflushed sectors are lost, kept or torn one by one, also of
//! writes in flight; unflushed lengths and names are lost or kept. What must survive: what was written
//! before a flush that returned, and after a kill all that had returned; snapshots, clones, sizes and removals that were acknowledged. What must
//! not appear: a sector that is not one of those its volume may hold there, so neither half a sector
//! nor anything of another volume or of a past one; a snapshot that changes.
//!
//! Clients own stripes of sectors whose borders are no borders of blocks, so they meet inside of blocks
//! and clusters, and each knows what it must read. Some volumes have checksums, and somebody scrubs them
//! all the while: nobody ever is told of a block that is not what was written, until at last a bit of one
//! is flipped, and then everybody is. An operator takes and removes snapshots, clones, rolls back, resizes
//! and removes volumes meanwhile. Some volumes begin as an image, whose source is slow and fails now and
//! then.
//!
//! `UC_SEED=7` plays one seed; `UC_SEEDS=5000` plays the first so many instead of 200. A seed that fails
//! is named.

mod client;
mod image;
mod operator;
mod scrubber;

use std::cell::RefCell;
use std::time::Duration;

use engine::Rng;
use engine::sync::Notify;

use super::*;
use crate::tests::image::{TestImages, content_of as image_content, stamp_of, why};
use image::Image;

const SEEDS: u64 = 200;
const CLIENTS: u64 = 3;
const GENERATIONS: u64 = 4;
/// Sectors of a stripe; stripes go round the clients. Those of every fifth seed hold whole clusters.
const STRIPE: usize = 37;
const LONG_STRIPE: usize = 451;
const VOLUMES_MAX: usize = 4;
const SNAPSHOTS_MAX: usize = 6;

/// A volume as the model has it.
struct Known {
    id: VolumeId,
    name: String,
    image: Image,
    device: Option<Rc<Attachment>>,
    /// What it must hold when the process was killed.
    acknowledged: Option<Image>,
    /// Operations of clients in progress; none begins while `held`.
    busy: usize,
    held: bool,
}

/// A snapshot: what each of its sectors may hold, until it was read.
struct Taken {
    id: Option<SnapshotId>,
    of: VolumeId,
    name: String,
    asked: u64,
    may: Vec<Vec<u64>>,
}

/// An operator's change that was begun and not answered.
#[derive(Default)]
struct Pending {
    /// A new volume of this name, with this content.
    create: Option<(String, Vec<Vec<u64>>)>,
    delete: Option<VolumeId>,
    delete_snapshot: Option<SnapshotId>,
    resize: Option<(VolumeId, usize)>,
    rollback: Option<(VolumeId, Vec<Vec<u64>>)>,
}

#[derive(Default)]
struct Model {
    clock: u64,
    volumes: Vec<Known>,
    snapshots: Vec<Taken>,
    pending: Pending,
    /// Done by clients and the operator.
    done: u64,
}

type Shared = Rc<World>;

struct World {
    seed: u64,
    model: RefCell<Model>,
    quiet: Notify,
    images: Rc<TestImages>,
}

impl World {
    fn tick(&self) -> u64 {
        let mut model = self.model.borrow_mut();
        model.clock += 1;
        model.clock
    }

    fn with<R>(&self, id: VolumeId, f: impl FnOnce(&mut Known) -> R) -> Option<R> {
        let mut model = self.model.borrow_mut();
        model.volumes.iter_mut().find(|known| known.id == id).map(f)
    }
}

async fn read_all(device: &Attachment) -> Vec<u64> {
    let len = device.geometry().bytes;
    stamps(&read(device, 0, len as usize).await.unwrap())
}

/// Everything is as the model says it may be; that is the model from now on.
async fn check(store: &Partition, world: &World) {
    let seed = world.seed;
    let pending = {
        let mut model = world.model.borrow_mut();
        let Model {
            volumes, snapshots, ..
        } = &mut *model;
        // One that has not returned may hold whatever was begun.
        for taken in snapshots.iter_mut().filter(|taken| taken.id.is_none()) {
            let of = volumes.iter().find(|known| known.id == taken.of).unwrap();
            of.image.add_to(&mut taken.may, taken.asked);
        }
        std::mem::take(&mut model.pending)
    };
    let listed = store.list(VolumeId(0), 100);
    let known: Vec<_> = world.model.borrow().volumes.iter().map(|v| v.id).collect();
    for id in known {
        if !listed.iter().any(|info| info.id == id) {
            assert_eq!(
                pending.delete,
                Some(id),
                "seed {seed}: volume {id:?} is gone"
            );
            world
                .model
                .borrow_mut()
                .volumes
                .retain(|known| known.id != id);
        }
    }
    for info in listed {
        if world.with(info.id, |_| ()).is_none() {
            let (name, may) = pending.create.clone().expect("a volume nobody made");
            assert_eq!(info.name, name, "seed {seed}");
            let mut model = world.model.borrow_mut();
            model
                .volumes
                .push(Known::new(info.id, name, Image::of(may)));
        }
        let device = Rc::new(attach(store, info.id).await);
        let seen = read_all(&device).await;
        if let Some((id, may)) = &pending.rollback
            && *id == info.id
        {
            world.with(*id, |known| {
                known.image.or(may, seen.len());
                if let Some(image) = &mut known.acknowledged {
                    image.or(may, seen.len());
                }
            });
        }
        let now = world.tick();
        world.with(info.id, |known| {
            let resized = pending.resize.filter(|(id, _)| *id == info.id);
            let resized = resized.map(|(_, sectors)| sectors);
            match known.acknowledged.take() {
                Some(mut image) => {
                    image.settle(&seen, resized, seed);
                    known.image.survive(&seen, now);
                }
                None => known.image.settle(&seen, resized, seed),
            }
            known.device = Some(device);
            (known.busy, known.held) = (0, false);
        });
    }
    check_snapshots(store, world, &pending).await;
    // It makes some of what survived a kill durable.
    if store.survived() != Survived::Acknowledged || world.tick().is_multiple_of(2) {
        audit_filled(store, world).await;
    }
}

/// Clusters that a fill is about to map are nobody's yet: volumes are filled first, if that is this one's
/// lot.
async fn audit_filled(store: &Partition, world: &World) {
    let volumes = store.list(VolumeId(0), 100);
    if volumes.iter().any(is_filling) && world.tick().is_multiple_of(2) {
        return;
    }
    for info in volumes {
        let flat = store.flatten(info.id).await.unwrap();
        assert!(!is_filling(&flat), "seed {}", world.seed);
    }
    audit(store).await;
}

async fn open_model(world: &World) -> Partition {
    let config = VolumeConfig {
        image_chunk_bytes: 128 << 10,
        ..config()
    };
    let store = open_with(&config).await.unwrap();
    // What is looked at first has to be there.
    world.images.fails_of.set(0);
    world.images.slow_us.set(0);
    store.set_image_resolver(world.images.resolver());
    store
}

fn is_filling(info: &VolumeInfo) -> bool {
    let image = info.image.as_ref();
    image.is_some_and(|image| {
        assert_ne!(image.phase, ImagePhase::Failed, "{image:?}");
        image.phase == ImagePhase::Filling
    })
}

async fn check_snapshots(store: &Partition, world: &World, pending: &Pending) {
    let seed = world.seed;
    let mut model = std::mem::take(&mut world.model.borrow_mut().snapshots);
    let mut found = Vec::new();
    for info in store.list(VolumeId(0), 100) {
        found.extend(store.snapshots(info.id));
    }
    model.retain_mut(|taken| {
        let there = found.iter().find(|info| info.name == taken.name);
        let there = there.map(|info| info.id);
        let unclear = taken.id.is_none() || taken.id == pending.delete_snapshot;
        assert!(
            there.is_some() || unclear,
            "seed {seed}: {} is gone",
            taken.name
        );
        taken.id = there;
        there.is_some()
    });
    assert_eq!(
        found.len(),
        model.len(),
        "seed {seed}: a snapshot nobody took"
    );
    for taken in &mut model {
        let seen = content_of(store, taken.id.unwrap(), &format!("look{}", world.tick())).await;
        taken.pin(&seen, seed);
    }
    world.model.borrow_mut().snapshots = model;
}

/// What a snapshot holds, by a clone that is removed again.
async fn content_of(store: &Partition, id: SnapshotId, name: &str) -> Vec<u64> {
    let clone = store.clone_snapshot(new_clone(name, id)).await.unwrap();
    let device = attach(store, clone.id).await;
    let seen = read_all(&device).await;
    drop(device);
    store.delete(clone.id).await.unwrap();
    seen
}

impl Taken {
    /// It held this all along.
    fn pin(&mut self, seen: &[u64], seed: u64) {
        let name = &self.name;
        assert_eq!(seen.len(), self.may.len(), "seed {seed}: {name}");
        for (sector, (may, seen)) in self.may.iter_mut().zip(seen).enumerate() {
            assert!(
                may.contains(seen),
                "seed {seed}: {name} holds {seen} in sector {sector}, not {may:?}"
            );
            *may = vec![*seen];
        }
    }
}

impl Known {
    fn new(id: VolumeId, name: String, image: Image) -> Known {
        Known {
            id,
            name,
            image,
            device: None,
            acknowledged: None,
            busy: 0,
            held: false,
        }
    }
}

/// Numbers of operations done, of checkpoints, and of volumes that were being filled at a crash.
fn run(seed: u64) -> [u64; 3] {
    let (sim, node) = world(seed);
    if seed.is_multiple_of(3) {
        // Writes that others overtake: flushes, snapshots, reads of snapshots.
        sim.configure(|config| {
            config.disk_write_ns = 20_000..4_000_000;
            config.disk_sync_ns = 20_000..100_000;
        });
    }
    let mut rng = Rng::new(seed);
    let world = Rc::new(World {
        seed,
        model: RefCell::default(),
        quiet: Notify::default(),
        images: TestImages::new(seed),
    });
    let (mut checkpoints, mut fillings) = (0, 0);
    for _ in 0..GENERATIONS {
        let at = Rc::clone(&world);
        let store = sim.run(node, 0, async move {
            let store = open_model(&at).await;
            check(&store, &at).await;
            at.images.fails_of.set(6);
            at.images.slow_us.set(3_000);
            store
        });
        for number in 0..CLIENTS {
            let rng = Rng::new(rng.next_u64());
            sim.spawn(node, 0, client::run(Rc::clone(&world), rng, number));
        }
        let operator = Rng::new(rng.next_u64());
        sim.spawn(
            node,
            0,
            operator::run(store.clone(), Rc::clone(&world), operator),
        );
        let scrubber = Rng::new(rng.next_u64());
        sim.spawn(
            node,
            0,
            scrubber::run(store.clone(), Rc::clone(&world), scrubber),
        );
        sim.run_for(Duration::from_micros(rng.below(60_000)));
        checkpoints += store.inner.checkpoints.written.get();
        let volumes = store.list(VolumeId(0), 100);
        fillings += volumes.iter().filter(|info| is_filling(info)).count() as u64;
        let killed = rng.below(2) == 0;
        if killed {
            sim.kill(node);
        } else {
            sim.crash(node);
        }
        for known in &mut world.model.borrow_mut().volumes {
            known.device = None;
            known.acknowledged = killed.then(|| known.image.acknowledged());
        }
        drop(store);
        sim.start(node, engine_config()).unwrap();
    }
    let (at, disk) = (Rc::clone(&world), sim.disk(node));
    let rng = Rng::new(rng.next_u64());
    sim.run(node, 0, async move {
        let store = open_model(&at).await;
        check(&store, &at).await;
        let flip = |offset| disk.flip_bit("/data/v000/data", offset);
        scrubber::damage(&store, &at, rng, flip).await;
        store.close().await.unwrap();
    });
    let done = world.model.borrow().done;
    [done, checkpoints, fillings]
}

fn from_env(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Every fourth seed; or the one that the environment names.
fn run_quarter(quarter: u64) {
    if let Some(seed) = from_env("UC_SEED") {
        run(seed);
        return;
    }
    let seeds = (quarter..from_env("UC_SEEDS").unwrap_or(SEEDS)).step_by(4);
    let count = seeds.clone().count() as u64;
    let sum = |sum: [u64; 3], run: [u64; 3]| [0, 1, 2].map(|at| sum[at] + run[at]);
    let [done, checkpoints, fillings] = seeds.map(run).fold([0; 3], sum);
    assert!(done >= count * 100, "{done} operations were done");
    assert!(
        checkpoints >= count / 2,
        "{checkpoints} checkpoints were written under load"
    );
    assert!(
        fillings >= count / 4,
        "{fillings} volumes were being filled"
    );
}

#[test]
fn volumes_hold_what_they_may_after_a_crash_at_any_point() {
    run_quarter(0);
}

#[test]
fn volumes_hold_what_they_may_after_a_crash_at_any_point_second_quarter() {
    run_quarter(1);
}

#[test]
fn volumes_hold_what_they_may_after_a_crash_at_any_point_third_quarter() {
    run_quarter(2);
}

#[test]
fn volumes_hold_what_they_may_after_a_crash_at_any_point_fourth_quarter() {
    run_quarter(3);
}
