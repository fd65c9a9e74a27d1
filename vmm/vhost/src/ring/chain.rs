//! A request's chain of descriptors, walked once.
//!
//! ```text
//! descriptor, 16 bytes
//!  0  8  address in the guest
//!  8  4  length
//! 12  2  flags
//! 14  2  next descriptor
//! ```

use std::sync::atomic::{Ordering, fence};

use engine::{GuestList, GuestWindow};
use smallvec::SmallVec;

use super::{Dirty, Fault};
use crate::memory::Memory;

pub(super) const DESCRIPTOR: usize = 16;
pub(super) const NEXT: u16 = 1;
pub(super) const WRITE: u16 = 2;
pub(super) const INDIRECT: u16 = 4;

/// Most bytes of one request: more than any driver sends, and a bound on what one can make us do.
pub(crate) const CHAIN_BYTES_MAX: u64 = 64 << 20;

/// Most descriptors of an indirect table, as QEMU has it too.
const TABLE_MAX: u16 = 1024;

/// One descriptor, copied out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Descriptor {
    pub(super) addr: u64,
    pub(super) len: u32,
    pub(super) flags: u16,
    pub(super) next: u16,
}

impl Descriptor {
    #[inline]
    pub(super) fn read(table: &GuestWindow, index: u16) -> Descriptor {
        let bytes = u128::from_le_bytes(table.read(usize::from(index) * DESCRIPTOR));
        Descriptor {
            addr: bytes as u64,
            len: (bytes >> 64) as u32,
            flags: (bytes >> 96) as u16,
            next: (bytes >> 112) as u16,
        }
    }
}

/// A request: what the device may read, then what it may write.
pub(crate) struct Chain {
    /// Its first descriptor, which identifies it.
    pub(crate) head: u16,
    pub(crate) readable: GuestList,
    pub(crate) writable: GuestList,
    /// The writable part by its place in the guest.
    pub(crate) dirty: SmallVec<[Dirty; 4]>,
}

impl Chain {
    pub(super) fn new(head: u16) -> Chain {
        Chain {
            head,
            readable: GuestList::new(),
            writable: GuestList::new(),
            dirty: SmallVec::new(),
        }
    }

    /// Adds one descriptor that is not indirect.
    #[inline]
    pub(super) fn add(
        &mut self,
        memory: &Memory,
        addr: u64,
        len: u32,
        flags: u16,
    ) -> Result<(), Fault> {
        if flags & WRITE != 0 {
            memory.push(&mut self.writable, addr, len)?;
            let len = u64::from(len);
            self.dirty.push(Dirty { addr, len });
        } else if self.writable.is_empty() {
            memory.push(&mut self.readable, addr, len)?;
        } else {
            return Err(Fault::Order);
        }
        if self.readable.len() + self.writable.len() > CHAIN_BYTES_MAX {
            return Err(Fault::Large {
                limit: CHAIN_BYTES_MAX,
            });
        }
        Ok(())
    }
}

/// The table that an indirect descriptor names, and its number of descriptors. Whether that is said to
/// be writable has no meaning (2.7.5.3.2).
pub(super) fn table(
    memory: &Memory,
    addr: u64,
    len: u32,
    flags: u16,
) -> Result<(GuestWindow, u16), Fault> {
    let entries = len / DESCRIPTOR as u32;
    let whole = len.is_multiple_of(DESCRIPTOR as u32) && entries > 0;
    if !whole || entries > u32::from(TABLE_MAX) || flags & NEXT != 0 {
        return Err(Fault::Indirect { len, flags });
    }
    let window = memory.window(addr, len as usize)?;
    // The descriptor that names the table was read before the table is.
    fence(Ordering::Acquire);
    Ok((window, entries as u16))
}
