//! Objects as images, on two shards: what is open stays as it was, whatever happens to its key.
//! Contract LS-1, image backing.
//!
//! Fault model: power is lost with images open; bits of the data file and of the log flip. An image
//! never gives other bytes than the object had, and leaves nothing behind.

use engine::Rng;
use shards::placement::resource_hash;

use super::super::{Image, ImagePlace, Images};
use super::buckets::{Cluster, start};
use super::*;

const NAMES: [&str; 4] = ["none", "inline", "extents", "parts"];
const PARTS: [(u16, usize); 4] = [(1, 200_000), (2, 70_000), (5, 140_000), (9, 777)];

fn body_of(name: &str) -> Vec<u8> {
    match name {
        "none" => Vec::new(),
        "inline" => bytes(1, 5_000),
        // Past three CRCs they lie in a table behind the body.
        "extents" => bytes(2, 300_001),
        _ => PARTS
            .iter()
            .flat_map(|(number, len)| bytes(u64::from(*number), *len))
            .collect(),
    }
}

struct World {
    sim: Sim,
    node: NodeId,
    at: Cluster,
}

impl World {
    /// A node with an object of each sort.
    fn new(seed: u64) -> World {
        let sim = Sim::new(seed);
        let node = sim.node("store");
        let at = start(&sim, node);
        let world = World { sim, node, at };
        world.show_bucket();
        world.on(0, |at| async move {
            for name in NAMES {
                at.on_owner(name, move |store| async move {
                    match name {
                        "parts" => put_parts(&store, name).await,
                        _ => put(&store, name, &body_of(name)).await.map(drop),
                    }
                })
                .await
                .unwrap();
            }
        });
        world
    }

    fn show_bucket(&self) {
        for shard in 0..2 {
            self.on(shard, |at| async move {
                let buckets = table().all();
                at.router.values().local().buckets().set(buckets);
            });
        }
    }

    fn on<R: 'static, Fut>(&self, shard: u16, f: impl FnOnce(Cluster) -> Fut) -> R
    where
        Fut: Future<Output = R> + 'static,
    {
        self.sim.run(self.node, shard, f(self.at.clone()))
    }
}

impl Cluster {
    fn partition_of(&self, name: &str) -> PartitionId {
        let hash = resource_hash(&[b"bucket", name.as_bytes()]);
        self.router.map().unwrap().partition_of(hash)
    }

    async fn on_owner<R, F, Fut>(&self, name: &str, f: F) -> R
    where
        R: Send + 'static,
        F: FnOnce(Rc<Partition>) -> Fut + Send + 'static,
        Fut: Future<Output = R> + 'static,
    {
        let partition = self.partition_of(name);
        let call = self
            .router
            .call(partition, self.groups.objects, move |store, stamp| {
                f(store.partition(stamp.partition).unwrap())
            });
        call.await.unwrap()
    }

    async fn image(&self, name: &str) -> Result<Image, StoreError> {
        let images = Images::new(self.router.clone(), self.groups);
        let bucket = BucketName::new("bucket").unwrap();
        images.open(&bucket, &key(name)).await
    }
}

async fn put_parts(store: &Partition, name: &str) -> Result<(), StoreError> {
    let upload = store
        .upload_create(BUCKET, key(name), meta(b""), None)
        .await?;
    let of = UploadRef {
        bucket: BUCKET,
        key: key(name),
        upload,
    };
    let mut listed = Vec::new();
    for (number, len) in PARTS {
        let data = bytes(u64::from(number), len);
        let body = if len > INLINE_MAX {
            PartBody::Write(stream(store, &data, true).await?)
        } else {
            PartBody::Small(Some(buf(&data)?))
        };
        let (etag, size) = (tag(&data), len as u64);
        let part = PartPut {
            number,
            body,
            etag,
            size,
            checksum: None,
            modified_ms: 3,
        };
        store.part_put(of.clone(), part).await?;
        listed.push((number, etag));
    }
    let done = store.upload_complete(of, listed, Condition::None, 4);
    done.await.map(drop)
}

/// Reads a range as often as one read allows.
async fn range(image: &Image, from: usize, to: usize) -> Result<Vec<u8>, StoreError> {
    let mut all = Vec::new();
    while from + all.len() < to {
        let at = from + all.len();
        let (buf, part) = image.read_at(at as u64, (to - at).min(READ_MAX)).await?;
        assert!(!part.is_empty());
        all.extend_from_slice(&buf[part]);
    }
    Ok(all)
}

async fn check_whole(image: &Image, name: &str) {
    let expected = body_of(name);
    assert_eq!(image.size(), expected.len() as u64, "{name}");
    let got = range(image, 0, expected.len()).await.unwrap();
    assert!(got == expected, "{name}");
}

#[test]
fn an_image_is_known_up_front_mapped_and_read_from_any_shard() {
    let world = World::new(31);
    for shard in 0..2 {
        world.on(shard, |at| async move {
            let mut rng = Rng::new(u64::from(shard));
            for name in NAMES {
                let image = at.image(name).await.unwrap();
                let expected = body_of(name);
                check_whole(&image, name).await;
                assert_eq!(image.partition(), at.partition_of(name));
                let parts = if name == "parts" { Some(4) } else { None };
                assert_eq!(image.etag().parts(), parts);
                let mut next = 0;
                for extent in image.extents() {
                    assert_eq!(extent.offset, next, "{name}");
                    next += extent.len;
                    let is_record = matches!(extent.place, ImagePlace::Record { .. });
                    assert_eq!(is_record, extent.len < 10_000, "{name}");
                }
                assert_eq!(next, image.size(), "{name}");
                for _ in 0..20 {
                    let from = rng.below(image.size() + 1) as usize;
                    let to = (from + rng.below(200_000) as usize).min(expected.len());
                    let got = range(&image, from, to).await.unwrap();
                    assert!(got == expected[from..to], "{name} {from}..{to}");
                }
                let (_, past) = image.read_at(image.size() + 5, 10).await.unwrap();
                assert!(past.is_empty());
            }
            let none = at.image("nothing").await.unwrap_err();
            assert_eq!(none, StoreError::NoSuchKey);
            let images = Images::new(at.router.clone(), at.groups);
            let other = BucketName::new("other").unwrap();
            let none = images.open(&other, &key("inline")).await.unwrap_err();
            assert_eq!(none, StoreError::NoSuchBucket);
        });
    }
}

/// Waits until no more images are open: the end of one is a message.
async fn closed(store: &Partition, open_max: usize) {
    while store.inner.images.get() > open_max {
        engine::sleep(Duration::from_millis(1)).await;
    }
}

/// Moves everything in sealed segments, and lets go of what is not needed.
async fn compact_all(store: &Partition) {
    let sealed = store.inner.log.segments().into_iter();
    let sealed: Vec<u32> = sealed.filter(|s| s.sealed).map(|s| s.number).collect();
    assert!(!sealed.is_empty());
    for segment in sealed {
        let known = store.inner.log.segments();
        if known.iter().any(|info| info.number == segment) {
            store.inner.compact(segment).await.unwrap();
        }
    }
    for _ in 0..2 {
        store.inner.checkpoint().await.unwrap();
    }
}

#[test]
fn an_open_image_outlives_overwrite_deletion_and_compaction_and_then_lets_go() {
    let world = World::new(32);
    for shard in 0..2 {
        world.on(shard, |at| async move {
            for name in NAMES {
                let image = at.image(name).await.unwrap();
                let again = at.image(name).await.unwrap();
                at.on_owner(name, move |store| async move {
                    put(&store, name, &bytes(50, 90_000)).await.unwrap();
                    // Whatever it lay in would be taken and written by now.
                    for round in 0..40 {
                        put(&store, "filler", &bytes(round, 60_000)).await.unwrap();
                        put(&store, "large", &bytes(round, 310_000)).await.unwrap();
                    }
                    compact_all(&store).await;
                    let gone = store.delete(BUCKET, key(name), Condition::None);
                    assert!(gone.await.unwrap());
                    compact_all(&store).await;
                })
                .await;
                check_whole(&image, name).await;
                drop(image);
                check_whole(&again, name).await;
                drop(again);
                at.on_owner(name, move |store| async move {
                    closed(&store, 0).await;
                    assert!(store.inner.reads.borrow().is_empty());
                    audit(&store).await;
                    match name {
                        "parts" => put_parts(&store, name).await.unwrap(),
                        _ => drop(put(&store, name, &body_of(name)).await.unwrap()),
                    }
                })
                .await;
            }
        });
    }
}

#[test]
fn the_number_of_open_images_is_bounded_and_requests_have_their_own() {
    let world = World::new(33);
    world.on(0, |at| async move {
        let max = config().images_max;
        let mut open = Vec::new();
        for _ in 0..max {
            open.push(at.image("extents").await.unwrap());
        }
        assert_eq!(at.image("extents").await.unwrap_err(), StoreError::Busy);
        let got = at.on_owner(
            "extents",
            |store| async move { get(&store, "extents").await },
        );
        assert!(got.await.unwrap() == body_of("extents"));
        open.pop();
        at.on_owner("extents", move |store| async move {
            closed(&store, max - 1).await;
        })
        .await;
        at.image("extents").await.unwrap();
    });
}

#[test]
fn damage_is_an_error_that_names_object_file_and_byte() {
    let world = World::new(34);
    let disk = world.sim.disk(world.node);
    for name in ["inline", "extents", "parts"] {
        let (dir, last) = world.on(0, |at| async move {
            let image = at.image(name).await.unwrap();
            let dir = at.on_owner(name, |store| async move {
                // A record in memory is no concern of the disk's.
                store.cache_records(0);
                store.dir().to_owned()
            });
            (dir.await, *image.extents().last().unwrap())
        });
        let (file, place) = match last.place {
            ImagePlace::Data { offset } => (dir.join("data"), offset + last.len - 100),
            ImagePlace::Record { segment, offset } => {
                let file = dir.join("log").join(format!("{segment:08}.seg"));
                (file, u64::from(offset) + 500)
            }
        };
        disk.flip_bit(file, place);
        world.on(0, |at| async move {
            let image = at.image(name).await;
            let error = match image {
                // The record is read to open it.
                Err(error) => error,
                Ok(image) => {
                    let size = body_of(name).len();
                    let whole = range(&image, 0, 60_000.min(size)).await;
                    assert!(name == "inline" || whole.unwrap() == body_of(name)[..60_000]);
                    range(&image, size - 10, size).await.unwrap_err()
                }
            };
            let StoreError::Corrupt {
                segment, offset, ..
            } = &error
            else {
                panic!("{name}: {error}")
            };
            let text = error.to_string();
            assert!(text.contains(&format!("bucket/{name}")), "{text}");
            match last.place {
                ImagePlace::Data { offset: begin } => {
                    assert_eq!(*segment, u32::MAX, "{text}");
                    // The 64 KiB that fail begin before the bit.
                    let block = place - (place - begin) % CRC_BLOCK as u64;
                    assert_eq!(*offset, block, "{text}");
                    assert!(text.contains("the data file"), "{text}");
                }
                ImagePlace::Record {
                    segment: number, ..
                } => {
                    assert_eq!(*segment, number, "{text}");
                    assert!(text.contains(&format!("log segment {number}")), "{text}");
                }
            }
        });
    }
}

#[test]
fn an_image_that_was_open_when_power_was_lost_leaves_nothing_behind() {
    let mut world = World::new(35);
    world.on(1, |at| async move {
        for name in NAMES {
            let image = at.image(name).await.unwrap();
            if name == "extents" {
                at.on_owner(name, move |store| async move {
                    let gone = store.delete(BUCKET, key(name), Condition::None);
                    gone.await.unwrap();
                })
                .await;
            }
            check_whole(&image, name).await;
            std::mem::forget(image);
        }
    });
    world.sim.crash(world.node);
    world.at = start(&world.sim, world.node);
    world.show_bucket();
    world.on(0, |at| async move {
        for name in NAMES {
            at.on_owner(name, |store| async move { audit(&store).await })
                .await;
            match at.image(name).await {
                Ok(image) => check_whole(&image, name).await,
                Err(error) => {
                    assert_eq!((name, error), ("extents", StoreError::NoSuchKey));
                }
            }
        }
    });
}
