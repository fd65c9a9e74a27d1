//! Sums over everything that the index holds: live bytes of each log segment, objects, body bytes.

use std::collections::BTreeMap;

use super::entry::ObjectEntry;
use crate::store::record::Place;

/// The sums. While a log is replayed nothing is counted, since what a key had before is not known;
/// they are then counted from the whole, once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    live: BTreeMap<u32, u64>,
    objects: u64,
    body_bytes: u64,
}

impl Tally {
    pub(super) fn gain(&mut self, places: impl Iterator<Item = Place>) {
        for place in places {
            *self.live.entry(place.segment).or_default() += u64::from(place.len);
        }
    }

    pub(super) fn lose(&mut self, places: impl Iterator<Item = Place>) {
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

    /// Counts an object that is there.
    pub(crate) fn gain_object(&mut self, entry: &ObjectEntry) {
        self.gain(entry.places());
        self.objects += 1;
        self.body_bytes += entry.size;
    }

    pub(super) fn lose_object(&mut self, entry: &ObjectEntry) {
        self.lose(entry.places());
        self.objects -= 1;
        self.body_bytes -= entry.size;
    }

    /// Bytes of live records in a log segment.
    pub(super) fn live_bytes(&self, segment: u32) -> u64 {
        self.live.get(&segment).copied().unwrap_or(0)
    }

    /// Log segments with a live record.
    pub(super) fn live_segments(&self) -> impl Iterator<Item = u32> + '_ {
        self.live.keys().copied()
    }

    /// Number of objects, and the bytes of their bodies.
    pub(super) fn totals(&self) -> (u64, u64) {
        (self.objects, self.body_bytes)
    }
}
