//! `perf chainfire`: put, get, watch and lease of ChainFire beside Debian's etcd.
//!
//! Clusters of one and of three members; every member of both runs on CPU 1 with fsync on, and the
//! load on CPU 0, a connection for each client. Rounds interleave the contenders, and each round starts
//! with the other one. A wrong answer, or one failed request, ends the whole run.
#![forbid(unsafe_code)]

pub mod cluster;
mod crowd;
pub mod load;
mod rows;

use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use tokio::runtime::Runtime;

use self::cluster::{Cluster, ETCD, Kind};
use self::load::KEYS;
use self::rows::{Bar, Cell, Series};
use crate::machine::{self, Facts, Mount};
use crate::objects::page;
use crate::process::LOAD_CPU;
use crate::report::Row;

/// Length of the window that every cell runs once before the first round, uncounted.
const WARM_UP_S: u64 = 1;
/// Between windows: what a member does later is done by then, and the sum of rounds is long anyway.
const REST: Duration = Duration::from_millis(500);
/// Events that are sent to the watchers.
const EVENTS: u32 = 20;

/// Options of `perf chainfire`.
#[derive(Args)]
pub struct ChainfireArgs {
    /// One JSON object per line in place of the table.
    #[arg(long)]
    pub json: bool,
    /// Fail when a bar is missed, when none was judged, or when a contender is missing.
    #[arg(long)]
    pub strict: bool,
    /// Also write the rows into this page, as its section on ChainFire.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Rounds; every contender runs every cell once in each.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Seconds of one contender's window.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,
    /// Where the members keep their data: a directory on a disk [default: the system's temporary directory].
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Members of the clusters.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 3])]
    members: Vec<u8>,
    /// Cells to run, by the beginnings of their names [default: all].
    #[arg(long, value_delimiter = ',')]
    cells: Vec<String>,
    /// Keys of the trial of memory; 0 leaves it out.
    #[arg(long, default_value_t = 1_000_000)]
    keys: u64,
    /// Watchers of the trial of watches; 0 leaves it out.
    #[arg(long, default_value_t = 1_000)]
    watchers: usize,
    /// Leases of the trial of leases; 0 leaves it out.
    #[arg(long, default_value_t = 100_000)]
    leases: u64,
}

/// Runs every cell and trial, and gives the rows of every contender that took part.
pub fn run(args: &ChainfireArgs) -> Result<Vec<Row>> {
    let parent = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    let mount = Mount::of(&parent)?;
    ensure!(
        !mount.is_memory(),
        "{} is {}, which is memory and not a disk: name a directory on a disk with --dir",
        parent.display(),
        mount.kind
    );
    let mut facts = vec![
        Facts::read()?.to_string(),
        format!("data on {} ({})", mount.kind, mount.source),
    ];
    let kinds = Kind::installed();
    ensure!(
        !kinds.is_empty(),
        "no contender is installed: run `cargo xtask bench chainfire`"
    );
    ensure!(
        !args.strict || kinds.len() == 2,
        "a strict run needs both ChainFire and {ETCD}"
    );
    for kind in &kinds {
        let version = format!("{kind}: {}", kind.version());
        facts.push(version);
    }
    for fact in &facts {
        eprintln!("{fact}");
    }
    machine::pin(LOAD_CPU)?;
    let bench = Bench {
        args,
        kinds,
        parent,
        runtime: tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("start the load's runtime")?,
    };
    let rows = bench.run()?;
    if let Some(path) = &args.report {
        page::write(path, &page::CHAINFIRE, &facts, &rows)?;
        eprintln!("written: {}", path.display());
    }
    Ok(rows)
}

struct Bench<'a> {
    args: &'a ChainfireArgs,
    kinds: Vec<Kind>,
    parent: PathBuf,
    runtime: Runtime,
}

impl Bench<'_> {
    fn run(&self) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        for members in &self.args.members {
            rows.extend(self.cells(usize::from(*members))?);
        }
        if self.args.watchers > 0 {
            rows.extend(self.trial(Bar::WatchEvent, |cluster| self.watch(cluster))?);
        }
        if self.args.leases > 0 {
            rows.extend(self.trial(Bar::LeaseGrant, |cluster| self.lease(cluster))?);
        }
        if self.args.keys > 0 {
            rows.extend(self.trial(Bar::Memory, |cluster| self.memory(cluster))?);
        }
        Ok(rows)
    }

    fn directory(&self) -> Result<tempfile::TempDir> {
        tempfile::Builder::new()
            .prefix("perf-chainfire-")
            .tempdir_in(&self.parent)
            .with_context(|| format!("make a directory in {}", self.parent.display()))
    }

    /// A cluster that answers, with the keys of the cells.
    fn cluster(&self, kind: &Kind, members: usize, dir: &std::path::Path) -> Result<Cluster> {
        let mut cluster = Cluster::start(kind, members, &dir.join(kind.name()))?;
        let endpoints = cluster.endpoints.clone();
        let serves = || {
            let one = |endpoint| load::fill(std::slice::from_ref(endpoint), 0, 1);
            let mut all = endpoints.iter();
            all.all(|endpoint| self.runtime.block_on(one(endpoint)).is_ok())
                .then_some(())
        };
        cluster.until("serving", serves)?;
        let filled = self.runtime.block_on(load::fill(&endpoints, 0, KEYS));
        filled.with_context(|| format!("fill {kind}{}", cluster.tail()))?;
        Ok(cluster)
    }

    fn cells(&self, members: usize) -> Result<Vec<Row>> {
        let dir = self.directory()?;
        eprintln!("{members} members: starting and filling");
        let clusters: Vec<Cluster> = self
            .kinds
            .iter()
            .map(|kind| self.cluster(kind, members, dir.path()))
            .collect::<Result<_>>()?;
        let wanted = |cell: &&Cell| {
            let cells = &self.args.cells;
            cells.is_empty() || cells.iter().any(|start| cell.name.starts_with(start))
        };
        let mut series: Vec<Series> = Cell::of(members)
            .iter()
            .filter(wanted)
            .flat_map(|cell| clusters.iter().map(|one| Series::new(*cell, one.name)))
            .collect();
        for round in 0..=self.args.rounds as usize {
            eprintln!("round {round} of {}, {}", self.args.rounds, Facts::read()?);
            for of_cell in series.chunks_mut(clusters.len()) {
                for turn in 0..clusters.len() {
                    let who = (round + turn) % clusters.len();
                    let seconds = if round == 0 {
                        WARM_UP_S
                    } else {
                        self.args.seconds
                    };
                    let sample = self.window(&clusters[who], of_cell[who].cell, seconds)?;
                    if round > 0 {
                        of_cell[who].samples.push(sample);
                    }
                }
            }
        }
        rows::rows(&series)
    }

    fn window(&self, cluster: &Cluster, cell: Cell, seconds: u64) -> Result<rows::Sample> {
        thread::sleep(REST);
        let before = cluster.cpu()?;
        let window = Duration::from_secs(seconds);
        let load = load::run(&cluster.endpoints, cell.job, cell.clients, window);
        let report = self.runtime.block_on(load);
        let report = report.with_context(|| {
            let name = cluster.name;
            format!("{} by {name} failed{}", cell.name, cluster.tail())
        })?;
        let cpu = cluster.cpu()?.saturating_sub(before);
        Ok(rows::Sample { report, cpu })
    }

    /// Runs a trial on a cluster of one member of each contender, one after the other.
    fn trial(&self, bar: Bar, measure: impl Fn(&Cluster) -> Result<Vec<f64>>) -> Result<Vec<Row>> {
        let mut found = Vec::new();
        for kind in &self.kinds {
            eprintln!("trial: {} of {kind}", bar.name());
            let dir = self.directory()?;
            let cluster = self.cluster(kind, 1, dir.path())?;
            let values = measure(&cluster);
            let values = values.with_context(|| format!("{kind} failed{}", cluster.tail()))?;
            found.push((cluster.name, values));
        }
        rows::trial(bar, &found)
    }

    fn watch(&self, cluster: &Cluster) -> Result<Vec<f64>> {
        let endpoints = &cluster.endpoints;
        self.runtime.block_on(async {
            let mut watchers = crowd::Watchers::start(endpoints, self.args.watchers).await?;
            let mut millis = Vec::new();
            for _ in 0..EVENTS {
                let took = watchers.event(&endpoints[0]).await?;
                millis.push(took.as_secs_f64() * 1e3);
            }
            Ok(millis)
        })
    }

    fn lease(&self, cluster: &Cluster) -> Result<Vec<f64>> {
        let leases = self.args.leases;
        let took = self
            .runtime
            .block_on(crowd::grant(&cluster.endpoints, leases))?;
        Ok(vec![took.as_secs_f64() * 1e6 / leases as f64])
    }

    fn memory(&self, cluster: &Cluster) -> Result<Vec<f64>> {
        let fill = load::fill(&cluster.endpoints, 0, self.args.keys);
        self.runtime.block_on(fill)?;
        Ok(vec![cluster.memory()? as f64 / f64::from(1 << 20)])
    }
}
