//! Buffers that outlive the operations on them.
//!
//! A [`DmaBuf`] comes from its shard's pool: one arena, mapped once, registered with the ring
//! where the kernel allows it, cut by a buddy allocator into powers of two from 4 KiB to 2 MiB.
//! The pool never grows: an empty pool is [`NoMem`]. A buffer may travel to another shard and is
//! returned from there without a lock; the arena is unmapped when its last buffer is gone.

use std::cell::RefCell;
use std::fmt;
use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;
use std::sync::Arc;

use crate::mailbox::{ReturnNode, ReturnStack};

/// Smallest buffer, and the alignment of all of them: the O_DIRECT block.
pub const BLOCK: usize = 4096;
/// Largest buffer.
pub const MAX_BUF: usize = BLOCK << (ORDERS - 1);
const ORDERS: usize = 10;
/// Bytes of a huge page.
const HUGE: usize = 2 << 20;

/// The pool has no buffer of that size left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the shard's buffer pool has no {wanted} bytes left")]
pub struct NoMem {
    /// Bytes asked for.
    pub wanted: usize,
}

/// Memory that an operation may read. See [`IoBufMut`] for memory that it may write.
///
/// # Safety
/// `as_ptr` stays valid for `len` bytes while the value lives, wherever it is moved.
pub unsafe trait IoBuf: 'static {
    /// First byte.
    fn as_ptr(&self) -> *const u8;
    /// Initialised bytes.
    fn len(&self) -> usize;
    /// Whether there are no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// The ring registration that covers the memory.
    fn registration(&self) -> Option<Registration> {
        None
    }
}

/// Memory that an operation may fill.
///
/// # Safety
/// As [`IoBuf`], and nothing else reads or writes the memory while the value is lent. All
/// `capacity` bytes are initialised, so that a length past what was received shows old bytes, not
/// undefined ones.
pub unsafe trait IoBufMut: IoBuf {
    /// First byte.
    fn as_mut_ptr(&mut self) -> *mut u8;
    /// Bytes that may be written.
    fn capacity(&self) -> usize;
    /// The operation filled the first `len` bytes.
    fn set_filled(&mut self, len: usize);
}

/// A registered buffer of one shard's ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Registration {
    /// Process-wide number of the shard whose ring knows the buffer.
    pub(crate) shard: u32,
    pub(crate) index: u16,
}

/// The arena shared by a pool and its buffers.
struct Arena {
    base: NonNull<u8>,
    len: usize,
    returned: ReturnStack,
    registration: Option<Registration>,
    owner: u32,
}

// SAFETY: the arena's memory is handed out in disjoint buffers; `returned` is a lock-free stack.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

impl Drop for Arena {
    fn drop(&mut self) {
        // SAFETY: mapped by `map_arena` with this length; no buffer holds the Arc any more.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// An aligned, pooled buffer. Its memory is always initialised (zeros or old bytes).
pub struct DmaBuf {
    ptr: NonNull<u8>,
    len: u32,
    order: u8,
    arena: Arc<Arena>,
}

// SAFETY: a DmaBuf owns its memory; returning it from another thread goes through `ReturnStack`.
unsafe impl Send for DmaBuf {}
// SAFETY: shared access only reads the bytes.
unsafe impl Sync for DmaBuf {}

impl DmaBuf {
    /// Bytes that fit.
    pub fn capacity(&self) -> usize {
        BLOCK << self.order
    }

    /// Sets how many bytes from the start are the buffer's content.
    ///
    /// # Panics
    /// When `len` is past the capacity.
    pub fn set_len(&mut self, len: usize) {
        assert!(
            len <= self.capacity(),
            "{len} bytes do not fit a buffer of {}",
            self.capacity()
        );
        self.len = len as u32;
    }

    /// Appends bytes.
    ///
    /// # Panics
    /// When they do not fit.
    pub fn extend_from_slice(&mut self, bytes: &[u8]) {
        let old = self.len as usize;
        self.set_len(old + bytes.len());
        self[old..].copy_from_slice(bytes);
    }

    /// Lends a part of the buffer to an operation.
    ///
    /// # Panics
    /// When the range is past the capacity.
    pub fn slice(self, range: Range<usize>) -> BufSlice {
        assert!(range.start <= range.end, "range {range:?} is reversed");
        assert!(
            range.end <= self.capacity(),
            "range {range:?} is past {}",
            self.capacity()
        );
        BufSlice { buf: self, range }
    }
}

impl Deref for DmaBuf {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the buffer owns `capacity` initialised bytes and `len` is at most that.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.len as usize) }
    }
}

impl DerefMut for DmaBuf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut self` is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.len as usize) }
    }
}

impl fmt::Debug for DmaBuf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DmaBuf")
            .field("len", &self.len)
            .field("cap", &self.capacity())
            .finish_non_exhaustive()
    }
}

impl Drop for DmaBuf {
    fn drop(&mut self) {
        let (ptr, order) = (self.ptr, self.order);
        let local = crate::shard::with_current(|shard| {
            shard.pool().owner() == self.arena.owner && shard.pool().put_local(ptr, order)
        });
        if local != Some(true) {
            #[expect(clippy::cast_ptr_alignment, reason = "buffers are aligned to 4 KiB")]
            let node = ptr.as_ptr().cast::<ReturnNode>();
            // SAFETY: we own at least 4 KiB, aligned to 4 KiB, and give it away.
            unsafe { self.arena.returned.push(node, order) };
        }
    }
}

// SAFETY: the memory is in the arena, whatever moves; the Arc keeps it mapped.
unsafe impl IoBuf for DmaBuf {
    fn as_ptr(&self) -> *const u8 {
        self.ptr.as_ptr()
    }
    fn len(&self) -> usize {
        self.len as usize
    }
    fn registration(&self) -> Option<Registration> {
        self.arena.registration
    }
}

// SAFETY: the buffer owns its memory exclusively; the arena is zeroed when mapped.
unsafe impl IoBufMut for DmaBuf {
    fn as_mut_ptr(&mut self) -> *mut u8 {
        self.ptr.as_ptr()
    }
    fn capacity(&self) -> usize {
        DmaBuf::capacity(self)
    }
    fn set_filled(&mut self, len: usize) {
        self.set_len(len);
    }
}

/// A part of a [`DmaBuf`], lent to an operation; [`BufSlice::into_inner`] gives the whole back.
#[derive(Debug)]
pub struct BufSlice {
    buf: DmaBuf,
    range: Range<usize>,
}

impl BufSlice {
    /// The whole buffer, its length as it was.
    pub fn into_inner(self) -> DmaBuf {
        self.buf
    }
}

// SAFETY: the range lies inside the buffer's capacity (checked by `slice`).
unsafe impl IoBuf for BufSlice {
    fn as_ptr(&self) -> *const u8 {
        self.buf.ptr.as_ptr().wrapping_add(self.range.start)
    }
    fn len(&self) -> usize {
        self.range.len()
    }
    fn registration(&self) -> Option<Registration> {
        self.buf.arena.registration
    }
}

// SAFETY: as above; the slice owns the whole buffer.
unsafe impl IoBufMut for BufSlice {
    fn as_mut_ptr(&mut self) -> *mut u8 {
        self.buf.ptr.as_ptr().wrapping_add(self.range.start)
    }
    fn capacity(&self) -> usize {
        self.range.len()
    }
    fn set_filled(&mut self, len: usize) {
        let end = self.range.start + len.min(self.range.len());
        if end > self.buf.len as usize {
            self.buf.set_len(end);
        }
    }
}

// SAFETY: a Vec's heap memory does not move with the Vec.
unsafe impl IoBuf for Vec<u8> {
    fn as_ptr(&self) -> *const u8 {
        Vec::as_ptr(self)
    }
    fn len(&self) -> usize {
        Vec::len(self)
    }
}

// SAFETY: as above; the capacity offered is the initialised length, so nothing uninitialised is
// ever exposed.
unsafe impl IoBufMut for Vec<u8> {
    fn as_mut_ptr(&mut self) -> *mut u8 {
        Vec::as_mut_ptr(self)
    }
    fn capacity(&self) -> usize {
        Vec::len(self)
    }
    fn set_filled(&mut self, len: usize) {
        self.truncate(len);
    }
}

// SAFETY: boxed bytes do not move.
unsafe impl IoBuf for Box<[u8]> {
    fn as_ptr(&self) -> *const u8 {
        <[u8]>::as_ptr(self)
    }
    fn len(&self) -> usize {
        <[u8]>::len(self)
    }
}

// SAFETY: statics live for ever.
unsafe impl IoBuf for &'static [u8] {
    fn as_ptr(&self) -> *const u8 {
        <[u8]>::as_ptr(self)
    }
    fn len(&self) -> usize {
        <[u8]>::len(self)
    }
}

// SAFETY: the Arc keeps the bytes in place while the value lives; reads only.
unsafe impl IoBuf for Arc<[u8]> {
    fn as_ptr(&self) -> *const u8 {
        <[u8]>::as_ptr(self)
    }
    fn len(&self) -> usize {
        <[u8]>::len(self)
    }
}

/// Use of a pool, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolUse {
    /// Size of the arena in bytes.
    pub total: usize,
    /// Bytes in buffers that are out.
    pub used: usize,
    /// Requests refused because no buffer was left.
    pub refused: u64,
    /// Whether the kernel accepted the arena as a registered buffer.
    pub registered: bool,
}

/// One shard's buffers.
pub(crate) struct Pool {
    arena: Arc<Arena>,
    free: RefCell<Free>,
}

/// Free lists by order. Offsets are in blocks from the arena's base.
struct Free {
    lists: [Vec<u32>; ORDERS],
    /// For each block that starts a free buffer: its order and its place in that list.
    starts: Box<[Option<(u8, u32)>]>,
    used: usize,
    refused: u64,
}

impl Pool {
    /// Maps an arena of `bytes` rounded up to whole 2 MiB, for the shard with process-wide number
    /// `owner`. `register` offers the arena to the ring and says under which index it is known.
    ///
    /// # Errors
    /// When the kernel refuses the mapping.
    pub(crate) fn new(
        bytes: usize,
        owner: u32,
        register: impl FnOnce(*mut u8, usize) -> Option<u16>,
    ) -> std::io::Result<Pool> {
        let len = bytes.next_multiple_of(MAX_BUF).max(MAX_BUF);
        let base = map_arena(len)?;
        let registration = register(base.as_ptr(), len).map(|index| Registration {
            shard: owner,
            index,
        });
        let arena = Arena {
            base,
            len,
            returned: ReturnStack::default(),
            registration,
            owner,
        };
        let blocks = len / BLOCK;
        let mut free = Free {
            lists: Default::default(),
            starts: vec![None; blocks].into_boxed_slice(),
            used: 0,
            refused: 0,
        };
        let top = (ORDERS - 1) as u8;
        for start in (0..blocks as u32).step_by(1 << top).rev() {
            free.push(start, top);
        }
        Ok(Pool {
            arena: Arc::new(arena),
            free: RefCell::new(free),
        })
    }

    /// Takes in what other shards gave back.
    pub(crate) fn take_back(&self) {
        self.collect(&mut self.free.borrow_mut());
    }

    fn collect(&self, free: &mut Free) {
        self.arena.returned.take_all(|node, order| {
            let start = self.block_of(node.cast());
            free.put(start, order);
        });
    }

    pub(crate) fn owner(&self) -> u32 {
        self.arena.owner
    }

    /// A buffer of at least `len` bytes, its length set to `len`.
    pub(crate) fn take(&self, len: usize) -> Result<DmaBuf, NoMem> {
        let order = order_of(len).ok_or(NoMem { wanted: len })?;
        let mut free = self.free.borrow_mut();
        let mut found = free.take(order);
        if found.is_none() {
            self.collect(&mut free);
            found = free.take(order);
        }
        let Some(start) = found else {
            free.refused += 1;
            return Err(NoMem { wanted: len });
        };
        free.used += BLOCK << order;
        // SAFETY: `start` is a block inside the arena.
        let ptr = unsafe { self.arena.base.add(start as usize * BLOCK) };
        Ok(DmaBuf {
            ptr,
            len: len as u32,
            order,
            arena: Arc::clone(&self.arena),
        })
    }

    /// Takes a local buffer back at once; false when the lists are in use further up the stack.
    fn put_local(&self, ptr: NonNull<u8>, order: u8) -> bool {
        match self.free.try_borrow_mut() {
            Ok(mut free) => {
                free.put(self.block_of(ptr.as_ptr()), order);
                true
            }
            Err(_) => false,
        }
    }

    fn block_of(&self, ptr: *mut u8) -> u32 {
        ((ptr as usize - self.arena.base.as_ptr() as usize) / BLOCK) as u32
    }

    pub(crate) fn usage(&self) -> PoolUse {
        let free = self.free.borrow();
        PoolUse {
            total: self.arena.len,
            used: free.used,
            refused: free.refused,
            registered: self.arena.registration.is_some(),
        }
    }
}

impl Free {
    fn push(&mut self, start: u32, order: u8) {
        let list = &mut self.lists[order as usize];
        self.starts[start as usize] = Some((order, list.len() as u32));
        list.push(start);
    }

    fn remove(&mut self, start: u32, order: u8, place: u32) {
        let list = &mut self.lists[order as usize];
        list.swap_remove(place as usize);
        if let Some(moved) = list.get(place as usize) {
            self.starts[*moved as usize] = Some((order, place));
        }
        self.starts[start as usize] = None;
    }

    fn take(&mut self, order: u8) -> Option<u32> {
        let found = (order as usize..ORDERS).find(|o| !self.lists[*o].is_empty())? as u8;
        let start = self.lists[found as usize].pop()?;
        self.starts[start as usize] = None;
        for half in (order..found).rev() {
            self.push(start + (1 << half), half);
        }
        Some(start)
    }

    /// Frees a buffer and joins it with its buddies.
    fn put(&mut self, start: u32, order: u8) {
        self.used -= BLOCK << order;
        let (mut start, mut order) = (start, order);
        while (order as usize) < ORDERS - 1 {
            let buddy = start ^ (1 << order);
            match self.starts.get(buddy as usize).copied().flatten() {
                Some((found, place)) if found == order => {
                    self.remove(buddy, order, place);
                    start = start.min(buddy);
                    order += 1;
                }
                _ => break,
            }
        }
        self.push(start, order);
    }
}

fn order_of(len: usize) -> Option<u8> {
    let blocks = len.max(1).div_ceil(BLOCK).next_power_of_two();
    let order = blocks.trailing_zeros() as usize;
    (order < ORDERS).then_some(order as u8)
}

/// Maps an arena, in huge pages where the kernel has them: a transfer is then one run of memory to the kernel and
/// to the device, where it would be as many as it has pages.
fn map_arena(len: usize) -> std::io::Result<NonNull<u8>> {
    let whole = len + HUGE;
    // SAFETY: an anonymous private mapping at an address of the kernel's choice touches nothing
    // that exists.
    let base = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            whole,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if base == libc::MAP_FAILED {
        return Err(std::io::Error::last_os_error());
    }
    let before = base.align_offset(HUGE);
    let arena = base.wrapping_byte_add(before);
    // SAFETY: they are parts of the mapping; nobody has what lies around the arena. An advice changes no
    // byte, and a kernel without huge pages refuses it.
    unsafe {
        if before > 0 {
            libc::munmap(base, before);
        }
        libc::munmap(arena.wrapping_byte_add(len), HUGE - before);
        libc::madvise(arena, len, libc::MADV_HUGEPAGE);
    }
    NonNull::new(arena.cast()).ok_or_else(std::io::Error::last_os_error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;

    fn pool(bytes: usize) -> Pool {
        Pool::new(bytes, u32::MAX, |_, _| None).unwrap()
    }

    #[test]
    fn buffers_are_aligned_disjoint_and_bounded() {
        let pool = pool(2 * MAX_BUF);
        let mut rng = Rng::new(5);
        let mut out: Vec<DmaBuf> = Vec::new();
        for _ in 0..10_000 {
            if rng.once_in(2) && !out.is_empty() {
                out.swap_remove(rng.below(out.len() as u64) as usize);
            } else if let Ok(buf) = pool.take(1 + rng.below(MAX_BUF as u64) as usize) {
                out.push(buf);
            }
            let mut spans: Vec<(usize, usize)> = out
                .iter()
                .map(|b| (b.ptr.as_ptr() as usize, b.capacity()))
                .collect();
            spans.sort_unstable();
            assert!(spans.iter().all(|(start, _)| start % BLOCK == 0));
            assert!(spans.windows(2).all(|w| w[0].0 + w[0].1 <= w[1].0));
        }
    }

    #[test]
    fn all_memory_joins_again_after_use() {
        let pool = pool(MAX_BUF);
        let out: Vec<DmaBuf> = (0..MAX_BUF / BLOCK)
            .map(|_| pool.take(1).unwrap())
            .collect();
        assert_eq!(pool.take(1).unwrap_err(), NoMem { wanted: 1 });
        drop(out);
        assert_eq!(pool.take(MAX_BUF).unwrap().capacity(), MAX_BUF);
        assert_eq!(pool.usage().refused, 1);
    }

    #[test]
    fn a_request_past_the_largest_class_is_refused() {
        assert!(pool(MAX_BUF).take(MAX_BUF + 1).is_err());
    }
}
