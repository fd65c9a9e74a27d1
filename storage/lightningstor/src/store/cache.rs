//! Records that were read lately, in memory: a small object that is read often costs no disk read.
//!
//! Invariants: an entry is a whole record that the log has read and verified, under the place that
//! it has in the log. Places are never used twice, so an entry can be useless but never stale. What
//! is given out is verified anew, in the buffer in which it leaves. The bytes held never pass the
//! capacity. An entry that was asked for since it came to the front gets a second chance.
//!
//! It never reads a disk, and whoever looks for damage there (scrub, recovery) does not ask it.

use std::cell::{Cell, RefCell};

use segment_log::{Lsn, RecordBuf};

use super::record::Place;
use super::second_chance::{Cached, SecondChance};

/// Longest payload that is kept: the disk read of a longer one costs little beside its transfer.
const PAYLOAD_MAX: usize = 16 << 10;
/// Memory of an entry beside its payload, about.
const ENTRY_BYTES: usize = 128;

struct Entry {
    payload: Box<[u8]>,
    crc: u64,
    kind: u8,
    lsn: Lsn,
}

impl Cached for Entry {
    fn cost(&self) -> u64 {
        (self.payload.len() + ENTRY_BYTES) as u64
    }
}

/// Records of one partition that were read lately.
#[derive(Default)]
pub(super) struct RecordCache {
    held: RefCell<SecondChance<Place, Entry>>,
    capacity: Cell<usize>,
    hits: Cell<u64>,
}

impl RecordCache {
    /// Sets the most bytes that are held; 0, as at the start, keeps nothing.
    pub(super) fn set_capacity(&self, bytes: usize) {
        self.capacity.set(bytes);
        self.held.borrow_mut().shrink(bytes as u64);
    }

    /// How often a record was found.
    pub(super) fn hits(&self) -> u64 {
        self.hits.get()
    }

    /// The record at a place, with `headroom` bytes before its payload. `None` also when no buffer
    /// is left or the copy is damaged: the log is asked then.
    pub(super) fn get(&self, place: Place, headroom: usize) -> Option<RecordBuf> {
        let mut held = self.held.borrow_mut();
        let entry = held.get(&place)?;
        let payload = headroom..headroom + entry.payload.len();
        let mut buf = engine::take_buf(payload.end).ok()?;
        buf[payload.clone()].copy_from_slice(&entry.payload);
        if crc_fast::crc64_nvme(&buf[payload.clone()]) != entry.crc {
            held.remove(&place);
            return None;
        }
        self.hits.set(self.hits.get() + 1);
        Some(RecordBuf {
            buf,
            kind: entry.kind,
            lsn: entry.lsn,
            payload,
        })
    }

    /// Keeps a copy of a record that the log has just verified.
    pub(super) fn keep(&self, place: Place, read: &RecordBuf) {
        let payload = &read.buf[read.payload.clone()];
        let capacity = self.capacity.get();
        if payload.len() > PAYLOAD_MAX || payload.len() + ENTRY_BYTES > capacity {
            return;
        }
        let entry = Entry {
            payload: payload.into(),
            crc: crc_fast::crc64_nvme(payload),
            kind: read.kind,
            lsn: read.lsn,
        };
        (self.held.borrow_mut()).insert(place, entry, capacity as u64);
    }
}

#[cfg(test)]
mod tests {
    use engine::EngineConfig;
    use engine::sim::Sim;

    use super::*;

    fn place(number: u32) -> Place {
        Place {
            segment: 1,
            offset: number * 8192,
            len: 1000,
        }
    }

    fn record(fill: u8, len: usize) -> RecordBuf {
        let mut buf = engine::take_buf(len + 64).unwrap();
        buf[64..].fill(fill);
        RecordBuf {
            buf,
            kind: 3,
            lsn: Lsn(u64::from(fill)),
            payload: 64..64 + len,
        }
    }

    fn on_a_shard(test: impl FnOnce(RecordCache) + 'static) {
        let sim = Sim::new(1);
        let node = sim.node("cache");
        sim.start(node, EngineConfig::unpinned(1)).unwrap();
        sim.run(node, 0, async move { test(RecordCache::default()) });
    }

    #[test]
    fn a_record_comes_back_whole_with_its_headroom() {
        on_a_shard(|cache| {
            cache.keep(place(1), &record(7, 900));
            assert!(cache.get(place(1), 0).is_none(), "nothing is kept at first");
            cache.set_capacity(1 << 20);
            cache.keep(place(1), &record(7, 900));
            let found = cache.get(place(1), 2048).unwrap();
            assert_eq!((found.kind, found.lsn), (3, Lsn(7)));
            assert_eq!(found.payload, 2048..2948);
            assert_eq!(found.buf[found.payload.clone()], [7; 900]);
            assert!(cache.get(place(2), 0).is_none());
            assert_eq!(cache.hits(), 1);
        });
    }

    #[test]
    fn the_capacity_holds_and_what_was_asked_for_stays_longer() {
        on_a_shard(|cache| {
            let cost = 872 + ENTRY_BYTES;
            cache.set_capacity(3 * cost);
            for number in 1..=3 {
                cache.keep(place(number), &record(number as u8, 872));
            }
            assert!(cache.get(place(1), 0).is_some());
            cache.keep(place(4), &record(4, 872));
            assert!(cache.get(place(1), 0).is_some(), "it was asked for");
            assert!(cache.get(place(2), 0).is_none(), "it was not");
            for number in 5..500 {
                cache.keep(place(number), &record(1, 872));
                assert!(cache.held.borrow().cost() <= 3 * cost as u64);
            }
            assert!(cache.get(place(1), 0).is_none());
            cache.keep(place(900), &record(1, PAYLOAD_MAX + 1));
            assert!(cache.get(place(900), 0).is_none(), "too long");
            cache.set_capacity(0);
            let held = cache.held.borrow();
            assert_eq!((held.len(), held.cost()), (0, 0));
        });
    }

    #[test]
    fn a_copy_that_rotted_is_not_given_out() {
        on_a_shard(|cache| {
            cache.set_capacity(1 << 20);
            cache.keep(place(1), &record(1, 500));
            let mut held = cache.held.borrow_mut();
            held.value_mut(&place(1)).unwrap().payload[99] ^= 4;
            drop(held);
            assert!(cache.get(place(1), 0).is_none());
            assert_eq!(cache.held.borrow().cost(), 0);
        });
    }
}
