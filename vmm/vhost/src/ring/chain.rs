//! A request's chain of descriptors, walked once.
//!
//! ```text
//! descriptor, 16 bytes             of a packed ring
//!  0  8  address in the guest       0  8  address in the guest
//!  8  4  length                     8  4  length
//! 12  2  flags                     12  2  id of the buffer
//! 14  2  next descriptor           14  2  flags
//! ```

use std::sync::atomic::{Ordering, fence};

use engine::{GuestList, GuestWindow};
use smallvec::SmallVec;

use super::{Dirty, Fault, Token};
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Descriptor {
    pub(crate) addr: u64,
    pub(crate) len: u32,
    pub(crate) flags: u16,
    /// The next descriptor, or in a packed ring the buffer's id.
    pub(crate) link: u16,
}

impl Descriptor {
    #[inline]
    pub(super) fn read(table: &GuestWindow, index: u16) -> Descriptor {
        let bytes = u128::from_le_bytes(table.read(usize::from(index) * DESCRIPTOR));
        Descriptor {
            addr: bytes as u64,
            len: (bytes >> 64) as u32,
            flags: (bytes >> 96) as u16,
            link: (bytes >> 112) as u16,
        }
    }

    #[inline]
    pub(super) fn read_packed(ring: &GuestWindow, index: u16) -> Descriptor {
        let bytes = u128::from_le_bytes(ring.read(usize::from(index) * DESCRIPTOR));
        Descriptor {
            addr: bytes as u64,
            len: (bytes >> 64) as u32,
            flags: (bytes >> 112) as u16,
            link: (bytes >> 96) as u16,
        }
    }
}

/// A request: what the device may read, then what it may write.
pub(crate) struct Chain {
    pub(crate) token: Token,
    /// Its descriptors, for the marks of a packed ring: there nothing else keeps them.
    pub(crate) descriptors: Vec<Descriptor>,
    pub(crate) readable: GuestList,
    pub(crate) writable: GuestList,
    /// The writable part by its place in the guest.
    pub(crate) dirty: SmallVec<[Dirty; 2]>,
}

impl Chain {
    pub(super) fn new(token: Token) -> Chain {
        Chain {
            token,
            descriptors: Vec::new(),
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
