//! Walking the index in steps, while it changes, for a fuzzy checkpoint; and building one from the
//! items of a walk.
//!
//! A step yields some items and the cursor of the next. What changes between two steps is in the
//! log behind the checkpoint's start, so it does not matter whether an item shows it.
//!
//! Item forms (after a u8 tag): 1 bucket {u64 id, name, owner, u64 created_ms}; 2 upload {u64
//! bucket, key, u128 upload, place, u64 initiated_ms, upload checksum}; 3 part {u64 bucket, key, u128
//! upload, u16 number, place, u64 size, etag, u64 modified_ms, optional checksum, extents}; 4 object
//! {u64 bucket, key, u64 version, entry of the first format}; 5 run {u64 number, u8 level}; 6 nothing, which hides older
//! runs {u64 bucket, key, u64 version}; 7 object {u64 bucket, key, u64 version, entry}.
//!
//! Of objects a walk shows those in the memtable.

use std::cmp::Reverse;
use std::ops::Bound;

use super::name::{NamePosition, ObjectName};
use super::{BucketRow, Index, ObjectEntry, PartEntry, Upload, UploadKey};
use crate::store::bytes::{Decode, Reader, Writer};
use crate::store::meta;
use crate::store::record;
use crate::store::run::RunRef;
use crate::store::types::{BucketId, UploadId, Version};

/// One entry of the index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Item {
    Bucket {
        name: Box<str>,
        row: BucketRow,
    },
    Upload {
        key: UploadKey,
        upload: Upload,
    },
    Part {
        key: UploadKey,
        number: u16,
        part: PartEntry,
    },
    Object {
        bucket: BucketId,
        key: Box<str>,
        version: Version,
        entry: ObjectEntry,
    },
    Run(RunRef),
    Gone {
        bucket: BucketId,
        key: Box<str>,
        version: Version,
    },
}

/// Where a walk goes on.
#[derive(Clone, Debug, Default)]
pub(crate) enum WalkCursor {
    #[default]
    Start,
    Buckets(Box<str>),
    Uploads(UploadKey, u16),
    Objects(NamePosition),
    End,
}

impl Index {
    /// Writes items of about `bytes` from the cursor on; returns how many.
    pub(crate) fn walk(&self, cursor: &mut WalkCursor, bytes: usize, out: &mut Vec<u8>) -> u64 {
        let mut writer = Writer {
            bytes: std::mem::take(out),
        };
        let mut count = 0;
        while writer.bytes.len() < bytes {
            let next = match &*cursor {
                WalkCursor::Start => self.walk_buckets(None, &mut writer),
                WalkCursor::Buckets(after) => self.walk_buckets(Some(after), &mut writer),
                WalkCursor::Uploads(key, part) => self.walk_uploads(key, *part, &mut writer),
                WalkCursor::Objects(at) => self.walk_objects(at, &mut writer),
                WalkCursor::End => break,
            };
            let (wrote, next) = next;
            count += u64::from(wrote);
            *cursor = next;
        }
        *out = writer.bytes;
        count
    }

    fn walk_buckets(&self, after: Option<&str>, out: &mut Writer) -> (bool, WalkCursor) {
        let low = after.map_or(Bound::Unbounded, Bound::Excluded);
        let Some((name, row)) = self.buckets.range::<str, _>((low, Bound::Unbounded)).next() else {
            return self.first_upload((BucketId(0), "".into(), UploadId(0)), out);
        };
        out.u8(1);
        out.u64(row.id.0);
        out.text(name);
        out.text(&row.owner);
        out.u64(row.created_ms);
        (true, WalkCursor::Buckets(name.clone()))
    }

    /// The first upload from a key on.
    fn first_upload(&self, from: UploadKey, out: &mut Writer) -> (bool, WalkCursor) {
        let Some((key, upload)) = self.uploads.range(from..).next() else {
            return (false, WalkCursor::Objects(NamePosition::start()));
        };
        out.u8(2);
        put_upload_key(out, key);
        record::put_place(out, upload.place);
        out.u64(upload.initiated_ms);
        meta::put_upload_checksum(out, upload.checksum.as_ref());
        (true, WalkCursor::Uploads(key.clone(), 0))
    }

    /// The upload's next part, or the next upload.
    fn walk_uploads(&self, key: &UploadKey, after: u16, out: &mut Writer) -> (bool, WalkCursor) {
        let parts = self.uploads.get(key).map(|upload| &upload.parts);
        let low = (Bound::Excluded(after), Bound::Unbounded);
        let Some((number, part)) = parts.and_then(|parts| parts.range(low).next()) else {
            let (bucket, key, UploadId(id)) = key.clone();
            return match id.checked_add(1) {
                Some(id) => self.first_upload((bucket, key, UploadId(id)), out),
                None => self.first_upload((bucket, format!("{key}\0").into(), UploadId(0)), out),
            };
        };
        out.u8(3);
        put_upload_key(out, key);
        out.u16(*number);
        record::put_place(out, part.place);
        out.u64(part.size);
        meta::put_etag(out, &part.etag);
        out.u64(part.modified_ms);
        meta::put_checksum(out, part.checksum.as_ref());
        meta::put_extents(out, &part.extents);
        (true, WalkCursor::Uploads(key.clone(), *number))
    }

    fn walk_objects(&self, at: &NamePosition, out: &mut Writer) -> (bool, WalkCursor) {
        let Some((rank, slot)) = self.objects.from(at).next() else {
            return (false, WalkCursor::End);
        };
        let (bucket, key, Reverse(version)) = rank;
        out.u8(if slot.is_some() { 7 } else { 6 });
        out.u64(bucket.0);
        out.u32(key.len() as u32);
        out.raw(key);
        out.u64(version);
        if let Some(entry) = slot {
            entry.encode(out);
        }
        let mut behind = at.clone();
        behind.pass(rank);
        (true, WalkCursor::Objects(behind))
    }

    /// Takes an item of a walk over another index; runs are the caller's.
    pub(crate) fn load(&mut self, item: Item) {
        match item {
            Item::Run(_) => {}
            Item::Bucket { name, row } => self.set_bucket(name, row),
            Item::Upload { key, upload } => self.set_upload(key, upload),
            Item::Part { key, number, part } => drop(self.set_part(&key, number, part)),
            Item::Object {
                bucket,
                key,
                version,
                entry,
            } => {
                let name = ObjectName { key, version };
                self.set_slot(bucket, name, Some(entry), None);
            }
            Item::Gone {
                bucket,
                key,
                version,
            } => self.set_slot(bucket, ObjectName { key, version }, None, None),
        }
    }
}

fn put_upload_key(out: &mut Writer, (bucket, key, upload): &UploadKey) {
    out.u64(bucket.0);
    out.text(key);
    out.u128(upload.0);
}

fn get_upload_key(from: &mut Reader<'_>) -> Decode<UploadKey> {
    let bucket = BucketId(from.u64("bucket")?);
    Ok((
        bucket,
        from.text("key")?.into(),
        UploadId(from.u128("upload")?),
    ))
}

impl Item {
    /// Reads the next item.
    pub(crate) fn decode(from: &mut Reader<'_>) -> Decode<Item> {
        let bad = from.bad("item tag");
        match from.u8("item tag")? {
            1 => {
                let id = BucketId(from.u64("bucket")?);
                let name = from.text("bucket name")?.into();
                let owner = from.text("owner")?.to_owned();
                Ok(Item::Bucket {
                    name,
                    row: BucketRow {
                        id,
                        owner,
                        created_ms: from.u64("created")?,
                    },
                })
            }
            2 => {
                let key = get_upload_key(from)?;
                let upload = Upload {
                    place: record::get_place(from)?,
                    initiated_ms: from.u64("initiated")?,
                    checksum: meta::get_upload_checksum(from)?,
                    parts: std::collections::BTreeMap::new(),
                };
                Ok(Item::Upload { key, upload })
            }
            3 => {
                let key = get_upload_key(from)?;
                let number = from.u16("part number")?;
                let part = PartEntry {
                    place: record::get_place(from)?,
                    size: from.u64("size")?,
                    etag: meta::get_etag(from)?,
                    modified_ms: from.u64("modified")?,
                    checksum: meta::get_checksum(from)?,
                    extents: meta::get_extents(from)?.into(),
                };
                Ok(Item::Part { key, number, part })
            }
            4 => get_object(from, ObjectEntry::decode_first_format),
            5 => Ok(Item::Run(RunRef {
                number: from.u64("run number")?,
                level: from.u8("run level")?,
            })),
            6 => Ok(Item::Gone {
                bucket: BucketId(from.u64("bucket")?),
                key: from.text("key")?.into(),
                version: Version(from.u64("version")?),
            }),
            7 => get_object(from, ObjectEntry::decode),
            _ => Err(bad),
        }
    }
}

fn get_object(
    from: &mut Reader<'_>,
    entry: fn(&mut Reader<'_>) -> Decode<ObjectEntry>,
) -> Decode<Item> {
    Ok(Item::Object {
        bucket: BucketId(from.u64("bucket")?),
        key: from.text("key")?.into(),
        version: Version(from.u64("version")?),
        entry: entry(from)?,
    })
}

/// Writes a run's item.
pub(crate) fn put_run(out: &mut Vec<u8>, run: RunRef) {
    let mut writer = Writer {
        bytes: std::mem::take(out),
    };
    writer.u8(5);
    writer.u64(run.number);
    writer.u8(run.level);
    *out = writer.bytes;
}
