//! Which records of the log are live, and what refers to them: for whoever moves or verifies them.

use super::{EntryBody, Index, ObjectEntry};
use crate::store::record::{Change, ManifestPart, Place, Record};

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

impl Index {
    /// What the record at a place is to an upload in progress.
    pub(crate) fn owner_of_upload(&self, place: Place, record: &Record) -> Option<Owner> {
        let upload = |id| self.uploads.get(&(record.bucket, record.key.clone(), id));
        match &record.change {
            Change::UploadCreate { upload: id, .. } => upload(*id)
                .filter(|upload| upload.place == place)
                .map(|_| Owner::Upload),
            Change::PartPut {
                upload: id, number, ..
            } => upload(*id)?
                .parts
                .get(number)
                .filter(|part| part.place == place)
                .map(|_| Owner::Part),
            _ => None,
        }
    }
}

/// What the record at a place is to the object that its key has.
pub(crate) fn owner_of_object(entry: &ObjectEntry, place: Place, record: &Record) -> Option<Owner> {
    match &record.change {
        Change::Put { .. } | Change::UploadComplete { .. } => {
            (entry.place == place).then_some(Owner::Object)
        }
        Change::PartPut { .. } => {
            let EntryBody::Manifest(parts) = &entry.body else {
                return None;
            };
            let named = |part: &&ManifestPart| part.place == place;
            let found = parts.iter().find(named)?;
            Some(Owner::ManifestPart(found.number))
        }
        _ => None,
    }
}
