//! The kernel backend: one ring a shard. `entries` turns operations into queue entries.
//!
//! Set-up: SINGLE_ISSUER | DEFER_TASKRUN | COOP_TASKRUN | TASKRUN_FLAG, so completions appear only
//! when this thread enters the kernel and asks for events. Rules learnt by measurement: never
//! IO_DRAIN; never wait for more than one completion; never IO_LINK together with CQE_SKIP. An op
//! that finds the submission queue full waits in `backlog`, which is bounded by the slot table.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::ops::Range;
use std::sync::mpsc;

use futures_channel::oneshot;
use io_uring::{IoUring, cqueue, opcode, squeue, types};

use super::{
    Addr, BindOptions, Completion, FsOp, FsReply, IoBackend, Op, Part, RawHandle, SlotId,
    SockAddrBuf, SocketKind, Wait,
};
use crate::config::EngineConfig;
use crate::endpoint::Endpoint;
use crate::engine::Capabilities;
use crate::error::{Error, ErrorKind};
use crate::guest::GuestMem;
use crate::pages::{PageStore, Pages};
use crate::time::Nanos;

use self::memory_files::MemoryFiles;
use super::recv_ring::RecvRing;
use super::{clock, fs_thread, pages, sys};

mod entries;
mod memory_files;

/// `user_data` of the doorbell's read.
const DOORBELL: u64 = 1 << 35;
/// `user_data` of cancel requests; their own results say nothing of use.
const CANCEL: u64 = 1 << 34;
/// Bit of `user_data` that marks the sync behind a linked write.
const SYNC_PART: u64 = 1 << 32;
/// Places in the registered-file table.
const FILES_MAX: u32 = 4096;
const ENTER_GETEVENTS: u32 = 1;

type FsRequest = (FsOp, oneshot::Sender<io::Result<FsReply>>);

pub(crate) struct UringBackend {
    ring: IoUring,
    backlog: VecDeque<squeue::Entry>,
    doorbell_fd: i32,
    doorbell_armed: bool,
    /// Where the kernel puts the doorbell's counter; boxed so that it keeps its place.
    doorbell_count: Box<u64>,
    recv_ring: Option<RecvRing>,
    /// File descriptor to place in the registered-file table.
    fixed_files: BTreeMap<i32, u32>,
    free_files: Vec<u32>,
    memory_files: MemoryFiles,
    /// What was answered without the ring, until it is reaped.
    answered: Vec<Completion>,
    fs: mpsc::Sender<FsRequest>,
    enters: u64,
    sq_full: u64,
    overflows: u64,
}

impl UringBackend {
    /// Makes the ring on the shard's own thread.
    ///
    /// # Errors
    /// [`ErrorKind::NoUring`] saying what forbids it.
    pub(crate) fn new(
        config: &EngineConfig,
        endpoint: &'static Endpoint,
        affinity: Option<&libc::cpu_set_t>,
        capabilities: &mut Capabilities,
    ) -> Result<UringBackend, Error> {
        let ring: IoUring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_coop_taskrun()
            .setup_taskrun_flag()
            .setup_submit_all()
            .setup_cqsize(config.ring_entries * 4)
            .build(config.ring_entries)
            .map_err(no_uring)?;
        let exhausted =
            |what: &'static str| move |e: io::Error| Error::with(ErrorKind::Exhausted, what, e);
        let doorbell_fd = endpoint
            .event_fd()
            .map_err(exhausted("no eventfd for a shard"))?;
        if let Some(cpus) = affinity
            && let Err(error) = ring.submitter().register_iowq_aff(cpus)
        {
            capabilities
                .missing
                .push(format!("pinning of io_uring workers: {error}"));
        }
        let free_files = match ring.submitter().register_files_sparse(FILES_MAX) {
            Ok(()) => (0..FILES_MAX).rev().collect(),
            Err(error) => {
                capabilities
                    .missing
                    .push(format!("registered files: {error}"));
                Vec::new()
            }
        };
        capabilities.registered_files = !free_files.is_empty();
        let recv_ring = match RecvRing::register(&ring, config.recv_buffers) {
            Ok(recv_ring) => Some(recv_ring),
            Err(error) => {
                capabilities
                    .missing
                    .push(format!("receive buffer ring: {error}"));
                None
            }
        };
        capabilities.buffer_ring = recv_ring.is_some();
        Ok(UringBackend {
            ring,
            backlog: VecDeque::new(),
            doorbell_fd,
            doorbell_armed: false,
            doorbell_count: Box::new(0),
            recv_ring,
            fixed_files: BTreeMap::new(),
            free_files,
            memory_files: MemoryFiles::default(),
            answered: Vec::new(),
            fs: fs_thread::start().map_err(exhausted("no thread for file system requests"))?,
            enters: 0,
            sq_full: 0,
            overflows: 0,
        })
    }

    /// Offers the buffer pool's arena to the ring.
    pub(crate) fn register_pool(
        &mut self,
        base: *mut u8,
        len: usize,
        capabilities: &mut Capabilities,
    ) -> Option<u16> {
        let iov = [libc::iovec {
            iov_base: base.cast(),
            iov_len: len,
        }];
        // SAFETY: the arena stays mapped while any buffer of it lives; the ring uses it only
        // through operations, whose buffers the slot table keeps.
        match unsafe { self.ring.submitter().register_buffers(&iov) } {
            Ok(()) => {
                capabilities.registered_buffers = true;
                Some(0)
            }
            Err(error) => {
                capabilities.missing.push(format!(
                    "registered buffers: {error}; raise RLIMIT_MEMLOCK (LimitMEMLOCK= of the unit) above {len} bytes a shard"
                ));
                None
            }
        }
    }

    fn push(&mut self, entry: squeue::Entry) {
        if !self.backlog.is_empty() || !self.try_push(&entry) {
            self.sq_full += 1;
            self.backlog.push_back(entry);
        }
    }

    fn try_push(&mut self, entry: &squeue::Entry) -> bool {
        // SAFETY: the entry's memory is kept by its slot until the last completion.
        unsafe { self.ring.submission().push(entry) }.is_ok()
    }

    /// A linked pair must enter the queue together: a submission ends a chain.
    fn push_pair(&mut self, pair: [squeue::Entry; 2]) {
        let room = {
            let queue = self.ring.submission();
            queue.capacity() - queue.len() >= 2
        };
        if self.backlog.is_empty() && room {
            // SAFETY: as in `try_push`.
            let pushed = unsafe { self.ring.submission().push_multiple(&pair) };
            assert!(
                pushed.is_ok(),
                "two entries fit where room for two was seen"
            );
        } else {
            self.sq_full += 1;
            self.backlog.extend(pair);
        }
    }

    fn flush_backlog(&mut self) {
        while let Some(entry) = self.backlog.front() {
            let linked = entry_is_linked(entry);
            let room = {
                let queue = self.ring.submission();
                queue.capacity() - queue.len()
            };
            if room < if linked { 2 } else { 1 } {
                return;
            }
            for _ in 0..if linked { 2 } else { 1 } {
                let entry = self
                    .backlog
                    .pop_front()
                    .expect("a linked write has its sync behind it");
                assert!(self.try_push(&entry), "an entry fits where room was seen");
            }
        }
    }

    fn arm_doorbell(&mut self) {
        if !self.doorbell_armed {
            let count = (&raw mut *self.doorbell_count).cast::<u8>();
            let read = opcode::Read::new(types::Fd(self.doorbell_fd), count, 8).build();
            self.doorbell_armed = self.try_push(&read.user_data(DOORBELL));
        }
    }

    fn forget_file(&mut self, handle: RawHandle) {
        self.memory_files.forget(handle);
        if let Some(place) = self.fixed_files.remove(&handle.0) {
            // Failing to empty the place would only keep the file open until it is reused.
            let _ = self.ring.submitter().register_files_update(place, &[-1]);
            self.free_files.push(place);
        }
    }

    fn enter_kernel(&mut self, wait: Wait) -> io::Result<usize> {
        self.enters += 1;
        self.ring.submission().sync();
        let queued = self.ring.submission().len() as u32;
        let submitter = self.ring.submitter();
        match wait {
            // SAFETY: no argument is passed; the flag asks for deferred completions only.
            Wait::No => unsafe {
                submitter.enter::<libc::sigset_t>(queued, 0, ENTER_GETEVENTS, None)
            },
            Wait::Until(None) => submitter.submit_and_wait(1),
            Wait::Until(Some(deadline)) => {
                let left = deadline.0.saturating_sub(clock::monotonic().0);
                let timespec = types::Timespec::new()
                    .sec(left / 1_000_000_000)
                    .nsec((left % 1_000_000_000) as u32);
                submitter.submit_with_args(1, &types::SubmitArgs::new().timespec(&timespec))
            }
        }
    }
}

fn entry_is_linked(entry: &squeue::Entry) -> bool {
    // The only linked entries are writes of WriteThenSync: plain slot number, sync behind them.
    entry.get_user_data() & LINKED != 0
}

fn fd(handle: RawHandle) -> types::Fd {
    types::Fd(handle.0)
}

/// Bit of `user_data` that marks a write with a sync linked behind it.
const LINKED: u64 = 1 << 33;

fn no_uring(error: io::Error) -> Error {
    let sysctl = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    let why = match (error.raw_os_error(), sysctl.trim()) {
        (Some(libc::EPERM), "2") => "io_uring is off for everybody: set sysctl kernel.io_uring_disabled=0".to_owned(),
        (Some(libc::EPERM), "1") => {
            "io_uring is off for unprivileged processes: set sysctl kernel.io_uring_disabled=0 or add the process to the group of kernel.io_uring_group".to_owned()
        }
        (Some(libc::EPERM | libc::ENOSYS), _) => {
            "the kernel refuses io_uring_setup: a seccomp profile forbids it (containers: run with a profile that allows io_uring), or the kernel is built without it".to_owned()
        }
        (Some(libc::EINVAL), _) => "the kernel is older than 6.1: DEFER_TASKRUN is missing".to_owned(),
        (Some(libc::ENOMEM), _) => "no memory for the ring: raise RLIMIT_MEMLOCK".to_owned(),
        _ => "io_uring_setup failed".to_owned(),
    };
    Error::with(ErrorKind::NoUring, why, error)
}

impl IoBackend for UringBackend {
    fn now(&self) -> Nanos {
        clock::monotonic()
    }

    fn after_poll(&mut self) -> Nanos {
        clock::monotonic()
    }

    fn wall_clock(&self) -> u64 {
        clock::realtime()
    }

    fn fill_secret(&mut self, into: &mut [u8]) -> io::Result<()> {
        sys::fill_secret(into)
    }

    fn run_now(&mut self, op: &Op, end: Nanos) -> Option<i32> {
        let now = self.memory_files.has(op) && clock::monotonic() < end;
        now.then(|| MemoryFiles::run(op))
    }

    fn submit(&mut self, slot: SlotId, op: Op) {
        if self.memory_files.has(&op) {
            let result = MemoryFiles::run(&op);
            self.answered.push(Completion {
                slot,
                part: Part::Main,
                result,
                more: false,
                notification: false,
                buffer: None,
            });
            return;
        }
        let data = u64::from(slot);
        if let Op::WriteThenSync { file, span, offset } = op {
            let write = self
                .write_entry(file, span, offset, 0)
                .flags(squeue::Flags::IO_LINK)
                .user_data(data | LINKED);
            let sync = opcode::Fsync::new(fd(file))
                .flags(types::FsyncFlags::DATASYNC)
                .build();
            self.push_pair([write, sync.user_data(data | SYNC_PART)]);
            return;
        }
        // Without a receive ring the op still completes, by a no-op: the caller sees 0 bytes of a
        // buffer that it does not have, which `net` maps to ENOBUFS.
        let entry = self
            .entry(&op)
            .unwrap_or_else(|| opcode::Nop::new().build());
        self.push(entry.user_data(data));
    }

    fn cancel(&mut self, slot: SlotId) {
        // A linked write carries a bit that this does not match: a chain runs to its end, which a
        // disk reaches soon, and a half-cancelled chain would gain nothing.
        let cancel = opcode::AsyncCancel::new(u64::from(slot)).build();
        self.push(cancel.user_data(CANCEL));
    }

    fn wants_enter(&self) -> bool {
        // SAFETY: a shared view of the queue's length and flags; nobody pushes meanwhile (&self,
        // one thread).
        let queue = unsafe { self.ring.submission_shared() };
        !queue.is_empty() || queue.taskrun() || queue.cq_overflow() || !self.backlog.is_empty()
    }

    fn enter(&mut self, wait: Wait) -> io::Result<()> {
        if !self.answered.is_empty() && !self.wants_enter() {
            return Ok(());
        }
        self.flush_backlog();
        if wait != Wait::No {
            self.arm_doorbell();
        }
        // With operations still outside the queue, answers to be reaped, or without a doorbell, do not sleep.
        let may_sleep = self.backlog.is_empty() && self.answered.is_empty() && self.doorbell_armed;
        let wait = if may_sleep { wait } else { Wait::No };
        match self.enter_kernel(wait) {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                // Timed out; interrupted; completions must be reaped first; no memory just now.
                Some(libc::ETIME | libc::EINTR | libc::EBUSY | libc::EAGAIN) => Ok(()),
                _ => Err(error),
            },
        }
    }

    fn reap(&mut self, out: &mut Vec<Completion>) {
        out.append(&mut self.answered);
        let mut queue = self.ring.completion();
        self.overflows = self.overflows.max(u64::from(queue.overflow()));
        for entry in &mut queue {
            let data = entry.user_data();
            if data == DOORBELL {
                self.doorbell_armed = false;
                continue;
            }
            if data == CANCEL {
                continue;
            }
            let flags = entry.flags();
            out.push(Completion {
                slot: data as u32,
                part: if data & SYNC_PART == 0 {
                    Part::Main
                } else {
                    Part::Sync
                },
                result: entry.result(),
                more: cqueue::more(flags),
                notification: cqueue::notif(flags),
                buffer: cqueue::buffer_select(flags),
            });
        }
    }

    fn fs(&mut self, op: FsOp) -> oneshot::Receiver<io::Result<FsReply>> {
        let (answer, answered) = oneshot::channel();
        // A dead thread drops the request, and with it `answer`: the caller sees that.
        let _ = self.fs.send((op, answer));
        answered
    }

    fn adopt_file(&mut self, file: RawHandle) -> bool {
        let in_memory = self.memory_files.adopt(file);
        let Some(place) = self.free_files.pop() else {
            return in_memory;
        };
        match self
            .ring
            .submitter()
            .register_files_update(place, &[file.0])
        {
            Ok(_) => {
                self.fixed_files.insert(file.0, place);
            }
            Err(_) => self.free_files.push(place),
        }
        in_memory
    }

    fn map_whole_file(&mut self, file: RawHandle, bytes: u64) -> io::Result<Option<GuestMem>> {
        sys::map_whole_file(file, bytes)
    }

    fn map_file(&mut self, file: RawHandle, len: usize) -> io::Result<GuestMem> {
        sys::map_file(file, len)
    }

    fn socket(&mut self, kind: SocketKind, addr: &Addr) -> io::Result<RawHandle> {
        sys::socket(kind, SockAddrBuf::new(addr)?.family())
    }

    fn bind(&mut self, socket: RawHandle, addr: &Addr, options: BindOptions) -> io::Result<()> {
        sys::bind(socket, &SockAddrBuf::new(addr)?, options)
    }

    fn local_addr(&self, socket: RawHandle) -> io::Result<Addr> {
        sys::local_addr(socket)
    }

    fn peer_addr(&self, socket: RawHandle) -> io::Result<Addr> {
        sys::peer_addr(socket)
    }

    fn set_nodelay(&mut self, socket: RawHandle) -> io::Result<()> {
        sys::set_nodelay(socket)
    }

    fn seal_pages(&mut self, bytes: &[u8]) -> io::Result<PageStore> {
        pages::seal(bytes).map(PageStore::File)
    }

    fn send_pages(
        &mut self,
        socket: RawHandle,
        pages: &Pages,
        range: Range<usize>,
    ) -> io::Result<usize> {
        match pages.store() {
            PageStore::File(file) => pages::send(socket, file, range),
            PageStore::Heap(_) => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    fn event(&mut self) -> io::Result<RawHandle> {
        sys::event()
    }

    fn signal_event(&mut self, event: RawHandle, count: u64) -> io::Result<()> {
        sys::signal_event(event, count)
    }

    fn ring_buffer(&self, buffer: u16) -> *const u8 {
        self.recv_ring
            .as_ref()
            .expect("a completion named a buffer of the ring")
            .buffer(buffer)
    }

    fn recycle_ring_buffer(&mut self, buffer: u16) {
        if let Some(recv_ring) = &mut self.recv_ring {
            recv_ring.recycle(buffer);
        }
    }

    fn enters(&self) -> u64 {
        self.enters
    }

    fn cq_overflows(&self) -> u64 {
        self.overflows
    }

    fn sq_full(&self) -> u64 {
        self.sq_full
    }

    fn pick(&mut self, _bound: u32) -> u32 {
        0
    }
}
