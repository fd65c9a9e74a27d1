//! One version of a key as bytes in the table of versions.
//!
//! | bytes | what |
//! | --- | --- |
//! | 0 | 0: a put, 1: a tombstone |
//! | 1.. | `mvccpb.KeyValue`, encoded as etcd does, so that hashes agree; a tombstone has the key alone |

use bytes::Bytes;
use etcd_wire::mvccpb::KeyValue;
use prost::Message;

use crate::error::Error;
use crate::revision::Revision;

/// A decoded version.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    pub(crate) tombstone: bool,
    pub(crate) kv: KeyValue,
}

/// A put's bytes.
pub(crate) fn put(kv: &KeyValue) -> Bytes {
    encode(0, kv)
}

/// A tombstone's bytes.
pub(crate) fn tombstone(key: Bytes) -> Bytes {
    let kv = KeyValue {
        key,
        ..Default::default()
    };
    encode(1, &kv)
}

fn encode(kind: u8, kv: &KeyValue) -> Bytes {
    let mut bytes = Vec::with_capacity(1 + kv.encoded_len());
    bytes.push(kind);
    kv.encode(&mut bytes).expect("a vector grows as needed");
    bytes.into()
}

/// Whether the version is a tombstone, and its `KeyValue` still encoded.
pub(crate) fn split(at: Revision, bytes: &[u8]) -> Result<(bool, &[u8]), Error> {
    match bytes.split_first() {
        Some((0, kv)) => Ok((false, kv)),
        Some((1, kv)) => Ok((true, kv)),
        _ => Err(damaged(at, "a kind of 0 or 1")),
    }
}

/// Decodes a version; key and value share the memory of `bytes`.
pub(crate) fn decode(at: Revision, bytes: &Bytes) -> Result<Record, Error> {
    let (tombstone, _) = split(at, bytes)?;
    let kv = KeyValue::decode(bytes.slice(1..)).map_err(|error| {
        let what = format!("version {}.{}: a KeyValue is expected", at.main, at.sub);
        Error::caused(crate::ErrorKind::Corrupt, what, error)
    })?;
    Ok(Record { tombstone, kv })
}

fn damaged(at: Revision, expected: &str) -> Error {
    Error::corrupt(format!(
        "version {}.{}: {expected} is expected",
        at.main, at.sub
    ))
}

/// What a version counts for against the quota: its bytes and its key in the table.
pub(crate) fn size(bytes: &[u8]) -> u64 {
    (bytes.len() + size_of::<crate::revision::RevisionBytes>()) as u64
}
