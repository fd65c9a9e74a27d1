//! What a shard asks of its surroundings: I/O, the clock, the file system. Two implementations:
//! [`uring`] talks to the kernel, `crate::sim` to a simulated disk and network under a virtual
//! clock. Product code sees neither.
//!
//! Contract: every submitted op is answered by at least one [`Completion`] with its slot, the last
//! of which has `more == false`, also after [`IoBackend::cancel`]. Memory named by an [`Op`] stays
//! valid until then: the slot table owns it.

pub(crate) mod addr;
pub(crate) mod pages;
pub(crate) mod uring;

mod clock;
mod fs_thread;
mod recv_ring;
mod sys;

use std::io;
use std::ops::Range;
use std::path::PathBuf;

pub use addr::Addr;
pub(crate) use addr::{DatagramBuf, SockAddrBuf};

use crate::guest::GuestMem;
use crate::pages::{PageStore, Pages};
use crate::time::Nanos;

/// Index into the shard's slot table; reused only after the op's last completion.
pub(crate) type SlotId = u32;

/// A file, socket or eventfd as its backend names it (a file descriptor under io_uring).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RawHandle(pub(crate) i32);

/// Where an op's bytes lie, and whether they are in a buffer registered with this ring.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Span {
    pub(crate) ptr: *mut u8,
    pub(crate) len: u32,
    /// Index of the registered buffer that holds the span, on the ring that submits it.
    pub(crate) fixed: Option<u16>,
}

/// One operation, as plain data. Lengths are at most 2 GiB (`u32`, kernel limit).
#[derive(Debug)]
pub(crate) enum Op {
    Read {
        file: RawHandle,
        span: Span,
        offset: u64,
    },
    Write {
        file: RawHandle,
        span: Span,
        offset: u64,
        dsync: bool,
    },
    /// A write and, linked behind it, an fdatasync. Answered twice: [`Part::Main`] with the
    /// write's result, [`Part::Sync`] with the sync's (`-ECANCELED` when the write failed or was
    /// short). The order of the two is not given.
    WriteThenSync {
        file: RawHandle,
        span: Span,
        offset: u64,
    },
    /// `bytes` are those of all entries.
    ReadVectored {
        file: RawHandle,
        iov: *const libc::iovec,
        count: u32,
        bytes: u32,
        offset: u64,
    },
    WriteVectored {
        file: RawHandle,
        iov: *const libc::iovec,
        count: u32,
        bytes: u32,
        offset: u64,
        dsync: bool,
    },
    /// fdatasync.
    Sync {
        file: RawHandle,
    },
    /// fallocate without zeroing what is there; extends the file.
    Allocate {
        file: RawHandle,
        offset: u64,
        len: u64,
    },
    /// fallocate PUNCH_HOLE | KEEP_SIZE: the range reads as zeros and its space is free.
    Discard {
        file: RawHandle,
        offset: u64,
        len: u64,
    },
    /// Multishot: each completion's result is a new connection's handle.
    Accept {
        listener: RawHandle,
    },
    Connect {
        socket: RawHandle,
        addr: *const SockAddrBuf,
    },
    Recv {
        socket: RawHandle,
        span: Span,
    },
    /// Receive into the shard's buffer ring; the completion names the buffer.
    RecvRing {
        socket: RawHandle,
        multishot: bool,
    },
    Send {
        socket: RawHandle,
        span: Span,
        how: SendHow,
    },
    SendVectored {
        socket: RawHandle,
        iov: *const libc::iovec,
        count: u32,
        msg: *const libc::msghdr,
    },
    RecvFrom {
        socket: RawHandle,
        datagram: *mut DatagramBuf,
    },
    SendTo {
        socket: RawHandle,
        datagram: *const DatagramBuf,
    },
    /// Wait until a stream has room to send, or is broken.
    AwaitRoom {
        socket: RawHandle,
    },
    /// Shut down the sending (`Write`) or both directions.
    Shutdown {
        socket: RawHandle,
        write_only: bool,
    },
    /// Read an eventfd's counter (8 bytes) once it is not zero.
    ReadEvent {
        event: RawHandle,
        counter: *mut u64,
    },
    /// Multishot: a completion each time that an eventfd was added to. It may take the counter.
    WatchEvent {
        event: RawHandle,
    },
    /// Add to an eventfd; waits while its counter is full.
    AddEvent {
        event: RawHandle,
        count: &'static u64,
    },
    Close {
        handle: RawHandle,
    },
}

impl Op {
    /// Whether the op uses the disk and so passes through the I/O scheduler; its cost in bytes.
    pub(crate) fn disk_bytes(&self) -> Option<u32> {
        match self {
            Op::Read { span, .. } | Op::Write { span, .. } | Op::WriteThenSync { span, .. } => {
                Some(span.len)
            }
            Op::ReadVectored { bytes, .. } | Op::WriteVectored { bytes, .. } => Some(*bytes),
            Op::Sync { .. } | Op::Allocate { .. } | Op::Discard { .. } => Some(4096),
            _ => None,
        }
    }

    /// How many completions end the op (multishot ops and zero-copy sends say `more` instead).
    pub(crate) fn parts(&self) -> u8 {
        if matches!(self, Op::WriteThenSync { .. }) {
            2
        } else {
            1
        }
    }
}

/// How a stream sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SendHow {
    Plain,
    /// More follows at once (MSG_MORE): a packet that is not full may wait for it.
    MoreFollows,
    /// From where the bytes lie (SEND_ZC).
    ZeroCopy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Main,
    Sync,
}

/// The answer to an op: `result` is a count or handle, or a negated errno.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Completion {
    pub(crate) slot: SlotId,
    pub(crate) part: Part,
    pub(crate) result: i32,
    /// Another completion follows for this part of the op.
    pub(crate) more: bool,
    /// A zero-copy send's release of its buffer; `result` carries nothing.
    pub(crate) notification: bool,
    /// The buffer of the ring that a [`Op::RecvRing`] filled.
    pub(crate) buffer: Option<u16>,
}

/// How a file is opened. Paths are as given by the caller; the simulator keeps one tree a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenOptions {
    /// Allow writing.
    pub write: bool,
    /// Create the file when it is missing.
    pub create: bool,
    /// Fail when the file exists (needs `create`).
    pub create_new: bool,
    /// Bypass the page cache: O_DIRECT, with offsets, lengths and memory aligned to 4 KiB.
    pub direct: bool,
    /// Permission bits of a created file; 0 means 0o600: data is nobody else's to read.
    pub mode: u32,
}

/// A request to the file system's name space; off the hot path.
#[derive(Debug)]
pub(crate) enum FsOp {
    Open {
        path: PathBuf,
        options: OpenOptions,
    },
    CreateDirAll {
        path: PathBuf,
    },
    RemoveFile {
        path: PathBuf,
    },
    Rename {
        from: PathBuf,
        to: PathBuf,
    },
    ReadDir {
        path: PathBuf,
    },
    /// fsync of a directory: names created, renamed or removed in it before are durable after.
    SyncDir {
        path: PathBuf,
    },
    Metadata {
        path: PathBuf,
    },
    SetLen {
        file: RawHandle,
        len: u64,
    },
    /// An exclusive lock held until the handle is closed; `WouldBlock` when another holds it.
    Lock {
        file: RawHandle,
    },
    /// What names the machine's life since it was started.
    BootId,
    /// Free and total bytes of the file system that holds `path`.
    Space {
        path: PathBuf,
    },
}

#[derive(Debug)]
pub(crate) enum FsReply {
    Done,
    Opened {
        handle: RawHandle,
        len: u64,
        direct: bool,
    },
    /// Names in byte order.
    Entries(Vec<DirEntry>),
    Metadata(Metadata),
    Space(DiskSpace),
    BootId([u8; 16]),
}

/// One name in a directory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DirEntry {
    /// File name without its directory.
    pub name: String,
    /// Whether it is a directory.
    pub is_dir: bool,
    /// Length in bytes of a file, 0 for a directory.
    pub len: u64,
}

/// What [`crate::fs::metadata`] tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metadata {
    /// Length in bytes.
    pub len: u64,
    /// Bytes that the file system has allocated to the file.
    pub allocated: u64,
    /// Whether the path names a directory.
    pub is_dir: bool,
}

/// Space of a file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskSpace {
    /// Bytes that an unprivileged writer can still use.
    pub available: u64,
    /// Size in bytes.
    pub total: u64,
}

/// What kind of socket [`IoBackend::socket`] makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SocketKind {
    Stream,
    Datagram,
}

/// How long [`IoBackend::enter`] may sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Submit and collect, never sleep.
    No,
    /// Sleep until a completion, a doorbell, or the deadline.
    Until(Option<Nanos>),
}

/// The kernel as one shard sees it. All calls come from the shard's own thread (or, simulated,
/// while that shard is the current one).
pub(crate) trait IoBackend {
    /// Monotonic time.
    fn now(&self) -> Nanos;

    /// Time after a task was polled. The simulator charges the poll's cost here.
    fn after_poll(&mut self) -> Nanos;

    /// Nanoseconds since the Unix epoch.
    fn wall_clock(&self) -> u64;

    /// Fills with bytes that nobody can guess.
    fn fill_secret(&mut self, into: &mut [u8]) -> io::Result<()>;

    /// Does an op at once and returns its result, where it takes no longer than a copy and it is not `end`
    /// yet. Else it is to be submitted.
    fn run_now(&mut self, _op: &Op, _end: Nanos) -> Option<i32> {
        None
    }

    /// Accepts an op. It may sit in a queue until [`IoBackend::enter`].
    fn submit(&mut self, slot: SlotId, op: Op);

    /// Asks to end an op early; it still completes, possibly with success.
    fn cancel(&mut self, slot: SlotId);

    /// Whether [`IoBackend::enter`] has something to do (queued ops or kernel work to run).
    fn wants_enter(&self) -> bool;

    /// Hands queued ops over and sleeps as allowed.
    ///
    /// # Errors
    /// Only when the ring itself is broken: the shard cannot go on.
    fn enter(&mut self, wait: Wait) -> io::Result<()>;

    /// Moves all arrived completions to `out`.
    fn reap(&mut self, out: &mut Vec<Completion>);

    /// Starts a name-space request; the answer comes through the channel.
    fn fs(&mut self, op: FsOp) -> futures_channel::oneshot::Receiver<io::Result<FsReply>>;

    /// A file opened through [`IoBackend::fs`] now belongs to this shard. Whether it lies in memory.
    fn adopt_file(&mut self, file: RawHandle) -> bool;

    /// Maps all of a file that lies in memory. None when it has not `bytes`.
    fn map_whole_file(&mut self, _file: RawHandle, _bytes: u64) -> io::Result<Option<GuestMem>> {
        Ok(None)
    }

    /// Maps the first `len` bytes of a file that has them, shared.
    fn map_file(&mut self, file: RawHandle, len: usize) -> io::Result<GuestMem>;

    /// Makes an unconnected socket for `addr`'s family.
    fn socket(&mut self, kind: SocketKind, addr: &Addr) -> io::Result<RawHandle>;

    /// Binds (with REUSEADDR and, when asked, REUSEPORT) and, for a stream socket, listens.
    fn bind(&mut self, socket: RawHandle, addr: &Addr, options: BindOptions) -> io::Result<()>;

    /// The address a socket is bound to.
    fn local_addr(&self, socket: RawHandle) -> io::Result<Addr>;

    /// The address of a connected socket's other end.
    fn peer_addr(&self, socket: RawHandle) -> io::Result<Addr>;

    /// TCP_NODELAY; a no-op on sockets that are not TCP.
    fn set_nodelay(&mut self, socket: RawHandle) -> io::Result<()>;

    /// Copies bytes to where they cannot change any more.
    fn seal_pages(&mut self, bytes: &[u8]) -> io::Result<PageStore>;

    /// Sends a part of sealed pages, as much as there is room for and at least a byte, at once.
    /// `WouldBlock` without room: [`Op::AwaitRoom`] tells when there is some.
    fn send_pages(
        &mut self,
        socket: RawHandle,
        pages: &Pages,
        range: Range<usize>,
    ) -> io::Result<usize>;

    /// Makes an eventfd with counter 0.
    fn event(&mut self) -> io::Result<RawHandle>;

    /// Adds `count` to an eventfd; never blocks.
    fn signal_event(&mut self, event: RawHandle, count: u64) -> io::Result<()>;

    /// Bytes of the buffer-ring entry that a completion named.
    fn ring_buffer(&self, buffer: u16) -> *const u8;

    /// Gives a buffer-ring entry back to the kernel.
    fn recycle_ring_buffer(&mut self, buffer: u16);

    /// Kernel entries so far.
    fn enters(&self) -> u64 {
        0
    }

    /// Times the completion queue overflowed into the kernel's own list.
    fn cq_overflows(&self) -> u64 {
        0
    }

    /// Times an operation waited because the submission queue was full.
    fn sq_full(&self) -> u64 {
        0
    }

    /// A number below `bound` (> 0) with which the scheduler picks among runnable tasks. The
    /// kernel backend answers 0: first come, first served.
    fn pick(&mut self, bound: u32) -> u32;
}

/// How [`IoBackend::bind`] binds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BindOptions {
    /// Let every shard bind the same address; the kernel spreads connections.
    pub(crate) reuse_port: bool,
    /// Length of the queue of connections not yet accepted; 0 for datagram sockets.
    pub(crate) backlog: u32,
}
