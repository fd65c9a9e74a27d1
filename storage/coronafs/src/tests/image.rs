//! Volumes that begin as an image.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use engine::Rng;
use futures_util::future::{LocalBoxFuture, join_all};
use sha2::{Digest, Sha256};

use super::*;

const CHUNK: u64 = 128 * KIB;

/// Images in memory, whose source may be slow, fail, or be another one from now on.
pub(super) struct TestImages {
    images: RefCell<BTreeMap<String, Rc<Vec<u8>>>>,
    rng: RefCell<Rng>,
    /// Images are found, and cannot be read.
    pub(super) down: Cell<bool>,
    /// One read in so many fails.
    pub(super) fails_of: Cell<u64>,
    /// How long a read takes at most, in microseconds.
    pub(super) slow_us: Cell<u64>,
    /// Where it was read.
    pub(super) reads: RefCell<Vec<u64>>,
}

struct Resolver(Rc<TestImages>);

struct Source {
    images: Rc<TestImages>,
    content: Rc<Vec<u8>>,
}

impl TestImages {
    pub(super) fn new(seed: u64) -> Rc<TestImages> {
        Rc::new(TestImages {
            images: RefCell::default(),
            rng: RefCell::new(Rng::new(seed)),
            down: Cell::new(false),
            fails_of: Cell::new(0),
            slow_us: Cell::new(0),
            reads: RefCell::default(),
        })
    }

    /// Puts an image there, or another in its place; returns what a volume is made with.
    pub(super) fn put(&self, name: &str, content: Vec<u8>) -> ImageRef {
        let image = ImageRef {
            identity: name.to_owned(),
            bytes: content.len() as u64,
            digest: Some(ImageDigest(Sha256::digest(&content).into())),
        };
        let mut images = self.images.borrow_mut();
        images.insert(name.to_owned(), Rc::new(content));
        image
    }

    pub(super) fn resolver(self: &Rc<TestImages>) -> Rc<dyn ImageResolver> {
        Rc::new(Resolver(Rc::clone(self)))
    }

    async fn answer(&self, down: bool) -> Result<(), ImageError> {
        let (pause, luck) = {
            let mut rng = self.rng.borrow_mut();
            (
                rng.below(self.slow_us.get() + 1),
                rng.below(self.fails_of.get().max(1)),
            )
        };
        if pause > 0 {
            engine::sleep(Duration::from_micros(pause)).await;
        }
        if down || (self.fails_of.get() > 0 && luck == 0) {
            return Err(ImageError("nobody is there".into()));
        }
        Ok(())
    }
}

impl ImageResolver for Resolver {
    fn resolve<'a>(
        &'a self,
        identity: &'a str,
    ) -> LocalBoxFuture<'a, Result<Rc<dyn ImageSource>, ImageError>> {
        Box::pin(async move {
            self.0.answer(false).await?;
            let content = self.0.images.borrow().get(identity).cloned();
            let content = content.ok_or_else(|| ImageError("there is no such image".into()))?;
            let images = Rc::clone(&self.0);
            Ok(Rc::new(Source { images, content }) as Rc<dyn ImageSource>)
        })
    }
}

impl ImageSource for Source {
    fn bytes(&self) -> u64 {
        self.content.len() as u64
    }

    fn read_at<'a>(
        &'a self,
        offset: u64,
        into: &'a mut [u8],
    ) -> LocalBoxFuture<'a, Result<(), ImageError>> {
        Box::pin(async move {
            self.images.reads.borrow_mut().push(offset);
            self.images.answer(self.images.down.get()).await?;
            let from = offset as usize;
            into.copy_from_slice(&self.content[from..from + into.len()]);
            Ok(())
        })
    }
}

/// What a device that failed says.
pub(super) fn why(error: &BlockError) -> String {
    match error {
        BlockError::Io(error) => error.to_string(),
        other => other.to_string(),
    }
}

/// What a sector of a test's image holds; some blocks are zeros.
pub(super) fn stamp_of(image: u64, sector: usize) -> u64 {
    match (sector / 8) % 5 {
        3 => 0,
        _ => (image << 32) + sector as u64 + 1,
    }
}

pub(super) fn content_of(image: u64, sectors_count: usize) -> Vec<u8> {
    let all = (0..sectors_count).map(|sector| sectors(stamp_of(image, sector), 1));
    all.collect::<Vec<_>>().concat()
}

fn image_config() -> VolumeConfig {
    VolumeConfig {
        image_chunk_bytes: CHUNK as u32,
        ..config()
    }
}

/// Opens with a source that is down, so that nothing is filled before a test wants it.
async fn open_held(images: &Rc<TestImages>) -> Partition {
    let store = open_with(&image_config()).await.unwrap();
    images.down.set(true);
    store.set_image_resolver(images.resolver());
    store
}

async fn create(store: &Partition, name: &str, image: ImageRef) -> VolumeId {
    let made = store.create_from_image(new_volume(name, 2 * MIB), image);
    made.await.unwrap().id
}

/// 1.5 MiB and three sectors: twelve chunks and a part of one.
const SECTORS: usize = 3075;

fn model() -> Vec<u64> {
    let mut model: Vec<u64> = (0..SECTORS).map(|sector| stamp_of(7, sector)).collect();
    model.resize(4096, 0);
    model
}

async fn all(device: &Attachment) -> Vec<u64> {
    stamps(&read(device, 0, 2 << 20).await.unwrap())
}

#[test]
fn a_volume_holds_its_image_at_once_and_needs_it_no_more_when_it_is_flat() {
    let (sim, node) = world(1);
    sim.run(node, 0, async {
        let images = TestImages::new(1);
        let store = open_held(&images).await;
        let image = images.put("a", content_of(7, SECTORS));
        let id = create(&store, "v", image).await;
        let device = Rc::new(attach(&store, id).await);
        let state = store.stat(id).unwrap().image.unwrap();
        assert_eq!(state.phase, ImagePhase::Filling);
        images.down.set(false);
        images.slow_us.set(500);
        images.reads.borrow_mut().clear();
        // Many readers of one chunk, one fetch.
        let reads = (0..20).map(|n| {
            let device = Rc::clone(&device);
            async move { stamps(&read(&device, 3 * CHUNK + n * 512, 1024).await.unwrap()) }
        });
        for (number, seen) in join_all(reads).await.into_iter().enumerate() {
            assert_eq!(seen, model()[768 + number..770 + number]);
        }
        let fetches = images
            .reads
            .borrow()
            .iter()
            .filter(|at| **at == 3 * CHUNK)
            .count();
        assert_eq!(fetches, 1);
        assert_eq!(all(&device).await, model());
        let flat = store.flatten(id).await.unwrap();
        let state = flat.image.unwrap();
        assert_eq!((state.phase, state.verified), (ImagePhase::Filled, true));
        assert_eq!(state.filled_bytes, state.total_bytes);
        assert_eq!(
            (state.total_bytes, state.error),
            (SECTORS as u64 * 512, None)
        );
        // A fifth of the image is zeros, and takes no space.
        assert!(flat.mapped_bytes < SECTORS as u64 * 512 * 5 / 6);
        images.down.set(true);
        assert_eq!(all(&device).await, model());
        audit(&store).await;
    });
}

/// Writes and discards before, beside and behind fills; returns what must be there. The last is not flushed.
async fn change_unfilled(device: &Attachment, images: &TestImages, killed: bool) -> Vec<u64> {
    let mut model = model();
    // Whole blocks need no image.
    write(device, 64 * KIB, &sectors(1, 8)).await.unwrap();
    model[128..136].fill(1);
    device.discard(512, 60 * KIB).await.unwrap();
    model[8..120].fill(0);
    let zeroed = device.write_zeroes(MIB, 256 * KIB, true, false).await;
    zeroed.unwrap();
    model[2048..2560].fill(0);
    if !killed {
        device.flush().await.unwrap();
    }
    // Parts of blocks are completed from it.
    images.down.set(false);
    write(device, 300 * KIB + 512, &sectors(2, 30))
        .await
        .unwrap();
    model[601..631].fill(2);
    let zeroed = device
        .write_zeroes(400 * KIB + 512, 1024, true, false)
        .await;
    zeroed.unwrap();
    model[801..803].fill(0);
    device.flush().await.unwrap();
    write(device, 700 * KIB, &sectors(3, 8)).await.unwrap();
    device.discard(700 * KIB, 4 * KIB).await.unwrap();
    if killed {
        model[1400..1408].fill(0);
    }
    images.down.set(true);
    assert!(read(device, 0, 72 << 10).await.is_err());
    model
}

#[test]
fn what_a_guest_did_first_is_not_undone_by_the_fill_nor_by_a_crash() {
    let ends = [(2, false), (3, true)];
    let ends = ends.iter().flat_map(|end| [(*end, false), (*end, true)]);
    for ((seed, killed), checksums) in ends {
        let (sim, node) = world(seed);
        let images = TestImages::new(seed);
        let at = Rc::clone(&images);
        let (id, model) = sim.run(node, 0, async move {
            let store = open_held(&at).await;
            let image = at.put("a", content_of(7, SECTORS));
            let new = NewVolume {
                encrypted: checksums,
                checksums,
                ..new_volume("v", 2 * MIB)
            };
            let id = store.create_from_image(new, image).await.unwrap().id;
            let device = attach(&store, id).await;
            (id, change_unfilled(&device, &at, killed).await)
        });
        if killed {
            sim.kill(node);
        } else {
            sim.crash(node);
        }
        sim.start(node, engine_config()).unwrap();
        sim.run(node, 0, async move {
            let store = open_held(&images).await;
            images.down.set(false);
            let device = attach(&store, id).await;
            store.flatten(id).await.unwrap();
            let mut seen = all(&device).await;
            if !killed {
                // Neither was flushed: the image's, what was written, or what was discarded.
                let block = &mut seen[1400..1408];
                let may = [model[1400..1408].to_vec(), vec![3; 8], vec![0; 8]];
                assert!(may.contains(&block.to_vec()), "{block:?}");
                block.copy_from_slice(&model[1400..1408]);
            }
            assert_eq!(seen, model);
            if checksums {
                let info = store.stat(id).unwrap();
                let scrubbed = store.scrub(id, 0).await.unwrap();
                assert_eq!((scrubbed.bytes, scrubbed.errors), (info.mapped_bytes, 0));
            }
            audit(&store).await;
        });
    }
}

#[test]
fn a_source_that_is_not_there_fails_what_needs_it_and_nothing_else() {
    let (sim, node) = world(4);
    sim.run(node, 0, async {
        let images = TestImages::new(4);
        let store = open_held(&images).await;
        let image = images.put("a", content_of(7, SECTORS));
        let id = create(&store, "v", image.clone()).await;
        let other = store.create(new_volume("other", MIB)).await.unwrap().id;
        let (device, other) = (attach(&store, id).await, attach(&store, other).await);
        let refused = why(&read(&device, CHUNK, 512).await.unwrap_err());
        assert!(refused.contains("nobody is there"), "{refused}");
        assert!(write(&device, CHUNK + 512, &sectors(1, 1)).await.is_err());
        assert!(store.flatten(id).await.is_err());
        let state = store.stat(id).unwrap().image.unwrap();
        assert!(state.error.unwrap().contains("nobody is there"));
        // Behind the image, and of other volumes.
        assert_eq!(
            stamps(&read(&device, 2 * MIB - 512, 512).await.unwrap()),
            [0]
        );
        write(&device, 2 * MIB - 512, &sectors(1, 1)).await.unwrap();
        write(&other, 0, &sectors(1, 1)).await.unwrap();
        other.flush().await.unwrap();
        // What is not there is data for whoever copies the volume.
        let extents = device.extents(0, 2 * MIB).await.unwrap();
        let end = (SECTORS as u64 * 512).next_multiple_of(4096);
        assert_eq!((extents[0].bytes, extents[0].hole), (end, false));
        for refused in [
            store.snapshot(id, "s".into()).await.map(drop),
            store.resize(id, MIB).await.map(drop),
            store.diff_volume(PointInTime::Empty, id, 0).await.map(drop),
        ] {
            assert_eq!(refused, Err(VolumeError::Filling));
        }
        images.down.set(false);
        assert_eq!(
            stamps(&read(&device, CHUNK, 512).await.unwrap()),
            [stamp_of(7, 256)]
        );
        let state = store.stat(id).unwrap().image.unwrap();
        assert_eq!(state.error, None);
        store.flatten(id).await.unwrap();
        let taken = store.snapshot(id, "s".into()).await.unwrap().id;
        let clone = store
            .clone_snapshot(new_clone("c", taken))
            .await
            .unwrap()
            .id;
        let mut wanted = model();
        wanted[4095] = 1;
        assert_eq!(all(&attach(&store, clone).await).await, wanted);
        let missing = ImageRef {
            identity: "b".into(),
            ..image
        };
        let refused = store
            .create_from_image(new_volume("w", 2 * MIB), missing)
            .await;
        assert!(matches!(refused, Err(VolumeError::Image(_))));
        audit(&store).await;
    });
}

#[test]
fn a_volume_is_deleted_at_once_while_its_source_hangs() {
    let (sim, node) = world(5);
    sim.run(node, 0, async {
        let images = TestImages::new(5);
        let store = open_held(&images).await;
        let image = images.put("a", content_of(7, SECTORS));
        let id = create(&store, "v", image).await;
        images.down.set(false);
        images.slow_us.set(30_000_000);
        engine::sleep(Duration::from_secs(1)).await;
        let began = engine::now();
        store.delete(id).await.unwrap();
        assert!(engine::now().since(began) < Duration::from_millis(100));
        engine::sleep(Duration::from_mins(2)).await;
        audit(&store).await;
    });
}

async fn assert_failed(store: &Partition, id: VolumeId) {
    let state = store.stat(id).unwrap().image.unwrap();
    assert_eq!((state.phase, state.verified), (ImagePhase::Failed, false));
    assert!(state.error.is_some());
    let device = attach(store, id).await;
    assert!(read(&device, 0, 512).await.is_err());
    assert!(write(&device, 0, &sectors(1, 8)).await.is_err());
    assert!(device.discard(0, 4096).await.is_err());
    assert!(device.write_zeroes(0, 4096, true, false).await.is_err());
    let refused = store.snapshot(id, "s".into()).await;
    assert!(matches!(refused, Err(VolumeError::Image(_))));
}

/// A wrong digest; and an image that changes between the fetch of a reader and that of the pass.
#[test]
fn an_image_that_is_not_the_right_one_fails_its_volume_for_ever() {
    for changes in [false, true] {
        let (sim, node) = world(6);
        let images = TestImages::new(6);
        let at = Rc::clone(&images);
        let id = sim.run(node, 0, async move {
            let store = open_held(&at).await;
            let mut image = at.put("a", content_of(7, SECTORS));
            if !changes {
                image.digest = Some(ImageDigest([1; 32]));
            }
            let id = create(&store, "v", image).await;
            if changes {
                let device = attach(&store, id).await;
                at.down.set(false);
                read(&device, 0, 512).await.unwrap();
                at.down.set(true);
                assert!(read(&device, MIB, 512).await.is_err());
                at.put("a", content_of(8, SECTORS));
                at.down.set(false);
            } else {
                at.down.set(false);
            }
            let refused = store.flatten(id).await;
            assert!(matches!(refused, Err(VolumeError::Image(_))), "{refused:?}");
            assert_failed(&store, id).await;
            // It is said durably, a little later where a reader has found it.
            engine::sleep(Duration::from_mins(3)).await;
            id
        });
        sim.crash(node);
        sim.start(node, engine_config()).unwrap();
        sim.run(node, 0, async move {
            images.put("a", content_of(7, SECTORS));
            let store = open_held(&images).await;
            images.down.set(false);
            assert_failed(&store, id).await;
            store.delete(id).await.unwrap();
            audit(&store).await;
        });
    }
}

#[test]
fn a_pass_goes_on_where_it_was_after_a_crash_and_verifies_across_it() {
    for digest in [false, true] {
        let (sim, node) = world(7);
        let images = TestImages::new(7);
        let at = Rc::clone(&images);
        let id = sim.run(node, 0, async move {
            let store = open_held(&at).await;
            let mut image = at.put("a", content_of(7, SECTORS));
            if !digest {
                image.digest = None;
            }
            let new = NewVolume {
                encrypted: true,
                ..new_volume("v", 2 * MIB)
            };
            let id = store.create_from_image(new, image).await.unwrap().id;
            let device = attach(&store, id).await;
            at.down.set(false);
            read(&device, 5 * CHUNK, 512).await.unwrap();
            read(&device, 9 * CHUNK, 512).await.unwrap();
            at.down.set(true);
            device.flush().await.unwrap();
            id
        });
        sim.crash(node);
        sim.start(node, engine_config()).unwrap();
        sim.run(node, 0, async move {
            let store = open_held(&images).await;
            let filled = store.stat(id).unwrap().image.unwrap().filled_bytes;
            assert_eq!(filled, 2 * CHUNK);
            images.reads.borrow_mut().clear();
            images.down.set(false);
            let state = store.flatten(id).await.unwrap().image.unwrap();
            assert_eq!(state.verified, digest);
            // To hash it, or not at all.
            let mut again: Vec<u64> = images.reads.borrow().clone();
            again.sort_unstable();
            again.dedup();
            assert_eq!(again.contains(&(5 * CHUNK)), digest);
            assert_eq!(again.len(), if digest { 13 } else { 11 });
            let device = attach(&store, id).await;
            assert_eq!(all(&device).await, model());
            store.close().await.unwrap();
        });
    }
}

#[test]
fn the_background_fills_at_its_rate_and_needs_nobody() {
    let (sim, node) = world(8);
    sim.run(node, 0, async {
        let images = TestImages::new(8);
        let config = VolumeConfig {
            image_bytes_per_s: CHUNK,
            ..image_config()
        };
        let store = open_with(&config).await.unwrap();
        store.set_image_resolver(images.resolver());
        let image = images.put("a", content_of(7, SECTORS));
        let made = store.create_from_image(new_volume("v", 2 * MIB), image);
        let id = made.await.unwrap().id;
        let filled = || store.stat(id).unwrap().image.unwrap();
        engine::sleep(Duration::from_millis(5_500)).await;
        assert_eq!(filled().filled_bytes, 6 * CHUNK);
        engine::sleep(Duration::from_secs(20)).await;
        assert_eq!(
            (filled().phase, filled().verified),
            (ImagePhase::Filled, true)
        );
        images.down.set(true);
        let device = attach(&store, id).await;
        assert_eq!(all(&device).await, model());
        audit(&store).await;
    });
}

/// What was hashed durably is neither fetched again nor forgotten.
#[test]
fn a_start_goes_on_with_the_hash_of_what_was_saved() {
    let (sim, node) = world(9);
    let images = TestImages::new(9);
    let small = || VolumeConfig {
        image_chunk_bytes: 64 << 10,
        ..config()
    };
    let at = Rc::clone(&images);
    let id = sim.run(node, 0, async move {
        let store = open_with(&small()).await.unwrap();
        store.set_image_resolver(at.resolver());
        at.slow_us.set(1_000);
        let image = at.put("a", content_of(7, SECTORS));
        let id = create(&store, "v", image).await;
        // Sixteen chunks are saved together, and twenty-five are all.
        while at.reads.borrow().iter().all(|read| *read < 18 * 64 * KIB) {
            engine::sleep(Duration::from_micros(100)).await;
        }
        id
    });
    sim.crash(node);
    sim.start(node, engine_config()).unwrap();
    sim.run(node, 0, async move {
        images.reads.borrow_mut().clear();
        let store = open_with(&small()).await.unwrap();
        store.set_image_resolver(images.resolver());
        let state = store.flatten(id).await.unwrap().image.unwrap();
        assert!(state.verified);
        let first = images.reads.borrow().iter().min().copied();
        assert_eq!(first, Some(16 * 64 * KIB));
        let device = attach(&store, id).await;
        assert_eq!(all(&device).await, model());
        audit(&store).await;
    });
}

/// A reader gets what the volume has no space for.
#[test]
fn a_full_disk_does_not_keep_readers_from_the_image() {
    let (sim, node) = world(10);
    let disk = sim.disk(node);
    sim.run(node, 0, async move {
        let images = TestImages::new(10);
        let store = open_held(&images).await;
        let image = images.put("a", content_of(7, SECTORS));
        let id = create(&store, "v", image).await;
        let device = attach(&store, id).await;
        disk.set_capacity(disk.used_bytes());
        images.down.set(false);
        assert_eq!(all(&device).await, model());
        assert_eq!(store.flatten(id).await.unwrap_err(), VolumeError::Full);
        write(&device, MIB, &sectors(1, 8)).await.unwrap_err();
        disk.set_capacity(1 << 40);
        store.flatten(id).await.unwrap();
        assert_eq!(all(&device).await, model());
        audit(&store).await;
    });
}
