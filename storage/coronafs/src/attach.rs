//! Attachments: a volume as a block device, for as long as its generation holds.

use std::cell::Cell;
use std::pin::pin;
use std::rc::Rc;

use engine::GuestList;
use engine::sync::Notify;
use futures_util::future::select;
use shards::block::{BlockDevice, BlockError, EXTENTS_MAX, Extent, Geometry};
use xts::Cipher;

use crate::data::Coding;
use crate::error::VolumeError;
use crate::joint::Asked;
use crate::map::{BLOCK, CLUSTER};
use crate::partition::{Inner, Partition};
use crate::record::Change;
use crate::shares::Turn;
use crate::types::{Survived, VolumeId};
use crate::volume::{Holder, Volume};

/// What an attachment may do, and beside whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Writes, and nobody else does.
    Exclusive,
    /// Writes, beside others that said so too, as the two sides of a migration.
    Shared,
    /// Only reads, beside anybody.
    ReadOnly,
}

/// How a volume is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attach {
    /// What the attachment may do.
    pub access: Access,
    /// Whether attachments that stand in the way are fenced instead of this one refused.
    pub take_over: bool,
}

/// A volume that is attached. Dropping it detaches; what was not flushed is not durable then.
///
/// The futures of its [`BlockDevice`] want to be awaited to their end. One that is dropped leaves the
/// volume whole, but the partition then keeps back whatever becomes free until it is opened again, as
/// the kernel may still be at it; and when the kernel was writing, the partition takes no more writes
/// until then, as this one might overtake them.
pub struct Attachment {
    pub(crate) inner: Rc<Inner>,
    pub(crate) volume: Rc<Volume>,
    cipher: Option<Rc<Cipher>>,
    generation: u64,
    pub(crate) read_only: bool,
    serial: [u8; 20],
    live: Rc<Cell<bool>>,
    hurried: Notify,
    pub(crate) asked: Asked,
}

impl std::fmt::Debug for Attachment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Attachment")
            .field("volume", &self.volume.id)
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.volume
            .fence(|holder| holder.generation == self.generation);
    }
}

impl Partition {
    /// Attaches a volume; its generation is durable when this returns, and writes of an attachment
    /// that it took over have ended.
    ///
    /// # Errors
    /// `NoSuchVolume`, `Attached`, `Full`, `Busy`, `Poisoned`, `Gone`.
    pub async fn attach(&self, id: VolumeId, how: Attach) -> Result<Attachment, VolumeError> {
        self.in_task(move |inner| async move {
            let _turn = inner.turn().await?;
            let volume = inner.volume(id)?;
            let cipher = inner.cipher_of(&volume)?;
            let in_the_way = |holder: &Holder| match how.access {
                Access::ReadOnly => false,
                Access::Shared => !holder.read_only && !holder.shared,
                Access::Exclusive => !holder.read_only,
            };
            let held = volume.generation_held(in_the_way);
            if let Some(generation) = held.filter(|_| !how.take_over) {
                return Err(VolumeError::Attached(generation));
            }
            let generation = volume.meta.borrow().generation + 1;
            let change = Change::Attach {
                volume: id,
                generation,
            };
            inner.change(change, None).await?;
            volume.fence(in_the_way);
            drop(volume.gate.close().await);
            let live = Rc::new(Cell::new(!inner.is_closing()));
            volume.holders.borrow_mut().push(Holder {
                generation,
                shared: how.access == Access::Shared,
                read_only: how.access == Access::ReadOnly,
                live: Rc::clone(&live),
            });
            Ok(Attachment {
                inner,
                volume,
                cipher,
                generation,
                read_only: how.access == Access::ReadOnly,
                serial: serial(id),
                live,
                hurried: Notify::default(),
                asked: Asked::default(),
            })
        })
        .await
    }
}

impl Inner {
    /// # Errors
    /// `Key`, which a start would have said.
    pub(crate) fn cipher_of(&self, volume: &Volume) -> Result<Option<Rc<Cipher>>, VolumeError> {
        let Some(id) = volume.meta.borrow().key else {
            return Ok(None);
        };
        let why = "it is missing";
        let cipher = self.keys.cipher(id).ok_or(VolumeError::Key { id, why })?;
        Ok(Some(cipher))
    }
}

impl Volume {
    fn generation_held(&self, chosen: impl Fn(&Holder) -> bool) -> Option<u64> {
        let holders = self.holders.borrow();
        let found = holders.iter().filter(|holder| chosen(holder));
        found.map(|holder| holder.generation).max()
    }
}

impl Attachment {
    /// The volume.
    pub fn volume(&self) -> VolumeId {
        self.volume.id
    }

    /// Its number among the volume's attachments.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether another attachment has taken the volume over, or the partition was closed.
    pub fn is_fenced(&self) -> bool {
        !self.live.get()
    }

    /// As [`Partition::survived`].
    pub fn survived(&self) -> Survived {
        self.inner.survived
    }

    /// # Errors
    /// `Fenced`.
    pub(crate) fn check_live(&self) -> Result<(), VolumeError> {
        if self.live.get() {
            return Ok(());
        }
        Err(VolumeError::Fenced)
    }

    /// Checks a request, and waits until the volume's limits and its share let it begin, or it is hurried:
    /// what it owes is counted all the same, and those that come later wait for it.
    /// A volume that needs its image has no turn: the image's source may take any time, and who waits for that
    /// keeps nobody from the disk.
    async fn admit(
        &self,
        offset: u64,
        len: u64,
        changes: bool,
    ) -> Result<Option<Turn<'_>>, BlockError> {
        self.check_live().map_err(block_error)?;
        self.geometry().check(offset, len, changes)?;
        let now = engine::now();
        let begin = self.volume.throttle.borrow_mut().admit(now, len);
        if begin > now {
            let hurried = pin!(self.hurried.notified());
            select(pin!(engine::sleep_until(begin)), hurried).await;
            self.check_live().map_err(block_error)?;
        }
        if self.volume.filling().is_some() {
            return Ok(None);
        }
        let turn = self.inner.shares.queue(&self.volume.share, len);
        if turn.waits() {
            select(pin!(turn.begins()), pin!(self.hurried.notified())).await;
            turn.begin_now();
            self.check_live().map_err(block_error)?;
        }
        Ok(Some(turn))
    }

    /// How bytes of a place of the volume are on disk.
    pub(crate) fn coding(&self, place: u64) -> Option<Coding<'_>> {
        let cipher = self.cipher.as_deref()?;
        Some(Coding { cipher, place })
    }

    async fn flush_if(&self, durable: bool) -> Result<(), VolumeError> {
        if durable {
            self.inner.commit(&self.volume).await?;
        }
        Ok(())
    }
}

/// A volume's id in hexadecimal digits.
fn serial(volume: VolumeId) -> [u8; 20] {
    let mut serial = [0; 20];
    let id = format!("{:016x}", volume.0);
    serial[..id.len()].copy_from_slice(id.as_bytes());
    serial
}

pub(crate) fn block_error(error: VolumeError) -> BlockError {
    match error {
        VolumeError::Full => BlockError::Full,
        VolumeError::Busy => BlockError::Busy,
        VolumeError::Fenced | VolumeError::Gone => BlockError::Fenced,
        other => BlockError::Io(std::io::Error::other(other)),
    }
}

impl BlockDevice for Attachment {
    fn geometry(&self) -> Geometry {
        Geometry {
            bytes: self.volume.bytes(),
            block_bytes: self.inner.data.sector,
            physical_bytes: BLOCK as u32,
            optimal_bytes: CLUSTER as u32,
            discard_granularity: BLOCK as u32,
            read_only: self.read_only,
            serial: self.serial,
        }
    }

    async fn read(&self, offset: u64, into: GuestList) -> Result<(), BlockError> {
        let _turn = self.admit(offset, into.len(), false).await?;
        self.read_range(offset, into).await.map_err(block_error)
    }

    fn read_now(&self, offset: u64, into: &GuestList) -> Option<Result<(), BlockError>> {
        let volume = &self.volume;
        let plain = self.cipher.is_none() && !volume.summed && volume.filling().is_none();
        let may = self.live.get() && volume.throttle.borrow().is_free();
        if !plain || !may || !self.inner.data.reads_now() {
            return None;
        }
        self.geometry().check(offset, into.len(), false).ok()?;
        let run = volume.run_at(offset, into.len());
        let place = run.place.filter(|_| run.bytes == into.len())?;
        let read = self.inner.data.read_now(into, place)?;
        Some(read.map_err(block_error))
    }

    async fn write(&self, offset: u64, from: GuestList, durable: bool) -> Result<(), BlockError> {
        let turn = self.admit(offset, from.len(), true).await?;
        let done = async {
            self.write_range(offset, from).await?;
            drop(turn);
            self.flush_if(durable).await
        };
        done.await.map_err(block_error)
    }

    async fn flush(&self) -> Result<(), BlockError> {
        self.check_live().map_err(block_error)?;
        self.inner.commit(&self.volume).await.map_err(block_error)
    }

    async fn discard(&self, offset: u64, len: u64) -> Result<(), BlockError> {
        let _turn = self.admit(offset, 0, true).await?;
        self.geometry().check(offset, len, true)?;
        self.unmap_range(offset, len).await.map_err(block_error)
    }

    /// A volume is thin: space is freed whether `may_unmap` or not, and there is none to be kept for
    /// what reads as zeros.
    async fn write_zeroes(
        &self,
        offset: u64,
        len: u64,
        _may_unmap: bool,
        durable: bool,
    ) -> Result<(), BlockError> {
        let turn = self.admit(offset, 0, true).await?;
        self.geometry().check(offset, len, true)?;
        let done = async {
            self.zero_range(offset, len).await?;
            drop(turn);
            self.flush_if(durable).await
        };
        done.await.map_err(block_error)
    }

    async fn extents(&self, offset: u64, len: u64) -> Result<Vec<Extent>, BlockError> {
        self.check_live().map_err(block_error)?;
        self.geometry().check(offset, len, false)?;
        Ok(self.volume.extents_at(offset, len, EXTENTS_MAX))
    }

    fn changed(&self) -> impl Future<Output = ()> {
        self.volume.changed.notified()
    }

    fn hurry(&self) {
        self.hurried.notify_all();
    }
}
