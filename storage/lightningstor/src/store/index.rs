//! What a partition holds: objects in order of (bucket, key, newest version first), uploads in
//! progress, and on partition 0 the buckets. Sans-IO; derived from the log, never the truth itself.
//!
//! Invariants: applying a record twice, or a run of records over a state that already has some of
//! them, ends in the same state. `live` counts for each log segment the bytes of records that an
//! entry refers to. The extents of two entries are disjoint.
//!
//! It never reads or writes; whoever applies a record has made it durable.

mod live;
mod name;
#[cfg(test)]
pub(super) mod tests;
mod walk;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use s3_wire::Etag;
use s3_wire::checksum::Checksum;

pub(super) use self::live::{ObjectCursor, Owner};
use self::name::{NameRef, ObjectName, Probe};
pub(super) use self::walk::{Item, WalkCursor};
use super::extent::Extent;
use super::record::{Change, ManifestPart, Place, Record};
use super::types::{
    BucketId, ListChunk, ListCursor, ListEntry, ObjectMeta, UploadChecksum, UploadId, Version,
};

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
    pub(crate) body: EntryBody,
}

/// A part of an upload in progress.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PartEntry {
    pub(crate) place: Place,
    pub(crate) size: u64,
    pub(crate) etag: Etag,
    pub(crate) modified_ms: u64,
    pub(crate) checksum: Option<Checksum>,
    pub(crate) extents: Box<[Extent]>,
}

/// An upload in progress. The object's metadata is in its record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Upload {
    pub(crate) place: Place,
    pub(crate) initiated_ms: u64,
    pub(crate) checksum: Option<UploadChecksum>,
    pub(crate) parts: BTreeMap<u16, PartEntry>,
}

/// A bucket, without its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BucketRow {
    pub(crate) id: BucketId,
    pub(crate) owner: String,
    pub(crate) created_ms: u64,
}

pub(crate) type UploadKey = (BucketId, Box<str>, UploadId);

/// The index of one partition.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Index {
    objects: BTreeMap<BucketId, BTreeMap<ObjectName, ObjectEntry>>,
    uploads: BTreeMap<UploadKey, Upload>,
    buckets: BTreeMap<Box<str>, BucketRow>,
    /// The first number that no bucket has ever had.
    next_bucket: u64,
    live: BTreeMap<u32, u64>,
    object_count: u64,
    object_bytes: u64,
}

fn places_of(entry: &ObjectEntry) -> impl Iterator<Item = Place> + '_ {
    let parts: &[ManifestPart] = match &entry.body {
        EntryBody::Manifest(parts) => parts,
        _ => &[],
    };
    std::iter::once(entry.place).chain(parts.iter().map(|part| part.place))
}

impl ObjectEntry {
    fn new(place: Place, meta: &ObjectMeta, body: EntryBody) -> ObjectEntry {
        ObjectEntry {
            place,
            size: meta.size,
            etag: meta.etag,
            modified_ms: meta.modified_ms,
            body,
        }
    }

    /// Every extent of the object, in order.
    pub(crate) fn extents(&self) -> impl Iterator<Item = Extent> + '_ {
        let (own, parts): (&[Extent], &[ManifestPart]) = match &self.body {
            EntryBody::Inline => (&[], &[]),
            EntryBody::Extents(extents) => (extents, &[]),
            EntryBody::Manifest(parts) => (&[], parts),
        };
        own.iter()
            .copied()
            .chain(parts.iter().flat_map(|part| part.extents.iter().copied()))
    }
}

impl Upload {
    fn places(&self) -> impl Iterator<Item = Place> + '_ {
        std::iter::once(self.place).chain(self.parts.values().map(|part| part.place))
    }

    fn extents(&self) -> impl Iterator<Item = Extent> + '_ {
        self.parts
            .values()
            .flat_map(|part| part.extents.iter().copied())
    }
}

impl Index {
    /// Applies a durable record; returns the extents that nothing refers to any more.
    pub(crate) fn apply(&mut self, place: Place, record: Record) -> Vec<Extent> {
        let Record {
            bucket,
            key,
            version,
            change,
        } = record;
        match change {
            Change::Put { meta, stored } => {
                let extents: Box<[Extent]> = stored.all_extents().collect();
                let body = if extents.is_empty() {
                    EntryBody::Inline
                } else {
                    EntryBody::Extents(extents)
                };
                let entry = ObjectEntry::new(place, &meta, body);
                self.replace_object(bucket, key, version, entry, Vec::new())
            }
            Change::Delete => extents_of(self.remove_object(bucket, &key, version)),
            Change::BucketCreate { owner, created_ms } => {
                let id = bucket;
                self.set_bucket(
                    key,
                    BucketRow {
                        id,
                        owner,
                        created_ms,
                    },
                );
                Vec::new()
            }
            Change::BucketDelete => {
                self.buckets.remove(&key);
                Vec::new()
            }
            change => self.apply_to_upload(place, (bucket, key), version, change),
        }
    }

    /// The part of [`Index::apply`] that is about multipart uploads.
    fn apply_to_upload(
        &mut self,
        place: Place,
        name: (BucketId, Box<str>),
        version: Version,
        change: Change,
    ) -> Vec<Extent> {
        match change {
            Change::UploadCreate {
                upload,
                meta,
                checksum,
            } => {
                let new = Upload {
                    place,
                    initiated_ms: meta.modified_ms,
                    checksum,
                    parts: BTreeMap::new(),
                };
                self.set_upload((name.0, name.1, upload), new);
                Vec::new()
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
                let part = PartEntry {
                    place,
                    size,
                    etag,
                    modified_ms,
                    checksum,
                    extents: stored.all_extents().collect(),
                };
                self.set_part(&(name.0, name.1, upload), number, part)
            }
            Change::UploadComplete {
                upload,
                meta,
                parts,
            } => {
                let entry = ObjectEntry::new(place, &meta, EntryBody::Manifest(parts.into()));
                let (bucket, key) = name;
                let freed = self.remove_upload(&(bucket, key.clone(), upload));
                self.replace_object(bucket, key, version, entry, freed)
            }
            Change::UploadAbort { upload } => self.remove_upload(&(name.0, name.1, upload)),
            Change::Put { .. }
            | Change::Delete
            | Change::BucketCreate { .. }
            | Change::BucketDelete => unreachable!("applied by the caller"),
        }
    }

    /// Puts an object in the place of an older one. Frees what that one held and `freed`, less
    /// what the new one holds.
    fn replace_object(
        &mut self,
        bucket: BucketId,
        key: Box<str>,
        version: Version,
        entry: ObjectEntry,
        mut freed: Vec<Extent>,
    ) -> Vec<Extent> {
        let kept = entry.clone();
        freed.extend(extents_of(self.set_object(bucket, key, version, entry)));
        without(freed, kept.extents())
    }

    fn gain(&mut self, places: impl Iterator<Item = Place>) {
        for place in places {
            *self.live.entry(place.segment).or_default() += u64::from(place.len);
        }
    }

    fn lose(&mut self, places: impl Iterator<Item = Place>) {
        for place in places {
            let live = self
                .live
                .get_mut(&place.segment)
                .expect("a live record's segment is counted");
            *live = live
                .checked_sub(u64::from(place.len))
                .expect("a live record's bytes are counted");
            if *live == 0 {
                self.live.remove(&place.segment);
            }
        }
    }

    fn set_object(
        &mut self,
        bucket: BucketId,
        key: Box<str>,
        version: Version,
        entry: ObjectEntry,
    ) -> Option<ObjectEntry> {
        self.gain(places_of(&entry));
        self.object_count += 1;
        self.object_bytes += entry.size;
        let old = self
            .objects
            .entry(bucket)
            .or_default()
            .insert(ObjectName { key, version }, entry);
        self.lost_object(old)
    }

    fn remove_object(
        &mut self,
        bucket: BucketId,
        key: &str,
        version: Version,
    ) -> Option<ObjectEntry> {
        let objects = self.objects.get_mut(&bucket)?;
        let old = objects.remove(&Probe(key.as_bytes(), version.0) as &dyn NameRef);
        if objects.is_empty() {
            self.objects.remove(&bucket);
        }
        self.lost_object(old)
    }

    fn lost_object(&mut self, old: Option<ObjectEntry>) -> Option<ObjectEntry> {
        if let Some(old) = &old {
            self.lose(places_of(old));
            self.object_count -= 1;
            self.object_bytes -= old.size;
        }
        old
    }

    /// Begins an upload. One that is known has the record again, moved or replayed: its parts stay.
    fn set_upload(&mut self, key: UploadKey, mut upload: Upload) {
        self.gain(std::iter::once(upload.place));
        if let Some(known) = self.uploads.get_mut(&key) {
            upload.parts = std::mem::take(&mut known.parts);
            let old = std::mem::replace(known, upload).place;
            self.lose(std::iter::once(old));
        } else {
            self.uploads.insert(key, upload);
        }
    }

    fn remove_upload(&mut self, key: &UploadKey) -> Vec<Extent> {
        match self.uploads.remove(key) {
            Some(old) => {
                self.lose(old.places());
                old.extents().collect()
            }
            None => Vec::new(),
        }
    }

    /// A part of an upload that is unknown belongs to one that ended later in the log.
    fn set_part(&mut self, key: &UploadKey, number: u16, part: PartEntry) -> Vec<Extent> {
        let Some(upload) = self.uploads.get_mut(key) else {
            return part.extents.into_vec();
        };
        let gained = part.place;
        let kept = part.extents.clone();
        let old = upload.parts.insert(number, part);
        self.gain(std::iter::once(gained));
        match old {
            Some(old) => {
                self.lose(std::iter::once(old.place));
                without(old.extents.into_vec(), kept.iter().copied())
            }
            None => Vec::new(),
        }
    }

    fn set_bucket(&mut self, name: Box<str>, row: BucketRow) {
        self.next_bucket = self.next_bucket.max(row.id.0 + 1);
        self.buckets.insert(name, row);
    }

    /// The key's current object.
    pub(crate) fn object(&self, bucket: BucketId, key: &str) -> Option<&ObjectEntry> {
        let objects = self.objects.get(&bucket)?;
        objects.get(&Probe(key.as_bytes(), Version::NULL.0) as &dyn NameRef)
    }

    /// Whether the bucket has no object.
    pub(crate) fn is_empty(&self, bucket: BucketId) -> bool {
        !self.objects.contains_key(&bucket)
    }

    /// An upload in progress.
    pub(crate) fn upload(&self, key: &UploadKey) -> Option<&Upload> {
        self.uploads.get(key)
    }

    /// The bucket's uploads behind a key and id, in order.
    pub(crate) fn uploads_after(
        &self,
        bucket: BucketId,
        after: Option<(&str, UploadId)>,
    ) -> impl Iterator<Item = (&UploadKey, &Upload)> {
        let low = match after {
            Some((key, id)) => Bound::Excluded((bucket, key.into(), id)),
            None => Bound::Included((bucket, "".into(), UploadId(0))),
        };
        self.uploads
            .range((low, Bound::Unbounded))
            .take_while(move |((b, ..), _)| *b == bucket)
    }

    /// Buckets that have uploads in progress.
    pub(crate) fn buckets_with_uploads(&self) -> BTreeSet<BucketId> {
        self.uploads.keys().map(|(bucket, ..)| *bucket).collect()
    }

    /// The buckets, by name.
    pub(crate) fn buckets(&self) -> impl Iterator<Item = (&str, &BucketRow)> {
        self.buckets.iter().map(|(name, row)| (&**name, row))
    }

    /// A number that no bucket has ever had.
    pub(crate) fn next_bucket(&self) -> BucketId {
        BucketId(self.next_bucket.max(1))
    }

    /// As read from a checkpoint: numbers below were given out.
    pub(super) fn set_next_bucket(&mut self, next: u64) {
        self.next_bucket = self.next_bucket.max(next);
    }

    /// Objects in order, with the prefix, from the cursor on; at most `limit`.
    pub(crate) fn list(
        &self,
        bucket: BucketId,
        cursor: ListCursor<'_>,
        prefix: &[u8],
        limit: usize,
    ) -> ListChunk {
        let Some(objects) = self.objects.get(&bucket) else {
            return ListChunk::default();
        };
        let from_prefix = Probe(prefix, u64::MAX);
        let after;
        let from;
        let low: Bound<&dyn NameRef> = match cursor {
            ListCursor::After(key) if key.as_bytes() >= prefix => {
                after = Probe(key.as_bytes(), 0);
                Bound::Excluded(&after)
            }
            ListCursor::From(bytes) if bytes >= prefix => {
                from = Probe(bytes, u64::MAX);
                Bound::Included(&from)
            }
            _ => Bound::Included(&from_prefix),
        };
        let mut chunk = ListChunk::default();
        let found = objects.range::<dyn NameRef, _>((low, Bound::Unbounded));
        for (name, entry) in found.take_while(|(name, _)| name.key.as_bytes().starts_with(prefix)) {
            if chunk
                .entries
                .last()
                .is_some_and(|last| last.key == name.key)
            {
                continue;
            }
            if chunk.entries.len() >= limit {
                chunk.more = true;
                break;
            }
            chunk.entries.push(ListEntry {
                key: name.key.clone(),
                size: entry.size,
                etag: entry.etag,
                modified_ms: entry.modified_ms,
            });
        }
        chunk
    }

    /// Bytes of live records in a log segment.
    pub(crate) fn live_bytes(&self, segment: u32) -> u64 {
        self.live.get(&segment).copied().unwrap_or(0)
    }

    /// Log segments with a live record.
    pub(crate) fn live_segments(&self) -> impl Iterator<Item = u32> + '_ {
        self.live.keys().copied()
    }

    /// Every extent that an entry refers to.
    pub(crate) fn all_extents(&self) -> Vec<Extent> {
        let objects = self.objects.values().flat_map(BTreeMap::values);
        let uploads = self.uploads.values().flat_map(Upload::extents);
        objects
            .flat_map(ObjectEntry::extents)
            .chain(uploads)
            .collect()
    }

    /// Number of objects, and the bytes of their bodies.
    pub(crate) fn totals(&self) -> (u64, u64) {
        (self.object_count, self.object_bytes)
    }

    /// Number of uploads in progress.
    pub(crate) fn upload_count(&self) -> usize {
        self.uploads.len()
    }
}

fn extents_of(entry: Option<ObjectEntry>) -> Vec<Extent> {
    entry.map_or_else(Vec::new, |entry| entry.extents().collect())
}

/// What is freed, without what the new state still refers to.
fn without(freed: Vec<Extent>, kept: impl Iterator<Item = Extent>) -> Vec<Extent> {
    if freed.is_empty() {
        return freed;
    }
    let kept: BTreeSet<Extent> = kept.collect();
    freed
        .into_iter()
        .filter(|extent| !kept.contains(extent))
        .collect()
}
