//! Reading objects: one read for a body that lies in its record, verified chunks for the others, and
//! listings from the index alone.
//!
//! Invariants: no byte leaves that was not checked against its CRC. What a reader has opened stays
//! where it is until `read_end`, whatever happens to the key meanwhile.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::ops::{ControlFlow, Range};
use std::rc::Rc;

use engine::{BLOCK, DmaBuf};
use s3_wire::ObjectKey;
use segment_log::{Position, RecordBuf};

use super::data::damaged;
use super::error::StoreError;
use super::extent::Extent;
use super::index::{NamePosition, ObjectEntry, Rank};
use super::partition::{Inner, Partition};
use super::record::{Change, Crcs, ManifestPart, Place, Record, Stored};
use super::scan::{Fetch, Seen};
use super::space::Pin;
use super::types::{
    Body, BucketId, CRC_BLOCK, ListChunk, ListCursor, ListEntry, ObjectMeta, Opened, READ_MAX,
    ReadId, Version,
};

/// CRCs in one block of a table.
const TABLE_ENTRIES: u64 = (CRC_BLOCK / 8) as u64;

/// An object that is being read.
pub(super) struct ReadState {
    source: Source,
    size: u64,
    _pin: Pin,
}

enum Source {
    Extents(Rc<StoredBody>),
    Parts {
        /// (where the part begins in the object, the part).
        parts: Vec<(u64, ManifestPart)>,
        /// The part that was read last.
        open: RefCell<Option<(usize, Rc<PartSource>)>>,
    },
}

enum PartSource {
    /// A record that ends in the part's body, and where in it.
    Inline(DmaBuf, Range<usize>),
    Extents(StoredBody),
}

/// A body in extents.
pub(super) struct StoredBody {
    size: u64,
    extents: Vec<Extent>,
    crcs: Crcs,
    /// The block of the CRC table that was read last.
    table: RefCell<Option<(u64, Rc<Vec<u64>>)>>,
}

impl StoredBody {
    pub(super) fn new(size: u64, extents: Vec<Extent>, crcs: Crcs) -> StoredBody {
        StoredBody {
            size,
            extents,
            crcs,
            table: RefCell::default(),
        }
    }
}

impl Partition {
    /// Sets how many bytes of lately read records are kept in memory; none at first.
    pub(super) fn cache_records(&self, bytes_max: usize) {
        self.inner.cache.set_capacity(bytes_max);
    }

    /// Sets how many bytes of index blocks are kept in memory; none at first.
    pub(super) fn cache_index(&self, bytes_max: usize) {
        self.inner.runs.cache.set_capacity(bytes_max);
    }

    /// An object's metadata, from its record.
    ///
    /// # Errors
    /// `NoSuchKey`, `Busy` (no buffer), `Corrupt`.
    pub async fn head(&self, bucket: BucketId, key: &ObjectKey) -> Result<ObjectMeta, StoreError> {
        let (meta, ..) = self.inner.open(bucket, key, 0).await?;
        self.inner
            .counters
            .gets
            .set(self.inner.counters.gets.get() + 1);
        Ok(meta)
    }

    /// Opens an object. A body that lies in its record comes at once, with at least `headroom` bytes
    /// of the buffer before it; any other is pinned until [`Partition::read_end`].
    ///
    /// # Errors
    /// `NoSuchKey`, `Busy` (no buffer, or too many are being read), `Corrupt`.
    pub async fn get(
        &self,
        bucket: BucketId,
        key: &ObjectKey,
        headroom: usize,
    ) -> Result<Opened, StoreError> {
        let inner = &self.inner;
        let (meta, read, change, body, pin) = inner.open(bucket, key, headroom).await?;
        let source = match change {
            Found::Stored(Stored::Inline) => {
                inner.counters.gets.set(inner.counters.gets.get() + 1);
                return Ok(Opened {
                    meta,
                    body: Body::Inline {
                        buf: read.buf,
                        range: body,
                    },
                });
            }
            Found::Stored(Stored::Extents { extents, crcs }) => {
                Source::Extents(Rc::new(StoredBody::new(meta.size, extents, crcs)))
            }
            Found::Parts(parts) => {
                let mut begin = 0;
                let place = |part: ManifestPart| {
                    let at = begin;
                    begin += part.size;
                    (at, part)
                };
                Source::Parts {
                    parts: parts.into_iter().map(place).collect(),
                    open: RefCell::default(),
                }
            }
        };
        let mut reads = inner.reads.borrow_mut();
        if reads.len() >= inner.config.reads_max {
            return Err(StoreError::Busy);
        }
        let id = ReadId(inner.handle());
        reads.insert(
            id,
            Rc::new(ReadState {
                source,
                size: meta.size,
                _pin: pin,
            }),
        );
        inner.counters.gets.set(inner.counters.gets.get() + 1);
        Ok(Opened {
            meta,
            body: Body::Stored(id),
        })
    }

    /// Bytes of an opened object: a buffer and where in it the `len` bytes at `offset` are (fewer at
    /// the object's end). Cancel-safe.
    ///
    /// # Errors
    /// `Gone` for an unknown read, `Busy` (no buffer), `Corrupt`; `Internal` past [`READ_MAX`].
    pub async fn read_chunk(
        &self,
        read: ReadId,
        offset: u64,
        len: usize,
    ) -> Result<(DmaBuf, Range<usize>), StoreError> {
        let state = self
            .inner
            .reads
            .borrow()
            .get(&read)
            .cloned()
            .ok_or(StoreError::Gone)?;
        if len > READ_MAX {
            return Err(StoreError::Internal(format!("a read of {len} bytes")));
        }
        let len = (state.size.saturating_sub(offset)).min(len as u64) as usize;
        let done = self.inner.fetch(&state, offset, len).await;
        if let Err(StoreError::Corrupt { .. }) = &done {
            self.inner.corrupt();
        }
        done
    }

    /// Ends a read; its object may move or go from now on. Unknown ids are ignored.
    pub fn read_end(&self, read: ReadId) {
        let state = self.inner.reads.borrow_mut().remove(&read);
        drop(state);
    }

    /// Objects of a bucket in key order, from the cursor on, with the prefix; at most `limit`. Each
    /// key is shown as it is at some moment of the call. Cancel-safe.
    ///
    /// # Errors
    /// `Busy` (no buffer), `Corrupt`.
    pub async fn list(
        &self,
        bucket: BucketId,
        after: ListCursor<'_>,
        prefix: &[u8],
        limit: usize,
    ) -> Result<ListChunk, StoreError> {
        let at = match after {
            ListCursor::After(key) if key.as_bytes() >= prefix => {
                NamePosition::after(bucket, key.as_bytes())
            }
            ListCursor::From(bytes) if bytes >= prefix => NamePosition::from(bucket, bytes),
            _ => NamePosition::from(bucket, prefix),
        };
        let mut chunk = ListChunk::default();
        let mut broken = None;
        let walked = self.inner.view().walk(at, Fetch::Cached, |rank, seen| {
            match list_one(&mut chunk, bucket, prefix, limit, rank, seen) {
                Ok(flow) => flow,
                Err(error) => {
                    broken = Some(error);
                    ControlFlow::Break(())
                }
            }
        });
        walked.await?;
        broken.map_or(Ok(chunk), Err)
    }
}

/// Takes one object into a listing.
fn list_one(
    chunk: &mut ListChunk,
    bucket: BucketId,
    prefix: &[u8],
    limit: usize,
    (at, key, _): Rank<'_>,
    seen: Seen<'_>,
) -> Result<ControlFlow<()>, StoreError> {
    if at != bucket || !key.starts_with(prefix) {
        return Ok(ControlFlow::Break(()));
    }
    // An older version of the key that was listed last.
    let last = chunk.entries.last();
    if last.is_some_and(|last| last.key.as_bytes() == key) {
        return Ok(ControlFlow::Continue(()));
    }
    if chunk.entries.len() >= limit {
        chunk.more = true;
        return Ok(ControlFlow::Break(()));
    }
    let Some(shown) = seen.shown()? else {
        return Ok(ControlFlow::Continue(()));
    };
    let key = std::str::from_utf8(key)
        .map_err(|_| StoreError::Internal("a key of the index is no UTF-8".to_owned()))?;
    chunk.entries.push(ListEntry {
        key: key.into(),
        size: shown.size,
        etag: shown.etag,
        modified_ms: shown.modified_ms,
    });
    Ok(ControlFlow::Continue(()))
}

/// What an object's record says about its body.
enum Found {
    Stored(Stored),
    Parts(Vec<ManifestPart>),
}

/// A record, decoded, and where its body is in the buffer.
type ReadRecord = (RecordBuf, Record, Range<usize>);
type OpenedRecord = (ObjectMeta, RecordBuf, Found, Range<usize>, Pin);

impl Inner {
    /// What a version of a key has now. Until the caller waits for something, it stays so.
    ///
    /// # Errors
    /// `Busy` (no buffer), `Corrupt`.
    pub(super) async fn lookup(
        &self,
        bucket: BucketId,
        key: &str,
        version: Version,
    ) -> Result<Option<ObjectEntry>, StoreError> {
        let known = || self.index.borrow().known(bucket, key, version).cloned();
        loop {
            if let Some(slot) = known() {
                return Ok(slot);
            }
            let epoch = self.runs.epoch();
            let found = self.runs.find((bucket, key.as_bytes(), Reverse(version.0)));
            let found = found.await.inspect_err(|error| {
                if let StoreError::Corrupt { .. } = error {
                    self.corrupt();
                }
            })?;
            if self.runs.epoch() == epoch {
                // It may have changed while the disk was read.
                return Ok(known().unwrap_or(found.flatten()));
            }
        }
    }

    /// Whether a bucket has no object.
    ///
    /// # Errors
    /// As [`Inner::lookup`].
    pub(super) async fn is_empty(&self, bucket: BucketId) -> Result<bool, StoreError> {
        let mut empty = true;
        let walked = self.view().walk(
            NamePosition::from(bucket, b""),
            Fetch::Cached,
            |(at, ..), _| {
                empty = at != bucket;
                ControlFlow::Break(())
            },
        );
        walked.await?;
        Ok(empty)
    }

    /// Keeps an object's bytes where they are until the pin is dropped. The entry is current.
    pub(super) fn pin(&self, entry: &ObjectEntry) -> Pin {
        let first = entry.extents().next().map(|extent| extent.start);
        let segments = entry.places().map(|place| place.segment).collect();
        Pin::new(self.data.space(), first, segments)
    }

    pub(super) fn corrupt(&self) {
        self.counters
            .corrupt_reads
            .set(self.counters.corrupt_reads.get() + 1);
    }

    /// Reads a record from the log and decodes it.
    pub(super) async fn read_record(
        &self,
        place: Place,
        headroom: usize,
    ) -> Result<ReadRecord, StoreError> {
        let position = Position {
            segment: place.segment,
            offset: place.offset,
        };
        let read = self
            .log
            .read(position, place.len, headroom)
            .await
            .map_err(|error| {
                let error = StoreError::from(error);
                if let StoreError::Corrupt { .. } = &error {
                    self.corrupt();
                }
                error
            })?;
        self.decode(place, read)
    }

    /// As [`Inner::read_record`], from memory when it was read lately.
    async fn read_cached(&self, place: Place, headroom: usize) -> Result<ReadRecord, StoreError> {
        if let Some(read) = self.cache.get(place, headroom) {
            return self.decode(place, read);
        }
        let found = self.read_record(place, headroom).await?;
        self.cache.keep(place, &found.0);
        Ok(found)
    }

    fn decode(&self, place: Place, read: RecordBuf) -> Result<ReadRecord, StoreError> {
        let payload = &read.buf[read.payload.clone()];
        let (record, body) = Record::decode(read.kind, payload).map_err(|malformed| {
            self.corrupt();
            record_damaged(&malformed.to_string(), place)
        })?;
        let body = read.payload.start + body.start..read.payload.start + body.end;
        Ok((read, record, body))
    }

    async fn open(
        &self,
        bucket: BucketId,
        key: &ObjectKey,
        headroom: usize,
    ) -> Result<OpenedRecord, StoreError> {
        let entry = self.lookup(bucket, key.as_str(), Version::NULL).await?;
        let entry = entry.ok_or(StoreError::NoSuchKey)?;
        let (place, pin) = (entry.place, self.pin(&entry));
        let (read, record, body) = self.read_cached(place, headroom).await?;
        let ours = record.bucket == bucket && &*record.key == key.as_str();
        match record.change {
            Change::Put { meta, stored } if ours => {
                Ok((meta, read, Found::Stored(stored), body, pin))
            }
            Change::UploadComplete { meta, parts, .. } if ours => {
                Ok((meta, read, Found::Parts(parts), body, pin))
            }
            _ => {
                self.corrupt();
                Err(record_damaged("another record than the index says", place))
            }
        }
    }

    async fn fetch(
        &self,
        state: &ReadState,
        offset: u64,
        len: usize,
    ) -> Result<(DmaBuf, Range<usize>), StoreError> {
        let parts = match &state.source {
            Source::Extents(body) => return self.fetch_stored(body, offset, len).await,
            Source::Parts { parts, .. } => parts,
        };
        let mut at = parts
            .partition_point(|(begin, _)| *begin <= offset)
            .saturating_sub(1);
        let mut gathered: Option<DmaBuf> = None;
        let mut done = 0;
        loop {
            let Some((begin, part)) = parts.get(at) else {
                let buf = gathered.map_or_else(|| engine::take_buf(0), Ok)?;
                let len = buf.len();
                return Ok((buf, 0..len));
            };
            let inside = offset + done as u64 - begin;
            let piece = (part.size - inside).min((len - done) as u64) as usize;
            let (buf, range) = self.fetch_part(state, at, inside, piece).await?;
            if gathered.is_none() && piece == len {
                return Ok((buf, range));
            }
            let all = match &mut gathered {
                Some(all) => all,
                none => none.insert(empty_buf(len)?),
            };
            all.extend_from_slice(&buf[range]);
            done += piece;
            at += 1;
            if done == len {
                at = parts.len();
            }
        }
    }

    async fn fetch_part(
        &self,
        state: &ReadState,
        number: usize,
        offset: u64,
        len: usize,
    ) -> Result<(DmaBuf, Range<usize>), StoreError> {
        let part = self.part_source(state, number).await?;
        match &*part {
            PartSource::Extents(body) => self.fetch_stored(body, offset, len).await,
            PartSource::Inline(buf, range) => {
                let from = range.start + offset as usize;
                let mut copy = empty_buf(len)?;
                copy.extend_from_slice(&buf[from..from + len]);
                Ok((copy, 0..len))
            }
        }
    }

    async fn part_source(
        &self,
        state: &ReadState,
        number: usize,
    ) -> Result<Rc<PartSource>, StoreError> {
        let Source::Parts { parts, open } = &state.source else {
            return Err(StoreError::Gone);
        };
        if let Some((_, source)) = open.borrow().as_ref().filter(|(open, _)| *open == number) {
            return Ok(Rc::clone(source));
        }
        let part = &parts[number].1;
        let (read, record, body) = self.read_record(part.place, 0).await?;
        let source = match record.change {
            Change::PartPut { size, stored, .. } if size == part.size => match stored {
                Stored::Inline => PartSource::Inline(read.buf, body),
                Stored::Extents { extents, crcs } => {
                    PartSource::Extents(StoredBody::new(size, extents, crcs))
                }
            },
            _ => {
                return Err(record_damaged(
                    "another record than the manifest says",
                    part.place,
                ));
            }
        };
        let source = Rc::new(source);
        *open.borrow_mut() = Some((number, Rc::clone(&source)));
        Ok(source)
    }

    /// Reads the CRC blocks that cover a range of a body, and checks each.
    pub(super) async fn fetch_stored(
        &self,
        body: &StoredBody,
        offset: u64,
        len: usize,
    ) -> Result<(DmaBuf, Range<usize>), StoreError> {
        if len == 0 {
            return Ok((engine::take_buf(0)?, 0..0));
        }
        let block = CRC_BLOCK as u64;
        let first = offset / block;
        let begin = first * block;
        let end = (offset + len as u64).next_multiple_of(block).min(body.size);
        let crcs = self.crcs(body, first, end.div_ceil(block)).await?;
        let bytes = (end - begin) as usize;
        let padded = bytes.next_multiple_of(BLOCK);
        let buf = engine::take_buf(padded)?;
        let mut buf = self.data.read(buf, &body.extents, begin, padded).await?;
        buf.set_len(bytes);
        for (number, (piece, crc)) in buf.chunks(CRC_BLOCK).zip(&crcs).enumerate() {
            if crc_fast::crc64_nvme(piece) != *crc {
                let at = begin + (number * CRC_BLOCK) as u64;
                let place = super::data::pieces(&body.extents, at, BLOCK)
                    .first()
                    .map_or(at, |p| p.0);
                return Err(damaged("a body", place));
            }
        }
        let from = (offset - begin) as usize;
        Ok((buf, from..from + len))
    }

    /// The CRCs of blocks `first..end` of a body.
    async fn crcs(&self, body: &StoredBody, first: u64, end: u64) -> Result<Vec<u64>, StoreError> {
        let (place, sums) = match &body.crcs {
            Crcs::Inline(crcs) => return Ok(crcs[first as usize..end as usize].to_vec()),
            Crcs::Table { extents, crcs, .. } => (extents, crcs),
        };
        let entries = body.size.div_ceil(CRC_BLOCK as u64);
        let mut found = Vec::with_capacity((end - first) as usize);
        let mut next = first;
        while next < end {
            let number = next / TABLE_ENTRIES;
            let held = body
                .table
                .borrow()
                .clone()
                .filter(|(held, _)| *held == number);
            let block = if let Some((_, block)) = held {
                block
            } else {
                let block = Rc::new(self.table_block(place, sums, entries, number).await?);
                *body.table.borrow_mut() = Some((number, Rc::clone(&block)));
                block
            };
            let from = (next - number * TABLE_ENTRIES) as usize;
            let to = ((end - number * TABLE_ENTRIES) as usize).min(block.len());
            found.extend_from_slice(&block[from..to]);
            next = number * TABLE_ENTRIES + to as u64;
        }
        Ok(found)
    }

    async fn table_block(
        &self,
        extents: &[Extent],
        sums: &[u64],
        entries: u64,
        number: u64,
    ) -> Result<Vec<u64>, StoreError> {
        let bytes = ((entries - number * TABLE_ENTRIES).min(TABLE_ENTRIES) * 8) as usize;
        let padded = bytes.next_multiple_of(BLOCK);
        let offset = number * CRC_BLOCK as u64;
        let mut buf = self
            .data
            .read(engine::take_buf(padded)?, extents, offset, padded)
            .await?;
        buf.set_len(bytes);
        if Some(&crc_fast::crc64_nvme(&buf)) != sums.get(number as usize) {
            return Err(damaged("a body's CRC table", offset));
        }
        let entry = |bytes: &[u8]| {
            let mut crc = [0; 8];
            crc.copy_from_slice(bytes);
            u64::from_le_bytes(crc)
        };
        Ok(buf.chunks_exact(8).map(entry).collect())
    }
}

fn empty_buf(capacity: usize) -> Result<DmaBuf, StoreError> {
    let mut buf = engine::take_buf(capacity)?;
    buf.set_len(0);
    Ok(buf)
}

pub(super) fn record_damaged(what: &str, place: Place) -> StoreError {
    StoreError::Corrupt {
        what: format!("a record ({what})"),
        segment: place.segment,
        offset: u64::from(place.offset),
    }
}
