//! How metadata, tags, checksums and extents are written in records and checkpoints.
//!
//! | field | form |
//! | --- | --- |
//! | text | u32 length, UTF-8 |
//! | optional x | u8 0, or u8 1 and x |
//! | etag | 16 bytes MD5, u16 parts |
//! | checksum | u8 algorithm (1 CRC32, 2 CRC32C, 3 CRC64NVME, 4 SHA1, 5 SHA256), its bytes |
//! | checksum kind | u8 (0 full object, 1 composite) |
//! | metadata | u64 size, etag, u64 modified_ms, u32 parts, u32 flags, six optional texts, pairs (user), pairs (tags), optional checksum and kind |
//! | pairs | u32 count, (text, text) each |
//! | extent | u32 first block, u32 blocks, in units of 4 KiB |

use s3_wire::Etag;
use s3_wire::checksum::{Algorithm, Checksum, ChecksumType};

use super::bytes::{Decode, Reader, Writer};
use super::extent::Extent;
use super::types::{ContentHeaders, ObjectChecksum, ObjectMeta, UploadChecksum};

pub(crate) fn put_etag(out: &mut Writer, etag: &Etag) {
    out.raw(&etag.md5());
    out.u16(etag.parts().unwrap_or(0));
}

pub(crate) fn get_etag(from: &mut Reader<'_>) -> Decode<Etag> {
    let bad = from.bad("etag");
    let md5 = from.bytes16("etag")?;
    Etag::from_stored(md5, from.u16("etag parts")?).ok_or(bad)
}

const ALGORITHMS: [(u8, Algorithm); 5] = [
    (1, Algorithm::Crc32),
    (2, Algorithm::Crc32c),
    (3, Algorithm::Crc64Nvme),
    (4, Algorithm::Sha1),
    (5, Algorithm::Sha256),
];

fn put_algorithm(out: &mut Writer, algorithm: Algorithm) {
    let number = ALGORITHMS
        .iter()
        .find(|(_, a)| *a == algorithm)
        .map(|(n, _)| *n);
    out.u8(number.expect("every algorithm has a number"));
}

fn get_algorithm(from: &mut Reader<'_>) -> Decode<Algorithm> {
    let bad = from.bad("checksum algorithm");
    let number = from.u8("checksum algorithm")?;
    ALGORITHMS
        .iter()
        .find(|(n, _)| *n == number)
        .map(|(_, a)| *a)
        .ok_or(bad)
}

pub(crate) fn put_checksum(out: &mut Writer, checksum: Option<&Checksum>) {
    out.u8(u8::from(checksum.is_some()));
    if let Some(checksum) = checksum {
        put_algorithm(out, checksum.algorithm());
        out.raw(checksum.bytes());
    }
}

pub(crate) fn get_checksum(from: &mut Reader<'_>) -> Decode<Option<Checksum>> {
    if !from.flag("checksum")? {
        return Ok(None);
    }
    let algorithm = get_algorithm(from)?;
    let bad = from.bad("checksum value");
    let value = from.raw(algorithm.value_bytes(), "checksum value")?;
    Checksum::from_bytes(algorithm, value).map(Some).ok_or(bad)
}

fn put_kind(out: &mut Writer, kind: ChecksumType) {
    out.u8(u8::from(kind == ChecksumType::Composite));
}

fn get_kind(from: &mut Reader<'_>) -> Decode<ChecksumType> {
    let composite = from.flag("checksum kind")?;
    Ok(if composite {
        ChecksumType::Composite
    } else {
        ChecksumType::FullObject
    })
}

pub(crate) fn put_upload_checksum(out: &mut Writer, checksum: Option<&UploadChecksum>) {
    out.u8(u8::from(checksum.is_some()));
    if let Some(checksum) = checksum {
        put_algorithm(out, checksum.algorithm);
        put_kind(out, checksum.kind);
    }
}

pub(crate) fn get_upload_checksum(from: &mut Reader<'_>) -> Decode<Option<UploadChecksum>> {
    if !from.flag("upload checksum")? {
        return Ok(None);
    }
    Ok(Some(UploadChecksum {
        algorithm: get_algorithm(from)?,
        kind: get_kind(from)?,
    }))
}

fn put_pairs(out: &mut Writer, pairs: &[(String, String)]) {
    out.u32(pairs.len() as u32);
    for (name, value) in pairs {
        out.text(name);
        out.text(value);
    }
}

fn get_pairs(from: &mut Reader<'_>, what: &'static str) -> Decode<Vec<(String, String)>> {
    let count = from.count(8, what)?;
    let mut pairs = Vec::with_capacity(count);
    for _ in 0..count {
        pairs.push((from.text(what)?.to_owned(), from.text(what)?.to_owned()));
    }
    Ok(pairs)
}

pub(crate) fn put_meta(out: &mut Writer, meta: &ObjectMeta) {
    out.u64(meta.size);
    put_etag(out, &meta.etag);
    out.u64(meta.modified_ms);
    out.u32(meta.parts);
    out.u32(meta.flags);
    let content = &meta.content;
    for field in [
        &content.content_type,
        &content.encoding,
        &content.disposition,
        &content.language,
        &content.cache_control,
        &content.expires,
    ] {
        out.text_or_none(field.as_deref());
    }
    put_pairs(out, &meta.user);
    put_pairs(out, &meta.tags);
    put_checksum(out, meta.checksum.as_ref().map(|c| &c.value));
    if let Some(checksum) = &meta.checksum {
        put_kind(out, checksum.kind);
    }
}

pub(crate) fn get_meta(from: &mut Reader<'_>) -> Decode<ObjectMeta> {
    let size = from.u64("size")?;
    let etag = get_etag(from)?;
    let mut meta = ObjectMeta::new(size, etag, from.u64("modified")?);
    meta.parts = from.u32("parts")?;
    meta.flags = from.u32("flags")?;
    let mut field = |what| from.text_or_none(what).map(|text| text.map(str::to_owned));
    meta.content = ContentHeaders {
        content_type: field("content type")?,
        encoding: field("content encoding")?,
        disposition: field("content disposition")?,
        language: field("content language")?,
        cache_control: field("cache control")?,
        expires: field("expires")?,
    };
    meta.user = get_pairs(from, "user metadata")?;
    meta.tags = get_pairs(from, "tags")?;
    if let Some(value) = get_checksum(from)? {
        meta.checksum = Some(ObjectChecksum {
            value,
            kind: get_kind(from)?,
        });
    }
    Ok(meta)
}

pub(crate) fn put_extents(out: &mut Writer, extents: &[Extent]) {
    out.u32(extents.len() as u32);
    for extent in extents {
        out.u32(extent.start);
        out.u32(extent.blocks);
    }
}

pub(crate) fn get_extents(from: &mut Reader<'_>) -> Decode<Vec<Extent>> {
    let count = from.count(8, "extents")?;
    let mut extents = Vec::with_capacity(count);
    for _ in 0..count {
        let bad = from.bad("extent");
        let extent = Extent {
            start: from.u32("extent")?,
            blocks: from.u32("extent")?,
        };
        if extent.blocks == 0 || extent.start.checked_add(extent.blocks).is_none() {
            return Err(bad);
        }
        extents.push(extent);
    }
    Ok(extents)
}
