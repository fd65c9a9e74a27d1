//! Images: objects as the source of volumes, read where they lie, without HTTP.
//!
//! An image is an object that is open: its size, tag and checksum are known up front, a map says
//! where its bytes are, and [`Image::read_at`] gives any range of them, checked against its CRCs. It
//! stays as it was opened: an overwrite, a deletion or compaction takes nothing away until it is
//! closed, and the space that it holds comes back then.
//!
//! The same reads serve GETs (`read`, `fetch`). The image is open on the owner of its partition;
//! whoever opened it on another shard reads by message, and on the owner itself without one. It ends
//! with the process: nothing of it is on disk. Who may open it is the caller's affair.

use std::marker::PhantomData;
use std::ops::Range;
use std::rc::Rc;

use engine::{BLOCK, DmaBuf, SchedGroup};
use s3_wire::{BucketName, Etag, ObjectKey};
use shards::placement::PartitionId;
use shards::resource_hash;
use shards::route::Router;

use super::StoreShard;
use super::buckets::{Groups, route_error};
use super::error::StoreError;
use super::extent::Extent;
use super::fetch::{ReadState, Source};
use super::partition::Partition;
use super::types::{BucketId, ObjectChecksum, ObjectMeta, ReadId};

/// Where bytes of an image lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImagePlace {
    /// In the partition's data file, from this byte on; a multiple of 4 KiB.
    Data {
        /// Byte offset in the file.
        offset: u64,
    },
    /// In a record of the partition's log.
    Record {
        /// The log segment.
        segment: u32,
        /// Byte offset of the record in it.
        offset: u32,
    },
}

/// A run of an image's bytes that lie together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageExtent {
    /// Where in the image it begins.
    pub offset: u64,
    /// Its length in bytes.
    pub len: u64,
    /// Where it is.
    pub place: ImagePlace,
}

/// An image that was opened on its owner.
#[derive(Debug)]
struct OpenedImage {
    read: ReadId,
    meta: ObjectMeta,
    extents: Vec<ImageExtent>,
}

impl Partition {
    async fn image_open(
        &self,
        bucket: BucketId,
        key: &ObjectKey,
    ) -> Result<OpenedImage, StoreError> {
        let inner = &self.inner;
        let opened = inner.open_named(bucket, key, 0).await?;
        if inner.images.get() >= inner.config.images_max {
            return Err(StoreError::Busy);
        }
        let (mut state, meta) = ReadState::new(bucket, key, opened);
        state.is_image = true;
        let extents = map_of(&state, meta.size);
        inner.images.set(inner.images.get() + 1);
        let read = inner.begin_read(state);
        Ok(OpenedImage {
            read,
            meta,
            extents,
        })
    }
}

/// Where the bytes of an object are, in order and without gaps.
fn map_of(state: &ReadState, size: u64) -> Vec<ImageExtent> {
    let mut map = Vec::new();
    match &state.source {
        Source::Record(_) if size == 0 => {}
        Source::Record(place) => map.push(ImageExtent {
            offset: 0,
            len: size,
            place: ImagePlace::Record {
                segment: place.segment,
                offset: place.offset,
            },
        }),
        Source::Extents(_, body) => map_extents(&mut map, 0, size, &body.extents),
        Source::Parts { parts, .. } => {
            for (begin, part) in parts.iter().filter(|(_, part)| part.size > 0) {
                if part.extents.is_empty() {
                    map.push(ImageExtent {
                        offset: *begin,
                        len: part.size,
                        place: ImagePlace::Record {
                            segment: part.place.segment,
                            offset: part.place.offset,
                        },
                    });
                }
                map_extents(&mut map, *begin, part.size, &part.extents);
            }
        }
    }
    map
}

/// The extents that `size` bytes fill; what follows them holds CRCs.
fn map_extents(map: &mut Vec<ImageExtent>, begin: u64, size: u64, extents: &[Extent]) {
    let mut done = 0;
    for extent in extents {
        if done >= size {
            return;
        }
        let len = (size - done).min(u64::from(extent.blocks) * BLOCK as u64);
        map.push(ImageExtent {
            offset: begin + done,
            len,
            place: ImagePlace::Data {
                offset: extent.offset(),
            },
        });
        done += len;
    }
}

/// Opens images, from any shard. A handle: cheap to clone, free to send.
#[derive(Clone, Debug)]
pub struct Images {
    router: Router<StoreShard>,
    groups: Groups,
}

impl Images {
    /// Images of the stores behind a router.
    pub fn new(router: Router<StoreShard>, groups: Groups) -> Images {
        Images { router, groups }
    }

    /// Opens an object as an image. On a shard; the control layer comes by a call to one. When the future is dropped the image may stay open until the
    /// process ends.
    ///
    /// # Errors
    /// `NoSuchBucket`, `NoSuchKey`, `Busy` (too many are open, or no buffer), `Corrupt`, `Gone`.
    pub async fn open(&self, bucket: &BucketName, key: &ObjectKey) -> Result<Image, StoreError> {
        let stores = self.router.values();
        let store = stores.try_local().ok_or(StoreError::Gone)?;
        let found = store.buckets().lookup(bucket);
        let id = found.ok_or(StoreError::NoSuchBucket)?.id;
        let map = self.router.map().ok_or(StoreError::Gone)?;
        let hash = resource_hash(&[bucket.as_str().as_bytes(), key.as_str().as_bytes()]);
        let partition = map.partition_of(hash);
        let name = key.clone();
        let opened = self.on(
            partition,
            move |p| async move { p.image_open(id, &name).await },
        );
        let OpenedImage {
            read,
            meta,
            extents,
        } = opened.await?;
        Ok(Image {
            images: self.clone(),
            partition,
            read,
            meta,
            extents,
            _here: PhantomData,
        })
    }

    async fn on<R, F, Fut>(&self, partition: PartitionId, f: F) -> Result<R, StoreError>
    where
        R: Send + 'static,
        F: FnOnce(Rc<Partition>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<R, StoreError>> + 'static,
    {
        let call = self.router.call(
            partition,
            self.groups.objects,
            move |store, stamp| async move { f(store.partition(stamp.partition)?).await },
        );
        call.await.unwrap_or_else(|error| Err(route_error(error)))
    }
}

/// An open image. It belongs to the shard that opened it, and is closed when it is dropped there.
#[derive(Debug)]
pub struct Image {
    images: Images,
    partition: PartitionId,
    read: ReadId,
    meta: ObjectMeta,
    extents: Vec<ImageExtent>,
    /// Its end is a message, which only a shard can send.
    _here: PhantomData<Rc<()>>,
}

impl Image {
    /// Length in bytes.
    pub fn size(&self) -> u64 {
        self.meta.size
    }

    /// The object's tag.
    pub fn etag(&self) -> Etag {
        self.meta.etag
    }

    /// The checksum kept with the object, if there is one.
    pub fn checksum(&self) -> Option<ObjectChecksum> {
        self.meta.checksum
    }

    /// The object's metadata.
    pub fn meta(&self) -> &ObjectMeta {
        &self.meta
    }

    /// The partition whose files hold it.
    pub fn partition(&self) -> PartitionId {
        self.partition
    }

    /// Where its bytes are: in order, without gaps, from 0 to the size.
    pub fn extents(&self) -> &[ImageExtent] {
        &self.extents
    }

    /// Bytes of the image: a buffer and where in it the `len` bytes at `offset` are (fewer at the
    /// end), each checked. At most [`super::READ_MAX`] at a time. Cancel-safe.
    ///
    /// # Errors
    /// `Corrupt` names the object, the file and the byte; `Busy` (no buffer); `Internal` past
    /// [`super::READ_MAX`]; `Gone` when the owner ended.
    pub async fn read_at(
        &self,
        offset: u64,
        len: usize,
    ) -> Result<(DmaBuf, Range<usize>), StoreError> {
        let read = self.read;
        self.images
            .on(self.partition, move |p| async move {
                p.read_chunk(read, offset, len).await
            })
            .await
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let (images, partition, read) = (self.images.clone(), self.partition, self.read);
        let close = async move {
            let closed = images.on(partition, move |p| async move {
                p.read_end(read);
                Ok(())
            });
            if let Err(error) = closed.await {
                tracing::warn!(%error, "an image stays open until the node restarts");
            }
        };
        // Only a shard that is full or ending refuses; then the pin ends with the process.
        let _ = engine::try_spawn_local(SchedGroup::FOREGROUND, close).map(engine::Task::detach);
    }
}
