//! The pass over a volume's image: what fills it to the end, verifies it and lets the image go. In the
//! background it goes at a bounded rate and tries again after failures; a flatten goes as fast as it can.
//!
//! The pass begins again where it was durably. With a digest it fetches each chunk, also those that
//! readers had before, as all of the image is hashed in order; without one it skips what is there.

use std::cell::RefCell;
use std::rc::{Rc, Weak};
use std::time::Duration;

use engine::sync::Semaphore;
use engine::{Nanos, SchedGroup};

use super::digest::Running;
use super::fill::{Chunk, FETCH_WAIT, FETCHERS_MAX, FETCHES_MAX};
use super::record::{ImageChange, is_chunk};
use super::{Ending, Filling, ImageRef, ImageResolver, ImageSource, VolumeImage, check_image};
use crate::error::VolumeError;
use crate::map::CLUSTER;
use crate::partition::{Claim, For, Inner, Partition};
use crate::record::Change;
use crate::throttle::Throttle;
use crate::types::*;
use crate::volume::Volume;

/// Passes of a partition that work at once in the background.
const PASSES_MAX: u64 = 2;
/// Chunks between two times that what was filled is made durable.
const SAVE_CHUNKS: u64 = 16;
/// How long a pass rests after a failure: at first, and at most, as it doubles.
const PAUSE_MIN: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_mins(1);

/// What the volumes of a partition share to be filled.
pub(crate) struct Images {
    resolver: RefCell<Option<Rc<dyn ImageResolver>>>,
    pub(super) fetching: Semaphore,
    passing: Semaphore,
    throttle: RefCell<Throttle>,
}

/// Where a volume's pass is.
pub(crate) struct Pass {
    /// What is hashed; of the chunks below it, where there is no digest, all blocks have pieces.
    running: Running,
    /// Chunks since the last save.
    unsaved: u64,
}

impl Pass {
    pub(super) fn new(running: Running) -> Pass {
        Pass {
            running,
            unsaved: 0,
        }
    }
}

/// What a step has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    More,
    /// The volume needs the image no more.
    Ended,
}

impl Images {
    pub(crate) fn new(bytes_per_s: u64) -> Rc<Images> {
        let limits = Limits {
            bytes_per_s,
            ..Limits::default()
        };
        Rc::new(Images {
            resolver: RefCell::default(),
            fetching: Semaphore::new(FETCHES_MAX, FETCHERS_MAX),
            passing: Semaphore::new(PASSES_MAX, FETCHERS_MAX),
            throttle: RefCell::new(Throttle::new(limits)),
        })
    }

    async fn resolve(&self, identity: &str) -> Result<Rc<dyn ImageSource>, super::ImageError> {
        let resolver = self.resolver.borrow().clone();
        let missing = || super::ImageError("nothing here finds images".to_owned());
        resolver.ok_or_else(missing)?.resolve(identity).await
    }

    async fn source_of(&self, image: &ImageRef) -> Result<Rc<dyn ImageSource>, super::ImageError> {
        let source = self.resolve(&image.identity).await?;
        if source.bytes() == image.bytes {
            return Ok(source);
        }
        let (has, wanted) = (source.bytes(), image.bytes);
        let why = format!("it has {has} bytes, and not {wanted}");
        Err(super::ImageError(why))
    }
}

impl Filling {
    /// The image's source, found again when it failed.
    pub(super) async fn source(
        &self,
        images: &Images,
    ) -> Result<Rc<dyn ImageSource>, super::ImageError> {
        let known = self.source.borrow().clone();
        if let Some(source) = known {
            return Ok(source);
        }
        let source = images.source_of(&self.image).await?;
        self.source.replace(Some(Rc::clone(&source)));
        Ok(source)
    }

    /// The next chunk that the pass needs.
    async fn next(&self, volume: &Volume) -> Option<u64> {
        let mut chunk = self.pass.borrow().running.chunks();
        if self.image.digest.is_none() && self.is_known() {
            return None;
        }
        while chunk < self.chunks() {
            if self.image.digest.is_some() || self.has_absent_chunk(volume, chunk) {
                return Some(chunk);
            }
            chunk += 1;
            self.pass.borrow_mut().running.skip_to(chunk);
            engine::yield_if_needed().await;
        }
        None
    }

    fn has_absent_chunk(&self, volume: &Volume, chunk: u64) -> bool {
        let clusters = self.chunk_bytes / CLUSTER;
        let tree = volume.tree.borrow();
        (chunk * clusters..(chunk + 1) * clusters).any(|index| self.absent(&tree, index) != 0)
    }

    /// The volume has a chunk: it is hashed.
    async fn pass_over(&self, number: u64, chunk: &Chunk) {
        let mut running = self.pass.borrow().running.clone();
        if self.image.digest.is_none() {
            running.skip_to(number + 1);
        } else if number + 1 == self.chunks() {
            let len = self.image.bytes - number * self.chunk_bytes;
            let bytes = &chunk.bytes[..len as usize];
            running.add_last(bytes, self.image.bytes).await;
        } else {
            running.add(&chunk.bytes).await;
        }
        let mut pass = self.pass.borrow_mut();
        pass.running = running;
        pass.unsaved += 1;
    }
}

/// Goes on with a volume's pass: the next chunk, or the end. Nothing of the partition is held while the
/// source is waited for.
async fn step(
    partition: &Weak<Inner>,
    volume: &Rc<Volume>,
    group: SchedGroup,
) -> Result<Step, VolumeError> {
    let there = || partition.upgrade().ok_or(VolumeError::Gone);
    let Some(filling) = volume.filling() else {
        return Ok(Step::Ended);
    };
    let _turn = filling.steps.acquire(1).await?;
    there()?.check_there(volume)?;
    if volume.filling().is_none() {
        return Ok(Step::Ended);
    }
    if let Err(failed) = filling.check() {
        let why = failed.to_string();
        there()?.end_filling(volume, Ending::Failed(why)).await?;
        return Err(failed);
    }
    if let Some(number) = filling.next(volume).await {
        let flight = filling.fetch(&there()?, volume, number, group)?;
        let chunk = flight.wait().await?;
        chunk.filled.clone()?;
        filling.pass_over(number, &chunk).await;
        if filling.pass.borrow().unsaved >= SAVE_CHUNKS {
            there()?.save_pass(volume, &filling).await?;
        }
        return Ok(Step::More);
    }
    let partition = there()?;
    assert!(filling.is_known(), "the pass has left nothing out");
    partition.save_pass(volume, &filling).await?;
    let found = filling.pass.borrow().running.digest();
    let verified = match &filling.image.digest {
        None => false,
        Some(digest) if digest.0 == found => true,
        Some(_) => {
            let identity = &filling.image.identity;
            let failed = filling.fail(format!(
                "the content of the image {identity} does not have the digest that was given for it"
            ));
            let why = failed.to_string();
            partition.end_filling(volume, Ending::Failed(why)).await?;
            return Err(failed);
        }
    };
    let ending = Ending::Filled { verified };
    partition.end_filling(volume, ending).await?;
    Ok(Step::Ended)
}

/// Goes on with a volume's pass until its end, or the partition's.
async fn pass_in_background(partition: Weak<Inner>, images: Rc<Images>, volume: Rc<Volume>) {
    let mut pause = PAUSE_MIN;
    loop {
        let begin = match volume.filling() {
            Some(filling) => images.admit(filling.chunk_bytes),
            None => return,
        };
        engine::sleep_until(begin).await;
        let stepped = async {
            let _right = images.passing.acquire(1).await?;
            step(&partition, &volume, SchedGroup::BACKGROUND).await
        };
        match stepped.await {
            Ok(Step::More) => pause = PAUSE_MIN,
            Ok(Step::Ended)
            | Err(VolumeError::Gone | VolumeError::NoSuchVolume | VolumeError::Poisoned(_)) => {
                return;
            }
            Err(error) => {
                if volume.has_failed_durably() {
                    return;
                }
                let id = volume.id.0;
                tracing::warn!(volume = id, %error, ?pause, "a volume is not filled further yet");
                engine::sleep(pause).await;
                pause = PAUSE_MAX.min(pause * 2);
            }
        }
    }
}

impl Images {
    /// When the next chunk may be fetched in the background; it is counted.
    fn admit(&self, bytes: u64) -> Nanos {
        self.throttle.borrow_mut().admit(engine::now(), bytes)
    }
}

impl Volume {
    fn has_failed_durably(&self) -> bool {
        let meta = self.meta.borrow();
        let ending = meta.image.as_ref().and_then(|image| image.ending.as_ref());
        matches!(ending, Some(Ending::Failed(_)))
    }
}

impl Inner {
    /// # Errors
    /// `Gone` when the partition closes, `NoSuchVolume` when the volume was removed.
    pub(super) fn check_there(&self, volume: &Rc<Volume>) -> Result<(), VolumeError> {
        if self.is_closing() {
            return Err(VolumeError::Gone);
        }
        let there = self.volume(volume.id)?;
        if Rc::ptr_eq(&there, volume) {
            return Ok(());
        }
        Err(VolumeError::NoSuchVolume)
    }

    /// Makes durable what was filled, then how far the pass is: it never goes back behind that.
    async fn save_pass(
        self: &Rc<Inner>,
        volume: &Rc<Volume>,
        filling: &Filling,
    ) -> Result<(), VolumeError> {
        let running = filling.pass.borrow().running.clone();
        self.commit_changes(volume, For::Order).await?;
        if filling.image.digest.is_some() {
            let change = Change::Image {
                volume: volume.id,
                change: ImageChange::Hashed(running.clone()),
            };
            let (kind, payload) = change.encode();
            self.append(kind, &payload, Claim::Ordinary).await?;
            // A checkpoint that was begun in between has what stood before, which says no more than this.
            if let Some(image) = &mut volume.meta.borrow_mut().image {
                image.set_hashed(running);
            }
        }
        filling.pass.borrow_mut().unsaved = 0;
        Ok(())
    }

    async fn end_filling(
        self: &Rc<Inner>,
        volume: &Rc<Volume>,
        ending: Ending,
    ) -> Result<(), VolumeError> {
        let _turn = self.turn().await?;
        self.check_there(volume)?;
        let id = volume.id;
        if volume.has_failed_durably() {
            return Ok(());
        }
        tracing::info!(volume = id.0, ?ending, "a volume's filling has ended");
        let change = Change::Image {
            volume: id,
            change: ImageChange::Ended(ending),
        };
        self.change(change, None).await
    }

    fn begin_pass(self: &Rc<Inner>, volume: &Rc<Volume>) {
        if volume.filling().is_none() || volume.has_failed_durably() {
            return;
        }
        let (partition, images) = (Rc::downgrade(self), Rc::clone(&self.images));
        let body = pass_in_background(partition, images, Rc::clone(volume));
        match engine::try_spawn_own(SchedGroup::BACKGROUND, body) {
            Ok(task) => task.detach(),
            Err(error) => {
                tracing::warn!(volume = volume.id.0, %error, "a volume is filled only by reads");
            }
        }
    }

    async fn create_from_image(
        self: Rc<Inner>,
        new: NewVolume,
        image: ImageRef,
    ) -> Result<VolumeInfo, VolumeError> {
        check_size(new.bytes)?;
        check_image(&image, new.bytes)?;
        let found = engine::timeout(FETCH_WAIT, self.images.source_of(&image)).await;
        let found = found.unwrap_or_else(|| Err(super::ImageError("no answer".to_owned())));
        drop(found.map_err(|error| {
            VolumeError::Image(format!(
                "the image {} is not usable: {error}",
                image.identity
            ))
        })?);
        let chunk_bytes = self.config.image_chunk_bytes;
        if !is_chunk(chunk_bytes) {
            return Err(VolumeError::Invalid {
                what: format!("a chunk of {chunk_bytes} bytes"),
                allowed: "a multiple of 64 KiB up to 16 MiB",
            });
        }
        let image = VolumeImage::new(image, chunk_bytes);
        let made = self.create(new, Some(image)).await?;
        self.begin_pass(&self.volume(made.id)?);
        Ok(made)
    }

    async fn flatten(self: Rc<Inner>, id: VolumeId) -> Result<VolumeInfo, VolumeError> {
        let volume = self.volume(id)?;
        let partition = Rc::downgrade(&self);
        while step(&partition, &volume, SchedGroup::FOREGROUND).await? == Step::More {}
        self.info(id)
    }
}

impl Partition {
    /// Says where images are found, and goes on filling volumes from them.
    pub fn set_image_resolver(&self, resolver: Rc<dyn ImageResolver>) {
        let inner = &self.inner;
        let is_first = inner.images.resolver.replace(Some(resolver)).is_none();
        if !is_first {
            return;
        }
        let volumes: Vec<Rc<Volume>> = inner.state.borrow().volumes.values().cloned().collect();
        for volume in volumes {
            inner.begin_pass(&volume);
        }
    }

    /// Makes a volume that holds what an image does, and zeros behind that, at once: what is not there yet is
    /// fetched when it is read, and in the background. Until it is there the volume takes no snapshots.
    ///
    /// # Errors
    /// `Image` when the image cannot be found or has another size, and those of [`Partition::create`].
    pub async fn create_from_image(
        &self,
        new: NewVolume,
        image: ImageRef,
    ) -> Result<VolumeInfo, VolumeError> {
        self.in_task(|inner| inner.create_from_image(new, image))
            .await
    }

    /// Fills a volume from its image now. When this returns all of it is durable, has the digest that was
    /// given, and the volume needs the image no more. One that needs none is left as it is.
    ///
    /// # Errors
    /// `NoSuchVolume`; `Image` when the image cannot be read, and the volume is filled further later, or
    /// when it is not the right one, and the volume has failed; `Full`, `Busy`, `Poisoned`, `Gone`.
    pub async fn flatten(&self, id: VolumeId) -> Result<VolumeInfo, VolumeError> {
        self.in_task(|inner| inner.flatten(id)).await
    }
}
