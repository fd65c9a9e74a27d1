//! Memory that is not ours: a guest's RAM, mapped from a file descriptor. Operations read and
//! write it in place; the mapping lives until the last operation on it has completed.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::rc::Rc;

/// Most ranges in one vectored operation (the kernel's limit).
pub const IOV_MAX: usize = 1024;

struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `GuestMem::map` with this length; operations hold an Rc of it.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// A shared mapping of another process's memory. Its bytes may change at any time, so they are
/// copied out before they are looked at.
#[derive(Clone)]
pub struct GuestMem {
    mapping: Rc<Mapping>,
}

/// A range of a [`GuestMem`], in bytes from its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestIov {
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub len: u32,
}

impl GuestMem {
    /// Maps `len` bytes of `fd` (a memfd or hugetlbfs file) from `offset`, readable and writable.
    ///
    /// # Errors
    /// When the kernel refuses the mapping, or the file is shorter than the range: an access past
    /// its end would kill the process.
    pub fn map(fd: BorrowedFd<'_>, offset: u64, len: usize) -> io::Result<GuestMem> {
        // SAFETY: fstat writes one stat; zeros are valid before it.
        let mut stat: libc::stat = unsafe { std::mem::zeroed() };
        // SAFETY: the descriptor is open (borrowed) and `stat` is writable.
        if unsafe { libc::fstat(fd.as_raw_fd(), &raw mut stat) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let end = offset.checked_add(len as u64);
        if len == 0 || end.is_none_or(|end| end > stat.st_size as u64) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "region of {len} bytes at {offset} is past the file's {} bytes",
                    stat.st_size
                ),
            ));
        }
        // SAFETY: a new mapping at an address of the kernel's choice.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                offset.cast_signed(),
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or_else(io::Error::last_os_error)?;
        Ok(GuestMem {
            mapping: Rc::new(Mapping { base, len }),
        })
    }

    /// Bytes mapped.
    pub fn len(&self) -> usize {
        self.mapping.len
    }

    /// Never true: an empty range is not mapped.
    pub fn is_empty(&self) -> bool {
        self.mapping.len == 0
    }
}

/// The kernel's form of a list of ranges, checked, with the mapping it points into.
pub(crate) struct IovBatch {
    iov: Box<[libc::iovec]>,
    bytes: usize,
    _mapping: Rc<Mapping>,
}

impl IovBatch {
    pub(crate) fn new(mem: &GuestMem, ranges: &[GuestIov]) -> io::Result<IovBatch> {
        let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidInput, why);
        if ranges.is_empty() || ranges.len() > IOV_MAX {
            return Err(invalid(format!(
                "{} ranges; 1 to {IOV_MAX} are allowed",
                ranges.len()
            )));
        }
        let mut iov = Vec::with_capacity(ranges.len());
        let mut bytes = 0_usize;
        for range in ranges {
            let end = range.offset.checked_add(u64::from(range.len));
            if end.is_none_or(|end| end > mem.len() as u64) {
                return Err(invalid(format!(
                    "{range:?} is outside the guest's {} bytes",
                    mem.len()
                )));
            }
            // SAFETY: the offset is inside the mapping (checked above).
            let base = unsafe { mem.mapping.base.add(range.offset as usize) };
            iov.push(libc::iovec {
                iov_base: base.as_ptr().cast(),
                iov_len: range.len as usize,
            });
            bytes += range.len as usize;
        }
        Ok(IovBatch {
            iov: iov.into(),
            bytes,
            _mapping: Rc::clone(&mem.mapping),
        })
    }

    pub(crate) fn as_ptr(&self) -> *const libc::iovec {
        self.iov.as_ptr()
    }

    pub(crate) fn count(&self) -> u32 {
        self.iov.len() as u32
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}
