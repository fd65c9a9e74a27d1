//! What a partition holds: objects in order of (bucket, key, newest version first), uploads in
//! progress, and on partition 0 the buckets. Sans-IO; derived from the log, never the truth itself.
//!
//! Objects that changed lately are here, in a memtable. All others lie in runs on the disk
//! (`store::runs`), which the memtable hides where both know a key. When a checkpoint is due the
//! memtable is frozen, written as a run, and only then let go.
//!
//! Invariants: applying a record twice, or a run of records over a state that already has some of
//! them, ends in the same state. The tally counts for each log segment the bytes of records that an
//! entry refers to, whether it is here or in a run. The extents of two entries are disjoint.
//!
//! It never reads or writes; whoever applies a record has made it durable, and knows what the key
//! had before.

mod entry;
mod live;
mod memtable;
mod name;
mod tally;
#[cfg(test)]
pub(super) mod tests;
mod walk;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::rc::Rc;

use s3_wire::Etag;
use s3_wire::checksum::Checksum;

pub(super) use self::entry::{EntryBody, ObjectEntry, Shown};
pub(super) use self::live::{Owner, owner_of_object};
pub(super) use self::memtable::{Memtable, Slot};
use self::name::ObjectName;
pub(super) use self::name::{NamePosition, Rank};
pub(super) use self::tally::Tally;
pub(super) use self::walk::{Item, WalkCursor, put_run};
use super::extent::Extent;
use super::record::{Change, Place, Record};
use super::types::{BucketId, UploadChecksum, UploadId, Version};

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

/// The index of one partition, without its runs.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Index {
    objects: Memtable,
    /// What is being written as a run.
    frozen: Option<Rc<Memtable>>,
    uploads: BTreeMap<UploadKey, Upload>,
    buckets: BTreeMap<Box<str>, BucketRow>,
    /// The first number that no bucket has ever had.
    next_bucket: u64,
    /// `None` while a log is replayed.
    tally: Option<Tally>,
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
    /// Applies a durable record over what its key had, if it is an object's; returns the extents that
    /// nothing refers to any more.
    pub(crate) fn apply(
        &mut self,
        place: Place,
        record: Record,
        old: Option<&ObjectEntry>,
    ) -> Vec<Extent> {
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
                self.replace_object((bucket, key), version, entry, old, Vec::new())
            }
            Change::Delete => {
                let freed = extents_of(old);
                self.set_slot(bucket, ObjectName { key, version }, None, old);
                freed
            }
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
            change => self.apply_to_upload(place, (bucket, key), version, change, old),
        }
    }

    /// The part of [`Index::apply`] that is about multipart uploads.
    fn apply_to_upload(
        &mut self,
        place: Place,
        name: (BucketId, Box<str>),
        version: Version,
        change: Change,
        old: Option<&ObjectEntry>,
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
                let freed = self.remove_upload(&(name.0, name.1.clone(), upload));
                self.replace_object(name, version, entry, old, freed)
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
        (bucket, key): (BucketId, Box<str>),
        version: Version,
        entry: ObjectEntry,
        old: Option<&ObjectEntry>,
        mut freed: Vec<Extent>,
    ) -> Vec<Extent> {
        freed.extend(extents_of(old));
        let freed = without(freed, entry.extents());
        self.set_slot(bucket, ObjectName { key, version }, Some(entry), old);
        freed
    }

    fn set_slot(
        &mut self,
        bucket: BucketId,
        name: ObjectName,
        slot: Slot,
        old: Option<&ObjectEntry>,
    ) {
        if let Some(tally) = &mut self.tally {
            if let Some(new) = &slot {
                tally.gain_object(new);
            }
            if let Some(old) = old {
                tally.lose_object(old);
            }
        }
        self.objects.set(bucket, name, slot);
    }

    fn gain(&mut self, place: Place) {
        if let Some(tally) = &mut self.tally {
            tally.gain(std::iter::once(place));
        }
    }

    fn lose(&mut self, places: impl Iterator<Item = Place>) {
        if let Some(tally) = &mut self.tally {
            tally.lose(places);
        }
    }

    /// Sums over the uploads; the objects are for the caller to add.
    pub(crate) fn tally_uploads(&self) -> Tally {
        let mut tally = Tally::default();
        tally.gain(self.uploads.values().flat_map(Upload::places));
        tally
    }

    /// The log is replayed: from now on the sums, which are right at this moment, are kept.
    pub(crate) fn begin_tally(&mut self, tally: Tally) {
        self.tally = Some(tally);
    }

    /// Begins an upload. One that is known has the record again, moved or replayed: its parts stay.
    fn set_upload(&mut self, key: UploadKey, mut upload: Upload) {
        self.gain(upload.place);
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
        self.gain(gained);
        match old {
            Some(old) => {
                self.lose(std::iter::once(old.place));
                without(old.extents.into_vec(), kept.iter().copied())
            }
            None => Vec::new(),
        }
    }

    fn set_bucket(&mut self, name: Box<str>, row: BucketRow) {
        self.next_bucket = self.next_bucket.max(row.id.0.saturating_add(1));
        self.buckets.insert(name, row);
    }

    /// What is known here of a version of a key; `None` when only the runs can tell.
    pub(crate) fn known(&self, bucket: BucketId, key: &str, version: Version) -> Option<&Slot> {
        let newest = self.objects.get(bucket, key, version);
        newest.or_else(|| self.frozen.as_ref()?.get(bucket, key, version))
    }

    /// What changed lately, the newer before the older.
    pub(crate) fn memtables(&self) -> (&Memtable, Option<&Memtable>) {
        (&self.objects, self.frozen.as_deref())
    }

    /// Memory of what changed since the newest run, about.
    pub(crate) fn memtable_bytes(&self) -> usize {
        self.objects.bytes()
    }

    /// Sets aside what changed since the newest run, to be written as the next one. `None` when
    /// nothing did.
    pub(crate) fn freeze(&mut self) -> Option<Rc<Memtable>> {
        assert!(self.frozen.is_none(), "one memtable is written at a time");
        if self.objects.is_empty() {
            return None;
        }
        let frozen = Rc::new(std::mem::take(&mut self.objects));
        self.frozen = Some(Rc::clone(&frozen));
        Some(frozen)
    }

    /// The run is not to be: what was set aside is current again.
    pub(crate) fn thaw(&mut self) {
        if let Some(frozen) = self.frozen.take() {
            self.objects.fill(&frozen);
        }
    }

    /// A run now says what was set aside.
    pub(crate) fn drop_frozen(&mut self) {
        self.frozen = None;
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

    /// Everything but objects and sums.
    #[cfg(test)]
    pub(crate) fn beside_objects(&self) -> impl PartialEq + std::fmt::Debug + '_ {
        (&self.uploads, &self.buckets, self.next_bucket)
    }

    /// The sums; `None` while a log is replayed.
    #[cfg(test)]
    pub(crate) fn tally(&self) -> Option<&Tally> {
        self.tally.as_ref()
    }

    /// Bytes of live records in a log segment.
    pub(crate) fn live_bytes(&self, segment: u32) -> u64 {
        let tally = self.tally.as_ref();
        tally.map_or(0, |tally| tally.live_bytes(segment))
    }

    /// Log segments with a live record.
    pub(crate) fn live_segments(&self) -> impl Iterator<Item = u32> + '_ {
        self.tally.iter().flat_map(Tally::live_segments)
    }

    /// Every extent that an upload in progress refers to.
    pub(crate) fn upload_extents(&self) -> impl Iterator<Item = Extent> + '_ {
        self.uploads.values().flat_map(Upload::extents)
    }

    /// Number of objects, and the bytes of their bodies.
    pub(crate) fn totals(&self) -> (u64, u64) {
        self.tally.as_ref().map_or((0, 0), Tally::totals)
    }

    /// Number of uploads in progress.
    pub(crate) fn upload_count(&self) -> usize {
        self.uploads.len()
    }
}

fn extents_of(entry: Option<&ObjectEntry>) -> Vec<Extent> {
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
