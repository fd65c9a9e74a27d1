//! Who may use which blocks of the data file, and which log segments are being read. Sans-IO.
//!
//! Invariant: a freed extent is not given out while a reader has the body pinned that it belonged
//! to; holes are free, and no block is given out that is a hole. What is freed meanwhile is parked,
//! and free when the last reader of that body ends.

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
    /// Free blocks whose space this life has given back.
    holes: Ranges,
    /// Free blocks that may have no space of their own: holes, and what was free at the start.
    unbacked: Ranges,
    /// Being made a hole.
    discarding: Option<Extent>,
}

/// Disjoint runs of blocks: start to length.
#[derive(Debug, Default)]
struct Ranges(BTreeMap<u32, u32>);

impl Ranges {
    /// Adds a range that shares no block with the others.
    fn insert(&mut self, range: Extent) {
        self.0.insert(range.start, range.blocks);
    }

    /// Takes a range's blocks out, and returns those that were in.
    fn remove(&mut self, range: Extent) -> Vec<Extent> {
        let before = self.0.range(..range.end()).rev();
        let hit: Vec<Extent> = before
            .map(|(start, blocks)| Extent {
                start: *start,
                blocks: *blocks,
            })
            .take_while(|found| found.end() > range.start)
            .collect();
        let mut removed = Vec::with_capacity(hit.len());
        for found in hit {
            self.0.remove(&found.start);
            let (start, end) = (found.start.max(range.start), found.end().min(range.end()));
            if found.start < start {
                self.0.insert(found.start, start - found.start);
            }
            if end < found.end() {
                self.0.insert(end, found.end() - end);
            }
            removed.push(Extent {
                start,
                blocks: end - start,
            });
        }
        removed
    }

    fn blocks(&self) -> u64 {
        self.0.values().map(|blocks| u64::from(*blocks)).sum()
    }
}

/// Blocks that were taken, and which of them have no space yet.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) extents: Vec<Extent>,
    pub(super) unbacked: Vec<Extent>,
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
        let mut space = Space {
            allocator: ExtentAllocator::default(),
            bodies: BTreeMap::new(),
            segments: BTreeMap::new(),
            holes: Ranges::default(),
            unbacked: Ranges::default(),
            discarding: None,
        };
        space.start_from(allocator);
        Rc::new(RefCell::new(space))
    }

    /// Begins with what an allocator has; which of the free blocks are holes is not known.
    pub(super) fn start_from(&mut self, allocator: ExtentAllocator) {
        for free in allocator.free_ranges() {
            self.unbacked.insert(free);
        }
        self.allocator = allocator;
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

    /// Takes blocks. The caller gives the unbacked ones space before it uses them, or says that it
    /// could not with [`Space::untake`].
    pub(super) fn take(&mut self, blocks: u32, extents_max: usize) -> Option<Taken> {
        let extents = self.allocator.take(blocks, extents_max)?;
        let mut unbacked = Vec::new();
        for extent in &extents {
            self.holes.remove(*extent);
            unbacked.extend(self.unbacked.remove(*extent));
        }
        Some(Taken { extents, unbacked })
    }

    /// Frees blocks that were taken and not used; the unbacked ones still may have no space.
    pub(super) fn untake(&mut self, taken: Taken) {
        for extent in taken.extents {
            self.allocator.give(extent);
        }
        for range in taken.unbacked {
            self.unbacked.insert(range);
        }
    }

    /// Blocks of holes.
    pub(super) fn hole_blocks(&self) -> u64 {
        self.holes.blocks()
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
        for (start, blocks) in self.holes.0.range(free.start..free.end()) {
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
        // One that was given up may still happen.
        self.unbacked.remove(range);
        self.unbacked.insert(range);
        if done {
            self.holes.insert(range);
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

    #[test]
    fn blocks_without_space_are_told_when_they_are_taken_and_only_then() {
        let extent = |start, blocks| Extent { start, blocks };
        // A file of ten blocks with a body in the middle: what is free may be holes.
        let space = Space::new(ExtentAllocator::rebuild(10, vec![extent(4, 2)]).unwrap());
        let mut space = space.borrow_mut();
        let taken = space.take(3, 1).unwrap();
        assert_eq!(taken.unbacked, taken.extents);
        let first = taken.extents[0];
        space.untake(taken);
        let taken = space.take(3, 1).unwrap();
        assert_eq!(
            (&taken.extents, &taken.unbacked),
            (&vec![first], &vec![first])
        );
        // It was given space and is free again: nothing is missing now.
        space.allocator.give(first);
        assert_eq!(space.take(3, 1).unwrap().unbacked, []);
        space.allocator.give(first);
        let hole = space.begin_discard(4, 0, 4).unwrap();
        space.end_discard(hole, true);
        assert_eq!(space.hole_blocks(), 4);
        let taken = space.take(8, 2).unwrap();
        let missing: u32 = taken.unbacked.iter().map(|range| range.blocks).sum();
        assert!(taken.unbacked.contains(&hole) && missing >= 5, "{taken:?}");
        assert_eq!(space.hole_blocks(), 0);
    }
}
