//! Who may use which blocks of the data file, and which log segments are being read. Sans-IO.
//!
//! Invariant: a freed extent is not given out while a reader has the body pinned that it belonged
//! to. What is freed meanwhile is parked, and free when the last reader of that body ends.

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

    /// Whether a reader needs records of the segment.
    pub(super) fn is_segment_pinned(&self, segment: u32) -> bool {
        self.segments.contains_key(&segment)
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
