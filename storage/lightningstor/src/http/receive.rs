//! Taking in the bytes of an object or part, from a request's body or from another object.
//!
//! Small ones are gathered in one buffer. Large ones go to the store in chunks: while one is received
//! and summed, the one before is in the hashing, and two more are on their way. Chunks are long while
//! memory is plentiful: the disk gets fewer requests, and bodies wait for each other in the hashing.
//! Nothing is visible before it is committed, and what is not committed is given up: also when the
//! request's task is dropped. Chunks on their way always land before the store is told to forget them.

use std::collections::VecDeque;
use std::ops::Range;
use std::rc::Rc;

use crc_fast::CrcAlgorithm;
use engine::{CallError, DmaBuf, SchedGroup, Task};
use futures_channel::oneshot;
use s3_wire::checksum::{BodyDigests, BodyPromise, Checksum};
use s3_wire::chunked::Trailers;
use s3_wire::{Etag, S3Error, S3ErrorCode};
use shards::{PartitionId, TenantId};

use super::body::Body;
use super::budget::Memory;
use super::config::{BODY_BYTES_MAX, CHUNK_BYTES, INLINE_BYTES_MAX};
use super::errors;
use super::read::Reading;
use super::server::Server;
use crate::md5_lanes::Md5;
use crate::store::{CRC_BLOCK, Piece, StoreError, WRITE_MAX, WriteId};

/// Chunks of one upload on their way to the store.
const IN_FLIGHT_MAX: usize = 2;
/// Chunks of one upload in memory: one being received, one being hashed, and those on their way.
const CHUNKS_MAX: usize = IN_FLIGHT_MAX + 2;
/// Bytes of a long chunk.
const LONG_CHUNK_BYTES: usize = WRITE_MAX;
/// Shortest body that is taken in by long chunks: shorter ones have too few of them.
const LONG_BODY_BYTES_MIN: u64 = 4 << 20;
/// What long chunks need beside the memory of short ones.
const LONG_EXTRA_BYTES: u64 = (CHUNKS_MAX * (LONG_CHUNK_BYTES - CHUNK_BYTES)) as u64;
/// Cost of each 256 KiB of a chunk in turns of the tenant.
const CHUNK_COST: u32 = 4;

/// Where bytes come from.
pub(crate) enum Source<'a, 'c> {
    /// A request's body.
    Body(&'a mut Body<'c>),
    /// Another object: a reading and what is left of its piece.
    Object {
        reading: Reading,
        left: u64,
        piece: Option<Piece>,
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
                let mut from = match piece.take() {
                    Some(piece) => piece,
                    None if *left == 0 => return Ok((0, buf)),
                    None => reading.next().await?,
                };
                let moved = from.move_to(&mut buf, end - filled);
                let count = moved.map_err(|error| {
                    let error = StoreError::internal("cannot read from memory", &error);
                    errors::report(&error, "copy")
                })?;
                *left -= count as u64;
                *piece = (from.len() > 0).then_some(from);
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
    _memory: Memory,
}

impl Intake<'_> {
    /// Takes everything in and checks it.
    ///
    /// # Errors
    /// EntityTooLarge, IncompleteBody, a digest that does not match, SlowDown, or the store's.
    pub(crate) async fn run(mut self, mut source: Source<'_, '_>) -> Result<Received, S3Error> {
        if self.len > BODY_BYTES_MAX {
            return Err(S3ErrorCode::EntityTooLarge.into());
        }
        // The lanes compute the MD5, so its promise is kept here.
        let promised_md5 = self.promise.md5.take();
        let mut digests = BodyDigests::new(self.promise, self.payload_sha256, false);
        let is_small = self.len <= INLINE_BYTES_MAX as u64;
        let memory = self.len.min((CHUNKS_MAX * CHUNK_BYTES) as u64);
        let memory = self.server.budget(self.tenant, memory).await?;
        let (held, md5) = if is_small {
            let (buf, md5) = self.gather(&mut source, &mut digests).await?;
            (Held::Small(buf), md5)
        } else {
            let (upload, md5) = self.stream(&mut source, &mut digests).await?;
            (Held::Streamed(upload), md5)
        };
        let trailers = source.finish().await?;
        let found = digests.finish(&trailers)?;
        let md5 = md5.finish();
        if promised_md5.is_some_and(|promised| promised != md5) {
            return Err(S3ErrorCode::BadDigest.into());
        }
        self.server.metrics.received(self.len);
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
    ) -> Result<(Option<DmaBuf>, Md5), S3Error> {
        if self.len == 0 {
            return Ok((None, Md5::new()));
        }
        let buf = self.server.buffer(self.len as usize).await?;
        let want = self.len as usize;
        let buf = self
            .fill_chunk(source, buf, want, &mut |bytes| digests.update(bytes))
            .await?;
        // Nothing follows to be received meanwhile: it hurries from the start.
        let (_, hurry) = oneshot::channel();
        let hashing = self.server.hashing();
        let hashed = hashing.update(Md5::new(), buf, hurry).await;
        let (md5, buf) = hashed.map_err(not_hashed)?;
        Ok((Some(buf), md5))
    }

    async fn stream(
        &self,
        source: &mut Source<'_, '_>,
        digests: &mut BodyDigests,
    ) -> Result<(Upload, Md5), S3Error> {
        let mut upload = Upload::begin(self).await?;
        let long = (self.len >= LONG_BODY_BYTES_MIN)
            .then(|| self.server.spare_budget(self.tenant, LONG_EXTRA_BYTES))
            .flatten();
        let _open = self.server.hashing().open();
        let mut md5 = Md5::new();
        let mut before: Option<Hashed> = None;
        let mut left = self.len;
        while left > 0 {
            let (buf, want) = self.chunk_buffer(left, long.is_some()).await?;
            let mut crcs = BlockCrcs::new();
            let mut take_in = |bytes: &[u8]| {
                digests.update(bytes);
                crcs.update(bytes);
            };
            let chunk = self.fill_chunk(source, buf, want, &mut take_in).await?;
            if let Some(before) = before.take() {
                md5 = before.push(&mut upload).await?;
            }
            let so_far = std::mem::take(&mut md5);
            before = Some(Hashed::begin(self.server, so_far, chunk, crcs.finish())?);
            left -= want as u64;
        }
        if let Some(last) = before {
            md5 = last.push(&mut upload).await?;
        }
        upload.settle().await?;
        Ok((upload, md5))
    }

    /// A buffer for the next chunk of a body, and how many bytes the chunk has.
    async fn chunk_buffer(&self, left: u64, is_long: bool) -> Result<(DmaBuf, usize), S3Error> {
        let want = left.min(LONG_CHUNK_BYTES as u64) as usize;
        if is_long && let Ok(mut buf) = engine::take_buf(want) {
            buf.set_len(0);
            return Ok((buf, want));
        }
        let want = left.min(CHUNK_BYTES as u64) as usize;
        Ok((self.server.buffer(want).await?, want))
    }

    /// Fills a buffer with exactly `want` bytes and shows them to `take_in` as they come.
    async fn fill_chunk(
        &self,
        source: &mut Source<'_, '_>,
        mut buf: DmaBuf,
        want: usize,
        take_in: &mut dyn FnMut(&[u8]),
    ) -> Result<DmaBuf, S3Error> {
        let mut filled = 0;
        while filled < want {
            let count;
            (count, buf) = source.fill(buf, filled, want).await?;
            if count == 0 {
                return Err(S3ErrorCode::IncompleteBody.into());
            }
            for piece in buf[filled..filled + count].chunks(CRC_BLOCK) {
                take_in(piece);
                engine::yield_if_needed().await;
            }
            filled += count;
        }
        Ok(buf)
    }
}

/// A chunk in the hashing, and what is known of it.
struct Hashed {
    task: Task<Result<(Md5, DmaBuf), CallError>>,
    hurry: oneshot::Sender<()>,
    crcs: Vec<u64>,
}

impl Hashed {
    fn begin(
        server: &Rc<Server>,
        md5: Md5,
        chunk: DmaBuf,
        crcs: Vec<u64>,
    ) -> Result<Hashed, S3Error> {
        let (hurry, hurried) = oneshot::channel();
        let hash = server.hashing().update(md5, chunk, hurried);
        let task = engine::try_spawn_local(SchedGroup::FOREGROUND, hash).map_err(not_hashed)?;
        Ok(Hashed { task, hurry, crcs })
    }

    /// Waits for the hashing and sends the chunk on; the sum so far.
    async fn push(self, upload: &mut Upload) -> Result<Md5, S3Error> {
        drop(self.hurry);
        let (md5, chunk) = self.task.await.map_err(not_hashed)?;
        upload.push(chunk, self.crcs).await?;
        Ok(md5)
    }
}

/// The hashing refused or ended.
fn not_hashed(error: CallError) -> S3Error {
    tracing::warn!(%error, "a body was not hashed");
    errors::of_store(&StoreError::Busy)
}

/// The CRC-64/NVME of each 64 KiB of a chunk that comes in pieces.
struct BlockCrcs {
    crcs: Vec<u64>,
    current: crc_fast::Digest,
    filled: usize,
}

impl BlockCrcs {
    fn new() -> BlockCrcs {
        BlockCrcs {
            crcs: Vec::with_capacity(LONG_CHUNK_BYTES / CRC_BLOCK),
            current: crc_fast::Digest::new(CrcAlgorithm::Crc64Nvme),
            filled: 0,
        }
    }

    fn update(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let (front, rest) = bytes.split_at(bytes.len().min(CRC_BLOCK - self.filled));
            self.current.update(front);
            self.filled += front.len();
            if self.filled == CRC_BLOCK {
                self.end_block();
            }
            bytes = rest;
        }
    }

    fn end_block(&mut self) {
        self.crcs.push(self.current.finalize());
        self.current.reset();
        self.filled = 0;
    }

    fn finish(mut self) -> Vec<u64> {
        if self.filled > 0 {
            self.end_block();
        }
        self.crcs
    }
}

/// An uncommitted body in the store. Given up when dropped, unless [`Upload::commit`] let it go.
pub(crate) struct Upload {
    server: Rc<Server>,
    partition: PartitionId,
    tenant: TenantId,
    id: Option<WriteId>,
    /// Bytes that were sent on their way.
    sent: u64,
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
            sent: 0,
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
    async fn push(&mut self, chunk: DmaBuf, crcs: Vec<u64>) -> Result<(), S3Error> {
        while self.in_flight.len() >= IN_FLIGHT_MAX {
            self.land().await?;
        }
        let offset = self.sent;
        self.sent += chunk.len() as u64;
        let cost = CHUNK_COST * chunk.len().div_ceil(CHUNK_BYTES) as u32;
        let turn = self.server.turn(self.tenant, cost).await?;
        let (server, partition, id) = (Rc::clone(&self.server), self.partition, self.id());
        let write = async move {
            let write = server.on(partition, move |p| async move {
                p.write_chunk(id, offset, chunk, crcs).await
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
