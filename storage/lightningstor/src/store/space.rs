//! Who may use which blocks of the data file, and which log segments are being read. Sans-IO.
//!
//! Invariant: a freed extent is not given out while a reader has the body pinned that it belonged
//! to; holes are disjoint and free. What is freed meanwhile is parked, and free when the last reader of that body ends.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use super::extent::{Extent, ExtentAllocator};

#[derive(Debug, Default)]
struct PinnedBody {
    readers: u32,
    parked: Vec<Extent>,
}

/// The allocator and what readers hold back from it.
#[derive(Debug)]
pub(super) struct Space {
    pub(super) allocator: ExtentAllocator,
    /// By the first block of a body.
    bodies: BTreeMap<u32, PinnedBody>,
    segments: BTreeMap<u32, u32>,
    /// Free ranges without space of their own, by their first block.
    holes: BTreeMap<u32, u32>,
    /// Being made a hole.
    discarding: Option<Extent>,
}

/// Keeps a body's extents and records from being reused; ends when dropped.
#[derive(Debug)]
pub(super) struct Pin {
    space: Rc<RefCell<Space>>,
    body: Option<u32>,
    segments: BTreeSet<u32>,
}

impl Space {
    pub(super) fn new(allocator: ExtentAllocator) -> Rc<RefCell<Space>> {
        let space = Space {
            allocator,
            bodies: BTreeMap::new(),
            segments: BTreeMap::new(),
            holes: BTreeMap::new(),
            discarding: None,
        };
        Rc::new(RefCell::new(space))
    }

    /// Frees extents that no durable state refers to any more: those of one object, and of parts
    /// that nobody can read.
    pub(super) fn free(&mut self, extents: Vec<Extent>) {
        let pinned = extents
            .iter()
            .find(|extent| self.bodies.contains_key(&extent.start));
        match pinned.and_then(|extent| self.bodies.get_mut(&extent.start)) {
            Some(body) => body.parked.extend(extents),
            None => {
                for extent in extents {
                    self.allocator.give(extent);
                }
            }
        }
    }

    /// Takes blocks; they are no holes once they are written.
    pub(super) fn take(&mut self, blocks: u32, extents_max: usize) -> Option<Vec<Extent>> {
        let taken = self.allocator.take(blocks, extents_max)?;
        for extent in &taken {
            self.fill(*extent);
        }
        Some(taken)
    }

    fn fill(&mut self, extent: Extent) {
        let before = self.holes.range(..extent.end());
        let hit: Vec<(u32, u32)> = before
            .rev()
            .map(|(start, blocks)| (*start, *blocks))
            .take_while(|(start, blocks)| start + blocks > extent.start)
            .collect();
        for (start, blocks) in hit {
            self.holes.remove(&start);
            if start < extent.start {
                self.holes.insert(start, extent.start - start);
            }
            let end = start + blocks;
            if end > extent.end() {
                self.holes.insert(extent.end(), end - extent.end());
            }
        }
    }

    /// Blocks of holes.
    pub(super) fn hole_blocks(&self) -> u64 {
        self.holes.values().map(|blocks| u64::from(*blocks)).sum()
    }

    /// The longest free range with space of its own, of `min` to `max` blocks, if more than `slack`
    /// such blocks are free. It is taken until [`Space::end_discard`].
    pub(super) fn begin_discard(&mut self, min: u32, slack: u64, max: u32) -> Option<Extent> {
        let solid = self.allocator.free_blocks().checked_sub(self.hole_blocks());
        if self.discarding.is_some() || solid.is_none_or(|solid| solid <= slack) {
            return None;
        }
        let ranges = self
            .allocator
            .free_of(min)
            .flat_map(|free| self.solid(free));
        let mut found = ranges.max_by_key(|range| range.blocks)?;
        if found.blocks < min {
            return None;
        }
        found.blocks = found.blocks.min(max);
        self.allocator.take_range(found);
        self.discarding = Some(found);
        Some(found)
    }

    /// What of a free range is no hole.
    fn solid(&self, free: Extent) -> Vec<Extent> {
        let mut found = Vec::new();
        let mut next = free.start;
        for (start, blocks) in self.holes.range(free.start..free.end()) {
            if *start > next {
                found.push(Extent {
                    start: next,
                    blocks: start - next,
                });
            }
            next = start + blocks;
        }
        if next < free.end() {
            found.push(Extent {
                start: next,
                blocks: free.end() - next,
            });
        }
        found
    }

    /// The range is free again, and a hole when the discard was done.
    pub(super) fn end_discard(&mut self, range: Extent, done: bool) {
        self.discarding = None;
        self.allocator.give(range);
        if done {
            self.holes.insert(range.start, range.blocks);
        }
    }

    /// Whether a reader needs records of the segment.
    pub(super) fn is_segment_pinned(&self, segment: u32) -> bool {
        self.segments.contains_key(&segment)
    }

    /// What is being discarded.
    #[cfg(test)]
    pub(super) fn discarding(&self) -> Option<Extent> {
        self.discarding
    }

    /// Blocks that are free but for their readers.
    #[cfg(test)]
    pub(super) fn parked(&self) -> impl Iterator<Item = Extent> + '_ {
        self.bodies
            .values()
            .flat_map(|body| body.parked.iter().copied())
    }
}

impl Pin {
    /// Pins a body by its first block (`None` when it lies in records), and the segments of its
    /// records.
    pub(super) fn new(
        space: &Rc<RefCell<Space>>,
        body: Option<u32>,
        segments: BTreeSet<u32>,
    ) -> Pin {
        let mut state = space.borrow_mut();
        if let Some(first) = body {
            state.bodies.entry(first).or_default().readers += 1;
        }
        for segment in &segments {
            *state.segments.entry(*segment).or_default() += 1;
        }
        Pin {
            space: Rc::clone(space),
            body,
            segments,
        }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut state = self.space.borrow_mut();
        for segment in &self.segments {
            let readers = state
                .segments
                .get_mut(segment)
                .expect("a pinned segment is counted");
            *readers -= 1;
            if *readers == 0 {
                state.segments.remove(segment);
            }
        }
        let Some(first) = self.body else { return };
        let body = state
            .bodies
            .get_mut(&first)
            .expect("a pinned body is counted");
        body.readers -= 1;
        if body.readers == 0 {
            let parked = state
                .bodies
                .remove(&first)
                .map(|body| body.parked)
                .unwrap_or_default();
            for extent in parked {
                state.allocator.give(extent);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_freed_body_waits_for_its_last_reader() {
        let body = vec![
            Extent {
                start: 2,
                blocks: 3,
            },
            Extent {
                start: 7,
                blocks: 1,
            },
        ];
        let space = Space::new(ExtentAllocator::rebuild(10, body.clone()).unwrap());
        let first = Pin::new(&space, Some(2), BTreeSet::from([4]));
        let second = Pin::new(&space, Some(2), BTreeSet::from([4]));
        space.borrow_mut().free(body);
        drop(first);
        assert_eq!(space.borrow().allocator.free_blocks(), 6);
        assert_eq!(space.borrow().parked().count(), 2);
        assert!(space.borrow().is_segment_pinned(4));
        drop(second);
        assert_eq!(space.borrow().allocator.free_blocks(), 10);
        assert!(!space.borrow().is_segment_pinned(4));
    }
}
