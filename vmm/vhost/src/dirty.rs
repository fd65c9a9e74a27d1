//! The log of a live migration: a bit for each page of the guest that was written, in memory that the
//! front end shares.

use std::io;
use std::sync::atomic::Ordering;

use engine::{GuestMem, GuestWindow};

use crate::ring::Dirty;

const PAGE: u64 = 4096;

/// See the module's head.
pub(crate) struct DirtyLog {
    bits: GuestWindow,
}

impl DirtyLog {
    /// # Errors
    /// Never for a whole memory.
    pub(crate) fn new(memory: &GuestMem) -> io::Result<DirtyLog> {
        Ok(DirtyLog {
            bits: memory.window(0, memory.len(), 1)?,
        })
    }

    /// Marks what was written. What the log is too short for is not marked: the front end made it, for
    /// all of the guest's memory.
    pub(crate) fn mark(&self, dirty: Dirty) {
        if dirty.len == 0 {
            return;
        }
        let last = dirty.addr.saturating_add(dirty.len - 1) / PAGE;
        let end = (self.bits.len() as u64).saturating_mul(8);
        for page in dirty.addr / PAGE..last.saturating_add(1).min(end) {
            let byte = self.bits.u8((page / 8) as usize);
            let bit = 1_u8 << (page % 8);
            if byte.load(Ordering::Relaxed) & bit == 0 {
                byte.fetch_or(bit, Ordering::SeqCst);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_that_a_range_touches_is_marked() {
        let memory = GuestMem::anonymous(4).expect("memory");
        let log = DirtyLog::new(&memory).expect("a log");
        let mark = |addr, len| log.mark(Dirty { addr, len });
        mark(0, 1);
        mark(2 * PAGE - 1, 2);
        mark(9 * PAGE, PAGE);
        mark(31 * PAGE, u64::MAX);
        mark(32 * PAGE, 1);
        mark(5 * PAGE, 0);
        let mut bits = [0; 4];
        memory.copy_out(0, &mut bits).expect("inside");
        assert_eq!(bits, [0b111, 0b10, 0, 0b1000_0000]);
    }
}
