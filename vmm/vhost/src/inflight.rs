//! Which requests of a split ring are in progress, in memory that the front end keeps while we are
//! dead (vhost-user, "Inflight I/O tracking"): who comes after us does them again, in their order.
//!
//! A region a queue, each a multiple of 64 bytes, and one of our own behind them ([`Cache`]); numbers
//! are in the order of this machine:
//!
//! ```text
//!  0  8  features (0)                 16 + 16 n:  state of the chain whose head is n
//!  8  2  version (1)                   0  1  whether it is in progress
//! 10  2  number of states              6  2  next of the batch
//! 12  2  head of the last batch        8  8  counter: the order in which chains were taken
//! 14  2  used index that was shown
//! ```
//!
//! Order of writes: a chain is marked before its request starts. A batch is linked, head first, before
//! the used index is shown; then its marks are cleared, then the region's used index follows. So when
//! the two indexes differ, exactly the last batch was shown and is still marked.
//!
//! What is read back was in the front end's hands: every index is checked, and a list is followed for
//! no more steps than the ring has places.

use std::io;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering};

use engine::{GuestMem, GuestWindow};

use crate::cache::Cache;
use crate::command::InflightShape;

const HEAD: usize = 16;
const STATE: usize = 16;
const VERSION_AT: usize = 8;
const COUNT_AT: usize = 10;
const BATCH_AT: usize = 12;
const USED_AT: usize = 14;
const NEXT_AT: usize = 6;
const COUNTER_AT: usize = 8;
const VERSION: u16 = 1;

/// Bytes of a last region, which is our own: the driver's choice of cache.
const CHOICE_BYTES: usize = 64;

/// Bytes of all regions.
pub(crate) fn marks_bytes(queues: u16, size: u16) -> u64 {
    u64::from(queues) * region_bytes(size) as u64 + CHOICE_BYTES as u64
}

/// The driver's choice of cache in the marks.
impl Cache {
    fn place(shape: InflightShape) -> u64 {
        u64::from(shape.queues) * region_bytes(shape.size) as u64
    }

    /// The choice that stands in the marks.
    ///
    /// # Errors
    /// When the memory is too short.
    pub(crate) fn kept(marks: &GuestMem, shape: InflightShape) -> io::Result<Option<Cache>> {
        let mut byte = [0];
        marks.copy_out(Cache::place(shape), &mut byte)?;
        Ok(match byte {
            [1] => Some(Cache::WriteThrough),
            [2] => Some(Cache::WriteBack),
            _ => None,
        })
    }

    /// # Errors
    /// When the memory is too short.
    pub(crate) fn keep(self, marks: &GuestMem, shape: InflightShape) -> io::Result<()> {
        let byte = match self {
            Cache::WriteThrough => 1,
            Cache::WriteBack => 2,
        };
        marks.copy_in(Cache::place(shape), &[byte])
    }
}

/// Bytes of one queue's region.
fn region_bytes(size: u16) -> usize {
    (HEAD + STATE * usize::from(size)).next_multiple_of(64)
}

/// The marks of one ring.
pub(crate) struct Inflight {
    region: GuestWindow,
    size: u16,
    counter: u64,
    /// Heads that are being given back, until the driver was shown them.
    batch: Vec<u16>,
}

impl Inflight {
    /// The marks of the queue `index` of those that lie in `memory`.
    ///
    /// # Errors
    /// When the memory is too short, or holds marks of another form.
    pub(crate) fn open(
        memory: &GuestMem,
        index: u16,
        queue_size: u16,
        size: u16,
    ) -> io::Result<Inflight> {
        let bytes = region_bytes(queue_size);
        let region = memory.window(u64::from(index) * bytes as u64, bytes, 64)?;
        let (version, count) = (region.u16(VERSION_AT), region.u16(COUNT_AT));
        if version.load(Ordering::Acquire) == 0 {
            count.store(queue_size, Ordering::Relaxed);
            version.store(VERSION, Ordering::Release);
        }
        let found = (
            version.load(Ordering::Acquire),
            count.load(Ordering::Relaxed),
        );
        if found != (VERSION, queue_size) || size > queue_size {
            let (version, count) = found;
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "marks of version {version} for {count} requests; a ring of {size} needs version {VERSION} for {queue_size}"
                ),
            ));
        }
        Ok(Inflight {
            region,
            size,
            counter: 0,
            batch: Vec::new(),
        })
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

    /// Whether the memory behind was cut short.
    pub(crate) fn is_broken(&self) -> bool {
        self.region.is_broken()
    }

    /// Finishes what who died has begun, and tells the heads to be done again, in order. `used` is
    /// the index that the driver was shown.
    pub(crate) fn recover(&mut self, used: u16) -> Vec<u16> {
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
    pub(crate) fn taken(&mut self, head: u16) {
        self.counter(head).store(self.counter, Ordering::Relaxed);
        self.counter = self.counter.wrapping_add(1);
        self.mark(head).store(1, Ordering::Release);
    }

    /// A request is being given back.
    #[inline]
    pub(crate) fn giving(&mut self, head: u16) {
        let batch = self.region.u16(BATCH_AT);
        let before = batch.load(Ordering::Relaxed);
        self.next(head).store(before, Ordering::Relaxed);
        batch.store(head, Ordering::Release);
        self.batch.push(head);
    }

    /// The driver was shown all that was being given back.
    pub(crate) fn given(&mut self, used: u16) {
        for head in &self.batch {
            self.mark(*head).store(0, Ordering::Release);
        }
        self.batch.clear();
        self.region.u16(USED_AT).store(used, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marks(memory: &GuestMem) -> Inflight {
        Inflight::open(memory, 1, 8, 8).expect("marks")
    }

    fn memory() -> GuestMem {
        GuestMem::anonymous(2 * region_bytes(8)).expect("memory")
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
        let base = region_bytes(8) as u64;
        // The batch is a circle, then it leaves the ring.
        memory.copy_in(base + 12, &[5, 0]).expect("inside");
        memory
            .copy_in(base + 16 + 5 * 16 + 6, &[5, 0])
            .expect("inside");
        assert_eq!(marks(&memory).recover(30_000), [0_u16; 0]);
        memory.copy_in(base + 12, &[255, 255]).expect("inside");
        assert_eq!(marks(&memory).recover(1), [0_u16; 0]);
        memory.copy_in(base + 10, &[9, 0]).expect("inside");
        assert!(Inflight::open(&memory, 1, 8, 8).is_err());
        assert!(Inflight::open(&memory, 2, 8, 8).is_err());
        assert!(Inflight::open(&memory, 0, 8, 16).is_err());
    }
}
