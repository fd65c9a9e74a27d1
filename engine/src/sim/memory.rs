//! The memory of ops in flight: the simulator's only unsafe code. It copies between an op's
//! memory and owned bytes, never keeps a pointer, and touches an op only through its [`Flight`].

use crate::backend::{Addr, Op, RawHandle, SlotId, SockAddrBuf};

use super::disk::Inode;
use super::world::ShardKey;

/// What an op works on, resolved when it was submitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    File {
        inode: Inode,
        direct: bool,
        write: bool,
    },
    Socket(u64),
    Event(RawHandle),
    None,
}

/// An op that has not seen its last completion. That its memory is still valid follows from the
/// contract of [`crate::backend`]: the world drops the flight before it posts that completion.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) shard: ShardKey,
    pub(super) slot: SlotId,
    pub(super) target: Target,
    /// What a sync, or the sync half of a write, has to reach.
    pub(super) upto: u64,
    /// The write of a `WriteThenSync` is done, its sync in flight.
    pub(super) syncing: bool,
    /// Bytes of a stream send that are on their way already.
    pub(super) sent: usize,
    op: Op,
}

impl Flight {
    /// # Safety
    /// `op` was submitted to a backend and has not been answered for the last time: all memory
    /// it names is valid until the world posts that answer.
    pub(super) unsafe fn new(shard: ShardKey, slot: SlotId, op: Op, target: Target) -> Flight {
        Flight {
            shard,
            slot,
            target,
            upto: 0,
            syncing: false,
            sent: 0,
            op,
        }
    }

    pub(super) fn op(&self) -> &Op {
        &self.op
    }

    /// The op's buffers, in order, as pointer and length.
    fn buffers(&self) -> Vec<(*mut u8, usize)> {
        match &self.op {
            Op::Read { span, .. }
            | Op::Write { span, .. }
            | Op::WriteThenSync { span, .. }
            | Op::Recv { span, .. }
            | Op::Send { span, .. } => vec![(span.ptr, span.len as usize)],
            Op::ReadVectored { iov, count, .. }
            | Op::WriteVectored { iov, count, .. }
            | Op::SendVectored { iov, count, .. } => (0..*count as usize)
                .map(|index| {
                    // SAFETY: the op is in flight (type invariant), so `iov` points to `count`
                    // initialised entries, and `index` is below `count`.
                    let entry = unsafe { iov.add(index).read() };
                    (entry.iov_base.cast(), entry.iov_len)
                })
                .collect(),
            _ => Vec::new(),
        }
    }

    /// Bytes that the op's buffers hold.
    pub(super) fn capacity(&self) -> usize {
        self.buffers().iter().map(|(_, len)| len).sum()
    }

    /// Whether every buffer starts at, and is as long as, a multiple of `align`.
    pub(super) fn aligned(&self, align: usize) -> bool {
        self.buffers()
            .iter()
            .all(|(ptr, len)| ptr.addr() % align == 0 && len % align == 0)
    }

    /// A copy of the bytes of an op that sends or writes, past those sent, at most `limit`.
    pub(super) fn gather(&self, limit: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity((self.capacity() - self.sent).min(limit));
        let mut skip = self.sent;
        for (ptr, len) in self.buffers() {
            let from = skip.min(len);
            skip -= from;
            let take = (len - from).min(limit - bytes.len());
            if take > 0 {
                // SAFETY: the op is in flight (type invariant): `ptr` names `len` initialised
                // bytes that nobody writes until it completes; `from + take` is at most `len`.
                bytes.extend_from_slice(unsafe { std::slice::from_raw_parts(ptr.add(from), take) });
            }
        }
        bytes
    }

    /// Fills the buffers of an op that reads or receives; bytes past their end are dropped.
    pub(super) fn scatter(&self, bytes: &[u8]) {
        let mut left = bytes;
        for (ptr, len) in self.buffers() {
            let take = len.min(left.len());
            if take > 0 {
                // SAFETY: the op is in flight (type invariant): `ptr` names `len` writable bytes
                // lent to the op; `take` is at most `len` and at most what `left` holds, which is
                // the world's own memory and so does not overlap.
                unsafe { std::ptr::copy_nonoverlapping(left.as_ptr(), ptr, take) };
                left = &left[take..];
            }
        }
    }

    /// The address a connect or a datagram goes to.
    pub(super) fn destination(&self) -> Option<Addr> {
        match &self.op {
            // SAFETY: the op is in flight (type invariant): `addr` points to an initialised
            // address that nobody writes.
            Op::Connect { addr, .. } => unsafe { addr.as_ref() }.and_then(|a| a.addr().ok()),
            Op::SendTo { datagram, .. } => {
                // SAFETY: as above, for the datagram's own address.
                unsafe { datagram.as_ref() }.and_then(|d| d.addr.addr().ok())
            }
            _ => None,
        }
    }

    /// The payload of a datagram to send.
    pub(super) fn datagram(&self) -> Vec<u8> {
        let Op::SendTo { datagram, .. } = &self.op else {
            return Vec::new();
        };
        // SAFETY: the op is in flight (type invariant): the header and its one buffer, set up by
        // `DatagramBuf::boxed`, are valid, initialised and not written by anyone.
        unsafe {
            let iov = (**datagram).iov;
            if iov.iov_len == 0 {
                return Vec::new();
            }
            std::slice::from_raw_parts(iov.iov_base.cast::<u8>(), iov.iov_len).to_vec()
        }
    }

    /// Hands a received datagram over; answers how many of its bytes fitted.
    pub(super) fn deliver_datagram(&self, from: &Addr, bytes: &[u8]) -> usize {
        let Op::RecvFrom { datagram, .. } = &self.op else {
            return 0;
        };
        let addr = SockAddrBuf::new(from).unwrap_or_else(|_| SockAddrBuf::empty());
        // SAFETY: the op is in flight (type invariant): the header was lent to it whole, its
        // buffer names `iov_len` writable bytes, and `take` is at most that. The payload is the
        // world's own memory and so does not overlap.
        unsafe {
            let to = &mut **datagram;
            let take = to.iov.iov_len.min(bytes.len());
            if take > 0 {
                std::ptr::copy_nonoverlapping(bytes.as_ptr(), to.iov.iov_base.cast(), take);
            }
            to.addr = addr;
            to.header.msg_namelen = addr.len;
            to.header.msg_flags = if take < bytes.len() {
                libc::MSG_TRUNC
            } else {
                0
            };
            take
        }
    }

    /// Tells an eventfd's counter.
    pub(super) fn deliver_count(&self, count: u64) {
        if let Op::ReadEvent { counter, .. } = &self.op {
            // SAFETY: the op is in flight (type invariant): `counter` was lent to it, valid and
            // aligned for one u64.
            unsafe { counter.write(count) };
        }
    }

    /// The op's name in the trace.
    pub(super) fn kind(&self) -> &'static str {
        match &self.op {
            Op::Read { .. } => "read",
            Op::Write { .. } => "write",
            Op::WriteThenSync { .. } => "write-then-sync",
            Op::ReadVectored { .. } => "read-vectored",
            Op::WriteVectored { .. } => "write-vectored",
            Op::Sync { .. } => "sync",
            Op::Allocate { .. } => "allocate",
            Op::Discard { .. } => "discard",
            Op::Accept { .. } => "accept",
            Op::Connect { .. } => "connect",
            Op::Recv { .. } => "recv",
            Op::RecvRing { .. } => "recv-ring",
            Op::Send { .. } => "send",
            Op::SendVectored { .. } => "send-vectored",
            Op::RecvFrom { .. } => "recv-from",
            Op::SendTo { .. } => "send-to",
            Op::AwaitRoom { .. } => "await-room",
            Op::Shutdown { .. } => "shutdown",
            Op::ReadEvent { .. } => "read-event",
            Op::WatchEvent { .. } => "watch-event",
            Op::AddEvent { .. } => "add-event",
            Op::Close { .. } => "close",
        }
    }
}
