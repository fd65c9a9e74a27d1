//! The load: libblkio's driver of vhost-user-blk, which is no code of ours, and its io_uring driver for
//! the same load without any backend. Every block that is read is compared with its stamp.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use blkio::{Blkio, Blkioq, Completion, MemoryRegion, ReqFlags};
use engine::GuestMem;
use hdrhistogram::Histogram;
use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, memfd_create};

/// What has a stamp.
pub const BLOCK: usize = 4096;

/// Bytes of a stamp.
const STAMP: usize = 8;

/// Entries of the ring.
const QUEUE_SIZE: i32 = 256;

/// Size of a huge page.
const HUGE_PAGE: usize = 2 << 20;

/// How a block at this place begins.
pub fn stamp(place: u64) -> [u8; STAMP] {
    (place / BLOCK as u64 + 1).to_le_bytes()
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Job {
    Read,
    Write,
    /// Writes, and a flush beside them after so many.
    WriteFlush(u64),
}

/// A load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    pub job: Job,
    pub bytes: usize,
    pub depth: usize,
    /// By chance, or one behind the other.
    pub random: bool,
    /// Whether what is read has stamps.
    pub stamped: bool,
}

/// What a load has done.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    pub operations: u64,
    pub p50: Duration,
}

/// Where requests go.
pub enum Target<'a> {
    /// A backend's socket; whether completions are polled for.
    Backend(&'a Path, bool),
    /// A file, without a backend.
    File(&'a Path),
}

/// A connected driver with its memory.
pub struct Front {
    queue: Blkioq,
    region: MemoryRegion,
    capacity: u64,
    // Behind the queue, which is of it.
    _driver: Blkio,
    // Last, as the driver knows of it.
    _pages: Option<HugePages>,
}

/// Memory in huge pages, which the system must have some of.
struct HugePages {
    region: MemoryRegion,
    _file: OwnedFd,
    _mem: GuestMem,
}

impl HugePages {
    fn map(bytes: usize) -> Result<HugePages> {
        let len = bytes.next_multiple_of(HUGE_PAGE);
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB;
        let file = memfd_create("perf-volumes", flags).context("make a file of huge pages")?;
        fallocate(&file, FallocateFlags::empty(), 0, len as u64).with_context(|| {
            let pages = len / HUGE_PAGE;
            format!("get {pages} huge pages; `sysctl vm.nr_hugepages={pages}` provides them")
        })?;
        let mem = GuestMem::map(file.as_fd(), 0, len)?;
        let addr = mem.window(0, len, HUGE_PAGE)?.as_ptr().expose_provenance();
        let region = MemoryRegion {
            addr,
            iova: addr as u64,
            len,
            fd: file.as_raw_fd(),
            fd_offset: 0,
            flags: 0,
        };
        Ok(HugePages {
            region,
            _file: file,
            _mem: mem,
        })
    }
}

#[expect(clippy::needless_pass_by_value, reason = "what maps an error takes it")]
fn told(error: blkio::Error) -> anyhow::Error {
    anyhow!("libblkio: {error}")
}

impl Front {
    /// Connects, with memory for a load, in huge pages or as the driver makes it.
    pub fn connect(target: &Target<'_>, load: &Load, huge_pages: bool) -> Result<Front> {
        let (name, path, polls) = match target {
            Target::Backend(path, polls) => ("virtio-blk-vhost-user", path, *polls),
            Target::File(path) => ("io_uring", path, false),
        };
        let path = path
            .to_str()
            .ok_or_else(|| anyhow!("{}: no text", path.display()))?;
        let mut driver = Blkio::new(name).map_err(told)?;
        driver.set_str("path", path).map_err(told)?;
        if matches!(target, Target::File(_)) {
            driver.set_bool("direct", true).map_err(told)?;
        }
        driver.connect().map_err(told)?;
        driver
            .set_i32("num-queues", i32::from(!polls))
            .map_err(told)?;
        if matches!(target, Target::Backend(..)) {
            driver
                .set_i32("num-poll-queues", i32::from(polls))
                .map_err(told)?;
            driver.set_i32("queue-size", QUEUE_SIZE).map_err(told)?;
        }
        let mut started = driver.start().map_err(told)?;
        let queue = started.queues.pop().or_else(|| started.poll_queues.pop());
        let bytes = (load.bytes * load.depth).next_multiple_of(1 << 20);
        let pages = huge_pages.then(|| HugePages::map(bytes)).transpose()?;
        let region = match &pages {
            Some(pages) => pages.region,
            None => driver.alloc_mem_region(bytes).map_err(told)?,
        };
        driver.map_mem_region(&region).map_err(told)?;
        Ok(Front {
            queue: queue.ok_or_else(|| anyhow!("a driver without a queue"))?,
            region,
            capacity: driver.get_u64("capacity").map_err(told)?,
            _driver: driver,
            _pages: pages,
        })
    }

    /// Runs a load for so long.
    pub fn run(&mut self, load: &Load, window: Duration) -> Result<Report> {
        let requests = self.capacity / load.bytes as u64;
        ensure!(requests > load.depth as u64, "the device is too small");
        let begin = Instant::now();
        let mut running = Running {
            front: self,
            load,
            requests,
            places: vec![0; load.depth],
            begins: vec![begin; load.depth],
            chosen: 0,
            random: 0x9E37_79B9_7F4A_7C15,
            flushes: 0,
            latencies: Histogram::new_with_bounds(1, 60_000_000_000, 3)?,
        };
        for slot in 0..load.depth {
            running.submit(slot);
        }
        running.until(begin + window)?;
        running.finish()
    }

    fn memory(&self, slot: usize, bytes: usize) -> *mut u8 {
        std::ptr::with_exposed_provenance_mut(self.region.addr + slot * bytes)
    }
}

/// A load on its way.
struct Running<'a> {
    front: &'a mut Front,
    load: &'a Load,
    /// How many of them the device has room for.
    requests: u64,
    places: Vec<u64>,
    begins: Vec<Instant>,
    chosen: u64,
    random: u64,
    flushes: usize,
    latencies: Histogram<u64>,
}

impl Running<'_> {
    fn choose(&mut self) -> u64 {
        self.chosen += 1;
        if !self.load.random {
            return self.chosen % self.requests;
        }
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 16) % self.requests
    }

    fn submit(&mut self, slot: usize) {
        let (job, bytes) = (self.load.job, self.load.bytes);
        let place = self.choose() * bytes as u64;
        self.places[slot] = place;
        self.begins[slot] = Instant::now();
        let memory = self.front.memory(slot, bytes);
        if job == Job::Read {
            self.front
                .queue
                .read(place, memory, bytes, slot, ReqFlags::empty());
            return;
        }
        for at in (0..bytes).step_by(BLOCK) {
            let stamp = stamp(place + at as u64);
            // SAFETY: the slot's memory is mapped, as long as that, and no request has it now.
            unsafe { memory.add(at).cast::<[u8; STAMP]>().write(stamp) };
        }
        self.front
            .queue
            .write(place, memory, bytes, slot, ReqFlags::empty());
        if let Job::WriteFlush(each) = job
            && self.chosen.is_multiple_of(each)
        {
            self.flushes += 1;
            self.front.queue.flush(usize::MAX, ReqFlags::empty());
        }
    }

    /// One look at what has completed, at least one; how many of them were no flushes.
    fn complete(&mut self, mut ended: impl FnMut(&mut Self, usize)) -> Result<()> {
        let mut done = [const { MaybeUninit::<Completion>::uninit() }; QUEUE_SIZE as usize];
        let count = self
            .front
            .queue
            .do_io(&mut done, 1, None, None)
            .map_err(told)?;
        let now = Instant::now();
        for done in &done[..count] {
            // SAFETY: the driver has written as many as it says.
            let done = unsafe { done.assume_init_ref() };
            let slot = done.user_data;
            if done.ret != 0 {
                bail!("a request failed: {}", done.ret);
            }
            if slot == usize::MAX {
                self.flushes -= 1;
                continue;
            }
            self.check(slot)?;
            let took = now.duration_since(self.begins[slot]).as_nanos() as u64;
            self.latencies.saturating_record(took);
            ended(self, slot);
        }
        Ok(())
    }

    fn check(&self, slot: usize) -> Result<()> {
        if self.load.job != Job::Read || !self.load.stamped {
            return Ok(());
        }
        let memory = self.front.memory(slot, self.load.bytes);
        for at in (0..self.load.bytes).step_by(BLOCK) {
            let place = self.places[slot] + at as u64;
            // SAFETY: the slot's memory is mapped, as long as that, and its request has completed.
            let found = unsafe { memory.add(at).cast::<[u8; STAMP]>().read() };
            ensure!(
                found == stamp(place),
                "the block at {place} begins with {found:?}"
            );
        }
        Ok(())
    }

    fn until(&mut self, end: Instant) -> Result<()> {
        while Instant::now() < end {
            self.complete(Running::submit)?;
        }
        Ok(())
    }

    /// Waits for all that is in progress.
    fn finish(mut self) -> Result<Report> {
        let mut left = self.load.depth;
        while left > 0 || self.flushes > 0 {
            self.complete(|_, _| left -= 1)?;
        }
        Ok(Report {
            operations: self.latencies.len(),
            p50: Duration::from_nanos(self.latencies.value_at_quantile(0.5)),
        })
    }
}
