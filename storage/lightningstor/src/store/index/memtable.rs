//! The objects that changed since the newest run, in memory and in order.
//!
//! A slot says what a key has now: an object, or nothing, which hides what older runs say.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::ops::Bound;

use super::entry::ObjectEntry;
use super::name::{NamePosition, NameRef, ObjectName, Probe, Rank};
use crate::store::types::{BucketId, Version};

/// What a key has: an object, or nothing.
pub(crate) type Slot = Option<ObjectEntry>;

/// Memory of a slot beside its key and what its entry holds, about.
const SLOT_BYTES: usize = 200;
/// The same on the disk, with its share of a filter and of a table.
const SLOT_DISK_BYTES: usize = 80;

/// Slots in order of (bucket, key, newest version first).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Memtable {
    buckets: BTreeMap<BucketId, BTreeMap<ObjectName, Slot>>,
    len: usize,
    bytes: usize,
}

fn bytes_of(key: &str, slot: &Slot) -> usize {
    SLOT_BYTES + key.len() + slot.as_ref().map_or(0, ObjectEntry::heap_bytes)
}

impl Memtable {
    pub(crate) fn set(&mut self, bucket: BucketId, name: ObjectName, slot: Slot) {
        self.bytes += bytes_of(&name.key, &slot);
        let key_bytes = name.key.len();
        let old = self.buckets.entry(bucket).or_default().insert(name, slot);
        match old {
            Some(old) => {
                let heap = old.as_ref().map_or(0, ObjectEntry::heap_bytes);
                self.bytes -= SLOT_BYTES + key_bytes + heap;
            }
            None => self.len += 1,
        }
    }

    /// Takes what another has, where there is nothing here.
    pub(crate) fn fill(&mut self, older: &Memtable) {
        for (bucket, objects) in &older.buckets {
            for (name, slot) in objects {
                if self.get(*bucket, &name.key, name.version).is_none() {
                    self.set(*bucket, name.clone(), slot.clone());
                }
            }
        }
    }

    pub(crate) fn get(&self, bucket: BucketId, key: &str, version: Version) -> Option<&Slot> {
        let objects = self.buckets.get(&bucket)?;
        objects.get(&Probe(key.as_bytes(), version.0) as &dyn NameRef)
    }

    /// The slots from a position on, in order.
    pub(crate) fn from<'a>(
        &'a self,
        at: &'a NamePosition,
    ) -> impl Iterator<Item = (Rank<'a>, &'a Slot)> + 'a {
        let here = at.bucket;
        self.buckets.range(here..).flat_map(move |(id, objects)| {
            let low: Bound<&dyn NameRef> = match (*id == here, at.behind) {
                (false, _) => Bound::Unbounded,
                (true, true) => Bound::Excluded(at),
                (true, false) => Bound::Included(at),
            };
            let slots = objects.range::<dyn NameRef, _>((low, Bound::Unbounded));
            slots.map(move |(name, slot)| {
                let rank = (*id, name.key.as_bytes(), Reverse(name.version.0));
                (rank, slot)
            })
        })
    }

    /// Lets some slots go; false when none are left. A large table is let go in steps.
    pub(crate) fn drop_some(&mut self, slots: usize) -> bool {
        for _ in 0..slots {
            let Some(mut first) = self.buckets.first_entry() else {
                return false;
            };
            if first.get_mut().pop_first().is_none() {
                first.remove();
            }
        }
        true
    }

    /// Number of slots.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of disk that a run of it takes, with its copy, at most about.
    pub(crate) fn run_bytes(&self) -> usize {
        2 * (self.bytes - self.len * (SLOT_BYTES - SLOT_DISK_BYTES))
    }

    /// Memory that it takes, about.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}
