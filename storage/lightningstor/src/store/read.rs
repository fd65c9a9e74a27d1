//! Reading objects: one read for a body that lies in its record, verified chunks for the others, and
//! listings from the index alone. How the bytes of an open object are fetched is in `fetch`.
//!
//! Invariants: no byte leaves that was not checked against its CRC. What a reader has opened stays
//! where it is until `read_end`, whatever happens to the key meanwhile.

use std::cmp::Reverse;
use std::ops::{ControlFlow, Range};
use std::rc::Rc;

use engine::DmaBuf;
use s3_wire::ObjectKey;
use segment_log::{Position, RecordBuf};

use super::body_cache::BodyCache;
use super::error::StoreError;
use super::fetch::{ObjectName, ReadState};
use super::index::{NamePosition, ObjectEntry, Rank};
use super::partition::{Inner, Partition};
use super::record::{Change, ManifestPart, Place, Record, Stored};
use super::scan::{Fetch, Seen};
use super::space::Pin;
use super::types::{
    Body, BucketId, ListChunk, ListCursor, ListEntry, ObjectMeta, Opened, READ_MAX, ReadId, Version,
};

impl Partition {
    /// Sets how many bytes of lately read records are kept in memory; none at first.
    pub(super) fn cache_records(&self, bytes_max: usize) {
        self.inner.cache.set_capacity(bytes_max);
    }

    /// Sets how many bytes of index blocks are kept in memory; none at first.
    pub(super) fn cache_index(&self, bytes_max: usize) {
        self.inner.runs.cache.set_capacity(bytes_max);
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
        let opened = self.inner.open_named(bucket, key, 0).await?;
        self.inner
            .counters
            .gets
            .set(self.inner.counters.gets.get() + 1);
        Ok(opened.meta)
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
        let opened = inner.open_named(bucket, key, headroom).await?;
        if let Found::Stored(Stored::Inline) = opened.found {
            inner.counters.gets.set(inner.counters.gets.get() + 1);
            let (meta, buf, range) = (opened.meta, opened.read.buf, opened.body);
            let body = Body::Inline { buf, range };
            return Ok(Opened { meta, body });
        }
        let requests = inner.reads.borrow().len() - inner.images.get();
        if requests >= inner.config.reads_max {
            return Err(StoreError::Busy);
        }
        let (state, meta) = ReadState::new(bucket, key, opened);
        let body = Body::Stored(inner.begin_read(state));
        inner.counters.gets.set(inner.counters.gets.get() + 1);
        Ok(Opened { meta, body })
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
        done.map_err(|error| self.inner.named(error, &state))
    }

    /// Ends a read; its object may move or go from now on. Unknown ids are ignored.
    pub fn read_end(&self, read: ReadId) {
        let state = self.inner.reads.borrow_mut().remove(&read);
        let images = &self.inner.images;
        images.set(images.get() - usize::from(state.is_some_and(|state| state.is_image)));
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
        flags: shown.flags,
        checksum: shown.checksum,
    });
    Ok(ControlFlow::Continue(()))
}

/// What an object's record says about its body.
pub(super) enum Found {
    Stored(Stored),
    Parts(Vec<ManifestPart>),
}

/// A record, decoded, and where its body is in the buffer.
type ReadRecord = (RecordBuf, Record, Range<usize>);

/// An object's record.
pub(super) struct OpenedRecord {
    pub(super) meta: ObjectMeta,
    pub(super) found: Found,
    pub(super) place: Place,
    pub(super) pin: Pin,
    read: RecordBuf,
    /// Where an inline body is in the buffer.
    body: Range<usize>,
}

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

    /// Gives a read its name.
    pub(super) fn begin_read(&self, state: ReadState) -> ReadId {
        let id = ReadId(self.handle());
        self.reads.borrow_mut().insert(id, Rc::new(state));
        id
    }

    /// A read that has not ended.
    pub(super) fn reading(&self, read: ReadId) -> Result<Rc<ReadState>, StoreError> {
        let found = self.reads.borrow().get(&read).cloned();
        found.ok_or(StoreError::Gone)
    }

    /// Damage, with the object that it is in.
    pub(super) fn named(&self, error: StoreError, state: &ReadState) -> StoreError {
        let ObjectName { bucket, key } = &state.object;
        error.in_object(&self.buckets.name(*bucket), key)
    }

    /// As [`Inner::open`]; damage comes with the name of the object.
    pub(super) async fn open_named(
        &self,
        bucket: BucketId,
        key: &ObjectKey,
        headroom: usize,
    ) -> Result<OpenedRecord, StoreError> {
        let opened = self.open(bucket, key, headroom).await;
        opened.map_err(|error| error.in_object(&self.buckets.name(bucket), key.as_str()))
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
    pub(super) async fn read_cached(
        &self,
        place: Place,
        headroom: usize,
    ) -> Result<ReadRecord, StoreError> {
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
        let (meta, found) = match record.change {
            Change::Put { meta, stored } if ours => (meta, Found::Stored(stored)),
            Change::UploadComplete { meta, parts, .. } if ours => (meta, Found::Parts(parts)),
            _ => {
                self.corrupt();
                return Err(record_damaged("another record than the index says", place));
            }
        };
        Ok(OpenedRecord {
            meta,
            found,
            place,
            pin,
            read,
            body,
        })
    }
}

pub(super) fn record_damaged(what: &str, place: Place) -> StoreError {
    StoreError::Corrupt {
        what: format!("a record ({what})"),
        segment: place.segment,
        offset: u64::from(place.offset),
    }
}
