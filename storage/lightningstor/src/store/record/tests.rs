//! Records come back as they were written; anything else is refused without a panic.

use proptest::prelude::*;
use s3_wire::checksum::{Algorithm, ChecksumType};

use super::*;
use crate::store::extent::blocks_of;
use crate::store::types::{ContentHeaders, ObjectChecksum};

fn etag() -> impl Strategy<Value = Etag> {
    let parts = prop_oneof![Just(0), 0..=10_000_u16];
    (any::<[u8; 16]>(), parts).prop_map(|(md5, parts)| Etag::from_stored(md5, parts).unwrap())
}

fn checksum() -> impl Strategy<Value = Checksum> {
    (0..5_usize, any::<[u8; 32]>()).prop_map(|(algorithm, bytes)| {
        let algorithm = Algorithm::ALL[algorithm];
        Checksum::from_bytes(algorithm, &bytes[..algorithm.value_bytes()]).unwrap()
    })
}

fn kind() -> impl Strategy<Value = ChecksumType> {
    prop_oneof![
        Just(ChecksumType::FullObject),
        Just(ChecksumType::Composite)
    ]
}

fn pairs() -> impl Strategy<Value = Vec<(String, String)>> {
    prop::collection::vec(("[a-z]{0,6}", "\\PC{0,6}"), 0..4)
}

fn meta(size: u64) -> BoxedStrategy<ObjectMeta> {
    let texts = prop::array::uniform6(prop::option::of("\\PC{0,9}"));
    let sum = prop::option::of((checksum(), kind()));
    let rest = (
        any::<u64>(),
        any::<u32>(),
        any::<u32>(),
        texts,
        pairs(),
        pairs(),
        sum,
    );
    (etag(), rest)
        .prop_map(
            move |(etag, (modified_ms, parts, flags, texts, user, tags, sum))| {
                let [
                    content_type,
                    encoding,
                    disposition,
                    language,
                    cache_control,
                    expires,
                ] = texts;
                let content = ContentHeaders {
                    content_type,
                    encoding,
                    disposition,
                    language,
                    cache_control,
                    expires,
                };
                let checksum = sum.map(|(value, kind)| ObjectChecksum { value, kind });
                ObjectMeta {
                    size,
                    etag,
                    modified_ms,
                    content,
                    user,
                    checksum,
                    parts,
                    tags,
                    flags,
                }
            },
        )
        .boxed()
}

/// Extents that hold `bytes`, cut at `at`.
fn extents(bytes: u64, at: u32) -> Vec<Extent> {
    let blocks = blocks_of(bytes) as u32;
    let first = Extent {
        start: 3,
        blocks: 1 + at % blocks,
    };
    let rest = Extent {
        start: 100_000,
        blocks: blocks - first.blocks,
    };
    [first, rest]
        .into_iter()
        .filter(|extent| extent.blocks > 0)
        .collect()
}

fn stored(size: u64) -> BoxedStrategy<Stored> {
    let form = if size == 0 || size > 3000 {
        1..3_u8
    } else {
        0..3_u8
    };
    (form, any::<u32>(), any::<u64>())
        .prop_map(move |(form, at, crc)| {
            let entries = size.div_ceil(CRC_BLOCK as u64);
            match form {
                _ if size == 0 => Stored::Inline,
                0 => Stored::Inline,
                1 => {
                    let crcs = Crcs::Inline((0..entries).map(|n| crc ^ n).collect());
                    Stored::Extents {
                        extents: extents(size, at),
                        crcs,
                    }
                }
                _ => {
                    let sums = (entries * 8).div_ceil(CRC_BLOCK as u64);
                    let crcs = Crcs::Table {
                        extents: extents(entries * 8, at),
                        entries: entries as u32,
                        crcs: (0..sums).map(|n| crc ^ n).collect(),
                    };
                    Stored::Extents {
                        extents: extents(size, at),
                        crcs,
                    }
                }
            }
        })
        .boxed()
}

fn place() -> impl Strategy<Value = Place> {
    any::<(u32, u32, u32)>().prop_map(|(segment, offset, len)| Place {
        segment,
        offset,
        len,
    })
}

fn manifest() -> impl Strategy<Value = Vec<ManifestPart>> {
    let part = (any::<u16>(), place(), 1..1_000_000_u64, any::<u32>()).prop_map(
        |(number, place, size, at)| ManifestPart {
            number,
            place,
            size,
            extents: extents(size, at),
        },
    );
    prop::collection::vec(part, 0..5)
}

fn size() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), 1..3000_u64, 3000..100_000_000_u64]
}

fn change() -> BoxedStrategy<Change> {
    let upload = || any::<u128>().prop_map(UploadId);
    let promise =
        prop::option::of(
            (0..5_usize, kind()).prop_map(|(algorithm, kind)| UploadChecksum {
                algorithm: Algorithm::ALL[algorithm],
                kind,
            }),
        );
    let part = size().prop_flat_map(|size| (Just(size), stored(size)));
    let part = (
        any::<u128>(),
        any::<u16>(),
        etag(),
        any::<u64>(),
        prop::option::of(checksum()),
        part,
    );
    prop_oneof![
        size()
            .prop_flat_map(|size| (meta(size), stored(size)))
            .prop_map(|(meta, stored)| Change::Put { meta, stored }),
        Just(Change::Delete),
        ("\\PC{0,20}", any::<u64>())
            .prop_map(|(owner, created_ms)| Change::BucketCreate { owner, created_ms }),
        Just(Change::BucketDelete),
        (upload(), meta(5), promise).prop_map(|(upload, meta, checksum)| Change::UploadCreate {
            upload,
            meta,
            checksum
        }),
        part.prop_map(
            |(upload, number, etag, modified_ms, checksum, (size, stored))| {
                let upload = UploadId(upload);
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
        ),
        (upload(), manifest()).prop_flat_map(|(upload, parts)| {
            let size = parts.iter().map(|part| part.size).sum();
            meta(size).prop_map(move |meta| Change::UploadComplete {
                upload,
                meta,
                parts: parts.clone(),
            })
        }),
        upload().prop_map(|upload| Change::UploadAbort { upload }),
    ]
    .boxed()
}

/// A record and its bytes, the inline body included.
fn record() -> impl Strategy<Value = (Record, Vec<u8>)> {
    (any::<u64>(), "\\PC{1,40}", any::<u64>(), change()).prop_map(
        |(bucket, key, version, change)| {
            let (bucket, version) = (BucketId(bucket), Version(version));
            let record = Record {
                bucket,
                key: key.into(),
                version,
                change,
            };
            let mut bytes = record.encode_head();
            bytes.resize(
                bytes.len() + record.change.inline_len().unwrap_or(0) as usize,
                0xAB,
            );
            (record, bytes)
        },
    )
}

proptest! {
    #[test]
    fn what_is_written_is_read((record, bytes) in record()) {
        let kind = record.change.kind() as u8;
        let (read, body) = Record::decode(kind, &bytes).unwrap();
        prop_assert!(bytes[body].iter().all(|byte| *byte == 0xAB));
        prop_assert_eq!(read, record);
    }

    #[test]
    fn damage_is_refused_or_is_another_record_and_never_a_panic(
        (record, bytes) in record(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
        kind in any::<u8>(),
    ) {
        let own = record.change.kind() as u8;
        prop_assert!(Record::decode(own, &bytes[..cut.index(bytes.len())]).is_err());
        let mut longer = bytes.clone();
        longer.push(0);
        prop_assert!(Record::decode(own, &longer).is_err());
        let mut damaged = bytes;
        for (at, with) in flips {
            let at = at.index(damaged.len());
            damaged[at] ^= with;
        }
        for kind in [own, kind] {
            if let Ok((read, body)) = Record::decode(kind, &damaged) {
                prop_assert_eq!(read.encode_head().len() + body.len(), damaged.len());
            }
        }
    }
}
