//! The receive buffers that the kernel picks from (`IORING_REGISTER_PBUF_RING`): idle connections
//! hold no memory.

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::IoUring;
use io_uring::types::BufRingEntry;

/// A ring of equal buffers shared with the kernel.
pub(crate) struct RecvRing {
    /// One mapping: the ring's entries, then the buffers.
    map: NonNull<u8>,
    map_len: usize,
    entries: u16,
    tail: u16,
}

impl RecvRing {
    /// Buffer group number; there is one group a ring.
    pub(crate) const GROUP: u16 = 0;
    /// Bytes of each buffer.
    pub(crate) const BUF_LEN: usize = 4096;

    /// Maps and registers `entries` (a power of two) buffers.
    ///
    /// # Errors
    /// When the kernel refuses the memory or the registration (before 5.19).
    pub(crate) fn register(ring: &IoUring, entries: u16) -> io::Result<RecvRing> {
        let ring_len = ring_len(entries);
        let map_len = ring_len + usize::from(entries) * Self::BUF_LEN;
        // SAFETY: an anonymous mapping at an address of the kernel's choice.
        let map = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                map_len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if map == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let map = NonNull::new(map.cast::<u8>()).ok_or_else(io::Error::last_os_error)?;
        let mut recv_ring = RecvRing {
            map,
            map_len,
            entries,
            tail: 0,
        };
        // SAFETY: the mapping is page-aligned, holds `entries` entries, and is unmapped only after
        // the ring is closed: the backend drops its ring first.
        unsafe {
            ring.submitter().register_buf_ring_with_flags(
                map.as_ptr() as u64,
                entries,
                Self::GROUP,
                0,
            )?;
        }
        for buffer in 0..entries {
            recv_ring.recycle(buffer);
        }
        Ok(recv_ring)
    }

    /// The buffer's first byte.
    pub(crate) fn buffer(&self, buffer: u16) -> *const u8 {
        assert!(buffer < self.entries, "the kernel names buffers that exist");
        let offset = ring_len(self.entries) + usize::from(buffer) * Self::BUF_LEN;
        self.map.as_ptr().wrapping_add(offset)
    }

    /// Gives a buffer to the kernel.
    pub(crate) fn recycle(&mut self, buffer: u16) {
        let addr = self.buffer(buffer) as u64;
        let place = usize::from(self.tail & (self.entries - 1));
        #[expect(clippy::cast_ptr_alignment, reason = "a mapping starts on a page")]
        let base = self.map.as_ptr().cast::<BufRingEntry>();
        // SAFETY: `place` is below `entries`; the kernel does not read entries at or past the tail.
        let entry = unsafe { &mut *base.add(place) };
        entry.set_addr(addr);
        entry.set_len(Self::BUF_LEN as u32);
        entry.set_bid(buffer);
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: `base` is the ring's first entry, where the tail lies; it is 2-byte aligned and
        // shared with the kernel, hence the atomic store that publishes the entry.
        unsafe {
            let tail = BufRingEntry::tail(base).cast::<AtomicU16>();
            (*tail).store(self.tail, Ordering::Release);
        }
    }
}

impl Drop for RecvRing {
    fn drop(&mut self) {
        // SAFETY: mapped by `register` with this length.
        unsafe { libc::munmap(self.map.as_ptr().cast(), self.map_len) };
    }
}

/// Bytes of the entries, in whole pages.
fn ring_len(entries: u16) -> usize {
    (usize::from(entries) * size_of::<BufRingEntry>()).next_multiple_of(4096)
}
