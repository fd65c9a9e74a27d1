//! `perf objects`: GET, PUT and LIST of our server beside a static file server and other S3 servers.
//!
//! Each server runs on CPU 1, the others idle beside it; wrk and the threads that fill the servers
//! run on CPU 0; all on loopback and over files on
//! one disk. Rounds interleave the contenders, and each round starts with another one. A wrong
//! answer, or one failed request, ends the whole run: there are no partial figures. Trials of our
//! node alone follow when the others are gone. Every child is killed with the run.
#![forbid(unsafe_code)]

pub mod big;
mod body;
mod cell;
mod client;
mod contenders;
mod data;
mod fill;
mod options;
pub mod page;
mod rows;
pub mod script;
mod site;
#[cfg(test)]
mod tests;
mod trial;
pub mod wrk;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use self::cell::{Cell, Job};
use self::contenders::{CONTENDERS, Node};
pub use self::options::ObjectsArgs;
use self::rows::{Sample, Series};
use self::script::{Body, Script};
use self::site::Site;
use crate::machine::{Facts, Mount};
use crate::process;
use crate::report::Row;

/// Length of the window that every cell runs once before the first round, uncounted.
const WARM_UP_S: u64 = 2;
/// How long the contenders must rest together before a window.
const REST: Duration = Duration::from_millis(500);
/// CPU that they may use meanwhile: a tick of the kernel's count.
const REST_CPU_MAX: Duration = Duration::from_millis(10);
/// Rests that are tried: what is not done after a minute runs beside the window.
const RESTS_MAX: usize = 120;
/// The part of a window that the idle contenders may use together before it is told.
const IDLE_PART_MAX: f64 = 0.05;

/// Runs every chosen cell and trial, and gives the rows of every contender that took part.
pub fn run(args: &ObjectsArgs) -> Result<Vec<Row>> {
    let parent = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    args.check_names()?;
    let Some(wrk) = process::on_path("wrk") else {
        bail!("wrk is not installed: run `cargo xtask setup --bench`");
    };
    let mut facts = vec![Facts::read()?.to_string(), show_facts(&parent)?];
    let mut rows = Vec::new();
    let cells = args.cells();
    if !cells.is_empty() {
        let mut bench = Bench::new(&parent, &wrk, args)?;
        facts.extend(bench.versions());
        rows.extend(bench.run(&cells, args)?);
    }
    rows.extend(trials(args, &wrk, &parent)?);
    if let Some(path) = &args.report {
        let is_scale = cells.is_empty() && args.trials() == [trial::Trial::Scale];
        let section = if is_scale {
            &page::SCALE
        } else {
            &page::OBJECTS
        };
        page::write(path, section, &facts, &rows)?;
        eprintln!("written: {}", path.display());
    }
    Ok(rows)
}

fn trials(args: &ObjectsArgs, wrk: &Path, parent: &Path) -> Result<Vec<Row>> {
    let trials = args.trials();
    if trials.is_empty() {
        return Ok(Vec::new());
    }
    let Some(program) = Node::find() else {
        let chosen = !args.cells.is_empty();
        let missing = "our server is missing, so that no trial is run: name it in ULTRACLOUD_BIN";
        ensure!(!args.strict && !chosen, missing);
        eprintln!("{missing}");
        return Ok(Vec::new());
    };
    let dir = temporary(parent)?;
    let mut rows = Vec::new();
    for trial in trials {
        rows.extend(trial.run(args, &program, wrk, dir.path())?);
    }
    Ok(rows)
}

/// A directory that is removed, with everything in it, when the run ends.
fn temporary(parent: &Path) -> Result<tempfile::TempDir> {
    tempfile::Builder::new()
        .prefix("perf-objects-")
        .tempdir_in(parent)
        .with_context(|| format!("make a directory in {}", parent.display()))
}

/// Shows what the figures were measured on, and gives what is known of the disk.
fn show_facts(dir: &Path) -> Result<String> {
    let mount = Mount::of(dir)?;
    ensure!(
        !mount.is_memory(),
        "{} is {}, which is memory and not a disk: name a directory on a disk with --dir",
        dir.display(),
        mount.kind
    );
    eprintln!("{}", Facts::read()?);
    let disk = format!("data on {} ({})", mount.kind, mount.source);
    eprintln!("{disk}");
    Ok(disk)
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
    fn new(parent: &Path, wrk: &Path, args: &ObjectsArgs) -> Result<Self> {
        let dir = temporary(parent)?;
        let mut bench = Self {
            wrk: wrk.to_owned(),
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
        for contender in CONTENDERS.iter().filter(|one| args.runs(one.name)) {
            if let Some(site) = contender.start(self.dir.path())? {
                let address = site.endpoint.address;
                eprintln!("{}: {} at {address}", site.name, site.version);
                self.sites.push(site);
                continue;
            }
            let optional = contender.optional && args.contenders.is_empty();
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

    /// What each contender says it is.
    fn versions(&self) -> impl Iterator<Item = String> {
        let sites = self.sites.iter();
        sites.map(|site| format!("{}: {}", site.name, site.version))
    }

    /// Fills the sites and runs every cell, round by round.
    fn run(&mut self, cells: &[Cell], args: &ObjectsArgs) -> Result<Vec<Row>> {
        for site in &self.sites {
            eprintln!("filling {}", site.name);
            data::fill(site, cells)?;
        }
        self.rest(cells[0])?;
        let mut series = self.series(cells)?;
        for one in &mut series {
            self.prepare(one)?;
            self.window(one, WARM_UP_S.min(args.seconds))?;
        }
        for round in 0..args.rounds as usize {
            let (this, of) = (round + 1, args.rounds);
            eprintln!("round {this} of {of}, {}", Facts::read()?);
            for of_cell in series.chunk_by_mut(|one, next| one.cell == next.cell) {
                for turn in 0..of_cell.len() {
                    let who = (round + turn) % of_cell.len();
                    let sample = self.window(&of_cell[who], args.seconds)?;
                    of_cell[who].samples.push(sample);
                }
            }
        }
        rows::rows(&series)
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
            address: site.endpoint.address,
            connections: cell.connections(),
            seconds,
            yields: false,
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
        let ended = site.cpu()?;
        self.rest(cell)?;
        let after = site.cpu()?.saturating_sub(ended);
        data::check_written(site, cell, &self.pool)?;
        Ok(Sample { report, cpu, after })
    }

    fn script(&self, series: &Series, site: &Site) -> Result<String> {
        let pool = self.pool_path();
        let body = match series.cell.job() {
            Job::Get(_) | Job::List(_) | Job::Roll(_) => Body::None,
            Job::Put(bytes) => Body::Put {
                bytes,
                pool: &pool,
                window: self.windows,
            },
        };
        Script {
            host: &site.endpoint.address.to_string(),
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

    /// Waits until no contender works any more: merges and compaction after a window of PUTs are that
    /// window's, and stand in its own row.
    fn rest(&self, cell: Cell) -> Result<()> {
        let cpu = || self.sites.iter().map(Site::cpu).sum::<Result<Duration>>();
        let mut before = cpu()?;
        for _ in 0..RESTS_MAX {
            std::thread::sleep(REST);
            let now = cpu()?;
            if now.saturating_sub(before) <= REST_CPU_MAX {
                return Ok(());
            }
            before = now;
        }
        let waited = REST * RESTS_MAX as u32;
        eprintln!("{}: a contender still works after {waited:?}", cell.name());
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
