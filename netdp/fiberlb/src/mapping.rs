//! A map's array in this process's memory, and batches of a hash: what aya does not have.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use aya::Pod;

/// A `BPF_F_MMAPABLE` array whose entries are 8 bytes, shared with the kernel.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<AtomicU64>,
    entries: usize,
    bytes: usize,
}

impl Mapping {
    /// Maps an array with `entries` entries of 8 bytes.
    ///
    /// # Errors
    ///
    /// The system's, when the map is not of this kind or is smaller.
    pub fn new(map: BorrowedFd<'_>, entries: usize) -> io::Result<Self> {
        // The kernel takes whole pages; it knows where its array ends.
        // SAFETY: no preconditions.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
        let bytes = (entries * size_of::<u64>()).next_multiple_of(page);
        // SAFETY: a new mapping, at an address that the kernel chooses, touches no memory of ours.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).expect("mmap gives no null pointer");
        Ok(Self {
            start,
            entries,
            bytes,
        })
    }

    /// Its entries. The kernel and other processes change them at any time, hence atomics.
    pub fn entries(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is page-aligned, holds at least so many entries and lives as long as self;
        // AtomicU64 has the layout of u64, for which any bytes are valid, and may be shared.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.entries) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, whole, and nothing borrows it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes) };
    }
}

// SAFETY: what it points to is shared memory that is only touched through atomics.
unsafe impl Send for Mapping {}

/// The commands of bpf(2) that are used here.
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;

/// The part of `union bpf_attr` for one entry.
#[repr(C)]
#[derive(Default)]
struct EntryAttr {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Puts a map into an array of maps. The kernel waits until no program has the old one in its hands, which
/// takes some milliseconds.
///
/// # Errors
///
/// The system's.
pub fn put_map(outer: BorrowedFd<'_>, at: u32, inner: BorrowedFd<'_>) -> io::Result<()> {
    let value = inner.as_raw_fd() as u32;
    let mut attr = EntryAttr {
        map_fd: outer.as_raw_fd() as u32,
        key: std::ptr::from_ref(&at) as u64,
        value: std::ptr::from_ref(&value) as u64,
        ..EntryAttr::default()
    };
    // SAFETY: the pointers are to live words of this frame, which is what keys and values of arrays of maps
    // are; the kernel refuses maps of other kinds.
    let done = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_MAP_UPDATE_ELEM,
            std::ptr::from_mut(&mut attr),
            size_of::<EntryAttr>(),
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The part of `union bpf_attr` for batches.
#[repr(C)]
#[derive(Default)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Where a walk over a hash stands.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cursor {
    bucket: u32,
    begun: bool,
}

/// Reads the next entries of a hash: up to as many as both slices hold. Gives how many, and whether that
/// was the end. Entries that come and go meanwhile may be missed.
///
/// # Errors
///
/// The system's. `ENOSPC` when one bucket holds more than fits: larger slices are needed.
pub fn lookup_batch<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    cursor: &mut Cursor,
    keys: &mut [K],
    values: &mut [V],
) -> io::Result<(usize, bool)> {
    let mut next = 0_u32;
    let mut attr = BatchAttr {
        in_batch: if cursor.begun {
            std::ptr::from_ref(&cursor.bucket) as u64
        } else {
            0
        },
        out_batch: std::ptr::from_mut(&mut next) as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count: keys.len().min(values.len()) as u32,
        map_fd: map.as_raw_fd() as u32,
        ..BatchAttr::default()
    };
    // SAFETY: the pointers are to live memory of this frame and the slices', which hold `count` entries
    // of the map's sizes (aya checked them when the map was opened); any bytes are valid for Pod types.
    let done = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_MAP_LOOKUP_BATCH,
            std::ptr::from_mut(&mut attr),
            size_of::<BatchAttr>(),
        )
    };
    let end = if done == 0 {
        false
    } else {
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::ENOENT) {
            return Err(error);
        }
        true
    };
    *cursor = Cursor {
        bucket: next,
        begun: true,
    };
    Ok((attr.count as usize, end))
}
