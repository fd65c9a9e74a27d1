//! tokio as a peer: a `current_thread` runtime on epoll, files through its blocking pool.
//!
//! Each shape as a tokio program would write it. The pool's threads inherit the pinned thread's
//! CPU and their time counts. For the hop a yielding task keeps each runtime from parking, which
//! is what "spinning" means where the runtime owns the loop. Never uses a feature that tokio marks
//! unstable.
#![forbid(unsafe_code)]

use std::os::unix::fs::FileExt;
use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use futures_channel::mpsc;
use futures_util::StreamExt as _;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::task::{JoinSet, LocalSet, spawn_blocking, yield_now};

use crate::engine::contender::{
    BUFFER_BYTES, CommitJob, Contender, EchoJob, FAR_CPU, HopJob, Laps, Meter, READ_DEPTH, ReadJob,
    Sample,
};
use crate::engine::disk::{self, Batch, Block};
use crate::machine;

/// tokio, one thread.
pub struct Tokio;

impl Contender for Tokio {
    fn name(&self) -> &'static str {
        "tokio"
    }

    fn echo_server(&self, job: EchoJob) -> Result<()> {
        runtime()?.block_on(async {
            job.listener
                .set_nonblocking(true)
                .context("make the listener non-blocking")?;
            let listener = TcpListener::from_std(job.listener)?;
            let mut connections = JoinSet::new();
            for _ in 0..job.connections {
                connections.spawn(echo(listener.accept().await.context("accept")?.0));
            }
            while let Some(ended) = connections.join_next().await {
                ended??;
            }
            Ok(())
        })
    }

    fn random_read(&self, job: ReadJob) -> Result<Sample> {
        let file = Arc::new(disk::open_direct(&job.path, false)?);
        let runtime = runtime()?;
        LocalSet::new().block_on(&runtime, async {
            let meter = Rc::new(Meter::open(job.window));
            let mut readers = JoinSet::new();
            for _ in 0..job.depth {
                readers.spawn_local(read(file.clone(), job.clone(), meter.clone()));
            }
            while let Some(ended) = readers.join_next().await {
                ended??;
            }
            meter.close()
        })
    }

    fn group_commit(&self, job: CommitJob) -> Result<Sample> {
        let file = Arc::new(disk::open_direct(&job.path, true)?);
        runtime()?.block_on(async {
            let mut batch = Batch::zeroed();
            let meter = Meter::open(job.window);
            while let Some(number) = meter.next() {
                job.stamp(number, &mut batch);
                let (file, offset) = (file.clone(), job.offset(number));
                let (written, returned) = spawn_blocking(move || {
                    let written = file.write_at(&batch.0, offset);
                    (
                        written.and_then(|bytes| file.sync_data().map(|()| bytes)),
                        batch,
                    )
                })
                .await?;
                CommitJob::check(number, written.with_context(|| format!("commit {number}"))?)?;
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
    Builder::new_current_thread()
        .enable_io()
        .max_blocking_threads(READ_DEPTH)
        .build()
        .context("start a tokio runtime")
}

async fn echo(mut stream: TcpStream) -> Result<()> {
    let mut message = [0; BUFFER_BYTES];
    loop {
        let bytes = stream.read(&mut message).await.context("receive")?;
        if bytes == 0 {
            return Ok(());
        }
        stream.write_all(&message[..bytes]).await.context("send")?;
    }
}

async fn read(file: Arc<std::fs::File>, job: ReadJob, meter: Rc<Meter>) -> Result<()> {
    let mut content = Block::zeroed();
    while let Some(number) = meter.next() {
        let block = job.pick(number);
        let file = file.clone();
        let (read, returned) = spawn_blocking(move || {
            let read = file.read_at(&mut content.0, ReadJob::offset(block));
            (read, content)
        })
        .await?;
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
        yield_now().await;
    }
}

/// Dropping `requests` at the end, or on failure, ends the far side.
fn near_side(
    job: HopJob,
    mut requests: mpsc::Sender<u64>,
    mut answers: mpsc::Receiver<u64>,
) -> Result<Laps> {
    runtime()?.block_on(async {
        tokio::spawn(spin());
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
        tokio::spawn(spin());
        while let Some(request) = requests.next().await {
            answers
                .try_send(HopJob::answer(request))
                .context("send an answer")?;
        }
        Ok(())
    })
}
