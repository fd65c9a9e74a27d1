//! Ranges of guest memory in the order of a transfer.

use std::io;
use std::ops::Range;
use std::rc::Rc;

use super::{GuestIov, GuestMem, GuestWindow, invalid};
use crate::backend::Span;

/// Most ranges in one vectored operation (the kernel's limit).
pub const IOV_MAX: usize = 1024;

/// Most bytes of one operation (the kernel's limit).
const IO_MAX: u64 = 0x7FFF_F000;

/// Ranges of guest memory, of one mapping or several, in the order of a transfer: where a read goes
/// to, or a write comes from. It keeps the mappings alive. One range needs no allocation, and ranges
/// that follow each other in memory are one. A clone allocates nothing.
///
/// Positions are in bytes from the start of the list.
#[derive(Clone, Debug, Default)]
pub struct GuestList {
    ranges: Ranges,
    bytes: u64,
}

/// One range lies in the list, more in memory that its clones share. A list is moved some ten times from a
/// ring to the kernel, so it is small.
#[derive(Clone, Debug, Default)]
enum Ranges {
    #[default]
    None,
    One(ListRange),
    Many(Rc<Vec<ListRange>>),
}

/// Ranges for which there is room at first, where there are several.
const MANY: usize = 16;

impl std::ops::Deref for Ranges {
    type Target = [ListRange];

    fn deref(&self) -> &[ListRange] {
        match self {
            Ranges::None => &[],
            Ranges::One(one) => std::slice::from_ref(one),
            Ranges::Many(many) => many,
        }
    }
}

impl Ranges {
    fn last_mut(&mut self) -> Option<&mut ListRange> {
        match self {
            Ranges::None => None,
            Ranges::One(one) => Some(one),
            Ranges::Many(many) => Rc::make_mut(many).last_mut(),
        }
    }

    fn push(&mut self, range: ListRange) {
        match std::mem::take(self) {
            Ranges::None => *self = Ranges::One(range),
            Ranges::One(one) => {
                let mut many = Vec::with_capacity(MANY);
                many.extend([one, range]);
                *self = Ranges::Many(Rc::new(many));
            }
            Ranges::Many(mut many) => {
                Rc::make_mut(&mut many).push(range);
                *self = Ranges::Many(many);
            }
        }
    }

    fn pop(&mut self) {
        match self {
            Ranges::Many(many) => drop(Rc::make_mut(many).pop()),
            Ranges::None | Ranges::One(_) => *self = Ranges::None,
        }
    }
}

/// A range that was checked against its memory.
#[derive(Clone, Debug)]
struct ListRange {
    mem: GuestMem,
    offset: u64,
    len: u64,
}

impl ListRange {
    fn addr(&self) -> *mut u8 {
        // SAFETY: the offset is inside the mapping: checked when the range was pushed.
        unsafe { self.mem.mapping.base.add(self.offset as usize) }.as_ptr()
    }
}

impl GuestList {
    /// An empty list.
    pub fn new() -> GuestList {
        GuestList::default()
    }

    /// Adds a range to the end.
    ///
    /// # Errors
    /// `InvalidInput` when the range is outside of the memory, or the list has [`IOV_MAX`] ranges.
    pub fn push(&mut self, mem: &GuestMem, range: GuestIov) -> io::Result<()> {
        mem.place(range.offset, range.len as usize)?;
        self.append(mem, range.offset, u64::from(range.len))
    }

    fn append(&mut self, mem: &GuestMem, offset: u64, len: u64) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        let joins = |last: &&mut ListRange| {
            last.offset + last.len == offset && Rc::ptr_eq(&last.mem.mapping, &mem.mapping)
        };
        if let Some(last) = self.ranges.last_mut().filter(joins) {
            last.len += len;
        } else if self.ranges.len() == IOV_MAX {
            return Err(invalid(format!("more than {IOV_MAX} ranges")));
        } else {
            self.ranges.push(ListRange {
                mem: mem.clone(),
                offset,
                len,
            });
        }
        self.bytes += len;
        Ok(())
    }

    /// Bytes of all ranges.
    #[inline]
    pub fn len(&self) -> u64 {
        self.bytes
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// Ranges that do not follow each other in memory.
    pub fn ranges(&self) -> usize {
        self.ranges.len()
    }

    /// Whether every range begins and ends at a multiple of `align` in this process's memory, as
    /// direct I/O wants it.
    pub fn is_aligned(&self, align: u32) -> bool {
        let align = align as usize;
        self.ranges.iter().all(|range| {
            range.addr().addr().is_multiple_of(align) && (range.len as usize).is_multiple_of(align)
        })
    }

    /// Whether every range is a whole number of units long.
    pub fn is_whole_in(&self, unit: u64) -> bool {
        self.ranges
            .iter()
            .all(|range| range.len.is_multiple_of(unit))
    }

    /// Whether the memory of any range is broken ([`GuestMem::is_broken`]).
    pub fn is_broken(&self) -> bool {
        self.ranges.iter().any(|range| range.mem.is_broken())
    }

    /// # Errors
    /// `UnexpectedEof` when the memory of any range is broken.
    pub(crate) fn whole(&self) -> io::Result<()> {
        self.ranges.iter().try_for_each(|range| range.mem.whole())
    }

    /// A part of the list.
    ///
    /// # Panics
    /// When the part is not inside the list.
    pub fn slice(&self, part: Range<u64>) -> GuestList {
        if part == (0..self.bytes) {
            return self.clone();
        }
        let mut list = GuestList::new();
        self.walk(part, |range, skip, len| {
            let taken = list.append(&range.mem, range.offset + skip, len);
            taken.expect("a part has no more ranges than the whole");
            Ok(())
        })
        .expect("nothing fails that was checked");
        list
    }

    /// Keeps the first `len` bytes alone, when it has more.
    pub fn truncate(&mut self, len: u64) {
        while self.bytes > len {
            let last = self.ranges.last_mut().expect("bytes are in ranges");
            let cut = (self.bytes - len).min(last.len);
            last.len -= cut;
            self.bytes -= cut;
            if last.len == 0 {
                self.ranges.pop();
            }
        }
    }

    /// Copies bytes from position `at` on out of the memory, until `into` is full.
    ///
    /// # Errors
    /// `UnexpectedEof` when the memory is broken.
    ///
    /// # Panics
    /// When the list has fewer bytes.
    pub fn copy_out(&self, at: u64, into: &mut [u8]) -> io::Result<()> {
        let mut left = into;
        self.walk(at..at + left.len() as u64, |range, skip, len| {
            let (part, rest) = std::mem::take(&mut left).split_at_mut(len as usize);
            left = rest;
            range.mem.copy_out(range.offset + skip, part)
        })
    }

    /// Copies bytes into the memory at position `at`.
    ///
    /// # Errors
    /// `UnexpectedEof` when the memory is broken.
    ///
    /// # Panics
    /// When the list has fewer bytes.
    pub fn copy_in(&self, at: u64, from: &[u8]) -> io::Result<()> {
        let mut left = from;
        self.walk(at..at + left.len() as u64, |range, skip, len| {
            let (part, rest) = left.split_at(len as usize);
            left = rest;
            range.mem.copy_in(range.offset + skip, part)
        })
    }

    /// Copies bytes of other memory, from `offset` on, until the list is full.
    ///
    /// # Errors
    /// `InvalidInput` when the memory has fewer, `UnexpectedEof` when that, not the list's, is broken.
    pub(crate) fn fill_from(&self, source: &GuestMem, offset: u64) -> io::Result<()> {
        let mut from = offset;
        self.walk(0..self.bytes, |range, skip, len| {
            let at = range.offset + skip;
            source.copy_to(from, &range.mem, at, len as usize)?;
            from += len;
            Ok(())
        })
    }

    /// Writes zeros to a part of the list.
    ///
    /// # Errors
    /// `UnexpectedEof` when the memory is broken.
    ///
    /// # Panics
    /// When the part is not inside the list.
    pub fn fill_zero(&self, part: Range<u64>) -> io::Result<()> {
        self.walk(part, |range, skip, len| {
            range.mem.fill_zero(range.offset + skip, len as usize)
        })
    }

    /// Shows each range of a part, for what works on the memory itself.
    ///
    /// # Errors
    /// `UnexpectedEof` when the memory is broken.
    ///
    /// # Panics
    /// When the part is not inside the list.
    pub fn each_window(
        &self,
        part: Range<u64>,
        mut piece: impl FnMut(GuestWindow),
    ) -> io::Result<()> {
        self.walk(part, |range, skip, len| {
            piece(range.mem.window(range.offset + skip, len as usize, 1)?);
            range.mem.whole()
        })
    }

    /// Shows the pieces of a part: a range, how much of its start to skip, and how much to take.
    fn walk(
        &self,
        part: Range<u64>,
        mut piece: impl FnMut(&ListRange, u64, u64) -> io::Result<()>,
    ) -> io::Result<()> {
        let inside = part.start <= part.end && part.end <= self.bytes;
        assert!(inside, "{part:?} of a list of {} bytes", self.bytes);
        let mut skip = part.start;
        let mut left = part.end - part.start;
        for range in self.ranges.iter() {
            if left == 0 {
                break;
            }
            let from = skip.min(range.len);
            skip -= from;
            let take = (range.len - from).min(left);
            if take > 0 {
                piece(range, from, take)?;
                left -= take;
            }
        }
        Ok(())
    }
}

/// A list on its way to the kernel: checked for size, in the kernel's form where it has more than
/// one range. The form lies on the heap: it must not move while the operation waits.
pub(crate) struct IovBatch {
    list: GuestList,
    iov: Box<[libc::iovec]>,
}

impl IovBatch {
    /// Whether one operation can move the list.
    pub(crate) fn check(list: &GuestList) -> io::Result<()> {
        if list.bytes == 0 || list.bytes > IO_MAX {
            let why = format!("{} bytes; 1 to {IO_MAX} are allowed", list.bytes);
            return Err(invalid(why));
        }
        Ok(())
    }

    pub(crate) fn new(list: GuestList) -> IovBatch {
        let iov = if list.ranges.len() == 1 {
            Box::default()
        } else {
            let entries = list.ranges.iter().map(|range| libc::iovec {
                iov_base: range.addr().cast(),
                iov_len: range.len as usize,
            });
            entries.collect()
        };
        IovBatch { list, iov }
    }

    /// The one range, when it is one.
    pub(crate) fn span(&self) -> Option<Span> {
        let [range] = &self.list.ranges[..] else {
            return None;
        };
        Some(Span {
            ptr: range.addr(),
            len: range.len as u32,
            fixed: None,
        })
    }

    pub(crate) fn as_ptr(&self) -> *const libc::iovec {
        self.iov.as_ptr()
    }

    pub(crate) fn count(&self) -> u32 {
        self.iov.len() as u32
    }

    pub(crate) fn bytes(&self) -> u32 {
        self.list.bytes as u32
    }

    pub(crate) fn into_list(self) -> GuestList {
        self.list
    }
}
