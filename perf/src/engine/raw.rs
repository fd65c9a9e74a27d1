//! The floor: each shape as a hand-written io_uring program, without an executor.
//!
//! One-shot operations on a SINGLE_ISSUER | DEFER_TASKRUN | COOP_TASKRUN ring; the disk shapes use
//! a registered file and registered buffers. Echo uses plain descriptors: registering them gains
//! nothing there. The hop is two cache lines. Never tuned for one machine.

use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, anyhow, bail, ensure};
use io_uring::{opcode, squeue, types};

use crate::engine::contender::{
    BUFFER_BYTES, CommitJob, Contender, EchoJob, FAR_CPU, HopJob, Laps, Meter, ReadJob, Sample,
};
use crate::engine::disk::{self, BATCH_BYTES, BLOCK_BYTES, Batch, Block};
use crate::engine::ring::Ring;
use crate::machine;

/// The registered file's number.
const FILE: types::Fixed = types::Fixed(0);

/// Hand-written io_uring.
pub struct Raw;

impl Contender for Raw {
    fn name(&self) -> &'static str {
        "raw"
    }

    fn echo_server(&self, job: EchoJob) -> Result<()> {
        EchoServer::accept(&job)?.serve()
    }

    fn random_read(&self, job: ReadJob) -> Result<Sample> {
        let file = disk::open_direct(&job.path, false)?;
        let slots = (0..job.depth).map(|_| ReadSlot {
            block: 0,
            content: Block::zeroed(),
        });
        let mut ring = Ring::new(job.depth, slots.collect::<Box<[_]>>())?;
        ring.register_file(file.as_raw_fd())?;
        let buffers: Vec<_> = ring
            .memory()
            .iter_mut()
            .map(|slot| iovec(&mut slot.content.0))
            .collect();
        // SAFETY: each buffer is a boxed block in the ring's memory.
        unsafe { ring.register_buffers(&buffers)? };
        let meter = Meter::open(job.window);
        for slot in 0..job.depth {
            start_read(&mut ring, slot, &job, &meter)?;
        }
        while ring.in_flight() > 0 {
            ring.wait()?;
            let ready = ring.take_completions();
            for completion in &ready {
                let slot = completion.tag as usize;
                let ReadSlot { block, content } = &ring.memory()[slot];
                let read = completion
                    .bytes()
                    .with_context(|| format!("read block {block}"))?;
                ReadJob::check(*block, read, content)?;
                meter.count();
                start_read(&mut ring, slot, &job, &meter)?;
            }
            ring.give_back(ready);
        }
        meter.close()
    }

    fn group_commit(&self, job: CommitJob) -> Result<Sample> {
        let file = disk::open_direct(&job.path, true)?;
        let mut ring = Ring::new(2, Batch::zeroed())?;
        ring.register_file(file.as_raw_fd())?;
        let buffer = iovec(&mut ring.memory().0);
        // SAFETY: the buffer is the ring's boxed memory.
        unsafe { ring.register_buffers(&[buffer])? };
        let meter = Meter::open(job.window);
        while let Some(number) = meter.next() {
            job.stamp(number, ring.memory());
            commit(&mut ring, &job, number)?;
            meter.count();
        }
        meter.close()
    }

    fn hop(&self, job: HopJob) -> Result<Laps> {
        hop(job)
    }
}

/// A read's block and where its bytes go.
struct ReadSlot {
    block: u64,
    content: Box<Block>,
}

fn iovec(bytes: &mut [u8]) -> libc::iovec {
    libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    }
}

/// Queues the slot's next read while the window is open.
fn start_read(
    ring: &mut Ring<Box<[ReadSlot]>>,
    slot: usize,
    job: &ReadJob,
    meter: &Meter,
) -> Result<()> {
    let Some(number) = meter.next() else {
        return Ok(());
    };
    let block = job.pick(number);
    let ReadSlot {
        block: current,
        content,
    } = &mut ring.memory()[slot];
    *current = block;
    let at = content.0.as_mut_ptr();
    let read = opcode::ReadFixed::new(FILE, at, BLOCK_BYTES as u32, slot as u16)
        .offset(ReadJob::offset(block))
        .build()
        .user_data(slot as u64);
    // SAFETY: `at` is the slot's boxed block, and the slot is next looked at when this read has
    // completed.
    unsafe { ring.push(&read) }
}

/// Tags of the two links of a commit.
const WRITE: u64 = 0;
const SYNC: u64 = 1;

/// One write, linked to one fdatasync that starts only if the write was whole.
fn commit(ring: &mut Ring<Box<Batch>>, job: &CommitJob, number: u64) -> Result<()> {
    let at = ring.memory().0.as_ptr();
    let write = opcode::WriteFixed::new(FILE, at, BATCH_BYTES as u32, 0)
        .offset(job.offset(number))
        .build()
        .flags(squeue::Flags::IO_LINK)
        .user_data(WRITE);
    let sync = opcode::Fsync::new(FILE)
        .flags(types::FsyncFlags::DATASYNC)
        .build()
        .user_data(SYNC);
    // SAFETY: `at` is the ring's boxed memory, next touched when both links have completed.
    unsafe {
        ring.push(&write)?;
        ring.push(&sync)?;
    }
    while ring.in_flight() > 0 {
        ring.wait()?;
        let ready = ring.take_completions();
        for completion in &ready {
            let bytes = completion
                .bytes()
                .with_context(|| format!("commit {number}"))?;
            if completion.tag == WRITE {
                CommitJob::check(number, bytes)?;
            }
        }
        ring.give_back(ready);
    }
    Ok(())
}

/// A connection's one buffer: filled by a receive, then emptied by sends.
struct Connection {
    message: [u8; BUFFER_BYTES],
    filled: usize,
    sent: usize,
}

struct EchoServer {
    sockets: Vec<TcpStream>,
    ring: Ring<Box<[Connection]>>,
}

/// Set in the tag of a send, clear in that of a receive.
const SEND: u64 = 1 << 32;

impl EchoServer {
    fn accept(job: &EchoJob) -> Result<Self> {
        let mut sockets = Vec::with_capacity(job.connections);
        for _ in 0..job.connections {
            sockets.push(job.listener.accept().context("accept")?.0);
        }
        let connections = (0..job.connections)
            .map(|_| Connection {
                message: [0; BUFFER_BYTES],
                filled: 0,
                sent: 0,
            })
            .collect();
        Ok(Self {
            sockets,
            ring: Ring::new(job.connections, connections)?,
        })
    }

    fn serve(mut self) -> Result<()> {
        for connection in 0..self.sockets.len() {
            self.receive(connection)?;
        }
        while self.ring.in_flight() > 0 {
            self.ring.wait()?;
            let ready = self.ring.take_completions();
            for completion in &ready {
                let connection = (completion.tag & !SEND) as usize;
                let bytes = completion
                    .bytes()
                    .with_context(|| format!("connection {connection}"))?;
                if completion.tag & SEND == 0 {
                    self.received(connection, bytes)?;
                } else {
                    self.sent(connection, bytes)?;
                }
            }
            self.ring.give_back(ready);
        }
        Ok(())
    }

    /// Nothing received means that the other side has closed: the connection is done.
    fn received(&mut self, connection: usize, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        let state = &mut self.ring.memory()[connection];
        (state.filled, state.sent) = (bytes, 0);
        self.send(connection)
    }

    fn sent(&mut self, connection: usize, bytes: usize) -> Result<()> {
        ensure!(bytes > 0, "connection {connection}: a send sent nothing");
        let state = &mut self.ring.memory()[connection];
        state.sent += bytes;
        if state.sent < state.filled {
            self.send(connection)
        } else {
            self.receive(connection)
        }
    }

    fn receive(&mut self, connection: usize) -> Result<()> {
        let socket = types::Fd(self.sockets[connection].as_raw_fd());
        let at = self.ring.memory()[connection].message.as_mut_ptr();
        let recv = opcode::Recv::new(socket, at, BUFFER_BYTES as u32)
            .build()
            .user_data(connection as u64);
        // SAFETY: `at` is the connection's part of the ring's boxed memory; a connection has one
        // operation at a time and its message is touched only between them.
        unsafe { self.ring.push(&recv) }
    }

    fn send(&mut self, connection: usize) -> Result<()> {
        let socket = types::Fd(self.sockets[connection].as_raw_fd());
        let state = &self.ring.memory()[connection];
        let rest = &state.message[state.sent..state.filled];
        let send = opcode::Send::new(socket, rest.as_ptr(), rest.len() as u32)
            .build()
            .user_data(connection as u64 | SEND);
        // SAFETY: as for `receive`.
        unsafe { self.ring.push(&send) }
    }
}

/// A word alone on its cache line and on the one the CPU fetches with it.
#[repr(align(128))]
struct Line(AtomicU64);

/// Tells the far side to end; never a request, which is even.
const END: u64 = u64::MAX;
/// Looks at a line before a silent other side is given up: minutes.
const SPINS_MAX: u64 = 1 << 36;

impl Line {
    const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    fn put(&self, word: u64) {
        self.0.store(word, Ordering::Release);
    }

    /// Spins until the word is another than `known`.
    fn next(&self, known: u64) -> Result<u64> {
        for _ in 0..SPINS_MAX {
            let word = self.0.load(Ordering::Acquire);
            if word != known {
                return Ok(word);
            }
            std::hint::spin_loop();
        }
        bail!("the other side of the hop fell silent after {known}")
    }
}

/// Ends the far side, also when the near side fails.
struct EndOnDrop<'a>(&'a Line);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.put(END);
    }
}

fn hop(job: HopJob) -> Result<Laps> {
    let (requests, answers) = (Line::new(), Line::new());
    thread::scope(|scope| {
        let far = scope.spawn(|| far_side(&requests, &answers));
        let near = near_side(job, &EndOnDrop(&requests), &answers);
        far.join()
            .map_err(|_| anyhow!("the far side of the hop panicked"))??;
        near
    })
}

fn near_side(job: HopJob, requests: &EndOnDrop<'_>, answers: &Line) -> Result<Laps> {
    let laps = Laps::open(job);
    let mut last = 0;
    while let Some(request) = laps.next() {
        let before = Instant::now();
        requests.0.put(request);
        let answer = answers.next(last)?;
        laps.record(request, answer, before.elapsed())?;
        last = answer;
    }
    Ok(laps)
}

fn far_side(requests: &Line, answers: &Line) -> Result<()> {
    machine::pin(FAR_CPU)?;
    let mut last = 0;
    loop {
        let request = requests.next(last)?;
        if request == END {
            return Ok(());
        }
        answers.put(HopJob::answer(request));
        last = request;
    }
}
