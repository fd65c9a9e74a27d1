//! Reading objects: one read for a body that lies in its record, verified chunks for the others, and
//! listings from the index alone.
//!
//! Invariants: no byte leaves that was not checked against its CRC. What a reader has opened stays
//! where it is until `read_end`, whatever happens to the key meanwhile.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ops::Range;
use std::rc::Rc;

use engine::{BLOCK, DmaBuf};
use s3_wire::ObjectKey;
use segment_log::{Position, RecordBuf};

use super::body_cache::BodyCache;
use super::data::damaged;
use super::error::StoreError;
use super::extent::Extent;
use super::index::{EntryBody, ObjectEntry};
use super::partition::{Inner, Partition};
use super::record::{Change, Crcs, ManifestPart, Place, Record, Stored};
use super::space::Pin;
use super::types::{
    Body, BucketId, CRC_BLOCK, ListChunk, ListCursor, ObjectMeta, Opened, READ_MAX, ReadId,
};

/// CRCs in one block of a table.
const TABLE_ENTRIES: u64 = (CRC_BLOCK / 8) as u64;

/// An object that is being read.
pub(super) struct ReadState {
    pub(super) source: Source,
    pub(super) size: u64,
    _pin: Pin,
}

pub(super) enum Source {
    /// A body, and the record that describes it.
    Extents(Place, Rc<StoredBody>),
    Parts {
        /// (where the part begins in the object, the part).
        parts: Vec<(u64, ManifestPart)>,
        /// The part that was read last.
        open: RefCell<Option<(usize, Rc<PartSource>)>>,
    },
}

pub(super) enum PartSource {
    /// A record that ends in the part's body, and where in it.
    Inline(DmaBuf, Range<usize>),
    Extents(Rc<StoredBody>),
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

pub(super) fn segments_of(entry: &ObjectEntry) -> BTreeSet<u32> {
    let parts: &[ManifestPart] = match &entry.body {
        EntryBody::Manifest(parts) => parts,
        _ => &[],
    };
    parts
        .iter()
        .map(|part| part.place.segment)
        .chain([entry.place.segment])
        .collect()
}

impl Partition {
    /// Sets how many bytes of lately read records are kept in memory; none at first.
    pub(super) fn cache_records(&self, bytes_max: usize) {
        self.inner.cache.set_capacity(bytes_max);
    }

    /// Keeps bodies that are read again in the shard's cache; only the first call counts.
    pub(super) fn cache_bodies(&self, bodies: &Rc<BodyCache>) {
        self.inner.bodies.get_or_init(|| Rc::clone(bodies));
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
        let (meta, place, read, change, body, pin) = inner.open(bucket, key, headroom).await?;
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
                Source::Extents(place, Rc::new(StoredBody::new(meta.size, extents, crcs)))
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
        let state = self.inner.reading(read)?;
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

    /// Objects of a bucket in key order, from the cursor on, with the prefix; at most `limit`.
    pub fn list(
        &self,
        bucket: BucketId,
        after: ListCursor<'_>,
        prefix: &[u8],
        limit: usize,
    ) -> ListChunk {
        self.inner.index.borrow().list(bucket, after, prefix, limit)
    }
}

/// What an object's record says about its body.
enum Found {
    Stored(Stored),
    Parts(Vec<ManifestPart>),
}

/// A record, decoded, and where its body is in the buffer.
type ReadRecord = (RecordBuf, Record, Range<usize>);
type OpenedRecord = (ObjectMeta, Place, RecordBuf, Found, Range<usize>, Pin);

impl Inner {
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
        let (place, pin) = {
            let index = self.index.borrow();
            let entry = index
                .object(bucket, key.as_str())
                .ok_or(StoreError::NoSuchKey)?;
            let first = entry.extents().next().map(|extent| extent.start);
            (
                entry.place,
                Pin::new(self.data.space(), first, segments_of(entry)),
            )
        };
        let (read, record, body) = self.read_cached(place, headroom).await?;
        let ours = record.bucket == bucket && &*record.key == key.as_str();
        match record.change {
            Change::Put { meta, stored } if ours => {
                Ok((meta, place, read, Found::Stored(stored), body, pin))
            }
            Change::UploadComplete { meta, parts, .. } if ours => {
                Ok((meta, place, read, Found::Parts(parts), body, pin))
            }
            _ => {
                self.corrupt();
                Err(record_damaged("another record than the index says", place))
            }
        }
    }

    /// What is being read under a name.
    pub(super) fn reading(&self, read: ReadId) -> Result<Rc<ReadState>, StoreError> {
        let reads = self.reads.borrow();
        reads.get(&read).cloned().ok_or(StoreError::Gone)
    }

    pub(super) async fn fetch(
        &self,
        state: &ReadState,
        offset: u64,
        len: usize,
    ) -> Result<(DmaBuf, Range<usize>), StoreError> {
        let parts = match &state.source {
            Source::Extents(_, body) => return self.fetch_stored(body, offset, len).await,
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

    pub(super) async fn part_source(
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
                    PartSource::Extents(Rc::new(StoredBody::new(size, extents, crcs)))
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
