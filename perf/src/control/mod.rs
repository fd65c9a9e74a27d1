//! `perf control`: what the control kit costs.
//!
//! - An authenticated call that does nothing, by gRPC and by REST, beside a bare tonic and a bare axum server.
//! - Steps of operations and reservations of a quota, on ChainFire of one and of three members: their rate, and
//!   what each costs in writes.
//!
//! Servers run on CPU 1, the load on CPU 0. Every answer is looked at: a wrong one ends the run.
#![forbid(unsafe_code)]

mod noop;
pub mod server;
mod work;

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::Args;

use crate::chainfire::cluster::{Cluster, Kind};
use crate::machine::{self, Facts, Mount};
use crate::objects::page;
use crate::process::LOAD_CPU;
use crate::report::{Limit, Peer, Row, Spread};

/// Options of `perf control`.
#[derive(Args)]
pub struct ControlArgs {
    /// One JSON object per line in place of the table.
    #[arg(long)]
    pub json: bool,
    /// Fail when a bar is missed, or none was judged.
    #[arg(long)]
    pub strict: bool,
    /// Also write the rows into this page, as its section on the control kit.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Rounds; every contender runs every cell once in each.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Seconds of one window.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,
    /// Where ChainFire keeps its data: a directory on a disk [default: the system's temporary directory].
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Members of ChainFire; 0 leaves operations and reservations out.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 3])]
    members: Vec<u8>,
}

/// What the rounds of one contender gave, metric by metric.
struct Found {
    contender: &'static str,
    rounds: Vec<Vec<f64>>,
}

/// A metric of a cell.
struct Metric {
    bar: &'static str,
    unit: &'static str,
    limit: Option<Limit>,
}

/// The rows of a cell: the first contender's are judged, beside the last one's.
fn rows(metrics: &[Metric], found: &[Found]) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for (at, metric) in metrics.iter().enumerate() {
        let of = |one: &Found| {
            let values: Vec<f64> = one.rounds.iter().map(|round| round[at]).collect();
            Spread::of(&values)
        };
        let (first, last) = (found.first(), found.last());
        let peer = last.filter(|_| found.len() > 1);
        let peer = peer.map(|peer| {
            Ok::<_, anyhow::Error>(Peer {
                name: peer.contender.to_owned(),
                median: of(peer)?.median,
            })
        });
        let peer = peer.transpose()?;
        for one in found {
            let judged = first.is_some_and(|first| first.contender == one.contender);
            rows.push(Row {
                bar: metric.bar,
                contender: one.contender,
                unit: metric.unit,
                spread: of(one)?,
                peer: peer.clone(),
                limit: metric.limit.filter(|_| judged),
            });
        }
    }
    Ok(rows)
}

/// Runs every cell.
pub fn run(args: &ControlArgs) -> Result<Vec<Row>> {
    let parent = args.dir.clone().unwrap_or_else(std::env::temp_dir);
    let mount = Mount::of(&parent)?;
    ensure!(
        !mount.is_memory(),
        "{} is {}, which is memory and not a disk: name a directory on a disk with --dir",
        parent.display(),
        mount.kind
    );
    let facts = [
        Facts::read()?.to_string(),
        format!("data on {} ({})", mount.kind, mount.source),
    ];
    for fact in &facts {
        eprintln!("{fact}");
    }
    machine::pin(LOAD_CPU)?;
    let dir = tempfile::Builder::new()
        .prefix("perf-control-")
        .tempdir_in(&parent)
        .with_context(|| format!("make a directory in {}", parent.display()))?;
    let mut rows = noop::run(args, dir.path())?;
    for members in args.members.iter().copied().filter(|members| *members > 0) {
        let ours = std::env::var_os("ULTRACLOUD_BIN").context("ULTRACLOUD_BIN is not set")?;
        eprintln!("{members} members: starting");
        let place = dir.path().join(format!("n{members}"));
        let cluster = Cluster::start(&Kind::Chainfire(ours.into()), usize::from(members), &place)?;
        let worked = work::run(args, members, &cluster);
        rows.extend(worked.with_context(|| format!("ChainFire{}", cluster.tail()))?);
    }
    if let Some(path) = &args.report {
        page::write(path, &page::CONTROL, &facts, &rows)?;
        eprintln!("written: {}", path.display());
    }
    Ok(rows)
}
