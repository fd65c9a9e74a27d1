//! Taking in the bytes of an object or part, from a request's body or from another object.
//!
//! Small ones are gathered in one buffer. Large ones go to the store in chunks, two in flight, while
//! the digests are computed. Nothing is visible before it is committed, and what is not committed is
//! given up: also when the request's task is dropped. Chunks on their way always land before the
//! store is told to forget them.

use std::collections::VecDeque;
use std::ops::Range;
use std::rc::Rc;

use crc_fast::{CrcAlgorithm, checksum};
use engine::sync::SemaphorePermit;
use engine::{DmaBuf, SchedGroup, Task};
use s3_wire::checksum::{BodyDigests, BodyPromise, Checksum};
use s3_wire::chunked::Trailers;
use s3_wire::{Etag, S3Error, S3ErrorCode};
use shards::{PartitionId, TenantId};

use super::body::Body;
use super::config::{BODY_BYTES_MAX, CHUNK_BYTES, INLINE_BYTES_MAX};
use super::errors;
use super::read::Reading;
use super::server::Server;
use crate::store::{CRC_BLOCK, StoreError, WriteId};

/// Chunks of one upload on their way to the store.
const IN_FLIGHT_MAX: usize = 2;
/// Bytes that are hashed before other tasks get a look.
const HASH_BYTES: usize = 64 << 10;
/// Cost of a chunk in turns of the tenant.
const CHUNK_COST: u32 = 4;

/// Where bytes come from.
pub(crate) enum Source<'a, 'c> {
    /// A request's body.
    Body(&'a mut Body<'c>),
    /// Another object: a reading and what is left of its piece.
    Object {
        reading: Reading,
        left: u64,
        piece: Option<(DmaBuf, Range<usize>)>,
    },
    /// A small object, read already.
    Memory { buf: DmaBuf, range: Range<usize> },
}

impl Source<'_, '_> {
    async fn fill(
        &mut self,
        mut buf: DmaBuf,
        filled: usize,
        end: usize,
    ) -> Result<(usize, DmaBuf), S3Error> {
        buf.set_len(filled);
        match self {
            Source::Body(body) => body.fill(buf, filled, end).await,
            Source::Memory { buf: from, range } => {
                let count = range.len().min(end - filled);
                buf.extend_from_slice(&from[range.start..range.start + count]);
                range.start += count;
                Ok((count, buf))
            }
            Source::Object {
                reading,
                left,
                piece,
            } => {
                let (from, mut range) = match piece.take() {
                    Some(piece) => piece,
                    None if *left == 0 => return Ok((0, buf)),
                    None => reading.next().await?,
                };
                let count = range.len().min(end - filled);
                buf.extend_from_slice(&from[range.start..range.start + count]);
                range.start += count;
                *left -= count as u64;
                *piece = (!range.is_empty()).then_some((from, range));
                Ok((count, buf))
            }
        }
    }

    async fn finish(&mut self) -> Result<Trailers, S3Error> {
        match self {
            Source::Body(body) => body.finish().await,
            Source::Object { .. } | Source::Memory { .. } => Ok(Trailers::new()),
        }
    }
}

/// What is to be taken in, and for whom.
pub(crate) struct Intake<'s> {
    pub(crate) server: &'s Rc<Server>,
    /// Owner of the key that the bytes are for.
    pub(crate) partition: PartitionId,
    pub(crate) tenant: TenantId,
    /// Exact length in bytes.
    pub(crate) len: u64,
    pub(crate) promise: BodyPromise,
    /// The SHA-256 under the request's signature.
    pub(crate) payload_sha256: Option<[u8; 32]>,
}

/// Where the bytes are now.
pub(crate) enum Held {
    /// In memory; none for an empty body.
    Small(Option<DmaBuf>),
    /// With the store, uncommitted.
    Streamed(Upload),
}

/// Bytes that arrived whole and kept every promise.
pub(crate) struct Received {
    pub(crate) held: Held,
    pub(crate) size: u64,
    pub(crate) etag: Etag,
    pub(crate) checksum: Option<Checksum>,
    _memory: SemaphorePermit,
}

impl Intake<'_> {
    /// Takes everything in and checks it.
    ///
    /// # Errors
    /// EntityTooLarge, IncompleteBody, a digest that does not match, SlowDown, or the store's.
    pub(crate) async fn run(self, mut source: Source<'_, '_>) -> Result<Received, S3Error> {
        if self.len > BODY_BYTES_MAX {
            return Err(S3ErrorCode::EntityTooLarge.into());
        }
        let mut digests = BodyDigests::new(self.promise, self.payload_sha256, true);
        let is_small = self.len <= INLINE_BYTES_MAX as u64;
        let chunks_max = IN_FLIGHT_MAX as u64 + 1;
        let memory = self.len.min(chunks_max * CHUNK_BYTES as u64);
        let memory = self.server.budget(memory).await?;
        let held = if is_small {
            Held::Small(self.gather(&mut source, &mut digests).await?)
        } else {
            Held::Streamed(self.stream(&mut source, &mut digests).await?)
        };
        let trailers = source.finish().await?;
        let found = digests.finish(&trailers)?;
        self.server.metrics.received(self.len);
        let md5 = found.md5.expect("the MD5 was asked for");
        Ok(Received {
            held,
            size: self.len,
            etag: Etag::single(md5),
            checksum: found.checksum,
            _memory: memory,
        })
    }

    async fn gather(
        &self,
        source: &mut Source<'_, '_>,
        digests: &mut BodyDigests,
    ) -> Result<Option<DmaBuf>, S3Error> {
        if self.len == 0 {
            return Ok(None);
        }
        let buf = self.server.buffer(self.len as usize).await?;
        self.fill_chunk(source, digests, buf, self.len as usize)
            .await
            .map(Some)
    }

    async fn stream(
        &self,
        source: &mut Source<'_, '_>,
        digests: &mut BodyDigests,
    ) -> Result<Upload, S3Error> {
        let mut upload = Upload::begin(self).await?;
        let mut left = self.len;
        while left > 0 {
            let want = left.min(CHUNK_BYTES as u64) as usize;
            let buf = self.server.buffer(want).await?;
            let chunk = self.fill_chunk(source, digests, buf, want).await?;
            upload.push(chunk).await?;
            left -= want as u64;
        }
        upload.settle().await?;
        Ok(upload)
    }

    /// Fills a buffer with exactly `want` bytes and digests them.
    async fn fill_chunk(
        &self,
        source: &mut Source<'_, '_>,
        digests: &mut BodyDigests,
        mut buf: DmaBuf,
        want: usize,
    ) -> Result<DmaBuf, S3Error> {
        let mut filled = 0;
        while filled < want {
            let count;
            (count, buf) = source.fill(buf, filled, want).await?;
            if count == 0 {
                return Err(S3ErrorCode::IncompleteBody.into());
            }
            for piece in buf[filled..filled + count].chunks(HASH_BYTES) {
                digests.update(piece);
                engine::yield_if_needed().await;
            }
            filled += count;
        }
        Ok(buf)
    }
}

/// An uncommitted body in the store. Given up when dropped, unless [`Upload::commit`] let it go.
pub(crate) struct Upload {
    server: Rc<Server>,
    partition: PartitionId,
    tenant: TenantId,
    id: Option<WriteId>,
    in_flight: VecDeque<Task<Result<(), StoreError>>>,
}

impl Upload {
    async fn begin(intake: &Intake<'_>) -> Result<Upload, S3Error> {
        let len = intake.len;
        let begun = intake.server.on(intake.partition, move |p| async move {
            p.write_begin(Some(len)).await
        });
        let id = begun
            .await
            .map_err(|error| errors::report(&error, "write_begin"))?;
        Ok(Upload {
            server: Rc::clone(intake.server),
            partition: intake.partition,
            tenant: intake.tenant,
            id: Some(id),
            in_flight: VecDeque::with_capacity(IN_FLIGHT_MAX),
        })
    }

    /// The name of the body in the store; the store forgets it when it is committed.
    pub(crate) fn id(&self) -> WriteId {
        self.id
            .expect("an upload has its name until it is committed")
    }

    /// The store has taken the body over.
    pub(crate) fn committed(mut self) {
        self.id = None;
    }

    /// Sends the next chunk on its way, waiting for an earlier one when there are enough.
    async fn push(&mut self, chunk: DmaBuf) -> Result<(), S3Error> {
        while self.in_flight.len() >= IN_FLIGHT_MAX {
            self.land().await?;
        }
        // The turn is taken here and not in the task: chunks have to reach the store in order.
        let turn = self.server.turn(self.tenant, CHUNK_COST).await?;
        let crcs: Vec<u64> = chunk
            .chunks(CRC_BLOCK)
            .map(|block| checksum(CrcAlgorithm::Crc64Nvme, block))
            .collect();
        let (server, partition, id) = (Rc::clone(&self.server), self.partition, self.id());
        let write = async move {
            let write = server.on(partition, move |p| async move {
                p.write_chunk(id, chunk, crcs).await
            });
            let written = write.await;
            drop(turn);
            written
        };
        let task = engine::try_spawn_local(SchedGroup::FOREGROUND, write)
            .map_err(|_| errors::of_store(&StoreError::Busy))?;
        self.in_flight.push_back(task);
        Ok(())
    }

    async fn settle(&mut self) -> Result<(), S3Error> {
        while !self.in_flight.is_empty() {
            self.land().await?;
        }
        Ok(())
    }

    /// Waits for the oldest chunk. It is taken off the queue only when it has landed, so that a
    /// drop in between still waits for it.
    async fn land(&mut self) -> Result<(), S3Error> {
        let Some(oldest) = self.in_flight.front_mut() else {
            return Ok(());
        };
        let landed = oldest.await;
        self.in_flight.pop_front();
        landed.map_err(|error| errors::report(&error, "write_chunk"))
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        let Some(id) = self.id.take() else { return };
        let in_flight = std::mem::take(&mut self.in_flight);
        let (server, partition) = (Rc::clone(&self.server), self.partition);
        let give_up = async move {
            for chunk in in_flight {
                // The body is given up, whatever became of the chunk.
                let _ = chunk.await;
            }
            let aborted = server.on(partition, move |p| async move {
                p.write_abort(id).await;
                Ok(())
            });
            if let Err(error) = aborted.await {
                tracing::warn!(%error, "space of an abandoned body stays taken until a restart");
            }
        };
        // Only a shard that is full or ending refuses; the space is found again at the next start.
        let _ = engine::try_spawn_local(SchedGroup::FOREGROUND, give_up).map(Task::detach);
    }
}
