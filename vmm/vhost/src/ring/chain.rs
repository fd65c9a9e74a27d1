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

/// Bytes of a request's head.
pub(crate) const HEAD: usize = 16;

/// A request: what the device may read, then what it may write. The first bytes to read are its head, and
/// the last one to write is for its status; descriptors may cut them off anywhere. A ring walks one after the
/// other into the same value: it is too large to be moved for each.
#[derive(Default)]
pub(crate) struct Chain {
    pub(crate) token: Token,
    /// Its descriptors, for the marks of a packed ring: there nothing else keeps them.
    pub(crate) descriptors: Vec<Descriptor>,
    pub(crate) head: [u8; HEAD],
    /// Bytes of the head that there are.
    pub(crate) head_bytes: usize,
    /// What is to be read behind the head.
    pub(crate) readable: GuestList,
    /// What may be written before the status.
    pub(crate) writable: GuestList,
    /// The last byte that may be written, if there is one.
    pub(crate) status: GuestList,
    /// The last descriptor that may be written, until it is known to be.
    last: Option<(u64, u32)>,
    bytes: u64,
    /// The writable part by its place in the guest.
    pub(crate) dirty: SmallVec<[Dirty; 2]>,
    /// Descriptors that went on where the one before ended.
    pub(crate) merged: u32,
}

impl Chain {
    /// Forgets the request that it was.
    #[inline]
    pub(super) fn begin(&mut self, token: Token) {
        self.token = token;
        self.descriptors.clear();
        self.head_bytes = 0;
        for list in [&mut self.readable, &mut self.writable, &mut self.status] {
            if !list.is_empty() {
                *list = GuestList::new();
            }
        }
        self.last = None;
        self.bytes = 0;
        self.dirty.clear();
        self.merged = 0;
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
        self.bytes += u64::from(len);
        if self.bytes > CHAIN_BYTES_MAX {
            return Err(Fault::Large {
                limit: CHAIN_BYTES_MAX,
            });
        }
        if flags & WRITE != 0 {
            if len == 0 {
                return Ok(());
            }
            if let Some((addr, len)) = self.last.replace((addr, len)) {
                push(memory, &mut self.writable, (addr, len), &mut self.merged)?;
            }
            let len = u64::from(len);
            self.dirty.push(Dirty { addr, len });
            return Ok(());
        }
        if self.last.is_some() {
            return Err(Fault::Order);
        }
        let taken = len.min((HEAD - self.head_bytes) as u32);
        if taken > 0 {
            let end = self.head_bytes + taken as usize;
            memory.copy_out(addr, &mut self.head[self.head_bytes..end])?;
            self.head_bytes = end;
        }
        let rest = (addr.wrapping_add(u64::from(taken)), len - taken);
        push(memory, &mut self.readable, rest, &mut self.merged)
    }

    /// There are no more descriptors.
    #[inline]
    pub(super) fn end(&mut self, memory: &Memory) -> Result<(), Fault> {
        if let Some((addr, len)) = self.last {
            let before = (addr, len - 1);
            push(memory, &mut self.writable, before, &mut self.merged)?;
            let status = addr.wrapping_add(u64::from(len - 1));
            memory.push(&mut self.status, status, 1)?;
        }
        Ok(())
    }
}

#[inline]
fn push(
    memory: &Memory,
    list: &mut GuestList,
    (addr, len): (u64, u32),
    merged: &mut u32,
) -> Result<(), Fault> {
    if len > 0 {
        let before = list.ranges();
        memory.push(list, addr, len)?;
        *merged += u32::from(list.ranges() == before);
    }
    Ok(())
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
