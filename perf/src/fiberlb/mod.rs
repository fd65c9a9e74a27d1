//! `perf fiberlb`: what a packet costs in FiberLB's program, and what a new ring costs its owner.
//!
//! The kernel times the program itself (`BPF_PROG_TEST_RUN`), so nothing but the program is in a figure. A
//! program before the load balancer makes each packet another flow's; what it costs alone is taken off.
//! A round is the best of many short runs, as the machine may be busy; figures are pinned to one CPU.

mod lab;
mod net;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use fiberlb::desired::{FlowTable, Mode};

use self::lab::{Family, Lab, Shape};
use crate::machine::{self, Facts};
use crate::objects::page;
use crate::process::LOAD_CPU;
use crate::report::{Limit, Row, Spread};

/// The most that a packet of 4,096 flows may cost, in nanoseconds.
const PACKET_NS: f64 = 60.0;
/// The most that a new ring may take, in milliseconds, and one part of the work, in microseconds.
const RING_MS: f64 = 20.0;
const PART_US: f64 = 500.0;

/// Options of `perf fiberlb`.
#[derive(Args)]
pub struct FiberlbArgs {
    /// One JSON object per line in place of the table.
    #[arg(long)]
    pub json: bool,
    /// Fail when a bar is missed.
    #[arg(long)]
    pub strict: bool,
    /// Also write the rows into this page, as its section on FiberLB.
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Rounds of each cell.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Short runs of a round, of which the best counts.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,
}

/// One thing to measure.
struct Cell {
    bar: &'static str,
    shape: Shape,
    flows: u32,
    limit: Option<f64>,
}

const fn shape(mode: Mode, flows: FlowTable, family: Family) -> Shape {
    Shape {
        mode,
        flows,
        family,
    }
}

const DNAT: Shape = shape(Mode::Dnat, FlowTable::Kept, Family::V4);

/// Cells of one shape stand together: they share a load balancer and its flows.
const CELLS: [Cell; 9] = [
    cell("DNAT, 1 flow", DNAT, 1, None),
    cell("DNAT, 4,096 flows", DNAT, 4096, Some(PACKET_NS)),
    cell("DNAT, 32,768 flows", DNAT, 32_768, None),
    cell("DNAT, 1,000,000 flows", DNAT, 1_000_000, None),
    cell(
        "direct, no flow table, 4,096 flows",
        shape(Mode::Direct, FlowTable::None, Family::V4),
        4096,
        Some(PACKET_NS),
    ),
    cell(
        "direct, 4,096 flows",
        shape(Mode::Direct, FlowTable::Kept, Family::V4),
        4096,
        None,
    ),
    cell(
        "IPIP, 4,096 flows",
        shape(Mode::Ipip, FlowTable::Kept, Family::V4),
        4096,
        None,
    ),
    cell(
        "GUE, 4,096 flows",
        shape(Mode::Gue, FlowTable::Kept, Family::V4),
        4096,
        None,
    ),
    cell(
        "DNAT of IPv6, 4,096 flows",
        shape(Mode::Dnat, FlowTable::Kept, Family::V6),
        4096,
        None,
    ),
];

const fn cell(bar: &'static str, shape: Shape, flows: u32, limit: Option<f64>) -> Cell {
    Cell {
        bar,
        shape,
        flows,
        limit,
    }
}

/// Measures every cell, and the change of a ring.
pub fn run(args: &FiberlbArgs) -> Result<Vec<Row>> {
    let facts = vec![Facts::read()?.to_string()];
    for fact in &facts {
        eprintln!("{fact}");
    }
    machine::pin(LOAD_CPU)?;
    let mut rows = Vec::new();
    let mut lab: Option<Lab> = None;
    for cell in &CELLS {
        let kept = lab.take().filter(|lab| lab.shape() == cell.shape);
        let mut this = match kept {
            Some(lab) => lab,
            None => Lab::new(cell.shape)?,
        };
        this.warm(cell.flows)
            .with_context(|| format!("warm up {}", cell.bar))?;
        let mut rounds = Vec::new();
        for _ in 0..args.rounds {
            rounds.push(this.packet_ns(cell.flows, args.runs)?);
        }
        rows.push(row(cell.bar, "ns/packet", &rounds, cell.limit)?);
        lab = Some(this);
    }
    drop(lab);
    rows.extend(rings(args.rounds)?);
    rows.extend(net::rows(args.rounds, args.runs)?);
    if let Some(path) = &args.report {
        page::write(path, &page::FIBERLB, &facts, &rows)?;
        eprintln!("written: {}", path.display());
    }
    Ok(rows)
}

/// A ring of 65,537 slots for 100 backends, made and swapped.
fn rings(rounds: u32) -> Result<Vec<Row>> {
    let mut lab = Lab::new(shape(Mode::Direct, FlowTable::Kept, Family::V4))?;
    let (mut totals, mut longest) = (Vec::new(), Vec::new());
    for turn in 0..rounds {
        let (total, parts) = lab.another_ring(2 + turn)?;
        totals.push(total.as_secs_f64() * 1e3);
        let most = parts.iter().max().copied().unwrap_or_default();
        longest.push(most.as_secs_f64() * 1e6);
    }
    Ok(vec![
        row("ring of 65,537 slots", "ms", &totals, Some(RING_MS))?,
        row("its longest part", "us", &longest, Some(PART_US))?,
    ])
}

fn row(bar: &'static str, unit: &'static str, rounds: &[f64], limit: Option<f64>) -> Result<Row> {
    Ok(Row {
        bar,
        contender: "fiberlb",
        unit,
        spread: Spread::of(rounds)?,
        peer: None,
        limit: limit.map(Limit::Value),
    })
}
