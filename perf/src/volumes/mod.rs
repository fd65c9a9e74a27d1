//! `perf volumes`: volumes and the null device by vhost-user-blk, beside qemu-storage-daemon.
//!
//! Each backend is a process on CPU 1, and the front end runs on CPU 0; the others idle beside it. Rounds
//! interleave the contenders, and each round starts with another one. A wrong block, or one failed
//! request, ends the whole run.

mod backend;
mod cells;
mod front;
pub mod server;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use self::backend::{Backend, QEMU};
use self::cells::{CELLS, Cell, Contender, Metric, Place};
use self::front::Front;
use crate::machine::{self, Facts, Mount};
use crate::objects::page;
use crate::process::{self, LOAD_CPU};
use crate::report::{Peer, Row, Spread};

/// Length of the window that every cell runs once before the first round, uncounted.
const WARM_UP: Duration = Duration::from_millis(500);

/// Options of `perf volumes`.
#[derive(Args)]
pub struct VolumesArgs {
    /// One JSON object per line in place of the table.
    #[arg(long)]
    pub json: bool,
    /// Fail when a bar is missed, when none was judged, or when the peer is missing.
    #[arg(long)]
    pub strict: bool,
    /// Also write the rows into this page, as its section on CoronaFS.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Rounds; every contender runs every cell once in each. Many short ones, as a shared disk has moods of
    /// some seconds.
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Seconds of one window.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,
    /// Size of each device in MiB.
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u64).range(16..=1 << 20))]
    mib: u64,
    /// Cells to run, by the beginnings of their names [default: all].
    #[arg(long, value_delimiter = ',')]
    cells: Vec<String>,
    /// The front end's memory lies in huge pages, as a guest's may; the system must have two free ones
    /// (vm.nr_hugepages).
    #[arg(long)]
    huge_pages: bool,
    /// A directory on a disk [default: the system's temporary directory].
    #[arg(long)]
    dir: Option<PathBuf>,
    /// A directory in memory.
    #[arg(long, default_value = "/dev/shm")]
    tmpfs: PathBuf,
}

/// What the windows of one contender in one cell gave, in microseconds an operation.
struct Series {
    cell: usize,
    contender: Contender,
    cpu: Vec<f64>,
    p50: Vec<f64>,
}

impl Series {
    fn of(&self, metric: Metric) -> &[f64] {
        match metric {
            Metric::Cpu => &self.cpu,
            Metric::P50 => &self.p50,
        }
    }
}

/// Runs every chosen cell, and gives the rows of every contender that took part.
pub fn run(args: &VolumesArgs) -> Result<Vec<Row>> {
    let disk = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    let mut facts = vec![Facts::read()?.to_string()];
    for (dir, memory) in [(&disk, false), (&args.tmpfs, true)] {
        let mount = Mount::of(dir)?;
        let (kind, what) = (&mount.kind, if memory { "--tmpfs" } else { "--dir" });
        ensure!(
            mount.is_memory() == memory,
            "{} is {kind}: name another directory by {what}",
            dir.display()
        );
        let source = if memory { "memory" } else { &mount.source };
        facts.push(format!("data on {kind} ({source})"));
    }
    if args.huge_pages {
        facts.push("front end's memory in huge pages".to_owned());
    }
    let peer = process::on_path(QEMU).and_then(|path| process::version(&path, "--version"));
    match &peer {
        Some(version) => facts.push(version.clone()),
        None if args.strict => bail!("{QEMU} is missing: run `cargo xtask setup --bench`"),
        None => eprintln!("missing: {QEMU}; `cargo xtask setup --bench` installs it"),
    }
    for fact in &facts {
        eprintln!("{fact}");
    }
    machine::pin(LOAD_CPU)?;
    let bench = Bench::start(args, &disk, peer.is_some())?;
    let rows = bench.run()?;
    if let Some(path) = &args.report {
        page::write(path, &page::VOLUMES, &facts, &rows)?;
        eprintln!("written: {}", path.display());
    }
    Ok(rows)
}

struct Bench<'a> {
    args: &'a VolumesArgs,
    backends: Vec<Backend>,
    series: Vec<Series>,
    /// Removed with everything in them when the run ends.
    dirs: [tempfile::TempDir; 2],
}

impl<'a> Bench<'a> {
    fn start(args: &'a VolumesArgs, disk: &Path, with_peer: bool) -> Result<Bench<'a>> {
        let dirs = [temporary(disk)?, temporary(&args.tmpfs)?];
        let mut bench = Bench {
            args,
            backends: Vec::new(),
            series: Vec::new(),
            dirs,
        };
        let wanted = |name: &str| {
            let mut starts = args.cells.iter();
            args.cells.is_empty() || starts.any(|start| name.starts_with(start))
        };
        for (number, cell) in CELLS.iter().enumerate() {
            if !wanted(cell.name) {
                continue;
            }
            for contender in cell.contenders {
                // Without the peer there is no file of its either.
                if !with_peer && matches!(contender, Contender::Qemu | Contender::Plain) {
                    continue;
                }
                bench.ensure(*contender, cell.place)?;
                bench.series.push(Series {
                    cell: number,
                    contender: *contender,
                    cpu: Vec::new(),
                    p50: Vec::new(),
                });
            }
        }
        ensure!(!bench.series.is_empty(), "no cell has such a name");
        Ok(bench)
    }

    fn ensure(&mut self, contender: Contender, place: Place) -> Result<()> {
        if self.find(contender, place).is_ok() {
            return Ok(());
        }
        eprintln!("starting {} on {place:?}", contender.name());
        let [disk, memory] = &self.dirs;
        let dir = if place == Place::Disk { disk } else { memory };
        let bytes = self.args.mib << 20;
        let started = Backend::start(contender, place, dir.path(), bytes);
        self.backends.push(started?);
        Ok(())
    }

    fn find(&self, contender: Contender, place: Place) -> Result<&Backend> {
        let of = |one: &&Backend| one.contender == contender && one.place == place;
        let found = self.backends.iter().find(of);
        found.with_context(|| format!("{} was not started", contender.name()))
    }

    fn run(mut self) -> Result<Vec<Row>> {
        for at in 0..self.series.len() {
            self.window(at, WARM_UP)?;
        }
        for round in 0..self.args.rounds as usize {
            let (this, of) = (round + 1, self.args.rounds);
            eprintln!("round {this} of {of}, {}", Facts::read()?);
            let mut first = 0;
            while first < self.series.len() {
                let cell = self.series[first].cell;
                let mut rest = self.series[first..].iter();
                let count = rest.position(|one| one.cell != cell);
                let count = count.unwrap_or(self.series.len() - first);
                for turn in 0..count {
                    let at = first + (round + turn) % count;
                    let window = Duration::from_secs(self.args.seconds);
                    let (cpu, p50) = self.window(at, window)?;
                    let (cell, by) = (CELLS[self.series[at].cell].name, self.series[at].contender);
                    let cpu_us = cpu.unwrap_or_default();
                    eprintln!(
                        "{cell} by {}: {cpu_us:.2} us CPU/op, p50 {p50:.1} us",
                        by.name()
                    );
                    self.series[at].cpu.extend(cpu);
                    self.series[at].p50.push(p50);
                }
                first += count;
            }
        }
        self.rows()
    }

    /// One window: CPU, when there is a backend, and median latency.
    fn window(&self, at: usize, window: Duration) -> Result<(Option<f64>, f64)> {
        let (cell, contender) = (&CELLS[self.series[at].cell], self.series[at].contender);
        let backend = self.find(contender, cell.place)?;
        let measure = || {
            let target = backend.target(cell.front_polls);
            let mut front = Front::connect(&target, &cell.load, self.args.huge_pages)?;
            let before = backend.cpu()?;
            let report = front.run(&cell.load, window)?;
            let cpu = backend.cpu()?.zip(before);
            let each = |took: Duration| took.as_secs_f64() * 1e6 / report.operations as f64;
            let cpu = cpu.map(|(after, before)| each(after.saturating_sub(before)));
            anyhow::Ok((cpu, report.p50.as_secs_f64() * 1e6))
        };
        measure().with_context(|| {
            let (name, tail) = (contender.name(), backend.tail());
            format!("{} by {name} failed{tail}", cell.name)
        })
    }

    fn rows(&self) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        for metric in [Metric::Cpu, Metric::P50] {
            for one in self.series.iter().filter(|one| !one.of(metric).is_empty()) {
                rows.push(self.row(one, metric)?);
            }
        }
        Ok(rows)
    }

    /// A row that is judged stands beside whom its bar names, any other beside the peer.
    fn row(&self, one: &Series, metric: Metric) -> Result<Row> {
        let cell: &Cell = &CELLS[one.cell];
        let mut judges = cell.judges.iter();
        let judge = judges.find(|judge| (judge.of, judge.metric) == (one.contender, metric));
        let beside = judge.map_or(Contender::Qemu, |judge| judge.beside);
        let of = |other: &&Series| (other.cell, other.contender) == (one.cell, beside);
        let peer = self.series.iter().find(of).map(|peer| {
            let median = Spread::of(peer.of(metric))?.median;
            let name = beside.name().to_owned();
            anyhow::Ok(Peer { name, median })
        });
        Ok(Row {
            bar: match metric {
                Metric::Cpu => cell.cpu,
                Metric::P50 => cell.p50,
            },
            contender: one.contender.name(),
            unit: match metric {
                Metric::Cpu => "us CPU/op",
                Metric::P50 => "us",
            },
            spread: Spread::of(one.of(metric))?,
            peer: peer.transpose()?,
            limit: judge.map(|judge| judge.limit),
        })
    }
}

fn temporary(parent: &Path) -> Result<tempfile::TempDir> {
    tempfile::Builder::new()
        .prefix("perf-volumes-")
        .tempdir_in(parent)
        .with_context(|| format!("make a directory in {}", parent.display()))
}
