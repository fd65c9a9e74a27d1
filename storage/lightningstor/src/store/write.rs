//! Writing objects: small ones with their record, larger ones as chunks into extents first.
//!
//! Invariant: the extents of a write that was not committed are free again when its last chunk has
//! ended, not before: a chunk in flight would land in what another body was given. When it is not
//! known whether the record became durable, they stay taken until the restart.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use engine::sync::Notify;
use engine::{DmaBuf, SchedGroup};
use futures_channel::oneshot;
use s3_wire::ObjectKey;

use super::error::StoreError;
use super::extent::{Extent, blocks_of};
use super::index::ObjectEntry;
use super::partition::{Inner, Partition};
use super::record::{Change, Crcs, Record, Stored};
use super::space::Space;
use super::types::{
    BucketId, CRC_BLOCK, Condition, INLINE_MAX, ObjectMeta, PutDone, PutSmall, Version, WRITE_MAX,
    WriteId,
};

/// Bytes reserved at a time for a body of unknown length.
const STEP_BYTES: u64 = 1 << 20;
/// Largest body that one write takes: 5 GiB.
pub const WRITE_BYTES_MAX: u64 = 5 << 30;

/// A body on its way into extents.
pub(super) struct WriteState {
    space: Rc<RefCell<Space>>,
    extents: RefCell<Vec<Extent>>,
    crcs: RefCell<Vec<u64>>,
    /// Where the furthest chunk ends.
    len: Cell<u64>,
    /// Bytes of all chunks: with `len`, whether there is a hole.
    taken: Cell<u64>,
    in_flight: Cell<usize>,
    chunk_ended: Notify,
    failed: RefCell<Option<StoreError>>,
}

impl Drop for WriteState {
    fn drop(&mut self) {
        let mut space = self.space.borrow_mut();
        for extent in self.extents.take() {
            space.allocator.give(extent);
        }
    }
}

/// Ends a chunk's count, whatever became of it.
struct ChunkEnd(Rc<WriteState>);

impl Drop for ChunkEnd {
    fn drop(&mut self) {
        self.0.in_flight.set(self.0.in_flight.get() - 1);
        self.0.chunk_ended.notify_all();
    }
}

impl WriteState {
    fn fail(&self, error: StoreError) -> StoreError {
        self.failed.borrow_mut().get_or_insert(error).clone()
    }

    /// Waits until no chunk is in flight.
    async fn quiet(&self) {
        while self.in_flight.get() > 0 {
            self.chunk_ended.notified().await;
        }
    }

    /// Notes a chunk that is about to be written.
    fn take(&self, offset: u64, len: usize, crcs: Vec<u64>) {
        self.len.set(self.len.get().max(offset + len as u64));
        self.taken.set(self.taken.get() + len as u64);
        let first = (offset / CRC_BLOCK as u64) as usize;
        let mut all = self.crcs.borrow_mut();
        let behind = first + crcs.len();
        if all.len() < behind {
            all.resize(behind, 0);
        }
        all.splice(first..behind, crcs);
    }

    fn capacity(&self) -> u64 {
        self.extents
            .borrow()
            .iter()
            .map(|extent| extent.bytes())
            .sum()
    }

    /// Gives back what was reserved past the body's end.
    fn trim(&self) {
        let mut extents = self.extents.borrow_mut();
        let mut spare =
            extents.iter().map(|e| u64::from(e.blocks)).sum::<u64>() - blocks_of(self.len.get());
        let mut space = self.space.borrow_mut();
        while let Some(last) = extents.last_mut().filter(|_| spare > 0) {
            let blocks = u64::from(last.blocks).min(spare) as u32;
            spare -= u64::from(blocks);
            last.blocks -= blocks;
            space.allocator.give(Extent {
                start: last.end(),
                blocks,
            });
            if last.blocks == 0 {
                extents.pop();
            }
        }
    }

    /// The body's extents, no longer given back on drop.
    pub(super) fn keep(&self) {
        self.extents.take();
    }
}

/// Whether a condition holds for what a key has.
fn check(condition: Condition, current: Option<&ObjectEntry>) -> Result<(), StoreError> {
    match (condition, current) {
        (Condition::None, _)
        | (Condition::IfNoneMatchAny, None)
        | (Condition::IfMatchAny, Some(_)) => Ok(()),
        (Condition::IfMatch(tag), Some(entry)) if entry.etag == tag => Ok(()),
        (Condition::IfMatch(_) | Condition::IfMatchAny, None) => Err(StoreError::NoSuchKey),
        (Condition::IfMatch(_) | Condition::IfNoneMatchAny, Some(_)) => {
            Err(StoreError::PreconditionFailed)
        }
    }
}

impl Partition {
    /// Writes an object of at most 64 KiB; visible and durable when it returns. When the future is
    /// dropped the write may still happen.
    ///
    /// # Errors
    /// `NoSuchBucket`, `PreconditionFailed`, `NoSuchKey` (If-Match of nothing), `Busy`, `Full`,
    /// `Poisoned`, `Gone`; `Internal` when the sizes of body and metadata differ.
    pub async fn put_small(&self, req: PutSmall) -> Result<PutDone, StoreError> {
        let PutSmall {
            bucket,
            key,
            meta,
            body,
            condition,
        } = req;
        let len = body.as_ref().map_or(0, |body| body.len());
        if len > INLINE_MAX || len as u64 != meta.size {
            return Err(StoreError::Internal(format!(
                "a body of {len} bytes for {}",
                meta.size
            )));
        }
        self.in_task(|inner| async move {
            let change = Change::Put {
                meta,
                stored: Stored::Inline,
            };
            inner.put(bucket, key, change, body, condition).await
        })
        .await
    }

    /// Begins a streamed body. Whoever begins one ends it by a commit or an abort.
    ///
    /// # Errors
    /// `Busy`, `Full`, `Poisoned`; `Internal` past 5 GiB.
    pub async fn write_begin(&self, expected_len: Option<u64>) -> Result<WriteId, StoreError> {
        let inner = &self.inner;
        inner.poison.check()?;
        if inner.writes.borrow().len() >= inner.config.writes_max {
            return Err(StoreError::Busy);
        }
        if expected_len.is_some_and(|len| len > WRITE_BYTES_MAX) {
            return Err(StoreError::Internal(format!(
                "a body past {WRITE_BYTES_MAX} bytes"
            )));
        }
        let extents = inner.data.reserve(expected_len.unwrap_or(0)).await?;
        let write = WriteId(inner.handle());
        let state = WriteState {
            space: Rc::clone(inner.data.space()),
            extents: RefCell::new(extents),
            crcs: RefCell::default(),
            len: Cell::new(0),
            taken: Cell::new(0),
            in_flight: Cell::new(0),
            chunk_ended: Notify::default(),
            failed: RefCell::default(),
        };
        inner.writes.borrow_mut().insert(write, Rc::new(state));
        Ok(write)
    }

    /// Writes the chunk at an offset with the CRC-64/NVME of each 64 KiB: at most [`WRITE_MAX`] bytes, and
    /// all but the last chunk whole blocks of 64 KiB; long ones cost the disk fewer requests. Several may
    /// be in flight, and arrive in any order: tasks and calls of one shard keep none. Not durable before
    /// the commit.
    ///
    /// # Errors
    /// `Gone` for an unknown write, `Busy`, `Full`, `Poisoned`; `Internal` for a chunk that does not
    /// fit the contract. After an error the write can only be aborted.
    pub fn write_chunk(
        &self,
        write: WriteId,
        offset: u64,
        chunk: DmaBuf,
        crcs: Vec<u64>,
    ) -> impl Future<Output = Result<(), StoreError>> + use<> {
        let started = self.start_chunk(write, offset, chunk, crcs);
        async move { started?.await.map_err(|_| StoreError::Gone)? }
    }

    fn start_chunk(
        &self,
        write: WriteId,
        offset: u64,
        chunk: DmaBuf,
        crcs: Vec<u64>,
    ) -> Result<oneshot::Receiver<Result<(), StoreError>>, StoreError> {
        let state = self
            .inner
            .writes
            .borrow()
            .get(&write)
            .cloned()
            .ok_or(StoreError::Gone)?;
        let end = offset.saturating_add(chunk.len() as u64);
        let whole = offset.is_multiple_of(CRC_BLOCK as u64);
        if chunk.is_empty() || chunk.len() > WRITE_MAX || !whole || end > WRITE_BYTES_MAX {
            let wrong = format!("a chunk of {} bytes at {offset}", chunk.len());
            return Err(state.fail(StoreError::Internal(wrong)));
        }
        if crcs.len() != chunk.len().div_ceil(CRC_BLOCK) {
            let wrong = format!("{} CRCs for a chunk of {} bytes", crcs.len(), chunk.len());
            return Err(state.fail(StoreError::Internal(wrong)));
        }
        state.take(offset, chunk.len(), crcs);
        state.in_flight.set(state.in_flight.get() + 1);
        let ending = ChunkEnd(Rc::clone(&state));
        let inner = Rc::clone(&self.inner);
        let (answer, answered) = oneshot::channel();
        let body = async move {
            let wrote = inner.write_at(&ending.0, chunk, offset, end).await;
            let wrote = wrote.map_err(|error| ending.0.fail(error));
            drop(ending);
            // The caller may have gone; the write's state tells its commit.
            let _ = answer.send(wrote);
        };
        match engine::try_spawn_local(SchedGroup::FOREGROUND, body) {
            Ok(task) => task.detach(),
            Err(_) => return Err(state.fail(StoreError::Busy)),
        }
        Ok(answered)
    }

    /// Gives a write up, and waits for its chunks: its space is free when it returns. When the
    /// future is dropped, it is free when the last chunk has ended. Unknown ids are ignored.
    pub async fn write_abort(&self, write: WriteId) {
        let state = self.inner.writes.borrow_mut().remove(&write);
        if let Some(state) = state {
            state.quiet().await;
        }
    }

    /// Makes a streamed body durable and then the key's object. When the future is dropped the
    /// write may still happen.
    ///
    /// # Errors
    /// As [`Partition::put_small`], and what a chunk has failed with. The write is gone either way.
    pub async fn put_commit(
        &self,
        write: WriteId,
        bucket: BucketId,
        key: ObjectKey,
        meta: ObjectMeta,
        condition: Condition,
    ) -> Result<PutDone, StoreError> {
        let state = self
            .inner
            .writes
            .borrow_mut()
            .remove(&write)
            .ok_or(StoreError::Gone)?;
        self.in_task(|inner| async move {
            let (stored, table) = inner.settle(&state, meta.size).await?;
            let change = Change::Put { meta, stored };
            let done = inner.put(bucket, key, change, None, condition).await;
            keep_if_needed(&done, [Some(state), table]);
            done
        })
        .await
    }

    /// Removes a key's object; tells whether there was one. When the future is dropped the removal
    /// may still happen.
    ///
    /// # Errors
    /// As [`Partition::put_small`].
    pub async fn delete(
        &self,
        bucket: BucketId,
        key: ObjectKey,
        condition: Condition,
    ) -> Result<bool, StoreError> {
        self.in_task(|inner| async move {
            let _ticket = inner.enter(bucket)?;
            let _key = inner.keys.acquire(bucket, key.as_str()).await?;
            let current = inner.lookup(bucket, key.as_str(), Version::NULL).await?;
            check(condition, current.as_ref())?;
            let existed = current.is_some();
            if existed {
                let key = key.as_str().into();
                let record = Record {
                    bucket,
                    key,
                    version: Version::NULL,
                    change: Change::Delete,
                };
                inner.append(record, None, current).await?;
            }
            inner.counters.deletes.set(inner.counters.deletes.get() + 1);
            Ok(existed)
        })
        .await
    }
}

/// After a commit: its extents belong to the index, or to nobody knows whom until the restart.
pub(super) fn keep_if_needed<R>(
    done: &Result<R, StoreError>,
    bodies: impl IntoIterator<Item = Option<Rc<WriteState>>>,
) {
    if matches!(done, Ok(_) | Err(StoreError::Poisoned(_))) {
        for body in bodies.into_iter().flatten() {
            body.keep();
        }
    }
}

impl Inner {
    async fn write_at(
        &self,
        state: &WriteState,
        chunk: DmaBuf,
        offset: u64,
        end: u64,
    ) -> Result<(), StoreError> {
        while state.capacity() < end {
            let more = self
                .data
                .reserve(STEP_BYTES.max(end - state.capacity()))
                .await?;
            state.extents.borrow_mut().extend(more);
        }
        let extents = state.extents.borrow().clone();
        self.data.write(chunk, &extents, offset).await
    }

    /// Waits for the chunks, makes the body durable, and says how its record describes it. The
    /// second value holds the extents of the CRC table.
    pub(super) async fn settle(
        &self,
        state: &WriteState,
        size: u64,
    ) -> Result<(Stored, Option<Rc<WriteState>>), StoreError> {
        state.quiet().await;
        if let Some(error) = &*state.failed.borrow() {
            return Err(error.clone());
        }
        if state.len.get() != size || state.taken.get() != size {
            let wrong = format!(
                "{} bytes up to {} were written for a body of {size}",
                state.taken.get(),
                state.len.get()
            );
            return Err(StoreError::Internal(wrong));
        }
        state.trim();
        if size == 0 {
            return Ok((Stored::Inline, None));
        }
        let extents = state.extents.borrow().clone();
        let crcs = state.crcs.take();
        if crcs.len() <= self.config.crcs_inline_max {
            self.data.flush().await?;
            return Ok((
                Stored::Extents {
                    extents,
                    crcs: Crcs::Inline(crcs),
                },
                None,
            ));
        }
        let table = self.write_table(&crcs).await?;
        self.data.flush().await?;
        let entries = crcs.len() as u32;
        let (place, sums) = (table.extents.borrow().clone(), table.crcs.take());
        let crcs = Crcs::Table {
            extents: place,
            entries,
            crcs: sums,
        };
        Ok((Stored::Extents { extents, crcs }, Some(table)))
    }

    /// Writes a body's CRCs as a body of their own.
    async fn write_table(&self, crcs: &[u64]) -> Result<Rc<WriteState>, StoreError> {
        let bytes = crcs.len() as u64 * 8;
        let table = Rc::new(WriteState {
            space: Rc::clone(self.data.space()),
            extents: RefCell::new(self.data.reserve(bytes).await?),
            crcs: RefCell::default(),
            len: Cell::new(bytes),
            taken: Cell::new(bytes),
            in_flight: Cell::new(0),
            chunk_ended: Notify::default(),
            failed: RefCell::default(),
        });
        for (number, block) in crcs.chunks(CRC_BLOCK / 8).enumerate() {
            let mut buf = engine::take_buf(block.len() * 8)?;
            for (to, crc) in buf.chunks_exact_mut(8).zip(block) {
                to.copy_from_slice(&crc.to_le_bytes());
            }
            table.crcs.borrow_mut().push(crc_fast::crc64_nvme(&buf));
            let extents = table.extents.borrow().clone();
            self.data
                .write(buf, &extents, (number * CRC_BLOCK) as u64)
                .await?;
        }
        Ok(table)
    }

    /// Commits an object of the key. The body's extents, if any, are durable.
    async fn put(
        self: &Rc<Inner>,
        bucket: BucketId,
        key: ObjectKey,
        change: Change,
        body: Option<DmaBuf>,
        condition: Condition,
    ) -> Result<PutDone, StoreError> {
        let _ticket = self.enter(bucket)?;
        let _key = self.keys.acquire(bucket, key.as_str()).await?;
        self.put_locked(bucket, &key, change, body.as_ref(), condition)
            .await
    }

    /// As [`Inner::put`], under the key's guard and a ticket of the caller's.
    pub(super) async fn put_locked(
        self: &Rc<Inner>,
        bucket: BucketId,
        key: &ObjectKey,
        change: Change,
        body: Option<&DmaBuf>,
        condition: Condition,
    ) -> Result<PutDone, StoreError> {
        let current = self.lookup(bucket, key.as_str(), Version::NULL).await?;
        check(condition, current.as_ref())?;
        let (Change::Put { meta, .. } | Change::UploadComplete { meta, .. }) = &change else {
            return Err(StoreError::Internal("not an object's record".to_owned()));
        };
        let etag = meta.etag;
        let key = key.as_str().into();
        let record = Record {
            bucket,
            key,
            version: Version::NULL,
            change,
        };
        self.append(record, body, current).await?;
        self.counters.puts.set(self.counters.puts.get() + 1);
        Ok(PutDone {
            etag,
            version: Version::NULL,
        })
    }
}
