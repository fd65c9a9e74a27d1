//! Laws of the index over random histories, shared with the checkpoint's tests.

use proptest::prelude::*;

use super::*;
use crate::store::record::{Crcs, ManifestPart, Stored};
use crate::store::types::{CRC_BLOCK, ObjectMeta};

/// One step of a history, before places and extents are given to it.
#[derive(Clone, Debug)]
pub(in crate::store) enum Step {
    Put {
        key: u8,
        blocks: u32,
    },
    Delete {
        key: u8,
    },
    Create {
        key: u8,
        upload: u8,
    },
    Part {
        key: u8,
        upload: u8,
        number: u16,
        blocks: u32,
    },
    Complete {
        key: u8,
        upload: u8,
    },
    Abort {
        key: u8,
        upload: u8,
    },
    /// The record of the object, the upload or its first part once more, as compaction moves it.
    Again {
        key: u8,
        upload: u8,
        which: u8,
    },
    Bucket {
        name: u8,
        exists: bool,
    },
}

pub(in crate::store) fn steps() -> impl Strategy<Value = Vec<Step>> {
    let (key, upload) = (0..5_u8, 0..3_u8);
    let step = prop_oneof![
        4 => (key.clone(), 0..40_u32).prop_map(|(key, blocks)| Step::Put { key, blocks }),
        2 => key.clone().prop_map(|key| Step::Delete { key }),
        2 => (key.clone(), upload.clone()).prop_map(|(key, upload)| Step::Create { key, upload }),
        4 => (key.clone(), upload.clone(), 1..4_u16, 0..40_u32)
            .prop_map(|(key, upload, number, blocks)| Step::Part { key, upload, number, blocks }),
        2 => (key.clone(), upload.clone()).prop_map(|(key, upload)| Step::Complete { key, upload }),
        1 => (key.clone(), upload.clone()).prop_map(|(key, upload)| Step::Abort { key, upload }),
        3 => (key, upload, 0..3_u8)
            .prop_map(|(key, upload, which)| Step::Again { key, upload, which }),
        1 => (0..3_u8, any::<bool>()).prop_map(|(name, exists)| Step::Bucket { name, exists }),
    ];
    prop::collection::vec(step, 0..120)
}

fn etag(number: u64) -> Etag {
    Etag::single(u128::from(number).to_le_bytes())
}

/// Where histories happen.
const BUCKET: BucketId = BucketId(3);

/// An index that keeps count, and has everything in its memtable.
pub(in crate::store) fn empty() -> Index {
    let mut index = Index::default();
    index.begin_tally(Tally::default());
    index
}

/// The objects that an index knows without runs.
pub(in crate::store) fn objects(index: &Index) -> Vec<ObjectEntry> {
    let start = NamePosition::start();
    let (newer, older) = index.memtables();
    let mut all: BTreeMap<Vec<u8>, Slot> = BTreeMap::new();
    for table in older.into_iter().chain([newer]) {
        for ((_, key, _), slot) in table.from(&start) {
            all.insert(key.to_vec(), slot.clone());
        }
    }
    all.into_values().flatten().collect()
}

/// Turns steps into records that a partition could have written, in order.
pub(in crate::store) struct History {
    pub(in crate::store) index: Index,
    pub(in crate::store) log: Vec<(Place, Record)>,
    next_block: u32,
    owned: BTreeSet<Extent>,
}

impl History {
    pub(in crate::store) fn new() -> History {
        History {
            index: empty(),
            log: Vec::new(),
            next_block: 0,
            owned: BTreeSet::new(),
        }
    }

    /// What a key has.
    fn object(&self, key: &str) -> Slot {
        let known = self.index.known(BUCKET, key, Version::NULL);
        known.cloned().flatten()
    }

    fn stored(&mut self, blocks: u32) -> (u64, Stored) {
        if blocks == 0 {
            return (10, Stored::Inline);
        }
        let extent = Extent {
            start: self.next_block,
            blocks,
        };
        self.next_block += blocks;
        self.owned.insert(extent);
        let size = extent.bytes() - 1;
        let crcs = vec![9; size.div_ceil(CRC_BLOCK as u64) as usize];
        (
            size,
            Stored::Extents {
                extents: vec![extent],
                crcs: Crcs::Inline(crcs),
            },
        )
    }

    /// Applies a step; what it frees was owned, and nobody else's.
    pub(in crate::store) fn take(&mut self, step: &Step) {
        let number = self.log.len() as u64;
        let place = Place {
            segment: number as u32 / 7 + 1,
            offset: number as u32 * 64,
            len: 64,
        };
        let Some((bucket, key, change)) = self.change(step, number) else {
            return;
        };
        let record = Record {
            bucket,
            key,
            version: Version::NULL,
            change,
        };
        self.log.push((place, record.clone()));
        let old = self.object(&record.key);
        for extent in self.index.apply(place, record, old.as_ref()) {
            assert!(
                self.owned.remove(&extent),
                "{extent:?} is freed once, by its owner"
            );
        }
    }

    fn change(&mut self, step: &Step, number: u64) -> Option<(BucketId, Box<str>, Change)> {
        let bucket = BUCKET;
        let name = |key: &u8| -> Box<str> { format!("k{key}").into() };
        let id = |upload: &u8| UploadId(u128::from(*upload));
        let found = |index: &Index, key: &u8, upload: &u8| {
            index.upload(&(bucket, name(key), id(upload))).cloned()
        };
        Some(match step {
            Step::Put { key, blocks } => {
                let (size, stored) = self.stored(*blocks);
                let meta = ObjectMeta::new(size, etag(number), number);
                (bucket, name(key), Change::Put { meta, stored })
            }
            Step::Delete { key } => (bucket, name(key), Change::Delete),
            Step::Create { key, upload } => {
                let meta = ObjectMeta::new(0, etag(0), number);
                let change = Change::UploadCreate {
                    upload: id(upload),
                    meta,
                    checksum: None,
                };
                (bucket, name(key), change)
            }
            Step::Part {
                key,
                upload,
                number: part,
                blocks,
            } => {
                found(&self.index, key, upload)?;
                let (size, stored) = self.stored(*blocks);
                let change = Change::PartPut {
                    upload: id(upload),
                    number: *part,
                    etag: etag(number),
                    size,
                    modified_ms: number,
                    checksum: None,
                    stored,
                };
                (bucket, name(key), change)
            }
            Step::Complete { key, upload } => {
                let parts = found(&self.index, key, upload)?.parts;
                // Every second completion leaves out its first part.
                let skip = usize::from(number.is_multiple_of(2) && parts.len() > 1);
                let listed = parts.iter().skip(skip).map(|(number, part)| ManifestPart {
                    number: *number,
                    place: part.place,
                    size: part.size,
                    extents: part.extents.to_vec(),
                });
                let parts: Vec<_> = listed.collect();
                let size = parts.iter().map(|part| part.size).sum();
                let meta = ObjectMeta::new(size, etag(number), number);
                (
                    bucket,
                    name(key),
                    Change::UploadComplete {
                        upload: id(upload),
                        meta,
                        parts,
                    },
                )
            }
            Step::Again { key, upload, which } => {
                let place = match which {
                    0 => self.object(&name(key))?.place,
                    1 => found(&self.index, key, upload)?.place,
                    _ => {
                        found(&self.index, key, upload)?
                            .parts
                            .first_key_value()?
                            .1
                            .place
                    }
                };
                let (_, record) = self.log.iter().find(|(at, _)| *at == place)?;
                (bucket, name(key), record.change.clone())
            }
            Step::Abort { key, upload } => (
                bucket,
                name(key),
                Change::UploadAbort { upload: id(upload) },
            ),
            Step::Bucket { name, exists: true } => {
                let change = Change::BucketCreate {
                    owner: "o".into(),
                    created_ms: number,
                };
                (
                    self.index.next_bucket(),
                    format!("bucket{name}").into(),
                    change,
                )
            }
            Step::Bucket {
                name,
                exists: false,
            } => (
                BucketId(1),
                format!("bucket{name}").into(),
                Change::BucketDelete,
            ),
        })
    }
}

proptest! {
    #[test]
    fn every_extent_has_one_owner_and_live_bytes_are_those_of_the_entries(steps in steps()) {
        let mut history = History::new();
        for step in &steps {
            history.take(step);
            let objects = objects(&history.index);
            let held = objects.iter().flat_map(ObjectEntry::extents);
            let held: BTreeSet<Extent> = held.chain(history.index.upload_extents()).collect();
            prop_assert_eq!(&held, &history.owned);
        }
        let mut tally = history.index.tally_uploads();
        for entry in objects(&history.index) {
            tally.gain_object(&entry);
        }
        prop_assert_eq!(Some(&tally), history.index.tally());
    }

    #[test]
    fn replaying_any_tail_again_changes_nothing(steps in steps(), from in any::<prop::sample::Index>()) {
        let mut history = History::new();
        for step in &steps {
            history.take(step);
        }
        if !history.log.is_empty() {
            // The tail must begin where an upload's parts are replayed with it or not at all: any
            // prefix was applied before, as after a fuzzy checkpoint.
            let from = from.index(history.log.len());
            let mut again = Index::default();
            for (place, record) in history.log.iter().chain(&history.log[from..]) {
                again.apply(*place, record.clone(), None);
            }
            history.index.tally = None;
            prop_assert_eq!(&again, &history.index);
        }
    }
}
