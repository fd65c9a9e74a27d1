//! Volumes that begin as an image: usable at once, filled from its source when something is read, and in
//! the background.
//!
//! A block is one of three while a volume is being filled: its data is in the data file, or it is known to
//! be zeros (a piece of [`crate::map::ZEROS`]), or no piece has it and it is what the image says. So the map
//! alone tells what the image is still needed for, in memory, in the log, in a checkpoint, and after a
//! kill.
//!
//! Invariants:
//! - A fill only gives pieces to blocks that have none, with the slot locked. A write gives its blocks
//!   pieces with data, a discard or zeroing pieces of zeros, so what a guest did is never undone by a fill.
//! - A block that has a piece keeps one until the volume needs its image no more. So what was found to be
//!   there, without a lock, stays there.
//! - With a digest, the hash of a chunk as it was fetched is durable before a block of it is mapped, and
//!   every later fetch of the chunk must have the same. The pass over the whole image hashes what has that
//!   hash, in order. So the digest is of what was filled, whatever was fetched when, in which life.
//! - No snapshot is taken before the end, so nothing but the volume itself ever needs the image.

pub(crate) mod digest;
mod fill;
mod pass;
pub(crate) mod record;
mod transfer;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use engine::sync::Semaphore;
use futures_util::future::LocalBoxFuture;

use crate::error::VolumeError;
use crate::map::{BLOCK, BLOCKS, CLUSTER, Piece, Tree, next_leaf, slot_of};
use crate::volume::Volume;
use digest::Running;
use fill::Flight;
pub(crate) use pass::Images;

/// Most bytes of an image's identity.
pub const IMAGE_IDENTITY_BYTES_MAX: usize = 1024;
/// Most bytes of a chunk, the unit in which images are fetched.
pub const IMAGE_CHUNK_BYTES_MAX: u32 = 16 << 20;
/// Those that may wait for the next step of a volume's pass.
const STEPS_MAX: usize = 1024;

/// The SHA-256 of a whole image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageDigest(pub [u8; 32]);

/// An image that a volume is made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageRef {
    /// What an [`ImageResolver`] finds its bytes by, also after restarts: 1 to 1024 bytes. It must name
    /// content that never changes.
    pub identity: String,
    /// Its size.
    pub bytes: u64,
    /// What its content must be; without it nothing is verified.
    pub digest: Option<ImageDigest>,
}

/// Why an image cannot be read now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ImageError(pub String);

/// The bytes of an image.
pub trait ImageSource {
    /// How many.
    fn bytes(&self) -> u64;

    /// Reads as many as the buffer has. The range lies inside of the image.
    fn read_at<'a>(
        &'a self,
        offset: u64,
        into: &'a mut [u8],
    ) -> LocalBoxFuture<'a, Result<(), ImageError>>;
}

/// Finds images.
pub trait ImageResolver {
    /// The source of an image, by the identity that a volume was made with. It is asked again after each
    /// failure.
    fn resolve<'a>(
        &'a self,
        identity: &'a str,
    ) -> LocalBoxFuture<'a, Result<Rc<dyn ImageSource>, ImageError>>;
}

/// How far a volume is with its image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImagePhase {
    /// It still needs the image.
    Filling,
    /// It needs the image no more.
    Filled,
    /// What was filled is not what the digest says, or the image was not the same all the time: nothing is
    /// read or written any more.
    Failed,
}

/// What is known of a volume's image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageState {
    /// The image.
    pub identity: String,
    /// How far the volume is.
    pub phase: ImagePhase,
    /// Bytes of the image's place that do not need it any more: filled, or written since.
    pub filled_bytes: u64,
    /// Bytes of the image.
    pub total_bytes: u64,
    /// Whether all that was fetched had the digest.
    pub verified: bool,
    /// Why it failed, or why the last fetch did.
    pub error: Option<String>,
}

/// How a volume's filling has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    Filled { verified: bool },
    Failed(String),
}

/// What is durable of a volume's image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VolumeImage {
    pub(crate) image: ImageRef,
    /// Bytes of a chunk: a multiple of a cluster.
    pub(crate) chunk_bytes: u32,
    /// Hashes of chunks of which blocks may have been filled, behind what is hashed in order.
    pub(crate) fetched: BTreeMap<u64, [u8; 32]>,
    /// The hash over the first chunks, all of whose blocks have pieces, durably.
    pub(crate) hashed: Running,
    pub(crate) ending: Option<Ending>,
}

/// A volume that needs its image, in memory.
pub(crate) struct Filling {
    pub(crate) image: ImageRef,
    pub(crate) chunk_bytes: u64,
    /// Blocks of the image's place that have a piece.
    known: Cell<u64>,
    /// Whether the volume needs it no more: a block without a piece is zeros then.
    ended: Cell<bool>,
    /// Why nothing is read or written.
    failed: RefCell<Option<String>>,
    /// Why the last fetch failed.
    trouble: RefCell<Option<String>>,
    source: RefCell<Option<Rc<dyn ImageSource>>>,
    flights: RefCell<BTreeMap<u64, Rc<Flight>>>,
    /// One at a time goes on with the pass.
    steps: Semaphore,
    pass: RefCell<pass::Pass>,
}

impl VolumeImage {
    pub(crate) fn new(image: ImageRef, chunk_bytes: u32) -> VolumeImage {
        VolumeImage {
            image,
            chunk_bytes,
            fetched: BTreeMap::new(),
            hashed: Running::default(),
            ending: None,
        }
    }

    /// Whether the volume refers to its image, or has failed.
    pub(crate) fn is_needed(&self) -> bool {
        !matches!(self.ending, Some(Ending::Filled { .. }))
    }

    /// The state for readers and writers, when there is a difference to other volumes.
    pub(crate) fn filling(&self) -> Option<Rc<Filling>> {
        self.is_needed().then(|| Rc::new(Filling::new(self)))
    }

    /// The first chunks are hashed, and durable.
    pub(crate) fn set_hashed(&mut self, hashed: Running) {
        self.fetched = self.fetched.split_off(&hashed.chunks());
        self.hashed = hashed;
    }

    /// What a chunk was fetched as.
    pub(crate) fn set_fetched(&mut self, chunk: u64, hash: [u8; 32]) {
        if chunk >= self.hashed.chunks() {
            self.fetched.insert(chunk, hash);
        }
    }

    pub(crate) fn state(&self, filling: Option<&Filling>) -> ImageState {
        let total = self.image.bytes;
        let (phase, verified, failed) = match &self.ending {
            None => (ImagePhase::Filling, false, None),
            Some(Ending::Filled { verified }) => (ImagePhase::Filled, *verified, None),
            Some(Ending::Failed(why)) => (ImagePhase::Failed, false, Some(why.clone())),
        };
        let mut state = ImageState {
            identity: self.image.identity.clone(),
            phase,
            filled_bytes: total,
            total_bytes: total,
            verified,
            error: failed,
        };
        if let Some(filling) = filling {
            state.filled_bytes = total.min(filling.known.get() * BLOCK);
            if let Some(why) = filling.failed.borrow().clone() {
                state.phase = ImagePhase::Failed;
                state.error = Some(why);
            }
            state.error = state.error.or_else(|| filling.trouble.borrow().clone());
        }
        state
    }
}

impl Filling {
    fn new(state: &VolumeImage) -> Filling {
        let failed = match &state.ending {
            Some(Ending::Failed(why)) => Some(why.clone()),
            _ => None,
        };
        Filling {
            image: state.image.clone(),
            chunk_bytes: u64::from(state.chunk_bytes),
            known: Cell::new(0),
            ended: Cell::new(false),
            failed: RefCell::new(failed),
            trouble: RefCell::default(),
            source: RefCell::default(),
            flights: RefCell::default(),
            steps: Semaphore::new(1, STEPS_MAX),
            pass: RefCell::new(pass::Pass::new(state.hashed.clone())),
        }
    }

    /// Blocks that the image has.
    fn blocks(&self) -> u64 {
        self.image.bytes.div_ceil(BLOCK)
    }

    /// The byte behind the image's last block.
    pub(crate) fn end(&self) -> u64 {
        self.blocks() * BLOCK
    }

    fn chunks(&self) -> u64 {
        self.image.bytes.div_ceil(self.chunk_bytes)
    }

    /// The blocks of a slot that are the image's while they have no piece.
    pub(crate) fn mask(&self, index: u64) -> u16 {
        if self.ended.get() {
            return 0;
        }
        let first = index * u64::from(BLOCKS);
        match self.blocks().saturating_sub(first) {
            count if count < u64::from(BLOCKS) => (1 << count) - 1,
            _ => u16::MAX,
        }
    }

    /// Blocks of a slot that are to be filled.
    pub(crate) fn absent(&self, tree: &Tree, index: u64) -> u16 {
        let known = tree.leaf(index).map_or(0, |leaf| {
            let pieces = leaf.pieces(slot_of(index));
            pieces.fold(0, |all, piece| all | piece.mask)
        });
        self.mask(index) & !known
    }

    /// A slot has changed.
    pub(crate) fn note(&self, index: u64, old: &[Piece], new: &[Piece]) {
        let mask = self.mask(index);
        let blocks = |pieces: &[Piece]| {
            let all = pieces.iter().fold(0, |all, piece| all | piece.mask);
            u64::from((all & mask).count_ones())
        };
        let known = self.known.get() + blocks(new);
        // Before a start has counted there may be less.
        self.known.set(known.saturating_sub(blocks(old)));
    }

    /// Counts what has pieces.
    async fn count(&self, volume: &Volume) {
        let (mut known, mut index) = (0, 0);
        while index < self.end().div_ceil(CLUSTER) {
            let absent = {
                let tree = volume.tree.borrow();
                tree.leaf(index).map(|_| self.absent(&tree, index))
            };
            match absent {
                Some(absent) => {
                    known += u64::from((self.mask(index) & !absent).count_ones());
                    index += 1;
                }
                None => index = next_leaf(index),
            }
            engine::yield_if_needed().await;
        }
        self.known.set(known);
    }

    /// The volume needs it no more. Whoever is still at it finds nothing to fill.
    fn end_needed(&self) {
        self.ended.set(true);
    }

    fn is_known(&self) -> bool {
        self.known.get() == self.blocks()
    }

    /// # Errors
    /// `Image` when nothing may be read or written any more.
    pub(crate) fn check(&self) -> Result<(), VolumeError> {
        match &*self.failed.borrow() {
            None => Ok(()),
            Some(why) => Err(VolumeError::Image(why.clone())),
        }
    }

    /// Nothing is read or written from now on.
    fn fail(&self, why: String) -> VolumeError {
        tracing::error!(
            image = self.image.identity,
            why,
            "a volume's image is not what it was"
        );
        self.failed.borrow_mut().get_or_insert(why.clone());
        VolumeError::Image(why)
    }
}

impl Volume {
    /// What a checkpoint says of its image.
    pub(crate) fn set_image(&self, image: VolumeImage) {
        self.filling.replace(image.filling());
        self.meta.borrow_mut().image = Some(image);
    }

    /// A start has played everything: what it found is what the pass goes on from.
    pub(crate) async fn begin_filling(&self) {
        let filling = {
            let meta = self.meta.borrow();
            meta.image.as_ref().and_then(VolumeImage::filling)
        };
        self.filling.replace(filling.clone());
        if let Some(filling) = filling {
            filling.count(self).await;
        }
    }

    /// What a record says of its image. Of one that is not needed any more nothing matters.
    pub(crate) fn apply_image(&self, change: record::ImageChange) {
        let mut meta = self.meta.borrow_mut();
        let Some(image) = meta.image.as_mut().filter(|image| image.is_needed()) else {
            return;
        };
        match change {
            record::ImageChange::Fetched { chunk, hash } => image.set_fetched(chunk, hash),
            record::ImageChange::Hashed(hashed) => image.set_hashed(hashed),
            record::ImageChange::Ended(ending) => {
                image.fetched.clear();
                image.ending = Some(ending.clone());
                drop(meta);
                self.end_filling(ending);
            }
        }
    }

    fn end_filling(&self, ending: Ending) {
        match (ending, self.filling()) {
            (Ending::Failed(why), Some(filling)) => {
                filling.failed.borrow_mut().get_or_insert(why);
            }
            (Ending::Filled { .. }, Some(filling)) => {
                filling.end_needed();
                self.filling.replace(None);
            }
            (_, None) => {}
        }
    }

    pub(crate) fn filling(&self) -> Option<Rc<Filling>> {
        self.filling.borrow().clone()
    }

    /// That nothing is left to be fetched.
    ///
    /// # Errors
    /// `Filling`, or `Image` when the volume has failed.
    pub(crate) fn check_filled(&self) -> Result<(), VolumeError> {
        match &*self.filling.borrow() {
            None => Ok(()),
            Some(filling) => filling.check().and(Err(VolumeError::Filling)),
        }
    }
}

/// # Errors
/// `Invalid`.
fn check_image(image: &ImageRef, volume_bytes: u64) -> Result<(), VolumeError> {
    let invalid = |what, allowed| Err(VolumeError::Invalid { what, allowed });
    if !(1..=IMAGE_IDENTITY_BYTES_MAX).contains(&image.identity.len()) {
        let what = format!("an image's identity of {} bytes", image.identity.len());
        return invalid(what, "1 to 1024 bytes");
    }
    if image.bytes == 0 || image.bytes > volume_bytes {
        let what = format!("an image of {} bytes", image.bytes);
        return invalid(what, "1 byte up to the volume's size");
    }
    Ok(())
}
