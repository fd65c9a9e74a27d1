//! Fetching chunks of an image and giving their blocks to a volume.
//!
//! A chunk is fetched once, however many wait for it: a flight, in a task of its own, so that nobody who
//! goes away leaves a write half done. A source is waited for outside of gates, locks and turns, and
//! with nothing of the partition held.

use std::cell::RefCell;
use std::rc::{Rc, Weak};
use std::time::Duration;

use engine::SchedGroup;
use engine::sync::{Notify, Semaphore};
use futures_util::future::join_all;

use super::record::ImageChange;
use super::{Filling, Images, digest};
use xts::Cipher;

use crate::data::take_buf;
use crate::error::VolumeError;
use crate::map::{BLOCK, BLOCKS, CLUSTER, Piece};
use crate::partition::{Claim, For, Inner};
use crate::record::Change;
use crate::summed::Plan;
use crate::sums::BlockSums;
use crate::unflushed::Room;
use crate::volume::Volume;

/// How long a source may take to be found, and to read a chunk.
pub(super) const FETCH_WAIT: Duration = Duration::from_mins(1);
/// Chunks that a partition fetches at once; more wait.
pub(super) const FETCHES_MAX: u64 = 8;
/// Those that may wait.
pub(super) const FETCHERS_MAX: usize = 65_536;
/// Tries to find space by making durable what frees it.
const RECLAIMS_MAX: usize = 3;

/// A chunk that is being fetched.
#[derive(Default)]
pub(crate) struct Flight {
    outcome: RefCell<Option<Result<Chunk, VolumeError>>>,
    landed: Notify,
}

/// A chunk that was fetched. What the image has no bytes for, up to a whole block, is zeros.
#[derive(Clone)]
pub(crate) struct Chunk {
    pub(crate) bytes: Rc<Vec<u8>>,
    /// Whether the volume has it.
    pub(crate) filled: Result<(), VolumeError>,
}

impl Flight {
    /// Cancel-safe.
    pub(crate) async fn wait(&self) -> Result<Chunk, VolumeError> {
        loop {
            let landed = self.landed.notified();
            if let Some(outcome) = &*self.outcome.borrow() {
                return outcome.clone();
            }
            landed.await;
        }
    }
}

/// Ends a flight, also when its task is dropped.
struct Landing {
    filling: Rc<Filling>,
    flight: Rc<Flight>,
    chunk: u64,
}

impl Drop for Landing {
    fn drop(&mut self) {
        self.filling.flights.borrow_mut().remove(&self.chunk);
        let mut outcome = self.flight.outcome.borrow_mut();
        outcome.get_or_insert(Err(VolumeError::Gone));
        self.flight.landed.notify_all();
    }
}

/// Where a chunk comes from and goes to.
struct Way {
    partition: Weak<Inner>,
    images: Rc<Images>,
    volume: Rc<Volume>,
    filling: Rc<Filling>,
    chunk: u64,
}

impl Filling {
    /// Fetches a chunk and fills what has no piece of it, or joins whoever does.
    ///
    /// # Errors
    /// `Busy` when the shard has no task for it, `Image` when the volume has failed.
    pub(super) fn fetch(
        self: &Rc<Filling>,
        partition: &Rc<Inner>,
        volume: &Rc<Volume>,
        chunk: u64,
        group: SchedGroup,
    ) -> Result<Rc<Flight>, VolumeError> {
        self.check()?;
        if let Some(flight) = self.flights.borrow().get(&chunk) {
            return Ok(Rc::clone(flight));
        }
        let flight = Rc::new(Flight::default());
        let way = Way {
            partition: Rc::downgrade(partition),
            images: Rc::clone(&partition.images),
            volume: Rc::clone(volume),
            filling: Rc::clone(self),
            chunk,
        };
        let landing = Landing {
            filling: Rc::clone(self),
            flight: Rc::clone(&flight),
            chunk,
        };
        self.flights.borrow_mut().insert(chunk, Rc::clone(&flight));
        let body = async move {
            let outcome = way.fly().await;
            landing.flight.outcome.replace(Some(outcome));
        };
        // One that has no task has landed when this returns.
        let task = engine::try_spawn_own(group, body);
        task.map_err(|_| VolumeError::Busy)?.detach();
        Ok(flight)
    }
}

impl Way {
    async fn fly(&self) -> Result<Chunk, VolumeError> {
        let _right = Semaphore::acquire(&self.images.fetching, 1).await?;
        let filling = &self.filling;
        let fetched = self.fetch().await;
        let trouble = fetched.as_ref().err().map(ToString::to_string);
        filling.trouble.replace(trouble);
        let (bytes, hash) = fetched?;
        filling.check()?;
        let Some(partition) = self.partition.upgrade() else {
            return Err(VolumeError::Gone);
        };
        if let Some(hash) = hash {
            self.compare(hash)?;
        }
        let filled = self.fill(&partition, &bytes, hash).await;
        Ok(Chunk {
            bytes: Rc::new(bytes),
            filled,
        })
    }

    /// The chunk's bytes, and their hash when there is a digest.
    async fn fetch(&self) -> Result<(Vec<u8>, Option<[u8; 32]>), VolumeError> {
        let filling = &self.filling;
        let offset = self.chunk * filling.chunk_bytes;
        let len = filling.chunk_bytes.min(filling.image.bytes - offset) as usize;
        let mut bytes = vec![0; len.next_multiple_of(BLOCK as usize)];
        let read = async {
            let source = filling.source(&self.images).await?;
            source.read_at(offset, &mut bytes[..len]).await
        };
        let read = match engine::timeout(FETCH_WAIT, read).await {
            Some(read) => read.map_err(|error| error.to_string()),
            None => Err(format!("no answer within {} s", FETCH_WAIT.as_secs())),
        };
        if let Err(why) = read {
            // It may be elsewhere by now.
            filling.source.take();
            return Err(VolumeError::Image(format!(
                "the image {} cannot be read at byte {offset}: {why}",
                filling.image.identity
            )));
        }
        let hash = match filling.image.digest {
            Some(_) => Some(digest::of_chunk(&bytes[..len]).await),
            None => None,
        };
        Ok((bytes, hash))
    }

    /// What is fetched twice is the same twice.
    fn compare(&self, hash: [u8; 32]) -> Result<(), VolumeError> {
        let meta = self.volume.meta.borrow();
        let before = meta.image.as_ref();
        let before = before.and_then(|image| image.fetched.get(&self.chunk));
        if before.is_none_or(|before| *before == hash) {
            return Ok(());
        }
        let at = self.chunk * self.filling.chunk_bytes;
        let identity = &self.filling.image.identity;
        Err(self.filling.fail(format!(
            "the image {identity} has other content at byte {at} than it had before"
        )))
    }

    async fn fill(
        &self,
        partition: &Rc<Inner>,
        bytes: &[u8],
        hash: Option<[u8; 32]>,
    ) -> Result<(), VolumeError> {
        let first = self.chunk * (self.filling.chunk_bytes / CLUSTER);
        let clusters = || (first..).zip(bytes.chunks(CLUSTER as usize));
        let is_absent = |index| self.filling.absent(&self.volume.tree.borrow(), index) != 0;
        if !clusters().any(|(index, _)| is_absent(index)) {
            return Ok(());
        }
        if let Some(hash) = hash {
            self.keep_hash(partition, hash).await?;
        }
        let cipher = partition.cipher_of(&self.volume)?;
        let cipher = cipher.as_deref();
        let mut reclaims = 0;
        loop {
            let fills = clusters().map(|(index, bytes)| Part {
                partition,
                way: self,
                cipher,
                index,
                bytes,
            });
            let fills = fills.map(async |part| part.fill().await);
            let outcome = join_all(fills).await.into_iter().collect();
            if outcome != Err(VolumeError::Full) || reclaims == RECLAIMS_MAX {
                return outcome;
            }
            reclaims += 1;
            if !partition.reclaim().await? {
                return outcome;
            }
        }
    }

    /// Makes the hash durable before anything of the chunk is mapped. Memory may have it before the log
    /// does: it is true whatever becomes of the fill.
    async fn keep_hash(&self, partition: &Rc<Inner>, hash: [u8; 32]) -> Result<(), VolumeError> {
        if let Some(image) = &mut self.volume.meta.borrow_mut().image {
            image.set_fetched(self.chunk, hash);
        }
        let kept = Change::Image {
            volume: self.volume.id,
            change: ImageChange::Fetched {
                chunk: self.chunk,
                hash,
            },
        };
        let (kind, payload) = kept.encode();
        partition.append(kind, &payload, Claim::Ordinary).await
    }
}

/// A cluster's part of a chunk.
struct Part<'a> {
    partition: &'a Rc<Inner>,
    way: &'a Way,
    cipher: Option<&'a Cipher>,
    index: u64,
    bytes: &'a [u8],
}

impl Part<'_> {
    async fn fill(&self) -> Result<(), VolumeError> {
        let (partition, volume) = (self.partition, &self.way.volume);
        if volume.uncommitted() >= partition.config.dirty_slots_max {
            partition.commit_for(volume, For::Space).await?;
        }
        let room = partition.room(1, For::Space).await?;
        let _pass = volume.gate.pass().await;
        partition.check_there(volume)?;
        let using = partition.data.using();
        let outcome = self.fill_absent(&room).await;
        using.end();
        volume.note_done();
        outcome
    }

    /// The caller is inside of the gate.
    async fn fill_absent(&self, room: &Room<'_>) -> Result<(), VolumeError> {
        let volume = &self.way.volume;
        let _lock = volume.locks.lock(self.index).await;
        // Nobody else changes the slot from here on.
        let absent = self.way.filling.absent(&volume.tree.borrow(), self.index);
        let zeros = absent & zero_blocks(self.bytes);
        let blocks = absent & !zeros;
        let (places, sums) = if blocks == 0 {
            (Vec::new(), BlockSums::NONE)
        } else {
            self.write(blocks).await?
        };
        let mut space = self.partition.data.space.borrow_mut();
        volume.fill_blocks(&mut space, room, self.index, (&places, &sums), zeros);
        Ok(())
    }

    /// Writes blocks to where nothing refers to yet: where they lie, and their checksums when the volume has some.
    async fn write(&self, blocks: u16) -> Result<(Vec<Piece>, BlockSums), VolumeError> {
        let (partition, volume) = (self.partition, &self.way.volume);
        let mut plan = if volume.summed {
            partition.plan(volume, self.index, blocks).await?
        } else {
            self.plan_in_one(blocks).await?
        };
        let wrote = self.write_planned(&mut plan).await;
        if wrote.is_err() {
            // Nobody has seen it.
            partition.data.space.borrow_mut().end(plan.taken);
        }
        Ok((plan.targets, wrote?))
    }

    /// The slot's own cluster, or a new one.
    async fn plan_in_one(&self, mask: u16) -> Result<Plan, VolumeError> {
        let (data, volume) = (&self.partition.data, &self.way.volume);
        let own = volume.own_piece(&data.space.borrow(), self.index);
        let cluster = if let Some(own) = own {
            own.cluster
        } else {
            let near = volume.place_before(self.index);
            data.take(near, volume.layer.get()).await?
        };
        Ok(Plan::of_one(Piece { cluster, mask }, own.is_none()))
    }

    async fn write_planned(&self, plan: &mut Plan) -> Result<BlockSums, VolumeError> {
        let (partition, bytes) = (self.partition, self.bytes.len() as u64);
        let _right = partition.data.bouncing(bytes + plan.buffers()).await?;
        let mut buf = take_buf(bytes).await?;
        buf.copy_from_slice(self.bytes);
        if let Some(cipher) = self.cipher {
            cipher.encrypt(self.index * CLUSTER, &mut buf);
        }
        if self.way.volume.summed {
            return partition.write_planned(plan, 0, buf).await;
        }
        partition.write_targets(buf, 0, &plan.targets).await?;
        Ok(BlockSums::NONE)
    }
}

/// Which blocks are zeros.
fn zero_blocks(bytes: &[u8]) -> u16 {
    let blocks = (0..BLOCKS).zip(bytes.chunks(BLOCK as usize));
    blocks.fold(0, |all, (block, bytes)| {
        let zero = bytes.iter().all(|byte| *byte == 0);
        all | u16::from(zero) << block
    })
}
