//! A set of byte ranges: which parts of a file have space of their own. Ranges never touch or
//! overlap; the sum of their lengths is kept.

use std::collections::BTreeMap;

/// Disjoint half-open ranges, start to end.
#[derive(Debug, Default)]
pub(super) struct RangeSet {
    ranges: BTreeMap<u64, u64>,
    total: u64,
}

impl RangeSet {
    /// Bytes in the set.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// How many bytes of `start..end` are not in the set.
    pub(super) fn missing(&self, start: u64, end: u64) -> u64 {
        let mut covered = 0;
        for (from, to) in self.ranges.range(..end).rev() {
            if *to <= start {
                break;
            }
            covered += (*to).min(end) - (*from).max(start);
        }
        (end - start) - covered
    }

    pub(super) fn insert(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        let (mut from, mut to) = (start, end);
        let touching: Vec<u64> = self
            .ranges
            .range(..=end)
            .rev()
            .take_while(|(_, range_end)| **range_end >= start)
            .map(|(range_start, _)| *range_start)
            .collect();
        for key in touching {
            if let Some(range_end) = self.ranges.remove(&key) {
                self.total -= range_end - key;
                from = from.min(key);
                to = to.max(range_end);
            }
        }
        self.ranges.insert(from, to);
        self.total += to - from;
    }

    pub(super) fn remove(&mut self, start: u64, end: u64) {
        let hit: Vec<(u64, u64)> = self
            .ranges
            .range(..end)
            .rev()
            .take_while(|(_, to)| **to > start)
            .map(|(from, to)| (*from, *to))
            .collect();
        for (from, to) in hit {
            self.ranges.remove(&from);
            self.total -= to - from;
            if from < start {
                self.ranges.insert(from, start);
                self.total += start - from;
            }
            if to > end {
                self.ranges.insert(end, to);
                self.total += to - end;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::RangeSet;

    #[test]
    fn ranges_merge_split_and_count() {
        let mut set = RangeSet::default();
        set.insert(0, 10);
        set.insert(20, 30);
        assert_eq!((set.total(), set.missing(5, 25)), (20, 10));
        set.insert(10, 20);
        assert_eq!((set.total(), set.missing(0, 40)), (30, 10));
        set.remove(5, 12);
        assert_eq!((set.total(), set.missing(0, 30)), (23, 7));
        set.remove(0, 100);
        assert_eq!((set.total(), set.missing(3, 9)), (0, 6));
    }
}
