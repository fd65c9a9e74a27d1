//! A part of a memory, lent to a socket: bytes arrive where a device will take them from, and leave from
//! where it put them.

use std::io;

use super::{GuestIov, GuestMem};
use crate::buf::{IoBuf, IoBufMut};

/// A range of a [`GuestMem`] on its way through a socket. It keeps the mapping alive.
#[derive(Debug)]
pub struct GuestPart {
    mem: GuestMem,
    offset: u64,
    room: usize,
    len: usize,
}

impl GuestMem {
    /// Lends a range to a socket.
    ///
    /// # Errors
    /// `InvalidInput` when the range is outside of the memory.
    pub fn part(&self, range: GuestIov) -> io::Result<GuestPart> {
        self.place(range.offset, range.len as usize)?;
        Ok(GuestPart {
            mem: self.clone(),
            offset: range.offset,
            room: range.len as usize,
            len: range.len as usize,
        })
    }
}

impl GuestPart {
    /// What the last operation did not fill; `None` when it filled all.
    pub fn rest(self) -> Option<GuestPart> {
        let left = self.room - self.len;
        (left > 0).then(|| GuestPart {
            mem: self.mem,
            offset: self.offset + self.len as u64,
            room: left,
            len: left,
        })
    }

    fn addr(&self) -> *mut u8 {
        // SAFETY: the offset is inside the mapping: checked when the part was made.
        unsafe { self.mem.mapping.base.add(self.offset as usize) }.as_ptr()
    }
}

// SAFETY: the range was checked against the mapping, which the part keeps in its place; what is mapped
// is initialised (zeros at first).
unsafe impl IoBuf for GuestPart {
    fn as_ptr(&self) -> *const u8 {
        self.addr()
    }
    fn len(&self) -> usize {
        self.len
    }
}

// SAFETY: as above. No reference to the memory exists anywhere, as it may change at any time; others
// that copy from it meanwhile see old bytes or new ones.
unsafe impl IoBufMut for GuestPart {
    fn as_mut_ptr(&mut self) -> *mut u8 {
        self.addr()
    }
    fn capacity(&self) -> usize {
        self.room
    }
    fn set_filled(&mut self, len: usize) {
        self.len = len.min(self.room);
    }
}
