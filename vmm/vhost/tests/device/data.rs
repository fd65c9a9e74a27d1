//! Data by blkio, a stranger's driver of both ring forms.

use std::collections::BTreeMap;
use std::mem::MaybeUninit;
use std::os::unix::fs::FileExt;
use std::path::Path;

use blkio::{Blkio, Blkioq, Completion, MemoryRegion, ReqFlags};

use crate::support::{Backend, Disk, image};

const MIB: usize = 1 << 20;
/// The driver's memory.
const MEMORY: usize = 16 * MIB;

/// A connected driver with its memory.
struct Driver {
    blkio: Blkio,
    queues: Vec<Blkioq>,
    region: MemoryRegion,
}

impl Driver {
    fn connect(socket: &Path, queues: i32, read_only: bool) -> Driver {
        let mut blkio = Blkio::new("virtio-blk-vhost-user").unwrap();
        blkio.set_str("path", socket.to_str().unwrap()).unwrap();
        blkio.set_bool("read-only", read_only).unwrap();
        blkio.connect().unwrap();
        blkio.set_i32("num-queues", queues).unwrap();
        blkio.set_i32("queue-size", 512).unwrap();
        let queues = blkio.start().unwrap().queues;
        let region = blkio.alloc_mem_region(MEMORY).unwrap();
        blkio.map_mem_region(&region).unwrap();
        Driver {
            blkio,
            queues,
            region,
        }
    }

    fn capacity(&self) -> u64 {
        self.blkio.get_u64("capacity").unwrap()
    }

    /// Runs what was queued; what each request returned, by its number.
    fn finish(&mut self, queue: usize, count: usize) -> BTreeMap<usize, i32> {
        let mut done: Vec<MaybeUninit<Completion>> = Vec::new();
        done.resize_with(count, MaybeUninit::uninit);
        let ended = self.queues[queue]
            .do_io(&mut done, count, None, None)
            .unwrap();
        assert_eq!(ended, count);
        let ended = done.into_iter().map(|done| {
            // SAFETY: as many completions were written as were asked for.
            let done = unsafe { done.assume_init() };
            (done.user_data, done.ret)
        });
        ended.collect()
    }

    fn run(&mut self, queue: usize, request: impl FnOnce(&mut Blkioq)) -> i32 {
        request(&mut self.queues[queue]);
        self.finish(queue, 1)[&0]
    }

    fn memory(&self, at: usize) -> *mut u8 {
        std::ptr::with_exposed_provenance_mut(self.region.addr + at)
    }

    fn fill(&mut self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= self.region.len);
        // SAFETY: the region is mapped, ours, and nothing is in progress in this part of it.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.memory(at), bytes.len()) };
    }

    fn bytes(&self, at: usize, len: usize) -> Vec<u8> {
        assert!(at + len <= self.region.len);
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts(self.memory(at), len) }.to_vec()
    }
}

fn none() -> ReqFlags {
    ReqFlags::empty()
}

/// Numbers that look like chance and are the same in every run.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 32) as usize % bound
    }
}

/// Bytes that tell where they belong.
fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut random = Random::new(seed);
    std::iter::repeat_with(|| random.below(256) as u8)
        .take(len)
        .collect()
}

#[test]
fn what_is_written_is_read_and_is_in_the_file() {
    let (dir, path) = image(32 * MIB as u64);
    let socket = dir.path().join("s");
    let backend = Backend::listen(Disk::File(path.clone()), &socket);
    let mut driver = Driver::connect(&socket, 1, false);
    assert_eq!(driver.capacity(), 32 * MIB as u64);
    // Aligned, unaligned in memory, a sector, and a megabyte.
    for (number, (at, len, offset)) in [
        (0, 4096, 0_u64),
        (4096 + 512, 4096, 8192),
        (16 * 1024 + 8, 512, 512),
        (MIB, MIB, 2 * MIB as u64),
        (3 * MIB + 24, 3 * MIB, 8 * MIB as u64),
    ]
    .into_iter()
    .enumerate()
    {
        let bytes = pattern(number as u64, len);
        driver.fill(at, &bytes);
        let from = driver.memory(at);
        assert_eq!(driver.run(0, |q| q.write(offset, from, len, 0, none())), 0);
        assert_eq!(driver.run(0, |q| q.flush(0, none())), 0);
        let mut stored = vec![0; len];
        let file = std::fs::File::open(&path).unwrap();
        file.read_exact_at(&mut stored, offset).unwrap();
        assert_eq!(stored, bytes);
        driver.fill(at, &vec![0; len]);
        assert_eq!(driver.run(0, |q| q.read(offset, from, len, 0, none())), 0);
        assert_eq!(driver.bytes(at, len), bytes);
    }
    let stats = backend.stats();
    assert_eq!((stats.connections, stats.errors, stats.faults), (1, 0, 0));
    assert_eq!(stats.read_bytes, stats.written_bytes);
    drop(driver);
    backend.shutdown();
}

#[test]
fn many_requests_on_many_queues_leave_what_a_model_says() {
    const SECTOR: usize = 512;
    const SECTORS: usize = 8192;
    const DEPTH: usize = 32;
    let (dir, path) = image((SECTORS * SECTOR) as u64);
    let socket = dir.path().join("s");
    let backend = Backend::listen(Disk::File(path.clone()), &socket);
    let mut driver = Driver::connect(&socket, 4, false);
    let mut model = vec![0_u8; SECTORS * SECTOR];
    let mut random = Random::new(7);
    for round in 0..60 {
        let mut wanted = Vec::new();
        for number in 0..DEPTH {
            // Each request in a part of its own: what runs together must not overlap.
            let part = SECTORS / DEPTH;
            let first = random.below(part);
            let len = 1 + random.below((part - first).min(40));
            let offset = (number * part + first) * SECTOR;
            let (bytes, at) = (len * SECTOR, number * 64 * 1024);
            let (start, memory) = (offset as u64, driver.memory(at));
            let queue = &mut driver.queues[number % 4];
            let range = offset..offset + bytes;
            match random.below(5) {
                0 | 1 => {
                    let new = pattern(round * 1000 + number as u64, bytes);
                    model[range].copy_from_slice(&new);
                    driver.fill(at, &new);
                    driver.queues[number % 4].write(start, memory, bytes, number, none());
                }
                2 => {
                    queue.write_zeroes(start, bytes as u64, number, none());
                    model[range].fill(0);
                }
                3 => {
                    queue.write_zeroes(start, bytes as u64, number, ReqFlags::NO_UNMAP);
                    model[range].fill(0);
                }
                _ => {
                    queue.read(start, memory, bytes, number, none());
                    wanted.push((at, range));
                }
            }
        }
        for queue in 0..4 {
            let done = driver.finish(queue, DEPTH / 4);
            assert!(done.values().all(|ret| *ret == 0), "{done:?}");
        }
        for (at, range) in wanted {
            assert!(
                driver.bytes(at, range.len()) == model[range.clone()],
                "{range:?}"
            );
        }
    }
    assert_eq!(driver.run(0, |q| q.flush(0, none())), 0);
    assert!(std::fs::read(&path).unwrap() == model);
    drop(driver);
    backend.shutdown();
}

#[test]
fn more_in_flight_than_a_ring_has_in_progress_makes_progress() {
    const DEPTH: usize = 128;
    const LEN: usize = MEMORY / DEPTH;
    let (dir, path) = image(MEMORY as u64);
    let socket = dir.path().join("s");
    let backend = Backend::listen(Disk::File(path.clone()), &socket);
    let mut driver = Driver::connect(&socket, 1, false);
    let content = pattern(3, MEMORY);
    driver.fill(0, &content);
    for number in 0..DEPTH {
        let from = driver.memory(number * LEN);
        driver.queues[0].write((number * LEN) as u64, from, LEN, number, none());
    }
    let done = driver.finish(0, DEPTH);
    assert!(done.values().all(|ret| *ret == 0), "{done:?}");
    assert!(std::fs::read(&path).unwrap() == content);
    driver.fill(0, &vec![0; MEMORY]);
    for number in (0..DEPTH).rev() {
        let into = driver.memory(number * LEN);
        driver.queues[0].read((number * LEN) as u64, into, LEN, number, none());
    }
    let done = driver.finish(0, DEPTH);
    assert!(done.values().all(|ret| *ret == 0), "{done:?}");
    assert!(driver.bytes(0, MEMORY) == content);
    assert_eq!(backend.stats().requests, 2 * DEPTH as u64);
    drop(driver);
    backend.shutdown();
}

#[test]
fn discarded_space_goes_back_to_the_file_system() {
    use std::os::unix::fs::MetadataExt;
    let (dir, path) = image(4 * MIB as u64);
    let socket = dir.path().join("s");
    let backend = Backend::listen(Disk::File(path.clone()), &socket);
    let mut driver = Driver::connect(&socket, 1, false);
    driver.fill(0, &pattern(1, 2 * MIB));
    let from = driver.memory(0);
    assert_eq!(driver.run(0, |q| q.write(0, from, 2 * MIB, 0, none())), 0);
    assert_eq!(driver.run(0, |q| q.flush(0, none())), 0);
    let blocks = || std::fs::metadata(&path).unwrap().blocks();
    let before = blocks();
    assert_eq!(driver.run(0, |q| q.discard(0, MIB as u64, 0, none())), 0);
    assert!(blocks() < before);
    drop(driver);
    backend.shutdown();
}

#[test]
fn a_read_only_device_refuses_every_change() {
    let (dir, path) = image(MIB as u64);
    let socket = dir.path().join("s");
    let backend = Backend::listen(Disk::ReadOnly(path), &socket);
    let mut driver = Driver::connect(&socket, 1, true);
    let from = driver.memory(0);
    assert_eq!(driver.run(0, |q| q.read(0, from, 4096, 0, none())), 0);
    assert_ne!(driver.run(0, |q| q.write(0, from, 4096, 0, none())), 0);
    drop(driver);
    backend.shutdown();
}

#[test]
fn one_front_end_comes_after_the_other_and_errors_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let backend = Backend::listen(Disk::Null(MIB as u64), &socket);
    for _ in 0..3 {
        let mut driver = Driver::connect(&socket, 2, false);
        let from = driver.memory(0);
        assert_eq!(driver.run(1, |q| q.read(0, from, 4096, 0, none())), 0);
        let past = MIB as u64 - 512;
        assert_ne!(driver.run(1, |q| q.read(past, from, 1024, 0, none())), 0);
    }
    let stats = backend.stats();
    assert_eq!((stats.connections, stats.errors, stats.requests), (3, 3, 6));
    backend.shutdown();
}
