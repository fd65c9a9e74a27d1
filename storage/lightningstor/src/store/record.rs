//! The records of a partition's log. Sans-IO.
//!
//! Every record overwrites the whole state of its key (or bucket, or upload, or part), so that
//! replaying a run of records over a state that already holds some of them ends in the same state.
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 0 | 1 | format version, 1 |
//! | 1 | 1 | 1 when an inline body ends the record, else 0 |
//! | 2 | 2 | length of the key |
//! | 4 | 4 | length of the fields |
//! | 8 | 8 | bucket |
//! | 16 | 8 | object version, 0 is the null version |
//! | 24 | | key (UTF-8; of a bucket its name), fields, inline body |
//!
//! The body comes last, so that an answer is sent from the buffer that the record was read into.
//! Fields by kind, in the forms of `meta`:
//! Put: metadata, stored. Delete, BucketDelete: none. BucketCreate: owner text, u64 created_ms.
//! UploadCreate: u128 upload, metadata, upload checksum. PartPut: u128 upload, u16 number, etag, u64
//! size, u64 modified_ms, optional checksum, stored; PartCopy the same. UploadComplete: u128 upload, metadata, u32
//! count and the manifest's parts {u16 number, place, u64 size, extents}. UploadAbort: u128 upload.
//! Stored: u8 0 (inline), or u8 1, extents, u8 0 and u32 count of u64 CRCs, or u8 1, table extents,
//! u32 entries and u32 count of u64 CRCs over each 64 KiB of the table. Place: u32 segment, u32
//! offset, u32 length.

#[cfg(test)]
mod tests;

use std::ops::Range;

use s3_wire::checksum::Checksum;
use s3_wire::{Etag, ObjectKey};

use super::bytes::{Decode, Reader, Writer};
use super::extent::Extent;
use super::meta;
use super::types::{BucketId, CRC_BLOCK, ObjectMeta, UploadChecksum, UploadId, Version};

const FORMAT: u8 = 1;
const HEAD: usize = 24;

/// What a record does; the log keeps it beside the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// An object with a body of its own.
    Put = 1,
    /// An object is gone.
    Delete = 2,
    /// A bucket exists.
    BucketCreate = 3,
    /// A bucket is gone.
    BucketDelete = 4,
    /// An upload has begun.
    UploadCreate = 5,
    /// A part of an upload.
    PartPut = 6,
    /// An upload has become an object.
    UploadComplete = 7,
    /// An upload is gone.
    UploadAbort = 8,
    /// As PartPut, and by itself it changes nothing: the record of a completed object's part in a
    /// new place, for the manifest that follows.
    PartCopy = 9,
}

impl Kind {
    /// Finds a kind by its number.
    pub fn of(number: u8) -> Option<Kind> {
        let all = [
            Kind::Put,
            Kind::Delete,
            Kind::BucketCreate,
            Kind::BucketDelete,
            Kind::UploadCreate,
            Kind::PartPut,
            Kind::UploadComplete,
            Kind::UploadAbort,
            Kind::PartCopy,
        ];
        all.into_iter().find(|kind| *kind as u8 == number)
    }
}

/// Where a record lies in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The segment.
    pub segment: u32,
    /// Where in it, in bytes.
    pub offset: u32,
    /// Bytes that the record takes.
    pub len: u32,
}

/// The CRC-64/NVME of each 64 KiB of a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Crcs {
    /// In the record.
    Inline(Vec<u64>),
    /// In extents of the data file, as little-endian u64.
    Table {
        /// Where.
        extents: Vec<Extent>,
        /// How many.
        entries: u32,
        /// The CRC of each 64 KiB of the table.
        crcs: Vec<u64>,
    },
}

/// Where a body lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stored {
    /// At the end of its record.
    Inline,
    /// In extents, its CRCs beside.
    Extents {
        /// The blocks, in order of the body.
        extents: Vec<Extent>,
        /// Its CRCs.
        crcs: Crcs,
    },
}

impl Stored {
    /// Every extent that belongs to the body, its table's included.
    pub fn all_extents(&self) -> impl Iterator<Item = Extent> + '_ {
        let (body, table): (&[Extent], &[Extent]) = match self {
            Stored::Inline => (&[], &[]),
            Stored::Extents {
                extents,
                crcs: Crcs::Inline(_),
            } => (extents, &[]),
            Stored::Extents {
                extents,
                crcs: Crcs::Table { extents: table, .. },
            } => (extents, table),
        };
        body.iter().chain(table).copied()
    }
}

/// A part as a completed object names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestPart {
    /// Its number.
    pub number: u16,
    /// Its record: inline body, or extents and CRCs.
    pub place: Place,
    /// Its length in bytes.
    pub size: u64,
    /// Every extent of it.
    pub extents: Vec<Extent>,
}

/// What a record changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The key's object.
    Put {
        /// Its metadata.
        meta: ObjectMeta,
        /// Its body.
        stored: Stored,
    },
    /// The key has no object.
    Delete,
    /// The bucket exists; the record's key is its name.
    BucketCreate {
        /// Whose it is.
        owner: String,
        /// Milliseconds since the Unix epoch.
        created_ms: u64,
    },
    /// The bucket does not exist.
    BucketDelete,
    /// The upload exists, without parts.
    UploadCreate {
        /// The upload.
        upload: UploadId,
        /// Metadata of the object to be.
        meta: ObjectMeta,
        /// Its promise.
        checksum: Option<UploadChecksum>,
    },
    /// A part of the upload.
    PartPut {
        /// The upload.
        upload: UploadId,
        /// 1 to 10,000.
        number: u16,
        /// Its tag.
        etag: Etag,
        /// Its length in bytes.
        size: u64,
        /// Milliseconds since the Unix epoch.
        modified_ms: u64,
        /// Its checksum.
        checksum: Option<Checksum>,
        /// Its body.
        stored: Stored,
    },
    /// The key's object, made of an upload's parts; the upload is gone.
    UploadComplete {
        /// The upload.
        upload: UploadId,
        /// Metadata of the object.
        meta: ObjectMeta,
        /// Its parts, in order.
        parts: Vec<ManifestPart>,
    },
    /// The upload is gone.
    UploadAbort {
        /// The upload.
        upload: UploadId,
    },
}

impl Change {
    /// The kind of its record.
    pub fn kind(&self) -> Kind {
        match self {
            Change::Put { .. } => Kind::Put,
            Change::Delete => Kind::Delete,
            Change::BucketCreate { .. } => Kind::BucketCreate,
            Change::BucketDelete => Kind::BucketDelete,
            Change::UploadCreate { .. } => Kind::UploadCreate,
            Change::PartPut { .. } => Kind::PartPut,
            Change::UploadComplete { .. } => Kind::UploadComplete,
            Change::UploadAbort { .. } => Kind::UploadAbort,
        }
    }

    /// Whether space comes back by it: such a record may use the log's reserve on a full disk.
    pub(super) fn gives_back(&self) -> bool {
        matches!(
            self,
            Change::Delete | Change::BucketDelete | Change::UploadAbort { .. }
        )
    }

    /// Body length when it lies in the record.
    fn inline_len(&self) -> Option<u64> {
        match self {
            Change::Put {
                meta,
                stored: Stored::Inline,
            } => Some(meta.size),
            Change::PartPut {
                size,
                stored: Stored::Inline,
                ..
            } => Some(*size),
            _ => None,
        }
    }
}

/// A record: whose state changes, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The bucket.
    pub bucket: BucketId,
    /// The key; of a bucket its name.
    pub key: Box<str>,
    /// The object's version.
    pub version: Version,
    /// What changes.
    pub change: Change,
}

impl Record {
    /// Everything of the record but its inline body, which follows as it is.
    pub fn encode_head(&self) -> Vec<u8> {
        let mut fields = Writer::default();
        put_change(&mut fields, &self.change);
        let mut out = Writer {
            bytes: Vec::with_capacity(HEAD + self.key.len() + fields.bytes.len()),
        };
        out.u8(FORMAT);
        out.u8(u8::from(self.change.inline_len().is_some()));
        out.u16(self.key.len() as u16);
        out.u32(fields.bytes.len() as u32);
        out.u64(self.bucket.0);
        out.u64(self.version.0);
        out.raw(self.key.as_bytes());
        out.raw(&fields.bytes);
        out.bytes
    }

    /// Reads a record, and where in `payload` its inline body lies.
    ///
    /// # Errors
    /// `Malformed` for bytes that no `encode_head` and body have made.
    pub fn decode(kind: u8, payload: &[u8]) -> Decode<(Record, Range<usize>)> {
        let mut from = Reader::new(payload);
        let kind = Kind::of(kind).ok_or(from.bad("record kind"))?;
        if from.u8("format version")? != FORMAT {
            return Err(from.bad("format version"));
        }
        let inline = from.flag("inline flag")?;
        let key_len = usize::from(from.u16("key length")?);
        let fields_len = from.u32("fields length")? as usize;
        let bucket = BucketId(from.u64("bucket")?);
        let version = Version(from.u64("version")?);
        let key = from.utf8(key_len, "key")?;
        if ObjectKey::new(key).is_err() {
            return Err(from.bad("key"));
        }
        let mut fields = Reader::new(from.raw(fields_len, "fields")?);
        let change = get_change(kind, &mut fields)?;
        fields.end("fields")?;
        let body = from.at()..payload.len();
        let expected = change.inline_len();
        if inline != expected.is_some() || body.len() as u64 != expected.unwrap_or(0) {
            return Err(from.bad("inline body"));
        }
        Ok((
            Record {
                bucket,
                key: key.into(),
                version,
                change,
            },
            body,
        ))
    }
}

fn put_change(out: &mut Writer, change: &Change) {
    match change {
        Change::Put { meta, stored } => {
            meta::put_meta(out, meta);
            put_stored(out, stored);
        }
        Change::Delete | Change::BucketDelete => {}
        Change::BucketCreate { owner, created_ms } => {
            out.text(owner);
            out.u64(*created_ms);
        }
        Change::UploadCreate {
            upload,
            meta,
            checksum,
        } => {
            out.u128(upload.0);
            meta::put_meta(out, meta);
            meta::put_upload_checksum(out, checksum.as_ref());
        }
        Change::PartPut {
            upload,
            number,
            etag,
            size,
            modified_ms,
            checksum,
            stored,
        } => {
            out.u128(upload.0);
            out.u16(*number);
            meta::put_etag(out, etag);
            out.u64(*size);
            out.u64(*modified_ms);
            meta::put_checksum(out, checksum.as_ref());
            put_stored(out, stored);
        }
        Change::UploadComplete {
            upload,
            meta,
            parts,
        } => {
            out.u128(upload.0);
            meta::put_meta(out, meta);
            put_manifest(out, parts);
        }
        Change::UploadAbort { upload } => out.u128(upload.0),
    }
}

fn get_change(kind: Kind, from: &mut Reader<'_>) -> Decode<Change> {
    Ok(match kind {
        Kind::Put => {
            let meta = meta::get_meta(from)?;
            let stored = get_stored(from, meta.size)?;
            Change::Put { meta, stored }
        }
        Kind::Delete => Change::Delete,
        Kind::BucketDelete => Change::BucketDelete,
        Kind::BucketCreate => Change::BucketCreate {
            owner: from.text("owner")?.to_owned(),
            created_ms: from.u64("created")?,
        },
        Kind::UploadCreate => Change::UploadCreate {
            upload: UploadId(from.u128("upload")?),
            meta: meta::get_meta(from)?,
            checksum: meta::get_upload_checksum(from)?,
        },
        Kind::PartPut | Kind::PartCopy => {
            let upload = UploadId(from.u128("upload")?);
            let number = from.u16("part number")?;
            let etag = meta::get_etag(from)?;
            let size = from.u64("size")?;
            let modified_ms = from.u64("modified")?;
            let checksum = meta::get_checksum(from)?;
            let stored = get_stored(from, size)?;
            Change::PartPut {
                upload,
                number,
                etag,
                size,
                modified_ms,
                checksum,
                stored,
            }
        }
        Kind::UploadComplete => {
            let upload = UploadId(from.u128("upload")?);
            let meta = meta::get_meta(from)?;
            let bad = from.bad("manifest");
            let parts = get_manifest(from)?;
            let sum = parts
                .iter()
                .try_fold(0_u64, |sum, part| sum.checked_add(part.size));
            if sum != Some(meta.size) {
                return Err(bad);
            }
            Change::UploadComplete {
                upload,
                meta,
                parts,
            }
        }
        Kind::UploadAbort => Change::UploadAbort {
            upload: UploadId(from.u128("upload")?),
        },
    })
}

fn put_crcs(out: &mut Writer, crcs: &[u64]) {
    out.u32(crcs.len() as u32);
    for crc in crcs {
        out.u64(*crc);
    }
}

fn get_crcs(from: &mut Reader<'_>, expected: u64) -> Decode<Vec<u64>> {
    let bad = from.bad("CRC count");
    let count = from.count(8, "CRC count")?;
    if count as u64 != expected {
        return Err(bad);
    }
    let mut crcs = Vec::with_capacity(count);
    for _ in 0..count {
        crcs.push(from.u64("CRC")?);
    }
    Ok(crcs)
}

fn put_stored(out: &mut Writer, stored: &Stored) {
    match stored {
        Stored::Inline => out.u8(0),
        Stored::Extents { extents, crcs } => {
            out.u8(1);
            meta::put_extents(out, extents);
            match crcs {
                Crcs::Inline(crcs) => {
                    out.u8(0);
                    put_crcs(out, crcs);
                }
                Crcs::Table {
                    extents,
                    entries,
                    crcs,
                } => {
                    out.u8(1);
                    meta::put_extents(out, extents);
                    out.u32(*entries);
                    put_crcs(out, crcs);
                }
            }
        }
    }
}

/// Extents that hold exactly `bytes`.
fn get_extents_for(from: &mut Reader<'_>, bytes: u64) -> Decode<Vec<Extent>> {
    let bad = from.bad("extents");
    let extents = meta::get_extents(from)?;
    let blocks: u64 = extents.iter().map(|e| u64::from(e.blocks)).sum();
    if blocks == super::extent::blocks_of(bytes) {
        Ok(extents)
    } else {
        Err(bad)
    }
}

fn get_stored(from: &mut Reader<'_>, size: u64) -> Decode<Stored> {
    if !from.flag("stored form")? {
        return Ok(Stored::Inline);
    }
    let extents = get_extents_for(from, size)?;
    let entries = size.div_ceil(CRC_BLOCK as u64);
    if !from.flag("CRC form")? {
        return Ok(Stored::Extents {
            extents,
            crcs: Crcs::Inline(get_crcs(from, entries)?),
        });
    }
    let table_bytes = entries * 8;
    let table = get_extents_for(from, table_bytes)?;
    let bad = from.bad("table entries");
    let stated = from.u32("table entries")?;
    if u64::from(stated) != entries {
        return Err(bad);
    }
    let crcs = get_crcs(from, table_bytes.div_ceil(CRC_BLOCK as u64))?;
    Ok(Stored::Extents {
        extents,
        crcs: Crcs::Table {
            extents: table,
            entries: stated,
            crcs,
        },
    })
}

pub(super) fn put_place(out: &mut Writer, place: Place) {
    out.u32(place.segment);
    out.u32(place.offset);
    out.u32(place.len);
}

pub(super) fn get_place(from: &mut Reader<'_>) -> Decode<Place> {
    Ok(Place {
        segment: from.u32("place")?,
        offset: from.u32("place")?,
        len: from.u32("place")?,
    })
}

pub(super) fn put_manifest(out: &mut Writer, parts: &[ManifestPart]) {
    out.u32(parts.len() as u32);
    for part in parts {
        out.u16(part.number);
        put_place(out, part.place);
        out.u64(part.size);
        meta::put_extents(out, &part.extents);
    }
}

pub(super) fn get_manifest(from: &mut Reader<'_>) -> Decode<Vec<ManifestPart>> {
    let count = from.count(26, "manifest")?;
    let mut parts = Vec::with_capacity(count);
    for _ in 0..count {
        parts.push(ManifestPart {
            number: from.u16("part number")?,
            place: get_place(from)?,
            size: from.u64("part size")?,
            extents: meta::get_extents(from)?,
        });
    }
    Ok(parts)
}
