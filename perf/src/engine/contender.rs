//! What a contender must do: the four shapes as jobs, and the meter that counts them.
//!
//! A contender is one file with one implementation of [`Contender`]. Jobs carry everything a shape
//! is made of (sizes, depth, window, the check of each answer), so contenders differ in nothing
//! but how they do I/O. Work is counted only through a job, and a job counts only checked work.
//! A job never prints, never retries and never hides a failure.
#![forbid(unsafe_code)]

use std::cell::{Cell, RefCell};
use std::net::TcpListener;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::engine::disk::{self, Batch, Block};
use crate::machine;

/// Connections of the echo shape; each has one message outstanding.
pub const CONNECTIONS: usize = 64;
/// Bytes of an echoed message.
pub const MESSAGE_BYTES: usize = 128;
/// Bytes a server receives into. Larger than a message, as any real server's: a read that does not
/// fill its buffer tells a readiness runtime that the socket is empty, and saves it a failing one.
pub const BUFFER_BYTES: usize = 4096;
/// Reads in flight in the random-read shape.
pub const READ_DEPTH: usize = 32;
/// CPU of the measured thread.
pub const NEAR_CPU: usize = 0;
/// CPU of the load generator, and of the far side of the hop.
pub const FAR_CPU: usize = 1;

/// Ends a window that a clock cannot end.
const OPS_MAX: u64 = 100_000_000;
/// Asks the clock once in so many questions, so that the question costs no contender anything.
const CLOCK_STRIDE: u32 = 16;
/// Round trips one window keeps; the window ends when they are full.
const LAPS_MAX: usize = 1 << 20;

/// One runtime's way of doing each shape. Every function runs on a fresh thread pinned to
/// [`NEAR_CPU`], and returns once its threads, tasks and files are gone.
pub trait Contender: Sync {
    /// Its name in every report.
    fn name(&self) -> &'static str;
    /// Accepts the job's connections, sends back whatever they send, and ends when all of them
    /// have been closed by the other side.
    fn echo_server(&self, job: EchoJob) -> Result<()>;
    /// Keeps the job's depth of `O_DIRECT` reads in flight until the window closes.
    fn random_read(&self, job: ReadJob) -> Result<Sample>;
    /// Writes one batch and makes it durable, one after the other, until the window closes.
    fn group_commit(&self, job: CommitJob) -> Result<Sample>;
    /// Sends requests one at a time to a thread pinned to [`FAR_CPU`], neither side ever sleeping.
    fn hop(&self, job: HopJob) -> Result<Laps>;
}

/// What a window gave.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    /// Checked operations.
    pub ops: u64,
    /// CPU of the contender: every thread of the process but the load generator's.
    pub cpu: Duration,
}

impl Sample {
    /// Microseconds of CPU per operation.
    pub fn cpu_us_per_op(&self) -> Result<f64> {
        ensure!(
            self.ops > 0,
            "the window closed before one operation was done"
        );
        Ok(self.cpu.as_secs_f64() * 1e6 / self.ops as f64)
    }
}

/// Counts a window's operations and closes it. Lives on one thread.
pub struct Meter {
    cpu_before: Duration,
    deadline: Instant,
    asked: Cell<u32>,
    closed: Cell<bool>,
    started: Cell<u64>,
    done: Cell<u64>,
}

impl Meter {
    /// Opens the window; everything a contender sets up comes before.
    pub fn open(window: Duration) -> Self {
        Self {
            cpu_before: machine::process_cpu(),
            deadline: Instant::now() + window,
            asked: Cell::new(0),
            closed: Cell::new(false),
            started: Cell::new(0),
            done: Cell::new(0),
        }
    }

    /// The number of the next operation to start, counted from 0; none once the window is closed.
    pub fn next(&self) -> Option<u64> {
        self.asked.set(self.asked.get().wrapping_add(1));
        let number = self.started.get();
        let late = self.asked.get().is_multiple_of(CLOCK_STRIDE) && Instant::now() >= self.deadline;
        if late || number >= OPS_MAX {
            self.closed.set(true);
        }
        if self.closed.get() {
            return None;
        }
        self.started.set(number + 1);
        Some(number)
    }

    /// Counts one operation as done and checked.
    pub fn count(&self) {
        self.done.set(self.done.get() + 1);
    }

    /// Closes the books, which must balance: every started operation was done.
    pub fn close(&self) -> Result<Sample> {
        let cpu = machine::process_cpu().saturating_sub(self.cpu_before);
        let (started, ops) = (self.started.get(), self.done.get());
        ensure!(
            started == ops,
            "{started} operations were started, {ops} were done"
        );
        Ok(Sample { ops, cpu })
    }
}

/// A TCP echo server's work.
pub struct EchoJob {
    /// Bound and listening on loopback, in blocking mode.
    pub listener: TcpListener,
    /// Connections to accept, no more and no fewer.
    pub connections: usize,
}

/// Random reads over a stamped file.
#[derive(Clone)]
pub struct ReadJob {
    /// The file; to be opened with `O_DIRECT`.
    pub path: PathBuf,
    /// Its length in blocks.
    pub blocks: u64,
    /// Reads in flight.
    pub depth: usize,
    /// Where the sequence of blocks starts.
    pub seed: u64,
    /// How long to read.
    pub window: Duration,
}

impl ReadJob {
    /// The block that the `number`th read reads: the same sequence for every contender.
    pub fn pick(&self, number: u64) -> u64 {
        mix(self.seed.wrapping_add(number)) % self.blocks
    }

    /// Byte offset of a block.
    pub fn offset(block: u64) -> u64 {
        block * disk::BLOCK_BYTES as u64
    }

    /// Checks that a read of `block` was whole and brought that block.
    pub fn check(block: u64, read: usize, content: &Block) -> Result<()> {
        ensure!(
            read == disk::BLOCK_BYTES,
            "read of block {block} was short: {read} bytes"
        );
        disk::check_block(block, content)
    }
}

/// Durable batches over a ring of slots in a preallocated file.
#[derive(Clone)]
pub struct CommitJob {
    /// The file; to be opened with `O_DIRECT`.
    pub path: PathBuf,
    /// Batches the file holds.
    pub slots: u64,
    /// Tells this window's batches from every earlier one's.
    pub nonce: u64,
    /// How long to commit.
    pub window: Duration,
}

impl CommitJob {
    /// Byte offset of the `number`th commit.
    pub fn offset(&self, number: u64) -> u64 {
        number % self.slots * disk::BATCH_BYTES as u64
    }

    /// Fills in the `number`th commit's records.
    pub fn stamp(&self, number: u64, batch: &mut Batch) {
        disk::stamp_batch(self.nonce, number, batch);
    }

    /// Checks that a batch was written whole.
    pub fn check(number: u64, written: usize) -> Result<()> {
        let whole = disk::BATCH_BYTES;
        ensure!(
            written == whole,
            "commit {number} wrote {written} of {whole} bytes"
        );
        Ok(())
    }
}

/// Round trips between two spinning threads.
#[derive(Clone, Copy)]
pub struct HopJob {
    /// How long to go to and fro.
    pub window: Duration,
}

impl HopJob {
    /// What the far side must answer; never the request itself, never 0.
    pub fn answer(request: u64) -> u64 {
        mix(request) | 1
    }
}

/// The round trips of one window. Lives on the near thread.
pub struct Laps {
    deadline: Instant,
    nanos: RefCell<Vec<u32>>,
}

impl Laps {
    /// Opens the window; threads and queues are there already.
    pub fn open(job: HopJob) -> Self {
        let nanos = RefCell::new(Vec::with_capacity(LAPS_MAX));
        Self {
            deadline: Instant::now() + job.window,
            nanos,
        }
    }

    /// The next request, an even number so that no answer equals it; none once the window closed.
    pub fn next(&self) -> Option<u64> {
        let number = self.nanos.borrow().len();
        (number < LAPS_MAX && Instant::now() < self.deadline).then_some(2 * (number as u64 + 1))
    }

    /// Takes the time of one checked round trip.
    pub fn record(&self, request: u64, answer: u64, took: Duration) -> Result<()> {
        let expected = HopJob::answer(request);
        ensure!(
            answer == expected,
            "request {request}: answer {answer}, expected {expected}"
        );
        self.nanos
            .borrow_mut()
            .push(u32::try_from(took.as_nanos()).unwrap_or(u32::MAX));
        Ok(())
    }

    /// Median round trip in nanoseconds.
    pub fn p50_ns(self) -> Result<f64> {
        let mut nanos = self.nanos.into_inner();
        ensure!(
            !nanos.is_empty(),
            "the window closed before one round trip was done"
        );
        let middle = nanos.len() / 2;
        Ok(f64::from(*nanos.select_nth_unstable(middle).1))
    }
}

/// A bijection that leaves no order in its results (the finalizer of SplitMix64, Steele, Lea and
/// Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014).
fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_window_starts_nothing_more() {
        let meter = Meter::open(Duration::ZERO);
        let started = (0..100).filter(|_| meter.next().is_some()).count();
        assert!(started < CLOCK_STRIDE as usize);
        assert!(meter.next().is_none());
    }

    #[test]
    fn work_that_was_started_but_not_done_is_an_error() {
        let meter = Meter::open(Duration::from_mins(1));
        assert_eq!((meter.next(), meter.next()), (Some(0), Some(1)));
        meter.count();
        assert!(meter.close().is_err());
        meter.count();
        assert_eq!(meter.close().unwrap().ops, 2);
    }

    #[test]
    fn a_window_without_work_has_no_figure() {
        assert!(
            Sample {
                ops: 0,
                cpu: Duration::ZERO
            }
            .cpu_us_per_op()
            .is_err()
        );
        let sample = Sample {
            ops: 4,
            cpu: Duration::from_micros(10),
        };
        assert_eq!(sample.cpu_us_per_op().unwrap().to_bits(), 2.5f64.to_bits());
    }

    #[test]
    fn picks_stay_inside_the_file_and_repeat_for_a_seed() {
        let job = ReadJob {
            path: PathBuf::new(),
            blocks: 7,
            depth: 1,
            seed: 3,
            window: Duration::ZERO,
        };
        let picks: Vec<_> = (0..1000).map(|n| job.pick(n)).collect();
        assert!(picks.iter().all(|block| *block < 7));
        assert!((0..7).all(|block| picks.contains(&block)));
        assert_eq!(picks, (0..1000).map(|n| job.pick(n)).collect::<Vec<_>>());
    }

    #[test]
    fn a_wrong_answer_is_no_lap() {
        let laps = Laps::open(HopJob {
            window: Duration::from_mins(1),
        });
        let request = laps.next().unwrap();
        assert!(
            laps.record(request, request, Duration::from_nanos(5))
                .is_err()
        );
        for took in [9, 5, 7] {
            laps.record(request, HopJob::answer(request), Duration::from_nanos(took))
                .unwrap();
        }
        assert_eq!(laps.p50_ns().unwrap().to_bits(), 7.0f64.to_bits());
    }
}
