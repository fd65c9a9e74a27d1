//! The bytes of an object that is being read: where they are, and fetching them, verified.
//!
//! Invariants: no byte leaves that was not checked against its CRC, and damage names its place in a
//! file. What a [`ReadState`] refers to stays where it is until it is dropped.

use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;

use engine::{BLOCK, DmaBuf};
use s3_wire::ObjectKey;
use s3_wire::checksum::Checksum;

use super::data::{damaged, pieces};
use super::error::StoreError;
use super::extent::Extent;
use super::partition::Inner;
use super::read::{Found, OpenedRecord, record_damaged};
use super::record::{Change, Crcs, ManifestPart, Place, Stored};
use super::space::Pin;
use super::types::{BucketId, CRC_BLOCK, ObjectMeta};

/// CRCs in one block of a table.
const TABLE_ENTRIES: u64 = (CRC_BLOCK / 8) as u64;

/// An object that is being read.
pub(super) struct ReadState {
    pub(super) source: Source,
    pub(super) size: u64,
    pub(super) object: ObjectName,
    /// Whether it counts as an image.
    pub(super) is_image: bool,
    _pin: Pin,
}

/// Which object it is, for who has to act on its damage.
pub(super) struct ObjectName {
    pub(super) bucket: BucketId,
    pub(super) key: Box<str>,
}

pub(super) enum Source {
    /// At the end of its record.
    Record(Place),
    /// A body, and the record that describes it.
    Extents(Place, Rc<StoredBody>),
    Parts {
        /// (where the part begins in the object, the part).
        parts: Vec<(u64, ManifestPart)>,
        /// The part that was read last.
        open: RefCell<Option<(usize, Rc<PartSource>)>>,
    },
}

/// A part, as its record tells.
pub(super) struct PartSource {
    pub(super) checksum: Option<Checksum>,
    pub(super) body: PartBody,
}

pub(super) enum PartBody {
    /// A record that ends in the part's body, and where in it.
    Inline(DmaBuf, Range<usize>),
    Extents(Rc<StoredBody>),
}

/// A body in extents.
pub(super) struct StoredBody {
    size: u64,
    pub(super) extents: Vec<Extent>,
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

impl ReadState {
    /// A read of what was opened, and its metadata.
    pub(super) fn new(
        bucket: BucketId,
        key: &ObjectKey,
        opened: OpenedRecord,
    ) -> (ReadState, ObjectMeta) {
        let source = match opened.found {
            Found::Stored(Stored::Inline) => Source::Record(opened.place),
            Found::Stored(Stored::Extents { extents, crcs }) => {
                let size = opened.meta.size;
                Source::Extents(opened.place, Rc::new(StoredBody::new(size, extents, crcs)))
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
        let key = key.as_str().into();
        let state = ReadState {
            source,
            size: opened.meta.size,
            object: ObjectName { bucket, key },
            is_image: false,
            _pin: opened.pin,
        };
        (state, opened.meta)
    }

    /// Where its parts begin, and what they are.
    pub(super) fn parts(&self) -> &[(u64, ManifestPart)] {
        match &self.source {
            Source::Parts { parts, .. } => parts,
            Source::Record(_) | Source::Extents(..) => &[],
        }
    }
}

impl Inner {
    /// `len` bytes at `offset` of the object, which has them.
    pub(super) async fn fetch(
        &self,
        state: &ReadState,
        offset: u64,
        len: usize,
    ) -> Result<(DmaBuf, Range<usize>), StoreError> {
        if len == 0 {
            return Ok((engine::take_buf(0)?, 0..0));
        }
        let parts = match &state.source {
            Source::Record(place) => return self.fetch_inline(*place, offset, len).await,
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

    /// Bytes of a body that ends its record. Decoding has checked the record.
    async fn fetch_inline(
        &self,
        place: Place,
        offset: u64,
        len: usize,
    ) -> Result<(DmaBuf, Range<usize>), StoreError> {
        let (read, _, body) = self.read_cached(place, 0).await?;
        let from = body.start + offset as usize;
        if from + len > body.end {
            self.corrupt();
            return Err(record_damaged("a body shorter than its object", place));
        }
        Ok((read.buf, from..from + len))
    }

    async fn fetch_part(
        &self,
        state: &ReadState,
        number: usize,
        offset: u64,
        len: usize,
    ) -> Result<(DmaBuf, Range<usize>), StoreError> {
        let part = self.part_source(state, number).await?;
        match &part.body {
            PartBody::Extents(body) => self.fetch_stored(body, offset, len).await,
            PartBody::Inline(buf, range) => {
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
            Change::PartPut {
                size,
                stored,
                checksum,
                ..
            } if size == part.size => {
                let body = match stored {
                    Stored::Inline => PartBody::Inline(read.buf, body),
                    Stored::Extents { extents, crcs } => {
                        PartBody::Extents(Rc::new(StoredBody::new(size, extents, crcs)))
                    }
                };
                Rc::new(PartSource { checksum, body })
            }
            _ => {
                self.corrupt();
                let what = "another record than the manifest says";
                return Err(record_damaged(what, part.place));
            }
        };
        *open.borrow_mut() = Some((number, Rc::clone(&source)));
        Ok(source)
    }

    /// Reads the CRC blocks that cover a range of a body, and checks each. Damage is counted.
    pub(super) async fn fetch_stored(
        &self,
        body: &StoredBody,
        offset: u64,
        len: usize,
    ) -> Result<(DmaBuf, Range<usize>), StoreError> {
        let fetched = self.fetch_blocks(body, offset, len).await;
        if let Err(StoreError::Corrupt { .. }) = &fetched {
            self.corrupt();
        }
        fetched
    }

    async fn fetch_blocks(
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
                return Err(damaged("a body", place_in_file(&body.extents, at)));
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
            let place = place_in_file(extents, offset);
            return Err(damaged("a body's CRC table", place));
        }
        let entry = |bytes: &[u8]| {
            let mut crc = [0; 8];
            crc.copy_from_slice(bytes);
            u64::from_le_bytes(crc)
        };
        Ok(buf.chunks_exact(8).map(entry).collect())
    }
}

/// Where in the data file the byte at `offset` of extents is.
fn place_in_file(extents: &[Extent], offset: u64) -> u64 {
    let found = pieces(extents, offset, 1).first().copied();
    found.map_or(offset, |(place, _)| place)
}

fn empty_buf(capacity: usize) -> Result<DmaBuf, StoreError> {
    let mut buf = engine::take_buf(capacity)?;
    buf.set_len(0);
    Ok(buf)
}
