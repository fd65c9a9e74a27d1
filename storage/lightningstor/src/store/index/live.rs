//! Which records of the log are live, and what refers to them: for whoever moves or verifies them.

use std::ops::Bound;

use super::name::{NameRef, ObjectName, Probe};
use super::{EntryBody, Index, ObjectEntry};
use crate::store::record::{Change, Place, Record};
use crate::store::types::{BucketId, Version};

/// What a live record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    /// An object's, or its manifest.
    Object,
    /// The beginning of an upload in progress.
    Upload,
    /// A part of an upload in progress.
    Part,
    /// A part of an object, named by its manifest.
    ManifestPart(u16),
}

/// An object's place in the order of all of a partition's.
pub(crate) type ObjectCursor = (BucketId, ObjectName);

impl Index {
    /// The object of a version of a key.
    pub(crate) fn object_at(
        &self,
        bucket: BucketId,
        key: &str,
        version: Version,
    ) -> Option<&ObjectEntry> {
        let objects = self.objects.get(&bucket)?;
        objects.get(&Probe(key.as_bytes(), version.0) as &dyn NameRef)
    }

    /// What the record at a place is; `None` when nothing refers to it.
    pub(crate) fn owner(&self, place: Place, record: &Record) -> Option<Owner> {
        let object = || self.object_at(record.bucket, &record.key, record.version);
        let upload = |id| self.uploads.get(&(record.bucket, record.key.clone(), id));
        match &record.change {
            Change::Put { .. } | Change::UploadComplete { .. } => object()
                .filter(|entry| entry.place == place)
                .map(|_| Owner::Object),
            Change::UploadCreate { upload: id, .. } => upload(*id)
                .filter(|upload| upload.place == place)
                .map(|_| Owner::Upload),
            Change::PartPut {
                upload: id, number, ..
            } => {
                let part = upload(*id).and_then(|upload| upload.parts.get(number));
                if part.is_some_and(|part| part.place == place) {
                    return Some(Owner::Part);
                }
                let EntryBody::Manifest(parts) = &object()?.body else {
                    return None;
                };
                let named = |part: &&super::ManifestPart| part.place == place;
                let found = parts.iter().find(named)?;
                Some(Owner::ManifestPart(found.number))
            }
            Change::Delete
            | Change::BucketCreate { .. }
            | Change::BucketDelete
            | Change::UploadAbort { .. } => None,
        }
    }

    /// The first object behind a cursor, in order of bucket and key.
    pub(crate) fn object_after(
        &self,
        cursor: Option<&ObjectCursor>,
    ) -> Option<(ObjectCursor, &ObjectEntry)> {
        let here = cursor.and_then(|(bucket, name)| {
            let behind = (Bound::Excluded(name), Bound::Unbounded);
            let mut rest = self.objects.get(bucket)?.range::<ObjectName, _>(behind);
            rest.next().map(|found| (*bucket, found))
        });
        let low = cursor.map_or(Bound::Unbounded, |(bucket, _)| Bound::Excluded(*bucket));
        let next = || {
            let (bucket, objects) = self.objects.range((low, Bound::Unbounded)).next()?;
            objects.first_key_value().map(|found| (*bucket, found))
        };
        let (bucket, (name, entry)) = here.or_else(next)?;
        Some(((bucket, name.clone()), entry))
    }
}
