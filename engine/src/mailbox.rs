//! How threads reach a shard: single-producer rings for calls between shards, a wake bitmap for
//! task wakers, a return stack for buffers, and the doorbell that ends a shard's sleep.
//!
//! Invariants, checked under loom (`engine/tests/loom.rs`):
//! - A message is received once, in the order of its sender, or the sender keeps it (full ring).
//! - A wake is never lost: after [`RemoteWakes::set`] and [`Doorbell::must_ring`] either the
//!   shard sees the bit before it sleeps, or the sender is told to ring.
//! - Nothing here blocks or allocates after construction.

#[cfg(loom)]
pub(crate) use loom::{
    cell::UnsafeCell,
    sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering, fence},
};
#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{
    AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering, fence,
};

use std::mem::MaybeUninit;

/// `std`'s cell with loom's closure interface.
#[cfg(not(loom))]
#[derive(Debug)]
pub(crate) struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

#[cfg(not(loom))]
impl<T> UnsafeCell<T> {
    pub(crate) fn new(value: T) -> Self {
        UnsafeCell(std::cell::UnsafeCell::new(value))
    }

    #[inline(always)]
    pub(crate) fn with_mut<R>(&self, f: impl FnOnce(*mut T) -> R) -> R {
        f(self.0.get())
    }
}

/// Keeps the two ends of a ring on cache lines of their own.
#[repr(align(128))]
struct Padded<T>(T);

/// A bounded queue from one thread to one other.
pub struct SpscRing<T> {
    slots: Box<[UnsafeCell<MaybeUninit<T>>]>,
    mask: usize,
    /// Next slot to read; written by the consumer.
    head: Padded<AtomicUsize>,
    /// Next slot to write; written by the producer.
    tail: Padded<AtomicUsize>,
}

// SAFETY: a slot is touched by the producer before the release store of `tail` that publishes it
// and by the consumer after the acquire load of it; `head` orders the way back. T moves threads.
unsafe impl<T: Send> Sync for SpscRing<T> {}
// SAFETY: as above; the ring owns its messages.
unsafe impl<T: Send> Send for SpscRing<T> {}

impl<T> SpscRing<T> {
    /// A ring of `capacity` messages.
    ///
    /// # Panics
    /// When `capacity` is not a power of two.
    pub fn new(capacity: usize) -> SpscRing<T> {
        assert!(
            capacity.is_power_of_two(),
            "ring capacity {capacity} is not a power of two"
        );
        SpscRing {
            slots: (0..capacity)
                .map(|_| UnsafeCell::new(MaybeUninit::uninit()))
                .collect(),
            mask: capacity - 1,
            head: Padded(AtomicUsize::new(0)),
            tail: Padded(AtomicUsize::new(0)),
        }
    }

    /// Sends `message`, or gives it back when the ring is full.
    ///
    /// # Safety
    /// No other thread sends on this ring at the same time.
    ///
    /// # Errors
    /// The message itself, when the ring is full.
    pub unsafe fn push(&self, message: T) -> Result<(), T> {
        let tail = self.tail.0.load(Ordering::Relaxed);
        let head = self.head.0.load(Ordering::Acquire);
        if tail.wrapping_sub(head) > self.mask {
            return Err(message);
        }
        // SAFETY: the slot is past `head`, so the consumer is done with it; we are the only
        // producer.
        self.slots[tail & self.mask].with_mut(|slot| unsafe { (*slot).write(message) });
        self.tail.0.store(tail.wrapping_add(1), Ordering::Release);
        Ok(())
    }

    /// Takes the oldest message.
    ///
    /// # Safety
    /// No other thread receives from this ring at the same time.
    pub unsafe fn pop(&self) -> Option<T> {
        let head = self.head.0.load(Ordering::Relaxed);
        let tail = self.tail.0.load(Ordering::Acquire);
        if head == tail {
            return None;
        }
        // SAFETY: the slot is before `tail`, so it was written; we are the only consumer.
        let message =
            self.slots[head & self.mask].with_mut(|slot| unsafe { (*slot).assume_init_read() });
        self.head.0.store(head.wrapping_add(1), Ordering::Release);
        Some(message)
    }

    /// Whether a message waits. The answer may be old by the time it is used.
    pub fn has_messages(&self) -> bool {
        self.head.0.load(Ordering::Relaxed) != self.tail.0.load(Ordering::Acquire)
    }
}

impl<T> Drop for SpscRing<T> {
    fn drop(&mut self) {
        // SAFETY: `&mut self`: nobody else sends or receives.
        while unsafe { self.pop() }.is_some() {}
    }
}

/// One bit a task: set by any thread's waker, taken by the shard. Setting twice is one wake.
pub struct RemoteWakes {
    /// Bit `i` of word `i / 64` is task `i`.
    words: Box<[AtomicU64]>,
    /// Bit `i` says that word `i` may be non-zero.
    summary: Box<[AtomicU64]>,
}

impl RemoteWakes {
    /// Bits for `tasks` tasks.
    pub fn new(tasks: usize) -> RemoteWakes {
        let words = tasks.div_ceil(64);
        RemoteWakes {
            words: (0..words).map(|_| AtomicU64::new(0)).collect(),
            summary: (0..words.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// Marks a task as woken; out-of-range numbers are ignored.
    pub fn set(&self, task: usize) {
        let word = task / 64;
        if word < self.words.len() {
            self.words[word].fetch_or(1 << (task % 64), Ordering::Release);
            self.summary[word / 64].fetch_or(1 << (word % 64), Ordering::Release);
        }
    }

    /// Whether any bit is set.
    pub fn any(&self) -> bool {
        self.summary
            .iter()
            .any(|word| word.load(Ordering::Acquire) != 0)
    }

    /// Clears all bits, calling `woken` with each task number in order.
    pub fn take(&self, mut woken: impl FnMut(usize)) {
        for (s, summary) in self.summary.iter().enumerate() {
            if summary.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let mut marked = summary.swap(0, Ordering::AcqRel);
            while marked != 0 {
                let word = s * 64 + marked.trailing_zeros() as usize;
                marked &= marked - 1;
                let mut bits = self.words[word].swap(0, Ordering::AcqRel);
                while bits != 0 {
                    woken(word * 64 + bits.trailing_zeros() as usize);
                    bits &= bits - 1;
                }
            }
        }
    }
}

/// The sleep protocol: the sleeper announces, fences, looks again; the sender publishes, fences,
/// looks at the announcement. One of the two sees the other.
pub struct Doorbell {
    asleep: AtomicBool,
}

impl Default for Doorbell {
    fn default() -> Doorbell {
        Doorbell {
            asleep: AtomicBool::new(false),
        }
    }
}

impl Doorbell {
    /// The shard is about to sleep. It must look at all its queues after this and before it
    /// sleeps.
    pub fn announce_sleep(&self) {
        self.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// The shard is awake again.
    pub fn awake(&self) {
        self.asleep.store(false, Ordering::Relaxed);
    }

    /// Called after something was published for the shard: whether its eventfd must be written.
    pub fn must_ring(&self) -> bool {
        fence(Ordering::SeqCst);
        // The plain load first keeps the line shared while the shard is awake.
        self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::Relaxed)
    }
}

/// Buffers on their way home: any thread pushes, the owner takes all at once, so a node cannot be
/// popped and pushed again under a reader (no ABA). The link lies in the first bytes of the
/// returned memory.
pub struct ReturnStack {
    top: AtomicPtr<ReturnNode>,
}

/// Header written into returned memory; at least 4 KiB of it, aligned to 4 KiB.
#[repr(C)]
pub struct ReturnNode {
    next: *mut ReturnNode,
    /// Size class of the buffer, as the pool numbers them.
    pub order: u8,
}

impl Default for ReturnStack {
    fn default() -> ReturnStack {
        ReturnStack {
            top: AtomicPtr::new(std::ptr::null_mut()),
        }
    }
}

impl ReturnStack {
    /// Pushes a buffer.
    ///
    /// # Safety
    /// `node` points to memory of at least `size_of::<ReturnNode>()` bytes, aligned for it, that
    /// the caller owns and now gives away.
    pub unsafe fn push(&self, node: *mut ReturnNode, order: u8) {
        let mut top = self.top.load(Ordering::Relaxed);
        loop {
            // SAFETY: the caller owns the memory until the exchange below publishes it.
            unsafe { node.write(ReturnNode { next: top, order }) };
            match self
                .top
                .compare_exchange_weak(top, node, Ordering::Release, Ordering::Relaxed)
            {
                Ok(_) => return,
                Err(now) => top = now,
            }
        }
    }

    /// Takes all buffers, newest first.
    pub fn take_all(&self, mut returned: impl FnMut(*mut ReturnNode, u8)) {
        if self.top.load(Ordering::Relaxed).is_null() {
            return;
        }
        let mut node = self.top.swap(std::ptr::null_mut(), Ordering::Acquire);
        while !node.is_null() {
            // SAFETY: nodes on the stack were written by `push` and are ours after the swap.
            let ReturnNode { next, order } = unsafe { node.read() };
            returned(node, order);
            node = next;
        }
    }
}
