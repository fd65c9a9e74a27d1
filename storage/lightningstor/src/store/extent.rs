//! Which blocks of a data file are free. Sans-IO; derived from the index at every start.
//!
//! Invariants: free ranges are disjoint, never adjacent (they coalesce), and lie inside the file;
//! what was given out is not free. The rest is the owner's duty: it frees what it was given, once.

use std::collections::{BTreeMap, BTreeSet};

use engine::BLOCK;

/// A run of 4 KiB blocks of a data file. At most 16 TiB a file, so that an extent has 8 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Extent {
    /// First block.
    pub start: u32,
    /// Number of blocks, at least 1.
    pub blocks: u32,
}

impl Extent {
    /// First block behind it.
    pub fn end(self) -> u32 {
        self.start + self.blocks
    }

    /// Where it begins, in bytes.
    pub fn offset(self) -> u64 {
        u64::from(self.start) * BLOCK as u64
    }

    /// Its length in bytes.
    pub fn bytes(self) -> u64 {
        u64::from(self.blocks) * BLOCK as u64
    }
}

/// Blocks that hold `bytes`.
pub(crate) fn blocks_of(bytes: u64) -> u64 {
    bytes.div_ceil(BLOCK as u64)
}

/// Two bodies claim a block, or one lies behind the end of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("blocks {}..{} are claimed twice or lie behind the file's end", extent.start, extent.end())]
pub struct Overlap {
    /// The extent that does not fit.
    pub extent: Extent,
}

/// Free blocks of one file.
#[derive(Debug, Default)]
pub struct ExtentAllocator {
    /// Start to length.
    free: BTreeMap<u32, u32>,
    /// (length, start) of the same ranges, for best fit.
    by_len: BTreeSet<(u32, u32)>,
    blocks: u32,
    free_blocks: u64,
}

impl ExtentAllocator {
    /// A file of `blocks` blocks in which `used` are taken.
    ///
    /// # Errors
    /// [`Overlap`] when two of them share a block or one leaves the file.
    pub fn rebuild(blocks: u32, mut used: Vec<Extent>) -> Result<ExtentAllocator, Overlap> {
        used.sort_unstable();
        let mut allocator = ExtentAllocator {
            blocks,
            ..ExtentAllocator::default()
        };
        let mut next = 0;
        for extent in used {
            let fits = extent
                .start
                .checked_add(extent.blocks)
                .is_some_and(|end| end <= blocks);
            if extent.start < next || !fits {
                return Err(Overlap { extent });
            }
            allocator.insert(next, extent.start - next);
            next = extent.end();
        }
        allocator.insert(next, blocks - next);
        Ok(allocator)
    }

    /// Length of the file in blocks.
    pub fn blocks(&self) -> u32 {
        self.blocks
    }

    /// Blocks that are free.
    pub fn free_blocks(&self) -> u64 {
        self.free_blocks
    }

    /// The longest free range, in blocks.
    pub fn longest(&self) -> u32 {
        self.by_len.last().map_or(0, |(len, _)| *len)
    }

    /// The file has grown by that many blocks.
    ///
    /// # Panics
    /// When it would pass 2^32 - 1 blocks; the caller bounds the file.
    pub fn grow(&mut self, blocks: u32) {
        let start = self.blocks;
        self.blocks = start
            .checked_add(blocks)
            .expect("the data file is bounded by its owner");
        if blocks > 0 {
            self.give(Extent { start, blocks });
        }
    }

    /// Takes `blocks` blocks: the smallest range that holds them all, else the longest ranges one
    /// after the other, at most `extents_max` of them. `None` changes nothing.
    pub fn take(&mut self, blocks: u32, extents_max: usize) -> Option<Vec<Extent>> {
        if u64::from(blocks) > self.free_blocks {
            return None;
        }
        let mut taken = Vec::new();
        let mut left = blocks;
        while left > 0 {
            let fit = self.by_len.range((left, 0)..).next().copied();
            let longest = || self.by_len.last().copied();
            let room = taken.len() < extents_max;
            let Some((len, start)) = fit.or_else(longest).filter(|_| room) else {
                for extent in taken {
                    self.give(extent);
                }
                return None;
            };
            self.remove(start, len);
            let blocks = len.min(left);
            self.insert(start + blocks, len - blocks);
            taken.push(Extent { start, blocks });
            left -= blocks;
        }
        Some(taken)
    }

    /// Frees an extent.
    ///
    /// # Panics
    /// When a block of it is free already or lies behind the end: a bug that would let two bodies
    /// share it.
    pub fn give(&mut self, extent: Extent) {
        assert!(extent.blocks > 0, "an extent has blocks");
        assert!(
            extent.end() <= self.blocks,
            "{extent:?} lies behind the end"
        );
        let before = self
            .free
            .range(..extent.end())
            .next_back()
            .map(|(s, l)| (*s, *l));
        assert!(
            before.is_none_or(|(start, len)| start + len <= extent.start),
            "{extent:?} is free already"
        );
        let (mut start, mut len) = (extent.start, extent.blocks);
        if let Some((low, low_len)) = before.filter(|(s, l)| s + l == extent.start) {
            self.remove(low, low_len);
            start = low;
            len += low_len;
        }
        if let Some(high_len) = self.free.get(&extent.end()).copied() {
            self.remove(extent.end(), high_len);
            len += high_len;
        }
        self.insert(start, len);
    }

    /// Takes a range that is free.
    ///
    /// # Panics
    /// When a block of it is not free.
    pub(super) fn take_range(&mut self, range: Extent) {
        let free = self.free.range(..=range.start).next_back();
        let (start, len) = free
            .map(|(start, len)| (*start, *len))
            .filter(|(start, len)| start + len >= range.end())
            .expect("the range is free");
        self.remove(start, len);
        self.insert(start, range.start - start);
        self.insert(range.end(), start + len - range.end());
    }

    /// Free ranges of at least `min` blocks, the longest first.
    pub(super) fn free_of(&self, min: u32) -> impl Iterator<Item = Extent> + '_ {
        let ranges = self.by_len.range((min, 0)..).rev();
        ranges.map(|(blocks, start)| Extent {
            start: *start,
            blocks: *blocks,
        })
    }

    /// The free ranges, in order.
    pub(super) fn free_ranges(&self) -> impl Iterator<Item = Extent> + '_ {
        self.free.iter().map(|(start, blocks)| Extent {
            start: *start,
            blocks: *blocks,
        })
    }

    fn insert(&mut self, start: u32, len: u32) {
        if len > 0 {
            self.free.insert(start, len);
            self.by_len.insert((len, start));
            self.free_blocks += u64::from(len);
        }
    }

    fn remove(&mut self, start: u32, len: u32) {
        self.free.remove(&start);
        self.by_len.remove(&(len, start));
        self.free_blocks -= u64::from(len);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn extent(start: u32, blocks: u32) -> Extent {
        Extent { start, blocks }
    }

    #[test]
    fn the_smallest_range_that_fits_is_taken() {
        let used = vec![extent(10, 1), extent(14, 1), extent(30, 1)];
        let mut allocator = ExtentAllocator::rebuild(100, used).unwrap();
        assert_eq!(allocator.take(3, 1), Some(vec![extent(11, 3)]));
        assert_eq!(allocator.take(12, 1), Some(vec![extent(15, 12)]));
        assert_eq!(allocator.longest(), 69);
    }

    #[test]
    fn a_body_without_a_fit_is_split_within_its_bound() {
        let used = vec![extent(10, 1), extent(21, 1)];
        let mut allocator = ExtentAllocator::rebuild(30, used).unwrap();
        assert_eq!(allocator.take(20, 1), None);
        assert_eq!(allocator.free_blocks(), 28);
        assert_eq!(
            allocator.take(20, 2),
            Some(vec![extent(11, 10), extent(0, 10)])
        );
        assert_eq!(allocator.take(9, 9), None);
        assert_eq!(allocator.take(8, 1), Some(vec![extent(22, 8)]));
    }

    #[test]
    fn claims_that_overlap_or_leave_the_file_are_refused() {
        let overlap = ExtentAllocator::rebuild(10, vec![extent(0, 3), extent(2, 1)]);
        assert_eq!(overlap.unwrap_err().extent, extent(2, 1));
        assert!(ExtentAllocator::rebuild(10, vec![extent(8, 3)]).is_err());
        assert!(ExtentAllocator::rebuild(10, vec![extent(u32::MAX, 2)]).is_err());
    }

    #[test]
    #[should_panic(expected = "is free already")]
    fn freeing_twice_is_a_bug() {
        let mut allocator = ExtentAllocator::rebuild(10, vec![extent(3, 3)]).unwrap();
        allocator.give(extent(3, 3));
        allocator.give(extent(4, 1));
    }

    proptest! {
        #[test]
        fn nothing_is_shared_and_nothing_leaks(
            steps in prop::collection::vec((any::<bool>(), 1_u32..40, any::<prop::sample::Index>()), 1..300),
        ) {
            let mut allocator = ExtentAllocator::default();
            let mut out: Vec<Vec<Extent>> = Vec::new();
            for (take, blocks, which) in steps {
                if take {
                    let taken = allocator.take(blocks, 8).unwrap_or_else(|| {
                        allocator.grow(blocks.max(16));
                        allocator.take(blocks, 8).unwrap_or_default()
                    });
                    let sum: u32 = taken.iter().map(|e| e.blocks).sum();
                    prop_assert!(taken.is_empty() || sum == blocks);
                    out.push(taken);
                } else if !out.is_empty() {
                    let body = out.swap_remove(which.index(out.len()));
                    for extent in body {
                        allocator.give(extent);
                    }
                }
                // The rebuild checks that what is out is disjoint; the same free ranges result.
                let used: Vec<Extent> = out.iter().flatten().copied().collect();
                let again = ExtentAllocator::rebuild(allocator.blocks(), used).unwrap();
                prop_assert!(allocator.free_ranges().eq(again.free_ranges()));
                prop_assert_eq!(allocator.free_blocks(), again.free_blocks());
            }
            for extent in out.into_iter().flatten() {
                allocator.give(extent);
            }
            prop_assert_eq!(u64::from(allocator.longest()), allocator.free_blocks());
            prop_assert_eq!(allocator.free_blocks(), u64::from(allocator.blocks()));
        }
    }
}
