//! Compaction: the live records of a sealed log segment go to the log's end, so that the segment can
//! be released.
//!
//! A moved record is the same record once more: it says the same of the same key, so replaying both,
//! or either, ends in the same state. It is written under the key's lock and only when the index
//! still refers to the old place, so a newer write is never undone. A part of a completed object is
//! copied first (`PartCopy`, which by itself changes nothing), and then its manifest is written anew
//! with the new places; the copies' segments are pinned meanwhile.
//!
//! Invariants: the old place stays valid until the new one is durable and shown; the segment is
//! released by the rule for all segments, behind two checkpoints, so a crash at any point finds one
//! of the two. A damaged batch ends the compaction of its segment, and the segment stays.
//!
//! It never moves a body that lies in extents, and holds at most a step of records in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use futures_util::future::join_all;
use segment_log::Position;

use super::error::StoreError;
use super::index::{EntryBody, Owner, Slot, owner_of_object};
use super::partition::{Claim, Inner};
use super::record::{Change, Kind, ManifestPart, Place, Record};
use super::space::Pin;
use super::types::{BucketId, Version};

/// Parts of completed objects that are gathered before they are moved.
const PARTS_MAX: usize = 1024;
/// Parts that are copied at the same time.
const COPIES_MAX: usize = 16;

/// A live record on its way to a new place.
struct Live {
    kind: Kind,
    owner: Owner,
    place: Place,
    record: Record,
    payload: Box<[u8]>,
}

/// A record of the segment, live or dead.
struct Candidate {
    kind: Kind,
    place: Place,
    record: Record,
    payload: Box<[u8]>,
}

impl Candidate {
    fn of(read: &segment_log::Record<'_>) -> Option<Candidate> {
        // What does not decode was refused at the start, or is a bug of the writer: it stays.
        let kind = Kind::of(read.kind)?;
        let (record, _) = Record::decode(read.kind, read.payload).ok()?;
        Some(Candidate {
            kind,
            place: Place {
                segment: read.position.segment,
                offset: read.position.offset,
                len: read.len,
            },
            record,
            payload: read.payload.into(),
        })
    }
}

type Name = (BucketId, Box<str>, Version);

/// Places of parts that manifests name.
#[derive(Default)]
struct Parts {
    by_object: BTreeMap<Name, BTreeSet<Place>>,
    count: usize,
}

/// A part's record in its new place, which is not released before the manifest names it.
struct Copied {
    from: Place,
    to: Place,
    _pin: Pin,
}

impl Inner {
    /// Moves the live records out of a sealed segment, in steps that give way to others. When it
    /// returns early the rest is where it was.
    ///
    /// # Errors
    /// `Corrupt` when the segment is damaged; `Busy`, `Full`, `Gone`, `Poisoned`.
    pub(super) async fn compact(self: &Rc<Inner>, segment: u32) -> Result<(), StoreError> {
        let limits = &self.config.upkeep;
        let mut parts = Parts::default();
        let mut from = Some(0);
        while let Some(at) = from {
            if self.is_closing() {
                return Err(StoreError::Gone);
            }
            let step = self.begin_step();
            let mut found = Vec::new();
            let visit = |record: segment_log::Record<'_>| found.extend(Candidate::of(&record));
            from = self.log.walk(segment, at, limits.step_bytes, visit).await?;
            let mut found = self.choose(found, &mut parts).await?;
            while !found.is_empty() {
                let rest = found.split_off(found.len().min(limits.moves_max));
                self.move_all(found).await?;
                found = rest;
            }
            if parts.count >= PARTS_MAX {
                self.move_parts(std::mem::take(&mut parts)).await?;
            }
            self.end_step(step).await;
        }
        self.move_parts(parts).await?;
        let done = &self.counters.compacted_segments;
        done.set(done.get() + 1);
        Ok(())
    }

    /// What refers to a record now, and the object that its key has, if that was looked up.
    async fn owner(
        &self,
        place: Place,
        record: &Record,
    ) -> Result<Option<(Owner, Slot)>, StoreError> {
        if let Some(owner) = self.index.borrow().owner_of_upload(place, record) {
            return Ok(Some((owner, None)));
        }
        let is_objects = matches!(
            record.change,
            Change::Put { .. } | Change::UploadComplete { .. } | Change::PartPut { .. }
        );
        if !is_objects {
            return Ok(None);
        }
        let entry = self
            .lookup(record.bucket, &record.key, record.version)
            .await?;
        let owner = entry
            .as_ref()
            .and_then(|entry| owner_of_object(entry, place, record));
        Ok(owner.map(|owner| (owner, entry)))
    }

    /// Keeps of a step's records those that something refers to.
    async fn choose(
        &self,
        mut found: Vec<Candidate>,
        parts: &mut Parts,
    ) -> Result<Vec<Live>, StoreError> {
        // In the order of the index, so that neighbours are found in one block.
        found.sort_by(|one, next| {
            let buckets = one.record.bucket.cmp(&next.record.bucket);
            buckets.then_with(|| one.record.key.cmp(&next.record.key))
        });
        let mut live = Vec::new();
        for candidate in found {
            let Candidate {
                kind,
                place,
                record,
                payload,
            } = candidate;
            match self.owner(place, &record).await? {
                None => {}
                Some((Owner::ManifestPart(_), _)) => {
                    let name = (record.bucket, record.key, record.version);
                    let places = parts.by_object.entry(name).or_default();
                    parts.count += usize::from(places.insert(place));
                }
                Some((owner, _)) => live.push(Live {
                    kind: if kind == Kind::PartCopy {
                        Kind::PartPut
                    } else {
                        kind
                    },
                    owner,
                    place,
                    record,
                    payload,
                }),
            }
            engine::yield_if_needed().await;
        }
        Ok(live)
    }

    /// Moves records, those of different keys at the same time, so that they share batches.
    async fn move_all(self: &Rc<Inner>, found: Vec<Live>) -> Result<(), StoreError> {
        let mut by_key: BTreeMap<(BucketId, Box<str>), Vec<Live>> = BTreeMap::new();
        for live in found {
            let key = (live.record.bucket, live.record.key.clone());
            by_key.entry(key).or_default().push(live);
        }
        let moves = by_key
            .into_iter()
            .map(|((bucket, key), records)| self.move_key(bucket, key, records));
        join_all(moves).await.into_iter().collect()
    }

    async fn move_key(
        self: &Rc<Inner>,
        bucket: BucketId,
        key: Box<str>,
        records: Vec<Live>,
    ) -> Result<(), StoreError> {
        let _ticket = self.enter_any(bucket)?;
        let _key = self.keys.acquire(bucket, &key).await?;
        let mut moves = Vec::with_capacity(records.len());
        for live in records {
            // Under the key's lock: what is found stays so until it is moved.
            let Some((owner, old)) = self.owner(live.place, &live.record).await? else {
                continue;
            };
            if owner == live.owner {
                moves.push(async move {
                    let record = live.record;
                    let show = |inner: &Inner, place| inner.show(place, record, old.as_ref());
                    let moved = self.move_record(live.kind, &live.payload, show);
                    moved.await.map(drop)
                });
            }
        }
        join_all(moves).await.into_iter().collect()
    }

    async fn move_record(
        self: &Rc<Inner>,
        kind: Kind,
        payload: &[u8],
        show: impl FnOnce(&Inner, Place),
    ) -> Result<Place, StoreError> {
        let place = self
            .append_parts(kind, &[payload], Claim::Reserved, show)
            .await?;
        let moved = &self.counters.compacted_bytes;
        moved.set(moved.get() + u64::from(place.len));
        Ok(place)
    }

    async fn move_parts(self: &Rc<Inner>, parts: Parts) -> Result<(), StoreError> {
        for (name, places) in parts.by_object {
            self.move_manifest(name, places).await?;
        }
        Ok(())
    }

    /// Moves parts of a completed object, and its manifest.
    async fn move_manifest(
        self: &Rc<Inner>,
        (bucket, key, version): Name,
        mut places: BTreeSet<Place>,
    ) -> Result<(), StoreError> {
        let _ticket = self.enter_any(bucket)?;
        let _key = self.keys.acquire(bucket, &key).await?;
        let old = self.lookup(bucket, &key, version).await?;
        let manifest = match &old {
            Some(entry) => match &entry.body {
                EntryBody::Manifest(parts) => {
                    places.retain(|place| parts.iter().any(|part| part.place == *place));
                    entry.place
                }
                EntryBody::Inline | EntryBody::Extents(_) => return Ok(()),
            },
            None => return Ok(()),
        };
        if places.is_empty() {
            return Ok(());
        }
        let places: Vec<Place> = places.into_iter().collect();
        let mut copied = Vec::with_capacity(places.len());
        for group in places.chunks(COPIES_MAX) {
            for copy in join_all(group.iter().map(|from| self.copy_part(*from))).await {
                copied.push(copy?);
            }
        }
        let (_read, mut record, _) = self.read_record(manifest, 0).await?;
        let Change::UploadComplete { parts, .. } = &mut record.change else {
            let wrong = "a manifest's record is another".to_owned();
            return Err(StoreError::Internal(wrong));
        };
        rename(parts, &copied);
        let head = record.encode_head();
        let show = |inner: &Inner, place| inner.show(place, record, old.as_ref());
        self.move_record(Kind::UploadComplete, &head, show)
            .await
            .map(drop)
    }

    async fn copy_part(self: &Rc<Inner>, from: Place) -> Result<Copied, StoreError> {
        let position = Position {
            segment: from.segment,
            offset: from.offset,
        };
        let read = self.log.read(position, from.len, 0).await?;
        let payload = &read.buf[read.payload.clone()];
        let mut pin = None;
        let to = self
            .move_record(Kind::PartCopy, payload, |inner, place| {
                let segment = BTreeSet::from([place.segment]);
                pin = Some(Pin::new(inner.data.space(), None, segment));
            })
            .await?;
        let pin = pin.expect("a durable record was shown");
        Ok(Copied {
            from,
            to,
            _pin: pin,
        })
    }
}

/// Gives parts their new places.
fn rename(parts: &mut [ManifestPart], copied: &[Copied]) {
    let to: BTreeMap<Place, Place> = copied.iter().map(|copy| (copy.from, copy.to)).collect();
    for part in parts {
        if let Some(place) = to.get(&part.place) {
            part.place = *place;
        }
    }
}
