//! Memory that is not ours alone: a guest's RAM, mapped from a file descriptor. Operations read and
//! write it in place; the mapping lives until the last operation on it has completed.
//!
//! Invariants:
//! - Every access is inside a mapping: offsets are checked when a range is made.
//! - Whoever shares the memory may change it at any time. So bytes are copied out before they are
//!   looked at, and what is not copied (an index, a flag) is an atomic.
//! - Whoever shares it may also cut the file short. The fault of an access past its end does not
//!   kill the process: the mapping becomes zeros of our own and is broken from then on
//!   ([`GuestMem::is_broken`]), and every checked copy of it is an error.

mod fault;
mod list;
mod part;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU64};

use fault::Guarded;

pub(crate) use list::IovBatch;
pub use list::{GuestList, IOV_MAX};
pub use part::GuestPart;

struct Mapping {
    /// The first byte that was asked for.
    base: NonNull<u8>,
    len: usize,
    /// What the kernel mapped around it.
    mapped: Guarded,
}

/// A shared mapping of another process's memory. Its bytes may change at any time, so they are
/// copied out before they are looked at.
#[derive(Clone)]
pub struct GuestMem {
    mapping: Rc<Mapping>,
}

impl std::fmt::Debug for GuestMem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GuestMem")
            .field("len", &self.mapping.len)
            .field("broken", &self.is_broken())
            .finish_non_exhaustive()
    }
}

/// A range of a [`GuestMem`], in bytes from its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestIov {
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub len: u32,
}

#[cold]
pub(super) fn invalid(why: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why.into())
}

impl GuestMem {
    /// Maps `len` bytes of `fd` (a memfd or hugetlbfs file) from `offset`, readable and writable.
    ///
    /// # Errors
    /// When the kernel refuses the mapping, or the file is shorter than the range.
    pub fn map(fd: BorrowedFd<'_>, offset: u64, len: usize) -> io::Result<GuestMem> {
        // SAFETY: fstat writes one stat; zeros are valid before it.
        let mut stat: libc::stat = unsafe { std::mem::zeroed() };
        // SAFETY: the descriptor is open (borrowed) and `stat` is writable.
        if unsafe { libc::fstat(fd.as_raw_fd(), &raw mut stat) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let end = offset.checked_add(len as u64);
        if len == 0 || end.is_none_or(|end| end > stat.st_size as u64) {
            return Err(invalid(format!(
                "region of {len} bytes at {offset} is past the file's {} bytes",
                stat.st_size
            )));
        }
        // A mapping begins and ends at pages of the file, which are larger than ours on hugetlbfs.
        let page = page_of(fd)?;
        let before = offset % page;
        let around = (before + len as u64)
            .checked_next_multiple_of(page)
            .and_then(|around| usize::try_from(around).ok())
            .ok_or_else(|| invalid("the region is too large"))?;
        let from = libc::off_t::try_from(offset - before)
            .map_err(|_| invalid("the region begins past the end of any file"))?;
        let mapped = Guarded::file(fd, from, around)?;
        // SAFETY: `before` is less than a page, and at least a page is mapped.
        let base = unsafe { mapped.base().add(before as usize) };
        Ok(GuestMem::over(mapped, base, len))
    }

    /// Memory of our own in the form of a guest's: for front ends without a guest.
    ///
    /// # Errors
    /// When `len` is 0 or the kernel has no memory.
    pub fn anonymous(len: usize) -> io::Result<GuestMem> {
        if len == 0 {
            return Err(invalid("an empty range is not mapped"));
        }
        let mapped = Guarded::anonymous(len)?;
        let base = mapped.base();
        Ok(GuestMem::over(mapped, base, len))
    }

    fn over(mapped: Guarded, base: NonNull<u8>, len: usize) -> GuestMem {
        GuestMem {
            mapping: Rc::new(Mapping { base, len, mapped }),
        }
    }

    /// Bytes mapped.
    pub fn len(&self) -> usize {
        self.mapping.len
    }

    /// Never true: an empty range is not mapped.
    pub fn is_empty(&self) -> bool {
        self.mapping.len == 0
    }

    /// Whether the file behind was cut short under the mapping: what is read since may be zeros
    /// that nobody wrote, and what is written is lost.
    #[inline]
    pub fn is_broken(&self) -> bool {
        self.mapping.mapped.is_broken()
    }

    /// Copies bytes from `offset` on out of the memory, until `into` is full.
    ///
    /// # Errors
    /// `InvalidInput` outside of the memory, `UnexpectedEof` when it is broken.
    #[inline]
    pub fn copy_out(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let from = self.place(offset, into.len())?;
        // SAFETY: the range is mapped (checked above), `into` is writable for its length and no
        // part of the mapping: no reference to that is ever given out.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), into.as_mut_ptr(), into.len()) };
        self.whole()
    }

    /// Copies bytes into the memory at `offset`.
    ///
    /// # Errors
    /// As [`GuestMem::copy_out`].
    #[inline]
    pub fn copy_in(&self, offset: u64, from: &[u8]) -> io::Result<()> {
        let into = self.place(offset, from.len())?;
        // SAFETY: as in `copy_out`, the other way.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), into.as_ptr(), from.len()) };
        self.whole()
    }

    /// Copies bytes from `offset` on into other memory.
    ///
    /// # Errors
    /// As [`GuestMem::copy_out`], of this memory; whether the other one is broken is not looked at.
    #[inline]
    fn copy_to(&self, offset: u64, other: &GuestMem, at: u64, len: usize) -> io::Result<()> {
        let (from, into) = (self.place(offset, len)?, other.place(at, len)?);
        // SAFETY: both ranges are mapped (checked above) and writable; they may be the same memory. No
        // reference to either is ever given out.
        unsafe { std::ptr::copy(from.as_ptr(), into.as_ptr(), len) };
        self.whole()
    }

    /// Writes zeros to `len` bytes at `offset`.
    ///
    /// # Errors
    /// As [`GuestMem::copy_out`].
    pub fn fill_zero(&self, offset: u64, len: usize) -> io::Result<()> {
        let into = self.place(offset, len)?;
        // SAFETY: the range is mapped (checked above) and writable.
        unsafe { std::ptr::write_bytes(into.as_ptr(), 0, len) };
        self.whole()
    }

    /// A part of the memory that two sides work on by atomics, such as a ring.
    ///
    /// # Errors
    /// `InvalidInput` when it is outside of the memory or does not begin at a multiple of `align`.
    pub fn window(&self, offset: u64, len: usize, align: usize) -> io::Result<GuestWindow> {
        let base = self.place(offset, len)?;
        if !base.addr().get().is_multiple_of(align) {
            return Err(invalid(format!(
                "offset {offset} is no multiple of {align}"
            )));
        }
        Ok(GuestWindow {
            base,
            len,
            mem: self.clone(),
        })
    }

    #[inline]
    fn place(&self, offset: u64, len: usize) -> io::Result<NonNull<u8>> {
        let end = offset.checked_add(len as u64);
        if end.is_none_or(|end| end > self.mapping.len as u64) {
            return Err(self.outside(offset, len as u64));
        }
        // SAFETY: the offset is inside the mapping, or one past its end (checked above).
        Ok(unsafe { self.mapping.base.add(offset as usize) })
    }

    #[cold]
    fn outside(&self, offset: u64, len: u64) -> io::Error {
        invalid(format!(
            "{len} bytes at {offset} are outside the guest's {} bytes",
            self.mapping.len
        ))
    }

    /// # Errors
    /// `UnexpectedEof` when it is broken.
    #[inline]
    pub(crate) fn whole(&self) -> io::Result<()> {
        if self.is_broken() {
            return Err(cut_short());
        }
        Ok(())
    }
}

#[cold]
fn cut_short() -> io::Error {
    io::Error::new(
        io::ErrorKind::UnexpectedEof,
        "the file behind the guest's memory was cut short",
    )
}

/// The size of the pages of which a file's mappings consist.
fn page_of(fd: BorrowedFd<'_>) -> io::Result<u64> {
    // SAFETY: fstatfs writes one statfs; zeros are valid before it.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open (borrowed) and `stat` is writable.
    if unsafe { libc::fstatfs(fd.as_raw_fd(), &raw mut stat) } != 0 {
        return Err(io::Error::last_os_error());
    }
    if stat.f_type == libc::HUGETLBFS_MAGIC {
        return Ok(stat.f_bsize as u64);
    }
    // SAFETY: sysconf takes an integer.
    Ok(unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as u64)
}

/// A part of a [`GuestMem`], checked once. It keeps the mapping alive.
#[derive(Clone)]
pub struct GuestWindow {
    base: NonNull<u8>,
    len: usize,
    mem: GuestMem,
}

impl std::fmt::Debug for GuestWindow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GuestWindow")
            .field("len", &self.len)
            .field("mem", &self.mem)
            .finish_non_exhaustive()
    }
}

/// Positions are in bytes from the window's start. All of these panic when a position is outside of
/// the window or not aligned for what is there: positions are ours, never the guest's.
impl GuestWindow {
    /// Bytes of the window.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where it lies in this process, for what works on the bytes themselves. Whoever shares them may change
    /// them at any time: no reference to them may be made.
    #[inline]
    pub fn as_ptr(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// Whether the memory is broken ([`GuestMem::is_broken`]).
    #[inline]
    pub fn is_broken(&self) -> bool {
        self.mem.is_broken()
    }

    /// The byte at `at`.
    #[inline]
    pub fn u8(&self, at: usize) -> &AtomicU8 {
        let ptr = self.at::<1>(at);
        // SAFETY: the byte is mapped for as long as the window lives, and shared memory is only
        // ever accessed by atomics or by copies of raw bytes.
        unsafe { AtomicU8::from_ptr(ptr) }
    }

    /// The 16 bits at `at`, in the byte order of this machine.
    #[inline]
    #[expect(clippy::cast_ptr_alignment, reason = "asserted before it is used")]
    pub fn u16(&self, at: usize) -> &AtomicU16 {
        let ptr = self.at::<2>(at).cast::<u16>();
        assert!(ptr.is_aligned(), "{at} is no place for 16 bits");
        // SAFETY: as in `u8`, for two bytes, which are aligned (asserted above).
        unsafe { AtomicU16::from_ptr(ptr) }
    }

    /// The 64 bits at `at`, in the byte order of this machine.
    #[inline]
    #[expect(clippy::cast_ptr_alignment, reason = "asserted before it is used")]
    pub fn u64(&self, at: usize) -> &AtomicU64 {
        let ptr = self.at::<8>(at).cast::<u64>();
        assert!(ptr.is_aligned(), "{at} is no place for 64 bits");
        // SAFETY: as in `u8`, for eight bytes, which are aligned (asserted above).
        unsafe { AtomicU64::from_ptr(ptr) }
    }

    /// A copy of the `N` bytes at `at`.
    #[inline]
    pub fn read<const N: usize>(&self, at: usize) -> [u8; N] {
        let ptr = self.at::<N>(at).cast::<[u8; N]>();
        // SAFETY: `N` bytes are mapped at `at` (checked by `at`); an array of bytes has no alignment.
        unsafe { ptr.read_volatile() }
    }

    /// Writes `N` bytes at `at`.
    #[inline]
    pub fn write<const N: usize>(&self, at: usize, bytes: [u8; N]) {
        let ptr = self.at::<N>(at).cast::<[u8; N]>();
        // SAFETY: as in `read`.
        unsafe { ptr.write_volatile(bytes) };
    }

    /// Says that bytes from `at` on are read soon, so that they come from the other side's cache meanwhile.
    /// Nothing is read, and outside of the window nothing happens.
    #[inline]
    pub fn read_soon(&self, at: usize) {
        if at < self.len {
            // SAFETY: the place is mapped (checked above).
            let place = unsafe { self.base.add(at) };
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a prefetch is a hint and never faults.
            unsafe {
                use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
                _mm_prefetch::<_MM_HINT_T0>(place.as_ptr().cast());
            }
            #[cfg(not(target_arch = "x86_64"))]
            let _ = place;
        }
    }

    #[inline]
    fn at<const N: usize>(&self, at: usize) -> *mut u8 {
        let fits = at <= self.len && self.len - at >= N;
        assert!(fits, "{N} bytes at {at} of a window of {}", self.len);
        // SAFETY: inside the window (asserted above), which is inside the mapping.
        unsafe { self.base.add(at) }.as_ptr()
    }
}
