//! `perf objects`: GET, PUT and LIST of our server beside a static file server and other S3 servers.
//!
//! Each server runs on CPU 1, the others idle beside it; wrk and the threads that fill the servers
//! run on CPU 0; all on loopback and over files on
//! one disk. Rounds interleave the contenders, and each round starts with another one. A wrong
//! answer, or one failed request, ends the whole run: there are no partial figures. Every child is
//! killed with the run.
#![forbid(unsafe_code)]

mod body;
mod cell;
mod client;
mod contenders;
mod data;
mod proc;
mod process;
mod rows;
mod script;
mod site;
#[cfg(test)]
mod tests;
mod wrk;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};

use self::cell::{Cell, Job};
use self::contenders::CONTENDERS;
use self::rows::{Sample, Series};
use self::script::{Body, Script};
use self::site::Site;
use crate::machine::{Facts, Mount};
use crate::report::Row;

/// Length of the window that every cell runs once before the first round, uncounted.
const WARM_UP_S: u64 = 2;
/// The part of a window that the idle contenders may use together before it is told.
const IDLE_PART_MAX: f64 = 0.05;

/// Options of `perf objects`.
#[derive(Args)]
pub struct ObjectsArgs {
    /// One JSON object per line in place of the table.
    #[arg(long)]
    pub json: bool,
    /// Fail when a bar is missed, when none was judged, or when a contender is missing.
    #[arg(long)]
    pub strict: bool,
    /// Rounds; every contender runs every cell once in each.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Seconds of one contender's window.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,
    /// Where the servers keep their data: a directory on a disk [default: the system's temporary directory].
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Also list 100,000 and 1,000,000 keys; filling them takes minutes.
    #[arg(long)]
    large: bool,
    /// Cells to run [default: all but the large ones].
    #[arg(long, value_enum, value_delimiter = ',')]
    cells: Vec<Cell>,
    /// Contenders to run [default: all that are installed].
    #[arg(long, value_delimiter = ',')]
    contenders: Vec<String>,
}

impl ObjectsArgs {
    fn cells(&self) -> Vec<Cell> {
        let all = Cell::value_variants().iter().copied();
        if self.cells.is_empty() {
            return all.filter(|cell| self.large || !cell.is_large()).collect();
        }
        // In the order of the report, each once.
        all.filter(|cell| self.cells.contains(cell) || (self.large && cell.is_large()))
            .collect()
    }
}

/// Runs every chosen cell and gives the rows of every contender that took part.
pub fn run(args: &ObjectsArgs) -> Result<Vec<Row>> {
    let cells = args.cells();
    let parent = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    check_names(&args.contenders)?;
    show_facts(&parent)?;
    let mut bench = Bench::new(&parent, args)?;
    for site in &bench.sites {
        eprintln!("filling {}", site.name);
        data::fill(site, &cells)?;
    }
    let mut series = bench.series(&cells)?;
    for one in &mut series {
        bench.prepare(one)?;
        bench.window(one, WARM_UP_S.min(args.seconds))?;
    }
    for round in 0..args.rounds as usize {
        eprintln!("round {} of {}, {}", round + 1, args.rounds, Facts::read()?);
        for of_cell in series.chunk_by_mut(|one, next| one.cell == next.cell) {
            for turn in 0..of_cell.len() {
                let who = (round + turn) % of_cell.len();
                let sample = bench.window(&of_cell[who], args.seconds)?;
                of_cell[who].samples.push(sample);
            }
        }
    }
    rows::rows(&series)
}

fn check_names(names: &[String]) -> Result<()> {
    let known = CONTENDERS.iter().map(|contender| contender.name);
    for name in names {
        ensure!(
            known.clone().any(|known| known == name),
            "no contender is named {name}: there are {}",
            known.collect::<Vec<_>>().join(", ")
        );
    }
    Ok(())
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
    eprintln!("data on {} ({})", mount.kind, mount.source);
    Ok(())
}

/// The running contenders and the files of a run.
struct Bench {
    wrk: PathBuf,
    /// Killed before the directory below them is removed.
    sites: Vec<Site>,
    pool: Vec<u8>,
    windows: u32,
    /// Removed with everything in it when the run ends.
    dir: tempfile::TempDir,
}

impl Bench {
    fn new(parent: &Path, args: &ObjectsArgs) -> Result<Self> {
        let Some(wrk) = process::on_path("wrk") else {
            bail!("wrk is not installed: run `cargo xtask setup --bench`");
        };
        let dir = tempfile::Builder::new()
            .prefix("perf-objects-")
            .tempdir_in(parent)
            .with_context(|| format!("make a directory in {}", parent.display()))?;
        let mut bench = Self {
            wrk,
            sites: Vec::new(),
            pool: body::pool(),
            windows: 0,
            dir,
        };
        fs::write(bench.pool_path(), &bench.pool).context("write the pool of body bytes")?;
        bench.start(args)?;
        Ok(bench)
    }

    fn start(&mut self, args: &ObjectsArgs) -> Result<()> {
        let names = &args.contenders;
        let wanted = |name: &str| names.is_empty() || names.iter().any(|chosen| chosen == name);
        for contender in CONTENDERS.iter().filter(|contender| wanted(contender.name)) {
            if let Some(site) = contender.start(self.dir.path())? {
                eprintln!("{}: {} at {}", site.name, site.version, site.address);
                self.sites.push(site);
                continue;
            }
            let optional = contender.optional && names.is_empty();
            eprintln!("missing: {} ({})", contender.name, contender.hint);
            ensure!(
                optional || !args.strict,
                "{} is missing, and a strict run needs it: {}",
                contender.name,
                contender.hint
            );
        }
        ensure!(!self.sites.is_empty(), "no contender is installed");
        Ok(())
    }

    /// An empty series for every contender of every cell, cell by cell.
    fn series(&self, cells: &[Cell]) -> Result<Vec<Series>> {
        let mut series = Vec::new();
        for cell in cells {
            for site in self.sites.iter().filter(|site| site.serves(cell.job())) {
                series.push(Series {
                    cell: *cell,
                    contender: site.name,
                    answer_bytes_min: 0,
                    samples: Vec::new(),
                });
            }
        }
        ensure!(
            !series.is_empty(),
            "no contender of this run serves a chosen cell"
        );
        Ok(series)
    }

    /// Compares a contender's answers in a cell, and writes what will be asked of it.
    fn prepare(&self, series: &mut Series) -> Result<()> {
        let site = self.site(series)?;
        series.answer_bytes_min = data::check(site, series.cell)?;
        data::write_targets(site, series.cell, &self.targets_path(series))
    }

    /// One window of one contender in one cell.
    fn window(&mut self, series: &Series, seconds: u64) -> Result<Sample> {
        self.windows += 1;
        let sample = self.load(series, seconds);
        let name = series.cell.name();
        sample.with_context(|| format!("{name} by {} failed", series.contender))
    }

    fn load(&self, series: &Series, seconds: u64) -> Result<Sample> {
        let (cell, site) = (series.cell, self.site(series)?);
        let script = self.dir.path().join("script.lua");
        fs::write(&script, self.script(series, site)?).context("write the load's script")?;
        self.settle()?;
        let load = wrk::Load {
            wrk: &self.wrk,
            script: &script,
            address: site.address,
            connections: cell.connections(),
            seconds,
            dir: self.dir.path(),
        };
        let (idle, before) = (self.idle_cpu(site)?, site.cpu()?);
        let report = load.run();
        let report =
            report.with_context(|| format!("the server's words:{}", site.process.tail()))?;
        ensure!(
            report.bytes >= report.requests * series.answer_bytes_min,
            "{} answers of the load hold {} bytes, expected {} each at least",
            report.requests,
            report.bytes,
            series.answer_bytes_min
        );
        let (cpu, idle) = (
            site.cpu()?.saturating_sub(before),
            self.idle_cpu(site)?.saturating_sub(idle),
        );
        if idle > report.duration.mul_f64(IDLE_PART_MAX) {
            eprintln!(
                "while {} ran {}, idle contenders used {idle:?}",
                site.name,
                cell.name()
            );
        }
        ensure!(
            !cpu.is_zero(),
            "the server used no CPU that the kernel has counted"
        );
        data::check_written(site, cell, &self.pool)?;
        Ok(Sample { report, cpu })
    }

    fn script(&self, series: &Series, site: &Site) -> Result<String> {
        let pool = self.pool_path();
        let body = match series.cell.job() {
            Job::Get(_) | Job::List(_) => Body::None,
            Job::Put(bytes) => Body::Put {
                bytes,
                pool: &pool,
                window: self.windows,
            },
        };
        Script {
            host: &site.address.to_string(),
            targets: &self.targets_path(series),
            body,
        }
        .lua()
    }

    /// Writes out what earlier windows left in memory, so that nobody pays for another's writes.
    fn settle(&self) -> Result<()> {
        let status = Command::new("sync").arg("-f").arg(self.dir.path()).status();
        let status = status.context("run sync")?;
        ensure!(status.success(), "sync ended with {status}");
        Ok(())
    }

    /// CPU of all contenders but one.
    fn idle_cpu(&self, busy: &Site) -> Result<Duration> {
        let idle = self.sites.iter().filter(|site| site.name != busy.name);
        idle.map(Site::cpu).sum()
    }

    fn site(&self, series: &Series) -> Result<&Site> {
        let mut sites = self.sites.iter();
        let site = sites.find(|site| site.name == series.contender);
        site.with_context(|| format!("{} does not run", series.contender))
    }

    fn pool_path(&self) -> PathBuf {
        self.dir.path().join("pool")
    }

    fn targets_path(&self, series: &Series) -> PathBuf {
        let name = format!("targets-{}-{}", series.contender, series.cell.name());
        self.dir.path().join(name)
    }
}
