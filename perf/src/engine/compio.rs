//! compio as a peer: completion-based, one thread, with every ring flag its builder offers.
//!
//! Each shape as a compio program would write it: it has no linked chain, so a commit is a write
//! and then an fdatasync. For the hop a yielding task keeps each runtime from parking. Never
//! reaches below its public interface.

use std::future::poll_fn;
use std::mem::MaybeUninit;
use std::rc::Rc;
use std::task::Poll;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use compio::buf::{BufResult, IoBuf, IoBufMut, SetLen};
use compio::driver::ProactorBuilder;
use compio::fs::{File, OpenOptions};
use compio::io::{AsyncRead, AsyncReadAt, AsyncWriteAt, AsyncWriteExt};
use compio::net::{TcpListener, TcpStream};
use compio::runtime::{JoinHandle, Runtime, RuntimeBuilder, spawn};
use futures_channel::mpsc;
use futures_util::StreamExt as _;

use crate::engine::contender::{
    BUFFER_BYTES, CommitJob, Contender, EchoJob, FAR_CPU, HopJob, Laps, Meter, ReadJob, Sample,
};
use crate::engine::disk::{Batch, Block};
use crate::machine;

/// compio, one thread.
pub struct Compio;

impl Contender for Compio {
    fn name(&self) -> &'static str {
        "compio"
    }

    fn echo_server(&self, job: EchoJob) -> Result<()> {
        runtime()?.block_on(async {
            let listener = TcpListener::from_std(job.listener)?;
            let mut connections = Vec::with_capacity(job.connections);
            for _ in 0..job.connections {
                let (stream, _) = listener.accept().await.context("accept")?;
                connections.push(spawn(echo(stream)));
            }
            join(connections).await
        })
    }

    fn random_read(&self, job: ReadJob) -> Result<Sample> {
        runtime()?.block_on(async {
            let file = OpenOptions::new()
                .read(true)
                .custom_flags(libc::O_DIRECT)
                .open(&job.path)
                .await
                .with_context(|| format!("open {}", job.path.display()))?;
            let meter = Rc::new(Meter::open(job.window));
            let readers = (0..job.depth)
                .map(|_| spawn(read(file.clone(), job.clone(), meter.clone())))
                .collect();
            join(readers).await?;
            meter.close()
        })
    }

    fn group_commit(&self, job: CommitJob) -> Result<Sample> {
        runtime()?.block_on(async {
            let mut file = OpenOptions::new()
                .write(true)
                .custom_flags(libc::O_DIRECT)
                .open(&job.path)
                .await
                .with_context(|| format!("open {}", job.path.display()))?;
            let mut batch = Batch::zeroed();
            let meter = Meter::open(job.window);
            while let Some(number) = meter.next() {
                job.stamp(number, &mut batch);
                let BufResult(written, returned) = file.write_at(batch, job.offset(number)).await;
                CommitJob::check(
                    number,
                    written.with_context(|| format!("write commit {number}"))?,
                )?;
                file.sync_data()
                    .await
                    .with_context(|| format!("sync commit {number}"))?;
                batch = returned;
                meter.count();
            }
            meter.close()
        })
    }

    fn hop(&self, job: HopJob) -> Result<Laps> {
        let (requests, inbox) = mpsc::channel(1);
        let (replies, answers) = mpsc::channel(1);
        let far = thread::spawn(move || far_side(inbox, replies));
        let near = near_side(job, requests, answers);
        far.join()
            .map_err(|_| anyhow!("the far side of the hop panicked"))??;
        near
    }
}

fn runtime() -> Result<Runtime> {
    let mut ring = ProactorBuilder::new();
    ring.single_issuer(true)
        .defer_taskrun(true)
        .coop_taskrun(true)
        .taskrun_flag(true);
    RuntimeBuilder::new()
        .with_proactor(ring)
        .build()
        .context("start a compio runtime")
}

/// Waits for every task, and gives the first failure.
async fn join(tasks: Vec<JoinHandle<Result<()>>>) -> Result<()> {
    for task in tasks {
        task.await
            .map_err(|error| anyhow!("a compio task ended early: {error:?}"))??;
    }
    Ok(())
}

async fn echo(mut stream: TcpStream) -> Result<()> {
    let mut message = Vec::with_capacity(BUFFER_BYTES);
    loop {
        message.clear();
        let BufResult(received, filled) = stream.read(message).await;
        if received.context("receive")? == 0 {
            return Ok(());
        }
        let BufResult(sent, returned) = stream.write_all(filled).await;
        sent.context("send")?;
        message = returned;
    }
}

async fn read(file: File, job: ReadJob, meter: Rc<Meter>) -> Result<()> {
    let mut content = Block::zeroed();
    while let Some(number) = meter.next() {
        let block = job.pick(number);
        let BufResult(read, returned) = file.read_at(content, ReadJob::offset(block)).await;
        content = returned;
        ReadJob::check(
            block,
            read.with_context(|| format!("read block {block}"))?,
            &content,
        )?;
        meter.count();
    }
    Ok(())
}

/// Keeps the runtime's loop turning; dropped with the runtime.
async fn spin() {
    loop {
        let mut yielded = false;
        poll_fn(|context| {
            if yielded {
                return Poll::Ready(());
            }
            yielded = true;
            context.waker().wake_by_ref();
            Poll::Pending
        })
        .await;
    }
}

/// Dropping `requests` at the end, or on failure, ends the far side.
fn near_side(
    job: HopJob,
    mut requests: mpsc::Sender<u64>,
    mut answers: mpsc::Receiver<u64>,
) -> Result<Laps> {
    runtime()?.block_on(async {
        let _spinning = spawn(spin());
        let laps = Laps::open(job);
        while let Some(request) = laps.next() {
            let before = Instant::now();
            requests.try_send(request).context("send a request")?;
            let answer = answers
                .next()
                .await
                .context("the far side of the hop has gone")?;
            laps.record(request, answer, before.elapsed())?;
        }
        Ok(laps)
    })
}

fn far_side(mut requests: mpsc::Receiver<u64>, mut answers: mpsc::Sender<u64>) -> Result<()> {
    machine::pin(FAR_CPU)?;
    runtime()?.block_on(async {
        let _spinning = spawn(spin());
        while let Some(request) = requests.next().await {
            answers
                .try_send(HopJob::answer(request))
                .context("send an answer")?;
        }
        Ok(())
    })
}

/// Gives compio the aligned memory of the disk shapes; such memory is always full.
macro_rules! lend {
    ($memory:ty) => {
        impl IoBuf for $memory {
            fn as_init(&self) -> &[u8] {
                &self.0
            }
        }

        impl SetLen for $memory {
            unsafe fn set_len(&mut self, len: usize) {
                assert!(
                    len <= self.0.len(),
                    "a read never fills more than its buffer"
                );
            }
        }

        impl IoBufMut for $memory {
            fn as_uninit(&mut self) -> &mut [MaybeUninit<u8>] {
                self.0.as_uninit()
            }
        }
    };
}

lend!(Block);
lend!(Batch);
