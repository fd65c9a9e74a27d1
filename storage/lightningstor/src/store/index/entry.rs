//! What the index keeps of an object, and its form in runs and old checkpoints.
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 0 | 12 | place of the record: u32 segment, u32 offset, u32 length |
//! | 12 | 8 | length of the body |
//! | 20 | 18 | etag |
//! | 38 | 8 | modified, milliseconds since the Unix epoch |
//! | 46 | 4 | flags: the front's labels |
//! | 50 | 1 or 3 | checksum kept with the object: 0, or 1, algorithm and kind |
//! | | 1 | body: 0 inline, 1 extents, 2 manifest |
//! | | | extents, or the manifest's parts |
//!
//! What a listing shows comes first, so that it is read without the rest. The first format of
//! checkpoints had neither flags nor checksum.

use s3_wire::Etag;

use crate::store::bytes::{Decode, Reader, Writer};
use crate::store::extent::Extent;
use crate::store::meta;
use crate::store::record::{self, ManifestPart, Place};
use crate::store::types::{ObjectMeta, UploadChecksum};

/// Where an object's bytes are, as far as the index must know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum EntryBody {
    /// At the end of its record.
    Inline,
    /// In these extents (the CRC table's included); CRCs in the record.
    Extents(Box<[Extent]>),
    /// In parts with records of their own.
    Manifest(Box<[ManifestPart]>),
}

/// An object. Its full metadata is in its record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ObjectEntry {
    pub(crate) place: Place,
    pub(crate) size: u64,
    pub(crate) etag: Etag,
    pub(crate) modified_ms: u64,
    /// Labels that the front gives meaning to (storage class).
    pub(crate) flags: u32,
    /// What the object's checksum is, not its value.
    pub(crate) checksum: Option<UploadChecksum>,
    pub(crate) body: EntryBody,
}

/// What a listing shows of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shown {
    pub(crate) size: u64,
    pub(crate) etag: Etag,
    pub(crate) modified_ms: u64,
    pub(crate) flags: u32,
    pub(crate) checksum: Option<UploadChecksum>,
}

impl ObjectEntry {
    pub(super) fn new(place: Place, meta: &ObjectMeta, body: EntryBody) -> ObjectEntry {
        ObjectEntry {
            place,
            size: meta.size,
            etag: meta.etag,
            modified_ms: meta.modified_ms,
            flags: meta.flags,
            checksum: meta.checksum.map(|checksum| UploadChecksum {
                algorithm: checksum.value.algorithm(),
                kind: checksum.kind,
            }),
            body,
        }
    }

    fn parts(&self) -> &[ManifestPart] {
        match &self.body {
            EntryBody::Manifest(parts) => parts,
            EntryBody::Inline | EntryBody::Extents(_) => &[],
        }
    }

    /// Every record of the object.
    pub(crate) fn places(&self) -> impl Iterator<Item = Place> + '_ {
        let parts = self.parts().iter().map(|part| part.place);
        std::iter::once(self.place).chain(parts)
    }

    /// Every extent of the object, in order.
    pub(crate) fn extents(&self) -> impl Iterator<Item = Extent> + '_ {
        let own: &[Extent] = match &self.body {
            EntryBody::Extents(extents) => extents,
            EntryBody::Inline | EntryBody::Manifest(_) => &[],
        };
        let parts = self.parts().iter();
        own.iter()
            .copied()
            .chain(parts.flat_map(|part| part.extents.iter().copied()))
    }

    /// Bytes of memory beside the entry itself, about.
    pub(super) fn heap_bytes(&self) -> usize {
        let parts = self.parts().iter();
        let parts: usize = parts
            .map(|part| size_of::<ManifestPart>() + part.extents.len() * size_of::<Extent>())
            .sum();
        match &self.body {
            EntryBody::Extents(extents) => extents.len() * size_of::<Extent>(),
            EntryBody::Inline | EntryBody::Manifest(_) => parts,
        }
    }

    pub(crate) fn shown(&self) -> Shown {
        Shown {
            size: self.size,
            etag: self.etag,
            modified_ms: self.modified_ms,
            flags: self.flags,
            checksum: self.checksum,
        }
    }

    pub(crate) fn encode(&self, out: &mut Writer) {
        record::put_place(out, self.place);
        out.u64(self.size);
        meta::put_etag(out, &self.etag);
        out.u64(self.modified_ms);
        out.u32(self.flags);
        meta::put_upload_checksum(out, self.checksum.as_ref());
        match &self.body {
            EntryBody::Inline => out.u8(0),
            EntryBody::Extents(extents) => {
                out.u8(1);
                meta::put_extents(out, extents);
            }
            EntryBody::Manifest(parts) => {
                out.u8(2);
                record::put_manifest(out, parts);
            }
        }
    }

    pub(crate) fn decode(from: &mut Reader<'_>) -> Decode<ObjectEntry> {
        let place = record::get_place(from)?;
        let shown = Shown::decode_behind_place(from)?;
        ObjectEntry::decode_body(place, shown, from)
    }

    /// As [`ObjectEntry::decode`], of the first format.
    pub(super) fn decode_first_format(from: &mut Reader<'_>) -> Decode<ObjectEntry> {
        let place = record::get_place(from)?;
        let shown = Shown {
            size: from.u64("size")?,
            etag: meta::get_etag(from)?,
            modified_ms: from.u64("modified")?,
            flags: 0,
            checksum: None,
        };
        ObjectEntry::decode_body(place, shown, from)
    }

    fn decode_body(place: Place, shown: Shown, from: &mut Reader<'_>) -> Decode<ObjectEntry> {
        let bad = from.bad("body form");
        let body = match from.u8("body form")? {
            0 => EntryBody::Inline,
            1 => EntryBody::Extents(meta::get_extents(from)?.into()),
            2 => EntryBody::Manifest(record::get_manifest(from)?.into()),
            _ => return Err(bad),
        };
        Ok(ObjectEntry {
            place,
            size: shown.size,
            etag: shown.etag,
            modified_ms: shown.modified_ms,
            flags: shown.flags,
            checksum: shown.checksum,
            body,
        })
    }
}

impl Shown {
    fn decode_behind_place(from: &mut Reader<'_>) -> Decode<Shown> {
        Ok(Shown {
            size: from.u64("size")?,
            etag: meta::get_etag(from)?,
            modified_ms: from.u64("modified")?,
            flags: from.u32("flags")?,
            checksum: meta::get_upload_checksum(from)?,
        })
    }

    /// Reads only the front of an entry.
    pub(crate) fn decode(bytes: &[u8]) -> Decode<Shown> {
        let mut from = Reader::new(bytes);
        record::get_place(&mut from)?;
        Shown::decode_behind_place(&mut from)
    }
}
