//! `perf engine`: CPU per operation of the engine's shapes, beside hand-written io_uring.
//!
//! Rounds interleave the contenders, and each round starts with another one, so that a machine
//! that slows down slows all of them down. Each shape runs on a fresh pinned thread with a
//! deadline. A failed check ends the whole run: there are no partial figures.

mod compio;
mod contender;
mod disk;
mod load;
mod own;
mod raw;
mod ring;
#[cfg(test)]
mod tests;
mod tokio;

use std::fmt;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::{Args, ValueEnum};

use self::contender::{
    CONNECTIONS, CommitJob, Contender, EchoJob, FAR_CPU, HopJob, NEAR_CPU, READ_DEPTH, ReadJob,
};
use crate::machine::{self, Facts, Mount};
use crate::report::{Limit, Peer, Row, Spread};

/// Everyone who can take part, in the order of the report.
const CONTENDERS: [&dyn Contender; 4] = [&raw::Raw, &own::Own, &tokio::Tokio, &compio::Compio];
/// Whom the others are compared with.
const PEER: &str = "raw";
/// Who has to keep the limits.
const JUDGED: &str = "engine";
/// The most CPU an operation may cost, times the peer's.
const RATIO_MAX: f64 = 1.15;
/// The longest median round trip between two shards.
const HOP_P50_NS_MAX: f64 = 3_000.0;
/// The commit file's length in batches: 64 MiB.
const COMMIT_SLOTS: u64 = 1024;
/// What a shape may take beyond its window before it counts as hung.
const GRACE: Duration = Duration::from_secs(30);
/// Part of the window that every shape runs once before the first round, uncounted.
const WARM_UP_PART: u32 = 5;

/// Options of `perf engine`.
#[derive(Args)]
pub struct EngineArgs {
    /// One JSON object per line in place of the table.
    #[arg(long)]
    pub json: bool,
    /// Fail when a bar is missed, or when none was judged.
    #[arg(long)]
    pub strict: bool,
    /// Rounds; every contender runs every shape once in each.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Seconds of one contender's window.
    #[arg(long, default_value_t = 1.0, value_parser = seconds)]
    seconds: f64,
    /// Where the test files go: a directory on a disk [default: the system's temporary directory].
    #[arg(long)]
    dir: Option<PathBuf>,
    /// MiB of the file that is read.
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u64).range(1..=65_536))]
    file_mib: u64,
    /// Shapes to run.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Shape::value_variants().to_vec())]
    shapes: Vec<Shape>,
    /// Contenders to run [default: all].
    #[arg(long, value_delimiter = ',')]
    contenders: Vec<String>,
}

fn seconds(text: &str) -> Result<f64> {
    let value: f64 = text
        .parse()
        .with_context(|| format!("{text} is no number of seconds"))?;
    ensure!(
        (0.01..=60.0).contains(&value),
        "{value} s is outside 0.01 to 60 s"
    );
    Ok(value)
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Shape {
    /// TCP echo on loopback: 64 connections, 128 bytes, one outstanding each.
    Echo,
    /// `O_DIRECT` random reads of 4 KiB, 32 in flight.
    Read,
    /// 16 records of 4 KiB as one write and one fdatasync, one commit at a time.
    Commit,
    /// Round trip between two pinned spinning threads.
    Hop,
}

impl Shape {
    fn name(self) -> &'static str {
        match self {
            Self::Echo => "echo",
            Self::Read => "read",
            Self::Commit => "commit",
            Self::Hop => "hop",
        }
    }

    fn unit(self) -> &'static str {
        match self {
            Self::Echo | Self::Read | Self::Commit => "us CPU/op",
            Self::Hop => "ns p50",
        }
    }

    fn limit(self) -> Limit {
        match self {
            Self::Echo | Self::Read | Self::Commit => Limit::Ratio(RATIO_MAX),
            Self::Hop => Limit::Value(HOP_P50_NS_MAX),
        }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Runs every chosen shape and gives one row per shape and contender.
pub fn run(args: &EngineArgs) -> Result<Vec<Row>> {
    let contenders = chosen(&args.contenders)?;
    let dir = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    show_facts(&dir)?;
    let mut bench = Bench::new(&dir, args)?;
    let window = Duration::from_secs_f64(args.seconds);
    for shape in &args.shapes {
        for contender in &contenders {
            bench.measure(*shape, *contender, window / WARM_UP_PART)?;
        }
    }
    let mut values = vec![Vec::new(); args.shapes.len() * contenders.len()];
    for round in 0..args.rounds as usize {
        eprintln!("round {} of {}, {}", round + 1, args.rounds, Facts::read()?);
        for (at, shape) in args.shapes.iter().enumerate() {
            for turn in 0..contenders.len() {
                let who = (round + turn) % contenders.len();
                let value = bench.measure(*shape, contenders[who], window)?;
                values[at * contenders.len() + who].push(value);
            }
        }
    }
    rows(&args.shapes, &contenders, &values)
}

fn show_facts(dir: &Path) -> Result<()> {
    let mount = Mount::of(dir)?;
    ensure!(
        !mount.is_memory(),
        "{} is {}, which is memory and not a disk: name a directory on a disk with --dir",
        dir.display(),
        mount.kind
    );
    eprintln!("{}", Facts::read()?);
    eprintln!("test files on {} ({})", mount.kind, mount.source);
    if cfg!(debug_assertions) {
        eprintln!("unoptimised build: these figures mean nothing, build with --release");
    }
    Ok(())
}

fn chosen(names: &[String]) -> Result<Vec<&'static dyn Contender>> {
    let known = || CONTENDERS.map(Contender::name).join(", ");
    for name in names {
        let exists = CONTENDERS.iter().any(|contender| contender.name() == name);
        ensure!(
            exists,
            "no contender is named {name}: there are {}",
            known()
        );
    }
    let wanted = |name: &str| names.is_empty() || names.iter().any(|chosen| chosen == name);
    Ok(CONTENDERS
        .into_iter()
        .filter(|contender| wanted(contender.name()))
        .collect())
}

/// Turns the rounds' values, shape by shape and contender by contender, into rows.
fn rows(
    shapes: &[Shape],
    contenders: &[&'static dyn Contender],
    values: &[Vec<f64>],
) -> Result<Vec<Row>> {
    let mut rows = Vec::with_capacity(values.len());
    for (shape, values) in shapes.iter().zip(values.chunks(contenders.len())) {
        let spreads: Vec<_> = values
            .iter()
            .map(|v| Spread::of(v))
            .collect::<Result<_>>()?;
        let peer = contenders
            .iter()
            .position(|contender| contender.name() == PEER);
        for (contender, spread) in contenders.iter().zip(&spreads) {
            rows.push(Row {
                bar: shape.name(),
                contender: contender.name(),
                unit: shape.unit(),
                spread: *spread,
                peer: peer.map(|at| Peer {
                    name: PEER.to_owned(),
                    median: spreads[at].median,
                }),
                limit: (contender.name() == JUDGED).then(|| shape.limit()),
            });
        }
    }
    Ok(rows)
}

/// The files of a run, and what tells its windows apart.
struct Bench {
    /// Removed with everything in it when the run ends.
    _dir: tempfile::TempDir,
    read_path: PathBuf,
    read_blocks: u64,
    commit_path: PathBuf,
    windows: u64,
}

impl Bench {
    fn new(parent: &Path, args: &EngineArgs) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("perf-engine-")
            .tempdir_in(parent)
            .with_context(|| format!("make a directory in {}", parent.display()))?;
        let bench = Self {
            read_path: dir.path().join("read"),
            read_blocks: (args.file_mib << 20) / disk::BLOCK_BYTES as u64,
            commit_path: dir.path().join("commit"),
            windows: 0,
            _dir: dir,
        };
        if args.shapes.contains(&Shape::Read) {
            disk::make_read_file(&bench.read_path, bench.read_blocks)?;
        }
        if args.shapes.contains(&Shape::Commit) {
            disk::make_commit_file(&bench.commit_path, COMMIT_SLOTS)?;
        }
        Ok(bench)
    }

    /// One window of one contender: its value in the shape's unit.
    fn measure(
        &mut self,
        shape: Shape,
        contender: &'static dyn Contender,
        window: Duration,
    ) -> Result<f64> {
        self.windows += 1;
        let value = match shape {
            Shape::Echo => echo(contender, window),
            Shape::Read => self.read(contender, window),
            Shape::Commit => self.commit(contender, window),
            Shape::Hop => pinned(NEAR_CPU, window, move || {
                contender.hop(HopJob { window })?.p50_ns()
            }),
        };
        value.with_context(|| format!("{shape} by {} failed", contender.name()))
    }

    fn read(&self, contender: &'static dyn Contender, window: Duration) -> Result<f64> {
        let job = ReadJob {
            path: self.read_path.clone(),
            blocks: self.read_blocks,
            depth: READ_DEPTH,
            seed: self.windows,
            window,
        };
        pinned(NEAR_CPU, window, move || contender.random_read(job))?.cpu_us_per_op()
    }

    fn commit(&self, contender: &'static dyn Contender, window: Duration) -> Result<f64> {
        let job = CommitJob {
            path: self.commit_path.clone(),
            slots: COMMIT_SLOTS,
            nonce: self.windows,
            window,
        };
        let sample = pinned(NEAR_CPU, window, move || contender.group_commit(job))?;
        disk::check_commits(&self.commit_path, COMMIT_SLOTS, self.windows, sample.ops)?;
        sample.cpu_us_per_op()
    }
}

fn echo(contender: &'static dyn Contender, window: Duration) -> Result<f64> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listen on loopback")?;
    let server = listener.local_addr().context("find the listener's port")?;
    let load = thread::spawn(move || {
        pinned(FAR_CPU, window, move || {
            load::generate(server, CONNECTIONS, window)
        })
    });
    let job = EchoJob {
        listener,
        connections: CONNECTIONS,
    };
    let served = pinned(NEAR_CPU, window, move || contender.echo_server(job));
    let sample = load
        .join()
        .map_err(|_| anyhow!("the load generator's keeper panicked"))?;
    // A server that failed is why its load failed; one that hangs may hang because its load failed.
    match (served, sample) {
        (Ok(()), sample) => sample?.cpu_us_per_op(),
        (Err(server), Ok(_)) => Err(server),
        (Err(server), Err(load)) => Err(load.context(format!("the server: {server:#}"))),
    }
}

/// Runs `work` on a fresh thread pinned to `cpu`, and gives up on it when it outlives its window
/// by far. A thread given up on cannot be stopped: the run ends, and the process with it.
fn pinned<T: Send + 'static>(
    cpu: usize,
    window: Duration,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let (done, result) = sync_channel(1);
    let thread = thread::Builder::new()
        .name(format!("perf-{cpu}"))
        .spawn(move || {
            let outcome = machine::pin(cpu).and_then(|()| work());
            // The receiver is gone only if it gave up, and then nobody asks for the outcome.
            let _ = done.send(outcome);
        });
    let thread = thread.context("start a thread")?;
    match result.recv_timeout(window * 2 + GRACE) {
        Ok(outcome) => {
            thread
                .join()
                .map_err(|_| anyhow!("the thread on CPU {cpu} panicked at its end"))?;
            outcome
        }
        Err(RecvTimeoutError::Disconnected) => bail!("the thread on CPU {cpu} panicked"),
        Err(RecvTimeoutError::Timeout) => {
            bail!("the thread on CPU {cpu} hangs: {GRACE:?} past its window of {window:?}")
        }
    }
}
