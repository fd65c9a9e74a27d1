//! Marks of a split ring.
//!
//! ```text
//! 12  2  head of the last batch       16 + 16 n:  state of the chain whose head is n
//! 14  2  used index that was shown     0  1  whether it is in progress
//!                                      6  2  next of the batch
//!                                      8  8  counter: the order in which chains were taken
//! ```
//!
//! Order of writes: a chain is marked before its request starts. A batch is linked, head first, before
//! the used index is shown; then its marks are cleared, then the region's used index follows. So when
//! the two indexes differ, exactly the last batch was shown and is still marked.

use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering};

use engine::GuestWindow;

pub(super) const FEATURES: u64 = 0;
pub(super) const HEAD: usize = 16;
pub(super) const STATE: usize = 16;
const BATCH_AT: usize = 12;
const USED_AT: usize = 14;
const NEXT_AT: usize = 6;
const COUNTER_AT: usize = 8;

/// See the module's head.
pub(crate) struct SplitMarks {
    pub(super) region: GuestWindow,
    size: u16,
    counter: u64,
    /// Heads that are being given back, until the driver was shown them.
    batch: Vec<u16>,
}

impl SplitMarks {
    pub(super) fn new(region: GuestWindow, size: u16) -> SplitMarks {
        SplitMarks {
            region,
            size,
            counter: 0,
            batch: Vec::new(),
        }
    }

    fn mark(&self, head: u16) -> &AtomicU8 {
        self.region.u8(HEAD + STATE * usize::from(head))
    }

    fn next(&self, head: u16) -> &AtomicU16 {
        self.region.u16(HEAD + STATE * usize::from(head) + NEXT_AT)
    }

    fn counter(&self, head: u16) -> &AtomicU64 {
        self.region
            .u64(HEAD + STATE * usize::from(head) + COUNTER_AT)
    }

    /// Finishes what who died has begun, and tells the heads to be done again, in order. `used` is
    /// the index that the driver was shown.
    pub(super) fn recover(&mut self, used: u16) -> Vec<u16> {
        let shown = self.region.u16(USED_AT);
        let unmarked = used.wrapping_sub(shown.load(Ordering::Acquire));
        let mut head = self.region.u16(BATCH_AT).load(Ordering::Relaxed);
        for _ in 0..unmarked.min(self.size) {
            if head >= self.size {
                break;
            }
            self.mark(head).store(0, Ordering::Relaxed);
            head = self.next(head).load(Ordering::Relaxed);
        }
        shown.store(used, Ordering::Release);
        let marked = (0..self.size).filter(|head| self.mark(*head).load(Ordering::Acquire) == 1);
        let mut found: Vec<(u64, u16)> = marked
            .map(|head| (self.counter(head).load(Ordering::Relaxed), head))
            .collect();
        found.sort_unstable();
        self.counter = found
            .last()
            .map_or(0, |(counter, _)| counter.wrapping_add(1));
        found.into_iter().map(|(_, head)| head).collect()
    }

    /// A request begins.
    #[inline]
    pub(super) fn taken(&mut self, head: u16) {
        self.counter(head).store(self.counter, Ordering::Relaxed);
        self.counter = self.counter.wrapping_add(1);
        self.mark(head).store(1, Ordering::Release);
    }

    /// A request is being given back.
    #[inline]
    pub(super) fn giving(&mut self, head: u16) {
        let batch = self.region.u16(BATCH_AT);
        let before = batch.load(Ordering::Relaxed);
        self.next(head).store(before, Ordering::Relaxed);
        batch.store(head, Ordering::Release);
        self.batch.push(head);
    }

    /// The driver was shown all that was being given back.
    pub(super) fn given(&mut self, used: u16) {
        for head in &self.batch {
            self.mark(*head).store(0, Ordering::Release);
        }
        self.batch.clear();
        self.region.u16(USED_AT).store(used, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use engine::GuestMem;

    use super::super::Inflight;
    use super::super::tests::{base, memory, open};
    use super::*;

    fn marks(memory: &GuestMem) -> SplitMarks {
        match open(memory, false).expect("marks") {
            Inflight::Split(marks) => marks,
            Inflight::Packed(_) => panic!("marks of a packed ring"),
        }
    }

    #[test]
    fn what_was_taken_and_not_given_is_done_again_in_its_order() {
        let memory = memory();
        let mut first = marks(&memory);
        assert_eq!(first.recover(40), [0_u16; 0]);
        for head in [3, 1, 7, 0] {
            first.taken(head);
        }
        first.giving(1);
        first.given(41);
        let mut second = marks(&memory);
        assert_eq!(second.recover(41), [3, 7, 0]);
        second.taken(1);
        assert_eq!(marks(&memory).recover(41), [3, 7, 0, 1]);
    }

    #[test]
    fn a_batch_that_was_shown_is_not_done_again() {
        let memory = memory();
        let mut first = marks(&memory);
        first.recover(65_535);
        for head in [0, 1, 2, 3] {
            first.taken(head);
        }
        // It dies between showing and clearing: two were shown.
        first.giving(2);
        first.giving(0);
        assert_eq!(marks(&memory).recover(1), [1, 3]);
    }

    #[test]
    fn a_batch_that_was_not_shown_is_done_again() {
        let memory = memory();
        let mut first = marks(&memory);
        first.recover(5);
        first.taken(4);
        first.taken(2);
        first.giving(2);
        assert_eq!(marks(&memory).recover(5), [4, 2]);
    }

    #[test]
    fn marks_of_a_front_end_that_lies_do_no_harm() {
        let memory = memory();
        let mut first = marks(&memory);
        first.recover(0);
        first.taken(5);
        // The batch is a circle, then it leaves the ring.
        memory.copy_in(base() + 12, &[5, 0]).expect("inside");
        memory
            .copy_in(base() + 16 + 5 * 16 + 6, &[5, 0])
            .expect("inside");
        assert_eq!(marks(&memory).recover(30_000), [0_u16; 0]);
        memory.copy_in(base() + 12, &[255, 255]).expect("inside");
        assert_eq!(marks(&memory).recover(1), [0_u16; 0]);
    }
}
