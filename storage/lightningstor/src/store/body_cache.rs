//! Bodies in extents that were read lately, verified and in sealed pages: a large object that is read
//! often costs neither a disk read nor a checksum nor a copy.
//!
//! Invariants: what is held was verified after it came from the disk, and nothing can change it since:
//! [`Pages`] are sealed. A chunk is named by the place of the record that describes its body; places
//! are never used twice, so what is held can be useless but never stale. The bytes held never pass the
//! capacity, and what somebody still sends counts as held. A chunk comes in only when it is read for
//! the second time within about one capacity of reads, so that a long object read once changes nothing.
//!
//! It never reads a disk, and whoever looks for damage there (scrub) does not ask it. One a shard, as a
//! partition alone would have too little of it.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use engine::{PAGES_MAX, Pages};
use shards::placement::PartitionId;

use super::metrics::StoreMetrics;
use super::record::Place;
use super::second_chance::{Cached, SecondChance};
use super::types::CHUNK;

/// What a chunk costs at least, whatever its length: it holds a file descriptor.
pub const BODY_COST_MIN: u64 = 128 << 10;

const _: () = assert!(CHUNK <= PAGES_MAX, "a chunk fits its pages");

/// A chunk of a body in extents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ChunkName {
    pub(super) partition: PartitionId,
    /// The record that describes the body.
    pub(super) place: Place,
    /// Counted in [`CHUNK`]s from the body's start.
    pub(super) number: u64,
}

fn cost(len: usize) -> u64 {
    (len as u64).max(BODY_COST_MIN)
}

impl Cached for Arc<Pages> {
    fn cost(&self) -> u64 {
        cost(self.len())
    }

    /// Nobody else can come by a reference while there is only ours.
    fn in_use(&self) -> bool {
        Arc::strong_count(self) > 1
    }
}

/// Chunks that were read once and are not held.
#[derive(Default)]
struct ReadOnce {
    names: BTreeSet<ChunkName>,
    /// The oldest in front. A name that has come in since stays here until its turn; should it have
    /// returned to `names` meanwhile, it is forgotten a little early.
    order: VecDeque<ChunkName>,
}

/// Bodies of one shard that were read lately.
pub(super) struct BodyCache {
    held: RefCell<SecondChance<ChunkName, Arc<Pages>>>,
    read_once: RefCell<ReadOnce>,
    capacity: u64,
    counters: Counters,
}

#[derive(Default)]
struct Counters {
    hits: Cell<u64>,
    hit_bytes: Cell<u64>,
    kept: Cell<u64>,
    evicted: Cell<u64>,
    refused: Cell<u64>,
}

fn count(counter: &Cell<u64>, by: u64) {
    counter.set(counter.get() + by);
}

impl BodyCache {
    /// Holds at most `capacity` bytes; 0 holds nothing.
    pub(super) fn new(capacity: u64) -> BodyCache {
        BodyCache {
            held: RefCell::default(),
            read_once: RefCell::default(),
            capacity,
            counters: Counters::default(),
        }
    }

    /// A chunk, if it is held.
    pub(super) fn get(&self, name: &ChunkName) -> Option<Arc<Pages>> {
        let mut held = self.held.borrow_mut();
        let pages = held.get(name)?;
        count(&self.counters.hits, 1);
        count(&self.counters.hit_bytes, pages.len() as u64);
        Some(Arc::clone(pages))
    }

    /// A chunk that is not held was read, all of it: whether it is worth keeping.
    pub(super) fn wants(&self, name: ChunkName) -> bool {
        let names_max = self.capacity / CHUNK as u64;
        (self.read_once.borrow_mut()).note(name, names_max as usize)
    }

    /// Keeps a copy of a chunk that was just verified. `None` when everything held is in use, or
    /// pages cannot be had.
    pub(super) fn keep(&self, name: ChunkName, bytes: &[u8]) -> Option<Arc<Pages>> {
        let mut held = self.held.borrow_mut();
        // Two readers of one chunk both missed it.
        if let Some(pages) = held.get(&name) {
            return Some(Arc::clone(pages));
        }
        // Room first: the copy must not stand beside what goes for it.
        let before = held.len();
        let left = self.capacity.checked_sub(cost(bytes.len()));
        let room = left.is_some_and(|left| held.shrink(left));
        count(&self.counters.evicted, (before - held.len()) as u64);
        let pages = if room { Pages::seal(bytes).ok() } else { None };
        let Some(pages) = pages.map(Arc::new) else {
            count(&self.counters.refused, 1);
            return None;
        };
        held.insert(name, Arc::clone(&pages), self.capacity);
        count(&self.counters.kept, 1);
        Some(pages)
    }

    /// Adds what it counts.
    pub(super) fn count_into(&self, sum: &mut StoreMetrics) {
        sum.body_cache_bytes += self.held.borrow().cost();
        sum.body_cache_hits += self.counters.hits.get();
        sum.body_cache_hit_bytes += self.counters.hit_bytes.get();
        sum.body_cache_kept += self.counters.kept.get();
        sum.body_cache_evicted += self.counters.evicted.get();
        sum.body_cache_refused += self.counters.refused.get();
    }
}

impl ReadOnce {
    /// Notes that a chunk was read; true when it had been before, and its name leaves.
    fn note(&mut self, name: ChunkName, names_max: usize) -> bool {
        if self.names.remove(&name) {
            return true;
        }
        if names_max == 0 {
            return false;
        }
        while self.order.len() >= names_max {
            if let Some(oldest) = self.order.pop_front() {
                self.names.remove(&oldest);
            }
        }
        self.order.push_back(name);
        self.names.insert(name);
        false
    }
}

#[cfg(test)]
mod tests {
    use engine::EngineConfig;
    use engine::sim::Sim;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn name(number: u64) -> ChunkName {
        ChunkName {
            partition: PartitionId(1),
            place: Place {
                segment: 1,
                offset: 4096,
                len: 1000,
            },
            number,
        }
    }

    fn chunk(number: u64) -> Vec<u8> {
        vec![number as u8; CHUNK]
    }

    fn on_a_shard(capacity: u64, test: impl FnOnce(Sim, BodyCache) + 'static) {
        let sim = Sim::new(1);
        let node = sim.node("cache");
        sim.start(node, EngineConfig::unpinned(1)).unwrap();
        let world = sim.clone();
        sim.run(
            node,
            0,
            async move { test(world, BodyCache::new(capacity)) },
        );
    }

    fn metrics(cache: &BodyCache) -> StoreMetrics {
        let mut sum = StoreMetrics::default();
        cache.count_into(&mut sum);
        sum
    }

    #[test]
    fn a_chunk_is_wanted_when_it_is_read_again_soon() {
        on_a_shard(MIB, |_, cache| {
            assert!(!cache.wants(name(1)));
            assert!(cache.wants(name(1)));
            assert!(!cache.wants(name(1)), "its first reading is used up");
            for number in 10..14 {
                assert!(!cache.wants(name(number)));
            }
            assert!(!cache.wants(name(1)), "four others came between");
            assert!(cache.read_once.borrow().order.len() <= 4);
        });
    }

    #[test]
    fn the_capacity_holds_and_what_was_asked_for_stays_longer() {
        on_a_shard(MIB, |_, cache| {
            for number in 1..=4 {
                drop(cache.keep(name(number), &chunk(number)).unwrap());
            }
            assert_eq!(metrics(&cache).body_cache_bytes, MIB);
            drop(cache.get(&name(1)).unwrap());
            drop(cache.keep(name(5), &chunk(5)).unwrap());
            assert!(cache.get(&name(2)).is_none(), "it was not asked for");
            let mut first = [0];
            let held = cache.get(&name(1)).unwrap();
            held.copy_to(CHUNK - 1, &mut first).unwrap();
            assert_eq!(first, [1]);
            drop(held);
            for number in 6..100 {
                drop(cache.keep(name(number), &chunk(number)).unwrap());
                assert!(metrics(&cache).body_cache_bytes <= MIB);
            }
            assert!(cache.get(&name(1)).is_none());
            let counted = metrics(&cache);
            assert_eq!(counted.body_cache_kept, 99);
            assert_eq!(counted.body_cache_evicted, 95);
        });
    }

    #[test]
    fn what_is_in_use_is_not_let_go_and_counts() {
        on_a_shard(MIB, |_, cache| {
            let used: Vec<_> = (0..4)
                .map(|number| cache.keep(name(number), &chunk(number)).unwrap())
                .collect();
            assert!(cache.keep(name(9), &chunk(9)).is_none());
            assert_eq!(metrics(&cache).body_cache_refused, 1);
            assert_eq!(metrics(&cache).body_cache_bytes, MIB);
            drop(used);
            assert!(cache.keep(name(9), &chunk(9)).is_some());
            assert!(cache.get(&name(9)).is_some());
        });
    }

    #[test]
    fn a_short_chunk_costs_its_descriptor() {
        on_a_shard(MIB, |_, cache| {
            for number in 0..100 {
                drop(cache.keep(name(number), b"short").unwrap());
            }
            assert_eq!(cache.held.borrow().len() as u64, MIB / BODY_COST_MIN);
        });
    }

    #[test]
    fn without_capacity_or_pages_nothing_is_kept() {
        on_a_shard(0, |_, cache| {
            assert!(!cache.wants(name(1)) && !cache.wants(name(1)));
            assert!(cache.keep(name(1), &chunk(1)).is_none());
        });
        on_a_shard(MIB, |sim, cache| {
            sim.configure(|config| config.page_seals_fail_one_in = 1);
            assert!(cache.keep(name(1), &chunk(1)).is_none());
            assert_eq!(metrics(&cache).body_cache_refused, 1);
            sim.configure(|config| config.page_seals_fail_one_in = 0);
            assert!(cache.keep(name(1), &chunk(1)).is_some());
        });
    }
}
