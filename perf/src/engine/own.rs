//! Our engine as the contender that the bars are about: one shard on the near CPU, pooled buffers,
//! tasks and futures as product code uses them.
//!
//! Nothing here reaches below the engine's public interface.

use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use engine::fs::{File, OpenOptions};
use engine::net::{TcpListener, TcpStream};
use engine::{
    DmaBuf, Engine, EngineConfig, LocalFut, SchedGroup, ShardId, Sharded, SpinPolicy, Task,
};

use crate::engine::contender::{
    BUFFER_BYTES, CommitJob, Contender, EchoJob, FAR_CPU, HopJob, Laps, Meter, NEAR_CPU, ReadJob,
    Sample,
};
use crate::engine::disk::{BATCH_BYTES, BLOCK_BYTES, Batch, Block};

/// The engine of this workspace.
pub struct Own;

impl Contender for Own {
    fn name(&self) -> &'static str {
        "engine"
    }

    fn echo_server(&self, job: EchoJob) -> Result<()> {
        on_shard(config(&[NEAR_CPU]), move || {
            Box::pin(async move {
                let mut listener = TcpListener::from_fd(job.listener.into());
                let mut connections = Vec::with_capacity(job.connections);
                for _ in 0..job.connections {
                    let stream = listener.accept().await.context("accept")?;
                    connections.push(engine::spawn_local(SchedGroup::FOREGROUND, echo(stream)));
                }
                join(connections).await
            })
        })
    }

    fn random_read(&self, job: ReadJob) -> Result<Sample> {
        on_shard(config(&[NEAR_CPU]), move || {
            Box::pin(async move {
                let file = Rc::new(open(&job.path, false).await?);
                let meter = Rc::new(Meter::open(job.window));
                let readers = (0..job.depth)
                    .map(|_| {
                        let task = read(Rc::clone(&file), job.clone(), Rc::clone(&meter));
                        engine::spawn_local(SchedGroup::FOREGROUND, task)
                    })
                    .collect();
                join(readers).await?;
                meter.close()
            })
        })
    }

    fn group_commit(&self, job: CommitJob) -> Result<Sample> {
        on_shard(config(&[NEAR_CPU]), move || {
            Box::pin(async move {
                let file = open(&job.path, true).await?;
                let mut buf = engine::take_buf(BATCH_BYTES)?;
                let meter = Meter::open(job.window);
                while let Some(number) = meter.next() {
                    job.stamp(number, batch(&mut buf)?);
                    let (written, returned) =
                        file.write_then_datasync(buf, job.offset(number)).await;
                    written.with_context(|| format!("commit {number}"))?;
                    CommitJob::check(number, BATCH_BYTES)?;
                    buf = returned;
                    meter.count();
                }
                meter.close()
            })
        })
    }

    fn hop(&self, job: HopJob) -> Result<Laps> {
        let mut config = config(&[NEAR_CPU, FAR_CPU]);
        config.spin = SpinPolicy::Always(Duration::from_millis(10));
        let group = config.add_service("hop", 1, 16, Duration::from_secs(30));
        let engine = Engine::start(config)?;
        let handle = engine.handle();
        let far: Sharded<()> = Sharded::new(&handle);
        let placed = far.clone();
        handle.call_blocking(ShardId(1), move |_| {
            Box::pin(async move { placed.set_local(Rc::new(())) })
        })?;
        let laps = handle.call_blocking(ShardId(0), move |_| {
            Box::pin(async move {
                let laps = Laps::open(job);
                while let Some(request) = laps.next() {
                    let before = Instant::now();
                    let answer = far
                        .invoke_on(ShardId(1), group, move |_| async move {
                            HopJob::answer(request)
                        })
                        .await?;
                    laps.record(request, answer, before.elapsed())?;
                }
                Ok(laps)
            })
        })?;
        engine.shutdown()?;
        laps
    }
}

fn config(cpus: &[usize]) -> EngineConfig {
    EngineConfig {
        cpus: cpus.iter().copied().map(Some).collect(),
        ..EngineConfig::default()
    }
}

/// Runs a future on the first shard of a fresh engine; the calling thread sleeps meanwhile.
fn on_shard<R: Send + 'static>(
    config: EngineConfig,
    f: impl FnOnce() -> LocalFut<Result<R>> + Send + 'static,
) -> Result<R> {
    let engine = Engine::start(config)?;
    let result = engine.handle().call_blocking(ShardId(0), move |_| f())?;
    engine.shutdown()?;
    result
}

async fn open(path: &std::path::Path, write: bool) -> Result<File> {
    let options = OpenOptions {
        write,
        direct: true,
        ..OpenOptions::default()
    };
    Ok(File::open(path, options).await?)
}

async fn join(tasks: Vec<Task<Result<()>>>) -> Result<()> {
    for task in tasks {
        task.await?;
    }
    Ok(())
}

async fn echo(stream: TcpStream) -> Result<()> {
    let mut message = engine::take_buf(BUFFER_BYTES)?;
    loop {
        let (received, mut filled) = stream.recv(message).await;
        let bytes = received.context("receive")?;
        if bytes == 0 {
            return Ok(());
        }
        filled.set_len(bytes);
        let (sent, returned) = stream.send(filled).await;
        sent.context("send")?;
        message = returned;
    }
}

async fn read(file: Rc<File>, job: ReadJob, meter: Rc<Meter>) -> Result<()> {
    let mut buf = engine::take_buf(BLOCK_BYTES)?;
    while let Some(number) = meter.next() {
        let block = job.pick(number);
        let (read, returned) = file.read_at(buf, ReadJob::offset(block)).await;
        buf = returned;
        ReadJob::check(
            block,
            read.with_context(|| format!("read block {block}"))?,
            seen(&buf)?,
        )?;
        meter.count();
    }
    Ok(())
}

fn seen(buf: &DmaBuf) -> Result<&Block> {
    #[expect(clippy::cast_ptr_alignment, reason = "checked in the next line")]
    let aligned = buf.as_ptr().cast::<Block>();
    anyhow::ensure!(
        buf.len() >= BLOCK_BYTES && aligned.is_aligned(),
        "a buffer is no block"
    );
    // SAFETY: the buffer holds a whole block, aligned as one (both checked), and outlives the
    // reference; a block is plain bytes.
    Ok(unsafe { &*aligned })
}

fn batch(buf: &mut DmaBuf) -> Result<&mut Batch> {
    anyhow::ensure!(buf.len() >= BATCH_BYTES, "a buffer is no batch");
    #[expect(clippy::cast_ptr_alignment, reason = "checked in the next line")]
    let aligned = buf.as_mut_ptr().cast::<Batch>();
    anyhow::ensure!(aligned.is_aligned(), "a buffer is not aligned as a batch");
    // SAFETY: as for `seen`, and `&mut` is exclusive.
    Ok(unsafe { &mut *aligned })
}
