//! Benchmarks beside peers: what UltraCloud's bars are measured with.
//!
//! Every subcommand measures ours and its peers in one run, in interleaved rounds, and reports
//! medians with their spread. A figure is never taken from an earlier run, and a contender whose
//! work was not checked in the run has no figure. Tables and JSON go to stdout, facts to stderr.

mod chainfire;
mod control;
mod engine;
mod fiberlb;
mod machine;
mod objects;
mod page;
mod proc;
mod process;
mod report;
mod volumes;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::report::Row;

/// The server's, so that what it serves with here allocates as it does there; peers in this process, too.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures UltraCloud beside its peers, in one run.
#[derive(Parser)]
#[command(name = "perf", version)]
struct Cli {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Subcommand)]
enum Bench {
    /// CPU per operation of the engine's shapes, beside hand-written io_uring, tokio and compio.
    Engine(engine::EngineArgs),
    /// GET, PUT and LIST of objects, beside nginx, s3s-fs and Garage; trials of our node alone.
    Objects(Box<objects::ObjectsArgs>),
    /// Put, get, watch and lease of ChainFire beside etcd, on one and on three nodes.
    Chainfire(chainfire::ChainfireArgs),
    /// What the control kit costs: a call beside bare tonic and axum, operations and reservations.
    Control(control::ControlArgs),
    /// Serves one call that does nothing, for `control`.
    #[command(hide = true)]
    ControlServer(control::server::ServerArgs),
    /// Volumes by vhost-user-blk, beside qemu-storage-daemon.
    Volumes(volumes::VolumesArgs),
    /// Serves one volume, for `volumes`.
    #[command(hide = true)]
    VolumeServer(volumes::server::ServerArgs),
    /// What a packet and a change of a ring cost in FiberLB.
    Fiberlb(fiberlb::FiberlbArgs),
    /// One object of 6 GiB, up and down, and the memory that the server needs for it.
    BigObject(objects::big::BigObjectArgs),
}

fn main() -> ExitCode {
    run(Cli::parse()).unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn run(cli: Cli) -> Result<ExitCode> {
    let (rows, json, strict) = match cli.bench {
        Bench::Engine(args) => (engine::run(&args)?, args.json, args.strict),
        Bench::Objects(args) => (objects::run(&args)?, args.json, args.strict),
        Bench::Chainfire(args) => (chainfire::run(&args)?, args.json, args.strict),
        Bench::Control(args) => (control::run(&args)?, args.json, args.strict),
        Bench::ControlServer(args) => {
            control::server::run(&args)?;
            return Ok(ExitCode::SUCCESS);
        }
        Bench::Volumes(args) => (volumes::run(&args)?, args.json, args.strict),
        Bench::VolumeServer(args) => {
            volumes::server::run(args)?;
            return Ok(ExitCode::SUCCESS);
        }
        Bench::Fiberlb(args) => (fiberlb::run(&args)?, args.json, args.strict),
        Bench::BigObject(args) => (objects::big::run(&args)?, args.json, args.strict),
    };
    print(&rows, json)?;
    Ok(verdict(&rows, strict))
}

fn print(rows: &[Row], json: bool) -> Result<()> {
    if json {
        for row in rows {
            println!("{}", row.to_json()?);
        }
    } else {
        print!("{}", report::table(rows));
    }
    Ok(())
}

/// A missed bar fails the run only when asked to; so does a run that judged nothing at all.
fn verdict(rows: &[Row], strict: bool) -> ExitCode {
    let (judged, missed) = tally(rows);
    if judged == 0 {
        eprintln!("no bar was judged: no contender of this run has a limit");
    } else {
        eprintln!("{judged} bars judged, {missed} missed");
    }
    if strict && (judged == 0 || missed > 0) {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

/// How many bars were judged, and how many of those were missed.
fn tally(rows: &[Row]) -> (usize, usize) {
    let judged = rows.iter().filter(|row| row.ok().is_some()).count();
    let missed = rows.iter().filter(|row| row.ok() == Some(false)).count();
    (judged, missed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Limit, Spread};

    fn hop(median: f64, limit: Option<Limit>) -> Row {
        let spread = Spread {
            median,
            min: median,
            max: median,
        };
        Row {
            bar: "hop",
            contender: "engine",
            unit: "ns p50",
            spread,
            peer: None,
            limit,
        }
    }

    #[test]
    fn a_run_counts_what_it_judged_and_what_missed() {
        let limit = Some(Limit::Value(3_000.0));
        let rows = [hop(3_000.0, limit), hop(3_001.0, limit), hop(9_999.0, None)];
        assert_eq!(tally(&rows), (2, 1));
    }

    #[test]
    fn only_a_strict_run_fails_and_it_fails_when_nothing_was_judged() {
        let kept = [hop(1.0, Some(Limit::Value(2.0)))];
        let missed = [hop(3.0, Some(Limit::Value(2.0)))];
        let code = |rows: &[Row], strict| format!("{:?}", verdict(rows, strict));
        let (good, bad) = (
            format!("{:?}", ExitCode::SUCCESS),
            format!("{:?}", ExitCode::FAILURE),
        );
        assert_eq!(
            [code(&kept, true), code(&missed, false), code(&[], false)],
            [&*good; 3]
        );
        assert_eq!([code(&missed, true), code(&[], true)], [&*bad; 2]);
    }
}
